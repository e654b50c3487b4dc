//! Central's lists, as they should be and as they should not, and what looking at them may cost.

use central_sandbox::{Answer, Call, Customer, Fault, Operation, Reply, Sandbox, Settings};
use license_gateway::{
    config,
    proto::{PreviewUnassignLicensesResponse, PreviewWarningCode},
};
use serde_json::json;
use tonic::Code;

use super::{calls, joins, leaves, open};
use crate::support::{Failure, Gateway, customer, everyone, include, unlimited};

async fn of_customers(count: usize) -> Sandbox {
    Sandbox::start(unlimited().with_generated_customers(count)).await.unwrap()
}

/// A page with these customers and this total.
fn page(ids: impl IntoIterator<Item = usize>, total: impl Into<serde_json::Value>) -> Fault {
    let customers: Vec<_> = ids
        .into_iter()
        .map(|id| json!({ "customer_id": format!("{id:032x}"), "customer_name": format!("Customer {id}") }))
        .collect();
    let body = json!({ "customers": customers, "total": total.into() }).to_string();
    Fault::new(Reply::Answer(Answer::new(200).body(&body))).on(Operation::Customers)
}

fn offsets(sandbox: &Sandbox) -> Vec<usize> {
    let offset = |call: &Call| {
        let parameter = |name: &str| call.query.iter().find(|(key, _)| key == name).unwrap().1.parse().unwrap();
        assert_eq!(parameter("limit"), 100, "the same for every page");
        parameter("offset")
    };
    sandbox.calls_of(Operation::Customers).iter().map(offset).collect()
}

async fn preview(gateway: &Gateway) -> Result<PreviewUnassignLicensesResponse, Failure> {
    gateway.preview(&everyone(), 0).await
}

fn is_refused(failure: &Failure, why: &str) {
    assert_eq!((failure.code, failure.reason.as_str()), (Code::Internal, "CENTRAL_UNEXPECTED"), "{failure:?}");
    assert_eq!(failure.outcome, "not_applied");
    assert!(failure.status.message().contains(why), "{}", failure.status.message());
}

#[tokio::test]
async fn every_customer_of_a_large_account_is_found() {
    for (count, pages) in [(1, 1), (99, 1), (100, 2), (101, 2), (1_000, 11), (1_234, 13)] {
        let sandbox = of_customers(count).await;
        let gateway = open(&sandbox).await;
        let preview = preview(&gateway).await.unwrap();
        assert_eq!((preview.customer_count as usize, preview.customers.len()), (count, count.min(100)));
        let expected: Vec<_> = (0..pages).map(|page| page * 100).collect();
        assert_eq!(offsets(&sandbox).len(), pages, "{count}");
        assert!(offsets(&sandbox).iter().zip(expected).all(|(is, should)| *is == should.min(count)), "{count}");
        let request = gateway.bound(everyone()).await;
        gateway.send(request).await.expect("the same set twice");
        gateway.stop().await;
    }
}

