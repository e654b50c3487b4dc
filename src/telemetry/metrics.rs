//! The one set of instruments. What is measured goes out by OTLP and is served on `/metrics`, from the same numbers.
//!
//! Other modules call one method per instrument and know nothing of OpenTelemetry. What is better asked for than told
//! (a quota, the depth of a queue) is registered once, as a function that is called when somebody collects: it must be
//! quick, must not block, and must not panic, because a panic there ends the periodic export.
//!
//! Labels come from closed sets, the enums below: nothing that a caller sends becomes one.

mod instruments;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use opentelemetry::{KeyValue, metrics::Meter};
use prometheus::{
    TextEncoder,
    proto::{LabelPair, Metric, MetricFamily},
};
use tonic::Code;

use self::instruments::Instruments;
use super::{
    http::Measured,
    names,
    rpc::{RpcOutcome, code_name},
};
use crate::config::StatusCodeName;

/// Counts and measures, or does nothing at all. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics(Option<Arc<Instruments>>);

/// One of the two windows of Central's quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Window {
    /// The calls of a second.
    Second,
    /// The calls of a day.
    Day,
    /// The answer did not say which.
    Unknown,
}

/// What is known of one window of the quota.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WindowQuota {
    /// Calls left.
    pub remaining: Option<u64>,
    /// Calls in all.
    pub limit: Option<u64>,
}

/// What is known of Central's quota.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QuotaReadings {
    /// Of this second.
    pub second: WindowQuota,
    /// Of this day.
    pub day: WindowQuota,
}

/// What the breaker before Central does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerPosition {
    /// It lets every call pass.
    Closed,
    /// It lets one pass to see how it ends.
    HalfOpen,
    /// It lets none pass.
    Open,
}

/// Why a request was refused to protect the gateway or Central.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shed {
    /// Too many wait already.
    QueueFull,
    /// The breaker is open.
    BreakerOpen,
    /// The gateway is stopping.
    Draining,
}

/// Why the gateway closed a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Closed {
    /// There are as many as there may be, all of callers.
    TooMany,
    /// The same, from one address.
    TooManyOfAddress,
    /// Another peer needed its place, and nothing of it was ever admitted.
    Evicted,
    /// Its TLS handshake failed.
    Handshake,
    /// Its client's certificate has expired, or its authority was replaced.
    Certificate,
    /// It began something and did not go on: a handshake, a frame, headers.
    Silent,
    /// It does not take what is sent to it.
    Stalled,
    /// It sends too much that moves no request on.
    Flood,
    /// Too many of its requests were refused, or broke the protocol.
    Errors,
    /// It asked for nothing.
    Idle,
    /// It is as old as connections get.
    Age,
}

/// How an exchange with the token endpoint ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExchangeResult {
    /// With a new pair.
    Pair,
    /// Nothing was sent.
    NotSent,
    /// Central wants us to wait.
    Throttled,
    /// The refresh token is refused.
    TokenRefused,
    /// The application is refused.
    ClientRefused,
    /// The grant was not read where it was put.
    GrantNotRead,
    /// It is not known how.
    Unclear,
}

/// How things stand with the account's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenState {
    /// The access token in use, if there is one.
    pub token: Option<TokenAges>,
    /// Whether a person must put a new refresh token in place.
    pub seed_needed: bool,
}

/// What there is to know of an access token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenAges {
    /// How long this process has had it.
    pub age: Duration,
    /// How long it is valid still.
    pub expires_in: Duration,
    /// The number of its pair.
    pub generation: u64,
}

/// What travels in batches and may be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dropped {
    Spans,
    Logs,
}

/// Why it was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DropCause {
    /// Too many waited already.
    QueueFull,
    /// The collector did not take it.
    ExportFailed,
}

/// An attribute of the resource may be called `2fa` or `__name__`. One label that Prometheus cannot read, or keeps for
/// itself, would cost the whole scrape. Renamed as OpenTelemetry's collector does.
fn make_readable(label: &mut LabelPair) {
    let name = label.name();
    if name.starts_with(|c: char| c.is_ascii_digit()) {
        label.set_name(format!("key_{name}"));
    } else if name.starts_with("__") {
        label.set_name(format!("key{name}"));
    }
}

impl Metrics {
    /// Measures nothing: for tests, and for when nobody would see it.
    pub fn disabled() -> Self {
        Self(None)
    }

