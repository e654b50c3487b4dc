//! Binds, assembles, serves until told to stop, and drains.

mod admin;
mod boundary;
mod connections;
mod descriptors;
mod follow;
mod health;
mod tls;

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use tokio::{
    net::TcpListener,
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tracing::{error, info, warn};

use self::{
    admin::{AdminListener, Insight},
    boundary::Boundary,
    connections::{Bounds, Connections, Protocol},
    follow::follow_policy,
    health::{HealthService, LICENSING, Statuses},
    tls::ServerTls,
};
use crate::{
    audit::{AuditTrail, OpenError},
    callers::{Callers, keys},
    central::{CentralClient, LONGEST_WATCH},
    config::{self, CallerRules, Config, PolicySource, WhichCaller},
    exchange::SetupError,
    operations::Operations,
    proto::{
        self,
        health::{health_check_response::ServingStatus, health_server::HealthServer},
        licensing_service_server::LicensingServiceServer,
    },
    quota::Quota,
    service::Licensing,
    telemetry::{Tracing, rpc},
    token::{Condition, CustodyError, RefresherHandle, Store, TokenCache},
};

/// The largest message that is read: 1,000 ids and 100 services of 128 characters fit.
const MAX_MESSAGE_BYTES: usize = 256 * 1024;
/// The same for reflection, which answers with what it was asked: the name of a file or a symbol.
const MAX_REFLECTION_BYTES: usize = 4 * 1024;
/// What a sync of the audit trail and the store of operations may take beside a call, and clocks that differ.
const LEASE_MARGIN: Duration = Duration::from_secs(20);

/// How long each of those that keep records may take to close, at most a tenth of `server.drain_timeout`.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);
/// How long the last answers may take to leave once they are made.
const FLUSH_GRACE: Duration = Duration::from_secs(1);

/// A gateway that listens but does not yet serve.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<Arc<ServerTls>>,
    callers: Arc<Callers>,
    admin: AdminListener,
    config: Config,
    tracing: Tracing,
    tokens: TokenCache,
    refresher: RefresherHandle,
    central: Arc<CentralClient>,
    trail: AuditTrail,
    operations: Operations,
}

