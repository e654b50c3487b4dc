//! Who is calling, and what they may do. The service asks [`Callers`] before anything is sent; the decision itself is
//! [`policy::decide`], which is pure.

pub mod certificate;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
pub mod keys;
pub mod policy;
pub mod token;
pub mod usage;

use std::{fmt, net::IpAddr, sync::Arc, time::SystemTime};

use arc_swap::ArcSwap;
use tokio::time::Instant;

use self::{
    certificate::NameError,
    keys::{Keys, Unverified},
    policy::{Asked, PolicyRefusal},
    token::TokenError,
    usage::{
        CallerQuotaExhausted, Hour,
        counter::{CallerKey, Counted, Counter},
        reads::ReadCounts,
    },
};
use crate::{
    config::{AllowedNames, CallerRules, Config, Policy, WhichCaller},
    deadline::within,
    license::CustomerId,
    token::UsageStore,
};

/// Who asks, as far as it was proved.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Identity {
    /// The name in a client's certificate that was verified.
    Certificate(Arc<str>),
    /// The subject of a token that was verified.
    Token(Arc<str>),
    /// Nobody said who they are, and that is allowed here.
    Anonymous,
}

impl Identity {
    /// What says that it is this caller: a word for the audit trail.
    pub fn proved_by(&self) -> &'static str {
        match self {
            Self::Certificate(_) => "certificate",
            Self::Token(_) => "token",
            Self::Anonymous => "connection",
        }
    }

    /// Names this caller where their customers are counted: for good, since it is kept there.
    fn key(&self) -> CallerKey {
        match self {
            Self::Certificate(name) => CallerKey::new("certificate", name),
            Self::Token(subject) => CallerKey::new("token", subject),
            Self::Anonymous => CallerKey::new("anonymous", ""),
        }
    }
}

