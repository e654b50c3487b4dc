//! 1,000 callers at the same moment, one customer each, at Central's true limits.

use std::{path::Path, sync::Arc, time::Duration};

use tokio::{
    sync::Barrier,
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    Plan, callers,
    figures::{self, Spread},
    world::{Central, World},
};

const CALLERS: usize = 1_000;
const CONNECTIONS: usize = 50;

/// After this long, Central and the gateway begin a second with all its calls.
const NEW_SECOND: Duration = Duration::from_millis(2_100);

struct Burst {
    latencies: [f64; 3],
    cpu_seconds: f64,
    calls: f64,
    over_limit: u64,
    refused: usize,
}

pub(crate) async fn measure(gateway: &Path, plan: &Plan) -> String {
    let mut rows = Vec::new();
    for (title, service_sets) in [("the same services", 1), ("20 sets of services", 20)] {
        let world = World::start(gateway, Central::TrueLimits, &[]).await;
        let mut bursts = Vec::new();
        for round in 1..=plan.bursts {
            eprintln!("1,000 at once, {title}: {round} of {}", plan.bursts);
            sleep(NEW_SECOND).await;
            bursts.push(burst(&world, service_sets).await);
        }
        let spread = |value: fn(&Burst) -> f64| Spread::of(bursts.iter().map(value)).shown();
        rows.push(vec![
            title.to_owned(),
            spread(|burst| burst.latencies[2] / 1_000.0),
            spread(|burst| burst.latencies[0]),
            spread(|burst| burst.latencies[1]),
            spread(|burst| burst.calls),
            bursts.iter().map(|burst| burst.over_limit).sum::<u64>().to_string(),
            bursts.iter().map(|burst| burst.refused).sum::<usize>().to_string(),
            spread(|burst| burst.cpu_seconds * 10.0),
            world.gateway().memory().shown(),
        ]);
    }
    let head = [
        "1,000 callers at once",
        "all answered after, s",
        "p50, ms",
        "p99, ms",
        "calls to Central",
        "429s in all",
        "requests refused in all",
        "CPU s per 10,000 requests",
        "memory, MiB (peak)",
    ];
    let title = format!(
        "1,000 at once, Central's true limits and 50 ms for each of its answers: median (least–most) of {} times",
        plan.bursts
    );
    figures::table(&title, &head, &rows)
}

/// Fresh connections each time, made before the clock starts.
async fn burst(world: &World, service_sets: usize) -> Burst {
    let clients = callers::clients(world.gateway(), CALLERS, CONNECTIONS).await;
    world.sandbox().forget().await;
    let cpu_before = world.gateway().cpu_seconds();
    let start = Arc::new(Barrier::new(CALLERS));
    let mut callers = JoinSet::new();
    for (number, client) in clients.into_iter().enumerate() {
        let start = Arc::clone(&start);
        callers.spawn(async move {
            let services = callers::set_of_services(number % service_sets);
            let request = callers::request(services, callers::new_customers(1));
            start.wait().await;
            let began = Instant::now();
            let answer = callers::unassign(client, request).await;
            (began.elapsed(), answer)
        });
    }
    let (latencies, answers): (Vec<_>, Vec<_>) = callers.join_all().await.into_iter().unzip();
    let counted = world.sandbox().counted().await;
    #[allow(clippy::cast_precision_loss)] // some dozens
    let calls = counted.unassignments as f64;
    Burst {
        latencies: figures::latencies(latencies).expect("1,000 answers"),
        cpu_seconds: world.gateway().cpu_seconds() - cpu_before,
        calls,
        over_limit: counted.over_limit,
        refused: answers.iter().filter(|answer| answer.is_err()).count(),
    }
}
