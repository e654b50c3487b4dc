//! Tables of configurations: what each one means, or the sentence that refuses it.

mod callers;
mod jwt;

use std::{collections::HashSet, fs, path::PathBuf, sync::LazyLock, time::Duration, time::SystemTime};

use tempfile::TempDir;

use super::{settings::ShownValue, *};

/// A certificate and its key.
static PAIR: LazyLock<(String, String)> = LazyLock::new(|| {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["gateway.test".to_owned()]).expect("a certificate");
    (cert.pem(), signing_key.serialize_pem())
});

/// A directory with the files that a valid configuration names.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        let files = Self(TempDir::new().expect("a temporary directory"));
        files.write("secret", "s3cr3t\n");
        files.write("seed", "r3fr3sh\n");
        files.write("empty", " \n");
        let (certificate, key) = &*PAIR;
        files.write("ca.pem", certificate);
        files.write("server.pem", certificate);
        files.write("server.key", key);
        files.write("client.pem", certificate);
        files.write("client.key", key);
        files
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.0.path().join(name), content).expect("a file in a temporary directory");
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// The smallest configuration, with `more` before it. Its own first line has the number 10.
    fn minimal(&self, more: &str) -> String {
        let blank = "\n".repeat(9 - more.matches('\n').count());
        format!(
            "{more}{blank}[credentials]\nclient_id = \"id\"\nclient_secret_file = \"{}\"\n\n[central]\ncluster = \"us-2\"\n",
            self.path("secret")
        )
    }
}

fn load(text: &str, environment: &[(&str, &str)]) -> Result<LoadedConfig, Vec<String>> {
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    LoadedConfig::read(Reader::new(Some(TomlFile { name: "gateway.toml", text }), environment), None)
        .map_err(|problems| problems.0.iter().map(Problem::to_string).collect())
}

fn valid(text: &str, environment: &[(&str, &str)]) -> LoadedConfig {
    load(text, environment).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

#[test]
fn smallest_configuration_gets_every_default() {
    let files = Files::new();
    let LoadedConfig { config, effective } = valid(&files.minimal(""), &[]);

    assert_eq!(config.server.listen.to_string(), "0.0.0.0:50051");
    assert_eq!(config.server.drain_timeout, Duration::from_secs(35));
    assert_eq!(config.warnings(SystemTime::now()), [""; 0], "the defaults fit each other");
    let mut shorter = config.clone();
    shorter.server.drain_timeout = Duration::from_secs(25);
    let warnings = shorter.warnings(SystemTime::now());
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("server.drain_timeout is 25s and central.timeout 30s"), "{warnings:?}");
    assert_eq!(config.server.max_streams_per_connection, 1000);
    assert_eq!(config.central.base_url.as_str(), "https://apigw-prod2.central.arubanetworks.com/");
    assert_eq!(config.central.timeout, Duration::from_secs(30));
    assert_eq!(config.central.max_in_flight, 64);
    assert_eq!(config.central.ca_file, None);
    assert_eq!(config.central.proxy_url, None);
    assert!(!config.central.allow_plaintext);
    assert!(!config.central.allow_open_scopes);
    assert_eq!(config.credentials.client_id, "id");
    assert_eq!(config.credentials.refresh_token_file, None);
    assert_eq!(config.credentials.grant_placement, GrantPlacement::Form);
    assert_eq!(config.token_store.path, Path::new("./state"));
    assert!(matches!(config.token_store.kind, StoreKind::File));
    assert_eq!(config.audit.place, AuditPlace::Directory("./state/audit".into()));
    assert_eq!(config.audit.max_file_bytes, 16 * 1024 * 1024);
    assert_eq!(config.log.filter.to_string(), "info");
    assert_eq!(config.log.format, LogFormat::Auto);
    assert!(config.telemetry.traces.otlp.is_none() && config.telemetry.metrics.otlp.is_none());
    assert_eq!(config.admin.listen, "0.0.0.0:9464".parse().unwrap());

    let names: Vec<_> = effective.iter().map(|effective| effective.name).collect();
    let listed: Vec<_> = settings::all().map(|setting| setting.name).collect();
    assert_eq!(names, listed, "every setting is read exactly once");
}

#[test]
fn full_file_is_read_into_every_field() {
    let files = Files::new();
    let text = format!(
        r#"read_only = true

        [server]
        listen = "[::1]:0"
        allow_anonymous_callers = true
        drain_timeout = "1m 30s"
        max_streams_per_connection = 0x10
        [central]
        base_url = "http://central.test:8443"
        timeout = "5s"
        max_in_flight = 1_000
        ca_file = "{ca}"
        proxy_url = "http://proxy.test:3128"
        allow_plaintext = true
        allow_open_scopes = true
        [credentials]
        client_id = "id"
        client_secret_file = "{secret}"
        refresh_token_file = "{seed}"
        grant_placement = "query"
        [token_store]
        kind = "file"
        path = "{store}"
        [audit]
        path = "stdout"
        max_file_bytes = 4096
        [log]
        filter = "warn,license_gateway=debug"
        format = "json"
        "#,
        ca = files.path("ca.pem"),
        secret = files.path("secret"),
        seed = files.path("seed"),
        store = files.path(""),
    );
    let LoadedConfig { config, effective } = valid(&text, &[]);

    assert_eq!(config.server.listen.to_string(), "[::1]:0");
    assert_eq!(config.server.drain_timeout, Duration::from_secs(90));
    assert_eq!(config.server.max_streams_per_connection, 16);
    assert_eq!(config.central.base_url.as_str(), "http://central.test:8443/");
    assert_eq!(config.central.timeout, Duration::from_secs(5));
    assert_eq!(config.central.max_in_flight, 1000);
    assert_eq!(config.central.ca_file, Some(files.path("ca.pem").into()));
    assert_eq!(config.central.proxy_url.map(String::from), Some("http://proxy.test:3128/".to_owned()));
    assert!(config.central.allow_plaintext);
    assert!(config.central.allow_open_scopes);
    assert_eq!((config.audit.place, config.audit.max_file_bytes), (AuditPlace::Stdout, 4096));
    assert_eq!(config.credentials.refresh_token_file, Some(files.path("seed").into()));
    assert_eq!(config.credentials.grant_placement, GrantPlacement::Query);
    assert_eq!(config.token_store.path, PathBuf::from(files.path("")));
    assert_eq!(config.log.filter.to_string(), "license_gateway=debug,warn");
    assert_eq!(config.log.format, LogFormat::Json);
    assert!(config.policy.read_only && config.server.allow_anonymous_callers);
    assert_eq!(effective[0].origin, ValueOrigin::File("gateway.toml:1".to_owned()));
    assert_eq!(effective[1].origin, ValueOrigin::File("gateway.toml:4".to_owned()));
}

