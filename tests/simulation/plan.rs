//! What a seed draws: the account, the callers, what they ask for and when, and everything that goes wrong.
//!
//! All of it is drawn before anything runs, so that the same seed has the same plan whatever the gateway does.

mod faults;
mod ids;

use std::time::Duration;

use central_sandbox::Fault;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use uuid::Uuid;

/// Milliseconds of simulated time.
pub type Ms = u64;

/// Who asks when all is over.
pub const PROBE: &str = "zora";

/// The services of the account.
pub const SERVICES: [&str; 4] = ["advanced_ap", "foundation_ap", "pa", "ucc"];

/// A whole seed.
#[derive(Debug)]
pub struct Plan {
    pub seed: u64,
    pub central: Central,
    pub gateway: Gateway,
    pub callers: Vec<Caller>,
    /// One process of the gateway after the other, on the same state.
    pub lives: Vec<Life>,
}

/// How Central is, as long as the story lasts.
#[derive(Debug)]
pub struct Central {
    pub customers: usize,
    /// How many ids fit into a call before Central says 413.
    pub ids_per_call: Option<usize>,
    pub longest_page: Option<usize>,
    pub customers_move: bool,
    pub per_second: u32,
    pub per_day: u32,
    pub access_token_life_s: u64,
    /// When it is there as the story begins: seconds after midnight.
    pub second_of_day: u64,
}

/// How the gateway is set.
#[derive(Debug)]
pub struct Gateway {
    pub timeout: Ms,
    pub max_wait: Ms,
    pub max_in_flight: usize,
    pub per_second: u32,
    pub drain_timeout: Ms,
}

/// Somebody with an identity.
#[derive(Debug, Clone)]
pub struct Caller {
    pub name: String,
    pub may_open: bool,
    /// None: any. Else the services by index.
    pub services: Option<Vec<usize>>,
    pub per_hour: Option<u32>,
}

/// From the start of a gateway to its end.
#[derive(Debug)]
pub struct Life {
    pub requests: Vec<Request>,
    pub events: Vec<(Ms, Event)>,
    pub faults: Vec<Fault>,
    pub end: End,
}

/// How a gateway ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Everything stops at this moment, as with `kill -9`.
    Crash(Ms),
    /// SIGTERM at this moment.
    Drain(Ms),
    /// SIGTERM when every caller has their answer.
    Rest,
}

/// What somebody asks for.
#[derive(Debug, Clone)]
pub struct Request {
    /// Also its `reason`, by which the audit trail names it.
    pub name: String,
    pub caller: usize,
    pub at: Ms,
    pub scope: Scope,
    pub services: Vec<usize>,
    pub bound: Bound,
    pub deadline: Option<Ms>,
    /// The caller drops the RPC so long after sending it.
    pub departs_after: Option<Ms>,
    /// Other requests may have the same one: repeats of it, and whoever uses it for something else.
    pub id: Option<Uuid>,
}

/// Whom it is about: names of customers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    Include(Vec<String>),
    Exclude(Vec<String>),
    All,
}

/// Whether it is bound to a preview.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    No,
    /// To one that is made so long before.
    Preview(Ms),
    /// Only the preview is asked for.
    PreviewAlone,
}

/// What happens meanwhile.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    ReadOnly(bool),
    /// This caller is no longer in the policy, or is again.
    Excluded(usize, bool),
    AccessTokenRevoked,
    /// Another refreshes with the same application: the pair is dead.
    ChainRevoked,
    CustomerJoins(String),
    CustomerLeaves(usize),
    /// So many calls of the day are left.
    DayLeft(u32),
    /// Central's clock jumps ahead.
    ClockJumps(Duration),
}

/// The name of a customer.
pub fn customer(index: usize) -> String {
    format!("c{index:02}")
}

impl Plan {
    /// Draws everything.
    pub fn draw(seed: u64) -> Self {
        let mut chance = Chance(StdRng::seed_from_u64(seed));
        let central = chance.central();
        let gateway = chance.gateway();
        let callers = chance.callers();
        let count = *chance.of(&[1, 1, 1, 2, 2, 3]);
        let mut lives = Vec::new();
        let mut named = 0;
        for life in 0..count {
            lives.push(chance.life(&central, &gateway, &callers, &mut named, life + 1 == count));
        }
        // Every other seed, so that the others stay what they were.
        if !seed.is_multiple_of(2) {
            chance.ids(&mut lives, callers.len());
        }
        Self { seed, central, gateway, callers, lives }
    }
}

/// By time, and never two in the same millisecond: which of two connections is read first is the kernel's to say.
fn in_order(requests: &mut [Request]) {
    requests.sort_by_key(|request| request.at);
    let mut earliest = 0;
    for request in requests {
        request.at = request.at.max(earliest);
        earliest = request.at + 1;
    }
}

/// The one stream of chance.
struct Chance(StdRng);

