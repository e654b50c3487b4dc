//! The record in one Kubernetes Secret: for replicas in a cluster, with nothing else to run.
//!
//! A write carries the `resourceVersion` that was read, and the API server refuses it if the Secret has changed since.
//! Every write also carries an id of its own and that of the record it replaces: after an answer that never came, they
//! tell what happened. No release owns the Secret, so that no upgrade or rollback puts an old token back.
//!
//! The client library prints whole answers when it cannot read them. Its typed calls are therefore not used, and what
//! it logs is dropped: an answer of this API is a refresh token.

#[cfg(test)]
#[path = "../../../tests/api/api_server.rs"]
mod api_server;
mod operations;
mod refusal;
#[cfg(test)]
mod tests;
mod usage;

use std::{
    collections::BTreeMap,
    error::Error as StdError,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use data_encoding::HEXLOWER;
use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Client, Config,
    client::{AuthError, Body},
    config::{InClusterError, KubeConfigOptions, KubeconfigError},
    core::{
        Request, Resource as _,
        params::{GetParams, PostParams},
        response::Status,
    },
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;
use tracing::{Dispatch, instrument::WithSubscriber as _};
use uuid::Uuid;

pub(super) use self::operations::KubernetesOperations;
use super::{
    Error, LoadedRecord, Swap, TokenRecord, Unreadable, Version,
    sealed::{CHECKSUM_DIFFERS, place, read_record},
};
use crate::config;

/// The key in the Secret's data that holds the record.
const RECORD_KEY: &str = "token.json";
/// Where a damaged one is kept when another takes its place: for people only.
const DAMAGED_KEY: &str = "token.damaged.json";
/// An API server that is there accepts a connection at once.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// The API server's own bound on a write is longer, but a refresh waits for us.
const API_ANSWER_WITHIN: Duration = Duration::from_secs(5);
type BoxError = Box<dyn StdError + Send + Sync>;

/// The record in a Secret.
#[derive(Clone)]
pub(crate) struct KubernetesStore {
    client: Client,
    secrets: Request,
    namespace: String,
    name: String,
    answer_within: Duration,
    /// What was read last: the write that follows need not read it again, for its time is short.
    last: Arc<Mutex<Option<FoundSecret>>>,
}

/// The Secret as it was read.
#[derive(Clone)]
struct FoundSecret {
    secret: Secret,
    resource_version: String,
    entry: Result<Option<FoundRecord>, Unreadable>,
}

/// A record that was read, and the writes around it.
#[derive(Clone)]
struct FoundRecord {
    record: TokenRecord,
    write: Uuid,
    replaces: Option<Uuid>,
}

/// The value of the key: the record's own JSON, guarded by a checksum.
#[derive(Serialize, Deserialize)]
struct SecretEntry {
    /// Over the rest, with exactly the bytes of `record`.
    sha256: String,
    /// Differs for every write.
    write: Uuid,
    /// The write whose record this one replaced.
    replaces: Option<Uuid>,
    record: String,
}

/// Why a request did not do what it should.
#[derive(Debug)]
enum ApiFault {
    /// The API server refused it: surely nothing was written.
    Refused(ApiStatus),
    /// Whether it was done is not known.
    Unclear(BoxError),
}

/// An answer other than success.
#[derive(Debug, thiserror::Error)]
#[error("the API server answered {code} {reason}")]
struct ApiStatus {
    code: u16,
    reason: String,
    /// What the API server says about permissions.
    denial: Option<String>,
}

#[derive(Debug, thiserror::Error)]
#[error("no answer within {0:?}")]
struct TimedOut(Duration);

impl KubernetesStore {
    /// Prepares the store, with the pod's service account or else, outside a cluster, with the kubeconfig. The API
    /// server need not be there yet.
    pub(crate) async fn open(settings: &config::KubernetesSettings) -> Result<Self, Error> {
        Self::with_config(settings, discover(&settings.name).await?)
    }

    /// Prepares the store on the API server of a configuration.
    fn with_config(settings: &config::KubernetesSettings, mut config: Config) -> Result<Self, Error> {
        config.connect_timeout = Some(CONNECT_WITHIN);
        // A write that is repeated behind our back after an unclear answer would meet itself and look like a conflict.
        config.default_retry = false;
        let namespace = settings.namespace.clone().unwrap_or_else(|| config.default_namespace.trim().to_owned());
        let secrets = Request::new(Secret::url_path(&(), Some(&namespace)));
        let name = settings.name.clone();
        let client = Client::try_from(config).map_err(|error| Error::Unavailable {
            store: format!("Secret {namespace}/{name}"),
            action: "be prepared",
            source: printable(error),
        })?;
        Ok(Self { client, secrets, namespace, name, answer_within: API_ANSWER_WITHIN, last: Arc::default() })
    }

    /// The record as it stands.
    pub(crate) async fn load(&self) -> Result<LoadedRecord, Error> {
        let found = self.find("be read").await?;
        let version = version(found.as_ref());
        self.last().clone_from(&found);
        match found.map_or(Ok(None), |found| found.entry) {
            Ok(entry) => Ok(LoadedRecord { version, record: entry.map(|entry| entry.record) }),
            Err(unreadable) => Err(self.unusable(&unreadable, version)),
        }
    }

    /// Replaces the record if it is still the one of `version`. The Secret's other keys, its labels and annotations
    /// stay as they are.
    pub(crate) async fn cas(&self, version: Version, record: TokenRecord) -> Result<Swap, Error> {
        let action = "be written";
        let read = self.last().take().filter(|found| found.version() == version);
        let found = if read.is_some() { read } else { self.find(action).await? };
        if self::version(found.as_ref()) != version {
            return Ok(Swap::Conflict);
        }
        let base = found.as_ref().map(|found| found.resource_version.clone());
        let replaces = found.as_ref().and_then(FoundSecret::write);
        if let Some(FoundSecret { entry: Err(unreadable), .. }) = &found
            && !unreadable.is_damaged
        {
            return Err(self.unusable(unreadable, version));
        }
        let write = Uuid::new_v4();
        let value = write_entry(write, replaces, &record);
        let (verb, sent) = match found {
            None => ("create", self.create(value, &written_by_us()).await),
            Some(found) => ("update", self.replace(found, value).await),
        };
        match sent {
            Ok(secret) => Ok(Swap::Stored(version_of(&resource_version(&secret)?, Some(write)))),
            // Somebody between us and the API server may have sent it twice.
            Err(ApiFault::Refused(answer)) if answer.is(409) => match self.find(action).await {
                Ok(Some(now)) if now.write() == Some(write) => Ok(Swap::Stored(now.version())),
                _ => Ok(Swap::Conflict),
            },
            Err(ApiFault::Refused(answer)) if answer.is(404) && verb == "update" => Ok(Swap::Conflict),
            Err(ApiFault::Refused(answer)) => Err(self.refused(action, verb, answer)),
            Err(ApiFault::Unclear(cause)) => match self.find(action).await {
                Ok(Some(now)) if now.write() == Some(write) => Ok(Swap::Stored(now.version())),
                Ok(Some(now)) if now.excludes(base.as_deref(), replaces) => Ok(Swap::Conflict),
                // It may still be on its way.
                _ => Err(self.unavailable(action, cause)),
            },
        }
    }

    /// Asks whether a write would be let in, and writes nothing.
    pub(crate) async fn rehearse(&self) -> Result<(), Error> {
        let action = "be written";
        let dry = PostParams { dry_run: true, ..written_by_us() };
        let (verb, sent) = match self.find(action).await? {
            None => ("create", self.create(Vec::new(), &dry).await),
            Some(FoundSecret { secret, .. }) => {
                ("update", self.send(self.secrets.replace(&self.name, &dry, json(&secret))).await)
            }
        };
        match sent {
            // Somebody has just written it, so it can be written.
            Err(ApiFault::Refused(answer)) if answer.is(409) => Ok(()),
            Err(ApiFault::Refused(answer)) => Err(self.refused(action, verb, answer)),
            Err(ApiFault::Unclear(cause)) => Err(self.unavailable(action, cause)),
            Ok(_) => Ok(()),
        }
    }

    fn last(&self) -> MutexGuard<'_, Option<FoundSecret>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn find(&self, action: &'static str) -> Result<Option<FoundSecret>, Error> {
        let secret = match self.send(self.secrets.get(&self.name, &GetParams::default())).await {
            Ok(secret) => secret,
            Err(ApiFault::Refused(answer)) if answer.is(404) => return Ok(None),
            Err(ApiFault::Refused(answer)) => return Err(self.refused(action, "get", answer)),
            Err(ApiFault::Unclear(cause)) => return Err(self.unavailable(action, cause)),
        };
        let entry = secret.data.as_ref().and_then(|data| data.get(RECORD_KEY));
        let entry = entry.map(|value| read_entry(&value.0)).transpose();
        Ok(Some(FoundSecret { resource_version: resource_version(&secret)?, secret, entry }))
    }

    async fn create(&self, value: Vec<u8>, how: &PostParams) -> Result<Secret, ApiFault> {
        let text = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        let labels = [
            ("app.kubernetes.io/managed-by", "license-gateway"),
            // The backup tool that most clusters run listens to this.
            ("velero.io/exclude-from-backup", "true"),
        ];
        let description = "The live OAuth tokens of license-gateway. They change with every refresh and an old one is \
                           worth nothing: no release owns this Secret, and it must not be restored from a backup.";
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                namespace: Some(self.namespace.clone()),
                labels: Some(BTreeMap::from(labels.map(text))),
                annotations: Some(BTreeMap::from([("kubernetes.io/description", description)].map(text))),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(RECORD_KEY.to_owned(), ByteString(value))])),
            type_: Some("Opaque".to_owned()),
            ..Secret::default()
        };
        self.send(self.secrets.create(how, json(&secret))).await
    }

    /// `secret` carries the `resourceVersion` that was read.
    async fn replace(
        &self,
        FoundSecret { mut secret, entry, .. }: FoundSecret,
        value: Vec<u8>,
    ) -> Result<Secret, ApiFault> {
        let data = secret.data.get_or_insert_default();
        let before = data.insert(RECORD_KEY.to_owned(), ByteString(value));
        if let (Err(_), Some(damaged)) = (entry, before) {
            data.insert(DAMAGED_KEY.to_owned(), damaged);
        }
        self.send(self.secrets.replace(&self.name, &written_by_us(), json(&secret))).await
    }

    /// One request, one answer: within the time an answer may take.
    async fn send(
        &self,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<Secret, ApiFault> {
        let request = request.map_err(|error| ApiFault::Unclear(error.into()))?.map(Body::from);
        let exchange = async {
            let answer = self.client.send(request).await?;
            let status = answer.status();
            Ok((status, answer.into_body().collect_bytes().await?))
        };
        let (status, body) = match timeout(self.answer_within, exchange.with_subscriber(Dispatch::none())).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(ApiFault::Unclear(printable(error))),
            Err(_) => return Err(ApiFault::Unclear(TimedOut(self.answer_within).into())),
        };
        if status.is_success() {
            // Where, but not what: the parser quotes what it does not like.
            return serde_json::from_slice(&body).map_err(|error| {
                ApiFault::Unclear(
                    format!("the answer is no Secret (line {}, column {})", error.line(), error.column()).into(),
                )
            });
        }
        // A proxy on the way answers in whatever form it likes.
        let told: Status = serde_json::from_slice(&body).unwrap_or_default();
        let answer = ApiStatus::new(status.as_u16(), told);
        // 408 and 5xx come after the request was taken in hand.
        let is_refusal = status.is_client_error() && status != http::StatusCode::REQUEST_TIMEOUT;
        Err(if is_refusal { ApiFault::Refused(answer) } else { ApiFault::Unclear(answer.into()) })
    }

    fn unavailable(&self, action: &'static str, source: BoxError) -> Error {
        Error::Unavailable { store: self.to_string(), action, source }
    }

    fn unusable(&self, unreadable: &Unreadable, version: Version) -> Error {
        let unusable = Error::UnusableSecret { secret: self.to_string(), problem: unreadable.problem.clone() };
        Error::of_record(unusable, unreadable, version)
    }
}

