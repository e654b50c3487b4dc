//! Wrong configurations: `check-config` and `serve` refuse the same ones, with the same sentence, and show no secret.
//!
//! `wrong/configurations.txt` has two lines for each: what is set beside a good configuration (variables without their
//! prefix, then TOML behind a `|`), and the sentence.

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader, Read as _},
    path::Path,
    process::Command,
    time::{Duration, SystemTime},
};

use license_gateway::config::settings;
use rcgen::{CertificateParams, KeyPair};
use serde_json::Value;

use crate::commands::{Ran, command};

const CONFIGURATIONS: &str = include_str!("wrong/configurations.txt");

/// Good files and bad ones, and a good configuration of some of them.
fn directory() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let certificate = |key: &KeyPair, not_after: SystemTime| {
        let mut params = CertificateParams::new(["gateway.test".to_owned()]).unwrap();
        params.not_after = not_after.into();
        params.self_signed(key).unwrap().pem()
    };
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let (pem, key_pem) = (certificate(&key, SystemTime::now() + Duration::from_hours(365 * 24)), key.serialize_pem());
    write("secret", "s3cr3t\n");
    write("good.pem", &pem);
    write("soon.pem", &certificate(&key, SystemTime::now() + Duration::from_hours(5 * 24)));
    write("expired.pem", &certificate(&key, SystemTime::now() - Duration::from_hours(24)));
    write("bom", "\u{feff}s3cr3t\n");
    write("quoted", "\"s3cr3t\"\n");
    write("nul", "s3\0cr3t\n");
    write("lines", "s3cr3t\ns3cr3t\n");
    write("good.key", &key_pem);
    write("other.key", &other.serialize_pem());
    write("one-line.key", &key_pem.replace('\n', " "));
    write("one-line.pem", &pem.replace('\n', ""));
    write("half.pem", &pem[..pem.len() / 2]);
    write("half.key", &key_pem[..key_pem.len() / 2]);
    write("bad-body.pem", &pem.replacen("MII", "!!!", 1));
    write("not-der.pem", "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n");
    write("not-der.key", "-----BEGIN PRIVATE KEY-----\naGVsbG8=\n-----END PRIVATE KEY-----\n");
    write("second-bad.pem", &format!("{pem}-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n"));
    write("encrypted.key", "-----BEGIN ENCRYPTED PRIVATE KEY-----\naGVsbG8=\n-----END ENCRYPTED PRIVATE KEY-----\n");
    write(
        "old-encrypted.key",
        "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,0\n\naGVsbG8=\n-----END RSA PRIVATE \
         KEY-----\n",
    );
    write("empty", " \n");
    write("broken.json", "{\"keys\": [");
    write("no-keys.json", "{\"keys\": []}");
    write("secret.json", "{\"keys\": [{\"kty\": \"oct\", \"kid\": \"k\", \"k\": \"c2VjcmV0\"}]}");
    fs::create_dir(dir.path().join("truncated")).unwrap();
    write("truncated/audit-0000000001.jsonl", "");
    write("truncated/head", &format!("{:020} {}\n", 7, "0".repeat(64)));
    fs::write(dir.path().join("binary"), [0xff, 0xfe, 0]).unwrap();
    dir
}

fn config_text(dir: &Path, toml: &str) -> String {
    let dir = dir.display();
    format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n[central]\nbase_url = \
         \"https://central.test\"\n[credentials]\nclient_id = \"id\"\nclient_secret_file = \"{dir}/secret\"\n[token_store]\npath \
         = \"{dir}/state\"\n[audit]\npath = \"{dir}/audit\"\n{}\n",
        toml.replace("\\n", "\n").replace("{dir}", &dir.to_string())
    )
}