#[test]
#[allow(clippy::too_many_lines)] // a table
fn each_bad_configuration_is_refused_in_a_sentence() {
    let files = Files::new();
    let empty = files.path("empty");
    let absent = files.path("absent");
    let directory = files.path("");

    // What replaces or joins the smallest configuration, and the sentence.
    let cases: Vec<(String, String)> = [
        ("server.listen = \"localhost\"", "server.listen (gateway.toml:1): \"localhost\" is not an IP address and a port; write it like 0.0.0.0:50051 or [::]:50051"),
        ("server.listen = \"0.0.0.0:65536\"", "server.listen (gateway.toml:1): \"0.0.0.0:65536\" is not an IP address and a port; write it like 0.0.0.0:50051 or [::]:50051"),
        ("server.listen = 50051", "server.listen (gateway.toml:1): is of the wrong type (a number); write a string in quotes"),
        ("server.listen = \"\"", "server.listen (gateway.toml:1): is empty; give it a value or remove it"),
        ("server.drain_timeout = \"soon\"", "server.drain_timeout (gateway.toml:1): \"soon\" is not a duration; write it with a unit, like 30s or 2m"),
        ("server.drain_timeout = \"25\"", "server.drain_timeout (gateway.toml:1): \"25\" is not a duration; write it with a unit, like 30s or 2m"),
        ("server.drain_timeout = 25", "server.drain_timeout (gateway.toml:1): is of the wrong type (a number); write a string in quotes"),
        ("server.drain_timeout = \"1h\"", "server.drain_timeout (gateway.toml:1): \"1h\" is out of bounds; 0s to 10m is allowed"),
        ("server.max_streams_per_connection = 0", "server.max_streams_per_connection (gateway.toml:1): \"0\" is out of bounds; 1 to 100000 is allowed"),
        ("server.max_streams_per_connection = -1", "server.max_streams_per_connection (gateway.toml:1): \"-1\" is out of bounds; 1 to 100000 is allowed"),
        ("server.max_streams_per_connection = 99999999999999999999", "server.max_streams_per_connection (gateway.toml:1): \"99999999999999999999\" is out of bounds; 1 to 100000 is allowed"),
        ("server.max_streams_per_connection = \"10\"", "server.max_streams_per_connection (gateway.toml:1): is of the wrong type (a string); write a number without quotes"),
        ("server.max_streams_per_connection = 1.5", "server.max_streams_per_connection (gateway.toml:1): is of the wrong type (float); write a number without quotes"),
        ("server.listen = [\"0.0.0.0:1\"]", "server.listen (gateway.toml:1): is of the wrong type (array); write a string in quotes"),
        ("server.listen.port = 1", "server.listen (gateway.toml:1): is of the wrong type (table); write a string in quotes"),
        ("server = 1", "server (gateway.toml:1): is a section; write [server] and its settings on the lines below"),
        ("[[server]]", "server (gateway.toml:1): is a section; write [server] and its settings on the lines below"),
        ("server.lisen = \"x\"", "server.lisen (gateway.toml:1): is not a setting; did you mean `server.listen`?"),
        ("server.timeout = \"30s\"", "server.timeout (gateway.toml:1): is not a setting; did you mean `central.timeout`?"),
        ("server.colour = \"red\"", "server.colour (gateway.toml:1): is not a setting; `license-gateway check-config --list` shows what there is"),
        ("listen = \"x\"", "listen (gateway.toml:1): is not a setting; did you mean `server.listen`?"),
        ("[sever]\nlisten = \"x\"", "[sever] (gateway.toml:1): is not a section; did you mean [server]?"),
        ("[kafka]\ntopic = \"x\"", "[kafka] (gateway.toml:1): is not a section; `license-gateway check-config --list` shows what there is"),
        ("log.filter = \"inof\"", "log.filter (gateway.toml:1): \"inof\" holds `inof`, which is neither a level (off, error, warn, info, debug, trace) nor module=level"),
        ("log.filter = \"license_gateway=loud\"", "log.filter (gateway.toml:1): \"license_gateway=loud\" holds `license_gateway=loud`, which is neither a level (off, error, warn, info, debug, trace) nor module=level",),
        ("log.format = \"xml\"", "log.format (gateway.toml:1): \"xml\" is not one of auto, json, text"),
        ("log.format = \"jsn\"", "log.format (gateway.toml:1): \"jsn\" is not one of auto, json, text; did you mean `json`?"),
        ("log.format = true", "log.format (gateway.toml:1): is of the wrong type (a boolean); write a string in quotes"),
        ("log.format = \"a\\nb\\u001b\"", "log.format (gateway.toml:1): \"a\\nb\\u{1b}\" is not one of auto, json, text"),
        ("token_store.kind = \"tape\"", "token_store.kind (gateway.toml:1): \"tape\" is not one of file, redis, kubernetes"),
        ("token_store.kind = \"Redis\"", "token_store.kind (gateway.toml:1): \"Redis\" is not one of file, redis, kubernetes; did you mean `redis`?"),
        ("token_store.key = \"x\"", "token_store.key (gateway.toml:1): \"x\" is of use only with `token_store.kind` = `redis`, and the kind is `file`; remove it"),
        ("token_store.name = \"x\"", "token_store.name (gateway.toml:1): \"x\" is of use only with `token_store.kind` = `kubernetes`, and the kind is `file`; remove it"),
        ("token_store.url = \"redis://me:hunter2@h\"", "token_store.url (gateway.toml:1): the value (not shown: it may be a secret) is of use only with `token_store.kind` = `redis`, and the kind is `file`; remove it"),
        ("server.listen = ", "gateway.toml:1, column 17: is not TOML: string values must be quoted, expected literal string"),
        ("server.listen", "gateway.toml:1, column 14: is not TOML: key with no value, expected `=`"),
        ("server.listen = \"0.0.0.0:1\"\nserver.listen = \"0.0.0.0:2\"", "gateway.toml:2, column 8: is not TOML: duplicate key"),
    ]
    .into_iter()
    .map(|(more, sentence)| (files.minimal(&format!("{more}\n")), sentence.to_owned()))
    .chain(
        [
            ("base_url = \"http://central.test\"", "central.base_url (gateway.toml:16): is plain http, which would show the account's tokens to the network; use https://, or set `central.allow_plaintext` to true where that is acceptable"),
            ("base_url = \"central.test\"", "central.base_url (gateway.toml:16): \"central.test\" is not a URL of this kind; write it like https://host:443"),
            ("base_url = \"ftp://central.test\"", "central.base_url (gateway.toml:16): \"ftp://central.test\" is not a URL of this kind; write it like https://host:443"),
            ("base_url = \"https://central.test/api/v1\"", "central.base_url (gateway.toml:16): \"https://central.test/api/v1\" must not have a path, because paths are appended to it; remove what follows the host"),
            ("base_url = \"https://central.test/?a=b\"", "central.base_url (gateway.toml:16): \"https://central.test/?…\" must not have a query or a fragment; remove everything after the host and port"),
            ("base_url = \"https://me:hunter2@central.test\"", "central.base_url (gateway.toml:16): the value (not shown: it may be a secret) must not hold a user name or a password; remove everything up to the @"),
            ("", "central.base_url: is missing; set it to the https:// address of Central's API gateway, or set `central.cluster` to a name such as `us-2`"),
            ("cluster = \"us2\"", "central.cluster (gateway.toml:16): \"us2\" is not one of us-1, us-2, us-west4, us-west5, us-east1, eu-1, eu-central2, eu-central3, canada-1, china-1, apac-1, apac-east1, apac-south1, uae-north1; did you mean `us-2`?"),
            ("cluster = \"us-2\"\nbase_url = \"https://central.test\"", "central.cluster (gateway.toml:16): is set (by gateway.toml:16), and so is `central.base_url` (by gateway.toml:17); remove one of them"),
            ("cluster = \"us-2\"\ntimeout = \"500ms\"", "central.timeout (gateway.toml:17): \"500ms\" is out of bounds; 1s to 5m is allowed"),
            ("cluster = \"us-2\"\ntimeout = \"6m\"", "central.timeout (gateway.toml:17): \"6m\" is out of bounds; 1s to 5m is allowed"),
            ("cluster = \"us-2\"\nmax_in_flight = 0", "central.max_in_flight (gateway.toml:17): \"0\" is out of bounds; 1 to 10000 is allowed"),
            ("cluster = \"us-2\"\nallow_plaintext = \"yes\"", "central.allow_plaintext (gateway.toml:17): is of the wrong type (a string); write true or false without quotes"),
            ("cluster = \"us-2\"\nallow_open_scopes = 1", "central.allow_open_scopes (gateway.toml:17): is of the wrong type (a number); write true or false without quotes"),
            ("cluster = \"us-2\"\nproxy_url = \"proxy.test:3128\"", "central.proxy_url (gateway.toml:17): \"proxy.test:3128\" is not a URL of this kind; write it like https://host:443"),
            ("cluster = \"us-2\"\nproxy_url = \"http://me:hunter2@proxy.test\"", "central.proxy_url (gateway.toml:17): the value (not shown: it may be a secret) must not hold a user name or a password; remove everything up to the @"),
        ]
        .into_iter()
        .map(|(more, sentence)| {
            let text = files.minimal("").replace("cluster = \"us-2\"", &format!("\n{more}\n"));
            (text, sentence.to_owned())
        }),
    )
    .chain([
        (
            files.minimal("").replace("cluster = \"us-2\"", &format!("cluster = \"us-2\"\nca_file = \"{empty}\"")),
            format!("central.ca_file (gateway.toml:16): \"{empty}\" holds no certificate; it must be a PEM file of certificates"),
        ),
        (
            files.minimal("").replace("cluster = \"us-2\"", &format!("cluster = \"us-2\"\nca_file = \"{absent}\"")),
            format!("central.ca_file (gateway.toml:16): \"{absent}\" does not exist; create the file or correct the path"),
        ),
        (
            files.minimal(&format!("token_store.path = \"{empty}\"\n")),
            format!("token_store.path (gateway.toml:1): \"{empty}\" is not a directory; several files are kept there"),
        ),
        (
            files.minimal("").replace(&files.path("secret"), &absent),
            format!("credentials.client_secret_file (gateway.toml:12): \"{absent}\" does not exist; create the file or correct the path"),
        ),
        (
            files.minimal("").replace(&files.path("secret"), &empty),
            format!("credentials.client_secret_file (gateway.toml:12): \"{empty}\" is an empty file; write the secret into it"),
        ),
        (
            files.minimal("").replace(&files.path("secret"), &directory),
            format!("credentials.client_secret_file (gateway.toml:12): \"{directory}\" is a directory; name the file in it"),
        ),
        (
            files.minimal("").replace(&files.path("secret"), "hunter2"),
            "credentials.client_secret_file (gateway.toml:12): the value (not shown: it may be a secret) does not exist; create the file or correct the path".to_owned(),
        ),
        (
            files.minimal("").replace("client_secret_file", "client_secret = \"hunter2\"\nclient_secret_file"),
            "credentials.client_secret (gateway.toml:12): is not a setting; did you mean `credentials.client_secret_file`?".to_owned(),
        ),
        (
            files.minimal("").replace("client_id", &format!("refresh_token_file = \"{empty}\"\nclient_id")),
            format!("credentials.refresh_token_file (gateway.toml:11): \"{empty}\" is an empty file; write the secret into it"),
        ),
        (
            files.minimal("").replace("client_id", "grant_placement = \"header\"\nclient_id"),
            "credentials.grant_placement (gateway.toml:11): \"header\" is not one of form, query".to_owned(),
        ),
        (
            files.minimal("").replace("client_id = \"id\"", "client_id = \"my id\""),
            "credentials.client_id (gateway.toml:11): the value (not shown: it may be a secret) holds a blank or a character that is not visible ASCII; copy it again".to_owned(),
        ),
        (
            files.minimal("").replace("client_id = \"id\"", ""),
            "credentials.client_id: is missing; set it in the file, section [credentials], or by LICENSE_GATEWAY__CREDENTIALS__CLIENT_ID".to_owned(),
        ),
    ])
    .collect();
    assert!(cases.len() >= 60);
    for (text, sentence) in cases {
        let problems = load(&text, &[]).err().unwrap_or_else(|| panic!("is valid:\n{text}"));
        assert_eq!(problems, [sentence], "of\n{text}");
        assert!(!problems.concat().contains("hunter2"));
    }
}

