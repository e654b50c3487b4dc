//! Who is calling, and what they may do. The service asks [`Callers`] before anything is sent; the decision itself is
//! [`policy::decide`], which is pure.

pub mod certificate;
pub mod policy;
pub mod usage;

use std::{fmt, net::IpAddr, sync::Arc, time::SystemTime};

use arc_swap::ArcSwap;
use tokio::time::{Instant, timeout_at};

use self::{
    certificate::NameError,
    policy::{Asked, Denied},
    usage::{
        Hour,
        counter::{CallerKey, Counted, Counter, Refusal},
    },
};
use crate::{
    config::{Config, Policy, WhichCaller},
    token::UsageStore,
};

/// Who asks, as far as it was proved.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Identity {
    /// The name in a client's certificate that was verified.
    Certificate(Arc<str>),
    /// Nobody said who they are, and that is allowed here.
    Anonymous,
}

impl Identity {
    /// What says that it is this caller: a word for the audit trail.
    pub fn proved_by(&self) -> &'static str {
        match self {
            Self::Certificate(_) => "certificate",
            Self::Anonymous => "connection",
        }
    }

    /// Names this caller where their customers are counted: for good, since it is kept there.
    fn key(&self) -> CallerKey {
        match self {
            Self::Certificate(name) => CallerKey::new("certificate", name),
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
    /// The gateway asks nobody for a certificate.
    #[error(
        "this gateway cannot know its callers and does not serve the unknown; an operator must set tls.client_ca_file"
    )]
    NoWayToIdentify,
    /// The certificate is genuine but names nobody.
    #[error("the client certificate is genuine, but {0}")]
    Nameless(#[from] NameError),
}

/// Why a request is not let in.
#[derive(Debug)]
pub enum Refused {
    /// The policy does not allow it.
    Denied(Denied),
    /// Its customers count, and nobody could count them.
    Uncounted,
    /// The caller's deadline passed meanwhile.
    TooLate,
}

/// The policy that holds now, and who counts what callers have used of it.
#[derive(Debug)]
pub struct Callers {
    policy: ArcSwap<Policy>,
    admits_anonymous: bool,
    asks_for_certificates: bool,
    counter: Counter,
}

impl Callers {
    /// By this configuration, on a listener of this address, with the customers of the hour in this place.
    pub(crate) fn new(config: &Config, listen: IpAddr, usage: UsageStore) -> Self {
        let asks_for_certificates = config.tls.as_ref().is_some_and(|tls| tls.client_ca_file.is_some());
        let is_local = listen.to_canonical().is_loopback() && !asks_for_certificates;
        Self {
            policy: ArcSwap::from_pointee(config.policy.clone()),
            admits_anonymous: is_local || config.server.allow_anonymous_callers,
            asks_for_certificates,
            counter: Counter::start(usage, config.policy.callers.iter().any(|c| c.max_customers_per_hour.is_some())),
        }
    }

    /// Whether callers without an identity are let in.
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

    /// Who shows this certificate. One that was shown and names nobody never makes its caller anonymous.
    pub fn identify(&self, certificate: Option<&[u8]>) -> Result<Identity, Unidentified> {
        match certificate {
            Some(certificate) => Ok(Identity::Certificate(certificate::name(certificate)?.into())),
            None if self.admits_anonymous => Ok(Identity::Anonymous),
            None if self.asks_for_certificates => Err(Unidentified::NoCertificate),
            None => Err(Unidentified::NoWayToIdentify),
        }
    }

    /// Lets a request in, and counts its customers where its caller has so many an hour. Nobody else waits for anything.
    pub async fn admit(
        &self,
        identity: &Identity,
        asked: Asked<'_>,
        deadline: Option<Instant>,
    ) -> Result<Admission, Refused> {
        let policy = self.policy();
        // What lacks more than customers of the hour is not worth a look at the store.
        policy::decide(&policy, identity, asked, &Hour::default(), SystemTime::now()).map_err(Refused::Denied)?;
        let (Some(customers), Asked::Unassign(unassignment)) = (policy::counted(&policy, identity, asked), asked)
        else {
            return Ok(Admission(None));
        };
        let decide = {
            let (identity, unassignment) = (identity.clone(), unassignment.clone());
            move |usage: &Hour, now| policy::decide(&policy, &identity, Asked::Unassign(&unassignment), usage, now)
        };
        let counted = self.counter.take(identity.key(), customers, Box::new(decide));
        let counted = match deadline {
            Some(deadline) => timeout_at(deadline, counted).await.map_err(|_| Refused::TooLate)?,
            None => counted.await,
        };
        match counted {
            Ok(counted) => Ok(Admission(Some(counted))),
            Err(Refusal::Denied(denied)) => Err(Refused::Denied(denied)),
            Err(Refusal::Unavailable) => Err(Refused::Uncounted),
        }
    }

    /// Before the process ends: what was given back is written.
    pub async fn close(&self) {
        self.counter.close().await;
    }
}

/// A request that was let in. If it is dropped before something may have been sent, its customers are given back.
#[derive(Debug)]
pub struct Admission(Option<Counted>);

impl Admission {
    /// From now on something may be sent: what becomes of it counts, unless somebody says otherwise.
    pub fn begin(&mut self) {
        if let Some(counted) = &mut self.0 {
            counted.is_kept = true;
        }
    }

    /// Surely nothing was done: its customers do not count.
    pub fn give_back(mut self) {
        if let Some(counted) = &mut self.0 {
            counted.is_kept = false;
        }
    }
}

impl Identity {
    /// Whether an entry is about this caller. Exact: a certificate with the name `anonymous` is not anonymous.
    pub fn is(&self, entry: &WhichCaller) -> bool {
        match (self, entry) {
            (Self::Certificate(name), WhichCaller::Named(named)) => **name == **named,
            (Self::Anonymous, WhichCaller::Anonymous) => true,
            (Self::Certificate(_), WhichCaller::Anonymous) | (Self::Anonymous, WhichCaller::Named(_)) => false,
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Signed by an authority of ours, but in its subject's own words.
            Self::Certificate(name) => write!(f, "\"{}\"", name.escape_debug()),
            Self::Anonymous => f.write_str("anonymous"),
        }
    }
}
