//! Ten times as many requests as Central's limits let through. They come at their rate, whether or not those before them
//! were answered.

use std::{collections::BTreeMap, path::Path, time::Duration};

use license_gateway::proto::health::{HealthCheckRequest, health_client::HealthClient};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval},
};
use tonic::{Request, Status};
use tonic_types::StatusExt as _;

use crate::{
    Plan,
    callers::{self, Client},
    figures::{self, number},
    world::{Central, Counted, Gateway, Memory, World},
};

/// Calls a second that the gateway allows itself by default.
const CALLS_PER_SECOND: f64 = 6.0;
const CONNECTIONS: usize = 20;
/// How much more there is than fits.
const TIMES: f64 = 10.0;

/// One probe in this time: with those of a newcomer and of one who was in the flood taken together, fewer than there
/// are calls.
const PROBE_EVERY: Duration = Duration::from_millis(200);

struct Flood {
    title: &'static str,
    customers: usize,
    /// How many requests one call carries.
    per_call: f64,
    /// How long the callers wait.
    deadline: Option<Duration>,
}

const FLOODS: [Flood; 2] = [
    Flood {
        title: "100 customers each, all for the same services, callers wait 2 s",
        customers: 100,
        per_call: 10.0,
        deadline: Some(Duration::from_secs(2)),
    },
    Flood {
        title: "1 customer each, no two for the same services, callers wait for ever",
        customers: 1,
        per_call: 1.0,
        deadline: None,
    },
];

/// An answer of the flood.
struct Answer {
    at: Instant,
    took: Duration,
    /// Why it failed.
    refused: Option<String>,
}

/// Who looks whether things are normal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    /// Somebody who was not in the flood.
    Newcomer,
    /// On a connection that was.
    Flooder,
}

struct Probe {
    who: Who,
    sent: Instant,
    took: Duration,
    is_applied: bool,
}

/// What was seen of one flood.
struct Seen {
    answers: Vec<Answer>,
    began: Instant,
    ended: Instant,
    /// How much later than planned a request left, at worst: the machine's fault, not the gateway's.
    late: Duration,
    calm: Vec<Probe>,
    after: Vec<Probe>,
    aside: Vec<Duration>,
    memory: [f64; 3],
    cpu_seconds: f64,
    counted: Counted,
}

pub(crate) async fn measure(gateway: &Path, plan: &Plan) -> String {
    let mut columns = Vec::new();
    for flood in &FLOODS {
        eprintln!("overload, {}: about {:?}", flood.title, plan.before + plan.flood + plan.after);
        columns.push(flood.run(gateway, plan).await.column(flood));
    }
    let rows: Vec<_> = MEASURES
        .iter()
        .enumerate()
        .map(|(index, measure)| {
            let values = columns.iter().map(|column| column[index].clone());
            std::iter::once((*measure).to_owned()).chain(values).collect()
        })
        .collect();
    let head: Vec<_> = std::iter::once("").chain(FLOODS.iter().map(|flood| flood.title)).collect();
    let title = format!(
        "Overload: 10 × capacity for {:?}, Central's true limits and 50 ms for each of its answers",
        plan.flood
    );
    figures::table(&title, &head, &rows)
}

const MEASURES: [&str; 13] = [
    "capacity, requests/s",
    "offered, requests/s",
    "goodput, % of capacity",
    "applied: p50, p99, slowest, ms",
    "refused at once",
    "refused at once: p50, p99, slowest, ms",
    "other failures",
    "health checks and reads meanwhile: p50, p99, slowest, ms",
    "CPU s per 10,000 requests offered",
    "memory before, peak, after, MiB",
    "after the flood, the slowest answer to a newcomer, to one of the flood, ms",
    "normal again for a newcomer, for one of the flood, after s",
    "calls to Central, 429s; the latest that a request left, ms",
];

impl Flood {
    fn capacity(&self) -> f64 {
        CALLS_PER_SECOND * self.per_call
    }

    async fn run(&self, gateway: &Path, plan: &Plan) -> Seen {
        let world = World::start(gateway, Central::TrueLimits, &[]).await;
        let gateway = world.gateway();
        let clients = callers::clients(gateway, CONNECTIONS, CONNECTIONS).await;
        let newcomer = Client::new(gateway.channel().await);
        let calm = probe(plan.before, &newcomer, &clients[0]).await;

        world.sandbox().forget().await;
        gateway.forget_peak();
        let (memory_before, cpu_before) = (gateway.memory().now, gateway.cpu_seconds());
        let aside = look_aside(gateway, plan.flood).await;
        let began = Instant::now();
        let (answers, late) = self.pour(&clients, plan.flood).await;
        let ended = Instant::now();
        let cpu_seconds = gateway.cpu_seconds() - cpu_before;
        let after = probe(plan.after, &newcomer, &clients[0]).await;
        let Memory { now, peak } = gateway.memory();
        Seen {
            answers: answers.join_all().await,
            began,
            ended,
            late,
            calm,
            after,
            aside: aside.await.expect("nothing panicked"),
            memory: [memory_before, peak, now],
            cpu_seconds,
            counted: world.sandbox().counted().await,
        }
    }

