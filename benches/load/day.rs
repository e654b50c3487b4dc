//! A day of operations with ids: how much memory they take, how soon one of them is found, and how soon a process that
//! starts again knows them.

use std::path::Path;

use license_gateway::proto::{GetOperationRequest, UnassignLicensesRequest, get_operation_request::Id};
use tokio::{task::JoinSet, time::Instant};
use uuid::Uuid;

use crate::{
    Plan, callers,
    figures::{self, milliseconds},
    world::{Central, Gateway, Sandbox},
};

const CALLERS: usize = 64;
const CONNECTIONS: usize = 16;
/// How many of them are looked up, and repeated.
const LOOKED_UP: usize = 1_000;

pub(crate) async fn measure(binary: &Path, plan: &Plan) -> String {
    let sandbox = Sandbox::start(Central::Unlimited).await;
    let settings = [("quota.per_second", "100000"), ("central.max_in_flight", "64")];
    let gateway = Gateway::start(binary, &sandbox, &settings);
    gateway.ready().await;
    let before = gateway.memory().now;
    eprintln!("a day of {} operations", plan.operations);
    let clients = callers::clients(&gateway, CALLERS, CONNECTIONS).await;
    let ids = fill(&clients, plan.operations / CALLERS).await;
    let after = gateway.memory();
    let (found, repeated) = look_up(&clients[0], &ids).await;
    drop(clients);
    drop(gateway);

    let began = Instant::now();
    let gateway = Gateway::start(binary, &sandbox, &settings);
    gateway.ready().await;
    let start = milliseconds(began.elapsed());
    let (found_again, _) = look_up(&callers::clients(&gateway, 1, 1).await[0], &ids).await;
    let times = |[median, p99, slowest]: [f64; 3]| {
        format!("{} / {} / {}", figures::number(median), figures::number(p99), figures::number(slowest))
    };
    let row = |what: &str, value: String| vec![what.to_owned(), value];
    figures::table(
        &format!("{} operations with a `request_id` each, of one customer", ids.len()),
        &["", "p50 / p99 / slowest where there are three"],
        &[
            row("memory before, MiB", figures::number(before)),
            row("memory after (peak), MiB", after.shown()),
            row("`GetOperation` by `request_id`, ms", times(found)),
            row("a repeat, answered from the record, ms", times(repeated)),
            row("start to ready with that audit trail, ms", figures::number(start)),
            row("memory after that start, MiB", figures::number(gateway.memory().now)),
            row("`GetOperation` then, ms", times(found_again)),
        ],
    )
}

/// Each caller makes so many requests; what they were, with their customers.
async fn fill(clients: &[callers::Client], each: usize) -> Vec<(Uuid, UnassignLicensesRequest)> {
    let mut filling = JoinSet::new();
    for client in clients {
        let client = client.clone();
        filling.spawn(async move {
            let mut made = Vec::new();
            for _ in 0..each {
                let id = Uuid::new_v4();
                let request = callers::request(callers::set_of_services(0), callers::new_customers(1));
                let request = UnassignLicensesRequest { request_id: id.to_string(), ..request };
                callers::unassign(client.clone(), request.clone()).await.expect("nothing is refused");
                made.push((id, request));
            }
            made
        });
    }
    filling.join_all().await.concat()
}

/// How long some of them took to be found, and to be answered again.
async fn look_up(client: &callers::Client, ids: &[(Uuid, UnassignLicensesRequest)]) -> ([f64; 3], [f64; 3]) {
    let (mut found, mut repeated) = (Vec::new(), Vec::new());
    let step = (ids.len() / LOOKED_UP).max(1);
    for (id, request) in ids.iter().step_by(step) {
        let mut client = client.clone();
        let began = Instant::now();
        let by_request = GetOperationRequest { id: Some(Id::RequestId(id.to_string())) };
        client.get_operation(by_request).await.expect("it is remembered");
        found.push(began.elapsed());
        let began = Instant::now();
        let answer = client.unassign_licenses(request.clone()).await.expect("its answer is remembered");
        assert!(answer.into_inner().replayed, "a repeat acts");
        repeated.push(began.elapsed());
    }
    let three = |times| figures::latencies(times).expect("some were looked up");
    (three(found), three(repeated))
}
