//! Plays a plan: callers, gateway and Central in one runtime of one thread, on tokio's paused clock.
//!
//! The sockets are real and on the loopback interface: what one side has sent, the other can read at once. Tokio moves its
//! paused clock only after a look at the sockets that woke nobody, and not while a blocking task runs, so that no time
//! passes while something is on its way. Every life of the gateway has a runtime of its own: dropping it stops all
//! tasks at once, as `kill -9` does. Central's memory goes from one to the next.

mod gateway;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use central_sandbox::{Call, Customer, Device, Ending, GrantPlacement, Sandbox, Settings};
use jiff::Timestamp;
use license_gateway::proto::{
    AllCustomers, CustomerList, PreviewUnassignLicensesRequest, UnassignLicensesRequest,
    licensing_service_client::LicensingServiceClient, preview_unassign_licenses_request::Scope as Previewed,
    unassign_licenses_request::Scope as Wanted,
};
use tempfile::TempDir;
use tokio::{
    runtime::{Builder, Runtime},
    task::{JoinSet, yield_now},
    time::{Instant, sleep, sleep_until, timeout},
};
use tonic::transport::Channel;

use self::gateway::Gateway;
use crate::{
    answers::{about, answer, told},
    plan::{Bound, End, Event, Life, Ms, PROBE, Plan, Request, SERVICES, Scope, customer},
    record::{Answer, Asked, Happened, Record, Seen, What, read_trail, trail_bytes},
};

/// How long the last life may take before whoever was not answered never will be.
const LAST_LIFE: Duration = Duration::from_mins(15);
/// How often the last request is made.
const PROBES: usize = 8;
/// Between two processes.
const PAUSE: Ms = 50;

/// What is noted while the plan is played.
#[derive(Debug, Default)]
struct Notes {
    life: usize,
    /// When this life began, in the story's time.
    offset: Ms,
    /// And on tokio's clock.
    began: Option<Instant>,
    asked: Vec<Asked>,
    happened: Vec<Happened>,
    /// By the number of the call: its life, when it came, when it ended, how long the trail was.
    calls: BTreeMap<u64, (usize, Ms, Option<Ms>, u64)>,
}

/// Shared by all who note something.
#[derive(Debug, Clone, Default)]
struct Notebook(Arc<Mutex<Notes>>);

impl Notebook {
    fn open(&self) -> MutexGuard<'_, Notes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Ms {
        self.open().now()
    }

    fn happened(&self, what: What) {
        let mut notes = self.open();
        let (at, life) = (notes.now(), notes.life);
        notes.happened.push(Happened { at, life, what });
    }

    fn call(&self, call: &Call, trail: &Path) {
        let mut notes = self.open();
        let (now, life) = (notes.now(), notes.life);
        if call.ending == Ending::Open {
            let bytes = trail_bytes(trail);
            notes.calls.insert(call.sequence, (life, now, None, bytes));
        } else if let Some((_, _, ended, _)) = notes.calls.get_mut(&call.sequence) {
            *ended = Some(now);
        }
    }
}

impl Notes {
    fn now(&self) -> Ms {
        let elapsed = self.began.map_or(Duration::ZERO, |began| began.elapsed());
        self.offset + u64::try_from(elapsed.as_millis()).unwrap_or(Ms::MAX)
    }
}