impl fmt::Debug for KubernetesStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubernetesStore")
            .field("namespace", &self.namespace)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for KubernetesStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret {}/{}", self.namespace, self.name)
    }
}

impl FoundSecret {
    fn write(&self) -> Option<Uuid> {
        self.entry.as_ref().ok()?.as_ref().map(|entry| entry.write)
    }

    fn version(&self) -> Version {
        version_of(&self.resource_version, self.write())
    }

    /// Whether this state proves that a write upon `base`, which held the record of write `replaces`, neither happened
    /// nor ever will.
    fn excludes(&self, base: Option<&str>, replaces: Option<Uuid>) -> bool {
        let is_still_that_record = self.write() == replaces;
        let took_its_place = matches!(&self.entry, Ok(Some(entry)) if entry.replaces == replaces);
        if is_still_that_record { base != Some(&self.resource_version) } else { took_its_place }
    }
}

/// How to reach the API server: as a pod does, or else as kubectl does.
async fn discover(name: &str) -> Result<Config, Error> {
    let problem: BoxError = match Config::incluster() {
        Ok(config) => return Ok(config),
        Err(InClusterError::ReadEnvironmentVariable(_)) => {
            match Config::from_kubeconfig(&KubeConfigOptions::default()).await {
                Ok(config) => return Ok(config),
                // The parser quotes the file, which may hold a token.
                Err(KubeconfigError::Parse(_)) => "the kubeconfig is not valid YAML".into(),
                Err(error) => error.into(),
            }
        }
        Err(error) => error.into(),
    };
    Err(Error::Unavailable { store: format!("Secret {name}"), action: "find its cluster", source: problem })
}