#[test]
fn log_filter_is_levels_by_module_and_info_by_default() {
    let files = Files::new();
    let filter = |text: &str| {
        let loaded = load(&files.minimal(&format!("log.filter = \"{text}\"\n")), &[]);
        loaded.map(|loaded| loaded.config.log.filter.to_string())
    };
    assert_eq!(filter("license_gateway::central=debug").unwrap(), "license_gateway::central=debug,info");
    assert_eq!(filter("WARN, a=Off").unwrap(), "a=off,warn");
    for bad in ["verbose", "license_gateway", "license_gateway=", "=info", "a=b=c", "3", "h2[x]=info", ""] {
        let problems = filter(&format!("info,{bad}")).unwrap_err();
        assert!(problems[0].contains(&format!("holds `{bad}`, which is neither a level")), "{problems:?}");
    }
}

#[cfg(feature = "redis-store")]
#[test]
fn redis_store_is_read_into_every_field() {
    let files = Files::new();
    let [password, ca, certificate, key] =
        ["secret", "ca.pem", "client.pem", "client.key"].map(|name| files.path(name));
    let text = files.minimal(&format!(
        "[token_store]\nkind = \"redis\"\nurl = \"rediss://redis.test:6380/2\"\nusername = \"gateway\"\n\
         password_file = \"{password}\"\nca_file = \"{ca}\"\nclient_certificate_file = \"{certificate}\"\n\
         client_key_file = \"{key}\"\nkey = \"k\"\n"
    ));
    let TokenStore { path, kind: StoreKind::Redis(redis) } = valid(&text, &[]).config.token_store else {
        panic!("redis was chosen")
    };
    assert_eq!(path, Path::new("./state"));
    assert_eq!(redis.url.as_str(), "rediss://redis.test:6380/2");
    assert_eq!(redis.username.as_deref(), Some("gateway"));
    assert_eq!(redis.password_file, Some(password.into()));
    assert_eq!(redis.ca_file, Some(ca.into()));
    assert_eq!(redis.client_certificate_file, Some(certificate.into()));
    assert_eq!(redis.client_key_file, Some(key.into()));
    assert_eq!(redis.key, "k");

    for url in ["redis://localhost", "valkey://[::1]:1/2", "rediss://h/1", "valkeys://h/", "unix:///run/r.sock?db=1"] {
        let text = files.minimal(&format!("[token_store]\nkind = \"redis\"\nurl = \"{url}\"\n"));
        let TokenStore { kind: StoreKind::Redis(redis), .. } = valid(&text, &[]).config.token_store else {
            panic!("redis was chosen")
        };
        assert_eq!((redis.username, redis.password_file, &*redis.key), (None, None, "license-gateway:token"));
    }
}

