//! Whether licences are really gone: the end that a watch comes to, what it costs, and whom it holds up. On tokio's paused
//! clock, and the sandbox's with it.

use std::time::Duration;

use central_sandbox::{Fault, InventoryPage, Operation, Sandbox, Settings};
use license_gateway::{
    config,
    proto::{
        AutoLicensingPolicy, ReleaseState, UnassignLicensesRequest, WatchEnd, WatchReleaseRequest,
        WatchReleaseResponse, unassign_licenses_request::Scope, watch_release_request::Scope as Target,
    },
};
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Request, Streaming};
use tonic_types::StatusExt as _;

use crate::support::{Failure, Gateway, SERVICE, customer, everyone, exclude, include, unlimited};

/// The watch of what a request takes away.
fn watch(request: &UnassignLicensesRequest) -> WatchReleaseRequest {
    let scope = request.scope.clone().map(|scope| match scope {
        Scope::IncludeCustomers(list) => Target::IncludeCustomers(list),
        Scope::ExcludeCustomers(list) => Target::ExcludeCustomers(list),
        Scope::AllCustomers(all) => Target::AllCustomers(all),
    });
    WatchReleaseRequest { scope, services: request.services.clone(), ..WatchReleaseRequest::default() }
}

async fn begin(gateway: &Gateway, watch: WatchReleaseRequest) -> Result<Streaming<WatchReleaseResponse>, Failure> {
    let answer = gateway.client().watch_release(watch).await;
    answer.map(tonic::Response::into_inner).map_err(Failure::from)
}

/// All messages, or the failure after them.
async fn follow(gateway: &Gateway, watch: WatchReleaseRequest) -> Result<Vec<WatchReleaseResponse>, Failure> {
    let mut updates = begin(gateway, watch).await?;
    let mut messages = Vec::new();
    while let Some(message) = updates.message().await? {
        messages.push(message);
    }
    Ok(messages)
}

/// The last message; the others say that it goes on.
async fn end(gateway: &Gateway, watch: WatchReleaseRequest) -> WatchReleaseResponse {
    let mut messages = follow(gateway, watch).await.expect("an end");
    let last = messages.pop().expect("a message");
    assert!(messages.iter().all(|one| one.state() == ReleaseState::Watching && one.end() == WatchEnd::Unspecified));
    assert!(messages.iter().all(|one| one.held_devices.is_empty()));
    last
}

async fn start(settings: Settings) -> (Sandbox, Gateway) {
    let sandbox = Sandbox::start(settings).await.expect("the sandbox starts");
    let gateway = Gateway::start_with(&sandbox, |config| config.central.allow_open_scopes = true).await;
    gateway.ready().await;
    sandbox.clear_calls();
    (sandbox, gateway)
}

/// Reads that watches made.
fn reads(sandbox: &Sandbox) -> usize {
    sandbox.calls_of(Operation::Stats).len()
        + sandbox.calls_of(Operation::Devices).len()
        + sandbox.calls_of(Operation::Customers).len()
}

/// The customers of Central's account whose background work is due after so many seconds.
fn slow(seconds: u64) -> Settings {
    Settings { completion_delay_ms: seconds * 1_000, ..unlimited() }
}

