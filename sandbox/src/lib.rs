//! A stand-in for HPE Aruba Networking (Classic) Central, on a real local port over real HTTP: for tests, demos and
//! other teams. [`Sandbox::start`] serves it; the handle's methods and the control surface under `/__sandbox/`
//! do the same things (`docs/sandbox.md`).
//!
//! It is Kong's order of checks, its rotating tokens and its quota, the licensing service's scopes, the listings that
//! a preview needs, and faults on demand. It is not a model of Central's licences beyond "a device holds services":
//! no keys, no tiers, no expiry, no assigning. It has no timers of its own: whatever depends on time is worked out
//! when it is looked at, on a clock that tests may move or stop.
//!
//! Nothing here was tried against a live Central. Marks in the comments:
//!
//! - **C**, confirmed by HPE's pages or by clients in use: paths and verbs; the body's fields and the scope matrix
//!   but for the points below; 7 calls a second and 5000 a UTC day, with their headers; token life 2 h and 15 days,
//!   refresh tokens good for one use; the login throttle; the shapes of listings as far as their fields are named.
//! - **K**, read in the source of Kong 0.14.1, which Central was seen to announce: 401 → 413/417 → 403 → 429 →
//!   service; the token endpoint's refusals; fixed windows on UTC boundaries; 401 and 429 not counted; a new pair is
//!   inserted, then the old one deleted; no `Retry-After`.
//! - **A**, assumed, so each is a setting: whom the unscoped call hits, `[]`, both lists at once, unknown ids and
//!   services, the 200's body, background completion, whether auto-licensing gives licences back, whether the token
//!   endpoint reads forms. Assumed without a setting: a failed login answers 200 with `status: false`; a refusal of
//!   the licensing service speaks dialect d (400) or c (404); a known path with another method has no route.
//!
//! A panic of the stand-in is counted, and [`Sandbox::stop`] or dropping the last handle panics for it.

use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

pub use self::{
    calls::{Call, Counters, Ending, Grant, Placement},
    command::Command,
    control::Credentials,
    dialects::{Answer, Dialect, RateHeaders},
    faults::{Fault, Operation, Reply, Stage, TokenBody, Wait},
    settings::{
        BothLists, EmptyList, GrantPlacement, InventoryPage, RefreshRace, Role, Settings, SuccessBody, TlsPem,
        UnknownCustomer, UnknownService, Unscoped,
    },
    state::{Applied, Customer, Device},
};
use self::{
    control::Revoked,
    world::{Core, Watcher, World},
};

mod calls;
mod clock;
mod command;
mod connection;
mod control;
mod dialects;
mod exchange;
mod faults;
mod grants;
mod kong;
mod limits;
mod listings;
mod routes;
mod seed;
mod settings;
mod spelling;
mod state;
mod tokens;
mod world;

/// How long [`Sandbox::until`] and its kin wait before they give the test up. Long: machines under test are slow.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running stand-in. Clones are handles on the same one; it stops when the last is dropped.
#[derive(Clone)]
pub struct Sandbox {
    server: Arc<Server>,
}

/// Stops the listener when the last handle goes.
struct Server {
    core: Arc<Core>,
    address: SocketAddr,
    tls: bool,
}

impl Sandbox {
    /// Listens as the settings say and serves until [`stop`](Self::stop), or until the last handle is dropped.
    pub async fn start(settings: Settings) -> io::Result<Self> {
        let tls = settings.tls.as_ref().map(tls_acceptor).transpose()?;
        let listener = TcpListener::bind(settings.listen).await?;
        let server =
            Server { address: listener.local_addr()?, tls: tls.is_some(), core: Arc::new(Core::new(settings)) };
        server.core.tasks.spawn(connection::accept(server.core.clone(), listener, tls));
        Ok(Self { server: Arc::new(server) })
    }

    /// Listens again, with the same account, tokens, quota and record: in another runtime than before, say. What was
    /// under way is lost. Other handles are on an empty stand-in from then on.
    pub async fn listen_again(self) -> io::Result<Self> {
        let mut world = self.core().take();
        world.record.dropped_in_flight();
        let tls = world.settings.tls.as_ref().map(tls_acceptor).transpose()?;
        let listener = TcpListener::bind(world.settings.listen).await?;
        let server = Server { address: listener.local_addr()?, tls: tls.is_some(), core: Arc::new(Core::of(world)) };
        server.core.tasks.spawn(connection::accept(server.core.clone(), listener, tls));
        Ok(Self { server: Arc::new(server) })
    }

    /// Calls this when a call has been received, and again when it has ended.
    pub fn watch_calls(&self, watch: impl Fn(&Call) + Send + 'static) {
        self.core().with(|world| world.watcher = Watcher(Some(Box::new(watch))));
    }

