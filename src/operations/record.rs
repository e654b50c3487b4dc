//! One operation as it is remembered: what was asked for, and what became of it. Pure.

use std::fmt;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::{
    audit::record::{Ended, Intent, PartIds, RecordedScope},
    license::{Etag, Outcome, Scope, Unassignment},
};

/// What a failure is called whose operation a crash, or the end of the process, cut short.
pub(crate) const CRASHED: &str = "GATEWAY_CRASHED";
/// What people read then.
const CRASHED_MESSAGE: &str = "the gateway ended while this operation ran, and Central may have acted on it; look whether it was \
                               done before you ask for it anew";
/// Of an outcome in a trail that an older version wrote.
const UNTOLD_MESSAGE: &str = "the operation failed; its record holds no more than the reason";
/// gRPC's number of UNKNOWN, and of INTERNAL.
const CODE_UNKNOWN: i32 = 2;
const CODE_INTERNAL: i32 = 13;

/// The caller that an operation belongs to: a hash of the name and of what proved it. All callers without an identity
/// are one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Owner([u8; 16]);

/// A hash of what decides on a request's effect. Two requests with the same one are the same request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestDigest([u8; 16]);

/// Names in the smallest space: they are visible ASCII, so a line feed parts them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Names(Box<str>);

/// An operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationRecord {
    pub(crate) operation_id: Uuid,
    /// The caller's, or the operation's own.
    pub(crate) request_id: Uuid,
    pub(crate) owner: Owner,
    /// None: an older version wrote it, and no request is known to be the same.
    pub(crate) digest: Option<RequestDigest>,
    pub(crate) scope: RecordedScope,
    /// The customers that the scope names.
    pub(crate) customers: Names,
    pub(crate) customer_count: u32,
    /// The ids of customers were dropped, here and in `end`, because they took too much memory.
    #[serde(default)]
    pub(crate) is_cut: bool,
    pub(crate) services: Names,
    pub(crate) reason: Box<str>,
    /// When it was first sent, or was about to be, in milliseconds; none: it waits.
    pub(crate) sent_at: Option<u64>,
    /// How many customers were in scope when that was last looked up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) resolved: Option<u32>,
    /// None: it runs.
    pub(crate) end: Option<Box<OperationEnd>>,
    /// Until when others believe that it runs. Only where replicas share it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lease_ends: Option<u64>,
}

/// How an operation ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OperationEnd {
    pub(crate) outcome: RecordedOutcome,
    /// When, in milliseconds.
    pub(crate) at: u64,
    pub(crate) calls: u32,
    /// What the caller was told; none: it was applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) failure: Option<RecordedFailure>,
    /// Of a partial one: applied, not applied, unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) parts: Option<Box<[Names; 3]>>,
}

/// What the caller of a failed operation was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RecordedFailure {
    pub(crate) reason: Box<str>,
    pub(crate) message: Box<str>,
    /// gRPC's number.
    pub(crate) code: i32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) http_status: Option<u16>,
    /// For those who wait for it in this process.
    #[serde(skip)]
    pub(crate) repeat_after: Option<std::time::Duration>,
}

/// [`Outcome`], spelled as everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RecordedOutcome {
    Applied,
    NotApplied,
    Partial,
    Unknown,
}

impl Owner {
    /// The caller of this name, proved by this.
    pub(crate) fn new(identified_by: &str, caller: &str) -> Self {
        // What a connection without an identity calls itself changes with every connection.
        let name = if identified_by == "connection" { "" } else { caller };
        Self(short_hash([identified_by, name].into_iter()))
    }

    /// 32 hexadecimal digits.
    pub(crate) fn key(&self) -> String {
        HEXLOWER.encode(&self.0)
    }
}

