//! Section `central`: how Central is reached, and what may be asked of it.

use std::{path::PathBuf, time::Duration};

use url::Url;

use super::{
    cluster,
    pem::authorities,
    reader::Reader,
    settings::{Allowed, Setting, ShownValue, Unset},
    text::origin_url,
};

/// How Central is reached and what may be asked of it.
#[derive(Debug, Clone)]
pub struct Central {
    /// Scheme, host and port of Central's API gateway; paths are appended to it.
    pub base_url: Url,
    /// The bound on one call, from connecting to the last byte of the answer.
    pub timeout: Duration,
    /// How many calls may be on their way at once.
    pub max_in_flight: usize,
    /// How long a request may wait for its call.
    pub max_wait: Duration,
    /// A PEM file with the certificate authorities to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// An HTTP proxy to reach Central through. The environment's proxy variables are not read.
    pub proxy_url: Option<Url>,
    /// The variables that name a proxy for other programs.
    pub unread_proxies: Vec<String>,
    /// Whether `base_url` may be plain http.
    pub allow_plaintext: bool,
    /// Whether callers may use the scopes `exclude_customers` and `all_customers`.
    pub allow_open_scopes: bool,
}

pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        name: "central.base_url",
        unset: Unset::Means("then `central.cluster` is required"),
        allowed: Allowed::Text {
            description: "`https://host` or `https://host:port`, without a path",
            shown: ShownValue::Url,
        },
        meaning: "The address of Central's API gateway. Plain `http://` only with `central.allow_plaintext`.",
    },
    Setting {
        name: "central.cluster",
        unset: Unset::Means("then `central.base_url` is required"),
        allowed: Allowed::OneOf(&cluster::CLUSTER_NAMES),
        meaning: "The public cluster to use, by name, in place of `central.base_url`.",
    },
    Setting {
        name: "central.timeout",
        unset: Unset::Default("30s"),
        allowed: Allowed::Duration { min: Duration::from_secs(1), max: Duration::from_mins(5) },
        meaning: "The bound on one call to Central, from connecting to the last byte of the answer.",
    },
    Setting {
        name: "central.max_in_flight",
        unset: Unset::Default("64"),
        allowed: Allowed::Integer { min: 1, max: 10_000 },
        meaning: "How many calls to Central may be on their way at once.",
    },
    Setting {
        name: "central.max_wait",
        unset: Unset::Default("10s"),
        allowed: Allowed::Duration { min: Duration::from_millis(100), max: Duration::from_mins(10) },
        meaning: "How long a request may wait for its call; one that would wait longer, or past its caller's deadline, \
                  is refused at once.",
    },
    Setting {
        name: "central.ca_file",
        unset: Unset::Means("the system's authorities are trusted"),
        allowed: Allowed::Text { description: "path of a PEM file", shown: ShownValue::Path },
        meaning: "The certificate authorities to trust for Central instead of the system's.",
    },
    Setting {
        name: "central.proxy_url",
        unset: Unset::Means("no proxy; the environment's proxy variables are not read"),
        allowed: Allowed::Text {
            description: "`http://host:port` or `https://host:port`, without a path",
            shown: ShownValue::Url,
        },
        meaning: "The HTTP proxy to reach Central through.",
    },
    Setting {
        name: "central.allow_plaintext",
        unset: Unset::Default("false"),
        allowed: Allowed::Boolean,
        meaning: "Whether Central may be reached over plain http: for tests.",
    },
    Setting {
        name: "central.allow_open_scopes",
        unset: Unset::Default("false"),
        allowed: Allowed::Boolean,
        meaning: "Whether changes may have the scopes `exclude_customers` and `all_customers`; previews always may.",
    },
];

/// What other programs take a proxy for https from.
const PROXY_VARIABLES: [&str; 4] = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];

pub(super) fn read(reader: &mut Reader) -> Central {
    let given_url = reader.text("central.base_url", origin_url);
    let cluster = reader.choice("central.cluster", &cluster::HOSTS);
    let timeout = reader.duration("central.timeout");
    let max_in_flight = reader.integer("central.max_in_flight");
    let max_wait = reader.duration("central.max_wait");
    let ca_file = reader.text("central.ca_file", authorities);
    let proxy_url = reader.text("central.proxy_url", origin_url);
    let allow_plaintext = reader.boolean("central.allow_plaintext");
    let allow_open_scopes = reader.boolean("central.allow_open_scopes");

    let base_url = match (reader.place("central.base_url"), reader.place("central.cluster")) {
        (Some(url), Some(cluster)) => {
            reader.problem(
                "central.cluster",
                format!("is set (by {cluster}), and so is `central.base_url` (by {url}); remove one of them"),
            );
            None
        }
        (None, None) => {
            reader.missing(
                "central.base_url",
                "set it to the https:// address of Central's API gateway, or set `central.cluster` to a name such as \
                 `us-2`",
            );
            None
        }
        (Some(_), None) => given_url,
        (None, Some(_)) => cluster.map(|host| {
            let url = cluster::url(host);
            reader.derive("central.base_url", url.as_str(), "central.cluster");
            url
        }),
    };
    if let Some(url) = &base_url
        && url.scheme() == "http"
        && !allow_plaintext
    {
        reader.problem(
            "central.base_url",
            "is plain http, which would show the account's tokens to the network; use https://, or set \
             `central.allow_plaintext` to true where that is acceptable"
                .to_owned(),
        );
    }

    Central {
        base_url: base_url.unwrap_or_else(|| cluster::url(cluster::HOSTS[0].1)),
        timeout,
        max_in_flight,
        max_wait,
        ca_file,
        proxy_url,
        unread_proxies: reader.set_variables(&PROXY_VARIABLES),
        allow_plaintext,
        allow_open_scopes,
    }
}
