//! Central's quota, spent well: pace, shared calls, fair turns, a day that is spent. Hours pass in a moment: tokio's
//! clock is paused, and the sandbox runs with it.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use central_sandbox::{Answer, Call, Fault, Operation, RateHeaders, Reply, Sandbox, Settings};
use license_gateway::{
    config,
    proto::{UnassignLicensesRequest, licensing_service_client::LicensingServiceClient},
};
use tokio::{task::JoinSet, time::Instant};
use tonic::{Code, transport::Channel};
use tonic_types::StatusExt as _;

use crate::support::{Failure, Gateway, channel, customer, include, living, look, of_service};

/// The settings that an operator gets who sets none.
pub const DEFAULTS: config::Quota = config::Quota { per_second: 6, replicas: 1, reserve: 50 };

#[tokio::test(start_paused = true)]
async fn a_large_preview_holds_nobody_up() {
    let sandbox = central(3_000).await;
    let gateway = gateway(&sandbox).await;
    a_fresh_second(&sandbox).await;
    let mut client = gateway.client();
    let look = look(&crate::support::everyone(), 0);
    let preview = tokio::spawn(async move { client.preview_unassign_licenses(look).await });
    sandbox.wait_for_operation(Operation::Customers, 1).await;
    for _ in 0..5 {
        let began = Instant::now();
        gateway.unassign(&customer(&sandbox, 0)).await.expect("applied");
        let took = began.elapsed();
        // The preview takes five seconds. On a busy machine the paused clock goes on while an answer is on its way.
        assert!(took <= Duration::from_millis(1_500), "{took:?}");
    }
    let pages = sandbox.calls_of(Operation::Customers).len();
    assert!(!preview.is_finished() && pages >= 3, "both go on: {pages} pages");
    assert_eq!(preview.await.unwrap().unwrap().into_inner().customer_count, 3_000);
}

/// An id that no generated customer has.
pub const NOBODY: &str = "ffffffffffffffffffffffffffffffff";

/// Central as it is: 7 calls a second, 5,000 a day.
///
/// There it is nine in the morning of tomorrow: whenever the tests run, no midnight gives calls back while they play hours.
pub async fn central(customers: usize) -> Sandbox {
    let sandbox = Sandbox::start(Settings::default().with_generated_customers(customers));
    let sandbox = sandbox.await.expect("the sandbox starts");
    let since_midnight = u64::try_from(sandbox.now().as_second()).expect("after 1970") % 86_400;
    sandbox.set_clock_offset(Duration::from_secs(86_400 - since_midnight) + Duration::from_hours(9));
    sandbox
}

pub async fn gateway(sandbox: &Sandbox) -> Gateway {
    let gateway = Gateway::start_with(sandbox, |config| config.quota = DEFAULTS).await;
    gateway.ready().await;
    gateway
}

/// Gateways that share the account, but no store of tokens: Central lets the older tokens live on for this once.
async fn replicas(sandbox: &Sandbox, count: u32) -> Vec<Arc<Gateway>> {
    sandbox.configure(|settings| settings.old_access_token_lingers_ms = 3_600_000);
    let mut gateways = Vec::new();
    for _ in 0..count {
        let state = Arc::new(tempfile::tempdir().unwrap());
        std::fs::write(state.path().join("refresh_token"), living(sandbox)).unwrap();
        let change = |config: &mut config::Config| config.quota = config::Quota { replicas: count, ..DEFAULTS };
        let gateway = Gateway::start_in(sandbox, state, change).await;
        gateway.ready().await;
        gateways.push(Arc::new(gateway));
    }
    gateways
}

/// The beginning of a second that no call was made in.
pub async fn a_fresh_second(sandbox: &Sandbox) {
    tokio::time::sleep(Duration::from_secs(2)).await;
    sandbox.clear_calls();
}