    /// `registry`: what [`render`](Self::render) shows; it must belong to a reader of the meter's provider.
    pub(super) fn new(meter: Meter, registry: Option<prometheus::Registry>, status_code_name: StatusCodeName) -> Self {
        Self(Some(Arc::new(Instruments::new(meter, registry, status_code_name))))
    }

    /// Everything measured so far in the text format of Prometheus; none if it is not to be served.
    pub fn render(&self) -> Option<String> {
        let registry = self.0.as_ref()?.registry.as_ref()?;
        let mut families = registry.gather();
        let labels = families.iter_mut().filter(|family| family.name() == "target_info");
        let labels = labels.flat_map(MetricFamily::mut_metric).flat_map(Metric::mut_label);
        labels.for_each(make_readable);
        // What cannot be written as text cannot be served.
        TextEncoder::new().encode_to_string(&families).ok()
    }

    /// A request waited this long for its call to Central.
    pub fn queue_wait(&self, wait: Duration) {
        if let Some(instruments) = &self.0 {
            instruments.queue_wait.record(wait.as_secs_f64(), &[]);
        }
    }

    /// So many requests travelled together in one call.
    pub fn members_per_call(&self, members: usize) {
        if let Some(instruments) = &self.0 {
            instruments.call_members.record(members as u64, &[]);
        }
    }

    /// Central answered 429.
    pub fn throttled(&self, window: Window) {
        if let Some(instruments) = &self.0 {
            instruments.throttled.add(1, &[KeyValue::new(names::METRIC_WINDOW, window.as_str())]);
        }
    }

    /// A request was refused to protect the gateway or Central.
    pub fn shed(&self, reason: Shed) {
        if let Some(instruments) = &self.0 {
            instruments.shed.add(1, &[KeyValue::new(names::METRIC_REASON, reason.as_str())]);
        }
    }

    /// The gateway closed a connection.
    pub fn connection_closed(&self, reason: Closed) {
        if let Some(instruments) = &self.0 {
            instruments.connections_closed.add(1, &[KeyValue::new(names::METRIC_REASON, reason.as_str())]);
        }
    }

    /// The audit trail did not take a record.
    pub fn audit_failure(&self) {
        if let Some(instruments) = &self.0 {
            instruments.audit_failures.add(1, &[]);
        }
    }

    /// An exchange with the token endpoint ended.
    pub fn token_exchange(&self, result: ExchangeResult) {
        if let Some(instruments) = &self.0 {
            instruments.token_exchanges.add(1, &[KeyValue::new(names::METRIC_RESULT, result.as_str())]);
        }
    }

    /// Whom to ask for the quota. Once per process, as the other `observe_…`.
    pub fn observe_quota(&self, quota: impl Fn() -> QuotaReadings + Send + Sync + 'static) {
        if let Some(instruments) = &self.0 {
            instruments.observe_quota(quota);
        }
    }

    /// Whom to ask how many requests wait for a call to Central.
    pub fn observe_queue(&self, depth: impl Fn() -> usize + Send + Sync + 'static) {
        if let Some(instruments) = &self.0 {
            instruments.gauge(&names::QUEUE_DEPTH, move |gauge| gauge.observe(depth() as u64, &[]));
        }
    }

    /// Whom to ask for the breaker's state.
    pub fn observe_breaker(&self, state: impl Fn() -> BreakerPosition + Send + Sync + 'static) {
        if let Some(instruments) = &self.0 {
            instruments.gauge(&names::BREAKER_STATE, move |gauge| {
                let now = state();
                for state in BreakerPosition::ALL {
                    gauge.observe(u64::from(state == now), &[KeyValue::new(names::METRIC_STATE, state.as_str())]);
                }
            });
        }
    }

    /// Whom to ask for the account's tokens.
    pub fn observe_token(&self, state: impl Fn() -> TokenState + Send + Sync + 'static) {
        if let Some(instruments) = &self.0 {
            instruments.observe_token(state);
        }
    }

