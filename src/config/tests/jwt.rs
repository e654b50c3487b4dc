//! Section `jwt`.

use super::*;

/// The section of these lines, in the smallest configuration.
fn section(files: &Files, lines: &[&str]) -> Result<Option<Jwt>, Vec<String>> {
    load(&format!("{}\n[jwt]\n{}\n", files.minimal(""), lines.join("\n")), &[]).map(|loaded| loaded.config.jwt)
}

const ISSUER: &str = "issuer = \"https://issuer.test\"";
const AUDIENCE: &str = "audience = \"license-gateway\"";
const URL: &str = "jwks_url = \"https://issuer.test/keys?of=us\"";

#[test]
fn section_is_read_into_every_field() {
    let files = Files::new();
    files.write("keys.json", "{\"keys\": []}");
    assert!(section(&files, &[]).unwrap().is_none());

    let from_file = format!("jwks_file = \"{}\"", files.path("keys.json"));
    let jwt = section(&files, &[ISSUER, AUDIENCE, &from_file]).unwrap().unwrap();
    assert_eq!((&*jwt.issuer, &*jwt.audience), ("https://issuer.test", "license-gateway"));
    assert_eq!(jwt.algorithms, [SignatureAlgorithm::Rs256, SignatureAlgorithm::Es256]);
    assert!(matches!(jwt.keys, KeySource::File(file) if file == Path::new(&files.path("keys.json"))));

    let ca_file = format!("ca_file = \"{}\"", files.path("ca.pem"));
    let token_file = format!("token_file = \"{}\"", files.path("secret"));
    let rest = ["algorithms = \"EdDSA,PS256 , ES384\"", "refresh_interval = \"1m\"", &ca_file, &token_file];
    let jwt = section(&files, &[&[ISSUER, AUDIENCE, URL], &rest[..]].concat()).unwrap().unwrap();
    assert_eq!(jwt.algorithms, [SignatureAlgorithm::EdDsa, SignatureAlgorithm::Ps256, SignatureAlgorithm::Es384]);
    assert_eq!(jwt.refresh_interval, Duration::from_mins(1));
    let KeySource::Url(from) = jwt.keys else { panic!("{jwt:?}") };
    assert_eq!(from.url.as_str(), "https://issuer.test/keys?of=us");
    assert_eq!(from.ca_file, Some(files.path("ca.pem").into()));
    assert_eq!(from.token_file, Some(files.path("secret").into()));
    for here in ["http://127.0.0.1:8080/keys", "http://localhost/keys", "http://[::1]/keys"] {
        section(&files, &[ISSUER, AUDIENCE, &format!("jwks_url = \"{here}\"")]).unwrap();
    }
}

#[test]
#[allow(clippy::too_many_lines)] // a table
fn each_bad_section_is_refused_in_a_sentence() {
    let files = Files::new();
    let unfit = format!("jwks_file = \"{}\"", files.path("secret"));
    let absent = format!("jwks_file = \"{}\"", files.path("absent"));
    let no_ca = format!("ca_file = \"{}\"", files.path("secret"));
    let no_token = format!("token_file = \"{}\"", files.path("empty"));
    let all = "RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA";
    let algorithm = |name: &str| {
        format!("holds `{name}`; only signatures that whoever verifies them cannot make are allowed: {all}")
    };
    let table: Vec<(Vec<&str>, String)> = vec![
        (vec![AUDIENCE, URL], "jwt.issuer: is missing; set it to the `iss` of the tokens to believe".to_owned()),
        (vec![ISSUER, URL], "`aud`".to_owned()),
        (vec![ISSUER, AUDIENCE], "set it, or `jwt.jwks_file`, to where the issuer's keys are".to_owned()),
        (vec!["algorithms = \"RS256\"", AUDIENCE, URL], "the `iss` of the tokens to believe".to_owned()),
        (
            vec!["issuer = \"a b\"", AUDIENCE, URL],
            "holds a blank or a character that is not visible ASCII; copy it again".to_owned(),
        ),
        (vec![ISSUER, AUDIENCE, URL, "algorithms = \"HS256\""], algorithm("HS256")),
        (vec![ISSUER, AUDIENCE, URL, "algorithms = \"RS256,none\""], algorithm("none")),
        (vec![ISSUER, AUDIENCE, URL, "algorithms = \"rs256\""], algorithm("rs256")),
        (vec![ISSUER, AUDIENCE, URL, "algorithms = \"RS256,\""], algorithm("")),
        (vec![ISSUER, AUDIENCE, URL, "algorithms = \"RS256, RS256\""], "names RS256 twice".to_owned()),
        (
            vec![ISSUER, AUDIENCE, URL, "algorithms = [\"RS256\"]"],
            "is of the wrong type (array); write a string in quotes".to_owned(),
        ),
        (vec![ISSUER, AUDIENCE, &unfit], "holds no `keys`; it must be a JSON Web Key Set".to_owned()),
        (vec![ISSUER, AUDIENCE, &absent], "does not exist; create the file or correct the path".to_owned()),
        (vec![ISSUER, AUDIENCE, URL, &no_ca], "holds no certificate; it must be a PEM file of certificates".to_owned()),
        (vec![ISSUER, AUDIENCE, URL, &no_token], "is an empty file; write the secret into it".to_owned()),
        (
            vec![ISSUER, AUDIENCE, "jwks_url = \"http://issuer.test/keys\""],
            "is plain http, where anybody on the way could put in keys of their own; use https://".to_owned(),
        ),
        (vec![ISSUER, AUDIENCE, "jwks_url = \"http://localhost.evil.test/keys\""], "use https://".to_owned()),
        (
            vec![ISSUER, AUDIENCE, "jwks_url = \"ftp://issuer.test\""],
            "is not a URL of this kind; write it like https://host/keys".to_owned(),
        ),
        (
            vec![ISSUER, AUDIENCE, "jwks_url = \"https://a:hunter2@issuer.test\""],
            "must not hold a user name or a password; remove everything up to the @".to_owned(),
        ),
        (
            vec![ISSUER, AUDIENCE, "jwks_url = \"https://issuer.test/#keys\""],
            "must not have a fragment; remove the # and what follows".to_owned(),
        ),
        (
            vec![ISSUER, AUDIENCE, URL, "refresh_interval = \"29s\""],
            "is out of bounds; 30s to 1h is allowed".to_owned(),
        ),
    ];
    for (lines, sentence) in table {
        let problems = section(&files, &lines).expect_err(&sentence);
        assert!(matches!(&problems[..], [problem] if problem.contains(&sentence)), "{lines:?} {problems:#?}");
        assert!(!problems.concat().contains("hunter2"));
    }

    files.write("keys.json", "{\"keys\": []}");
    let from_file = format!("jwks_file = \"{}\"", files.path("keys.json"));
    let both = section(&files, &[ISSUER, AUDIENCE, URL, &from_file]).unwrap_err();
    assert!(both[0].contains("and so is `jwt.jwks_file`"), "{both:?}");
    let for_urls = ["refresh_interval = \"1m\"".to_owned(), format!("token_file = \"{}\"", files.path("secret"))];
    for line in &for_urls {
        let problems = section(&files, &[ISSUER, AUDIENCE, &from_file, line]).unwrap_err();
        assert!(problems[0].ends_with("is of use only with `jwt.jwks_url`"), "{problems:?}");
    }
    // Somebody may have put the token where its file belongs.
    let problems = section(&files, &[ISSUER, AUDIENCE, URL, "token_file = \"hunter2\""]).unwrap_err();
    assert!(!problems.concat().contains("hunter2"), "{problems:?}");
}