#[cfg(feature = "kubernetes-store")]
#[test]
fn kubernetes_store_is_read_into_every_field() {
    let files = Files::new();
    let cases = [("", None, "license-gateway-token"), ("namespace = \"a-1\"\nname = \"b.c\"\n", Some("a-1"), "b.c")];
    for (more, namespace, name) in cases {
        let text = files.minimal(&format!("[token_store]\nkind = \"kubernetes\"\n{more}"));
        let TokenStore { kind: StoreKind::Kubernetes(store), .. } = valid(&text, &[]).config.token_store else {
            panic!("kubernetes was chosen")
        };
        assert_eq!((store.namespace.as_deref(), &*store.name), (namespace, name));
    }
}

#[cfg(all(feature = "redis-store", feature = "kubernetes-store"))]
#[test]
fn each_bad_token_store_is_refused_in_sentences() {
    const HIDDEN_VALUE: &str = "the value (not shown: it may be a secret)";
    let files = Files::new();
    let [secret, empty, ca, absent] = ["secret", "empty", "ca.pem", "absent"].map(|name| files.path(name));
    let [certificate, key] = ["client.pem", "client.key"].map(|name| files.path(name));
    let url = |url: &str| format!("kind = \"redis\"\nurl = \"{url}\"\n");
    let redis = |more: &str| format!("{}{more}\n", url("rediss://h"));
    let plain = |more: &str| format!("{}{more}\n", url("redis://h"));
    let kubernetes = |more: &str| format!("kind = \"kubernetes\"\n{more}\n");
    let of_redis = |name: &str| {
        format!("{name}\" is of use only with `token_store.kind` = `redis`, and the kind is `kubernetes`; remove it")
    };

    let cases: Vec<(String, Vec<String>)> = vec![
        ("kind = \"redis\"\n".to_owned(), vec!["token_store.url: is missing; set it to the address of the primary, such as rediss://redis.example.com:6379".to_owned()]),
        (url("localhost"), vec![format!("token_store.url (gateway.toml:3): {HIDDEN_VALUE} is not a URL (relative URL without a base); write it like redis://host:6379/0")]),
        (url("localhost:6379"), vec![format!("token_store.url (gateway.toml:3): {HIDDEN_VALUE} must begin with redis://, rediss:// (with TLS) or unix://")]),
        (url("http://:hunter2@h"), vec![format!("token_store.url (gateway.toml:3): {HIDDEN_VALUE} must begin with redis://, rediss:// (with TLS) or unix://")]),
        (url("redis://:hunter2@h"), vec![format!("token_store.url (gateway.toml:3): {HIDDEN_VALUE} must not hold a user name or a password; set `token_store.username` and `token_store.password_file`")]),
        (url("redis://hunter2@h"), vec![format!("token_store.url (gateway.toml:3): {HIDDEN_VALUE} must not hold a user name or a password; set `token_store.username` and `token_store.password_file`")]),
        (url("unix:///r.sock?user=a&pass=hunter2"), vec![format!("token_store.url (gateway.toml:3): {HIDDEN_VALUE} must not hold a user name or a password; set `token_store.username` and `token_store.password_file`")]),
        (url("redis://:hunter2@h:99999"), vec![format!("token_store.url (gateway.toml:3): {HIDDEN_VALUE} is not a URL (invalid port number); write it like redis://host:6379/0")]),
        (url("redis://h?protocol=resp3"), vec![format!("token_store.url (gateway.toml:3): {HIDDEN_VALUE} has a parameter that is not known; only unix:// takes one: db")]),
        (url("unix:///r.sock?database=1"), vec![format!("token_store.url (gateway.toml:3): {HIDDEN_VALUE} has a parameter that is not known; only unix:// takes one: db")]),
        (url("rediss://h#insecure"), vec![format!("token_store.url (gateway.toml:3): {HIDDEN_VALUE} must not have a #fragment; a server's certificate is always checked")]),
        (url("redis:///1"), vec![format!("token_store.url (gateway.toml:3): {HIDDEN_VALUE} names no host; write it like redis://host:6379/0")]),
        (url("redis://h/tokens"), vec![format!("token_store.url (gateway.toml:3): {HIDDEN_VALUE} must end with the number of a database or after the port; write it like redis://host:6379/0")]),
        (redis("username = \"u\""), vec!["token_store.username (gateway.toml:4): needs a password; set `token_store.password_file` too".to_owned()]),
        (redis("password_file = \"hunter2\""), vec![format!("token_store.password_file (gateway.toml:4): {HIDDEN_VALUE} does not exist; create the file or correct the path")]),
        (redis(&format!("password_file = \"{empty}\"")), vec![format!("token_store.password_file (gateway.toml:4): \"{empty}\" is an empty file; write the secret into it")]),
        (redis(&format!("ca_file = \"{secret}\"")), vec![format!("token_store.ca_file (gateway.toml:4): \"{secret}\" holds no certificate; it must be a PEM file of certificates")]),
        (redis(&format!("client_certificate_file = \"{key}\"\nclient_key_file = \"{absent}\"")), vec![
            format!("token_store.client_certificate_file (gateway.toml:4): \"{key}\" holds no certificate; it must be a PEM file of certificates"),
            format!("token_store.client_key_file (gateway.toml:5): \"{absent}\" does not exist; create the file or correct the path"),
        ]),
        (redis(&format!("client_certificate_file = \"{certificate}\"\nclient_key_file = \"{certificate}\"")), vec![format!("token_store.client_key_file (gateway.toml:5): \"{certificate}\" holds no private key; it must be a PEM file")]),
        (redis(&format!("client_key_file = \"{key}\"")), vec!["token_store.client_key_file (gateway.toml:4): is of use only with `token_store.client_certificate_file`; set both or none".to_owned()]),
        (redis(&format!("client_certificate_file = \"{certificate}\"")), vec!["token_store.client_certificate_file (gateway.toml:4): is of use only with `token_store.client_key_file`; set both or none".to_owned()]),
        (plain(&format!("ca_file = \"{ca}\"")), vec!["token_store.ca_file (gateway.toml:4): is of use only with TLS; let `token_store.url` begin with rediss:// or remove it".to_owned()]),
        (redis("key = \"\""), vec!["token_store.key (gateway.toml:4): is empty; give it a value or remove it".to_owned()]),
        (redis("namespace = \"n\""), vec!["token_store.namespace (gateway.toml:4): \"n\" is of use only with `token_store.kind` = `kubernetes`, and the kind is `redis`; remove it".to_owned()]),
        (kubernetes("namespace = \"A\""), vec!["token_store.namespace (gateway.toml:3): \"A\" is not a namespace's name: at most 63 lower-case letters, digits and dashes between them".to_owned()]),
        (kubernetes("name = \"a..b\""), vec!["token_store.name (gateway.toml:3): \"a..b\" is not a Secret's name: at most 247 lower-case letters, digits, and dashes and dots between them".to_owned()]),
        (kubernetes("name = \"a-\"\nusername = \"u\"\nkey = \"k\""), vec![
            format!("token_store.username (gateway.toml:4): \"{}", of_redis("u")),
            format!("token_store.key (gateway.toml:5): \"{}", of_redis("k")),
            "token_store.name (gateway.toml:3): \"a-\" is not a Secret's name: at most 247 lower-case letters, digits, and dashes and dots between them".to_owned(),
        ]),
        // Nobody can tell which kind was meant: nothing is held against the rest.
        ("kind = \"rdis\"\nusername = \"u\"\nname = \"n\"\n".to_owned(), vec!["token_store.kind (gateway.toml:2): \"rdis\" is not one of file, redis, kubernetes; did you mean `redis`?".to_owned()]),
    ];
    for (more, sentences) in cases {
        let text = files.minimal(&format!("[token_store]\n{more}"));
        let problems = load(&text, &[]).err().unwrap_or_else(|| panic!("is valid:\n{text}"));
        assert_eq!(problems, sentences, "of\n{text}");
        assert!(!problems.concat().contains("hunter2"));
    }
}