fn version(found: Option<&FoundSecret>) -> Version {
    found.map_or_else(|| Version(String::new()), FoundSecret::version)
}

/// The write's id too: a cluster restored from its own backup counts its versions a second time.
fn version_of(resource_version: &str, write: Option<Uuid>) -> Version {
    Version(format!("{resource_version} {}", write.unwrap_or_default()))
}

fn resource_version(secret: &Secret) -> Result<String, Error> {
    secret.metadata.resource_version.clone().ok_or_else(|| Error::Unavailable {
        store: "kubernetes".to_owned(),
        action: "be used",
        source: "the API server's answer has no resourceVersion".into(),
    })
}

fn written_by_us() -> PostParams {
    PostParams { field_manager: Some("license-gateway".to_owned()), ..PostParams::default() }
}

fn json(secret: &Secret) -> Vec<u8> {
    serde_json::to_vec(secret).expect("texts and bytes are always JSON")
}

/// What went wrong, without what a credential plugin printed.
fn printable(error: kube::Error) -> BoxError {
    let error = match error {
        kube::Error::Service(error) => match error.downcast::<AuthError>() {
            Ok(error) => *error,
            Err(error) => return error,
        },
        kube::Error::Auth(error) => error,
        kube::Error::HyperError(error) => return error.into(),
        error => return error.into(),
    };
    match error {
        error @ (AuthError::ReadTokenFile(..) | AuthError::AuthExecStart(_) | AuthError::MissingCommand) => {
            error.into()
        }
        AuthError::AuthExecRun { out, .. } => {
            format!("the kubeconfig's credential plugin ended with {}", out.status).into()
        }
        _ => "the kubeconfig's way to credentials does not work".into(),
    }
}

fn write_entry(write: Uuid, replaces: Option<Uuid>, record: &TokenRecord) -> Vec<u8> {
    let record = serde_json::to_string(record).expect("a record is always JSON");
    let entry = SecretEntry { sha256: checksum(write, replaces, &record), write, replaces, record };
    serde_json::to_vec(&entry).expect("texts and ids are always JSON")
}

/// The record and its writes, or what is wrong in words that hold nothing of the record.
fn read_entry(bytes: &[u8]) -> Result<FoundRecord, Unreadable> {
    let SecretEntry { sha256, write, replaces, record } = serde_json::from_slice(bytes)
        .map_err(|error| Unreadable::damaged(format!("its key {RECORD_KEY:?} is damaged at {}", place(&error))))?;
    if checksum(write, replaces, &record) != sha256 {
        return Err(Unreadable::damaged(CHECKSUM_DIFFERS.to_owned()));
    }
    Ok(FoundRecord { record: read_record(&record)?, write, replaces })
}

fn checksum(write: Uuid, replaces: Option<Uuid>, record: &str) -> String {
    HEXLOWER.encode(&Sha256::digest(format!("{write} {} {record}", replaces.unwrap_or_default()).as_bytes()))
}