    /// Stops listening, drops every connection and waits until all work has ended.
    ///
    /// # Panics
    ///
    /// If the stand-in itself panicked while it served.
    pub async fn stop(self) {
        let core = self.core();
        core.stopping.cancel();
        core.tasks.close();
        core.tasks.wait().await;
        self.server.complain();
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address
    }

    /// Scheme, host and port, without a slash at the end. With TLS the host is `localhost`.
    pub fn base_url(&self) -> String {
        let address = self.server.address;
        if self.server.tls { format!("https://localhost:{}", address.port()) } else { format!("http://{address}") }
    }

    /// What a gateway in front of it needs: client id and secret, the refresh token that is good now, …
    pub fn credentials(&self) -> Credentials {
        self.core().with(control::credentials)
    }

    /// The settings as they are now.
    pub fn settings(&self) -> Settings {
        self.core().with(|world| world.settings.clone())
    }

    /// Changes settings while it runs. `listen` and `tls` have no effect; what seeds the account has it at the next
    /// [`reset`](Self::reset).
    pub fn configure(&self, change: impl FnOnce(&mut Settings)) {
        self.core().with(|world| change(&mut world.settings));
    }

    /// Account, tokens, quota, faults and record as at the start; settings and clock stay.
    pub fn reset(&self) {
        self.core().with(World::reset);
    }

    /// Puts a fault at the end of the queue.
    ///
    /// # Panics
    ///
    /// If the fault makes no sense, in the words of the control surface.
    pub fn fault(&self, fault: Fault) {
        if let Err((field, allowed)) = fault.check() {
            panic!("{field}: {allowed}");
        }
        self.core().with(|world| world.faults.push(fault));
    }

    /// Puts a script in the queue: what each of the next calls of this operation meets, one after the other.
    ///
    /// # Panics
    ///
    /// As [`fault`](Self::fault).
    pub fn script(&self, operation: Operation, faults: impl IntoIterator<Item = Fault>) {
        for fault in faults {
            self.fault(fault.on(operation));
        }
    }

    /// The faults that have not been used up.
    pub fn faults(&self) -> Vec<Fault> {
        self.core().with(|world| world.faults.list())
    }

    /// No more faults.
    pub fn clear_faults(&self) {
        self.core().with(|world| world.faults.clear());
    }

    /// The record, oldest first.
    pub fn calls(&self) -> Vec<Call> {
        self.core().with(|world| world.record.calls().iter().cloned().collect())
    }

    /// The record of one operation, oldest first.
    pub fn calls_of(&self, operation: Operation) -> Vec<Call> {
        let mut calls = self.calls();
        calls.retain(|call| call.operation == operation);
        calls
    }

    /// The unassignments, oldest first.
    pub fn unassign_calls(&self) -> Vec<Call> {
        self.calls_of(Operation::Unassign)
    }

    /// The calls of the token endpoint, oldest first.
    pub fn token_exchanges(&self) -> Vec<Call> {
        self.calls_of(Operation::Token)
    }

    /// Forgets the calls and starts the counters anew.
    pub fn clear_calls(&self) {
        self.core().with(|world| world.record.clear());
    }

    /// The counters.
    pub fn counters(&self) -> Counters {
        self.core().with(|world| world.record.counters().clone())
    }

    /// The MSP, then its customers, with what their devices hold now.
    pub fn owners(&self) -> Vec<Customer> {
        self.core().with(|world| {
            world.now(); // background work that is due is done first
            world.account.owners.clone()
        })
    }

    /// Changes who is a customer and what devices hold, as somebody else might meanwhile. The MSP stays the first.
    pub fn change_owners(&self, change: impl FnOnce(&mut Vec<Customer>)) {
        self.core().with(|world| {
            world.now();
            change(&mut world.account.owners);
        });
    }

    /// The services that the devices of a customer (or the MSP) hold now: with serials, one entry each.
    pub fn licences_of(&self, customer_id: &str) -> Vec<(String, String)> {
        let owners = self.owners().into_iter().filter(|owner| owner.id == customer_id);
        owners
            .flat_map(|owner| owner.devices)
            .flat_map(|device| device.services.into_iter().map(move |service| (device.serial.clone(), service)))
            .collect()
    }

    /// Every licence that the recorded calls took away, in order.
    pub fn applied(&self) -> Vec<Applied> {
        self.core().with(|world| control::applied(world))
    }

    /// The customers who lost something, each once, in the order of their first loss.
    pub fn applied_customers(&self) -> Vec<String> {
        let mut customers: Vec<String> = Vec::new();
        for applied in self.applied() {
            if !customers.contains(&applied.customer_id) {
                customers.push(applied.customer_id);
            }
        }
        customers
    }

    /// How many unassignments that reached the licensing service name this customer. A blind retry shows here.
    pub fn deliveries_naming(&self, customer_id: &str) -> usize {
        let names = |call: &Call| {
            let ids = call.body.as_ref().and_then(|body| body.get("include_customers")?.as_array());
            ids.is_some_and(|ids| ids.iter().any(|id| id == customer_id))
        };
        self.unassign_calls().iter().filter(|call| call.delivery.is_some() && names(call)).count()
    }

