//! Operations in a Secret, against an API server that misbehaves on demand.

use std::slice::from_ref;

use serde_json::json;
use tokio::task::JoinSet;

use super::{
    super::{
        api_server::{ApiServer, Fault as Trouble},
        tests::store,
    },
    *,
};
use crate::token::store::{
    TokenStore,
    operations::{
        OperationStore,
        conformance::{self, KEEPING, ended, running},
    },
};

const SECRET: &str = "license-gateway-token-operations";

fn operations(server: &ApiServer) -> OperationStore {
    TokenStore::Kubernetes(store(server)).operations().expect("replicas share it")
}

#[tokio::test]
async fn they_conform() {
    let server = ApiServer::start().await;
    conformance::holds(&operations(&server)).await;
    let secret = server.cluster.secret("gateway", SECRET).unwrap();
    assert_eq!(secret["metadata"]["labels"]["velero.io/exclude-from-backup"], "true");
    assert_eq!(secret["data"].as_object().unwrap().len(), 1);
    assert!(server.cluster.secret("gateway", "license-gateway-token").is_none(), "the tokens are never touched");
}

/// Many replicas, one id: one holds it, and all are told which.
#[tokio::test]
async fn of_many_who_claim_an_id_at_once_one_holds_it() {
    let server = ApiServer::start().await;
    let id = Uuid::new_v4();
    let mut racers = JoinSet::new();
    for _ in 0..8 {
        let (store, operation) = (operations(&server), running("a", id, "run"));
        racers.spawn(async move { (operation.operation_id, store.claim(&[operation], KEEPING).await.unwrap()[0]) });
    }
    let answers = racers.join_all().await;
    let holders: Vec<_> = answers.iter().filter(|(_, by)| by.is_none()).map(|(id, _)| *id).collect();
    assert_eq!(holders.len(), 1);
    assert!(answers.iter().all(|(id, by)| by.is_none_or(|by| by == holders[0] && by != *id)));
}

/// Whatever happens to a write, an id is claimed once, and by who was told so.
#[tokio::test]
async fn a_write_without_an_answer_is_made_again_and_counts_once() {
    let troubles = [
        Trouble::HangBefore,
        Trouble::HangAfter,
        Trouble::CutAfter,
        Trouble::Twice,
        Trouble::Garble,
        Trouble::Answer(500, "InternalError", "etcdserver: request timed out"),
        Trouble::Answer(409, "Conflict", "the object has been modified"),
    ];
    for verb in ["create", "update"] {
        for trouble in troubles {
            let server = ApiServer::start().await;
            let store = operations(&server);
            if verb == "update" {
                store.claim(&[running("a", Uuid::new_v4(), "before")], KEEPING).await.unwrap();
            }
            server.cluster.next(verb, trouble);
            let (first, second) = (running("a", Uuid::nil(), "first"), running("a", Uuid::nil(), "second"));
            assert_eq!(store.claim(from_ref(&first), KEEPING).await.unwrap(), [None], "{verb} {trouble:?}");
            let held = store.claim(&[second], KEEPING).await.unwrap();
            assert_eq!(held, [Some(first.operation_id)], "{verb} {trouble:?}");
        }
    }
}

/// The write that nobody believes in any more arrives when its operation has long ended.
#[tokio::test]
async fn a_claim_that_arrives_after_its_end_holds_nothing() {
    let server = ApiServer::start().await;
    let store = operations(&server);
    let late = running("a", Uuid::new_v4(), "late");
    server.cluster.next("create", Trouble::Delay(Duration::from_secs(1)));
    // The answer is not waited for so long, and then the API server is away.
    server.cluster.next("get", Trouble::Delay(Duration::ZERO));
    server.cluster.next("get", Trouble::Answer(503, "ServiceUnavailable", "apiserver is shutting down"));
    store.claim(from_ref(&late), KEEPING).await.unwrap_err();
    store.end(&[ended(&late, true, "freed")], KEEPING).await.unwrap();
    sleep(Duration::from_secs(1)).await; // no matter how long: the delayed write is refused whenever it comes
    let next = running("a", late.request_id, "next");
    assert_eq!(store.claim(&[next], KEEPING).await.unwrap(), [None]);
}

