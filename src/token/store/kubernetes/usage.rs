//! The customers of the hour in a Secret beside the record's, `NAME-usage`: nothing secret, but so the gateway needs
//! no rights on another kind of object. Compared by `resourceVersion`, counted by our own clock.

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::core::params::GetParams;

use super::{ApiFault, KubernetesStore, json, written_by_us};
use crate::token::{
    failpoints::wall_clock,
    store::{
        Error,
        usage::{StoredUsage, UsageWrite},
    },
};

/// The key in the Secret's data.
const USAGE_KEY: &str = "usage.json";
/// The Secret's name has this behind the record's.
const USAGE_SUFFIX: &str = "usage";
const USAGE_DESCRIPTION: &str = "How many customers the callers of license-gateway touched within the hour. No tokens.";

/// What stands in a Secret beside the record's.
pub(super) struct Beside {
    pub(super) key: &'static str,
    pub(super) description: &'static str,
}

impl KubernetesStore {
    pub(in crate::token::store) fn usage_place(&self) -> String {
        self.beside(USAGE_SUFFIX).to_string()
    }

    pub(in crate::token::store) async fn usage(&self) -> Result<StoredUsage, Error> {
        let secret = self.beside(USAGE_SUFFIX).found("be read").await?;
        Ok(StoredUsage {
            secret: secret.clone().map(Box::new),
            ..StoredUsage::at(wall_clock(), secret.as_ref().and_then(|secret| value(secret, USAGE_KEY)))
        })
    }

    pub(in crate::token::store) async fn put_usage(
        &self,
        read: &StoredUsage,
        new: Vec<u8>,
    ) -> Result<UsageWrite, Error> {
        let place = Beside { key: USAGE_KEY, description: USAGE_DESCRIPTION };
        self.beside(USAGE_SUFFIX).put_beside(read.secret.as_deref(), new, place).await
    }

    /// Puts a value into this Secret, if it still is what was read.
    pub(super) async fn put_beside(
        &self,
        read: Option<&Secret>,
        new: Vec<u8>,
        place: Beside,
    ) -> Result<UsageWrite, Error> {
        let (verb, sent) = match read {
            None => {
                let secret = json(&self.made(&new, &place));
                ("create", self.send(self.secrets.create(&written_by_us(), secret)).await)
            }
            // It carries the `resourceVersion` that was read, and whatever else stands in it.
            Some(secret) => {
                let mut secret = secret.clone();
                secret.data.get_or_insert_default().insert(place.key.to_owned(), ByteString(new.clone()));
                let replace = self.secrets.replace(&self.name, &written_by_us(), json(&secret));
                ("update", self.send(replace).await)
            }
        };
        let action = "be written";
        match sent {
            Ok(_) => Ok(UsageWrite::Stored),
            // Somebody between us and the API server may have sent it twice.
            Err(ApiFault::Refused(answer)) if answer.is(409) => match self.found(action).await {
                Ok(Some(now)) if value(&now, place.key) == Some(new) => Ok(UsageWrite::Stored),
                Ok(_) => Ok(UsageWrite::Conflict),
                Err(error) => Ok(UsageWrite::Unclear(error)),
            },
            Err(ApiFault::Refused(answer)) if answer.is(404) && verb == "update" => Ok(UsageWrite::Conflict),
            Err(ApiFault::Refused(answer)) => Err(self.refused(action, verb, answer)),
            Err(ApiFault::Unclear(cause)) => Ok(UsageWrite::Unclear(self.unavailable(action, cause))),
        }
    }

    /// The same cluster, another Secret: the record's name and this behind it.
    pub(super) fn beside(&self, suffix: &str) -> Self {
        Self { name: format!("{}-{suffix}", self.name), ..self.clone() }
    }

    pub(super) async fn found(&self, action: &'static str) -> Result<Option<Secret>, Error> {
        match self.send(self.secrets.get(&self.name, &GetParams::default())).await {
            Ok(secret) => Ok(Some(secret)),
            Err(ApiFault::Refused(answer)) if answer.is(404) => Ok(None),
            Err(ApiFault::Refused(answer)) => Err(self.refused(action, "get", answer)),
            Err(ApiFault::Unclear(cause)) => Err(self.unavailable(action, cause)),
        }
    }

    fn made(&self, new: &[u8], place: &Beside) -> Secret {
        let text = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        let labels = [("app.kubernetes.io/managed-by", "license-gateway"), ("velero.io/exclude-from-backup", "true")];
        Secret {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                namespace: Some(self.namespace.clone()),
                labels: Some(BTreeMap::from(labels.map(text))),
                annotations: Some(BTreeMap::from([("kubernetes.io/description", place.description)].map(text))),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(place.key.to_owned(), ByteString(new.to_vec()))])),
            type_: Some("Opaque".to_owned()),
            ..Secret::default()
        }
    }
}

fn value(secret: &Secret, key: &str) -> Option<Vec<u8>> {
    secret.data.as_ref()?.get(key).map(|value| value.0.clone())
}