#[test]
fn kinds_of_store_that_were_left_out_of_the_build_are_refused() {
    let files = Files::new();
    let kinds = [
        ("redis", "redis-store", cfg!(feature = "redis-store"), "token_store.url = \"redis://h\"\n"),
        ("kubernetes", "kubernetes-store", cfg!(feature = "kubernetes-store"), ""),
    ];
    for (kind, feature, is_there, more) in kinds {
        let loaded = load(&files.minimal(&format!("token_store.kind = \"{kind}\"\n{more}")), &[]);
        if is_there {
            loaded.unwrap_or_else(|problems| panic!("{problems:#?}"));
            continue;
        }
        let sentence = format!(
            "token_store.kind (gateway.toml:1): is not in this build, which was made without the Cargo feature `{feature}`"
        );
        assert_eq!(loaded.expect_err(kind), [sentence]);
    }
}

#[test]
fn each_bad_variable_is_refused_in_a_sentence() {
    let files = Files::new();
    let cases = [
        (
            "LICENSE_GATEWAY__SERVER__LISEN",
            "x",
            "LICENSE_GATEWAY__SERVER__LISEN: sets nothing that is known; did you mean LICENSE_GATEWAY__SERVER__LISTEN?",
        ),
        (
            "LICENSE_GATEWAY__server__listen",
            "x",
            "LICENSE_GATEWAY__server__listen: sets nothing that is known; did you mean LICENSE_GATEWAY__SERVER__LISTEN?",
        ),
        (
            "LICENSE_GATEWAY__TIMEOUT",
            "1s",
            "LICENSE_GATEWAY__TIMEOUT: sets nothing that is known; did you mean LICENSE_GATEWAY__CENTRAL__TIMEOUT?",
        ),
        (
            "LICENSE_GATEWAY__KAFKA__TOPIC",
            "x",
            "LICENSE_GATEWAY__KAFKA__TOPIC: sets nothing that is known; `license-gateway check-config --list` shows what there is",
        ),
        (
            "LICENSE_GATEWAY__",
            "x",
            "LICENSE_GATEWAY__: sets nothing that is known; `license-gateway check-config --list` shows what there is",
        ),
        (
            "LICENSE_GATEWAY__CENTRAL__TIMEOUT",
            "ages",
            "central.timeout (LICENSE_GATEWAY__CENTRAL__TIMEOUT): \"ages\" is not a duration; write it with a unit, like 30s or 2m",
        ),
        (
            "LICENSE_GATEWAY__CENTRAL__TIMEOUT",
            "",
            "central.timeout (LICENSE_GATEWAY__CENTRAL__TIMEOUT): is empty; give it a value or remove it",
        ),
        (
            "LICENSE_GATEWAY__CENTRAL__MAX_IN_FLIGHT",
            "many",
            "central.max_in_flight (LICENSE_GATEWAY__CENTRAL__MAX_IN_FLIGHT): \"many\" is not a whole number; write it in digits",
        ),
        (
            "LICENSE_GATEWAY__CENTRAL__ALLOW_OPEN_SCOPES",
            "yes",
            "central.allow_open_scopes (LICENSE_GATEWAY__CENTRAL__ALLOW_OPEN_SCOPES): \"yes\" is neither true nor false; write one of them",
        ),
        (
            "LICENSE_GATEWAY__CENTRAL__BASE_URL",
            "https://central.test",
            "central.cluster (gateway.toml:15): is set (by gateway.toml:15), and so is `central.base_url` (by LICENSE_GATEWAY__CENTRAL__BASE_URL); remove one of them",
        ),
        (
            "LICENSE_GATEWAY__CREDENTIALS__CLIENT_SECRET",
            "hunter2",
            "LICENSE_GATEWAY__CREDENTIALS__CLIENT_SECRET: sets nothing that is known; did you mean LICENSE_GATEWAY__CREDENTIALS__CLIENT_SECRET_FILE?",
        ),
        (
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "http://me:hunter2@collector:4317",
            "OTEL_EXPORTER_OTLP_ENDPOINT: must not hold a user name or a password; use OTEL_EXPORTER_OTLP_HEADERS",
        ),
    ];
    for (name, value, sentence) in cases {
        let problems = load(&files.minimal(""), &[(name, value)]).expect_err(name);
        assert_eq!(problems, [sentence]);
    }
}

