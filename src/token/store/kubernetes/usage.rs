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

impl KubernetesStore {
    pub(in crate::token::store) fn usage_place(&self) -> String {
        self.beside().to_string()
    }

    pub(in crate::token::store) async fn usage(&self) -> Result<StoredUsage, Error> {
        let secret = self.beside().found("be read").await?;
        Ok(StoredUsage {
            secret: secret.clone().map(Box::new),
            ..StoredUsage::at(wall_clock(), secret.as_ref().and_then(text))
        })
    }

    pub(in crate::token::store) async fn put_usage(
        &self,
        read: &StoredUsage,
        new: Vec<u8>,
    ) -> Result<UsageWrite, Error> {
        let beside = self.beside();
        let (verb, sent) = match read.secret.as_deref() {
            None => ("create", beside.send(beside.secrets.create(&written_by_us(), json(&beside.empty(&new)))).await),
            // It carries the `resourceVersion` that was read, and whatever else stands in it.
            Some(secret) => {
                let mut secret = secret.clone();
                secret.data.get_or_insert_default().insert(USAGE_KEY.to_owned(), ByteString(new.clone()));
                let replace = beside.secrets.replace(&beside.name, &written_by_us(), json(&secret));
                ("update", beside.send(replace).await)
            }
        };
        let action = "be written";
        match sent {
            Ok(_) => Ok(UsageWrite::Stored),
            // Somebody between us and the API server may have sent it twice.
            Err(ApiFault::Refused(answer)) if answer.is(409) => match beside.found(action).await {
                Ok(now) if now.as_ref().and_then(text) == Some(new) => Ok(UsageWrite::Stored),
                Ok(_) => Ok(UsageWrite::Conflict),
                Err(error) => Ok(UsageWrite::Unclear(error)),
            },
            Err(ApiFault::Refused(answer)) if answer.is(404) && verb == "update" => Ok(UsageWrite::Conflict),
            Err(ApiFault::Refused(answer)) => Err(beside.refused(action, verb, answer)),
            Err(ApiFault::Unclear(cause)) => Ok(UsageWrite::Unclear(beside.unavailable(action, cause))),
        }
    }

    /// The same cluster, the other Secret.
    fn beside(&self) -> Self {
        Self { name: format!("{}-usage", self.name), ..self.clone() }
    }

    async fn found(&self, action: &'static str) -> Result<Option<Secret>, Error> {
        match self.send(self.secrets.get(&self.name, &GetParams::default())).await {
            Ok(secret) => Ok(Some(secret)),
            Err(ApiFault::Refused(answer)) if answer.is(404) => Ok(None),
            Err(ApiFault::Refused(answer)) => Err(self.refused(action, "get", answer)),
            Err(ApiFault::Unclear(cause)) => Err(self.unavailable(action, cause)),
        }
    }

    fn empty(&self, new: &[u8]) -> Secret {
        let text = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        let labels = [("app.kubernetes.io/managed-by", "license-gateway"), ("velero.io/exclude-from-backup", "true")];
        let description = "How many customers the callers of license-gateway touched within the hour. No tokens.";
        Secret {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                namespace: Some(self.namespace.clone()),
                labels: Some(BTreeMap::from(labels.map(text))),
                annotations: Some(BTreeMap::from([("kubernetes.io/description", description)].map(text))),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(USAGE_KEY.to_owned(), ByteString(new.to_vec()))])),
            type_: Some("Opaque".to_owned()),
            ..Secret::default()
        }
    }
}

fn text(secret: &Secret) -> Option<Vec<u8>> {
    secret.data.as_ref()?.get(USAGE_KEY).map(|value| value.0.clone())
}