impl RequestDigest {
    /// Of the scope and the services as sets, the etag, and whether automatic licensing stops it. Not of the reason: it
    /// changes nothing.
    pub(crate) fn of(unassignment: &Unassignment, refuses_auto_licensing: bool) -> Self {
        let (kind, customers) = match &unassignment.scope {
            Scope::Include(customers) => ("include", customers.ids()),
            Scope::Exclude(customers) => ("exclude", customers.ids()),
            Scope::All(_) => ("all", &[][..]),
        };
        let mut customers: Vec<_> = customers.iter().map(super::super::license::CustomerId::as_str).collect();
        let mut services: Vec<_> =
            unassignment.services.names().iter().map(super::super::license::ServiceName::as_str).collect();
        customers.sort_unstable();
        services.sort_unstable();
        let etag = unassignment.etag.as_ref().map_or("", Etag::as_str);
        let count = customers.len().to_string();
        let refuses = refuses_auto_licensing.then_some("refuse_auto_licensing");
        let set = customers.into_iter().chain(services);
        Self(short_hash(refuses.into_iter().chain([kind, etag, &count]).chain(set)))
    }

    /// 32 hexadecimal digits.
    pub(crate) fn text(self) -> String {
        HEXLOWER.encode(&self.0)
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        parse_hash(text).map(Self)
    }
}

impl Names {
    pub(crate) fn new<T: AsRef<str>>(names: &[T]) -> Self {
        let names: Vec<_> = names.iter().map(AsRef::as_ref).collect();
        Self(names.join("\n").into())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.split('\n').filter(|name| !name.is_empty())
    }

    pub(crate) fn to_vec(&self) -> Vec<String> {
        self.iter().map(str::to_owned).collect()
    }

    fn bytes(&self) -> usize {
        self.0.len()
    }
}

impl OperationRecord {
    /// One that was just accepted.
    pub(crate) fn new(operation: &crate::audit::Operation) -> Self {
        let unassignment = &operation.unassignment;
        let (scope, customers) = match &unassignment.scope {
            Scope::Include(customers) => (RecordedScope::IncludeCustomers, customers.ids()),
            Scope::Exclude(customers) => (RecordedScope::ExcludeCustomers, customers.ids()),
            Scope::All(_) => (RecordedScope::AllCustomers, &[][..]),
        };
        let customers: Vec<_> = customers.iter().map(super::super::license::CustomerId::as_str).collect();
        let services: Vec<_> =
            unassignment.services.names().iter().map(super::super::license::ServiceName::as_str).collect();
        Self {
            operation_id: operation.id.as_uuid(),
            request_id: operation.request_id,
            owner: Owner::new(operation.identified_by, operation.caller.as_str()),
            digest: RequestDigest::parse(&operation.request_digest),
            scope,
            customer_count: u32::try_from(customers.len()).unwrap_or(u32::MAX),
            customers: Names::new(&customers),
            is_cut: false,
            services: Names::new(&services),
            reason: unassignment.reason.as_str().into(),
            sent_at: None,
            resolved: None,
            end: None,
            lease_ends: None,
        }
    }

    /// As the first intent in the audit trail tells of it.
    pub(crate) fn of_intent(intent: &Intent, at: u64) -> Self {
        Self {
            operation_id: intent.operation_id,
            request_id: intent.request_id.unwrap_or(intent.operation_id),
            owner: Owner::new(&intent.identified_by, &intent.caller),
            digest: intent.request_digest.as_deref().and_then(RequestDigest::parse),
            scope: intent.scope,
            customer_count: u32::try_from(intent.customers.len()).unwrap_or(u32::MAX),
            customers: Names::new(&intent.customers),
            is_cut: false,
            services: Names::new(&intent.services),
            reason: intent.reason.as_str().into(),
            sent_at: Some(at),
            resolved: None,
            end: None,
            lease_ends: None,
        }
    }

    /// Whether its id is the caller's own choice, so that forgetting it could let a repeat run.
    pub(crate) fn has_own_id(&self) -> bool {
        self.request_id == self.operation_id
    }

    /// Whether a repeat may run: surely nothing was done.
    pub(crate) fn is_free(&self) -> bool {
        self.end.as_ref().is_some_and(|end| end.outcome == RecordedOutcome::NotApplied)
    }

    /// Whether its process ended before it knew more.
    pub(crate) fn is_crashed(&self) -> bool {
        let failure = self.end.as_ref().and_then(|end| end.failure.as_ref());
        failure.is_some_and(|failure| &*failure.reason == CRASHED)
    }

    /// When it was accepted, by its id, in milliseconds.
    pub(crate) fn created_at(&self) -> u64 {
        created_at(self.operation_id)
    }