/// Plays a plan from its first life to its last.
pub fn play(plan: Plan) -> Record {
    #[cfg(feature = "failpoints")]
    license_gateway::chance::seed(plan.seed);
    let directory = directory();
    let notes = Notebook::default();
    let mut sandbox = None;
    let begins = Timestamp::from_second(1_798_761_600 + i64::try_from(plan.central.second_of_day).unwrap_or_default())
        .expect("a day in 2027");
    let mut clock_ahead = Duration::ZERO;
    for (number, life) in plan.lives.iter().enumerate() {
        let runtime = runtime();
        notes.open().life = number;
        let played = runtime.block_on(async {
            notes.open().began = Some(Instant::now());
            let at = begins.checked_add(Duration::from_millis(notes.now()) + clock_ahead).expect("not for ever");
            let central = match sandbox.take() {
                None => {
                    let central = Sandbox::start(settings(&plan)).await.expect("the sandbox starts");
                    central.start_clock(at);
                    central.reset(); // its tokens were issued by another clock
                    central
                }
                Some(before) => {
                    let central = Sandbox::listen_again(before).await.expect("the sandbox starts again");
                    central.start_clock(at);
                    central
                }
            };
            central.watch_calls({
                let (notes, trail) = (notes.clone(), directory.path().join("audit"));
                move |call| notes.call(call, &trail)
            });
            let stage = Stage { plan: &plan, notes: &notes, sandbox: central, state: &directory };
            clock_ahead += stage.play(life).await;
            let mut notes = notes.open();
            notes.offset = notes.now() + PAUSE; // outside, tokio's clock is the machine's
            notes.began = None;
            drop(notes);
            stage.sandbox
        });
        sandbox = Some(played);
        drop(runtime);
    }
    let sandbox = sandbox.expect("there was a life");
    let notes = std::mem::take(&mut *notes.open());
    let calls = sandbox.calls().into_iter().filter_map(|call| {
        let (life, at, ended_at, trail_bytes) = *notes.calls.get(&call.sequence)?;
        Some(Seen { life, at, ended_at, trail_bytes, call })
    });
    let trail = read_trail(&directory.path().join("audit"));
    Record { asked: notes.asked, calls: calls.collect(), trail, happened: notes.happened, plan }
}

/// One thread for everything, one more for files: the order of things is the same every time.
fn runtime() -> Runtime {
    Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .max_blocking_threads(1)
        .thread_keep_alive(Duration::from_hours(1))
        .build()
        .expect("a runtime")
}

/// In memory where there is such a place: a sync costs nothing there.
fn directory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary directory")
}

fn settings(plan: &Plan) -> Settings {
    let central = &plan.central;
    let holds_all = |serial: String| Device {
        serial,
        model: "AP-515".to_owned(),
        device_type: "iap".to_owned(),
        part_number: String::new(),
        services: SERVICES.iter().map(ToString::to_string).collect(),
    };
    Settings {
        customers: (0..central.customers)
            .map(|index| Customer {
                id: customer(index),
                name: format!("Customer {index}"),
                devices: vec![holds_all(format!("S{index}"))],
                auto_license: SERVICES.iter().map(ToString::to_string).collect(),
            })
            .collect(),
        services: SERVICES.iter().map(ToString::to_string).collect(),
        per_second: Some(central.per_second),
        per_day: Some(central.per_day),
        // 6 bytes an id, and a frame whose longest form fits.
        max_body_bytes: central.ids_per_call.map_or(128 * 1024, |ids| 66 + 6 * ids as u64),
        longest_page: central.longest_page,
        customers_move: central.customers_move,
        access_token_life_s: central.access_token_life_s,
        grant_placement: GrantPlacement::Any,
        // What was taken away is there again at once, so that the next call shows whom it affects.
        auto_license_after_ms: Some(1),
        random_seed: Some(plan.seed),
        keep_calls: usize::MAX,
        ..Settings::default()
    }
}

/// Where one life of the gateway is played.
struct Stage<'a> {
    plan: &'a Plan,
    notes: &'a Notebook,
    sandbox: Sandbox,
    state: &'a TempDir,
}

