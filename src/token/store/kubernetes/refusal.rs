//! What the API server's refusals mean, each with what to change.

use kube::core::response::Status;

use super::{ApiStatus, KubernetesStore};
use crate::token::store::Error;

impl KubernetesStore {
    /// What a refusal means, in words that say what to change.
    pub(super) fn refused(&self, action: &'static str, verb: &'static str, answer: ApiStatus) -> Error {
        let Self { namespace, name, .. } = self;
        let denial = answer.denial.as_deref().unwrap_or("the API server forbids it (403)");
        let hint = match answer.code {
            401 => "the API server does not accept the gateway's credentials (401): in a pod, the service account's \
                    token must be mounted (automountServiceAccountToken: true) and the account must exist"
                .to_owned(),
            403 if denial.contains("exceeded quota") => format!(
                "{denial}. No right is missing: raise that ResourceQuota of namespace {namespace:?}, or delete what is \
                 not needed there; the gateway goes on by itself"
            ),
            403 if denial.ends_with("denied it") => format!(
                "{denial}. No right is missing: whoever runs that admission policy must let the gateway write the Secret \
                 {name:?} in namespace {namespace:?}"
            ),
            403 if denial.contains("is being terminated") => {
                format!("{denial}. The namespace {namespace:?} is being deleted: the gateway needs another one")
            }
            403 if verb == "create" => format!(
                "{denial}. Grant the gateway's service account `create` on `secrets` in namespace {namespace:?} (it cannot \
                 be limited by resourceNames), or create an empty Secret {name:?} there and leave `create` out"
            ),
            403 => format!(
                "{denial}. Grant the gateway's service account `get` and `update` on `secrets` in namespace {namespace:?}, \
                 limited by resourceNames to {name:?}: `{verb}` is missing"
            ),
            404 if answer.is(404) => {
                format!("the namespace {namespace:?} does not exist (404): see token_store.namespace")
            }
            // Too many requests: it passes.
            429 => return self.unavailable(action, answer.into()),
            code => format!("the API server refuses to {verb} it ({code} {})", answer.reason),
        };
        Error::Refused { store: self.to_string(), action, hint }
    }
}

impl ApiStatus {
    /// Takes the server's words only where they cannot repeat the request: what forbids it is said by the API server
    /// itself, or by an admission controller, which has seen the tokens and is named but not quoted.
    pub(super) fn new(code: u16, told: Status) -> Self {
        let denial = match told.message.find(" denied ") {
            _ if code != 403 || told.message.is_empty() => None,
            Some(end) => Some(format!("{} denied it", &told.message[..end])),
            None => Some(told.message),
        };
        Self { code, reason: told.reason, denial }
    }

    /// Whether the API server itself says so: a 404 of a proxy on the way does not mean that there is no record.
    pub(super) fn is(&self, code: u16) -> bool {
        let is_its_own = matches!(&*self.reason, "NotFound" | "Conflict" | "AlreadyExists");
        self.code == code && is_its_own
    }
}