#[tokio::test]
async fn a_list_that_can_be_understood_is_and_one_that_cannot_is_refused() {
    let sandbox = of_customers(0).await;
    let gateway = open(&sandbox).await;
    let understood: Vec<(&str, Vec<Fault>, u32)> = vec![
        ("short pages", vec![page(0..40, 90), page(40..80, 90), page(80..90, 90)], 90),
        ("no total", vec![page(0..40, json!(null)), page(40..40, json!(null))], 40),
        (
            "pages overlap once",
            vec![page(0..100, 130), page(80..110, 130), page(0..100, 130), page(100..130, 130)],
            130,
        ),
        (
            "somebody comes while it is read",
            vec![page(0..100, 120), page(99..120, 121), page(0..100, 121), page(100..121, 121)],
            121,
        ),
    ];
    for (name, pages, expected) in understood {
        sandbox.clear_calls();
        let count = pages.len();
        for page in pages {
            sandbox.fault(page);
        }
        assert_eq!(preview(&gateway).await.expect(name).customer_count, expected, "{name}");
        assert_eq!((sandbox.calls_of(Operation::Customers).len(), sandbox.faults().len()), (count, 0), "{name}");
    }
    let moving = (0..6).map(|round| page(if round % 2 == 0 { 0..100 } else { 100..150 }, 150 + round)).collect();
    let body = |body: &str| vec![Fault::new(Reply::Answer(Answer::new(200).body(body))).on(Operation::Customers)];
    let refused: Vec<(&str, Vec<Fault>, &str)> = vec![
        ("nobody", vec![page(0..0, 0)], "it is empty"),
        ("nobody, and no total", vec![page(0..0, json!(null))], "it is empty"),
        ("a total that is too high", vec![page(0..5, 9), page(5..5, 9)], "5 different entries"),
        ("a total that is too low", vec![page(0..100, 5)], "100 different entries"),
        ("doubles", vec![page((0..60).chain(0..40), 100), page(0..0, 100)], "60 different entries"),
        (
            "pages overlap each time",
            (0..3).flat_map(|_| [page(0..100, 249), page(80..180, 249)]).collect(),
            "repeat each other",
        ),
        ("a total that moves each time", moving, "changed each of the 3 times"),
        ("the first page for ever", vec![page(0..100, 900), page(0..100, 900)], "repeat each other"),
        ("no id", body(r#"{"customers":[{"customer_name":"x"}],"total":1}"#), "has no id"),
        ("a number for an id", body(r#"{"customers":[{"customer_id":1}],"total":1}"#), "has no id"),
        ("a blank for an id", body(r#"{"customers":[{"customer_id":" "}],"total":1}"#), "has no id"),
        ("no list", body(r#"{"total":0}"#), "not what this operation returns"),
        ("no JSON", body("<html>"), "not what this operation returns"),
    ];
    for (name, pages, why) in refused {
        for page in pages {
            sandbox.fault(page);
        }
        is_refused(&preview(&gateway).await.expect_err(name), why);
        assert!(sandbox.faults().is_empty(), "{name}: it was not read to the flaw");
    }
    assert!(sandbox.unassign_calls().is_empty());
    gateway.stop().await;
}

#[tokio::test]
async fn a_list_without_end_is_given_up_and_costs_what_was_promised() {
    let sandbox = of_customers(0).await;
    let gateway = open(&sandbox).await;
    for index in 0..200 {
        sandbox.fault(page(index * 100..(index + 1) * 100, 1_000_000));
    }
    is_refused(&preview(&gateway).await.unwrap_err(), "more than 100 pages");
    assert_eq!(calls(&sandbox), 100);

    // It moves late each time: the new beginnings are in the bound too.
    sandbox.clear_faults();
    sandbox.clear_calls();
    for round in 0..3 {
        (0..70).for_each(|index| sandbox.fault(page(index * 100..(index + 1) * 100, 9_000 + round)));
    }
    is_refused(&preview(&gateway).await.unwrap_err(), "more than 120 calls");
    assert_eq!(calls(&sandbox), 120);
    gateway.stop().await;
}

/// A customer with so many devices that hold the service.
fn with_devices(customer: &Customer, count: usize) -> Customer {
    let device = customer.devices[0].clone();
    let serial = |number| format!("{}-{number}", &customer.id[24..]);
    let devices = (0..count).map(|number| central_sandbox::Device { serial: serial(number), ..device.clone() });
    Customer { devices: devices.collect(), ..customer.clone() }
}

#[tokio::test]
async fn devices_are_counted_as_far_as_the_calls_go() {
    let sandbox = of_customers(20).await;
    sandbox.change_owners(|owners| {
        for owner in &mut owners[1..] {
            *owner = with_devices(owner, 130);
        }
    });
    let gateway = open(&sandbox).await;
    let ids: Vec<_> = (0..20).map(|index| customer(&sandbox, index)).collect();
    let ids: Vec<_> = ids.iter().map(String::as_str).collect();
    let device_calls = || u32::try_from(sandbox.calls_of(Operation::Devices).len()).unwrap();
    // Calls allowed; calls made, devices, customers seen, complete.
    let one_by_one = [
        (1, (1, 100, 1, false)),
        (2, (2, 130, 1, false)),
        (3, (3, 230, 2, false)),
        (4, (4, 260, 2, true)),
        (100, (4, 260, 2, true)),
    ];
    for (allowed, expected) in one_by_one {
        sandbox.clear_calls();
        let preview = gateway.preview(&include(&ids[..2]), allowed).await.unwrap();
        let devices = preview.devices.unwrap();
        let made = device_calls();
        let counted = (made, devices.device_count, devices.customers_seen, devices.is_complete);
        assert_eq!(counted, expected, "{allowed}");
        assert_eq!(calls(&sandbox), preview.call_count as usize);
        let tenant = |call: &Call| call.headers.iter().any(|(name, _)| name == "tenantid");
        assert!(sandbox.calls_of(Operation::Devices).iter().all(tenant));
    }
    // 2,602 devices, the MSP's two with them: one of those holds the service.
    for (scope, expected) in [(everyone(), 2_601), (include(&ids[..15]), 1_950)] {
        sandbox.clear_calls();
        let preview = gateway.preview(&scope, 100).await.unwrap();
        let devices = preview.devices.unwrap();
        assert_eq!((devices.device_count, devices.is_complete), (expected, true));
        assert_eq!((device_calls(), devices.customers_seen), (27, preview.customer_count));
        let automatic = preview.auto_licensing.unwrap();
        assert_eq!((automatic.customers_seen, automatic.is_complete), (preview.customer_count, true));
        let query = |call: &Call, name: &str| call.query.iter().find(|(key, _)| key == name).unwrap().1.clone();
        for (index, call) in sandbox.calls_of(Operation::Devices).iter().enumerate() {
            assert_eq!(query(call, "offset"), (index * 100).to_string(), "a multiple of the limit");
            assert_eq!(query(call, "limit"), "100");
        }
    }
    sandbox.clear_calls();
    let part = gateway.preview(&everyone(), 5).await.unwrap();
    let devices = part.devices.unwrap();
    assert_eq!((device_calls(), devices.is_complete, devices.customers_seen), (5, false, 4));
    let automatic = part.auto_licensing.unwrap();
    assert_eq!((automatic.customers_seen, automatic.is_complete), (1, false), "devices left no calls for the others");
    gateway.stop().await;
}

/// A page of the inventory with these devices, which hold the service.
fn devices(ids: impl IntoIterator<Item = usize>, total: impl Into<serde_json::Value>) -> Fault {
    let device = |id| json!({ "serial": format!("S{id}"), "customer_id": "c", "services": ["ADVANCED_AP"] });
    let devices: Vec<_> = ids.into_iter().map(device).collect();
    let body = json!({ "devices": devices, "total": total.into() }).to_string();
    Fault::new(Reply::Answer(Answer::new(200).body(&body))).on(Operation::Devices)
}

#[tokio::test]
async fn devices_are_never_called_complete_that_are_not() {
    /// Pages; devices found, complete, and the offset and limit of the last question.
    type Row = (&'static str, Vec<Fault>, (u64, bool, &'static str, &'static str));

    let sandbox = of_customers(1).await;
    let gateway = open(&sandbox).await;
    let none = || json!(null);
    let table: Vec<Row> = vec![
        ("short pages", vec![devices(0..50, 70), devices(50..70, 70)], (70, true, "50", "50")),
        (
            "short pages, no total",
            vec![devices(0..50, none()), devices(50..70, none()), devices(70..70, none())],
            (70, true, "70", "14"),
        ),
        (
            "a shorter page later",
            vec![devices(0..100, 190), devices(100..160, 190), devices(160..190, 190)],
            (190, true, "160", "40"),
        ),
        ("the offset is ignored", (0..2).map(|_| devices(0..100, 250)).collect(), (100, false, "100", "100")),
        ("the same, no total", (0..2).map(|_| devices(0..50, none())).collect(), (50, false, "50", "50")),
        ("fewer than it says", vec![devices(0..50, 60), devices(50..50, 60)], (50, false, "50", "50")),
    ];
    for (name, pages, (found, is_complete, offset, limit)) in table {
        sandbox.clear_calls();
        for page in pages {
            sandbox.fault(page);
        }
        let preview = gateway.preview(&everyone(), 10).await.unwrap();
        let counted = preview.devices.unwrap();
        assert_eq!((counted.device_count, counted.is_complete), (found, is_complete), "{name}");
        let warned = preview.warnings.iter().any(|warning| warning.code() == PreviewWarningCode::DevicesNotCounted);
        assert_eq!(warned, !is_complete, "{name}");
        assert!(sandbox.faults().is_empty(), "{name}");
        let last = sandbox.calls_of(Operation::Devices).pop().unwrap();
        let query = |name: &str| last.query.iter().find(|(key, _)| key == name).unwrap().1.clone();
        assert_eq!((query("offset").as_str(), query("limit").as_str()), (offset, limit), "{name}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn repeats_are_within_the_bound_and_a_failure_is_told() {
    let sandbox = of_customers(3).await;
    let gateway = open(&sandbox).await;
    let ids: Vec<_> = (0..3).map(|index| customer(&sandbox, index)).collect();
    let wanted = include(&[&ids[0], &ids[1], &ids[2]]);
    let warned = |preview: &PreviewUnassignLicensesResponse| {
        preview.warnings.iter().any(|warning| warning.code() == PreviewWarningCode::DevicesNotCounted)
    };
    sandbox.fault(Fault::answer(429).on(Operation::Devices).times(2));
    let preview = gateway.preview(&wanted, 2).await.unwrap();
    assert_eq!((preview.call_count, calls(&sandbox)), (4, 4), "two for devices, though both were refused");
    assert!(warned(&preview) && preview.devices.unwrap().device_count == 0, "{preview:?}");
    sandbox.clear_faults();
    sandbox.clear_calls();

    sandbox.fault(Fault::answer(403).on(Operation::Devices).skip(1));
    let preview = gateway.preview(&wanted, 10).await.unwrap();
    let devices = preview.devices.unwrap();
    assert_eq!((devices.device_count, devices.customers_seen, devices.is_complete), (1, 1, false));
    assert!(warned(&preview) && !preview.etag.is_empty(), "whom it hits is known all the same");

    // One call about automatic licensing, whatever becomes of it.
    sandbox.clear_calls();
    sandbox.fault(Fault::answer(429).on(Operation::AutoLicense));
    let preview = gateway.preview(&wanted, 0).await.unwrap();
    assert_eq!((preview.call_count, sandbox.calls_of(Operation::AutoLicense).len()), (2, 1));
    gateway.stop().await;
}

#[tokio::test]
async fn a_spent_day_is_said_and_costs_nothing() {
    let sandbox = Sandbox::start(Settings { per_second: None, ..Settings::default() }).await.unwrap();
    let reserve = |config: &mut config::Config| {
        config.quota.reserve = 50;
        config.central.allow_open_scopes = true;
    };
    let gateway = Gateway::start_with(&sandbox, reserve).await;
    gateway.ready().await;
    let bound = gateway.bound(everyone()).await;
    // The next answers say what is left: the list was had, not all devices.
    sandbox.set_day_used(4_949);
    let ids: Vec<_> = (0..3).map(|index| customer(&sandbox, index)).collect();
    let preview = gateway.preview(&include(&[&ids[0], &ids[1], &ids[2]]), 10).await.unwrap();
    assert_eq!((preview.customer_count, preview.call_count), (3, 3), "three answers agree: {preview:?}");
    assert!(!preview.devices.unwrap().is_complete);
    assert!(preview.warnings.iter().any(|warning| warning.text.contains("calls of the day are spent")), "{preview:?}");

    sandbox.clear_calls();
    for failure in [gateway.preview(&everyone(), 10).await.unwrap_err(), gateway.send(bound).await.unwrap_err()] {
        assert_eq!((failure.code, failure.reason.as_str()), (Code::ResourceExhausted, "CENTRAL_QUOTA_EXHAUSTED"));
        assert_eq!(failure.outcome, "not_applied");
        assert!(failure.pushback.parse::<u64>().unwrap() > 0, "the wait until midnight");
    }
    assert_eq!(calls(&sandbox), 0);
    gateway.stop().await;
}

#[tokio::test]
async fn what_is_licensed_automatically_is_told_of_the_one_who_was_looked_at() {
    let sandbox = of_customers(2).await;
    sandbox.change_owners(|owners| owners[1].auto_license = vec!["pa".to_owned(), "advanced_ap".to_owned()]);
    let gateway = open(&sandbox).await;
    let warned = |preview: PreviewUnassignLicensesResponse| {
        let automatic =
            |warning: &&license_gateway::proto::PreviewWarning| warning.code() == PreviewWarningCode::AutoLicensing;
        preview.warnings.iter().find(automatic).map(|warning| warning.text.clone())
    };
    let (first, second) = (customer(&sandbox, 0), customer(&sandbox, 1));
    let text = warned(preview(&gateway).await.unwrap()).expect("of the first of them");
    assert!(text.contains(&first) && text.contains("advanced_ap") && !text.contains("pa "), "{text}");
    assert_eq!(warned(gateway.preview(&include(&[&second]), 0).await.unwrap()), None);
    gateway.stop().await;
}

#[tokio::test]
async fn names_are_passed_on_as_they_are_and_ids_decide() {
    let sandbox = of_customers(1).await;
    sandbox.change_owners(|owners| owners[1].name = "\u{1b}[2J\u{202e}same".to_owned());
    joins(&sandbox, "another-id");
    sandbox.change_owners(|owners| owners[2].name = owners[1].name.clone());
    let gateway = open(&sandbox).await;
    let shown = preview(&gateway).await.unwrap();
    assert_eq!(shown.customer_count, 2, "two of one name are two");
    assert_eq!(shown.customers[0].name, "\u{1b}[2J\u{202e}same");
    leaves(&sandbox, "another-id");
    assert_ne!(preview(&gateway).await.unwrap().etag, shown.etag);
    gateway.stop().await;
}
