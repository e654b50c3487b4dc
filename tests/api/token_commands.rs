//! `token status` and `token seed`: the real binary, on a store of its own and beside a running gateway.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use license_gateway::proto::{ListServicesRequest, licensing_service_client::LicensingServiceClient};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::{
    commands::{Ran, run, run_with_input},
    support::{Failure, Process, another_tool_refreshes, channel, customer, include, living, sandbox},
};

/// A configuration with a `file` store below a temporary directory.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let path = |name| place.0.path().join(name);
        fs::write(path("secret"), "hunter2").unwrap();
        let text = format!(
            "[central]\ncluster = \"us-2\"\n[credentials]\nclient_id = \"id\"\nclient_secret_file = \"{}\"\n\
             [token_store]\npath = \"{}\"\n",
            path("secret").display(),
            path("state").display()
        );
        fs::write(path("gateway.toml"), text).unwrap();
        place
    }

    fn record(&self) -> PathBuf {
        self.0.path().join("state/token.json")
    }

    fn status(&self) -> Ran {
        status(self.0.path(), &[])
    }

    fn json(&self) -> (i32, Value) {
        let ran = status(self.0.path(), &["--json"]);
        (ran.code, ran.json())
    }

    fn seed(&self, input: &str) -> Ran {
        seed(self.0.path(), input)
    }
}

fn status(dir: &Path, more: &[&str]) -> Ran {
    let config = dir.join("gateway.toml").display().to_string();
    run(&[&["token", "status", "--config", &config], more].concat())
}

fn seed(dir: &Path, input: &str) -> Ran {
    let config = dir.join("gateway.toml").display().to_string();
    run_with_input(&["token", "seed", "--config", &config], input)
}

