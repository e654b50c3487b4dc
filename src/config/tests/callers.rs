//! The policy and the server's TLS: what a file means, or the sentences that refuse it.

use super::*;
use crate::license::{CustomerId, ServiceName};

const EXAMPLE: &str = r#"
read_only = true

[[callers]]
identity = "spiffe://msp.test/offboarding"
rpcs = ["UnassignLicenses", "PreviewUnassignLicenses"]
scopes = ["include"]
services = ["advanced_ap"]
customers = ["c1", "c2"]
max_customers_per_request = 5
max_customers_per_hour = 1_00
max_reads_per_hour = 50

[[callers]]
identity = "anonymous"
rpcs = ["ListServices"]

[[callers]]
identity = "ops.msp.test"
rpcs = ["UnassignLicenses"]
scopes = ["include", "exclude", "all"]
services = "*"
customers = "*"
"#;

/// A whole configuration: the policy comes first, because a top-level key must.
fn with(policy: &str, files: &Files) -> String {
    format!("{policy}\n{}", files.minimal(""))
}

fn rules(identity: WhichCaller, rpcs: &[RpcName], scopes: &[ScopeKind]) -> CallerRules {
    CallerRules {
        rpcs: rpcs.iter().copied().collect(),
        scopes: scopes.iter().copied().collect(),
        ..CallerRules::everything(identity)
    }
}

#[test]
fn policy_is_read_into_every_field() {
    let files = Files::new();
    let policy = valid(&with(EXAMPLE, &files), &[]).config.policy;
    let named = |name: &str| WhichCaller::Named(name.to_owned());
    let offboarding = CallerRules {
        services: AllowedNames::Only([ServiceName::new("advanced_ap".to_owned()).unwrap()].into()),
        customers: AllowedNames::Only(["c1", "c2"].map(|id| CustomerId::new(id.to_owned()).unwrap()).into()),
        max_customers_per_request: Some(5),
        max_customers_per_hour: Some(100),
        max_reads_per_hour: 50,
        ..rules(
            named("spiffe://msp.test/offboarding"),
            &[RpcName::UnassignLicenses, RpcName::PreviewUnassignLicenses],
            &[ScopeKind::Include],
        )
    };
    let anonymous = CallerRules {
        services: AllowedNames::Only([].into()),
        customers: AllowedNames::Only([].into()),
        ..rules(WhichCaller::Anonymous, &[RpcName::ListServices], &[])
    };
    let all = [ScopeKind::Include, ScopeKind::Exclude, ScopeKind::All];
    let ops = rules(named("ops.msp.test"), &[RpcName::UnassignLicenses], &all);
    assert_eq!(policy, Policy { read_only: true, callers: vec![offboarding, anonymous, ops] });
}

#[test]
fn a_certificate_and_a_token_of_the_same_name_are_two_callers() {
    let files = Files::new();
    let entry = |key: &str| format!("[[callers]]\n{key} = \"anonymous\"\nrpcs = [\"ListServices\"]\n");
    let policy = valid(&with(&(entry("identity") + &entry("token_subject")), &files), &[]).config.policy;
    let who: Vec<_> = policy.callers.into_iter().map(|caller| caller.identity).collect();
    // Not even the word for nobody is one here.
    assert_eq!(who, [WhichCaller::Anonymous, WhichCaller::TokenSubject("anonymous".to_owned())]);
}

#[test]
fn without_a_policy_nobody_may_do_anything() {
    let files = Files::new();
    assert_eq!(valid(&files.minimal(""), &[]).config.policy, Policy::default());
}