    /// As others may see it who share the record: an owner who let the lease end will not tell.
    pub(crate) fn seen_at(mut self, now: u64) -> Self {
        if let (None, Some(lease_ends)) = (&self.end, self.lease_ends)
            && now >= lease_ends
        {
            self.end = Some(Box::new(OperationEnd::crashed(lease_ends)));
        }
        self
    }

    /// What its names take.
    pub(super) fn name_bytes(&self) -> usize {
        let parts = self.end.as_ref().and_then(|end| end.parts.as_ref());
        let parts: usize = parts.map_or(0, |parts| parts.iter().map(Names::bytes).sum());
        self.customers.bytes() + parts
    }

    /// Drops the ids of customers.
    pub(super) fn cut(&mut self) {
        self.is_cut |= self.name_bytes() > 0;
        self.customers = Names::default();
        if let Some(parts) = self.end.as_mut().and_then(|end| end.parts.as_mut()) {
            **parts = <[Names; 3]>::default();
        }
    }
}

impl OperationEnd {
    /// Nobody knows what became of it, and nobody will.
    pub(crate) fn crashed(at: u64) -> Self {
        Self::unknown(at, CRASHED, CRASHED_MESSAGE, CODE_UNKNOWN)
    }

    /// The work panicked.
    pub(crate) fn panicked(at: u64) -> Self {
        Self::unknown(at, "GATEWAY_INTERNAL", "the gateway failed; look whether it was done", CODE_INTERNAL)
    }

    fn unknown(at: u64, reason: &str, message: &str, code: i32) -> Self {
        let failure = RecordedFailure {
            reason: reason.into(),
            message: message.into(),
            code,
            http_status: None,
            repeat_after: None,
        };
        Self { outcome: RecordedOutcome::Unknown, at, calls: 0, failure: Some(failure), parts: None }
    }

    /// As the audit trail tells of it.
    pub(crate) fn of_ended(ended: &Ended, at: u64) -> Self {
        let outcome = match ended.outcome.as_str() {
            "applied" => RecordedOutcome::Applied,
            "not_applied" => RecordedOutcome::NotApplied,
            "partial" => RecordedOutcome::Partial,
            _ => RecordedOutcome::Unknown,
        };
        let failure = match (ended.cause.as_deref(), &ended.message) {
            (None, _) => None,
            (Some("crash" | "cut off"), _) => return Self::crashed(at),
            (Some("GATEWAY_INTERNAL"), None) => return Self::panicked(at),
            (Some(cause), message) => Some(RecordedFailure {
                reason: cause.into(),
                message: message.as_deref().unwrap_or(UNTOLD_MESSAGE).into(),
                code: ended.code.unwrap_or(CODE_UNKNOWN),
                http_status: ended.http_status,
                repeat_after: None,
            }),
        };
        let parts = ended.parts.as_ref().map(|PartIds { applied, not_applied, unknown }| {
            Box::new([Names::new(applied), Names::new(not_applied), Names::new(unknown)])
        });
        Self { outcome, at, calls: ended.calls.unwrap_or_default(), failure, parts }
    }
}

impl From<Outcome> for RecordedOutcome {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Applied => Self::Applied,
            Outcome::NotApplied => Self::NotApplied,
            Outcome::Partial => Self::Partial,
            Outcome::Unknown => Self::Unknown,
        }
    }
}

impl From<RecordedOutcome> for Outcome {
    fn from(outcome: RecordedOutcome) -> Self {
        match outcome {
            RecordedOutcome::Applied => Self::Applied,
            RecordedOutcome::NotApplied => Self::NotApplied,
            RecordedOutcome::Partial => Self::Partial,
            RecordedOutcome::Unknown => Self::Unknown,
        }
    }
}

/// When the operation of this id was accepted: a UUID of version 7 begins with it.
pub(super) fn created_at(operation_id: Uuid) -> u64 {
    let (seconds, nanos) = operation_id.get_timestamp().map_or((0, 0), |timestamp| timestamp.to_unix());
    seconds * 1_000 + u64::from(nanos / 1_000_000)
}

/// Each text with its length, so that none can be taken for two.
fn short_hash<'a>(texts: impl Iterator<Item = &'a str>) -> [u8; 16] {
    let mut hash = Sha256::new();
    for text in texts {
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text.as_bytes());
    }
    let mut short = [0; 16];
    short.copy_from_slice(&hash.finalize()[..16]);
    short
}

