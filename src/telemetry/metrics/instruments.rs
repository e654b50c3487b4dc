//! The instruments themselves, made from their entries in [`names`].

use std::sync::Arc;

use opentelemetry::{
    KeyValue,
    metrics::{AsyncInstrument, Counter, Histogram, Meter},
};

use super::{Closed, DropCause, Dropped, ExchangeResult, QuotaReadings, Shed, TokenAges, TokenState, Window};
use crate::{
    config::StatusCodeName,
    telemetry::names::{self, Metric, MetricKind},
};

/// Everything that is measured when it happens, and the meter that makes what is asked for.
#[derive(Debug)]
pub(super) struct Instruments {
    meter: Meter,
    pub registry: Option<prometheus::Registry>,
    pub status_code_name: StatusCodeName,
    pub rpc_duration: Histogram<f64>,
    pub call_duration: Histogram<f64>,
    pub requests: Counter<u64>,
    pub queue_wait: Histogram<f64>,
    pub call_members: Histogram<u64>,
    pub throttled: Counter<u64>,
    pub shed: Counter<u64>,
    pub connections_closed: Counter<u64>,
    pub audit_failures: Counter<u64>,
    pub token_exchanges: Counter<u64>,
    pub telemetry_dropped: Counter<u64>,
}

impl Instruments {
    pub(super) fn new(meter: Meter, registry: Option<prometheus::Registry>, status_code_name: StatusCodeName) -> Self {
        let instruments = Self {
            rpc_duration: seconds(&meter, &names::RPC_SERVER_CALL_DURATION),
            call_duration: seconds(&meter, &names::HTTP_CLIENT_REQUEST_DURATION),
            requests: counter(&meter, &names::REQUESTS),
            queue_wait: seconds(&meter, &names::QUEUE_WAIT),
            call_members: meter
                .u64_histogram(names::CALL_MEMBERS.name)
                .with_unit(names::CALL_MEMBERS.unit)
                .with_description(names::CALL_MEMBERS.meaning)
                .with_boundaries(names::CALL_MEMBERS.boundaries())
                .build(),
            throttled: counter(&meter, &names::THROTTLED),
            shed: counter(&meter, &names::SHED),
            connections_closed: counter(&meter, &names::CONNECTIONS_CLOSED),
            audit_failures: counter(&meter, &names::AUDIT_FAILURES),
            token_exchanges: counter(&meter, &names::TOKEN_EXCHANGES),
            telemetry_dropped: counter(&meter, &names::TELEMETRY_DROPPED),
            meter,
            registry,
            status_code_name,
        };
        instruments.begin_at_zero();
        instruments
    }

    /// A counter that appears with its first event has no increase yet: an alert would miss that event.
    fn begin_at_zero(&self) {
        for window in Window::ALL {
            self.throttled.add(0, &[KeyValue::new(names::METRIC_WINDOW, window.as_str())]);
        }
        for reason in Shed::ALL {
            self.shed.add(0, &[KeyValue::new(names::METRIC_REASON, reason.as_str())]);
        }
        for reason in Closed::ALL {
            self.connections_closed.add(0, &[KeyValue::new(names::METRIC_REASON, reason.as_str())]);
        }
        for result in ExchangeResult::ALL {
            self.token_exchanges.add(0, &[KeyValue::new(names::METRIC_RESULT, result.as_str())]);
        }
        for (what, cause) in Dropped::ALL.into_iter().flat_map(|what| DropCause::ALL.map(|cause| (what, cause))) {
            let signal = KeyValue::new(names::METRIC_SIGNAL, what.as_str());
            self.telemetry_dropped.add(0, &[signal, KeyValue::new(names::METRIC_CAUSE, cause.as_str())]);
        }
        self.audit_failures.add(0, &[]);
    }

    /// A gauge that `observe` is asked for whenever somebody collects. It lives as long as the meter's provider.
    pub(super) fn gauge(
        &self,
        metric: &'static Metric,
        observe: impl Fn(&dyn AsyncInstrument<u64>) + Send + Sync + 'static,
    ) {
        let gauge = self.meter.u64_observable_gauge(metric.name);
        gauge.with_unit(metric.unit).with_description(metric.meaning).with_callback(observe).build();
    }

    fn seconds_gauge(
        &self,
        metric: &'static Metric,
        observe: impl Fn(&dyn AsyncInstrument<f64>) + Send + Sync + 'static,
    ) {
        let gauge = self.meter.f64_observable_gauge(metric.name);
        gauge.with_unit(metric.unit).with_description(metric.meaning).with_callback(observe).build();
    }

    pub(super) fn observe_quota(&self, quota: impl Fn() -> QuotaReadings + Send + Sync + 'static) {
        let quota = Arc::new(quota);
        let remaining = Arc::clone(&quota);
        self.gauge(&names::QUOTA_REMAINING, move |gauge| {
            let quota = remaining();
            observe_windows(gauge, quota.second.remaining, quota.day.remaining);
        });
        self.gauge(&names::QUOTA_LIMIT, move |gauge| {
            let quota = quota();
            observe_windows(gauge, quota.second.limit, quota.day.limit);
        });
    }

    pub(super) fn observe_token(&self, state: impl Fn() -> TokenState + Send + Sync + 'static) {
        let state = Arc::new(state);
        let token = |part: fn(TokenAges) -> f64| {
            let state = Arc::clone(&state);
            move |gauge: &dyn AsyncInstrument<f64>| {
                if let Some(token) = state().token {
                    gauge.observe(part(token), &[]);
                }
            }
        };
        self.seconds_gauge(&names::TOKEN_AGE, token(|token| token.age.as_secs_f64()));
        self.seconds_gauge(&names::TOKEN_EXPIRES_IN, token(|token| token.expires_in.as_secs_f64()));
        let generation = Arc::clone(&state);
        self.gauge(&names::TOKEN_GENERATION, move |gauge| {
            if let Some(token) = generation().token {
                gauge.observe(token.generation, &[]);
            }
        });
        self.gauge(&names::TOKEN_SEED_NEEDED, move |gauge| gauge.observe(u64::from(state().seed_needed), &[]));
    }
}

fn observe_windows(gauge: &dyn AsyncInstrument<u64>, second: Option<u64>, day: Option<u64>) {
    for (window, value) in [(Window::Second, second), (Window::Day, day)] {
        if let Some(value) = value {
            gauge.observe(value, &[KeyValue::new(names::METRIC_WINDOW, window.as_str())]);
        }
    }
}

fn counter(meter: &Meter, metric: &'static Metric) -> Counter<u64> {
    meter.u64_counter(metric.name).with_unit(metric.unit).with_description(metric.meaning).build()
}

fn seconds(meter: &Meter, metric: &'static Metric) -> Histogram<f64> {
    meter
        .f64_histogram(metric.name)
        .with_unit(metric.unit)
        .with_description(metric.meaning)
        .with_boundaries(metric.boundaries())
        .build()
}

impl Metric {
    fn boundaries(&self) -> Vec<f64> {
        match self.kind {
            MetricKind::Histogram(boundaries) => boundaries.to_vec(),
            MetricKind::Counter | MetricKind::Gauge => Vec::new(),
        }
    }
}
