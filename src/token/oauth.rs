//! The exchange with Central's token endpoint, and what its answer means for the refresh token that was presented.
//!
//! Facts: Kong 0.14.1's OAuth plugin and field reports; the reference for each stands in the project's notes on
//! Central. The refresh token is single use: a successful exchange kills it, and its successor exists only in the
//! answer.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use reqwest::{
    Method,
    header::{HeaderValue, SET_COOKIE},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use url::form_urlencoded;

use super::{failpoints::hurried, secret::Secret};
use crate::{
    config::{self, GrantPlacement},
    exchange::{self, Answer, Body, ConnectionReuse, HttpClient, OnBehalf, Request, SetupError},
    quota::{Purpose, Quota},
    telemetry::{
        Origin, Tracing,
        metrics::{ExchangeResult, Metrics},
    },
};

const TOKEN_ENDPOINT: &str = "/oauth2/token";
/// The first step of a login: user name and password for a session.
const LOGIN: &str = "/oauth2/authorize/central/api/login";
/// The second step: the session for a code.
const AUTHORIZE: &str = "/oauth2/authorize/central/api";

/// The bound on one exchange. Generous: an answer that we do not wait for is a refresh token lost. Time in which the
/// process was stopped cannot make us miss an answer that has arrived.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(30);

/// Central's access tokens live for two hours; nothing longer is believed.
const LONGEST_LIFETIME: Duration = Duration::from_hours(2);
/// Nothing shorter is believed either: a lifetime of zero would refresh without end.
const SHORTEST_LIFETIME: Duration = Duration::from_mins(1);

/// How long to wait after a 429 that does not say.
const THROTTLED_FOR: Duration = Duration::from_secs(1);
/// The longest wait that is believed. An access token that is valid meanwhile is served; but one that has ended stops
/// everything, and a try in a minute costs nobody anything.
pub(super) const THROTTLED_AT_MOST: Duration = Duration::from_mins(1);

/// Talks to the token endpoint as one application.
#[derive(Debug)]
pub(super) struct TokenEndpoint {
    http: HttpClient,
    client_id: String,
    client_secret_file: PathBuf,
    placement: GrantPlacement,
    quota: Quota,
    metrics: Metrics,
}

/// What Central gives for a refresh token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pair {
    /// For calls.
    pub access_token: Secret,
    /// How long the access token is valid from now.
    pub lifetime: Duration,
    /// For the next exchange.
    pub refresh_token: Secret,
}

/// How an exchange ended, seen from the refresh token that was presented.
#[derive(Debug)]
pub(super) enum Exchanged {
    /// Spent, and here is its successor.
    Pair(Pair),
    /// Surely not presented.
    NotSent(NotSent),
    /// Refused for now, and not spent.
    Throttled {
        /// How long to wait.
        wait: Duration,
    },
    /// Unknown, used or expired: Central says the same for all three.
    TokenRefused,
    /// The application's id or secret is wrong, or the token belongs to another application. Not spent.
    ClientRefused,
    /// The parameters of the grant were not read where they were put. Not spent.
    GrantNotRead,
    /// No clear answer: the token may be spent.
    Unclear(Unclear),
}

/// Why a refresh token was surely not presented.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotSent {
    /// A secret is not at hand.
    #[error("{setting} {path:?} cannot be read or is empty")]
    NoSecret {
        /// The setting that names the file.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says, where it says something.
        source: Option<io::Error>,
    },
    /// Central did not let us log in.
    #[error("Central refuses {step} with credentials.username (HTTP {status})")]
    LoginRefused {
        /// Which step.
        step: &'static str,
        /// The HTTP status.
        status: u16,
    },
    /// No connection.
    #[error("the token endpoint cannot be reached")]
    NotConnected(#[source] exchange::Error),
}

/// Why it is not known whether a refresh token was spent.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unclear {
    /// The connection broke.
    #[error("the exchange ended without an answer")]
    NoAnswer(#[source] exchange::Error),
    /// The time limit passed.
    #[error("the token endpoint did not answer within the time limit")]
    TooLate,
    /// An answer that means nothing here.
    #[error("the token endpoint answered HTTP {status}, and not with tokens: {problem}")]
    NoTokens {
        /// The HTTP status.
        status: u16,
        /// What is wrong with the answer; nothing of its text.
        problem: &'static str,
    },
}