#[tokio::test]
async fn a_store_that_cannot_be_used_takes_nothing_and_says_why() {
    let server = ApiServer::start().await;
    let store = operations(&server);
    server.cluster.forbid("create");
    let refused = store.claim(&[running("a", Uuid::new_v4(), "x")], KEEPING).await.unwrap_err().to_string();
    assert!(refused.contains(SECRET) && refused.contains("`create`"), "{refused}");
    server.cluster.allow("create");
    store.claim(&[running("a", Uuid::new_v4(), "x")], KEEPING).await.unwrap();
    server.cluster.forbid("update");
    store.claim(&[running("a", Uuid::new_v4(), "x")], KEEPING).await.unwrap_err();
    server.cluster.allow("update");

    for damage in [json!("aGVsbG8="), json!("")] {
        server.cluster.apply("gateway", SECRET, |secret| secret["data"][OPERATIONS_KEY] = damage.clone());
        let before = server.cluster.secret("gateway", SECRET);
        let failure = store.claim(&[running("a", Uuid::new_v4(), "x")], KEEPING).await.unwrap_err().to_string();
        assert!(failure.contains("damaged") && failure.contains(SECRET), "{failure}");
        store.find("a", Uuid::new_v4()).await.unwrap_err();
        assert_eq!(server.cluster.secret("gateway", SECRET), before, "it was left as it is");
    }
    // What somebody deletes begins anew.
    server.cluster.delete("gateway", SECRET);
    assert_eq!(store.claim(&[running("a", Uuid::new_v4(), "x")], KEEPING).await.unwrap(), [None]);
}

/// Hexadecimal digits that do not repeat: nothing packs them much.
fn noise(n: u64, bytes: u64) -> String {
    use sha2::Digest as _;
    let digest = |part: u64| {
        data_encoding::HEXLOWER.encode(&sha2::Sha256::digest([n.to_be_bytes(), part.to_be_bytes()].concat()))
    };
    (0..bytes / 64).map(digest).collect()
}

#[test]
fn a_full_ledger_gives_what_keeps_nothing_from_running_twice_and_then_takes_no_more() {
    const MOST: usize = 8 * 1024;
    let fits = |ledger: &OperationLedger| pack(ledger.clone(), MOST, KEEPING.shorten);
    let mut ledger = OperationLedger::default();
    let chosen = |n: u64| running("a", Uuid::from_u128(n.into()), &format!("short{n} {}", noise(n, 2_048)));
    // Long ones that have ended, whose ids a caller chose: their lists go, the oldest first, and they stay.
    for n in 0..8 {
        let operation = chosen(n);
        ledger.claim(from_ref(&operation), 0);
        ledger.end(&[ended(&operation, false, &operation.text)], 0);
        ledger = unpack(&fits(&ledger).expect("there is room")).unwrap();
    }
    let text = |ledger: &OperationLedger, n: u64| ledger.find_request("a", Uuid::from_u128(n.into())).unwrap();
    assert_eq!(text(&ledger, 0), b"short0");
    assert!(text(&ledger, 7).len() > 2_000, "the newest is whole");

    // Ids that nobody chose, and free ones, are forgotten before anything is refused.
    let mut own = running("a", Uuid::nil(), &noise(100, 1_024));
    own.request_id = own.operation_id;
    ledger.claim(from_ref(&own), 0);
    ledger.end(&[ended(&own, false, &own.text)], 0);
    for n in 200..1_000 {
        let mut more = ledger.clone();
        more.claim(&[running("a", Uuid::from_u128(n), "run")], 0);
        let Some(packed) = fits(&more) else {
            assert!(ledger.find("a", own.operation_id).is_none(), "it gave way");
            assert_eq!(text(&ledger, 0), b"short0", "an id that was chosen stays");
            let repeat = running("a", Uuid::from_u128(0), "repeat");
            assert!(ledger.claim(&[repeat], 0)[0].is_some(), "and is found without any room");
            return;
        };
        ledger = unpack(&packed).unwrap();
    }
    panic!("it is never full");
}

#[test]
fn a_day_later_an_id_is_forgotten() {
    let mut ledger = OperationLedger::default();
    let operation = running("a", Uuid::new_v4(), "x");
    ledger.claim(from_ref(&operation), 1_000);
    ledger.forget(1_999, 1_000);
    assert!(ledger.find("a", operation.operation_id).is_some());
    ledger.forget(2_000, 1_000);
    assert_eq!(ledger, OperationLedger::default());
}

/// How many operations of a usual size have their place.
#[test]
fn some_thousand_ids_of_requests_fit() {
    let mut ledger = OperationLedger::default();
    for n in 0..4_000_u64 {
        let id = Uuid::new_v4();
        let text = json!({ "operation_id": Uuid::now_v7(), "request_id": id, "owner": noise(1, 64)[..32],
            "digest": noise(n, 64)[..32], "scope": "include_customers", "customers": "", "customer_count": 1,
            "is_cut": true, "services": "advanced_ap", "reason": "", "sent_at": 1_700_000_000_000_u64 + n,
            "end": { "outcome": "applied", "at": 1_700_000_000_100_u64 + n, "calls": 1 } });
        let operation = running(&noise(1, 64)[..32], id, &text.to_string());
        ledger.claim(&[ended(&operation, false, &operation.text)], n);
    }
    let packed = pack(ledger, usize::MAX, |_| None).unwrap();
    assert!(packed.len() < MOST_BYTES, "{} bytes", packed.len());
}