impl Chance {
    fn of<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        choices.choose(&mut self.0).expect("there are choices")
    }

    fn once_in(&mut self, times: u32) -> bool {
        self.0.random_range(0..times) == 0
    }

    fn from(&mut self, range: std::ops::Range<u64>) -> u64 {
        self.0.random_range(range)
    }

    fn below(&mut self, end: usize) -> usize {
        self.0.random_range(0..end)
    }

    fn central(&mut self) -> Central {
        Central {
            customers: *self.of(&[3, 8, 14, 24]),
            ids_per_call: *self.of(&[None, None, Some(1), Some(2), Some(3), Some(5)]),
            longest_page: *self.of(&[None, None, None, Some(2), Some(5)]),
            customers_move: self.once_in(4),
            per_second: 7,
            per_day: *self.of(&[5_000, 5_000, 5_000, 120, 70]),
            access_token_life_s: *self.of(&[7_200, 7_200, 7_200, 20, 5]),
            second_of_day: *self.of(&[40_000, 40_000, 86_395]),
        }
    }

    fn gateway(&mut self) -> Gateway {
        Gateway {
            timeout: *self.of(&[1_000, 2_000, 5_000]),
            max_wait: *self.of(&[2_000, 5_000, 10_000]),
            max_in_flight: *self.of(&[1, 2, 4, 64]),
            per_second: *self.of(&[6, 6, 6, 2]),
            drain_timeout: *self.of(&[1_000, 3_000, 10_000]),
        }
    }

    fn callers(&mut self) -> Vec<Caller> {
        let count = 2 + self.below(3);
        (0..count)
            .map(|index| Caller {
                name: ["anna", "bert", "cleo", "dora"][index].to_owned(),
                may_open: !self.once_in(3),
                services: self.once_in(5).then(|| vec![0, 1]),
                per_hour: self.once_in(4).then(|| *self.of(&[3, 6, 12])),
            })
            .collect()
    }

    fn life(
        &mut self,
        central: &Central,
        gateway: &Gateway,
        callers: &[Caller],
        named: &mut usize,
        is_last: bool,
    ) -> Life {
        let mut requests = Vec::new();
        // Bursts: trouble is where requests meet.
        for _ in 0..=self.below(3) {
            let begins = self.from(0..4_000);
            let favourite = self.services();
            for _ in 0..2 + self.below(8) {
                *named += 1;
                let at = begins + *self.of(&[0, 0, 0, 1, 5, 40, 170, 400]);
                requests.push(self.request(format!("r{named}"), at, central, callers, &favourite));
            }
        }
        in_order(&mut requests);
        let mut events = Vec::new();
        for _ in 0..self.below(4) {
            events.push((self.from(0..5_000), self.event(callers.len(), central)));
        }
        events.sort_by_key(|(at, _)| *at);
        let faults = self.faults(central, gateway, &requests);
        let end = match self.below(3) {
            _ if is_last => End::Rest,
            0 => End::Drain(self.from(100..5_000)),
            1 => End::Crash(self.from(100..5_000)),
            // Where something is under way.
            _ => End::Crash(requests[self.below(requests.len())].at + self.from(0..300)),
        };
        Life { requests, events, faults, end }
    }

    fn services(&mut self) -> Vec<usize> {
        match self.below(3) {
            0 => vec![self.below(SERVICES.len())],
            1 => vec![0],
            _ => vec![0, 1],
        }
    }

    fn request(&mut self, name: String, at: Ms, central: &Central, callers: &[Caller], favourite: &[usize]) -> Request {
        let caller = self.below(callers.len());
        let (scope, is_open) = match self.below(10) {
            0 => (Scope::All, true),
            1 => (Scope::Exclude(self.customers(central, 3)), true),
            2 | 3 => (Scope::Include(self.customers(central, 12)), false),
            _ => (Scope::Include(self.customers(central, 4)), false),
        };
        let bound = match self.below(8) {
            0 => Bound::PreviewAlone,
            1 if !is_open => Bound::Preview(self.from(0..400)),
            1 => Bound::No,
            _ if is_open => Bound::Preview(*self.of(&[0, 10, 300, 1_200])),
            _ => Bound::No,
        };
        let deadline = *self.of(&DEADLINES);
        let departs_after = self.once_in(7).then(|| self.from(0..1_500));
        let services = if self.once_in(4) { self.services() } else { favourite.to_vec() };
        Request { name, caller, at, scope, services, bound, deadline, departs_after, id: None }
    }

    /// Some customers, now and then one that Central does not know.
    fn customers(&mut self, central: &Central, most: usize) -> Vec<String> {
        let count = 1 + self.below(most.min(central.customers));
        let mut chosen: Vec<String> =
            rand::seq::index::sample(&mut self.0, central.customers, count).into_iter().map(customer).collect();
        if self.once_in(12) {
            chosen.push(format!("x{}", self.below(3)));
        }
        chosen
    }

    fn event(&mut self, callers: usize, central: &Central) -> Event {
        match self.below(12) {
            0..=2 => Event::ReadOnly(true),
            3 => Event::ReadOnly(false),
            4 | 5 => Event::Excluded(self.below(callers), !self.once_in(4)),
            6 => Event::AccessTokenRevoked,
            7 => Event::CustomerJoins(format!("n{:02}", self.below(100))),
            8 => Event::CustomerLeaves(self.below(central.customers)),
            9 => Event::DayLeft(*self.of(&[0, 3, 30])),
            10 => Event::ClockJumps(Duration::from_millis(*self.of(&[300, 1_500, 30_000, 8_000_000]))),
            _ => Event::ChainRevoked,
        }
    }
}

/// Deadlines around the moments that matter: permits are 167 ms apart, Central's late answers come at the same lengths.
pub const DEADLINES: [Option<Ms>; 10] =
    [None, None, Some(60_000), Some(60_000), Some(20_000), Some(5_000), Some(2_000), Some(1_000), Some(400), Some(200)];
