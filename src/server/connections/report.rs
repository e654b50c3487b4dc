//! Tells of connections that were closed: each is counted, and the log has one line a minute, not one each.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};
use tracing::warn;

use crate::telemetry::metrics::{Closed, Metrics};

const EVERY: Duration = Duration::from_mins(1);

#[derive(Debug)]
pub(super) struct Report {
    port: &'static str,
    metrics: Metrics,
    untold: Mutex<BTreeMap<Closed, u64>>,
    there_are_some: Notify,
    complained_at: Mutex<Option<Instant>>,
}

impl Report {
    pub(super) fn new(port: &'static str, metrics: Metrics) -> Self {
        let (untold, complained_at) = (Mutex::default(), Mutex::default());
        Self { port, metrics, untold, there_are_some: Notify::new(), complained_at }
    }

    /// A connection was closed by us.
    pub(super) fn closed(&self, reason: Closed) {
        self.metrics.connection_closed(reason);
        // These happen to everybody.
        if !matches!(reason, Closed::Age | Closed::Idle) {
            *self.untold.lock().unwrap_or_else(PoisonError::into_inner).entry(reason).or_default() += 1;
            self.there_are_some.notify_one();
        }
    }

    /// Whether the log may hear of a failed accept.
    pub(super) fn may_complain(&self) -> bool {
        let mut at = self.complained_at.lock().unwrap_or_else(PoisonError::into_inner);
        let may = at.is_none_or(|at| at.elapsed() >= EVERY);
        if may {
            *at = Some(Instant::now());
        }
        may
    }

    /// Logs, for ever.
    pub(super) async fn tell(&self) {
        loop {
            self.there_are_some.notified().await;
            let untold = std::mem::take(&mut *self.untold.lock().unwrap_or_else(PoisonError::into_inner));
            let reasons: Vec<_> =
                untold.iter().map(|(reason, count)| format!("{}: {count}", reason.as_str())).collect();
            if !reasons.is_empty() {
                warn!(port = self.port, reasons = reasons.join(", "), "connections were closed to protect the gateway");
            }
            sleep(EVERY).await;
        }
    }
}