/// Why a gateway cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be had.
    #[error("cannot listen on {setting} = {address}")]
    Bind {
        /// Which setting says so.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A listener has ended, and nobody has told it to.
    #[error("the listener of {setting} has ended by itself, which is a bug")]
    Listener {
        /// Which setting says where it listened.
        setting: &'static str,
    },
    /// The certificates cannot be used.
    #[error("TLS cannot be set up")]
    Tls(#[from] tls::Error),
    /// The token's custody cannot begin.
    #[error(transparent)]
    Token(#[from] CustodyError),
    /// The audit trail cannot be opened.
    #[error(transparent)]
    Audit(#[from] OpenError),
    /// The keys of callers' tokens cannot be used.
    #[error("callers' tokens cannot be verified")]
    Keys(#[from] keys::Error),
    /// The HTTP client cannot be made.
    #[error(transparent)]
    Http(#[from] SetupError),
}

impl Server {
    /// Takes the addresses, opens the audit trail and the token store, and starts looking for a valid token. Returns
    /// before there is one: health says when the gateway is ready.
    pub async fn bind(config: Config, tracing: Tracing) -> Result<Self, Error> {
        let tls = config.tls.clone().map(ServerTls::new).transpose()?.map(Arc::new);
        let address = config.server.listen;
        let failed = |source: io::Error| Error::Bind { setting: "server.listen", address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        // The first line of the log: other programs read the chosen port from it.
        info!(listen = %address, central = %config.central.base_url, tls = protection(&config), "listening");
        if config.policy.callers.is_empty() {
            warn!("nobody may do anything: the configuration has no [[callers]]");
        }
        let is_of_token = |caller: &CallerRules| matches!(caller.identity, WhichCaller::TokenSubject(_));
        if config.jwt.is_none() && config.policy.callers.iter().any(is_of_token) {
            warn!("a [[callers]] entry has a token_subject, and tokens are ignored: there is no section jwt");
        }
        if config.jwt.is_some() && config.tls.is_none() && !address.ip().to_canonical().is_loopback() {
            warn!("callers' tokens come over plaintext: without a mesh, a reader of the network can use them");
        }
        let admin = AdminListener::bind(config.admin.listen).await?;
        // Before anything is asked of Central: what a crash cut short has its outcome now.
        let trail = AuditTrail::open(&config.audit, tracing.metrics().clone()).await?;
        let quota = Quota::new(&config.quota);
        let store = Store::open(&config.token_store).await?;
        // From the claim of a call to its end, and the wait between two calls of a request.
        let lease = config.central.timeout + config.central.max_wait + LEASE_MARGIN;
        let operations = Operations::open(&config.audit, store.operations(), lease).await?;
        let callers = Arc::new(Callers::new(&config, address.ip(), store.usage())?);
        if callers.admits_anonymous() && !address.ip().to_canonical().is_loopback() {
            warn!("callers without an identity are admitted from the network: server.allow_anonymous_callers");
        }
        let (tokens, refresher) = TokenCache::start(&config, store, quota.clone(), tracing.clone())?;
        let (records, known) = (trail.clone(), operations.clone());
        let client = CentralClient::new(&config.central, tokens.clone(), quota, records, known, tracing.clone());
        let central = match client {
            Ok(client) => Arc::new(client),
            Err(error) => {
                refresher.stop().await; // an exchange may be on its way already
                return Err(error.into());
            }
        };
        Ok(Self {
            listener,
            address,
            tls,
            callers,
            admin,
            config,
            tracing,
            tokens,
            refresher,
            central,
            trail,
            operations,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends the custody of the tokens. [`serve`](Self::serve) does that itself; whoever cuts it short must.
    pub fn custody(&self) -> RefresherHandle {
        self.refresher.clone()
    }

    /// Where `/metrics`, `/livez` and `/readyz` are.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin.address()
    }

    /// Serves until `stop` is done, then drains: takes no new requests, ends health streams, lets what runs finish, and
    /// returns after `server.drain_timeout` at the latest. Only an exchange of tokens on its way has more time. A listener
    /// that ends by itself is a failure, and drains too.
    pub async fn serve(self, stop: impl Future<Output = ()>) -> Result<(), Error> {
        let (settings, metrics) = (&self.config.server, self.tracing.metrics().clone());
        let work = TaskTracker::new();
        let boundary = Boundary::new(settings, Arc::clone(&self.callers), work.clone(), metrics.clone());
        let (statuses, statuses_seen) = watch::channel(Some(statuses(Condition::Starting)));
        let showing = tokio::spawn(show_statuses(self.tokens.condition(), statuses.clone()));
        let (seen, condition) = (statuses_seen.clone(), self.tokens.condition());
        let insight = Insight { statuses: seen, condition, metrics: metrics.clone() };
        let mut admin = self.admin.serve(insight, settings.receive_timeout);
        drop(self.tokens);

        let followed = follow_files(self.config.policy_source, self.tls.clone(), &self.callers);
        let licensing = Licensing::new(
            Arc::clone(&self.central),
            Arc::clone(&self.callers),
            self.config.central.allow_open_scopes,
            self.trail.clone(),
            self.operations.clone(),
            work.clone(),
        );
        let routes = routes(licensing, HealthService::new(statuses_seen), &boundary, self.tracing);
        let connections = Connections::new("grpc", Protocol::Http2, bounds(settings), self.tls, metrics);
        let mut accepting = connections.serve(self.listener, routes);

        let served = tokio::select! {
            () = stop => Ok(()),
            _ = &mut accepting => Err(Error::Listener { setting: "server.listen" }),
            _ = &mut admin => Err(Error::Listener { setting: "admin.listen" }),
        };
        if let Err(error) = &served {
            error!(error = error as &dyn std::error::Error, "the gateway ends");
        }
        let limit = settings.drain_timeout;
        info!(limit = ?limit, "draining: no new requests, what runs is finished");
        boundary.drain();
        showing.abort();
        statuses.send_replace(None);
        connections.close();
        let close_limit = CLOSE_LIMIT.min(limit / 10);
        finish(&work, &connections, limit.saturating_sub(close_limit)).await;
        // What still waits is not sent any more, however long the rest takes.
        self.central.stop_sending();
        // Outside of the bound, and after it: work that is stuck must not cost an exchange on its way its end.
        self.refresher.stop().await;
        close(&self.trail, &self.operations, &self.callers, close_limit).await;
        // To the end: what waits when the process is told to stop is still sent only if the policy allows it.
        followed.iter().for_each(JoinHandle::abort);
        served
    }
}

/// Keeps up with the files that may change while the gateway runs.
fn follow_files(
    policy: Option<PolicySource>,
    tls: Option<Arc<ServerTls>>,
    callers: &Arc<Callers>,
) -> Vec<JoinHandle<()>> {
    let tasks = [
        policy.map(|source| tokio::spawn(follow_policy(source, Arc::clone(callers)))),
        tls.map(|tls| tokio::spawn(tls.follow())),
        callers.keys().map(|keys| tokio::spawn(keys.follow())),
    ];
    tasks.into_iter().flatten().collect()
}

/// Lets what runs finish, within `limit`.
async fn finish(work: &TaskTracker, connections: &Connections, limit: Duration) {
    work.close();
    let drained = timeout(limit, async {
        // Connections close by themselves when their last answer is out. One that never spoke does not.
        let answered = async {
            work.wait().await;
            sleep(FLUSH_GRACE).await;
        };
        tokio::select! {
            () = connections.closed() => {}
            () = answered => connections.abort(),
        }
        work.wait().await;
    });
    if drained.await.is_ok() {
        info!("drained");
    } else {
        warn!(calls = work.len(), "not everything was finished within server.drain_timeout");
    }
}

/// Closes what keeps records. Each has its own time: one that is stuck costs the others none of theirs.
async fn close(trail: &AuditTrail, operations: &Operations, callers: &Callers, limit: Duration) {
    let (trail, operations, callers) = tokio::join!(
        timeout(limit, trail.close()),
        timeout(limit, operations.close()),
        timeout(limit, callers.close()),
    );
    let ends = [("audit trail", trail), ("operations", operations), ("hourly quotas", callers)];
    for (what, _) in ends.iter().filter(|(_, end)| end.is_err()) {
        warn!(what, "not closed in time; what it has not written yet may be lost");
    }
}

/// What protects the listener, for the log.
fn protection(config: &Config) -> &'static str {
    match &config.tls {
        None => "none",
        Some(tls) if tls.client_ca_file.is_none() => "server",
        Some(_) => "mutual",
    }
}

/// What peers may hold, by the settings.
fn bounds(settings: &config::Server) -> Bounds {
    Bounds {
        connections: descriptors::connections(settings.max_connections),
        connections_per_address: settings.max_connections_per_address,
        streams_per_connection: settings.max_streams_per_connection,
        receive_timeout: settings.receive_timeout,
        idle_timeout: settings.idle_timeout,
        age: Some(settings.max_connection_age).filter(|age| !age.is_zero()),
        // What runs when a connection takes no new requests has ended by then, a watch too.
        grace: settings.max_deadline.max(LONGEST_WATCH),
    }
}

fn routes(licensing: Licensing, health: HealthService, boundary: &Boundary, tracing: Tracing) -> Router {
    let licensing = LicensingServiceServer::new(licensing).max_decoding_message_size(MAX_MESSAGE_BYTES);
    // The second set has the details of failures: with them, tools for people show why a call failed.
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    let own_descriptors = "the descriptors were made from .proto files";
    let v1 = reflection().build_v1().expect(own_descriptors);
    let v1alpha = reflection().build_v1alpha().expect(own_descriptors);
    Routes::new(licensing)
        .add_service(HealthServer::new(health))
        .add_service(v1.max_decoding_message_size(MAX_REFLECTION_BYTES))
        .add_service(v1alpha.max_decoding_message_size(MAX_REFLECTION_BYTES))
        .prepare()
        .into_axum_router()
        .layer(boundary::catch_panics())
        .layer(axum::middleware::from_fn_with_state(boundary.clone(), boundary::guard))
        // Outermost: the span covers everything, and names the operation for all that is inside.
        .layer(axum::middleware::from_fn_with_state(tracing, rpc::trace_rpc))
}

/// Keeps the health entries true as the token's condition changes.
async fn show_statuses(mut condition: watch::Receiver<Condition>, shown: watch::Sender<Option<Statuses>>) {
    loop {
        let now = *condition.borrow_and_update();
        shown.send_replace(Some(statuses(now)));
        info!(condition = ?now, "token condition");
        if condition.changed().await.is_err() {
            return;
        }
    }
}

/// The whole server is up as soon as it answers; the service can be used when there is a token; the credentials are not
/// well when a person must put a new refresh token in place.
fn statuses(condition: Condition) -> Statuses {
    let usable = match condition {
        Condition::Valid => ServingStatus::Serving,
        Condition::Starting | Condition::Failing | Condition::NeedsSeed => ServingStatus::NotServing,
    };
    let credentials = match condition {
        Condition::NeedsSeed => ServingStatus::NotServing,
        Condition::Starting | Condition::Valid | Condition::Failing => ServingStatus::Serving,
    };
    Statuses::from([("", ServingStatus::Serving), ("central.credentials", credentials), (LICENSING, usable)])
}