/// Sends all requests at once.
pub fn send_all(
    client: &LicensingServiceClient<Channel>,
    requests: impl IntoIterator<Item = UnassignLicensesRequest>,
) -> JoinSet<(usize, Result<u32, Failure>)> {
    let mut answers = JoinSet::new();
    for (index, request) in requests.into_iter().enumerate() {
        let mut client = client.clone();
        answers.spawn(async move {
            let answer = client.unassign_licenses(request).await;
            (index, answer.map(|response| response.into_inner().call_count).map_err(Failure::from))
        });
    }
    answers
}

/// A set of three services, another one for every index below 4,060.
pub fn services(sandbox: &Sandbox, index: usize) -> Vec<String> {
    let names = &sandbox.settings().services;
    let count = names.len().min(30);
    let sets = (0..count).flat_map(|a| (a + 1..count).flat_map(move |b| (b + 1..count).map(move |c| [a, b, c])));
    let set = sets.into_iter().nth(index).expect("there are enough sets");
    set.iter().map(|name| names[*name].clone()).collect()
}

fn refused(calls: &[Call]) -> usize {
    calls.iter().filter(|call| call.status == Some(429)).count()
}

#[tokio::test(start_paused = true)]
async fn a_thousand_callers_travel_in_ten_calls() {
    let sandbox = central(1_000).await;
    let gateway = gateway(&sandbox).await;
    a_fresh_second(&sandbox).await;
    let began = Instant::now();
    let requests = (0..1_000).map(|index| include(&[&customer(&sandbox, index)]));
    let answers = send_all(&gateway.client(), requests).join_all().await;
    let took = began.elapsed();

    for (_, answer) in answers {
        answer.expect("applied");
    }
    assert!(took <= Duration::from_secs(2), "{took:?}");
    let calls = sandbox.unassign_calls();
    assert!(calls.len() <= 10, "{} calls", calls.len());
    assert_eq!(refused(&calls), 0);
    assert_eq!(sandbox.applied_customers().len(), 1_000);
}

#[tokio::test(start_paused = true)]
async fn twenty_sets_of_services_travel_in_forty_calls() {
    let sandbox = central(1_000).await;
    let gateway = gateway(&sandbox).await;
    a_fresh_second(&sandbox).await;
    let requests = (0..1_000).map(|index| UnassignLicensesRequest {
        services: services(&sandbox, index % 20),
        ..include(&[&customer(&sandbox, index)])
    });
    for (_, answer) in send_all(&gateway.client(), requests).join_all().await {
        answer.expect("applied");
    }
    let calls = sandbox.unassign_calls();
    assert!(calls.len() <= 40, "{} calls", calls.len());
    assert_eq!(refused(&calls), 0);
}

