//! Where replicas share their operations: beside the record of tokens, over the same connection, and never in it.
//!
//! What stands there is the business of [`crate::operations`]; here it is a text under the id of a request, which one
//! operation at a time holds. A store for one gateway has no such place: the audit trail is enough there.

use uuid::Uuid;

#[cfg(feature = "kubernetes-store")]
use super::kubernetes::KubernetesOperations;
#[cfg(feature = "redis-store")]
use super::redis::RedisStore;
use super::{Error, TokenStore};

/// The place of operations in a token store that replicas share.
#[derive(Debug, Clone)]
pub(crate) struct OperationStore(Kind);

#[derive(Debug, Clone)]
enum Kind {
    /// `redis`.
    #[cfg(feature = "redis-store")]
    Redis(RedisStore),
    /// `kubernetes`.
    #[cfg(feature = "kubernetes-store")]
    Kubernetes(KubernetesOperations),
}

/// How operations are kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keeping {
    /// For how long.
    pub remembered_ms: u64,
    /// A text without what may be left out, where there is little room.
    #[cfg_attr(not(feature = "kubernetes-store"), allow(dead_code))]
    pub shorten: fn(&[u8]) -> Option<Vec<u8>>,
}

/// An operation as it is stored.
#[derive(Debug, Clone)]
pub(crate) struct StoredOperation {
    /// Its caller: letters and digits.
    pub owner: String,
    pub request_id: Uuid,
    pub operation_id: Uuid,
    /// Whether another operation may hold its id.
    pub is_free: bool,
    /// Whether it has ended.
    #[cfg_attr(not(feature = "kubernetes-store"), allow(dead_code))]
    pub is_over: bool,
    /// Its process has ended, and knows less of its end than may stand there: an end that stands there stays.
    pub is_surmised: bool,
    pub text: String,
}

impl TokenStore {
    /// The place beside the record, where replicas share one.
    pub(in crate::token) fn operations(&self) -> Option<OperationStore> {
        match self {
            Self::File(_) => None,
            #[cfg(feature = "redis-store")]
            Self::Redis(store) => Some(OperationStore(Kind::Redis(store.clone()))),
            #[cfg(feature = "kubernetes-store")]
            Self::Kubernetes(store) => Some(OperationStore(Kind::Kubernetes(KubernetesOperations::new(store)))),
        }
    }
}

impl OperationStore {
    /// Puts these there, each if no other operation holds its id; the holders of the others. One step for all of them,
    /// durable when it returns. An error leaves open whether they are there.
    pub(crate) async fn claim(
        &self,
        operations: &[StoredOperation],
        keeping: Keeping,
    ) -> Result<Vec<Option<Uuid>>, Error> {
        match &self.0 {
            #[cfg(feature = "redis-store")]
            Kind::Redis(store) => store.claim_operations(operations, keeping.remembered_ms).await,
            #[cfg(feature = "kubernetes-store")]
            Kind::Kubernetes(store) => store.claim(operations, keeping).await,
        }
    }

    /// Replaces the texts of these, as far as they are there still, and frees the ids of those that are free. A claim of
    /// one of those that comes only then holds nothing.
    pub(crate) async fn end(&self, operations: &[StoredOperation], keeping: Keeping) -> Result<(), Error> {
        match &self.0 {
            #[cfg(feature = "redis-store")]
            Kind::Redis(store) => store.end_operations(operations, keeping.remembered_ms).await,
            #[cfg(feature = "kubernetes-store")]
            Kind::Kubernetes(store) => store.end(operations, keeping).await,
        }
    }

    /// The last operation with this id of a request.
    pub(crate) async fn find_request(&self, owner: &str, request_id: Uuid) -> Result<Option<Vec<u8>>, Error> {
        match &self.0 {
            #[cfg(feature = "redis-store")]
            Kind::Redis(store) => store.find_request(owner, request_id).await,
            #[cfg(feature = "kubernetes-store")]
            Kind::Kubernetes(store) => store.find_request(owner, request_id).await,
        }
    }

