//! Closed loops at a lifted pace: every caller waits for an answer before asking again, and Central answers at once.
//! What remains is what the gateway itself costs.
//!
//! The loops take turns, run by run, so that what else the machine does falls on all of them alike. [`crate::telemetry`]
//! has loops of its own, which take turns in the same way.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use license_gateway::proto::UnassignLicensesRequest;

use crate::{
    Plan, Scenario,
    callers::{self, Client},
    figures::{self, Spread},
    world::{Central, World},
};

/// Requests that wait for an answer before the next one is made.
#[derive(Debug)]
pub(crate) struct Loop {
    pub(crate) scenario: Scenario,
    pub(crate) title: &'static str,
    callers: usize,
    connections: usize,
    what: What,
    /// How many calls to Central may be on their way.
    max_in_flight: &'static str,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum What {
    /// A read that is answered from memory.
    Read,
    /// One customer, three services that nobody else asks for at the time.
    Alone,
    /// The same of callers who say that their trace is not sampled.
    Unsampled,
    /// One customer, the three services that all ask for.
    Together,
    /// 1,000 customers, three services that nobody else asks for.
    ManyIds,
}

/// Every request a call of its own, and enough of them to keep the gateway busy.
pub(crate) const ONE_BY_ONE: Loop = Loop {
    scenario: Scenario::OneByOne,
    title: "one by one, 64 callers",
    callers: 64,
    connections: 8,
    what: What::Alone,
    max_in_flight: "64",
};

pub(crate) const LOOPS: &[Loop] = &[
    Loop {
        scenario: Scenario::Read,
        title: "read from memory, 64 callers",
        callers: 64,
        connections: 8,
        what: What::Read,
        max_in_flight: "64",
    },
    Loop {
        scenario: Scenario::OneByOne,
        title: "one by one, 1 caller",
        callers: 1,
        connections: 1,
        what: What::Alone,
        max_in_flight: "64",
    },
    ONE_BY_ONE,
    Loop {
        scenario: Scenario::Shared,
        title: "shared calls, 64 callers, 4 in flight",
        callers: 64,
        connections: 8,
        what: What::Together,
        max_in_flight: "4",
    },
    Loop {
        scenario: Scenario::ManyIds,
        title: "1,000 customers a request, 8 callers",
        callers: 8,
        connections: 8,
        what: What::ManyIds,
        max_in_flight: "64",
    },
];

/// A loop with its processes and what was measured so far.
pub(crate) struct Running<'a> {
    closed: &'a Loop,
    world: World,
    clients: Vec<Client>,
    prepared: Arc<[UnassignLicensesRequest]>,
    pub(crate) runs: Vec<Run>,
    /// Requests in all, those of the warm-up included.
    pub(crate) requests: f64,
}

pub(crate) struct Run {
    requests: f64,
    per_second: f64,
    latencies: [f64; 3],
    cpu_seconds: f64,
    calls: f64,
}

pub(crate) async fn measure(gateway: &Path, plan: &Plan, loops: &[&Loop]) -> String {
    let mut all = Vec::new();
    for closed in loops {
        all.push(Running::start(gateway, closed, &[]).await);
    }
    take_turns(plan, &mut all).await;
    let rows: Vec<_> = all.iter().map(Running::row).collect();
    let head = [
        "Pace lifted, Central answers at once",
        "requests/s",
        "p50, ms",
        "p99, ms",
        "CPU s per 10,000 requests",
        "calls to Central per 1,000 requests",
        "memory, MiB (peak)",
    ];
    let title = format!("CPU: median (least–most) of {} runs of {:?}", plan.repetitions, plan.run);
    let mut text = figures::table(&title, &head, &rows);
    text.push_str(&ratio(&all));
    text
}