#[test]
#[allow(clippy::too_many_lines)] // a table
fn each_bad_policy_is_refused_in_sentences() {
    let files = Files::new();
    let entry = |line: &str| {
        let key = line.split(' ').next().unwrap().to_owned();
        let lines = [
            "identity = \"a\"",
            "rpcs = [\"UnassignLicenses\"]",
            "scopes = [\"include\"]",
            "services = \"*\"",
            "customers = \"*\"",
        ];
        let mut kept: Vec<_> = lines.into_iter().filter(|other| other.split(' ').next() != Some(&key)).collect();
        kept.push(line);
        format!("[[callers]]\n{}\n", kept.join("\n"))
    };
    let table: Vec<(String, &str)> = vec![
        ("callers = 3".to_owned(), "callers (gateway.toml:1): is a list; write [[callers]] above each entry"),
        (
            "[callers]\nidentity = \"a\"".to_owned(),
            "callers (gateway.toml:1): is a list; write [[callers]] above each entry",
        ),
        ("callers = [1]".to_owned(), "callers[0] (gateway.toml:1): is no entry; write [[callers]] above each"),
        ("[[caller]]\nidentity = \"a\"".to_owned(), "caller (gateway.toml:1): is not a setting"),
        (
            "[caller]\nidentity = \"a\"".to_owned(),
            "[caller] (gateway.toml:1): is not a section; did you mean [[callers]]?",
        ),
        (
            "[[callers]]".to_owned(),
            "callers[0].identity (gateway.toml:1): is missing; write the URI or the DNS name of the caller's certificate, or \"anonymous\"; or write token_subject with the `sub` of the caller's tokens",
        ),
        (
            format!("{}token_subject = \"a\"\n", entry("identity = \"a\"")),
            "callers[0].token_subject (gateway.toml:7): stands beside `identity`; whoever shows the certificate and whoever bears the token are two callers, so make two entries",
        ),
        (
            entry("identity = \"a\"").replace("identity = \"a\"", "token_subject = \"a b\""),
            "callers[0].token_subject (gateway.toml:6): is no identity: visible ASCII characters in quotes; it is compared exactly, without wildcards",
        ),
        (
            "[[callers]]\ntoken_subject = \"a\"\nrpcs = [\"ListServices\"]\n".repeat(2),
            "callers[1].token_subject (gateway.toml:4): stands in an entry above already; make one entry of both",
        ),
        (
            entry("identity = \"\""),
            "callers[0].identity (gateway.toml:6): is no identity: visible ASCII characters in quotes; it is compared exactly, without wildcards",
        ),
        (
            entry("identity = \"*\""),
            "callers[0].identity (gateway.toml:6): is no identity: visible ASCII characters in quotes; it is compared exactly, without wildcards",
        ),
        (
            entry("identity = \"a b\""),
            "callers[0].identity (gateway.toml:6): is no identity: visible ASCII characters in quotes; it is compared exactly, without wildcards",
        ),
        (
            entry("identity = 1"),
            "callers[0].identity (gateway.toml:6): is no identity: visible ASCII characters in quotes; it is compared exactly, without wildcards",
        ),
        (
            entry("rpcs = []"),
            "callers[0].rpcs (gateway.toml:6): is empty, which allows nothing; write a list of UnassignLicenses, PreviewUnassignLicenses, ListServices, GetOperation, ListOperations, WatchRelease, ListCustomers",
        ),
        (
            entry("rpcs = \"*\""),
            "callers[0].rpcs (gateway.toml:6): is of the wrong type; write a list of UnassignLicenses, PreviewUnassignLicenses, ListServices, GetOperation, ListOperations, WatchRelease, ListCustomers",
        ),
        (
            entry("rpcs = [\"Unassign\"]"),
            "callers[0].rpcs[0] (gateway.toml:6): is not one of UnassignLicenses, PreviewUnassignLicenses, ListServices, GetOperation, ListOperations, WatchRelease, ListCustomers",
        ),
        (
            entry("scopes = [\"include\", \"everyone\"]"),
            "callers[0].scopes[1] (gateway.toml:6): is not one of include, exclude, all",
        ),
        (
            entry("scopes = []"),
            "callers[0].scopes (gateway.toml:6): is empty, which allows nothing; write a list of include, exclude, all",
        ),
        (
            entry("services = []"),
            "callers[0].services (gateway.toml:6): is empty, which allows nothing; write a list of exact names, or \"*\" for all there are",
        ),
        (
            entry("services = \"advanced_ap\""),
            "callers[0].services (gateway.toml:6): is of the wrong type; write a list of exact names, or \"*\" for all there are",
        ),
        (
            entry("services = [\"advanced_*\"]"),
            "callers[0].services[0] (gateway.toml:6): holds a wildcard; names are compared exactly, and all is services = \"*\"",
        ),
        (
            entry("customers = [\"*\"]"),
            "callers[0].customers[0] (gateway.toml:6): holds a wildcard; names are compared exactly, and all is customers = \"*\"",
        ),
        (entry("customers = [\" \"]"), "callers[0].customers[0] (gateway.toml:6): must not be blank"),
        (entry("customers = [1]"), "callers[0].customers[0] (gateway.toml:6): is not a string in quotes"),
        (
            entry("customers = []"),
            "callers[0].customers (gateway.toml:6): is empty, which allows nothing; write a list of exact names, or \"*\" for all there are",
        ),
        (
            "[[callers]]\nidentity = \"a\"\nrpcs = [\"UnassignLicenses\"]\nscopes = [\"include\"]\nservices = \"*\""
                .to_owned(),
            "callers[0].customers (gateway.toml:1): is missing; write a list of exact names, or \"*\" for all there are",
        ),
        (
            entry("max_customers_per_hour = 0"),
            "callers[0].max_customers_per_hour (gateway.toml:7): is not a whole number above 0; to forbid a caller everything, remove the entry",
        ),
        (
            entry("max_customers_per_request = \"5\""),
            "callers[0].max_customers_per_request (gateway.toml:7): is not a whole number above 0; to forbid a caller everything, remove the entry",
        ),
        (
            entry("max_customers_per_hour = 99999999999"),
            "callers[0].max_customers_per_hour (gateway.toml:7): is not a whole number above 0; to forbid a caller everything, remove the entry",
        ),
        (entry("customer = \"*\""), "callers[0].customer (gateway.toml:7): is not known; did you mean `customers`?"),
        (
            entry("scopes = [\"all\"]").replace("customers = \"*\"", "customers = [\"c\"]"),
            "callers[0].scopes (gateway.toml:1): `exclude` and `all` reach customers that nobody lists; they need customers = \"*\"",
        ),
        (
            entry("identity = \"a\"").repeat(2),
            "callers[1].identity (gateway.toml:7): stands in an entry above already; make one entry of both",
        ),
        (
            "read_only = \"yes\"".to_owned(),
            "read_only (gateway.toml:1): is of the wrong type (a string); write true or false without quotes",
        ),
        (
            "[read_only]".to_owned(),
            "read_only (gateway.toml:1): is of the wrong type (table); write true or false without quotes",
        ),
    ];
    for (policy, sentence) in table {
        // The policy first: its lines have the numbers above.
        let problems = load(&with(&policy, &files), &[]).expect_err(&policy);
        assert!(problems.iter().any(|problem| problem.starts_with(sentence)), "{policy}\n{sentence}\n{problems:#?}");
    }
}