#[test]
fn every_problem_is_told_at_once() {
    let text =
        "[server]\nlisten = 1\nlisten_on = 2\n[kafka]\n[central]\nbase_url = \"http://c.test/x\"\ntimeout = \"1\"\n";
    let problems = load(text, &[("LICENSE_GATEWAY__LOG__FORMAT", "xml")]).expect_err("nearly all of it is wrong");
    let subjects: Vec<_> =
        problems.iter().map(|problem| problem.split([' ', ':']).next().unwrap_or_default()).collect();
    assert_eq!(
        subjects,
        [
            "[kafka]",
            "server.listen_on",
            "server.listen",
            "central.base_url",
            "central.timeout",
            "credentials.client_id",
            "credentials.client_secret_file",
            "log.format"
        ]
    );
}

#[test]
fn several_syntax_errors_are_told_and_nothing_is_called_missing() {
    let problems = load("[server\nlisten = \"0.0.0.0:1\"\n[central]\ntimeout = 5x\n", &[]).expect_err("it is not TOML");
    assert_eq!(problems.len(), 2, "{problems:#?}");
    assert!(problems.iter().all(|problem| problem.contains("is not TOML")), "{problems:#?}");
}

#[test]
fn syntax_errors_do_not_quote_the_line() {
    let problems =
        load("[credentials]\nclient_secret = hunter2 hunter2\nx = 'hunter2\n", &[]).expect_err("it is not TOML");
    assert!(!problems.concat().contains("hunter2"), "{problems:#?}");
}

