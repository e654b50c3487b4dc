//! Section `token_store`: where the tokens are kept, and which settings belong to which kind of store.

use std::path::PathBuf;

use url::Url;

use super::{
    pem::{authorities, certificates, is_pair, private_key},
    reader::Reader,
    settings::{Allowed, Setting, ShownValue, Unset},
    text::{any, directory, secret_file},
};

/// Where tokens are kept.
#[derive(Debug, Clone)]
pub struct TokenStore {
    /// A directory. The `file` store keeps the record in it; the others use it only for a pair of tokens that could
    /// not be stored.
    pub path: PathBuf,
    /// What keeps the record.
    pub kind: StoreKind,
}

/// What keeps the record.
#[derive(Debug, Clone)]
pub enum StoreKind {
    /// A file, for one process. `file`.
    File,
    /// A key of a Redis server. `redis`.
    Redis(RedisSettings),
    /// A Secret in a Kubernetes cluster. `kubernetes`.
    Kubernetes(KubernetesSettings),
}

/// Where the `redis` store is, and who may have it.
#[derive(Debug, Clone)]
pub struct RedisSettings {
    /// `redis://host:6379/0`, `rediss://…` with TLS, or `unix:///path/to/socket?db=0`. Holds no user and no password.
    pub url: Url,
    /// The user; none: the server's default user.
    pub username: Option<String>,
    /// The file with the password, read again for every connection.
    pub password_file: Option<PathBuf>,
    /// A PEM file with the certificate authorities to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Our certificate, a PEM file, for servers that ask for one: Redis does unless told otherwise.
    pub client_certificate_file: Option<PathBuf>,
    /// Its private key, a PEM file.
    pub client_key_file: Option<PathBuf>,
    /// The key that holds the record.
    pub key: String,
}

/// Which Secret holds the record.
#[derive(Debug, Clone)]
pub struct KubernetesSettings {
    /// None: the namespace of the pod, or of the kubeconfig's current context.
    pub namespace: Option<String>,
    /// The Secret's name.
    pub name: String,
}

/// What `token_store.kind` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StoreWord {
    File,
    Redis,
    Kubernetes,
}

impl StoreWord {
    fn word(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Redis => "redis",
            Self::Kubernetes => "kubernetes",
        }
    }

    /// The Cargo feature that this build would need and has not.
    fn missing_feature(self) -> Option<&'static str> {
        match self {
            Self::Redis if !cfg!(feature = "redis-store") => Some("redis-store"),
            Self::Kubernetes if !cfg!(feature = "kubernetes-store") => Some("kubernetes-store"),
            _ => None,
        }
    }
}

pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        name: "token_store.kind",
        unset: Unset::Default("file"),
        allowed: Allowed::OneOf(&["file", "redis", "kubernetes"]),
        meaning: "What keeps the tokens: `file` for one process, `redis` or `kubernetes` for replicas.",
    },
    Setting {
        name: "token_store.path",
        unset: Unset::Default("./state"),
        allowed: Allowed::Text {
            description: "path of a directory; made where it is missing",
            shown: ShownValue::Plain,
        },
        meaning: "Where the `file` store keeps the tokens; the other kinds put only a pair there that they could not \
                  store. Must outlive the process: Central's refresh tokens work once.",
    },
    Setting {
        name: "token_store.url",
        unset: Unset::Means("required where the kind is `redis`"),
        allowed: Allowed::Text {
            description: "`redis://host:6379/0`, `rediss://…` with TLS, or `unix:///path/to/socket?db=0`; no user, no password",
            shown: ShownValue::ValidUrl,
        },
        meaning: "Kind `redis`: the address of the primary.",
    },
    Setting {
        name: "token_store.username",
        unset: Unset::Means("the server's default user"),
        allowed: Allowed::Text { description: "name of a user", shown: ShownValue::Plain },
        meaning: "Kind `redis`: who logs in.",
    },
    Setting {
        name: "token_store.password_file",
        unset: Unset::Means("no log-in"),
        allowed: Allowed::Text { description: "path of a file that is not empty", shown: ShownValue::Path },
        meaning: "Kind `redis`: the file that holds the password, read again for every connection.",
    },
    Setting {
        name: "token_store.ca_file",
        unset: Unset::Means("the system's authorities are trusted"),
        allowed: Allowed::Text { description: "path of a PEM file", shown: ShownValue::Path },
        meaning: "Kind `redis`, with `rediss://`: the certificate authorities to trust instead of the system's.",
    },
    Setting {
        name: "token_store.client_certificate_file",
        unset: Unset::Means("no certificate is shown"),
        allowed: Allowed::Text { description: "path of a PEM file", shown: ShownValue::Path },
        meaning: "Kind `redis`, with `rediss://`: the certificate to show to the server.",
    },
    Setting {
        name: "token_store.client_key_file",
        unset: Unset::Means("no certificate is shown"),
        allowed: Allowed::Text { description: "path of a PEM file", shown: ShownValue::Path },
        meaning: "Kind `redis`, with `rediss://`: the private key of that certificate.",
    },
    Setting {
        name: "token_store.key",
        unset: Unset::Default("license-gateway:token"),
        allowed: Allowed::Text { description: "name of a key", shown: ShownValue::Plain },
        meaning: "Kind `redis`: the key that holds the tokens.",
    },
    Setting {
        name: "token_store.namespace",
        unset: Unset::Means("the pod's own, or the one of the kubeconfig's current context"),
        allowed: Allowed::Text { description: "name of a namespace", shown: ShownValue::Plain },
        meaning: "Kind `kubernetes`: the namespace of the Secret.",
    },
    Setting {
        name: "token_store.name",
        unset: Unset::Default("license-gateway-token"),
        allowed: Allowed::Text { description: "name of a Secret", shown: ShownValue::Plain },
        meaning: "Kind `kubernetes`: the Secret that holds the tokens. The gateway makes it; nothing else may own it.",
    },
];

pub(super) fn read(reader: &mut Reader) -> TokenStore {
    let kinds = [StoreWord::File, StoreWord::Redis, StoreWord::Kubernetes].map(|kind| (kind.word(), kind));
    let chosen = reader.choice("token_store.kind", &kinds);
    if let Some(feature) = chosen.and_then(StoreWord::missing_feature) {
        reader.problem(
            "token_store.kind",
            format!("is not in this build, which was made without the Cargo feature `{feature}`"),
        );
    }
    let path = reader.text("token_store.path", directory).unwrap_or_default();
    // Both are read whatever was chosen: what does not belong there is a problem.
    let redis = redis(reader, chosen);
    let kubernetes = kubernetes(reader, chosen);
    let kind = match (chosen, redis) {
        (Some(StoreWord::Redis), Some(redis)) => StoreKind::Redis(redis),
        (Some(StoreWord::Kubernetes), _) => StoreKind::Kubernetes(kubernetes),
        // Without its URL there is no Redis store, and a problem was found.
        (Some(StoreWord::File | StoreWord::Redis) | None, _) => StoreKind::File,
    };
    TokenStore { path, kind }
}

fn redis(reader: &mut Reader, chosen: Option<StoreWord>) -> Option<RedisSettings> {
    let url = of(StoreWord::Redis, chosen, reader, "token_store.url", redis_url);
    let username = of(StoreWord::Redis, chosen, reader, "token_store.username", any);
    let password_file = of(StoreWord::Redis, chosen, reader, "token_store.password_file", secret_file);
    let ca_file = of(StoreWord::Redis, chosen, reader, "token_store.ca_file", authorities);
    let client_certificate_file =
        of(StoreWord::Redis, chosen, reader, "token_store.client_certificate_file", certificates);
    let client_key_file = of(StoreWord::Redis, chosen, reader, "token_store.client_key_file", private_key);
    let key = of(StoreWord::Redis, chosen, reader, "token_store.key", any);
    if chosen != Some(StoreWord::Redis) {
        return None;
    }

    if !reader.is_set("token_store.url") {
        reader.missing(
            "token_store.url",
            "set it to the address of the primary, such as rediss://redis.example.com:6379",
        );
    }
    if reader.is_set("token_store.username") && !reader.is_set("token_store.password_file") {
        reader.problem("token_store.username", "needs a password; set `token_store.password_file` too".to_owned());
    }
    let pair = ["token_store.client_certificate_file", "token_store.client_key_file"];
    reader.both_or_none(pair[0], pair[1]);
    if let (Some(certificate_file), Some(key_file)) = (&client_certificate_file, &client_key_file)
        && !is_pair(certificate_file, key_file)
    {
        let message = "holds the key of another certificate than that of `token_store.client_certificate_file`";
        reader.problem(pair[1], message);
    }
    if url.as_ref().is_some_and(|url| !has_tls(url)) {
        for name in ["token_store.ca_file", pair[0], pair[1]] {
            if reader.is_set(name) {
                reader.problem(
                    name,
                    "is of use only with TLS; let `token_store.url` begin with rediss:// or remove it".to_owned(),
                );
            }
        }
    }
    Some(RedisSettings {
        url: url?,
        username,
        password_file,
        ca_file,
        client_certificate_file,
        client_key_file,
        key: key.unwrap_or_default(),
    })
}