impl TokenEndpoint {
    /// The token endpoint of the Central of these settings.
    pub(super) fn new(
        central: &config::Central,
        credentials: &config::Credentials,
        quota: Quota,
        tracing: Tracing,
    ) -> Result<Self, SetupError> {
        Ok(Self {
            quota,
            metrics: tracing.metrics().clone(),
            // A kept connection could be closing just now, and the answer is the only copy of the new token.
            http: HttpClient::new(central, ConnectionReuse::Fresh, tracing)?.with_timeout(hurried(EXCHANGE_TIMEOUT)),
            client_id: credentials.client_id.clone(),
            client_secret_file: credentials.client_secret_file.clone(),
            placement: credentials.grant_placement,
        })
    }

    /// Presents a refresh token, once. Must run to its end: call it where nobody can cancel it.
    pub(super) async fn refresh(&self, refresh_token: &Secret, waiting: &[Origin]) -> Exchanged {
        self.counted(self.exchange(("refresh_token", "refresh_token", refresh_token), waiting).await)
    }

    /// Asks for a new chain with user name and password: login, code, tokens. Central throttles this (a few in half an
    /// hour) and may lock the account; it is not for users of a single sign-on domain.
    /// An error: nothing has left this machine.
    pub(super) async fn log_in(&self, login: &config::UserCredentials) -> Result<Exchanged, NotSent> {
        let password = read_secret("credentials.password_file", &login.password_file).await?;
        let body = json!({ "username": login.username, "password": password.expose() });
        let answer = match self.login_step(LOGIN, &[("client_id", &self.client_id)], &[], &body).await {
            Err(error @ NotSent::NotConnected(exchange::Error::NotConnected(_))) => return Err(error),
            answer => answer,
        };
        let code = match answer {
            Ok(answer) => self.authorization_code(&answer, login).await,
            Err(not_sent) => Err(not_sent),
        };
        Ok(self.counted(match code {
            Ok(code) => self.exchange(("authorization_code", "code", &code), &[]).await,
            Err(not_sent) => Exchanged::NotSent(not_sent),
        }))
    }

    fn counted(&self, exchanged: Exchanged) -> Exchanged {
        self.metrics.token_exchange(match &exchanged {
            Exchanged::Pair(_) => ExchangeResult::Pair,
            Exchanged::NotSent(_) => ExchangeResult::NotSent,
            Exchanged::Throttled { .. } => ExchangeResult::Throttled,
            Exchanged::TokenRefused => ExchangeResult::TokenRefused,
            Exchanged::ClientRefused => ExchangeResult::ClientRefused,
            Exchanged::GrantNotRead => ExchangeResult::GrantNotRead,
            Exchanged::Unclear(_) => ExchangeResult::Unclear,
        });
        exchanged
    }

    /// Exchanges a grant (its type, the name of its parameter, the secret) for a pair of tokens.
    async fn exchange(&self, (grant_type, name, secret): (&str, &str, &Secret), waiting: &[Origin]) -> Exchanged {
        let client_secret = match read_secret("credentials.client_secret_file", &self.client_secret_file).await {
            Ok(secret) => secret,
            Err(not_sent) => return Exchanged::NotSent(not_sent),
        };
        let grant = [
            ("grant_type", grant_type),
            ("client_id", &self.client_id),
            ("client_secret", client_secret.expose()),
            (name, secret.expose()),
        ];
        let (query, body) = match self.placement {
            GrantPlacement::Form => {
                (&[][..], Body::Form(form_urlencoded::Serializer::new(String::new()).extend_pairs(grant).finish()))
            }
            GrantPlacement::Query => (&grant[..], Body::Empty),
        };
        let request = Request {
            method: Method::POST,
            path: TOKEN_ENDPOINT,
            query,
            bearer: None,
            headers: &[],
            body,
            resend_count: 0,
            on_behalf: OnBehalf::Waiting(waiting),
        };
        self.quota.exchange();
        match self.http.send_patiently(request).await {
            Some(Ok(answer)) => {
                self.quota.learn(Purpose::Exchange, answer.status, &answer.headers);
                classify(&answer)
            }
            Some(Err(error @ exchange::Error::NotConnected(_))) => Exchanged::NotSent(NotSent::NotConnected(error)),
            Some(Err(error)) => Exchanged::Unclear(Unclear::NoAnswer(error)),
            None => Exchanged::Unclear(Unclear::TooLate),
        }
    }