/// Warms all of them up, then measures one run of each in turn, round by round.
pub(crate) async fn take_turns(plan: &Plan, all: &mut [Running<'_>]) {
    for running in &mut *all {
        eprintln!("{}: warming up", running.closed.title);
        running.run(plan.warm_up).await;
        running.runs.clear();
    }
    for round in 1..=plan.repetitions {
        for running in &mut *all {
            eprintln!("run {round} of {}: {}", plan.repetitions, running.closed.title);
            running.run(plan.run).await;
        }
    }
}

/// What shared calls spare.
fn ratio(all: &[Running<'_>]) -> String {
    let find = |what: fn(&What) -> bool| all.iter().rfind(|running| what(&running.closed.what));
    let (Some(alone), Some(together)) =
        (find(|what| matches!(what, What::Alone)), find(|what| matches!(what, What::Together)))
    else {
        return String::new();
    };
    // Runs of the same round stand beside each other: what disturbed one will have disturbed the other.
    let ratios = alone.runs.iter().zip(&together.runs).map(|(alone, together)| together.cpu() / alone.cpu());
    let spread = Spread::of(ratios).shown();
    format!("\nShared calls cost {spread} × the CPU of one by one with 64 callers, round by round.\n")
}

impl Loop {
    /// The same with another title, of other callers perhaps.
    pub(crate) const fn named(self, title: &'static str, what: What) -> Self {
        Self { title, what, ..self }
    }
}

impl<'a> Running<'a> {
    /// With settings of the loop's own.
    pub(crate) async fn start(gateway: &Path, closed: &'a Loop, own: &[(&str, &str)]) -> Self {
        let lifted = [("quota.per_second", "100000"), ("central.max_in_flight", closed.max_in_flight)];
        let settings: Vec<_> = lifted.iter().chain(own).copied().collect();
        let world = World::start(gateway, Central::Unlimited, &settings).await;
        let clients = callers::clients(world.gateway(), closed.callers, closed.connections).await;
        // Always the same ids: the sandbox remembers every body that is new.
        let many = |caller| callers::request(callers::set_of_services(caller), callers::new_customers(1_000));
        let prepared = match closed.what {
            What::ManyIds => (0..closed.callers).map(many).collect(),
            What::Read | What::Alone | What::Unsampled | What::Together => Arc::default(),
        };
        Self { closed, world, clients, prepared, runs: Vec::new(), requests: 0.0 }
    }

    async fn run(&mut self, time: Duration) {
        self.world.sandbox().forget().await;
        let (what, prepared) = (self.closed.what, Arc::clone(&self.prepared));
        let call = move |caller: usize, client: Client| {
            let prepared = Arc::clone(&prepared);
            async move {
                let request = match what {
                    What::Read => return callers::list_services(client).await,
                    What::Alone => callers::request(callers::set_of_services(caller), callers::new_customers(1)),
                    What::Unsampled => {
                        let request = callers::request(callers::set_of_services(caller), callers::new_customers(1));
                        return callers::unassign(client, callers::unsampled(request)).await;
                    }
                    What::Together => callers::request(callers::set_of_services(0), callers::new_customers(1)),
                    What::ManyIds => prepared[caller].clone(),
                };
                callers::unassign(client, request).await
            }
        };
        let (began, cpu_before) = (Instant::now(), self.world.gateway().cpu_seconds());
        let latencies = callers::one_after_another(&self.clients, time, call).await;
        let (took, cpu_after) = (began.elapsed().as_secs_f64(), self.world.gateway().cpu_seconds());
        #[allow(clippy::cast_precision_loss)] // far below 2^52
        let (requests, calls) = (latencies.len() as f64, self.world.sandbox().counted().await.unassignments as f64);
        self.requests += requests;
        self.runs.push(Run {
            requests,
            per_second: requests / took,
            latencies: figures::latencies(latencies).expect("a run has answers"),
            cpu_seconds: cpu_after - cpu_before,
            calls,
        });
    }

    fn row(&self) -> Vec<String> {
        let spread = |value: fn(&Run) -> f64| Spread::of(self.runs.iter().map(value)).shown();
        vec![
            self.closed.title.to_owned(),
            spread(|run| run.per_second),
            spread(|run| run.latencies[0]),
            spread(|run| run.latencies[1]),
            spread(Run::cpu),
            spread(|run| run.calls / run.requests * 1_000.0),
            self.memory(),
        ]
    }

    pub(crate) fn memory(&self) -> String {
        self.world.gateway().memory().shown()
    }

    /// Hangs up and stops the gateway.
    pub(crate) fn stop(self) {
        drop(self.clients);
        self.world.stop();
    }
}

impl Run {
    /// CPU seconds per 10,000 requests.
    pub(crate) fn cpu(&self) -> f64 {
        self.cpu_seconds / self.requests * 10_000.0
    }
}
