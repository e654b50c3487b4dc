//! Where replicas share their operations: beside the record of tokens, over the same connection, and never in it.
//!
//! What stands there is the business of [`crate::operations`]; here it is a text under the id of a request, which one
//! operation at a time holds. A store for one gateway has no such place: the audit trail is enough there.

use uuid::Uuid;

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
    pub text: Vec<u8>,
}

impl TokenStore {
    /// The place beside the record, where replicas share one.
    pub(in crate::token) fn operations(&self) -> Option<OperationStore> {
        match self {
            Self::File(_) => None,
            #[cfg(feature = "redis-store")]
            Self::Redis(store) => Some(OperationStore(Kind::Redis(store.clone()))),
            #[cfg(feature = "kubernetes-store")]
            Self::Kubernetes(_) => None,
        }
    }
}

impl OperationStore {
    /// Puts these there, each if no other operation holds its id; the holders of the others. One step for all of them,
    /// durable when it returns. An error leaves open whether they are there.
    pub(crate) async fn claim(
        &self,
        operations: &[StoredOperation],
        remembered_ms: u64,
    ) -> Result<Vec<Option<Uuid>>, Error> {
        match &self.0 {
            #[cfg(feature = "redis-store")]
            Kind::Redis(store) => store.claim_operations(operations, remembered_ms).await,
        }
    }

    /// Replaces the texts of these, as far as they are there still, and frees the ids of those that are free.
    pub(crate) async fn end(&self, operations: &[StoredOperation]) -> Result<(), Error> {
        match &self.0 {
            #[cfg(feature = "redis-store")]
            Kind::Redis(store) => store.end_operations(operations).await,
        }
    }

    /// The last operation with this id of a request.
    pub(crate) async fn find_request(&self, owner: &str, request_id: Uuid) -> Result<Option<Vec<u8>>, Error> {
        match &self.0 {
            #[cfg(feature = "redis-store")]
            Kind::Redis(store) => store.find_request(owner, request_id).await,
        }
    }

    /// The operation of this id.
    pub(crate) async fn find(&self, owner: &str, operation_id: Uuid) -> Result<Option<Vec<u8>>, Error> {
        match &self.0 {
            #[cfg(feature = "redis-store")]
            Kind::Redis(store) => store.find_operation(owner, operation_id).await,
        }
    }

    /// The operations of this caller before this one, newest first.
    pub(crate) async fn list(&self, owner: &str, before: Option<Uuid>, most: usize) -> Result<Vec<Vec<u8>>, Error> {
        match &self.0 {
            #[cfg(feature = "redis-store")]
            Kind::Redis(store) => store.list_operations(owner, before, most).await,
        }
    }
}