fn start(subcommand: &str, dir: &Path, variables: &str, toml: &str) -> Command {
    fs::write(dir.join("gateway.toml"), config_text(dir, toml)).unwrap();
    let config = dir.join("gateway.toml");
    let arguments: Vec<_> = subcommand.split(' ').chain(["--config", config.to_str().unwrap()]).collect();
    let mut command = command(&arguments);
    command.env("HOME", dir); // else it is that of whoever runs the tests, with a kubeconfig perhaps
    for variable in variables.split(" ; ").map(str::trim).filter(|variable| !variable.is_empty()) {
        let (name, value) = variable.split_once('=').unwrap();
        let value = value.replace("{dir}", dir.to_str().unwrap());
        let is_whole = (!name.contains("__") && name != "READ_ONLY") || name.to_uppercase().contains("LICEN");
        command.env(if is_whole { name.to_owned() } else { format!("LICENSE_GATEWAY__{name}") }, value);
    }
    command
}

/// What `serve` says until it ends, and its exit code; none: it began to serve.
fn serve(mut command: Command) -> (Option<i32>, String) {
    let mut child = command.spawn().unwrap();
    let mut said = String::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap) {
        let record: Value = serde_json::from_str(&line).unwrap();
        if record["message"] == "token condition" {
            child.kill().unwrap();
            child.wait().unwrap();
            return (None, said);
        }
        let _ = writeln!(said, "{line}\n{}", record["error"].as_str().unwrap_or_default());
    }
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (Some(child.wait().unwrap().code().expect("no signal ends it")), said)
}

#[test]
fn check_config_and_serve_refuse_the_same_with_the_same_sentence() {
    let lines: Vec<_> = CONFIGURATIONS.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let (mut table, mut wrong) = (String::new(), Vec::new());
    for pair in lines.chunks(2) {
        let (set, expected) = (pair[0], pair.get(1).copied().unwrap_or_default());
        let (variables, toml) = set.split_once('|').unwrap_or((set, ""));
        // Each has its own: what serve leaves behind is not the next one's affair.
        let dir = directory();
        let checked = Ran::from(start("check-config", dir.path(), variables, toml).output().unwrap());
        let mut problems = checked.err.lines().skip(1).map(str::trim);
        let sentence = problems.next().unwrap_or_default().to_owned();
        let shown = sentence.replace(dir.path().to_str().unwrap(), "{dir}");
        if checked.code != 64 || shown.trim() != expected.trim() || problems.next().is_some() {
            wrong.push(format!("{set}\n  {}{}", checked.code, checked.err));
        }
        match serve(start("serve", dir.path(), variables, toml)) {
            (None, _) => wrong.push(format!("{set}\n  serve starts")),
            (Some(code), said) if code == 0 || !said.contains(&sentence) => {
                wrong.push(format!("{set}\n  check-config: {sentence}\n  serve: {code} {said}"));
            }
            (Some(_), _) => {}
        }
        let _ = writeln!(table, "{set}\n  {shown}");
    }
    assert!(lines.len() >= 120, "{}", lines.len());
    assert!(wrong.is_empty(), "{}\n\nAll as it is:\n{table}", wrong.join("\n"));
}

