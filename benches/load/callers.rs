//! Those who call: what they send, and one after another for as long as they are told to.

use std::{
    future::Future,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use central_sandbox::Settings;
use license_gateway::proto::{
    CustomerList, ListServicesRequest, UnassignLicensesRequest, licensing_service_client::LicensingServiceClient,
    unassign_licenses_request::Scope,
};
use tokio::{task::JoinSet, time::Instant};
use tonic::{IntoRequest, Request, Status, transport::Channel};

use crate::world::Gateway;

/// A caller's client.
pub(crate) type Client = LicensingServiceClient<Channel>;

/// The services that the sandbox knows.
static SERVICES: LazyLock<Vec<String>> = LazyLock::new(|| Settings::default().services);

/// That many clients on that many connections, spread evenly.
pub(crate) async fn clients(gateway: &Gateway, count: usize, connections: usize) -> Vec<Client> {
    let mut channels = Vec::new();
    for _ in 0..connections.min(count) {
        channels.push(gateway.channel().await);
    }
    channels.into_iter().cycle().take(count).map(LicensingServiceClient::new).collect()
}

/// That many customers whom nobody has named before.
pub(crate) fn new_customers(count: usize) -> Vec<String> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    // As random as real ids look: what hashes or compares them sees no common beginning.
    (0..count).map(|_| format!("{:032x}", u128::from(NEXT.fetch_add(1, Relaxed)).wrapping_mul(GOLDEN))).collect()
}

/// An odd number without a pattern: multiplying by it repeats nothing.
const GOLDEN: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;

/// Three services; the first 2,430 sets are all different.
pub(crate) fn set_of_services(number: usize) -> Vec<String> {
    let count = SERVICES.len();
    // Two steps of at most 9 in a circle of 30: the way back is the longest, so a set is met once only.
    let (start, step, next_step) = (number % count, 1 + number / count % 9, 1 + number / count / 9 % 9);
    [start, start + step, start + step + next_step].map(|place| SERVICES[place % count].clone()).to_vec()
}

pub(crate) fn request(services: Vec<String>, customer_ids: Vec<String>) -> UnassignLicensesRequest {
    let scope = Some(Scope::IncludeCustomers(CustomerList { customer_ids }));
    UnassignLicensesRequest { scope, services, reason: "BENCH-1".to_owned(), ..UnassignLicensesRequest::default() }
}

/// The request of a caller who has a trace and does not keep it.
pub(crate) fn unsampled(request: UnassignLicensesRequest) -> Request<UnassignLicensesRequest> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let number = NEXT.fetch_add(1, Relaxed);
    let trace = format!("00-{:032x}-{number:016x}-00", u128::from(number).wrapping_mul(GOLDEN));
    let mut request = Request::new(request);
    request.metadata_mut().insert("traceparent", trace.parse().expect("hexadecimal digits are ASCII"));
    request
}

pub(crate) async fn unassign(
    mut client: Client,
    request: impl IntoRequest<UnassignLicensesRequest>,
) -> Result<(), Status> {
    client.unassign_licenses(request).await.map(drop)
}

pub(crate) async fn list_services(mut client: Client) -> Result<(), Status> {
    client.list_services(ListServicesRequest {}).await.map(drop)
}

/// Every client calls, waits for the answer and calls again, until the time is over; how long each call took. All must
/// be accepted.
pub(crate) async fn one_after_another<F, C>(clients: &[Client], time: Duration, call: C) -> Vec<Duration>
where
    F: Future<Output = Result<(), Status>> + Send,
    C: Fn(usize, Client) -> F + Clone + Send + 'static,
{
    let end = Instant::now() + time;
    let mut callers = JoinSet::new();
    for (number, client) in clients.iter().cloned().enumerate() {
        let call = call.clone();
        callers.spawn(async move {
            let mut latencies = Vec::new();
            while Instant::now() < end {
                let began = Instant::now();
                call(number, client.clone()).await.expect("nothing is refused in a closed loop");
                latencies.push(began.elapsed());
            }
            latencies
        });
    }
    callers.join_all().await.concat()
}