#[test]
fn an_empty_store_is_seeded_once() {
    let place = Place::new();
    let before = place.status();
    assert_eq!(before.code, 1);
    let kept = format!("kept in            file {}\n", place.record().display());
    assert!(
        before.out.starts_with("A new refresh token is needed: no refresh token was ever put in place.\n\n"),
        "{}",
        before.out
    );
    assert!(before.out.contains(&kept) && before.out.contains("`license-gateway token seed`"), "{}", before.out);
    let (code, json) = place.json();
    assert_eq!((code, &json["ok"], &json["usable"]), (1, &json!(true), &json!(false)));
    assert!(!place.record().exists(), "a look writes nothing");

    let seeded = place.seed("hunter3\n");
    assert_eq!(seeded.code, 0, "{}", seeded.err);
    assert!(seeded.err.starts_with("The refresh token goes into: "), "{}", seeded.err);
    assert!(seeded.out.starts_with("The refresh token was put in as generation 1"), "{}", seeded.out);

    let after = place.status();
    assert_eq!(after.code, 0, "{}", after.out);
    assert!(after.out.starts_with("There is a usable chain of tokens.\n"), "{}", after.out);
    assert!(after.out.contains("none yet: the seed was not exchanged"), "{}", after.out);
    let (code, json) = place.json();
    assert_eq!(code, 0);
    assert_eq!((&json["generation"], &json["seeds"], &json["access_token"]), (&json!(1), &json!(1), &Value::Null));
    assert_eq!(json["exchange"], json!({"state": "none", "tries": 0, "logins": 0}));
    let fingerprint = json["last_seed"].as_str().unwrap();
    assert!(seeded.out.contains(fingerprint) && after.out.contains(fingerprint));

    let record = fs::read(place.record()).unwrap();
    let again = place.seed("hunter3");
    assert_eq!((again.code, again.out.as_str()), (1, ""));
    assert!(again.err.contains("was put in before") && again.err.contains(fingerprint), "{}", again.err);
    assert_eq!(fs::read(place.record()).unwrap(), record, "nothing was changed");

    // The JSON that Central's "Download Token" gives.
    let seeded = place.seed(r#"{"access_token":"x","refresh_token":"hunter4","expires_in":7200}"#);
    assert!(seeded.out.contains("as generation 2"), "{}{}", seeded.out, seeded.err);
    for ran in [before, seeded, after, again] {
        assert!(!(ran.out + &ran.err).contains("hunter"), "a secret shows");
    }
}

#[test]
fn what_is_no_seed_is_refused_without_repeating_it() {
    let place = Place::new();
    let cases = [
        ("", "standard input is empty"),
        ("hunter2 hunter2", "it holds more than a refresh token"),
        ("{\"access_token\":\"hunter2\"}", "it is JSON without a refresh_token"),
        (&"hunter2".repeat(10_000), "far more than a refresh token"),
    ];
    for (input, expected) in cases {
        let ran = place.seed(input);
        assert_eq!((ran.code, ran.out.as_str()), (64, ""), "{}", ran.err);
        assert!(ran.err.contains(expected) && !ran.err.contains("hunter2"), "{}", ran.err);
    }
    let config = place.0.path().join("gateway.toml").display().to_string();
    for token in ["hunter2", "-hunter2"] {
        let ran = run(&["token", "seed", "--config", &config, token]);
        assert_eq!((ran.code, ran.out.as_str()), (64, ""), "{}", ran.err);
        assert!(!ran.err.contains("hunter2"), "{}", ran.err);
    }
    assert!(!place.record().exists());
}

#[test]
fn a_damaged_record_is_named_and_left_alone() {
    let place = Place::new();
    assert_eq!(place.seed("hunter3").code, 0);
    let damaged = fs::read_to_string(place.record()).unwrap().replace("hunter3", "hunter4");
    fs::write(place.record(), &damaged).unwrap();
    let name = format!("{:?}", place.record());
    let (code, json) = place.json();
    let error = json["error"].as_str().unwrap();
    assert_eq!((code, &json["ok"]), (1, &json!(false)));
    assert!(error.contains(&name) && error.contains("its checksum does not fit"), "{error}");
    for ran in [place.status(), place.seed("hunter5")] {
        assert_eq!((ran.code, ran.out.as_str()), (1, ""));
        assert!(ran.err.contains(&name) && !ran.err.contains("hunter"), "{}", ran.err);
    }
    assert_eq!(fs::read_to_string(place.record()).unwrap(), damaged);
}

/// Nobody holds such a store: the seed is put in by a compare-and-swap, also beside gateways that run.
#[cfg(feature = "tests-with-redis")]
#[test]
fn a_store_in_redis_is_looked_at_and_seeded() {
    let mut server = crate::redis_server::RedisServer::start_with(&["--appendfsync", "everysec"]);
    let place = Place::new();
    let file = place.0.path().join("gateway.toml");
    let text = fs::read_to_string(&file).unwrap() + &format!("kind = \"redis\"\nurl = \"{}\"\n", server.url());
    fs::write(&file, text).unwrap();

    assert_eq!(place.status().code, 1);
    assert!(place.seed("hunter3").out.contains("as generation 1"));
    assert!(place.seed("hunter3").err.contains("was put in before"));
    let (code, json) = place.json();
    assert_eq!((code, &json["generation"]), (0, &json!(1)), "{json}");
    let store = json["store"].as_str().unwrap();
    assert!(store.starts_with("key \"license-gateway:token\" in Redis at "), "{store}");
    assert!(json["warnings"][0].as_str().unwrap().contains("set appendfsync always"), "{json}");
    assert!(place.status().out.contains("\nWarning: appendfsync is everysec"), "{}", place.status().out);
    assert!(!place.record().exists());

    server.kill();
    for ran in [place.status(), place.seed("hunter4")] {
        assert_eq!((ran.code, ran.out.as_str()), (1, ""));
        assert!(ran.err.contains("cannot be reached") && !ran.err.contains("hunter"), "{}", ran.err);
    }
}

/// From a person's machine, as from a pod: what the gateway put into its Secret is looked at, and seeded.
#[cfg(feature = "kubernetes-store")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_in_kubernetes_is_looked_at_and_seeded() {
    use crate::{
        api_server::{ApiServer, BEARER},
        support::kubeconfig,
    };

    let (sandbox, api, dir) = (sandbox().await, ApiServer::start().await, tempfile::tempdir().unwrap());
    let kubeconfig = kubeconfig(&api, dir.path());
    let more = [("LICENSE_GATEWAY__TOKEN_STORE__KIND", "kubernetes"), ("KUBECONFIG", kubeconfig.to_str().unwrap())];
    let ran = |arguments: &[&str], input: &str| -> Ran {
        let mut child = Command::new(env!("CARGO_BIN_EXE_license-gateway"))
            .args([&["token"], arguments, &["--config", dir.path().join("gateway.toml").to_str().unwrap()]].concat())
            .env_clear()
            .envs(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap().into()
    };

    let mut process = Process::serve(&sandbox, dir.path(), &more).await;
    process.said("a new pair of tokens is stored").await;
    let status = ran(&["status", "--json"], "");
    let json = status.json();
    assert_eq!((status.code, &json["usable"], &json["generation"]), (0, &json!(true), &json!(2)), "{json}");
    assert_eq!(json["store"], "Secret gateway/license-gateway-token", "{json}");
    assert_eq!((&json["seeds"], &json["exchange"]["state"]), (&json!(1), &json!("none")), "{json}");
    assert!(ran(&["status"], "").out.starts_with("There is a usable chain of tokens.\n"));
    assert!(!dir.path().join("state/token.json").exists());
    let written = api.cluster.requests().iter().filter(|verb| ["create", "update"].contains(verb)).count();

    // A look writes nothing; a seed that is known changes nothing.
    let known = ran(&["seed"], &fs::read_to_string(dir.path().join("refresh_token")).unwrap());
    assert!(known.code == 1 && known.err.contains("was put in before"), "{}", known.err);
    assert_eq!(api.cluster.requests().iter().filter(|verb| ["create", "update"].contains(verb)).count(), written);

    // The chain is lost; a person says so to the Secret, and the running gateway sees it there.
    another_tool_refreshes(&sandbox).await;
    let mut client = LicensingServiceClient::new(channel(process.address).await);
    // Another replica might hold the successor: that shows within seconds.
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let lost = client.unassign_licenses(include(&[&customer(&sandbox, 0)])).await.unwrap_err();
        match &*Failure::from(lost).reason {
            "CENTRAL_CREDENTIALS_REJECTED" => break,
            reason => assert!(reason == "CENTRAL_TOKEN_UNAVAILABLE" && Instant::now() < deadline, "{reason}"),
        }
        sleep(Duration::from_millis(100)).await;
    }
    let status = ran(&["status"], "");
    assert_eq!(status.code, 1);
    assert!(
        status.out.starts_with("A new refresh token is needed: Central refused the refresh token."),
        "{}",
        status.out
    );
    let seeded = ran(&["seed"], &living(&sandbox));
    assert_eq!(seeded.code, 0, "{}", seeded.err);
    assert!(seeded.err.starts_with("The refresh token goes into: "), "{}", seeded.err);
    let deadline = Instant::now() + Duration::from_secs(5);
    while client.unassign_licenses(include(&[&customer(&sandbox, 0)])).await.is_err() {
        assert!(Instant::now() < deadline, "the gateway did not see the seed");
        sleep(Duration::from_millis(50)).await;
    }

    // What one may not do is named.
    api.cluster.forbid("get");
    let forbidden = ran(&["status"], "");
    assert_eq!((forbidden.code, forbidden.out.as_str()), (1, ""));
    assert!(forbidden.err.contains("Secret gateway/license-gateway-token"), "{}", forbidden.err);
    api.cluster.allow("get");
    for ran in [known, status, seeded, forbidden] {
        let text = ran.out + &ran.err;
        assert!(!text.contains(&living(&sandbox)) && !text.contains(BEARER), "a secret shows");
    }
    process.terminate();
    assert!(process.exit().await.0.success());
}