    /// Every access token dies; refresh tokens live on.
    pub fn revoke_access_token(&self) {
        self.core().with(|world| control::revoke(world, Revoked::Access));
    }

    /// Every token dies: the chain is lost.
    pub fn revoke_chain(&self) {
        self.core().with(|world| control::revoke(world, Revoked::Chain));
    }

    /// The stand-in's time.
    pub fn now(&self) -> Timestamp {
        self.core().with(World::now)
    }

    /// Moves the stand-in's clock forward: token lives, windows of calls and background work follow.
    pub fn advance_clock(&self, by: Duration) {
        self.core().with(|world| world.clock.advance(by));
    }

    /// Stops the stand-in's clock at this moment.
    pub fn freeze_clock(&self, at: Timestamp) {
        self.core().with(|world| world.clock.freeze(at));
    }

    /// Lets the stand-in's clock run, this far ahead of the machine's.
    pub fn set_clock_offset(&self, offset: Duration) {
        self.core().with(|world| world.clock.run(offset));
    }

    /// Lets the stand-in's clock run from this moment, whatever the machine's says.
    pub fn start_clock(&self, at: Timestamp) {
        self.core().with(|world| world.clock.start(at));
    }

    /// Sets how many calls of the UTC day are spent.
    pub fn set_day_used(&self, calls: u32) {
        self.core().with(|world| {
            let now = world.now();
            world.limits.set_day_used(now, calls);
        });
    }

    /// Lets those calls go on that wait at this gate now ([`Fault::hold`]); says how many they are.
    pub fn release(&self, gate: &str) -> usize {
        self.core().with(|world| world.release(gate))
    }

    /// Waits until so many calls wait at this gate.
    ///
    /// # Panics
    ///
    /// As [`until`](Self::until).
    pub async fn wait_for_held(&self, gate: &str, calls: usize) {
        let held = |world: &mut World| world.gates.get(gate).map_or(0, |gate| gate.waiting) >= calls;
        self.patiently(&format!("{calls} calls held at {gate}"), held).await;
    }

    /// Waits until so many calls have been received (not: answered) since the start or the last reset of the record.
    ///
    /// # Panics
    ///
    /// As [`until`](Self::until).
    pub async fn wait_for_calls(&self, calls: u64) {
        self.patiently(&format!("{calls} calls"), |world| world.record.counters().calls >= calls).await;
    }

    /// Waits until so many calls of this operation have been received.
    ///
    /// # Panics
    ///
    /// As [`until`](Self::until).
    pub async fn wait_for_operation(&self, operation: Operation, calls: u64) {
        let received = |world: &mut World| {
            world.record.counters().by_operation.get(&operation).copied().unwrap_or_default() >= calls
        };
        self.patiently(&format!("{calls} calls of {operation:?}"), received).await;
    }

    /// Waits until no call is being handled.
    ///
    /// # Panics
    ///
    /// As [`until`](Self::until).
    pub async fn wait_until_idle(&self) {
        self.patiently("nothing in flight", |world| world.record.counters().in_flight == 0).await;
    }

    /// Waits, without sleeping, until the counters and the record satisfy a test.
    ///
    /// # Panics
    ///
    /// After 30 seconds.
    pub async fn until(&self, what: &str, mut holds: impl FnMut(&Counters, &[Call]) -> bool) {
        self.patiently(what, |world| {
            let calls: Vec<Call> = world.record.calls().iter().cloned().collect();
            holds(world.record.counters(), &calls)
        })
        .await;
    }

    async fn patiently(&self, what: &str, holds: impl FnMut(&mut World) -> bool) {
        let in_time = tokio::time::timeout(PATIENCE, self.core().until(holds)).await.is_ok();
        assert!(in_time, "waited {PATIENCE:?} in vain for: {what}; {:?}", self.counters());
    }

    fn core(&self) -> &Core {
        &self.server.core
    }
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandbox").field("address", &self.server.address).finish_non_exhaustive()
    }
}

impl Server {
    /// Passes a panic of the stand-in on to whoever uses it.
    fn complain(&self) {
        let panics = self.core.with(|world| world.record.take_panics());
        assert!(panics == 0 || std::thread::panicking(), "the sandbox panicked {panics} times while it served");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.core.stopping.cancel();
        self.complain();
    }
}

fn tls_acceptor(pem: &TlsPem) -> io::Result<TlsAcceptor> {
    let invalid = |error: &dyn fmt::Display| io::Error::new(io::ErrorKind::InvalidInput, format!("tls: {error}"));
    let chain = CertificateDer::pem_slice_iter(pem.certificate.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| invalid(&error))?;
    let key = PrivateKeyDer::from_pem_slice(pem.key.as_bytes()).map_err(|error| invalid(&error))?;
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| invalid(&error))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