fn kubernetes(reader: &mut Reader, chosen: Option<StoreWord>) -> KubernetesSettings {
    KubernetesSettings {
        namespace: of(StoreWord::Kubernetes, chosen, reader, "token_store.namespace", label),
        name: of(StoreWord::Kubernetes, chosen, reader, "token_store.name", subdomain).unwrap_or_default(),
    }
}

/// A setting that only one kind of store knows. Where nobody can tell which kind was meant, it is not held against the
/// setting.
fn of<T>(
    kind: StoreWord,
    chosen: Option<StoreWord>,
    reader: &mut Reader,
    name: &'static str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Option<T> {
    match chosen {
        Some(other) if other != kind && reader.is_set(name) => reader.text(name, |_| {
            let (kind, other) = (kind.word(), other.word());
            Err(format!("is of use only with `token_store.kind` = `{kind}`, and the kind is `{other}`; remove it"))
        }),
        _ => reader.text(name, parse),
    }
}

/// Takes only what it knows: a misspelt parameter would otherwise be a setting that nobody obeys.
fn redis_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("is not a URL ({error}); write it like redis://host:6379/0"))?;
    let is_socket = match url.scheme() {
        "redis" | "rediss" | "valkey" | "valkeys" => false,
        "unix" | "redis+unix" | "valkey+unix" => true,
        _ => return Err("must begin with redis://, rediss:// (with TLS) or unix://".to_owned()),
    };
    let parameters: Vec<String> = url.query_pairs().map(|(name, _)| name.into_owned()).collect();
    let has_login = parameters.iter().any(|name| matches!(&**name, "user" | "pass"));
    if has_login || !url.username().is_empty() || url.password().is_some() {
        return Err("must not hold a user name or a password; set `token_store.username` and \
                    `token_store.password_file`"
            .to_owned());
    }
    if url.fragment().is_some() {
        return Err("must not have a #fragment; a server's certificate is always checked".to_owned());
    }
    if parameters.iter().any(|name| !(is_socket && name == "db")) {
        return Err("has a parameter that is not known; only unix:// takes one: db".to_owned());
    }
    if !is_socket {
        if url.host_str().is_none_or(str::is_empty) {
            return Err("names no host; write it like redis://host:6379/0".to_owned());
        }
        let database = url.path().trim_start_matches('/');
        if !database.is_empty() && database.parse::<u16>().is_err() {
            return Err("must end with the number of a database or after the port; write it like redis://host:6379/0"
                .to_owned());
        }
    }
    Ok(url)
}

fn has_tls(url: &Url) -> bool {
    matches!(url.scheme(), "rediss" | "valkeys")
}

/// The name of a namespace.
fn label(text: &str) -> Result<String, String> {
    if text.len() <= 63 && is_label(text) {
        Ok(text.to_owned())
    } else {
        Err("is not a namespace's name: at most 63 lower-case letters, digits and dashes between them".to_owned())
    }
}

/// The name of a Secret, with room for `-usage` behind it.
fn subdomain(text: &str) -> Result<String, String> {
    if text.len() <= 247 && text.split('.').all(is_label) {
        Ok(text.to_owned())
    } else {
        Err("is not a Secret's name: at most 247 lower-case letters, digits, and dashes and dots between them"
            .to_owned())
    }
}

fn is_label(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !text.is_empty() && text.chars().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}