impl Stage<'_> {
    /// Plays a life; says how far Central's clock jumped meanwhile.
    async fn play(&self, life: &Life) -> Duration {
        self.sandbox.clear_faults();
        life.faults.iter().for_each(|fault| self.sandbox.fault(fault.clone()));
        let mut policy = Policy::default();
        let mut gateway = match Gateway::start(self.plan, &self.sandbox, self.state.path(), &policy).await {
            Ok(gateway) => gateway,
            Err(error) => {
                self.notes.happened(What::Failed(error));
                return Duration::ZERO;
            }
        };
        self.notes.happened(What::Started);
        let began = Instant::now();
        let mut callers = JoinSet::new();
        let mut channels = Vec::new();
        for _ in &self.plan.callers {
            channels.push(gateway.channel().await);
        }
        for request in &life.requests {
            let caller = CallerSide {
                request: request.clone(),
                name: self.plan.callers[request.caller].name.clone(),
                channel: channels[request.caller].clone(),
                notes: self.notes.clone(),
            };
            callers.spawn(async move {
                sleep_until(began + Duration::from_millis(caller.request.at)).await;
                caller.ask().await;
            });
        }
        drop(channels);
        let mut ahead = Duration::ZERO;
        let events = async {
            for (at, event) in &life.events {
                sleep_until(began + Duration::from_millis(*at)).await;
                self.notes.happened(What::Event(event.clone()));
                ahead += self.act(event, &mut policy);
            }
        };
        let answered = async {
            while let Some(done) = callers.join_next().await {
                done.expect("no caller panics");
            }
        };
        match life.end {
            End::Crash(at) => {
                let ends = sleep_until(began + Duration::from_millis(at));
                tokio::select! {
                    biased;
                    () = ends => {}
                    ((), ()) = async { tokio::join!(events, std::future::pending()) } => {}
                }
                drop(answered);
                self.notes.happened(What::Crashed);
                self.end_of_life();
            }
            End::Drain(at) => {
                let ends = sleep_until(began + Duration::from_millis(at));
                let meanwhile = async {
                    ends.await;
                    self.notes.happened(What::Draining);
                    gateway.stop().await;
                    self.notes.happened(What::Drained);
                };
                tokio::select! {
                    biased;
                    () = meanwhile => {}
                    ((), (), ()) = async { tokio::join!(events, answered, std::future::pending()) } => {}
                }
                for _ in 0..100 {
                    yield_now().await; // what was sent is read; no time passes
                }
                self.end_of_life();
            }
            End::Rest => {
                let in_time = timeout(LAST_LIFE, async { tokio::join!(events, answered) }).await.is_ok();
                if !in_time {
                    self.end_of_life();
                }
                // Work goes on after the last answer.
                sleep(Duration::from_secs(8)).await;
                let answer = self.probe(&gateway).await;
                self.notes.happened(What::Probed(answer));
                self.notes.happened(What::Draining);
                gateway.stop().await;
                self.notes.happened(What::Drained);
            }
        }
        ahead
    }

    /// When all is well again, one more request: nothing that the gateway lives on was lost on the way.
    async fn probe(&self, gateway: &Gateway) -> Answer {
        self.sandbox.clear_faults();
        self.notes.happened(What::Event(Event::ReadOnly(false)));
        gateway::write(self.plan, &self.sandbox, self.state.path(), &Policy::default());
        sleep(Duration::from_secs(1)).await;
        let named = self.sandbox.owners()[1].id.clone();
        let mut client = LicensingServiceClient::new(gateway.channel().await);
        let mut last = Answer::Never;
        // A breaker closes within a minute.
        for _ in 0..PROBES {
            let message = UnassignLicensesRequest {
                scope: Some(Wanted::IncludeCustomers(CustomerList { customer_ids: vec![named.clone()] })),
                services: vec![SERVICES[0].to_owned()],
                reason: PROBE.to_owned(),
                ..UnassignLicensesRequest::default()
            };
            last = answer(client.unassign_licenses(gateway::by(PROBE, message, Some(20_000))).await);
            if last == Answer::Applied {
                break;
            }
            sleep(Duration::from_secs(10)).await;
        }
        last
    }

    /// Whoever waits now will not be answered.
    fn end_of_life(&self) {
        let mut notes = self.notes.open();
        let now = notes.now();
        let is_last = notes.life + 1 == self.plan.lives.len();
        for asked in notes.asked.iter_mut().filter(|asked| asked.answered_at == Ms::MAX) {
            asked.answer = if is_last { Answer::Never } else { Answer::Cut };
            asked.answered_at = now;
        }
    }

    /// Does what an event says; how far Central's clock jumped.
    fn act(&self, event: &Event, policy: &mut Policy) -> Duration {
        match event {
            Event::ReadOnly(on) => policy.read_only = *on,
            Event::Excluded(caller, true) => drop(policy.excluded.insert(*caller)),
            Event::Excluded(caller, false) => drop(policy.excluded.remove(caller)),
            Event::AccessTokenRevoked => self.sandbox.revoke_access_token(),
            Event::ChainRevoked => self.sandbox.revoke_chain(),
            Event::CustomerJoins(id) => self.sandbox.change_owners(|owners| {
                let mut joins = owners[1].clone();
                joins.id.clone_from(id);
                joins.devices.iter_mut().for_each(|device| device.serial = format!("S{id}"));
                owners.push(joins);
            }),
            Event::CustomerLeaves(index) => self.sandbox.change_owners(|owners| {
                let leaves = customer(*index);
                if owners.len() > 2 {
                    owners.retain(|owner| owner.id != leaves);
                }
            }),
            Event::DayLeft(left) => {
                self.sandbox.set_day_used(self.plan.central.per_day.saturating_sub(*left));
            }
            Event::ClockJumps(by) => {
                self.sandbox.advance_clock(*by);
                return *by;
            }
        }
        gateway::write(self.plan, &self.sandbox, self.state.path(), policy);
        Duration::ZERO
    }
}

