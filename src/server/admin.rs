//! The listener for operators: `/metrics` for Prometheus, `/livez` and `/readyz` for Kubernetes and the like. Plain HTTP, and nothing that needs protection. Called by [`super::Server`].

use std::{io, net::SocketAddr, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tracing::info;

use super::{
    Error,
    connections::{Bounds, Connections, Protocol},
    health::{LICENSING, Statuses},
};
use crate::{proto::health::health_check_response::ServingStatus, telemetry::metrics::Metrics, token::Condition};

/// A listener that does not yet serve.
#[derive(Debug)]
pub(super) struct AdminListener {
    listener: TcpListener,
    address: SocketAddr,
}

/// What the answers are made of.
#[derive(Debug, Clone)]
pub(super) struct Insight {
    /// As the health entries; none: the server is stopping.
    pub statuses: watch::Receiver<Option<Statuses>>,
    /// Why there is no token.
    pub condition: watch::Receiver<Condition>,
    pub metrics: Metrics,
}

impl AdminListener {
    pub(super) async fn bind(address: SocketAddr) -> Result<Self, Error> {
        let failed = |source: io::Error| Error::Bind { setting: "admin.listen", address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        info!(listen = %address, "admin listening");
        Ok(Self { listener, address })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves from now on, until the process ends: while the server drains, and while the last spans are sent, somebody
    /// may still want to know.
    pub(super) fn serve(self, insight: Insight, receive_timeout: Duration) -> JoinHandle<()> {
        let metrics_of_connections = insight.metrics.clone();
        let router = Router::new()
            .route("/metrics", get(metrics))
            .route("/livez", get(|| async { "alive\n" }))
            .route("/readyz", get(readyz))
            .with_state(insight);
        let bounds = bounds(receive_timeout);
        Connections::new("admin", Protocol::Http1, bounds, None, metrics_of_connections).serve(self.listener, router)
    }
}

/// A scraper, the kubelet and an operator or two: a stranger who takes more than these holds nothing that callers need.
fn bounds(receive_timeout: Duration) -> Bounds {
    Bounds {
        connections: 64,
        connections_per_address: 32,
        streams_per_connection: 1,
        receive_timeout,
        // Longer than the usual time between two scrapes.
        idle_timeout: Duration::from_secs(75),
        age: Some(Duration::from_mins(30)),
        grace: Duration::from_secs(10),
    }
}

/// The text format of Prometheus.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

async fn metrics(State(insight): State<Insight>) -> Response {
    let Some(text) = insight.metrics.render() else {
        let why = "metrics are switched off by OTEL_SDK_DISABLED or OTEL_METRICS_EXPORTER\n";
        return (StatusCode::NOT_FOUND, why).into_response();
    };
    ([(CONTENT_TYPE, TEXT_FORMAT)], text).into_response()
}

async fn readyz(State(insight): State<Insight>) -> Response {
    let ready = readiness(insight.statuses.borrow().as_ref(), *insight.condition.borrow());
    match ready {
        Ok(()) => "ready\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")).into_response(),
    }
}

/// Ready is what the health entry of the service says; the condition only explains it.
fn readiness(statuses: Option<&Statuses>, condition: Condition) -> Result<(), &'static str> {
    let Some(statuses) = statuses else { return Err("the gateway is stopping") };
    if statuses.get(LICENSING) == Some(&ServingStatus::Serving) {
        return Ok(());
    }
    Err(match condition {
        Condition::Starting | Condition::Valid => "looking for an access token",
        Condition::Failing => "there is no valid access token; the gateway keeps trying, its log says what fails",
        Condition::NeedsSeed => {
            "there is no valid access token, and a person must put a new refresh token into \
             credentials.refresh_token_file"
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_what_the_health_entry_says_and_the_rest_says_why_not() {
        let statuses = |status| Statuses::from([("", ServingStatus::Serving), (LICENSING, status)]);
        let (serving, not_serving) = (statuses(ServingStatus::Serving), statuses(ServingStatus::NotServing));
        assert_eq!(readiness(Some(&serving), Condition::Valid), Ok(()));
        // The entry is a moment behind the condition, and the entry counts.
        assert_eq!(readiness(Some(&serving), Condition::Failing), Ok(()));
        assert!(readiness(Some(&not_serving), Condition::Valid).is_err());

        let why = |statuses, condition| readiness(statuses, condition).expect_err("it is not ready");
        assert!(why(None, Condition::Valid).contains("stopping"));
        assert!(why(Some(&not_serving), Condition::Starting).contains("looking"));
        assert!(why(Some(&not_serving), Condition::Failing).contains("keeps trying"));
        assert!(why(Some(&not_serving), Condition::NeedsSeed).contains("credentials.refresh_token_file"));
    }
}