/// What is valid and will hurt: `check-config` says so, in these words.
#[test]
fn check_config_warns_of_what_will_hurt() {
    let tls = "TLS__KEY_FILE={dir}/good.key ; TLS__CERTIFICATE_FILE";
    let secret = "CREDENTIALS__CLIENT_SECRET_FILE={dir}";
    for (set, warning) in [
        (&*format!("{tls}={{dir}}/expired.pem"), "tls.certificate_file holds a certificate that expired at "),
        (&format!("{tls}={{dir}}/soon.pem"), "tls.certificate_file holds a certificate that expires at "),
        (
            &format!("{tls}={{dir}}/good.pem ; TLS__CLIENT_CA_FILE={{dir}}/expired.pem"),
            "tls.client_ca_file holds a certi",
        ),
        ("CENTRAL__CA_FILE={dir}/soon.pem", "central.ca_file holds a certificate that expires at "),
        ("SERVER__DRAIN_TIMEOUT=5s", "server.drain_timeout is 5s and central.timeout 30s: "),
        ("SERVER__MAX_DEADLINE=5s", "server.max_deadline is 5s and central.timeout 30s: "),
        ("QUOTA__REPLICAS=100", "central.max_wait is 10s, and by quota.per_second and quota.replicas two calls are 16"),
        (
            "CENTRAL__BASE_URL=https://global.api.greenlake.hpe.com",
            "central.base_url leads to global.api.greenlake.hpe.co",
        ),
        (
            "CENTRAL__BASE_URL=https://us2.api.central.arubanetworks.com",
            "central.base_url leads to us2.api.central.aruba",
        ),
        ("HTTPS_PROXY=http://proxy.test", "HTTPS_PROXY has no effect: variables for proxies are not read; "),
        (
            &format!("{secret}/bom"),
            "credentials.client_secret_file: the secret in that file begins with a byte order mark",
        ),
        (&format!("{secret}/quoted"), "credentials.client_secret_file: the secret in that file stands in quotes"),
        (&format!("{secret}/nul"), "credentials.client_secret_file: the secret in that file holds a NUL byte"),
        (&format!("{secret}/lines"), "credentials.client_secret_file: the secret in that file has more than one line"),
    ] {
        let dir = directory();
        let checked = Ran::from(start("check-config", dir.path(), set, "").output().unwrap());
        let warnings: Vec<_> = checked.out.lines().filter_map(|line| line.strip_prefix("warning: ")).collect();
        assert_eq!(checked.code, 0, "{set}: {}", checked.err);
        assert!(matches!(&warnings[..], [one] if one.starts_with(warning)), "{set}: {warnings:?}");
        assert!(!checked.out.contains("s3cr3t"), "{set}: {}", checked.out);
    }
    let dir = directory();
    let good = Ran::from(start("check-config", dir.path(), "", "").output().unwrap());
    assert!(!good.out.contains("warning"), "{}", good.out);
    assert!(!dir.path().join("state").exists() && !dir.path().join("audit").exists(), "nothing was made");
}

/// A secret in a wrong place, said by no command.
#[test]
fn no_secret_is_shown_wherever_it_was_put() {
    const TOKEN: &str = "K9sdf83hfAQ2mvLw0pZx7TyB";
    let key = fs::read_to_string(directory().path().join("good.key")).unwrap();
    let files: Vec<_> = settings::all().filter(|setting| setting.name.ends_with("_file")).collect();
    let never = settings::all().filter(|setting| setting.shown() == settings::ShownValue::Never);
    let urls: Vec<_> = settings::all().filter(|setting| setting.name.ends_with("url")).collect();
    let put: Vec<(String, String)> = files
        .iter()
        .map(|setting| (setting.variable(), TOKEN.to_owned()))
        .chain(files.iter().map(|setting| (setting.variable(), key.clone())))
        .chain(never.map(|setting| (setting.variable(), TOKEN.to_owned())))
        .chain(urls.iter().map(|setting| (setting.variable(), TOKEN.to_owned())))
        .chain(urls.iter().map(|setting| (setting.variable(), format!("https://me:{TOKEN}@h.test"))))
        .chain(urls.iter().map(|setting| (setting.variable(), format!("https://h.test/?key={TOKEN}"))))
        .chain([
            ("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), format!("http://me:{TOKEN}@collector.test:4317")),
            ("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), format!("http://collector.test:4317/?key={TOKEN}")),
            ("OTEL_EXPORTER_OTLP_HEADERS".to_owned(), format!("authorization={TOKEN}\u{1}")),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE".to_owned(), TOKEN.to_owned()),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY".to_owned(), key.clone()),
            ("HTTPS_PROXY".to_owned(), format!("http://me:{TOKEN}@proxy.test")),
        ])
        .collect();
    assert!(put.len() > 40, "{}", put.len());
    let middle = key.lines().nth(1).unwrap();
    for kind in ["file", "redis"] {
        for (variable, value) in &put {
            let dir = directory();
            let kind = format!("TOKEN_STORE__KIND={kind}");
            let with = |subcommand| {
                let mut command = start(subcommand, dir.path(), &kind, "");
                command.env(variable, value);
                command
            };
            let mut said = String::new();
            for mut command in [with("check-config"), with("token status")] {
                let ran = Ran::from(command.output().unwrap());
                let _ = write!(said, "{}{}", ran.out, ran.err);
            }
            said += &serve(with("serve")).1;
            assert!(!said.contains(TOKEN) && !said.contains(middle), "{variable}={value}: {said}");
        }
    }
}