#[test]
fn unreadable_files_are_told_and_nothing_is_called_missing() {
    let files = Files::new();
    files.write("latin1.toml", "");
    fs::write(files.0.path().join("latin1.toml"), b"# caf\xe9\n").expect("a file in a temporary directory");
    let cases = [
        ("absent.toml", "no such file; name the file with --config or LICENSE_GATEWAY_CONFIG"),
        ("latin1.toml", "is not UTF-8 text; TOML files are"),
        ("", "cannot be read: Is a directory (os error 21)"),
    ];
    for (name, message) in cases {
        let path = files.path(name);
        let problems = Config::load(Some(Path::new(&path)), []).expect_err(name);
        assert_eq!(problems.to_string(), format!("the configuration has 1 problem:\n  {path}: {message}"));
    }
}

#[test]
fn environment_alone_is_enough_and_wins_over_the_file() {
    let files = Files::new();
    let secret = files.path("secret");
    let alone = [
        ("LICENSE_GATEWAY__CENTRAL__CLUSTER", "eu-1"),
        ("LICENSE_GATEWAY__CREDENTIALS__CLIENT_ID", "42"),
        ("LICENSE_GATEWAY__CREDENTIALS__CLIENT_SECRET_FILE", secret.as_str()),
        ("LICENSE_GATEWAY__CENTRAL__MAX_IN_FLIGHT", "7"),
        ("LICENSE_GATEWAY__CENTRAL__ALLOW_OPEN_SCOPES", "true"),
        // What Kubernetes sets for a service of our name, and what the commands read.
        ("LICENSE_GATEWAY_PORT", "tcp://10.0.0.1:50051"),
        ("LICENSE_GATEWAY_ADDRESS", "http://127.0.0.1:50051"),
    ];
    let environment = alone.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let config = Config::load(None, environment).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(config.central.base_url.host_str(), Some("eu-apigw.central.arubanetworks.com"));
    assert_eq!(config.credentials.client_id, "42");
    assert_eq!(config.central.max_in_flight, 7);
    assert!(config.central.allow_open_scopes);

    // A bad value in the file does not matter once a variable replaces it.
    let text = files.minimal("server.listen = \"nonsense\"\n");
    let loaded = valid(&text, &[("LICENSE_GATEWAY__SERVER__LISTEN", "127.0.0.1:0")]);
    assert_eq!(loaded.config.server.listen.to_string(), "127.0.0.1:0");
    assert_eq!(loaded.effective[1].origin, ValueOrigin::Environment("LICENSE_GATEWAY__SERVER__LISTEN".to_owned()));
}

#[test]
fn every_setting_can_come_from_its_variable() {
    let files = Files::new();
    for setting in settings::all() {
        let problems = load(&files.minimal(""), &[(&setting.variable(), "")]).expect_err(setting.name);
        let sentence = format!("{} ({}): is empty; give it a value or remove it", setting.name, setting.variable());
        assert!(problems.contains(&sentence), "{problems:#?}");
    }
}