#[test]
fn policy_is_read_again_by_itself_and_refused_with_its_file() {
    let files = Files::new();
    let read_only = "LICENSE_GATEWAY__READ_ONLY";
    let path = files.0.path().join("gateway.toml");
    fs::write(&path, with("", &files)).unwrap();
    let source = |environment: &[(&str, &str)]| {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::load(Some(&path), environment).unwrap().policy_source.expect("there is a file")
    };
    assert_eq!(source(&[]).read(EXAMPLE).unwrap().callers.len(), 3);
    assert!(source(&[]).read("read_only = true").unwrap().read_only);
    // A variable goes before the file, then as at the start.
    assert!(!source(&[(read_only, "false")]).read("read_only = true").unwrap().read_only);
    for bad in ["read_only = 1", "[[callers]]", "[[callers", "unknown = 1", "[server]\nlisten_on = 3"] {
        assert!(source(&[]).read(bad).is_err(), "{bad}");
    }
}

#[test]
fn tls_takes_a_pair_and_authorities_only_with_it() {
    let files = Files::new();
    let (certificate, key, ca) = ("tls.certificate_file", "tls.key_file", "tls.client_ca_file");
    let variable = |name: &str| Setting::find(name).unwrap().variable();
    let with = |set: &[(&str, &str)]| {
        let set: Vec<_> = set.iter().map(|(name, file)| (variable(name), files.path(file))).collect();
        let set: Vec<_> = set.iter().map(|(name, file)| (name.as_str(), file.as_str())).collect();
        load(&files.minimal(""), &set)
    };
    let (is_pair, is_key) = ((certificate, "server.pem"), (key, "server.key"));
    assert!(with(&[]).unwrap().config.tls.is_none());
    assert!(with(&[is_pair, is_key]).unwrap().config.tls.unwrap().client_ca_file.is_none());
    let mutual = with(&[is_pair, is_key, (ca, "ca.pem")]).unwrap().config.tls.unwrap();
    assert_eq!(mutual.client_ca_file, Some(files.path("ca.pem").into()));

    let table: [(&[(&str, &str)], &str); 8] = [
        (&[is_pair], "is of use only with `tls.key_file`; set both or none"),
        (&[is_key], "is of use only with `tls.certificate_file`; set both or none"),
        (&[is_pair, (ca, "ca.pem")], "is of use only with `tls.key_file`; set both or none"),
        (&[(ca, "ca.pem")], "needs a certificate of the server; set `tls.certificate_file` and `tls.key_file` too"),
        (&[(certificate, "secret"), is_key], "holds no certificate; it must be a PEM file of certificates"),
        (&[is_pair, (key, "secret")], "holds no private key; it must be a PEM file"),
        (&[is_pair, is_key, (ca, "secret")], "holds no certificate; it must be a PEM file of certificates"),
        (&[is_pair, (key, "nowhere")], "does not exist; create the file or correct the path"),
    ];
    for (set, sentence) in table {
        let problems = with(set).expect_err(sentence);
        assert!(problems.iter().any(|problem| problem.ends_with(sentence)), "{set:?} {problems:#?}");
    }
}

#[test]
fn examples_of_the_documentation_are_valid_once_their_files_exist() {
    let files = Files::new();
    let page = include_str!("../../../docs/callers.md");
    let examples = page.split("```toml\n").skip(1).map(|rest| rest.split("```").next().expect("an example"));
    let names = [
        ("/run/secrets/license-gateway/server.pem", "server.pem"),
        ("/run/secrets/license-gateway/server.key", "server.key"),
        ("/run/secrets/license-gateway/callers-ca.pem", "ca.pem"),
        ("/run/secrets/license-gateway/client_secret", "secret"),
        ("/run/secrets/license-gateway/refresh_token", "seed"),
        ("/var/run/secrets/kubernetes.io/serviceaccount/ca.crt", "ca.pem"),
        ("/var/run/secrets/kubernetes.io/serviceaccount/token", "secret"),
    ];
    let policies: Vec<_> = examples
        .map(|example| {
            let text =
                names.iter().fold(example.to_owned(), |text, (name, file)| text.replace(name, &files.path(file)));
            let config = valid(&text, &[]).config;
            (config.policy.callers.len(), config.jwt.is_some())
        })
        .collect();
    assert_eq!(policies, [(3, false), (1, true)]);
}