    /// The second step of a login, with the answer to the first.
    async fn authorization_code(&self, answer: &Answer, login: &config::UserCredentials) -> Result<Secret, NotSent> {
        #[derive(Deserialize)]
        struct Code {
            auth_code: String,
        }

        // A wrong password can come as 200 with `"status": false`.
        let accepted =
            serde_json::from_slice::<Value>(&answer.body).is_ok_and(|body| body["status"] != Value::Bool(false));
        let (Some(csrf), Some(session), true) = (cookie(answer, "csrftoken"), cookie(answer, "session"), accepted)
        else {
            return Err(NotSent::LoginRefused { step: "the login", status: answer.status });
        };

        let query = [("client_id", self.client_id.as_str()), ("response_type", "code"), ("scope", "all")];
        let session = format!("session={session}");
        let headers = [("x-csrf-token", csrf), ("cookie", session.as_str())];
        let body = json!({ "customer_id": login.customer_id });
        let answer = self.login_step(AUTHORIZE, &query, &headers, &body).await?;
        match serde_json::from_slice(&answer.body) {
            Ok(Code { auth_code }) if !auth_code.is_empty() => Ok(Secret::new(auth_code)),
            _ => Err(NotSent::LoginRefused { step: "the request for a code", status: answer.status }),
        }
    }

    async fn login_step(
        &self,
        path: &'static str,
        query: &[(&str, &str)],
        headers: &[(&'static str, &str)],
        body: &Value,
    ) -> Result<Answer, NotSent> {
        let request = Request {
            method: Method::POST,
            path,
            query,
            bearer: None,
            headers,
            body: Body::Json(body.to_string().into_bytes()),
            resend_count: 0,
            on_behalf: OnBehalf::Waiting(&[]),
        };
        match self.http.send(request).await {
            Ok(answer) if (200..300).contains(&answer.status) => Ok(answer),
            Ok(answer) => Err(NotSent::LoginRefused { step: path, status: answer.status }),
            Err(error) => Err(NotSent::NotConnected(error)),
        }
    }
}

/// Read again for every exchange: the file is replaced when the secret is rotated.
async fn read_secret(setting: &'static str, path: &Path) -> Result<Secret, NotSent> {
    let path = path.to_owned();
    match tokio::fs::read_to_string(&path).await {
        Ok(text) if !text.trim().is_empty() => Ok(Secret::new(text.trim().to_owned())),
        Ok(_) => Err(NotSent::NoSecret { setting, path, source: None }),
        Err(source) => Err(NotSent::NoSecret { setting, path, source: Some(source) }),
    }
}

/// The value of a cookie that an answer sets.
fn cookie<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.headers.get_all(SET_COOKIE).iter().filter_map(|value| value.to_str().ok()).find_map(|cookie| {
        let (found, value) = cookie.split(';').next()?.split_once('=')?;
        (found.trim() == name).then(|| value.trim())
    })
}

/// What an answer of the token endpoint means.
pub(super) fn classify(answer: &Answer) -> Exchanged {
    #[derive(Deserialize)]
    struct OAuthRefusal {
        error: String,
        #[serde(default)]
        error_description: String,
    }

    let unclear = |problem| Exchanged::Unclear(Unclear::NoTokens { status: answer.status, problem });
    match answer.status {
        200..=299 => match read_pair(answer) {
            Ok(pair) => Exchanged::Pair(pair),
            Err(problem) => unclear(problem),
        },
        429 => {
            let hint = answer.headers.get(reqwest::header::RETRY_AFTER).and_then(|value| value.to_str().ok());
            let wait = hint.and_then(|text| text.trim().parse().ok()).map_or(THROTTLED_FOR, Duration::from_secs);
            Exchanged::Throttled { wait: wait.clamp(THROTTLED_FOR, THROTTLED_AT_MOST) }
        }
        400 | 401 => match serde_json::from_slice::<OAuthRefusal>(&answer.body) {
            Ok(refusal) => match refusal.error.as_str() {
                "invalid_client" => Exchanged::ClientRefused,
                "unsupported_grant_type" => Exchanged::GrantNotRead,
                "invalid_grant" => Exchanged::TokenRefused,
                // Exactly so: a verdict that nobody takes back is not read out of a part of other words.
                "invalid_request" if refusal.error_description.trim_end_matches('.') == "Invalid refresh_token" => {
                    Exchanged::TokenRefused
                }
                _ => unclear("a refusal of an unknown kind"),
            },
            Err(_) => unclear("a refusal that is not JSON"),
        },
        300..=399 => unclear("a redirect, which is never followed"),
        _ => unclear("an error"),
    }
}

/// The tokens exist nowhere else: wherever both are there, nothing that is wrong around them matters.
fn read_pair(answer: &Answer) -> Result<Pair, &'static str> {
    let body = answer.body.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&answer.body);
    let first = serde_json::Deserializer::from_slice(body).into_iter::<Map<String, Value>>().next();
    let fields = first.and_then(Result::ok).or_else(|| closed_early(body));
    let token = |name| fields.as_ref().and_then(|fields| fields.get(name)?.as_str());
    let Some((access_token, refresh_token)) = token("access_token").zip(token("refresh_token")) else {
        let broke_off = "its body broke off before both tokens, or is too long";
        return Err(if answer.complete { "its body is not JSON with two tokens" } else { broke_off });
    };
    for token in [access_token, refresh_token] {
        // Checked here so that a token can always be sent in a header.
        if token.trim().is_empty() || HeaderValue::from_str(token).is_err() {
            return Err("a token in it is empty or holds impossible characters");
        }
    }
    let expires_in = fields.as_ref().and_then(|fields| fields.get("expires_in"));
    Ok(Pair {
        access_token: Secret::new(access_token.to_owned()),
        refresh_token: Secret::new(refresh_token.to_owned()),
        lifetime: lifetime(expires_in.unwrap_or(&Value::Null)),
    })
}