    /// Sends at the planned rate, whatever comes back.
    async fn pour(&self, clients: &[Client], time: Duration) -> (JoinSet<Answer>, Duration) {
        let mut answers = JoinSet::new();
        let mut ticks = interval(Duration::from_secs_f64(1.0 / (self.capacity() * TIMES)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let (end, mut late) = (Instant::now() + time, Duration::ZERO);
        for number in 0.. {
            let planned = ticks.tick().await;
            if planned >= end {
                break;
            }
            late = late.max(planned.elapsed());
            let services = callers::set_of_services(if self.per_call > 1.0 { 0 } else { number });
            let mut request = Request::new(callers::request(services, callers::new_customers(self.customers)));
            if let Some(deadline) = self.deadline {
                request.set_timeout(deadline);
            }
            let mut client = clients[number % clients.len()].clone();
            answers.spawn(async move {
                let sent = Instant::now();
                let answer = client.unassign_licenses(request).await;
                let at = Instant::now();
                Answer { at, took: at - sent, refused: answer.err().map(|status| reason(&status)) }
            });
        }
        (answers, late)
    }
}

impl Seen {
    fn column(self, flood: &Flood) -> Vec<String> {
        let seconds = (self.ended - self.began).as_secs_f64();
        #[allow(clippy::cast_precision_loss)] // far below 2^52
        let count = |count: usize| count as f64;
        let offered = count(self.answers.len());
        let in_time = self.answers.iter().filter(|answer| answer.refused.is_none() && answer.at <= self.ended).count();
        let applied = self.answers.iter().filter(|answer| answer.refused.is_none()).map(|answer| answer.took).collect();
        let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
        for reason in self.answers.iter().filter_map(|answer| answer.refused.as_deref()) {
            *reasons.entry(reason).or_default() += 1;
        }
        let at_once = reasons.remove(AT_ONCE).unwrap_or_default();
        let shed = self.answers.iter().filter(|answer| answer.refused.as_deref() == Some(AT_ONCE));
        let shed = shed.map(|answer| answer.took).collect();
        let others: Vec<_> = reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        let [before, peak, after] = self.memory.map(number);
        vec![
            number(flood.capacity()),
            number(offered / seconds),
            number(count(in_time) / (flood.capacity() * seconds) * 100.0),
            three(applied),
            number(count(at_once)),
            three(shed),
            if others.is_empty() { "none".to_owned() } else { others.join(", ") },
            three(self.aside.clone()),
            number(self.cpu_seconds / offered * 10_000.0),
            format!("{before}, {peak}, {after}"),
            format!("{}, {}", self.slowest(Who::Newcomer), self.slowest(Who::Flooder)),
            format!("{}, {}", self.normal_again(Who::Newcomer), self.normal_again(Who::Flooder)),
            format!(
                "{}, {}; {}",
                self.counted.unassignments,
                self.counted.over_limit,
                number(figures::milliseconds(self.late))
            ),
        ]
    }

    fn slowest(&self, who: Who) -> String {
        let times = self.after.iter().filter(|probe| probe.who == who).map(|probe| probe.took);
        number(figures::milliseconds(times.max().unwrap_or_default()))
    }

    /// When the last one was answered who was not served as well as before: that is, in twice the time that the slowest
    /// took then.
    fn normal_again(&self, who: Who) -> String {
        let usual = self.calm.iter().map(|probe| probe.took).max().unwrap_or_default() * 2;
        let is_normal = |probe: &&Probe| probe.is_applied && probe.took <= usual;
        let mut probes = self.after.iter().filter(|probe| probe.who == who);
        if probes.clone().next_back().is_none_or(|last| !is_normal(&last)) {
            return "later than was looked at".to_owned();
        }
        let last = probes.rfind(|probe| !is_normal(probe));
        last.map_or("0".to_owned(), |probe| number((probe.sent + probe.took - self.ended).as_secs_f64()))
    }
}

const AT_ONCE: &str = "GATEWAY_OVERLOADED";

fn reason(status: &Status) -> String {
    status.get_details_error_info().map_or_else(|| format!("{:?}", status.code()), |info| info.reason)
}

fn three(times: Vec<Duration>) -> String {
    figures::latencies(times).map_or("none".to_owned(), |times| times.map(number).join(", "))
}

/// Small requests, a few a second, in turn of a newcomer and of one of the flood.
async fn probe(time: Duration, newcomer: &Client, flooder: &Client) -> Vec<Probe> {
    let mut probes = JoinSet::new();
    let mut ticks = interval(PROBE_EVERY);
    let end = Instant::now() + time;
    for who in [Who::Newcomer, Who::Flooder].into_iter().cycle() {
        if ticks.tick().await >= end {
            break;
        }
        let client = if who == Who::Newcomer { newcomer } else { flooder }.clone();
        let request = callers::request(callers::set_of_services(2_429), callers::new_customers(1));
        probes.spawn(async move {
            let sent = Instant::now();
            let is_applied = callers::unassign(client, request).await.is_ok();
            Probe { who, sent, took: sent.elapsed(), is_applied }
        });
    }
    let mut probes = probes.join_all().await;
    probes.sort_by_key(|probe| probe.sent);
    probes
}

/// Health checks and reads beside the flood, on a connection of their own: they keep a share for themselves.
async fn look_aside(gateway: &Gateway, time: Duration) -> JoinHandle<Vec<Duration>> {
    let channel = gateway.channel().await;
    tokio::spawn(async move {
        let (mut health, reads) = (HealthClient::new(channel.clone()), Client::new(channel));
        let mut ticks = interval(Duration::from_millis(50));
        let end = Instant::now() + time;
        let mut took = Vec::new();
        while ticks.tick().await < end {
            let began = Instant::now();
            health.check(HealthCheckRequest::default()).await.expect("health is told in any weather");
            took.push(began.elapsed());
            let began = Instant::now();
            callers::list_services(reads.clone()).await.expect("reads have room of their own");
            took.push(began.elapsed());
        }
        took
    })
}