    /// The operation of this id.
    pub(crate) async fn find(&self, owner: &str, operation_id: Uuid) -> Result<Option<Vec<u8>>, Error> {
        match &self.0 {
            #[cfg(feature = "redis-store")]
            Kind::Redis(store) => store.find_operation(owner, operation_id).await,
            #[cfg(feature = "kubernetes-store")]
            Kind::Kubernetes(store) => store.find(owner, operation_id).await,
        }
    }

    /// The operations of this caller before this one, newest first.
    pub(crate) async fn list(&self, owner: &str, before: Option<Uuid>, most: usize) -> Result<Vec<Vec<u8>>, Error> {
        match &self.0 {
            #[cfg(feature = "redis-store")]
            Kind::Redis(store) => store.list_operations(owner, before, most).await,
            #[cfg(feature = "kubernetes-store")]
            Kind::Kubernetes(store) => store.list(owner, before, most).await,
        }
    }
}

/// What every store of operations keeps to.
#[cfg(test)]
pub(super) mod conformance {
    use super::*;

    pub(in crate::token::store) const KEEPING: Keeping = Keeping { remembered_ms: 60_000, shorten };

    /// The texts of these tests are a short one and a long one.
    fn shorten(text: &[u8]) -> Option<Vec<u8>> {
        text.split(|byte| *byte == b' ').next().map(<[u8]>::to_vec)
    }

    /// An operation that runs.
    pub(in crate::token::store) fn running(owner: &str, request_id: Uuid, text: &str) -> StoredOperation {
        StoredOperation {
            owner: owner.to_owned(),
            request_id,
            operation_id: Uuid::now_v7(),
            is_free: false,
            is_over: false,
            is_surmised: false,
            text: text.to_owned(),
        }
    }

    /// It ended, and did something or nothing.
    pub(in crate::token::store) fn ended(operation: &StoredOperation, is_free: bool, text: &str) -> StoredOperation {
        StoredOperation { is_free, is_over: true, text: text.to_owned(), ..operation.clone() }
    }

    pub(in crate::token::store) async fn holds(store: &OperationStore) {
        an_id_is_held_until_it_is_freed(store).await;
        a_claim_that_comes_after_the_end_holds_nothing(store).await;
        what_is_surmised_replaces_no_end(store).await;
        callers_and_pages(store).await;
    }

    async fn claim(store: &OperationStore, operations: &[StoredOperation]) -> Vec<Option<Uuid>> {
        store.claim(operations, KEEPING).await.unwrap()
    }

    async fn found(store: &OperationStore, owner: &str, request_id: Uuid) -> Option<String> {
        let text = store.find_request(owner, request_id).await.unwrap();
        text.map(|text| String::from_utf8(text).unwrap())
    }

    async fn an_id_is_held_until_it_is_freed(store: &OperationStore) {
        let (id, other_id) = (Uuid::new_v4(), Uuid::new_v4());
        let [first, second, third] = [0, 1, 2].map(|n| running("a", id, &format!("run-{n}")));
        let beside = running("a", other_id, "beside");
        let of_b = running("b", id, "of-b");
        assert_eq!(claim(store, std::slice::from_ref(&first)).await, [None]);
        // One step for all: what is free is taken although another one is held; another caller's id is another id.
        let group = [second.clone(), beside.clone(), of_b.clone()];
        assert_eq!(claim(store, &group).await, [Some(first.operation_id), None, None]);
        // A second call of the same operation.
        let again = StoredOperation { text: "again".to_owned(), ..first.clone() };
        assert_eq!(claim(store, &[again]).await, [None]);
        assert_eq!(found(store, "a", id).await.as_deref(), Some("again"));

        store.end(&[ended(&first, true, "freed")], KEEPING).await.unwrap();
        assert_eq!(found(store, "a", id).await.as_deref(), Some("freed"));
        assert_eq!(claim(store, std::slice::from_ref(&third)).await, [None]);
        store.end(&[ended(&third, false, "applied"), ended(&beside, false, "applied too")], KEEPING).await.unwrap();
        assert_eq!(found(store, "a", id).await.as_deref(), Some("applied"));
        let late = running("a", id, "late");
        assert_eq!(claim(store, &[late]).await, [Some(third.operation_id)], "held for the day");
        assert_eq!(found(store, "b", id).await.as_deref(), Some("of-b"));
        assert_eq!(found(store, "c", id).await, None);
    }