#[tokio::test(start_paused = true)]
async fn the_end_is_what_central_did_and_every_call_is_counted() {
    use ReleaseState::{CameBack, Released, StillHeld};

    let stalled = |after| Settings { completion_stalls_after: Some(after), ..slow(5) };
    let puts_back = |seconds: u64| {
        let mut settings = Settings { auto_license_after_ms: Some(seconds * 1_000), ..slow(0) };
        settings.customers[0].auto_license.push(SERVICE.to_owned());
        settings
    };
    // Settings, the state, the reason of the end, released customers, and the longest that it may take.
    let table = [
        (slow(0), Released, WatchEnd::Seen, 2, 11),
        (slow(5), Released, WatchEnd::Seen, 2, 16),
        (slow(40), Released, WatchEnd::Seen, 2, 90),
        (stalled(0), StillHeld, WatchEnd::TimeOver, 0, 120),
        (stalled(1), StillHeld, WatchEnd::TimeOver, 1, 120),
        (puts_back(8), CameBack, WatchEnd::Seen, 1, 11),
    ];
    for (row, (settings, state, why, released, seconds)) in table.into_iter().enumerate() {
        let (sandbox, gateway) = start(settings).await;
        let request = include(&[&customer(&sandbox, 0), &customer(&sandbox, 1)]);
        gateway.send(request.clone()).await.expect("accepted");
        let (began, mut wanted) = (Instant::now(), Request::new(watch(&request)));
        wanted.set_timeout(Duration::from_mins(2));
        let mut updates = gateway.client().watch_release(wanted).await.unwrap().into_inner();
        let mut last = None;
        while let Some(message) = updates.message().await.unwrap() {
            last = Some(message);
        }
        let (last, took) = (last.unwrap(), began.elapsed());
        assert_eq!((last.state(), last.end()), (state, why), "{row}: {last:?}");
        assert_eq!((last.customer_count, last.released_customer_count), (2, released), "{row}");
        assert!(took <= Duration::from_secs(seconds), "{row}: {took:?}");
        assert_eq!(last.call_count as usize, reads(&sandbox), "{row}");
        assert_eq!(sandbox.unassign_calls().len(), 1, "{row}: it only reads");
        assert_eq!(last.held_device_count, last.held_devices.len() as u64, "{row}");
        // Nothing is said to be gone that is not, and nothing to be held that is not.
        for device in &last.held_devices {
            let holds = sandbox.licences_of(&device.customer_id).contains(&(device.serial.clone(), SERVICE.to_owned()));
            assert!(holds, "{row}: {device:?}");
        }
        assert_eq!(last.held_devices.is_empty(), state == Released, "{row}");
        gateway.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_page_central_gives_every_device_is_seen() {
    let pages = [
        InventoryPage::AnySize,
        InventoryPage::CappedAt(50),
        InventoryPage::CappedAt(7),
        InventoryPage::RefusedAbove(500),
        InventoryPage::RefusedAbove(50),
    ];
    for inventory_page in pages {
        let (sandbox, gateway) = start(Settings { inventory_page, ..unlimited().with_generated_customers(120) }).await;
        let one = watch(&everyone());
        let last = end(&gateway, WatchReleaseRequest { max_calls: 30, ..one.clone() }).await;
        assert_eq!((last.state(), last.held_device_count), (ReleaseState::StillHeld, 120), "{inventory_page:?}");
        assert_eq!((last.end(), last.held_devices.len()), (WatchEnd::CallsUsed, 100));
        sandbox.change_owners(|owners| owners[1..].iter_mut().for_each(|one| one.devices[0].services.clear()));
        let last = end(&gateway, WatchReleaseRequest { max_calls: 100, ..one }).await;
        assert_eq!((last.state(), last.released_customer_count), (ReleaseState::Released, 120), "{inventory_page:?}");
        gateway.stop().await;
    }
}

/// A customer with more devices than 100 pages of the shortest kind hold.
#[tokio::test(start_paused = true)]
async fn many_devices_in_short_pages_are_a_matter_of_calls() {
    let mut settings = Settings { inventory_page: InventoryPage::CappedAt(50), ..unlimited() };
    let one = settings.customers[0].devices[0].clone();
    settings.customers[0].devices =
        (0..5_500).map(|n| central_sandbox::Device { serial: format!("M{n:05}"), ..one.clone() }).collect();
    let (sandbox, gateway) = start(settings).await;
    let wanted = watch(&include(&[&customer(&sandbox, 0)]));
    let last = end(&gateway, WatchReleaseRequest { max_calls: 115, ..wanted }).await;
    assert_eq!((last.state(), last.end()), (ReleaseState::StillHeld, WatchEnd::CallsUsed));
    assert_eq!(last.held_device_count, 5_500);
    gateway.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_msps_own_devices_count_where_they_are_sure_to_be_in_scope() {
    let (sandbox, gateway) = start(unlimited()).await;
    sandbox.change_owners(|owners| {
        owners[1..].iter_mut().flat_map(|owner| &mut owner.devices).for_each(|device| device.services.clear());
    });
    let all = end(&gateway, watch(&everyone())).await;
    assert_eq!(all.state(), ReleaseState::Released, "{all:?}");
    let others = watch(&exclude(&[&customer(&sandbox, 0)]));
    let others = end(&gateway, WatchReleaseRequest { max_calls: 5, ..others }).await;
    assert_eq!(others.state(), ReleaseState::StillHeld);
    assert_eq!(others.held_devices[0].customer_id, sandbox.settings().msp_id);
    gateway.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_goes_on_where_another_ended() {
    let (sandbox, gateway) = start(Settings { completion_stalls_after: Some(1), ..slow(0) }).await;
    let request = include(&[&customer(&sandbox, 0), &customer(&sandbox, 1)]);
    gateway.send(request.clone()).await.expect("accepted");
    let first = end(&gateway, WatchReleaseRequest { max_calls: 3, ..watch(&request) }).await;
    assert_eq!((first.state(), first.end()), (ReleaseState::StillHeld, WatchEnd::CallsUsed));
    sandbox.clear_calls();
    let resumed = WatchReleaseRequest { max_calls: 2, resume_token: first.resume_token.clone(), ..watch(&request) };
    let second = end(&gateway, resumed.clone()).await;
    assert_eq!((second.released_customer_count, second.call_count), (1, 2));
    let asked = sandbox.calls_of(Operation::Devices);
    assert!(asked[0].headers.iter().any(|(name, value)| name == "tenantid" && *value == customer(&sandbox, 1)));

    // What the first watch saw released is held again.
    sandbox.change_owners(|owners| {
        for device in &mut owners[2].devices {
            device.services.remove(SERVICE);
        }
        owners[1].devices[0].services.insert(SERVICE.to_owned());
    });
    let third = end(&gateway, WatchReleaseRequest { max_calls: 0, ..resumed.clone() }).await;
    assert_eq!(third.state(), ReleaseState::CameBack);

    let other = watch(&include(&[&customer(&sandbox, 2)]));
    let failure =
        follow(&gateway, WatchReleaseRequest { resume_token: first.resume_token, ..other }).await.unwrap_err();
    assert_eq!((failure.code, failure.reason.as_str()), (Code::InvalidArgument, "INVALID_REQUEST"));
    gateway.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_leaves_stops_it_within_a_second() {
    let (sandbox, gateway) = start(Settings { completion_stalls_after: Some(0), ..slow(0) }).await;
    let mut updates = begin(&gateway, watch(&everyone())).await.unwrap();
    updates.message().await.unwrap();
    sandbox.wait_for_operation(Operation::Devices, 1).await;
    drop(updates);
    sleep(Duration::from_secs(1)).await;
    let before = sandbox.calls().len();
    sleep(Duration::from_mins(20)).await;
    assert_eq!(sandbox.calls().len(), before, "no call is made for somebody who has gone");

    // While a call is on its way: it is finished, and the last.
    sandbox.clear_calls();
    sandbox.fault(Fault::hold("first").on(Operation::Stats));
    let updates = begin(&gateway, watch(&everyone())).await.unwrap();
    sandbox.wait_for_held("first", 1).await;
    drop(updates);
    sleep(Duration::from_secs(1)).await;
    sandbox.release("first");
    sleep(Duration::from_mins(20)).await;
    assert_eq!(sandbox.calls_of(Operation::Stats).len(), 1);
    assert!(sandbox.calls_of(Operation::Devices).is_empty());
    gateway.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_stops_ends_its_watches_at_once() {
    let (_sandbox, gateway) = start(Settings { completion_stalls_after: Some(0), ..slow(0) }).await;
    let mut updates = begin(&gateway, watch(&everyone())).await.unwrap();
    updates.message().await.unwrap();
    let began = Instant::now();
    let stopped = tokio::spawn(gateway.stop());
    let failure = loop {
        match updates.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("an end without a word"),
            Err(status) => break Failure::from(status),
        }
    };
    assert_eq!((failure.code, failure.reason.as_str()), (Code::Unavailable, "GATEWAY_DRAINING"));
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    drop(updates);
    stopped.await.unwrap();
}

#[tokio::test]
async fn a_caller_who_loses_the_right_loses_the_watch() {
    use license_gateway::proto::licensing_service_client::LicensingServiceClient;

    use crate::support::{Process, channel, config_file};

    let sandbox = Sandbox::start(Settings { completion_stalls_after: Some(0), ..slow(0) }).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = config_file(&sandbox, dir.path());
    let mut process = Process::serve_file(&file, &[]).await;
    let mut client = LicensingServiceClient::new(channel(process.address).await);
    let mut updates = client.watch_release(watch(&include(&[&customer(&sandbox, 0)]))).await.unwrap().into_inner();
    updates.message().await.unwrap().expect("it watches");
    let text = std::fs::read_to_string(&file).unwrap();
    let without = text.replace("\"WatchRelease\", ", "").replace(", \"WatchRelease\"", "");
    assert_ne!(text, without);
    std::fs::write(file.with_extension("new"), without).unwrap();
    std::fs::rename(file.with_extension("new"), &file).unwrap();
    process.line("a new policy holds").await;
    let failure = loop {
        match timeout(crate::support::PATIENCE, updates.message()).await.expect("an end") {
            Ok(message) => drop(message.expect("an end with a word")),
            Err(status) => break Failure::from(status),
        }
    };
    assert_eq!((failure.code, failure.reason.as_str()), (Code::PermissionDenied, "POLICY_DENIED"));
}

/// A stream is measured when it ends, and as what it ended.
#[tokio::test(start_paused = true)]
async fn a_watch_is_measured_by_its_end() {
    use crate::admin::page;

    let (sandbox, gateway) = start(Settings { completion_stalls_after: Some(0), ..slow(0) }).await;
    let one = watch(&include(&[&customer(&sandbox, 0)]));
    let measured = async || {
        let (_, metrics) = page(gateway.admin, "/metrics").await;
        let of_watches = |line: &&str| {
            line.starts_with("rpc_server_call_duration_seconds_count") && line.contains("LicensingService/WatchRelease")
        };
        metrics.lines().filter(of_watches).map(str::to_owned).collect::<Vec<_>>()
    };
    let mut updates = begin(&gateway, one.clone()).await.unwrap();
    updates.message().await.unwrap();
    assert_eq!(measured().await, Vec::<String>::new());
    drop(updates);
    while measured().await.is_empty() {
        sleep(Duration::from_millis(20)).await;
    }
    assert!(measured().await[0].contains("CANCELLED"), "{:?}", measured().await);
    end(&gateway, WatchReleaseRequest { max_calls: 2, ..one }).await;
    while measured().await.len() < 2 {
        sleep(Duration::from_millis(20)).await;
    }
    assert!(measured().await.iter().any(|line| line.contains("\"OK\"")), "{:?}", measured().await);
    gateway.stop().await;
}

#[tokio::test(start_paused = true)]
async fn watches_hold_nobody_up() {
    let sandbox = Sandbox::start(Settings::default().with_generated_customers(3_000)).await.unwrap();
    let quota = config::Quota { per_second: 6, replicas: 1, reserve: 50 };
    let gateway = Gateway::start_with(&sandbox, |config| {
        (config.quota, config.central.allow_open_scopes) = (quota, true);
    })
    .await;
    gateway.ready().await;
    let mut watches = Vec::new();
    for _ in 0..20 {
        watches.push(begin(&gateway, watch(&everyone())).await.unwrap());
    }
    sandbox.wait_for_operation(Operation::Customers, 3).await;
    for _ in 0..5 {
        let began = Instant::now();
        gateway.unassign(&customer(&sandbox, 0)).await.expect("applied");
        let took = began.elapsed();
        // A sixth of a second each.
        assert!(took <= Duration::from_millis(2 * 1_000 / 6 + 50), "{took:?}: more than two permits");
    }
    drop(watches);
    gateway.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_fails_for_a_moment_is_read_again_and_what_fails_for_good_ends_it() {
    let (sandbox, gateway) = start(slow(0)).await;
    let request = include(&[&customer(&sandbox, 0)]);
    gateway.send(request.clone()).await.expect("accepted");
    sandbox.script(Operation::Devices, [Fault::answer(503), Fault::answer(500)]);
    assert_eq!(end(&gateway, watch(&request)).await.state(), ReleaseState::Released);
    // A Central without the sign.
    sandbox.fault(Fault::answer(404).on(Operation::Stats).always());
    assert_eq!(end(&gateway, watch(&request)).await.state(), ReleaseState::Released);
    sandbox.clear_faults();

    sandbox.fault(Fault::answer(403).on(Operation::Devices));
    let failure = follow(&gateway, watch(&request)).await.unwrap_err();
    assert_eq!((failure.reason.as_str(), failure.outcome.as_str()), ("CENTRAL_PERMISSION_DENIED", "not_applied"));
    let nobody = watch(&include(&["00000000000000000000000000000000"]));
    assert_eq!(follow(&gateway, nobody).await.unwrap_err().reason, "CUSTOMER_NOT_FOUND");

    // Central is away, and the time is over: nothing was seen, and nothing is said to be held or gone.
    sandbox.fault(Fault::answer(503).on(Operation::Devices).always());
    let mut wanted = Request::new(watch(&request));
    wanted.set_timeout(Duration::from_mins(1));
    let mut updates = gateway.client().watch_release(wanted).await.unwrap().into_inner();
    let mut last = WatchReleaseResponse::default();
    while let Some(message) = updates.message().await.unwrap() {
        last = message;
    }
    assert_eq!((last.state(), last.end()), (ReleaseState::Unconfirmed, WatchEnd::TimeOver));
    gateway.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_a_watch_also_while_central_is_silent() {
    let (sandbox, gateway) = start(Settings { completion_stalls_after: Some(0), ..slow(0) }).await;
    sandbox.fault(Fault::hold("silence").on(Operation::Devices));
    let mut wanted = Request::new(watch(&everyone()));
    wanted.set_timeout(Duration::from_secs(5));
    let mut updates = gateway.client().watch_release(wanted).await.unwrap().into_inner();
    let mut last = WatchReleaseResponse::default();
    while let Some(message) = timeout(Duration::from_secs(5), updates.message()).await.expect("in time").unwrap() {
        last = message;
    }
    assert_eq!((last.state(), last.end()), (ReleaseState::Unconfirmed, WatchEnd::TimeOver));
    sandbox.release("silence");
    gateway.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_is_checked_counted_and_allowed_like_a_preview() {
    let sandbox = Sandbox::start(Settings { completion_stalls_after: Some(0), ..slow(0) }).await.unwrap();
    let rules = config::CallerRules {
        rpcs: [config::RpcName::WatchRelease].into(),
        scopes: [config::ScopeKind::Include].into(),
        max_reads_per_hour: 5,
        ..config::CallerRules::everything(config::WhichCaller::Anonymous)
    };
    let gateway = Gateway::start_with(&sandbox, |config| config.policy.callers = vec![rules]).await;
    let bad = WatchReleaseRequest { max_calls: 1_001, settle_seconds: 1_801, ..WatchReleaseRequest::default() };
    let failure = begin(&gateway, bad).await.unwrap_err();
    let details = failure.status.get_error_details();
    let fields: Vec<_> = details.bad_request().unwrap().field_violations.iter().map(|one| one.field.clone()).collect();
    assert_eq!(fields, ["scope", "services", "max_calls", "settle_seconds"]);
    let of_operation = |services: Vec<String>| WatchReleaseRequest {
        scope: Some(Target::OperationId("01930000-0000-7000-8000-000000000001".to_owned())),
        services,
        ..WatchReleaseRequest::default()
    };
    assert_eq!(begin(&gateway, of_operation(vec![SERVICE.to_owned()])).await.unwrap_err().reason, "INVALID_REQUEST");
    let failure = begin(&gateway, of_operation(Vec::new())).await.unwrap_err();
    assert_eq!((failure.code, failure.reason.as_str()), (Code::NotFound, "OPERATION_NOT_FOUND"));
    assert_eq!(begin(&gateway, watch(&everyone())).await.unwrap_err().reason, "POLICY_DENIED");
    assert_eq!(gateway.unassign(&customer(&sandbox, 0)).await.unwrap_err().reason, "POLICY_DENIED");

    let failure = follow(&gateway, watch(&include(&[&customer(&sandbox, 0)]))).await.unwrap_err();
    assert_eq!((failure.code, failure.reason.as_str()), (Code::ResourceExhausted, "CALLER_QUOTA_EXHAUSTED"));
    assert_eq!(reads(&sandbox), 5);
    gateway.stop().await;
}

#[tokio::test(start_paused = true)]
async fn automatic_licensing_is_refused_where_the_request_says_so() {
    let mut settings = unlimited();
    settings.customers[1].auto_license.push(SERVICE.to_owned());
    let (sandbox, gateway) = start(settings).await;
    let (a, b) = (customer(&sandbox, 0), customer(&sandbox, 1));
    let refusing = |request: UnassignLicensesRequest| UnassignLicensesRequest {
        auto_licensing: AutoLicensingPolicy::Refuse.into(),
        ..request
    };
    let failure = gateway.send(refusing(include(&[&a, &b]))).await.unwrap_err();
    assert_eq!((failure.code, failure.reason.as_str()), (Code::FailedPrecondition, "AUTO_LICENSING_ACTIVE"));
    assert_eq!((failure.outcome.as_str(), failure.pushback.as_str()), ("not_applied", "-1"));
    assert!(failure.status.message().contains(&b) && !failure.status.message().contains(&a));
    let bound = gateway.bound(everyone()).await;
    assert_eq!(gateway.send(refusing(bound)).await.unwrap_err().reason, "AUTO_LICENSING_ACTIVE");
    sandbox.fault(Fault::answer(500).on(Operation::AutoLicense));
    let failure = gateway.send(refusing(include(&[&a]))).await.unwrap_err();
    assert_eq!((failure.reason.as_str(), failure.outcome.as_str()), ("CENTRAL_INTERNAL", "not_applied"));
    let many: Vec<String> = (0..101).map(|number| format!("{number:032x}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(gateway.send(refusing(include(&many))).await.unwrap_err().reason, "AUTO_LICENSING_UNKNOWN");
    let unknown = UnassignLicensesRequest { auto_licensing: 9, ..include(&[&a]) };
    assert_eq!(gateway.send(unknown).await.unwrap_err().reason, "INVALID_REQUEST");
    assert!(sandbox.unassign_calls().is_empty(), "nothing was sent");

    sandbox.clear_calls();
    gateway.send(refusing(include(&[&a]))).await.expect("nobody puts it back");
    assert_eq!(sandbox.calls_of(Operation::AutoLicense).len(), 1);
    gateway.send(include(&[&b])).await.expect("allowed");
    assert_eq!(sandbox.calls_of(Operation::AutoLicense).len(), 1, "nobody asked");

    // A preview tells of all of them, as far as its calls go.
    let seen = gateway.preview(&include(&[&a, &b]), 10).await.unwrap().auto_licensing.unwrap();
    assert_eq!((seen.customer_ids, seen.customers_seen, seen.is_complete), (vec![b.clone()], 2, true));
    let seen = gateway.preview(&include(&[&a, &b]), 0).await.unwrap().auto_licensing.unwrap();
    assert_eq!((seen.customer_count, seen.customers_seen, seen.is_complete), (0, 1, false));
    gateway.stop().await;
}