/// The policy as it changes.
#[derive(Debug, Default)]
struct Policy {
    read_only: bool,
    excluded: BTreeSet<usize>,
}

/// A caller with one request.
struct CallerSide {
    request: Request,
    name: String,
    channel: Channel,
    notes: Notebook,
}

impl CallerSide {
    async fn ask(self) {
        let Self { request, name, channel, notes } = self;
        let mut client = LicensingServiceClient::new(channel);
        let services: Vec<String> = request.services.iter().map(|index| SERVICES[*index].to_owned()).collect();
        let list = |ids: &[String]| CustomerList { customer_ids: ids.to_vec() };
        let (mut etag, mut shown) = (String::new(), None);
        if request.bound != Bound::No {
            let scope = match &request.scope {
                Scope::Include(ids) => Previewed::IncludeCustomers(list(ids)),
                Scope::Exclude(ids) => Previewed::ExcludeCustomers(list(ids)),
                Scope::All => Previewed::AllCustomers(AllCustomers {}),
            };
            let message =
                PreviewUnassignLicensesRequest { scope: Some(scope), services: services.clone(), max_device_calls: 0 };
            let preview = client.preview_unassign_licenses(gateway::by(&name, message, request.deadline)).await;
            let result = preview.map(tonic::Response::into_inner).map_err(|status| told(&status));
            let result = result.map(|preview| {
                etag = preview.etag;
                preview.customers.into_iter().map(|customer| customer.id).collect::<BTreeSet<_>>()
            });
            shown = result.clone().ok();
            notes.happened(What::Previewed { request: request.name.clone(), result });
            match request.bound {
                Bound::Preview(pause) if shown.is_some() => sleep(Duration::from_millis(pause)).await,
                _ => return,
            }
        }
        let scope = match &request.scope {
            Scope::Include(ids) => Wanted::IncludeCustomers(list(ids)),
            Scope::Exclude(ids) => Wanted::ExcludeCustomers(list(ids)),
            Scope::All => Wanted::AllCustomers(AllCustomers {}),
        };
        let message = UnassignLicensesRequest {
            scope: Some(scope),
            services,
            reason: request.name.clone(),
            etag,
            request_id: request.id.map(|id| id.to_string()).unwrap_or_default(),
            ..UnassignLicensesRequest::default()
        };
        let place = {
            let mut notes = notes.open();
            let (at, life) = (notes.now(), notes.life);
            let answer = Answer::Never;
            let (request, about) = (request.clone(), None);
            notes.asked.push(Asked { request, life, at, shown, answer, about, answered_at: Ms::MAX });
            notes.asked.len() - 1
        };
        let rpc = client.unassign_licenses(gateway::by(&name, message, request.deadline));
        let result = match request.departs_after {
            None => Some(rpc.await),
            Some(after) => timeout(Duration::from_millis(after), rpc).await.ok(),
        };
        let about = result.as_ref().and_then(about);
        let answer = result.map_or(Answer::Departed, answer);
        let mut notes = notes.open();
        let now = notes.now();
        let asked = &mut notes.asked[place];
        (asked.answer, asked.about, asked.answered_at) = (answer, about, now);
    }
}
