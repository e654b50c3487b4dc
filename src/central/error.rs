//! What Central did or said when it did not simply accept.

use std::time::Duration;

use uuid::Uuid;

use super::Flaw;
use crate::{exchange, license::Outcome, quota::NoPermit, token};

/// Why a call to Central did not succeed. One variant per line of the failure table (`service/status.rs`).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// 400, 422: an argument is not to Central's liking.
    #[error("Central rejected an argument (HTTP {status})")]
    ArgumentRejected {
        /// The HTTP status.
        status: u16,
    },
    /// 401 with a fresh token, or no token can be had without a person.
    #[error("Central rejects the gateway's credentials")]
    CredentialsRejected {
        /// 401, where Central answered the call itself.
        status: Option<u16>,
        /// Why there is no token, where that was it.
        source: Option<token::Error>,
    },
    /// No valid token is left and the token endpoint fails for now.
    #[error("there is no valid access token, and a new one cannot be had now")]
    TokenUnavailable {
        /// When the gateway tries again, counted from now.
        retry_after: Duration,
        /// Why.
        source: token::Error,
    },
    /// 403: our account may not do this.
    #[error("Central does not permit this to the gateway's account (HTTP 403)")]
    PermissionDenied,
    /// 404 of the service: a customer of the request is unknown.
    #[error("Central does not know a customer of the request (HTTP 404)")]
    CustomerNotFound,
    /// 404 in Kong's own words: there is no such operation at this address.
    #[error("Central's API gateway has no such operation (HTTP 404); is central.base_url the right cluster?")]
    EndpointNotFound,
    /// 409. The cause is undocumented; probably a licensing job on the same customers.
    #[error("Central reports a conflict (HTTP 409)")]
    Conflict,
    /// 413, 417: the request is larger than Central takes.
    #[error("the request is too large for Central (HTTP {status})")]
    TooLarge {
        /// The HTTP status.
        status: u16,
    },
    /// 429 of the short window, by Central or foreseen.
    #[error("Central's limit of calls per second is reached")]
    RateLimited {
        /// How long to wait for the next window.
        wait: Duration,
        /// Whether Central said so; else nothing was sent.
        is_answer: bool,
    },
    /// 429 of the day, by Central or foreseen.
    #[error("Central's calls of the day are spent")]
    QuotaExhausted {
        /// How long until the next day, 00:00 UTC.
        wait: Duration,
        /// Whether Central said so; else nothing was sent.
        is_answer: bool,
    },
    /// 501.
    #[error("Central does not implement this operation (HTTP 501)")]
    Unimplemented,
    /// 502, 503, 504: something between us and the service failed, at an unknown moment.
    #[error("Central is unavailable (HTTP {status})")]
    Unavailable {
        /// The HTTP status.
        status: u16,
    },
    /// 500 and every other 5xx.
    #[error("Central failed (HTTP {status})")]
    Internal {
        /// The HTTP status.
        status: u16,
    },
    /// 3xx, a 4xx that means nothing here, or a 4xx whose body is a web page: a proxy answers in Central's place.
    #[error("Central answered in a way that makes no sense here (HTTP {status})")]
    Unexpected {
        /// The HTTP status.
        status: u16,
    },
    /// 2xx with a body that reports failure.
    #[error("Central answered HTTP {status}, but its answer reports a failure")]
    ReportedFailure {
        /// The HTTP status.
        status: u16,
    },
    /// 2xx with a body that is not Central's (a web page, not text, not all of it), or that a read cannot use.
    #[error("Central's answer (HTTP {status}) is not what this operation returns")]
    Unreadable {
        /// The HTTP status.
        status: u16,
    },
    /// A list that does not add up.
    #[error("Central's list of {list} cannot be relied on: {flaw}")]
    ListUnreliable {
        /// What it lists.
        list: &'static str,
        /// Why.
        flaw: Flaw,
    },
    /// Nothing was sent: other customers are in scope than when it was previewed.
    #[error("other customers are in scope now than when it was previewed")]
    PreviewStale,
    /// Nothing was sent: who is in scope could not be looked up just before.
    #[error("who is in scope could not be looked up again")]
    Unresolved(#[source] Box<Error>),
    /// Not connected: nothing was sent.
    #[error("Central cannot be reached")]
    Unreachable(#[source] exchange::Error),
    /// Nothing was sent: the last calls did not reach Central, or it failed.
    #[error("Central is down: the last calls failed, and no more are made for a while")]
    Down {
        /// When a call is made again.
        retry_after: Duration,
    },
    /// Nothing was sent: too many wait.
    #[error("too many requests wait for Central")]
    Overloaded {
        /// When it may be better.
        retry_after: Duration,
    },
    /// The connection broke after sending.
    #[error("the connection to Central was lost after the request was sent")]
    ConnectionLost(#[source] exchange::Error),
    /// Our own limit on one call (`central.timeout`) passed.
    #[error("Central did not answer within central.timeout")]
    TimedOut(#[source] exchange::Error),
    /// Nothing was sent: the audit trail did not take what was about to be.
    #[error("the audit trail cannot be written, and no call is made without it")]
    AuditUnavailable,
    /// Nothing was sent: the process has finished what it had begun, and ends.
    #[error("the gateway is stopping")]
    Stopping,
    /// Nothing was sent: the operation could not be recorded where replicas share it.
    #[error("operations cannot be recorded, and no call is made without that")]
    OperationsUnavailable,
    /// Nothing was sent: an operation of another replica holds the request's id.
    #[error("the operation {operation_id} of another replica has this id of a request")]
    HeldElsewhere {
        /// That one.
        operation_id: Uuid,
    },
    /// The caller's deadline passed, or the caller left.
    #[error("the caller's deadline passed {}", if *nothing_was_sent { "before the call was made" } else { "while Central was at work" })]
    Deadline {
        /// Whether that was before anything was sent.
        nothing_was_sent: bool,
    },
    /// Nothing was sent: the policy has changed while the request waited.
    #[error("the policy does not allow this any more: {why}")]
    NotPermitted {
        /// The policy's words.
        why: String,
    },
    /// The caller may cause no more reads of Central in this hour.
    #[error("the caller has used up the reads of Central that it may cause in an hour")]
    ReadsSpent {
        /// When there is one again.
        retry_after: Duration,
    },
    /// The gateway itself failed.
    #[error("the gateway itself failed")]
    Bug,
}

impl Error {
    /// Whether a call that ended like this may have changed anything.
    ///
    /// A refusal (4xx) counts as nothing changed, by HTTP's meaning: Central's documents do not say more. What proves
    /// it are the refusals of its gateway: 401, 413, 417, 429.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::ArgumentRejected { .. }
            | Self::CredentialsRejected { .. }
            | Self::TokenUnavailable { .. }
            | Self::PermissionDenied
            | Self::CustomerNotFound
            | Self::EndpointNotFound
            | Self::Conflict
            | Self::TooLarge { .. }
            | Self::RateLimited { .. }
            | Self::QuotaExhausted { .. }
            | Self::Unimplemented
            | Self::Unexpected { status: 400.. }
            | Self::Unreachable(_)
            | Self::Down { .. }
            | Self::Overloaded { .. }
            | Self::ListUnreliable { .. }
            | Self::PreviewStale
            | Self::Unresolved(_)
            | Self::AuditUnavailable
            | Self::OperationsUnavailable
            | Self::Stopping
            | Self::HeldElsewhere { .. }
            | Self::NotPermitted { .. }
            | Self::ReadsSpent { .. }
            | Self::Deadline { nothing_was_sent: true } => Outcome::NotApplied,
            // A redirect may follow a change that was made (303).
            Self::Unexpected { status: ..400 }
            | Self::Unavailable { .. }
            | Self::Internal { .. }
            | Self::ReportedFailure { .. }
            | Self::Unreadable { .. }
            | Self::ConnectionLost(_)
            | Self::TimedOut(_)
            | Self::Deadline { nothing_was_sent: false }
            | Self::Bug => Outcome::Unknown,
        }
    }

    /// Whether Central, or the way to it, failed: what the circuit breaker counts.
    pub(super) fn is_outage(&self) -> bool {
        match self {
            Self::Unreachable(_)
            | Self::Unavailable { .. }
            | Self::Internal { .. }
            | Self::ConnectionLost(_)
            | Self::TimedOut(_) => true,
            Self::ArgumentRejected { .. }
            | Self::CredentialsRejected { .. }
            | Self::TokenUnavailable { .. }
            | Self::PermissionDenied
            | Self::CustomerNotFound
            | Self::EndpointNotFound
            | Self::Conflict
            | Self::TooLarge { .. }
            | Self::RateLimited { .. }
            | Self::QuotaExhausted { .. }
            | Self::Unimplemented
            | Self::Unexpected { .. }
            | Self::ReportedFailure { .. }
            | Self::Unreadable { .. }
            | Self::Down { .. }
            | Self::Overloaded { .. }
            | Self::ListUnreliable { .. }
            | Self::PreviewStale
            | Self::Unresolved(_)
            | Self::AuditUnavailable
            | Self::Deadline { .. }
            | Self::NotPermitted { .. }
            | Self::ReadsSpent { .. }
            | Self::OperationsUnavailable
            | Self::Stopping
            | Self::HeldElsewhere { .. }
            | Self::Bug => false,
        }
    }

    /// The HTTP status of Central's answer, where there was one.
    pub fn http_status(&self) -> Option<u16> {
        match self {
            Self::ArgumentRejected { status }
            | Self::TooLarge { status }
            | Self::Unavailable { status }
            | Self::Internal { status }
            | Self::Unexpected { status }
            | Self::ReportedFailure { status }
            | Self::Unreadable { status } => Some(*status),
            Self::CredentialsRejected { status, .. } => *status,
            Self::PermissionDenied => Some(403),
            Self::CustomerNotFound | Self::EndpointNotFound => Some(404),
            Self::Conflict => Some(409),
            Self::RateLimited { is_answer, .. } | Self::QuotaExhausted { is_answer, .. } => is_answer.then_some(429),
            Self::Unimplemented => Some(501),
            Self::ListUnreliable { .. } => Some(200),
            Self::Unresolved(error) => error.http_status(),
            Self::TokenUnavailable { .. }
            | Self::Unreachable(_)
            | Self::Down { .. }
            | Self::Overloaded { .. }
            | Self::ConnectionLost(_)
            | Self::TimedOut(_)
            | Self::PreviewStale
            | Self::AuditUnavailable
            | Self::Deadline { .. }
            | Self::NotPermitted { .. }
            | Self::ReadsSpent { .. }
            | Self::OperationsUnavailable
            | Self::Stopping
            | Self::HeldElsewhere { .. }
            | Self::Bug => None,
        }
    }
}

impl From<exchange::Error> for Error {
    fn from(error: exchange::Error) -> Self {
        match error {
            exchange::Error::NotConnected(_) => Self::Unreachable(error),
            exchange::Error::TimedOut(_) => Self::TimedOut(error),
            exchange::Error::Lost(_) => Self::ConnectionLost(error),
        }
    }
}

impl From<NoPermit> for Error {
    fn from(none: NoPermit) -> Self {
        match none {
            NoPermit::TooLate { wait } => Self::RateLimited { wait, is_answer: false },
            NoPermit::DaySpent { wait } => Self::QuotaExhausted { wait, is_answer: false },
        }
    }
}

impl From<token::Error> for Error {
    fn from(error: token::Error) -> Self {
        match error.retry_after() {
            Some(retry_after) => Self::TokenUnavailable { retry_after, source: error },
            None => Self::CredentialsRejected { status: None, source: Some(error) },
        }
    }
}