/// An object that broke off, without the field that it broke off in. A string that is cut is no string, so no token is
/// ever taken in part.
fn closed_early(body: &[u8]) -> Option<Map<String, Value>> {
    /// More fields than any answer with tokens has.
    const MOST_FIELDS: usize = 16;

    let commas = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b',').map(|(place, _)| place);
    let ends = std::iter::once(body.len()).chain(commas.take(MOST_FIELDS));
    ends.map(|end| [&body[..end], b"}"].concat()).find_map(|object| serde_json::from_slice(&object).ok())
}

/// `expires_in` may be a number, a string, missing, zero, negative or huge.
fn lifetime(expires_in: &Value) -> Duration {
    let seconds = match expires_in {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    match seconds {
        Some(seconds) if seconds.is_finite() => {
            Duration::from_secs_f64(seconds.clamp(SHORTEST_LIFETIME.as_secs_f64(), LONGEST_LIFETIME.as_secs_f64()))
        }
        _ => LONGEST_LIFETIME,
    }
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderMap, RETRY_AFTER};

    use super::*;

    fn answer(status: u16, body: &str) -> Answer {
        Answer { status, headers: HeaderMap::new(), body: body.as_bytes().to_vec(), complete: true }
    }

    fn kind(answer: &Answer) -> &'static str {
        match classify(answer) {
            Exchanged::Pair(_) => "pair",
            Exchanged::NotSent(_) => "not sent",
            Exchanged::Throttled { .. } => "throttled",
            Exchanged::TokenRefused => "token refused",
            Exchanged::ClientRefused => "client refused",
            Exchanged::GrantNotRead => "grant not read",
            Exchanged::Unclear(_) => "unclear",
        }
    }

    #[test]
    fn every_answer_of_the_token_endpoint_has_a_meaning() {
        let table = [
            (200, r#"{"access_token":"a","refresh_token":"r","expires_in":7200,"token_type":"bearer"}"#, "pair"),
            (200, r#"{"access_token":"a","refresh_token":"r"}"#, "pair"),
            (200, r#"{"access_token":"a","expires_in":7200}"#, "unclear"),
            (200, r#"{"access_token":"a","refresh_token":"","expires_in":7200}"#, "unclear"),
            (200, r#"{"access_token":"a\n","refresh_token":"r"}"#, "unclear"),
            (200, r#"{"access_token":"a","refresh_tok"#, "unclear"),
            (200, "<html>", "unclear"),
            (200, "", "unclear"),
            (302, "", "unclear"),
            (400, r#"{"error":"invalid_request","error_description":"Invalid refresh_token"}"#, "token refused"),
            (400, r#"{"error":"invalid_grant"}"#, "token refused"),
            (400, r#"{"error":"invalid_request","error_description":"Missing refresh_token"}"#, "unclear"),
            (
                400,
                r#"{"error":"invalid_client","error_description":"Invalid client authentication"}"#,
                "client refused",
            ),
            (401, r#"{"error":"invalid_client"}"#, "client refused"),
            (400, r#"{"error":"unsupported_grant_type","error_description":"Invalid grant_type"}"#, "grant not read"),
            (400, r#"{"error":"invalid_request","error_description":"Invalid code"}"#, "unclear"),
            (400, "no", "unclear"),
            (404, r#"{"message":"no route and no API found with those values"}"#, "unclear"),
            (429, r#"{"message":"API rate limit exceeded"}"#, "throttled"),
            (500, r#"{"message":"An unexpected error occurred"}"#, "unclear"),
            (503, "upstream connect error", "unclear"),
        ];
        for (status, body, expected) in table {
            assert_eq!(kind(&answer(status, body)), expected, "{status} {body}");
        }
    }

    #[test]
    fn both_tokens_are_taken_whatever_is_wrong_around_them() {
        let table = [
            (r#"{"access_token":"a","refresh_token":"r"}"#, "pair"),
            (r#"{"access_token":"a","refresh_token":"r","expires_in":7200"#, "pair"),
            (r#"{"access_token":"a","refresh_token":"r","expi"#, "pair"),
            (r#"{"access_token":"a","refresh_token":"r""#, "pair"),
            (r#"{"access_token":"a","refresh_token":"r"#, "unclear"),
            (r#"{"access_token":"a","expires_in":7200,"#, "unclear"),
            (r#"{"access_token":"a,"#, "unclear"),
            ("", "unclear"),
        ];
        for (body, expected) in table {
            for complete in [false, true] {
                let cut = Answer { complete, ..answer(200, body) };
                assert_eq!(kind(&cut), expected, "{body}");
            }
        }
        for body in [
            "\u{feff}{\"access_token\":\"a\",\"refresh_token\":\"r\"}",
            r#"{"access_token":"a","refresh_token":"r"}{"access_token":"#,
            r#"{"access_token":"a","refresh_token":"old","refresh_token":"r"}"#,
            r#"{"access_token":"a","refresh_token":"r","expires_in":7200}<!-- proxy -->"#,
        ] {
            assert!(
                matches!(classify(&answer(200, body)), Exchanged::Pair(pair) if pair.refresh_token.expose() == "r")
            );
        }
    }

    #[test]
    fn lifetimes_are_believed_only_between_a_minute_and_two_hours() {
        let table = [
            ("7200", 7200),
            ("\"3600\"", 3600),
            ("0", 60),
            ("-1", 60),
            ("1e12", 7200),
            ("\"1e400\"", 7200),
            ("\"soon\"", 7200),
            ("null", 7200),
            ("[]", 7200),
            ("61.5", 61),
        ];
        for (json, seconds) in table {
            assert_eq!(lifetime(&serde_json::from_str(json).unwrap()).as_secs(), seconds, "{json}");
        }
    }

    #[test]
    fn a_429_says_how_long_to_wait_within_reason() {
        for (hint, seconds) in [("7", 7), ("0", 1), ("never", 1), ("3600", 60), ("999999999", 60)] {
            let mut answer = answer(429, "");
            answer.headers.insert(RETRY_AFTER, HeaderValue::from_static(hint));
            let Exchanged::Throttled { wait } = classify(&answer) else { panic!("{hint}") };
            assert_eq!(wait.as_secs(), seconds);
        }
    }
}