    async fn a_claim_that_comes_after_the_end_holds_nothing(store: &OperationStore) {
        let id = Uuid::new_v4();
        let [late, next] = [0, 1].map(|n| running("late", id, &format!("run-{n}")));
        // Its claim was given up for lost, and still is on its way.
        store.end(&[ended(&late, true, "freed")], KEEPING).await.unwrap();
        assert_eq!(claim(store, std::slice::from_ref(&late)).await, [Some(late.operation_id)]);
        assert_eq!(claim(store, std::slice::from_ref(&next)).await, [None]);
        store.end(&[ended(&next, true, "freed")], KEEPING).await.unwrap();
        // And once more, after others held the id.
        assert_eq!(claim(store, std::slice::from_ref(&late)).await, [Some(late.operation_id)]);
        assert_eq!(claim(store, &[running("late", id, "run-2")]).await, [None]);
        // An end that says more than nothing, of an operation that is not there, is left alone.
        let lost = running("late", Uuid::new_v4(), "run");
        store.end(&[ended(&lost, false, "unknown")], KEEPING).await.unwrap();
        assert_eq!(found(store, "late", lost.request_id).await, None);
    }

    async fn what_is_surmised_replaces_no_end(store: &OperationStore) {
        for is_free in [true, false] {
            let (ended_before, open) = (running("s", Uuid::new_v4(), "run"), running("s", Uuid::new_v4(), "run"));
            claim(store, &[ended_before.clone(), open.clone()]).await;
            store.end(&[ended(&ended_before, is_free, "told")], KEEPING).await.unwrap();
            let surmised = |of| StoredOperation { is_surmised: true, ..ended(of, false, "crashed") };
            store.end(&[surmised(&ended_before), surmised(&open)], KEEPING).await.unwrap();
            assert_eq!(found(store, "s", ended_before.request_id).await.as_deref(), Some("told"));
            assert_eq!(found(store, "s", open.request_id).await.as_deref(), Some("crashed"));
            // Its process lives after all.
            store.end(&[ended(&open, is_free, "told")], KEEPING).await.unwrap();
            assert_eq!(found(store, "s", open.request_id).await.as_deref(), Some("told"));
        }
    }

    async fn callers_and_pages(store: &OperationStore) {
        let mut operations: Vec<_> = (0..5).map(|n| running("pages", Uuid::new_v4(), &format!("run-{n}"))).collect();
        operations.sort_by_key(|operation| operation.operation_id);
        claim(store, &operations).await;
        let texts =
            |page: Vec<Vec<u8>>| page.into_iter().map(|text| String::from_utf8(text).unwrap()).collect::<Vec<_>>();
        let newest_first: Vec<_> = operations.iter().rev().map(|operation| operation.text.clone()).collect();
        assert_eq!(texts(store.list("pages", None, 3).await.unwrap()), newest_first[..3]);
        let before = operations[2].operation_id;
        assert_eq!(texts(store.list("pages", Some(before), 9).await.unwrap()), newest_first[3..]);
        assert_eq!(store.list("others", None, 9).await.unwrap().len(), 0);
        let one = operations[0].operation_id;
        assert_eq!(store.find("pages", one).await.unwrap(), Some(operations[0].text.clone().into_bytes()));
        assert_eq!(store.find("others", one).await.unwrap(), None);
    }
}