fn parse_hash(text: &str) -> Option<[u8; 16]> {
    HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok()
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key())
    }
}

impl fmt::Debug for RequestDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

impl Serialize for Owner {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.key())
    }
}

impl<'de> Deserialize<'de> for Owner {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_hash(&text).map(Self).ok_or_else(|| D::Error::custom("no owner"))
    }
}

impl Serialize for RequestDigest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text())
    }
}

impl<'de> Deserialize<'de> for RequestDigest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| D::Error::custom("no digest"))
    }
}

impl Serialize for Names {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(String::deserialize(deserializer)?.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::license::{CustomerId, Customers, Reason, ServiceName, Services};

    fn request(customers: &[&str], services: &[&str], reason: &str) -> Unassignment {
        let ids = customers.iter().map(|id| CustomerId::new((*id).to_owned()).unwrap()).collect();
        let names = services.iter().map(|name| ServiceName::new((*name).to_owned()).unwrap()).collect();
        Unassignment {
            scope: Scope::Include(Customers::new(ids).unwrap()),
            services: Services::new(names).unwrap(),
            reason: Reason::new(reason.to_owned()).unwrap(),
            etag: None,
        }
    }

    #[test]
    fn the_same_request_is_one_with_the_same_effect() {
        let one = request(&["a", "b"], &["x", "y"], "");
        let digest = RequestDigest::of(&one, false);
        let exclude = {
            let Scope::Include(customers) = one.scope.clone() else { unreachable!() };
            Unassignment { scope: Scope::Exclude(customers), ..one.clone() }
        };
        let table = [
            ("in another order, for another reason", request(&["b", "a"], &["y", "x"], "R"), true),
            ("one customer less", request(&["a"], &["x", "y"], ""), false),
            ("another service", request(&["a", "b"], &["x", "z"], ""), false),
            ("a customer is no service", request(&["a"], &["b", "x", "y"], ""), false),
            ("another spelling", request(&["A", "b"], &["x", "y"], ""), false),
            ("another scope", exclude, false),
            ("everyone", Unassignment { scope: Scope::everyone(), ..one.clone() }, false),
        ];
        for (name, other, is_same) in table {
            assert_eq!(RequestDigest::of(&other, false) == digest, is_same, "{name}");
        }
        assert_ne!(RequestDigest::of(&one, true), digest, "where it would do nothing, the other one acts");
        let bound =
            |c: &str| Unassignment { etag: Some(Etag::parse(format!("v1:{}", c.repeat(64))).unwrap()), ..one.clone() };
        assert_ne!(RequestDigest::of(&bound("a"), false), digest);
        assert_ne!(RequestDigest::of(&bound("a"), false), RequestDigest::of(&bound("b"), false));
        assert_eq!(RequestDigest::parse(&digest.text()), Some(digest));
    }

    #[test]
    fn callers_are_told_apart_by_name_and_proof_and_connections_are_one() {
        assert_ne!(Owner::new("certificate", "a"), Owner::new("token", "a"));
        assert_ne!(Owner::new("certificate", "a"), Owner::new("certificate", "b"));
        assert_eq!(Owner::new("connection", "anonymous 1.2.3.4:5"), Owner::new("connection", "anonymous 1.2.3.4:6"));
    }

    #[test]
    fn an_owner_that_lets_its_lease_end_leaves_an_unknown_outcome() {
        let record = OperationRecord {
            operation_id: Uuid::now_v7(),
            request_id: Uuid::now_v7(),
            owner: Owner::new("token", "a"),
            digest: None,
            scope: RecordedScope::AllCustomers,
            customers: Names::default(),
            customer_count: 0,
            is_cut: false,
            services: Names::new(&["x"]),
            reason: "".into(),
            sent_at: Some(5),
            resolved: None,
            end: None,
            lease_ends: Some(10),
        };
        assert_eq!(record.clone().seen_at(9).end, None);
        let end = record.clone().seen_at(10).end.unwrap();
        assert_eq!((end.outcome, &*end.failure.unwrap().reason), (RecordedOutcome::Unknown, CRASHED));
        let text = serde_json::to_vec(&record).unwrap();
        assert_eq!(serde_json::from_slice::<OperationRecord>(&text).unwrap(), record);
    }
}