#[test]
fn every_cluster_name_leads_to_its_host() {
    let files = Files::new();
    let mut hosts = HashSet::new();
    for (name, host) in cluster::HOSTS {
        let LoadedConfig { config, effective } = valid(&files.minimal("").replace("us-2", name), &[]);
        assert_eq!(config.central.base_url.as_str(), format!("https://{host}/"));
        assert!(host.ends_with(".central.arubanetworks.com") || host.ends_with(".central.arubanetworks.com.cn"));
        assert!(hosts.insert(host), "{host} stands twice");
        let base_url = effective.iter().find(|effective| effective.name == "central.base_url").expect("it is listed");
        assert_eq!(base_url.value, Some(config.central.base_url.to_string()));
        assert_eq!(base_url.origin, ValueOrigin::Setting("central.cluster"));
    }
}

#[test]
fn used_up_seed_may_be_gone() {
    let files = Files::new();
    let text =
        files.minimal("").replace("client_id", &format!("refresh_token_file = \"{}\"\nclient_id", files.path("gone")));
    assert_eq!(valid(&text, &[]).config.credentials.refresh_token_file, Some(files.path("gone").into()));
}

#[test]
fn example_file_is_valid_once_its_secrets_exist() {
    let files = Files::new();
    let example = include_str!("../../config.example.toml");
    let text = example
        .replace("/run/secrets/license-gateway/client_secret", &files.path("secret"))
        .replace("/run/secrets/license-gateway/refresh_token", &files.path("seed"));
    assert_ne!(text, example);
    valid(&text, &[]);
}

#[test]
fn secret_in_place_of_its_file_is_hidden_where_the_setting_is_marked() {
    let files = Files::new();
    let secrets: Vec<_> =
        settings::all().filter(|setting| matches!(setting.shown(), ShownValue::Path | ShownValue::Never)).collect();
    for file in settings::all().filter(|setting| setting.name.ends_with("_file")) {
        assert_eq!(file.shown(), ShownValue::Path, "{}", file.name);
    }
    for url in settings::all().filter(|setting| setting.name.ends_with("url")) {
        assert!(matches!(url.shown(), ShownValue::Url | ShownValue::ValidUrl), "{}", url.name);
    }
    let kinds = ["file", "redis", "kubernetes"];
    for (setting, kind) in secrets.iter().flat_map(|setting| kinds.map(|kind| (setting, kind))) {
        let text = files.minimal(&format!("token_store.kind = \"{kind}\"\n"));
        let told = match load(&text, &[(&setting.variable(), "hunter 2")]) {
            Ok(loaded) => format!("{:?}", loaded.effective),
            Err(problems) => problems.concat(),
        };
        assert!(!told.contains("hunter 2"), "{}: {told}", setting.name);
    }
}

#[test]
fn secrets_are_not_in_what_is_printed() {
    let files = Files::new();
    let loaded = valid(&files.minimal(""), &[]);
    assert!(!format!("{loaded:?}").contains("s3cr3t"));
}

/// Makes another section and key of them.
type Misspell<'a> = &'a dyn Fn(&str, &str) -> (String, String);

/// Every setting, misspelt in each of these ways in the file, is told.
#[test]
fn no_misspelt_setting_is_silent() {
    let swapped = |word: &str| {
        let at = word.len() / 2;
        format!("{}{}{}{}", &word[..at - 1], &word[at..=at], &word[at - 1..at], &word[at + 1..])
    };
    let ways: [(&str, Misspell<'_>); 8] = [
        ("a letter is missing", &|section, key| (section.to_owned(), key[1..].to_owned())),
        ("wrong case", &|section, key| (section.to_owned(), key.to_uppercase())),
        ("dashes", &|section, key| (section.to_owned(), format!("{}-", key.replace('_', "-")))),
        ("a letter too many", &|section, key| (section.to_owned(), format!("{key}s"))),
        ("two letters are swapped", &|section, key| (section.to_owned(), format!("{}x", swapped(key)))),
        ("the section is misspelt", &|section, key| (format!("{section}s"), key.to_owned())),
        ("the section is in capitals", &|section, key| (section.to_uppercase(), key.to_owned())),
        ("no such section", &|_, key| ("gateway".to_owned(), key.to_owned())),
    ];
    let mut tried = 0;
    for setting in settings::all().filter(|setting| setting.name.contains('.')) {
        for (way, misspelt) in &ways {
            let (section, key) = misspelt(setting.section(), setting.key());
            let problems = load(&format!("[{section}]\n{key} = true\n"), &[]).expect_err("it is incomplete anyway");
            let told = problems.iter().any(|problem| {
                problem.contains("gateway.toml:")
                    && (problem.contains("is not a setting") || problem.contains("is not a section"))
            });
            assert!(told, "{way}: [{section}] {key}: {problems:?}");
            tried += 1;
        }
    }
    assert!(tried >= 200, "{tried}");
}

#[test]
fn read_only_in_the_wrong_place_is_told() {
    let files = Files::new();
    for line in [
        "Read_Only = true",
        "raed_only = true",
        "readonly = true",
        "read-only = true",
        "read_only = \"true\"",
        "read_only = 1",
    ] {
        assert!(load(&files.minimal(&format!("{line}\n")), &[]).is_err(), "{line}");
    }
    for section in ["central", "server", "credentials", "log"] {
        let text = files.minimal("").replace("[central]\n", &format!("[{section}]\nread_only = true\n[central]\n"));
        assert!(load(&text, &[]).is_err(), "{section}");
    }
}