/// Why a caller has no identity where one is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unidentified {
    /// No certificate was shown.
    #[error("this gateway wants to know its callers; show a client certificate of an authority that it trusts")]
    NoCertificate,
    /// No token was sent.
    #[error(
        "this gateway wants to know its callers; send a token of the issuer that it trusts, `authorization: Bearer TOKEN`"
    )]
    NoToken,
    /// Neither was there.
    #[error(
        "this gateway wants to know its callers; send a token of the issuer that it trusts, `authorization: Bearer TOKEN`, or \
         show a client certificate of an authority that it trusts"
    )]
    NoCredentials,
    /// The gateway asks nobody for either.
    #[error(
        "this gateway cannot know its callers and does not serve the unknown; an operator must set tls.client_ca_file \
         or the section jwt"
    )]
    NoWayToIdentify,
    /// The certificate was good when the connection was made, and is not any more.
    #[error(
        "the client certificate has expired, or its authority is not trusted any more; connect again with one that is"
    )]
    CertificateOutdated,
    /// The certificate is genuine but names nobody.
    #[error("the client certificate is genuine, but {0}")]
    Nameless(#[from] NameError),
    /// The token is not good. Where one is sent, the certificate does not count.
    #[error(transparent)]
    BadToken(#[from] TokenError),
    /// Nobody can say whether the token is good.
    #[error("this gateway does not have the keys of its callers' tokens now, and cannot tell who you are")]
    KeysUnavailable,
}

/// Why a request is not admitted.
#[derive(Debug)]
pub enum NotAdmitted {
    /// The policy refuses it.
    Policy(PolicyRefusal),
    /// Its customers count towards an hourly quota, and the gateway cannot count them now.
    Uncounted,
    /// The caller's deadline passed meanwhile.
    DeadlinePassed,
}

/// The policy that holds now, and who counts what callers have used of it.
#[derive(Debug)]
pub struct Callers {
    policy: ArcSwap<Policy>,
    admits_anonymous: bool,
    asks_for_certificates: bool,
    keys: Option<Arc<Keys>>,
    counter: Counter,
    reads: ReadCounts,
}

impl Callers {
    /// By this configuration, on a listener of this address, with the counts of hourly quotas in this place.
    pub(crate) fn new(config: &Config, listen: IpAddr, usage: UsageStore) -> Result<Self, keys::Error> {
        let asks_for_certificates = config.tls.as_ref().is_some_and(|tls| tls.client_ca_file.is_some());
        let is_local = listen.to_canonical().is_loopback() && !asks_for_certificates && config.jwt.is_none();
        Ok(Self {
            policy: ArcSwap::from_pointee(config.policy.clone()),
            admits_anonymous: is_local || config.server.allow_anonymous_callers,
            asks_for_certificates,
            keys: config.jwt.as_ref().map(Keys::new).transpose()?.map(Arc::new),
            counter: Counter::start(usage, config.policy.callers.iter().any(|c| c.max_customers_per_hour.is_some())),
            reads: ReadCounts::new(Instant::now()),
        })
    }

    /// The keys of callers' tokens, where tokens are accepted.
    pub fn keys(&self) -> Option<Arc<Keys>> {
        self.keys.clone()
    }

    /// Whether callers without an identity are admitted.
    pub fn admits_anonymous(&self) -> bool {
        self.admits_anonymous
    }

    /// The policy that holds now.
    pub fn policy(&self) -> Arc<Policy> {
        self.policy.load_full()
    }

    /// From now on, this policy holds.
    pub fn replace(&self, policy: Policy) {
        self.policy.store(Arc::new(policy));
    }

    /// Who shows this certificate and sends these values of the header `authorization`. What was shown and is not good
    /// never makes its caller anonymous; a token that was sent decides, whatever the certificate.
    pub async fn identify(
        &self,
        certificate: Option<&[u8]>,
        authorization: &[&[u8]],
    ) -> Result<Identity, Unidentified> {
        if let Some(keys) = &self.keys
            && let Some(token) = token::bearer(authorization)?
        {
            return match keys.bearer_of(token).await {
                Ok(subject) => Ok(Identity::Token(subject)),
                Err(Unverified::Token(error)) => Err(error.into()),
                Err(Unverified::NoKeys) => Err(Unidentified::KeysUnavailable),
            };
        }
        match certificate {
            Some(certificate) => Ok(Identity::Certificate(certificate::name(certificate)?.into())),
            None if self.admits_anonymous => Ok(Identity::Anonymous),
            None => Err(match (self.asks_for_certificates, &self.keys) {
                (true, Some(_)) => Unidentified::NoCredentials,
                (true, None) => Unidentified::NoCertificate,
                (false, Some(_)) => Unidentified::NoToken,
                (false, None) => Unidentified::NoWayToIdentify,
            }),
        }
    }

    /// Admits a request, and counts its customers where its caller has an hourly quota. Other callers do not wait.
    pub async fn admit(
        &self,
        identity: &Identity,
        asked: Asked<'_>,
        deadline: Option<Instant>,
    ) -> Result<Admission, NotAdmitted> {
        let policy = self.policy();
        // A request that lacks more than hourly quota does not cost a read of the store.
        policy::decide(&policy, identity, asked, &Hour::default(), SystemTime::now()).map_err(NotAdmitted::Policy)?;
        let (Some(customers), Asked::Unassign(unassignment)) = (policy::counted(&policy, identity, asked), asked)
        else {
            return Ok(Admission(None));
        };
        let decide = {
            let (identity, unassignment) = (identity.clone(), unassignment.clone());
            move |usage: &Hour, now| policy::decide(&policy, &identity, Asked::Unassign(&unassignment), usage, now)
        };
        let counted = self.counter.take(identity.key(), customers, Box::new(decide));
        match within(deadline, counted).await {
            Ok(counted) => Ok(Admission(Some(counted?))),
            Err(_) => Err(NotAdmitted::DeadlinePassed),
        }
    }

    /// Counts one more call to Central that only reads, or says that this caller may cause no more within the hour.
    pub fn take_read(&self, identity: &Identity, now: Instant) -> Result<(), CallerQuotaExhausted> {
        let max = policy::rules_of(&self.policy(), identity).map(|rules| rules.max_reads_per_hour);
        self.reads.take(identity, max.unwrap_or(CallerRules::DEFAULT_READS_PER_HOUR), now)
    }

    /// Whether the policy that holds now lets this caller do anything to this customer at all.
    pub fn may_touch(&self, identity: &Identity, customer: &CustomerId) -> bool {
        policy::rules_of(&self.policy(), identity).is_some_and(|rules| match &rules.customers {
            AllowedNames::Any => true,
            AllowedNames::Only(customers) => customers.contains(customer),
        })
    }

    /// Whether the policy that holds now allows this, the hourly quota aside: that was counted when the request was
    /// admitted.
    pub fn still_allows(&self, identity: &Identity, asked: Asked<'_>) -> Result<(), PolicyRefusal> {
        policy::decide(&self.policy(), identity, asked, &Hour::default(), SystemTime::now())
    }

    /// Before the process ends: what was given back is written.
    pub async fn close(&self) {
        self.counter.close().await;
    }
}

/// A request that was admitted. If it is dropped before something may have been sent, its customers are given back.
#[derive(Debug)]
pub struct Admission(Option<Counted>);

impl Admission {
    /// From now on something may be sent: all of its customers count, until more is known.
    pub fn begin(&mut self) {
        if let Some(counted) = &mut self.0 {
            counted.keep_all();
        }
    }

    /// Surely nothing was done for the others: only so many customers count.
    pub fn keep_only(&mut self, customers: usize) {
        if let Some(counted) = &mut self.0 {
            counted.keep_only(customers as u64);
        }
    }
}

impl Identity {
    /// Whether an entry is about this caller. Exact: a certificate with the name `anonymous` is not anonymous, and a
    /// token with the subject of a certificate's name is not that certificate.
    pub fn is(&self, entry: &WhichCaller) -> bool {
        match (self, entry) {
            (Self::Certificate(name), WhichCaller::Named(named)) => **name == **named,
            (Self::Token(subject), WhichCaller::TokenSubject(named)) => **subject == **named,
            (Self::Anonymous, WhichCaller::Anonymous) => true,
            (Self::Certificate(_), WhichCaller::TokenSubject(_) | WhichCaller::Anonymous)
            | (Self::Token(_), WhichCaller::Named(_) | WhichCaller::Anonymous)
            | (Self::Anonymous, WhichCaller::Named(_) | WhichCaller::TokenSubject(_)) => false,
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Signed by an authority of ours, but in its subject's own words.
            Self::Certificate(name) => write!(f, "\"{}\"", name.escape_debug()),
            Self::Token(subject) => write!(f, "the token subject \"{}\"", subject.escape_debug()),
            Self::Anonymous => f.write_str("anonymous"),
        }
    }
}