    /// An RPC ended. `method` is none for one that is not in the contract.
    pub(super) fn rpc(&self, method: Option<&'static str>, code: Code, reported: Option<RpcOutcome>, took: Duration) {
        let Some(instruments) = &self.0 else { return };
        let method = KeyValue::new(names::RPC_METHOD, method.unwrap_or(names::OTHER_METHOD));
        let (code, name) = (code_name(code), code);
        let mut labels = vec![KeyValue::new(names::RPC_SYSTEM_NAME, names::GRPC), method.clone()];
        labels.extend(names::status_code(instruments.status_code_name).map(|name| KeyValue::new(name, code)));
        if name != Code::Ok {
            labels.push(KeyValue::new(names::ERROR_TYPE, code));
        }
        instruments.rpc_duration.record(took.as_secs_f64(), &labels);

        let mut labels = vec![method];
        if let Some(RpcOutcome { outcome, reason }) = reported {
            labels.push(KeyValue::new(names::METRIC_OUTCOME, outcome));
            labels.extend(reason.map(|reason| KeyValue::new(names::METRIC_REASON, reason)));
        }
        instruments.requests.add(1, &labels);
    }

    /// One try of a call ended: with a status, or with a word for why there is none.
    pub(super) fn call(&self, call: &Measured, ended: Result<u16, &'static str>, took: Duration) {
        let Some(instruments) = &self.0 else { return };
        let mut labels = call.labels();
        match ended {
            Ok(status) => {
                labels.push(KeyValue::new(names::HTTP_RESPONSE_STATUS_CODE, i64::from(status)));
                labels.push(KeyValue::new(names::NETWORK_PROTOCOL_VERSION, names::HTTP_VERSION));
                if status >= 400 {
                    labels.push(KeyValue::new(names::ERROR_TYPE, status.to_string()));
                }
            }
            Err(error_type) => labels.push(KeyValue::new(names::ERROR_TYPE, error_type)),
        }
        instruments.call_duration.record(took.as_secs_f64(), &labels);
    }

    /// Spans or log records will not reach their collector.
    pub(super) fn dropped(&self, what: Dropped, cause: DropCause, count: usize) {
        if let Some(instruments) = &self.0 {
            instruments.telemetry_dropped.add(
                count as u64,
                &[
                    KeyValue::new(names::METRIC_SIGNAL, what.as_str()),
                    KeyValue::new(names::METRIC_CAUSE, cause.as_str()),
                ],
            );
        }
    }
}

impl Window {
    const ALL: [Self; 3] = [Self::Second, Self::Day, Self::Unknown];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Second => "second",
            Self::Day => "day",
            Self::Unknown => "unknown",
        }
    }
}

impl BreakerPosition {
    const ALL: [Self; 3] = [Self::Closed, Self::HalfOpen, Self::Open];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

impl Shed {
    const ALL: [Self; 3] = [Self::QueueFull, Self::BreakerOpen, Self::Draining];

    const fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::BreakerOpen => "breaker_open",
            Self::Draining => "draining",
        }
    }
}

impl Closed {
    const ALL: [Self; 11] = [
        Self::TooMany,
        Self::TooManyOfAddress,
        Self::Evicted,
        Self::Handshake,
        Self::Certificate,
        Self::Silent,
        Self::Stalled,
        Self::Flood,
        Self::Errors,
        Self::Idle,
        Self::Age,
    ];

    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TooMany => "too_many",
            Self::TooManyOfAddress => "too_many_of_address",
            Self::Evicted => "evicted",
            Self::Handshake => "handshake",
            Self::Certificate => "certificate",
            Self::Silent => "silent",
            Self::Stalled => "stalled",
            Self::Flood => "flood",
            Self::Errors => "errors",
            Self::Idle => "idle",
            Self::Age => "age",
        }
    }
}

impl ExchangeResult {
    const ALL: [Self; 7] = [
        Self::Pair,
        Self::NotSent,
        Self::Throttled,
        Self::TokenRefused,
        Self::ClientRefused,
        Self::GrantNotRead,
        Self::Unclear,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Pair => "pair",
            Self::NotSent => "not_sent",
            Self::Throttled => "throttled",
            Self::TokenRefused => "token_refused",
            Self::ClientRefused => "client_refused",
            Self::GrantNotRead => "grant_not_read",
            Self::Unclear => "unclear",
        }
    }
}

impl Dropped {
    const ALL: [Self; 2] = [Self::Spans, Self::Logs];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Spans => "traces",
            Self::Logs => "logs",
        }
    }
}

impl DropCause {
    const ALL: [Self; 2] = [Self::QueueFull, Self::ExportFailed];

    const fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::ExportFailed => "export_failed",
        }
    }
}