/// Needs the right to mount a tmpfs.
#[test]
fn a_store_that_cannot_be_written_is_not_called_usable() {
    let place = Place::new();
    assert_eq!(place.seed("hunter3").code, 0);
    let record = fs::read(place.record()).unwrap();
    let state = place.record().parent().unwrap().to_owned();
    let over = crate::custody::storage::Mounted::over(&state, "size=512k");
    for name in ["token.json", "lock"] {
        fs::write(state.join(name), &record).unwrap();
    }
    let remounted = Command::new("mount").args(["-o", "remount,ro"]).arg(&over.0).status();
    assert!(remounted.unwrap().success());
    let status = place.status();
    assert_eq!(status.code, 1, "{}", status.out);
    assert!(status.out.starts_with("The store cannot be written: no token is refreshed"), "{}", status.out);
    assert!(status.out.contains("Read-only file system"), "{}", status.out);
    let (code, json) = place.json();
    assert_eq!((code, &json["usable"], json["unwritable"].is_string()), (1, &json!(false), true), "{json}");
}

#[test]
fn a_seed_for_another_kind_of_store_is_not_read() {
    let place = Place::new();
    let config = place.0.path().join("gateway.toml").display().to_string();
    let ran = run_with_input(&["token", "seed", "--store", "kubernetes", "--config", &config], "hunter3");
    assert_eq!((ran.code, ran.out.as_str()), (64, ""));
    assert!(ran.err.contains("keeps its tokens in a file store, not in a kubernetes one"), "{}", ran.err);
    assert!(!place.record().exists());
}

