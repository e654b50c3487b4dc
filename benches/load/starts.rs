//! A process that has nothing to do: how soon it answers, how much memory it holds, how large it is.

use std::{fs, path::Path, time::Duration};

use license_gateway::proto::health::{HealthCheckRequest, health_client::HealthClient};
use tokio::time::{Instant, sleep};

use crate::{
    Plan, callers,
    figures::{self, Spread, milliseconds},
    world::{Central, Gateway, Sandbox},
};

/// After this long, whatever a start set in motion is done.
const AT_REST: Duration = Duration::from_secs(1);

pub(crate) async fn measure(gateway: &Path, plan: &Plan) -> String {
    let sandbox = Sandbox::start(Central::Unlimited).await;
    // The first one uses the seed; those that are measured find a token in the store, as every restart does.
    Gateway::start(gateway, &sandbox, &[]).ready().await;
    let (mut healthy, mut applied, mut idle) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=plan.repetitions {
        eprintln!("start {round} of {}", plan.repetitions);
        let began = Instant::now();
        let gateway = Gateway::start(gateway, &sandbox, &[]);
        let channel = gateway.channel().await;
        HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await.expect("it is up");
        healthy.push(milliseconds(began.elapsed()));
        let request = callers::request(callers::set_of_services(0), callers::new_customers(1));
        callers::unassign(callers::Client::new(channel), request).await.expect("it has a token");
        applied.push(milliseconds(began.elapsed()));
        sleep(AT_REST).await;
        idle.push(gateway.memory().now);
    }
    let head = ["", &format!("median (least–most) of {} starts", plan.repetitions)];
    #[allow(clippy::cast_precision_loss)] // some megabytes
    let size = fs::metadata(gateway).expect("it is there").len() as f64 / 1024.0 / 1024.0;
    let row = |what: &str, value: String| vec![what.to_owned(), value];
    figures::table(
        "The process, restarted with a token in its store",
        &head,
        &[
            row("start to the first answer (health), ms", Spread::of(healthy).shown()),
            row("start to the first request applied, ms", Spread::of(applied).shown()),
            row("memory when idle, after one request, MiB", Spread::of(idle).shown()),
            row("binary, MiB", figures::number(size)),
        ],
    )
}