#[tokio::test(start_paused = true)]
async fn one_unknown_customer_among_a_thousand_spoils_nobody_elses_request() {
    let sandbox = central(1_000).await;
    let gateway = gateway(&sandbox).await;
    a_fresh_second(&sandbox).await;
    let requests = (0..1_000).map(|index| match index {
        617 => include(&[NOBODY]),
        _ => include(&[&customer(&sandbox, index)]),
    });
    for (index, answer) in send_all(&gateway.client(), requests).join_all().await {
        if index == 617 {
            let failure = answer.expect_err("nobody knows them");
            assert_eq!((failure.code, failure.reason.as_str()), (Code::NotFound, "CUSTOMER_NOT_FOUND"));
            assert_eq!(failure.outcome, "not_applied");
        } else {
            answer.expect("applied");
        }
    }
    let calls = sandbox.unassign_calls();
    assert!(calls.len() <= 40, "{} calls", calls.len());
    assert_eq!(sandbox.applied_customers().len(), 999);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_everybody_is_not_asked_about_one_by_one() {
    let sandbox = central(500).await;
    let gateway = gateway(&sandbox).await;
    a_fresh_second(&sandbox).await;
    sandbox.fault(Fault::answer(403).on(Operation::Unassign).always());
    let requests = (0..500).map(|index| include(&[&customer(&sandbox, index)]));
    for (_, answer) in send_all(&gateway.client(), requests).join_all().await {
        assert_eq!(answer.expect_err("refused").reason, "CENTRAL_PERMISSION_DENIED");
    }
    let calls = sandbox.unassign_calls().len();
    assert!(calls <= 150, "{calls} calls to learn that the account may not");
}

#[tokio::test(start_paused = true)]
async fn identical_requests_share_one_place() {
    let sandbox = central(2).await;
    let gateway = gateway(&sandbox).await;
    a_fresh_second(&sandbox).await;
    sandbox.fault(Fault::answer(404).on(Operation::Unassign).always());
    // The same set in another order is the same set.
    let (one, other) = (customer(&sandbox, 0), customer(&sandbox, 1));
    let requests =
        (0..100).map(|index| if index % 2 == 0 { include(&[&one, &other]) } else { include(&[&other, &one]) });
    for (_, answer) in send_all(&gateway.client(), requests).join_all().await {
        assert_eq!(answer.expect_err("refused").reason, "CUSTOMER_NOT_FOUND");
    }
    assert!(sandbox.unassign_calls().len() <= 2, "one place has no halves");
}

#[tokio::test(start_paused = true)]
async fn an_idle_gateway_adds_no_wait() {
    let sandbox = central(1).await;
    let gateway = gateway(&sandbox).await;
    for _ in 0..5 {
        a_fresh_second(&sandbox).await;
        let began = Instant::now();
        gateway.unassign(&customer(&sandbox, 0)).await.unwrap();
        let took = began.elapsed();
        assert!(took < Duration::from_millis(10), "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_one_caller_delays_another_by_two_calls_at_most() {
    let sandbox = central(2).await;
    let gateway = gateway(&sandbox).await;
    a_fresh_second(&sandbox).await;
    let flood = customer(&sandbox, 0);
    let requests = (0..1_000)
        .map(|index| UnassignLicensesRequest { services: services(&sandbox, index), ..include(&[&flood]) })
        .collect::<Vec<_>>();
    let flooding = send_all(&gateway.client(), requests);
    sandbox.wait_for_operation(Operation::Unassign, 6).await;

    let other = customer(&sandbox, 1);
    let before = sandbox.unassign_calls().len();
    let connection = channel(gateway.address).await;
    let answer = LicensingServiceClient::new(connection).unassign_licenses(include(&[&other])).await;
    answer.expect("applied");
    let calls = sandbox.unassign_calls();
    let position =
        calls.iter().position(|call| call.body.as_ref().is_some_and(|body| body["include_customers"][0] == other));
    let ahead = position.expect("it was sent") - before;
    assert!(ahead <= 2, "{ahead} calls of the flood went first");

    let answers = flooding.join_all().await;
    let shed = answers.iter().filter(|(_, answer)| answer.is_err()).count();
    assert!(shed > 900, "what would wait for minutes is refused at once: {shed}");
    for (_, answer) in answers {
        if let Err(failure) = answer {
            assert_eq!((failure.code, failure.reason.as_str()), (Code::ResourceExhausted, "GATEWAY_OVERLOADED"));
            assert_eq!(failure.outcome, "not_applied");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn three_gateways_share_a_quota_without_refusals() {
    let sandbox = central(300).await;
    let gateways = replicas(&sandbox, 3).await;
    a_fresh_second(&sandbox).await;
    let is_over = Arc::new(AtomicBool::new(false));
    let mut callers = JoinSet::new();
    for index in 0..300 {
        let (gateway, is_over) = (Arc::clone(&gateways[index % 3]), Arc::clone(&is_over));
        let request = UnassignLicensesRequest {
            services: services(&sandbox, index / 3 % 20),
            ..include(&[&customer(&sandbox, index)])
        };
        callers.spawn(async move {
            while !is_over.load(Relaxed) {
                if let Err(failure) = gateway.send(request.clone()).await {
                    tokio::time::sleep(Duration::from_millis(failure.pushback.parse().unwrap())).await;
                }
            }
        });
    }
    tokio::time::sleep(Duration::from_mins(1)).await;
    is_over.store(true, Relaxed);
    let calls = sandbox.calls();
    callers.join_all().await;

    let refused = refused(&calls);
    assert!(refused * 100 <= calls.len(), "{refused} of {} calls were refused", calls.len());
    let passed = calls.len() - refused;
    assert!(passed >= 6 * 60 * 9 / 10, "{passed} calls in a minute, 360 were allowed");
}

#[tokio::test(start_paused = true)]
async fn a_spent_day_costs_six_calls_an_hour_and_callers_learn_when_it_ends() {
    let sandbox = central(1).await;
    let gateway = gateway(&sandbox).await;
    a_fresh_second(&sandbox).await;
    sandbox.set_day_used(5_000);
    let mut calls_by_hour = HashMap::<u64, usize>::new();
    let began = Instant::now();
    while began.elapsed() < Duration::from_hours(3) {
        let before = sandbox.calls().len();
        let failure = gateway.unassign(&customer(&sandbox, 0)).await.expect_err("the day is spent");
        assert_eq!((failure.code, failure.outcome.as_str()), (Code::ResourceExhausted, "not_applied"));
        let sent = sandbox.calls().len() - before;
        *calls_by_hour.entry(began.elapsed().as_secs() / 3_600).or_default() += sent;
        if began.elapsed() > Duration::from_mins(10) {
            assert_eq!(failure.reason, "CENTRAL_QUOTA_EXHAUSTED");
            let told = failure.status.get_error_details().retry_info().unwrap().retry_delay.unwrap();
            let since_midnight = u64::try_from(sandbox.now().as_second()).unwrap() % 86_400;
            let expected = Duration::from_secs(86_400 - since_midnight);
            assert!(told.abs_diff(expected) <= Duration::from_secs(2), "{told:?}, {expected:?}");
        }
        tokio::time::sleep(Duration::from_secs(20)).await;
    }
    for (hour, calls) in calls_by_hour {
        let allowed = if hour == 0 { 5 } else { 6 };
        assert!(calls <= allowed, "hour {hour}: {calls} calls");
    }
    gateway.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_429_without_headers_is_a_wait_of_seconds_and_never_ends_the_day() {
    let sandbox = central(1).await;
    let gateway = gateway(&sandbox).await;
    a_fresh_second(&sandbox).await;
    let silent = Answer::new(429).rate_headers(RateHeaders::None);
    sandbox.fault(Fault::new(Reply::Answer(silent)).on(Operation::Unassign).always());
    for _ in 0..30 {
        let failure = gateway.unassign(&customer(&sandbox, 0)).await.expect_err("it is throttled");
        assert_eq!((failure.reason.as_str(), failure.outcome.as_str()), ("CENTRAL_RATE_LIMITED", "not_applied"));
        let told = failure.status.get_error_details().retry_info().unwrap().retry_delay.unwrap();
        assert!(told <= Duration::from_secs(17), "{told:?}");
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    sandbox.clear_faults();
    tokio::time::sleep(Duration::from_secs(17)).await;
    gateway.unassign(&customer(&sandbox, 0)).await.expect("Central takes calls again");
    gateway.stop().await;
}

#[tokio::test(start_paused = true)]
async fn one_odd_header_does_not_stop_the_day() {
    let sandbox = central(1).await;
    let gateway = gateway(&sandbox).await;
    a_fresh_second(&sandbox).await;
    gateway.unassign(&customer(&sandbox, 0)).await.unwrap();
    sandbox.set_day_used(4_999);
    gateway.unassign(&customer(&sandbox, 0)).await.expect("its answer says that nothing is left");
    sandbox.set_day_used(10);
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        gateway.unassign(&customer(&sandbox, 0)).await.expect("one node of Central counts apart");
    }
    gateway.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_failing_central_sees_little_more_than_callers_offer() {
    for fault in [Fault::answer(503), Fault::answer(500)] {
        let sandbox = central(200).await;
        let gateway = gateway(&sandbox).await;
        a_fresh_second(&sandbox).await;
        let status = format!("{:?}", fault.reply);
        sandbox.fault(fault.on(Operation::Unassign).always());
        let mut offered = 0;
        for round in 0..200 {
            // One by one, so that nothing is shared.
            let request = UnassignLicensesRequest {
                services: services(&sandbox, round),
                ..include(&[&customer(&sandbox, round)])
            };
            gateway.send(request).await.expect_err("Central fails");
            offered += 1;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let calls = sandbox.unassign_calls().len();
        assert!(calls * 10 <= offered * 11, "{status}: {calls} calls for {offered} requests");
        gateway.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_central_that_is_down_is_left_alone_and_found_again() {
    let sandbox = central(1).await;
    let gateway = gateway(&sandbox).await;
    a_fresh_second(&sandbox).await;
    sandbox.fault(Fault::answer(503).on(Operation::Unassign).times(5));
    for _ in 0..5 {
        let failure = gateway.unassign(&customer(&sandbox, 0)).await.expect_err("Central fails");
        assert_eq!(failure.reason, "CENTRAL_UNAVAILABLE");
    }
    let failure = gateway.unassign(&customer(&sandbox, 0)).await.expect_err("it is not asked");
    assert_eq!((failure.code, failure.reason.as_str()), (Code::Unavailable, "CENTRAL_UNREACHABLE"));
    assert_eq!((failure.outcome.as_str(), failure.http_status), ("not_applied", None));
    assert!(failure.pushback.parse::<u64>().unwrap() <= 2_000);
    assert_eq!(sandbox.unassign_calls().len(), 5);

    tokio::time::sleep(Duration::from_secs(2)).await;
    gateway.unassign(&customer(&sandbox, 0)).await.expect("Central is back");
}

#[tokio::test(start_paused = true)]
async fn ten_times_what_central_takes_leaves_nine_tenths_of_it() {
    let sandbox = central(1).await;
    let gateway = gateway(&sandbox).await;
    a_fresh_second(&sandbox).await;
    let began = Instant::now();
    let mut answers = JoinSet::new();
    for index in 0_u32..30 * 60 {
        let request = UnassignLicensesRequest {
            services: services(&sandbox, index as usize),
            ..include(&[&customer(&sandbox, 0)])
        };
        let mut client = gateway.client();
        answers.spawn(async move {
            let sent = Instant::now();
            let answer = client.unassign_licenses(request).await;
            (sent.elapsed(), answer.map_err(Failure::from).map(drop))
        });
        tokio::time::sleep_until(began + Duration::from_secs(1) * (index + 1) / 60).await;
    }
    let in_time = sandbox.unassign_calls().len();
    assert!(in_time >= 6 * 30 * 9 / 10, "{in_time} calls in 30 s");
    for (took, answer) in answers.join_all().await {
        if let Err(failure) = answer {
            assert_eq!(failure.reason, "GATEWAY_OVERLOADED");
            assert!(took <= Duration::from_millis(10), "refused after {took:?}");
        }
    }
    // Another caller comes along: it finds a gateway as usual.
    let began = Instant::now();
    let connection = channel(gateway.address).await;
    let request = of_service("advanced_ap", &[&customer(&sandbox, 0)]);
    LicensingServiceClient::new(connection).unassign_licenses(request).await.expect("applied");
    assert!(began.elapsed() <= Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_refused_second_is_waited_for_within_the_deadline_and_not_past_it() {
    let sandbox = central(1).await;
    let gateway = gateway(&sandbox).await;
    a_fresh_second(&sandbox).await;
    sandbox.fault(Fault::answer(429).on(Operation::Unassign).times(2));
    let mut hurried = tonic::Request::new(include(&[&customer(&sandbox, 0)]));
    hurried.set_timeout(Duration::from_millis(900));
    let began = Instant::now();
    let failure = Failure::from(gateway.client().unassign_licenses(hurried).await.expect_err("no time to wait"));
    assert_eq!((failure.reason.as_str(), failure.outcome.as_str()), ("CENTRAL_RATE_LIMITED", "not_applied"));
    assert!(began.elapsed() < Duration::from_millis(50), "told at once, not at the deadline: {:?}", began.elapsed());

    assert_eq!(gateway.unassign(&customer(&sandbox, 0)).await.unwrap(), 2, "with time, it is sent again");
    assert!(began.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn requests_beyond_the_bound_are_refused_and_reads_keep_their_share() {
    let sandbox = central(3).await;
    let gateway = Gateway::start_with(&sandbox, |config| config.server.max_requests = 2).await;
    gateway.ready().await;
    sandbox.fault(Fault::hold("full").on(Operation::Unassign).times(2));
    let mut held = JoinSet::new();
    for index in 0..2 {
        let request = of_service(&sandbox.settings().services[index], &[&customer(&sandbox, index)]);
        held.spawn(send_all(&gateway.client(), [request]).join_all());
    }
    sandbox.wait_for_held("full", 2).await;
    let failure = gateway.unassign(&customer(&sandbox, 2)).await.expect_err("it is full");
    assert_eq!((failure.code, failure.reason.as_str()), (Code::ResourceExhausted, "GATEWAY_OVERLOADED"));
    assert_eq!((failure.outcome.as_str(), failure.pushback.as_str()), ("not_applied", "1000"));
    gateway.ready().await; // a read
    sandbox.release("full");
    for answers in held.join_all().await {
        for (_, answer) in answers {
            answer.expect("applied");
        }
    }
    gateway.unassign(&customer(&sandbox, 2)).await.expect("there is room again");
}

#[tokio::test(start_paused = true)]
async fn an_exchange_takes_a_turn_that_the_others_wait_for() {
    let sandbox = central(1).await;
    let quota = config::Quota { per_second: 1, ..DEFAULTS };
    let gateway = Gateway::start_with(&sandbox, |config| config.quota = quota).await;
    gateway.ready().await;
    a_fresh_second(&sandbox).await;
    sandbox.revoke_access_token();
    let began = Instant::now();
    assert_eq!(gateway.unassign(&customer(&sandbox, 0)).await.unwrap(), 2);
    gateway.unassign(&customer(&sandbox, 0)).await.unwrap();
    // The call that is refused, the exchange, the call again, the next one: three turns between the first and the last.
    let took = began.elapsed();
    assert!((Duration::from_millis(2_900)..Duration::from_millis(3_500)).contains(&took), "{took:?}");
    assert_eq!(sandbox.token_exchanges().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn who_is_taken_in_is_answered_before_their_deadline() {
    let sandbox = central(1).await;
    let gateway = gateway(&sandbox).await;
    a_fresh_second(&sandbox).await;
    sandbox.fault(Fault::none().answering_late(Duration::from_millis(300)).on(Operation::Unassign).always());
    gateway.unassign(&customer(&sandbox, 0)).await.expect("now it knows how long a call takes");
    let began = Instant::now();
    let mut answers = JoinSet::new();
    for index in 0_u32..600 {
        let wanted = UnassignLicensesRequest {
            services: services(&sandbox, index as usize),
            ..include(&[&customer(&sandbox, 0)])
        };
        let mut request = tonic::Request::new(wanted);
        request.set_timeout(Duration::from_secs(2));
        let mut client = gateway.client();
        answers.spawn(async move { client.unassign_licenses(request).await.map(drop).map_err(Failure::from) });
        tokio::time::sleep_until(began + Duration::from_secs(1) * (index + 1) / 60).await;
    }
    let answers = answers.join_all().await;
    let applied = answers.iter().filter(|answer| answer.is_ok()).count();
    assert!(applied >= 6 * 10 * 9 / 10, "{applied} in 10 s");
    for failure in answers.into_iter().filter_map(Result::err) {
        assert_eq!(failure.reason, "GATEWAY_OVERLOADED");
    }
}

#[tokio::test(start_paused = true)]
async fn refusals_that_are_not_repeated_use_up_no_repeats() {
    let sandbox = central(1).await;
    let gateway = gateway(&sandbox).await;
    a_fresh_second(&sandbox).await;
    for _ in 0..40 {
        let failure = gateway.unassign(NOBODY).await.expect_err("nobody knows them");
        assert_eq!(failure.reason, "CUSTOMER_NOT_FOUND");
    }
    sandbox.fault(Fault::answer(429).on(Operation::Unassign));
    assert_eq!(gateway.unassign(&customer(&sandbox, 0)).await.expect("it is repeated"), 2);
}