#[test]
fn a_wrong_configuration_is_told() {
    for arguments in [["token", "status"], ["token", "seed"]] {
        let ran = run(&arguments);
        assert_eq!((ran.code, ran.out.as_str()), (64, ""));
        assert!(ran.err.contains("credentials.client_id: is missing"), "{}", ran.err);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_gateway_is_looked_at_without_disturbing_it() {
    let sandbox = sandbox().await;
    let dir = tempfile::tempdir().unwrap();
    let process = Process::serve(&sandbox, dir.path(), &[]).await;
    let mut client = LicensingServiceClient::new(channel(process.address).await);
    client.list_services(ListServicesRequest {}).await.unwrap();

    let ran = status(dir.path(), &["--json"]);
    let json = ran.json();
    assert_eq!((ran.code, &json["usable"], &json["seeds"]), (0, &json!(true), &json!(1)), "{json}");
    assert_eq!((&json["access_token"]["valid"], &json["exchange"]["state"]), (&json!(true), &json!("none")), "{json}");
    assert_eq!(json["generation"], 2, "the seed and its successor");
    assert!(status(dir.path(), &[]).out.contains("valid until 2"));

    // The seed that it took from its file is known.
    let seed_file = fs::read_to_string(dir.path().join("refresh_token")).unwrap();
    let ran = seed(dir.path(), &seed_file);
    assert!(ran.code == 1 && ran.err.contains("was put in before"), "{}", ran.err);
    client.list_services(ListServicesRequest {}).await.unwrap();
    process.terminate();
    assert!(process.exit().await.0.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_gateway_takes_a_seed_that_is_handed_to_it() {
    let sandbox = sandbox().await;
    let dir = tempfile::tempdir().unwrap();
    let process = Process::serve(&sandbox, dir.path(), &[]).await;
    let mut client = LicensingServiceClient::new(channel(process.address).await);
    client.list_services(ListServicesRequest {}).await.unwrap();
    // Another tool spends the gateway's refresh token: the chain is lost, and the living pair is elsewhere.
    let settings = sandbox.settings();
    let grant = [
        ("grant_type", "refresh_token"),
        ("client_id", &settings.client_id),
        ("client_secret", &settings.client_secret),
        ("refresh_token", &living(&sandbox)),
    ];
    let url = format!("{}/oauth2/token", sandbox.base_url());
    let answer = reqwest::Client::new().post(url).form(&grant).send().await.unwrap();
    assert!(answer.status().is_success());
    let fresh = living(&sandbox);

    let ran = seed(dir.path(), &fresh);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(ran.err, format!("The refresh token goes into: file {}/state/token.json.\n", dir.path().display()));
    assert!(ran.out.starts_with("The running gateway took the refresh token"), "{}", ran.out);
    client.unassign_licenses(include(&[&customer(&sandbox, 0)])).await.unwrap();
    assert!(!dir.path().join("state/seed").exists(), "the inbox is empty again");
    process.terminate();
    assert!(process.exit().await.0.success());
    let ran = status(dir.path(), &["--json"]);
    assert_eq!((ran.code, &ran.json()["seeds"]), (0, &json!(2)), "{}", ran.out);
}
