//! How Central and what stands before it word their answers: the dialects a to f, spelled as they were seen.

use serde::{Deserialize, Serialize};
use serde_json::json;

/// A whole answer, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) status: u16,
    /// In the order and the spelling in which they are sent.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Page {
    pub(crate) fn new(status: u16, content_type: Option<&str>, body: impl Into<Vec<u8>>) -> Self {
        let headers = content_type.map(|value| ("Content-Type".into(), value.into())).into_iter().collect();
        Self { status, headers, body: body.into() }
    }

    /// JSON as the services behind Kong send it.
    pub(crate) fn json(status: u16, body: &serde_json::Value) -> Self {
        Self::new(status, Some("application/json"), body.to_string())
    }

    /// Dialect b as Kong's plugins and its router send it: JSON whatever `Accept` says, with a line end (K).
    pub(crate) fn kong(status: u16, message: &str) -> Self {
        Self::kong_json(status, &json!({ "message": message }))
    }

    /// Any JSON from a plugin of Kong.
    pub(crate) fn kong_json(status: u16, body: &serde_json::Value) -> Self {
        Self::new(status, Some("application/json; charset=utf-8"), format!("{body}\n"))
    }

    #[must_use]
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

/// An answer that a fault prescribes. What is left out is filled in: see each field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// The status, 200 to 599.
    pub status: u16,
    /// How it is worded. Left out: as the status is usually seen (401 a, 400 e, 404 and 409 c, 503 f, else b).
    #[serde(default)]
    pub dialect: Option<Dialect>,
    /// The message in the dialect's place for it. Left out: a usual one for the status.
    #[serde(default)]
    pub message: Option<String>,
    /// The body, byte for byte, in place of dialect and message.
    #[serde(default)]
    pub body: Option<String>,
    /// More headers, sent in this spelling (names may repeat). A `content-type` replaces the dialect's.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    /// The quota's headers.
    #[serde(default)]
    pub rate_headers: RateHeaders,
}

/// What the quota's headers say on an answer that a fault prescribes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RateHeaders {
    /// The truth; on a 429 as [`RateHeaders::SecondSpent`].
    #[default]
    Live,
    /// There are none, as on a proxy's or the login's 429.
    None,
    /// `Remaining-second: 0`.
    SecondSpent,
    /// `Remaining-day: 0`.
    DaySpent,
}

/// The dialects of errors. Letters as in the notes on Central.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dialect {
    /// a: `{"error":"invalid_token","error_description":"…"}` with `WWW-Authenticate`: Kong's oauth2 plugin (K, C).
    Oauth,
    /// b: `{"message":"…"}`: Kong. Errors that Kong makes for an upstream (500, 502, 503, 504) are JSON only for an
    /// `Accept` that names `application/json`, HTML or XML for those, else plain text (K).
    Kong,
    /// c: `{"description":"…","error_code":"0001","service_name":"…"}`: Central's services (C).
    CentralService,
    /// d: `{"detail":"…"}`: platform services (C, the field).
    Detail,
    /// e: `{"extra":{"error_code":"ATHENA_ERROR_…","message":{…}}}` whose message is an object (C).
    Athena,
    /// f: plain text, as Envoy has it (C).
    Text,
    /// f: an HTML page, as proxies have it.
    Html,
}

impl Answer {
    /// This status, all else as usual.
    pub fn new(status: u16) -> Self {
        Self { status, dialect: None, message: None, body: None, headers: Vec::new(), rate_headers: RateHeaders::Live }
    }

    /// In this dialect.
    #[must_use]
    pub fn dialect(self, dialect: Dialect) -> Self {
        Self { dialect: Some(dialect), ..self }
    }

    /// With this body, byte for byte.
    #[must_use]
    pub fn body(self, body: &str) -> Self {
        Self { body: Some(body.into()), ..self }
    }

    /// With one more header, in this spelling.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// With the quota's headers saying this.
    #[must_use]
    pub fn rate_headers(self, rate_headers: RateHeaders) -> Self {
        Self { rate_headers, ..self }
    }

    /// A 200 that says gzip and is not.
    pub fn lying_gzip() -> Self {
        Self::new(200).body("{\"status\":\"success\"}").header("Content-Encoding", "gzip")
    }

    /// A redirect to this place.
    pub fn redirect(location: &str) -> Self {
        Self::new(302).dialect(Dialect::Html).header("Location", location)
    }

    /// As it is sent, without the quota's headers.
    pub(crate) fn render(&self, accept: &str) -> Page {
        let dialect = self.dialect.unwrap_or(match self.status {
            401 => Dialect::Oauth,
            400 => Dialect::Athena,
            404 | 409 => Dialect::CentralService,
            503 => Dialect::Text,
            _ => Dialect::Kong,
        });
        let message = self.message.as_deref().unwrap_or_else(|| usual_message(self.status, dialect));
        let mut page = match dialect {
            Dialect::Oauth => invalid_token(self.status, message),
            Dialect::Kong if matches!(self.status, 500 | 502 | 503 | 504) => {
                upstream_error(self.status, message, accept)
            }
            Dialect::Kong => Page::kong(self.status, message),
            Dialect::CentralService => central_service(self.status, message),
            Dialect::Detail => Page::json(self.status, &json!({ "detail": message })),
            Dialect::Athena => Page::json(
                self.status,
                &json!({ "extra": {
                    "error_code": "ATHENA_ERROR_LICENSE_UNASSIGN_FAILED",
                    "message": { "failed_devices": [message], "blocked_devices": [], "invalid_devices": [] },
                } }),
            ),
            Dialect::Text => Page::new(self.status, Some("text/plain"), message),
            Dialect::Html => Page::new(
                self.status,
                Some("text/html"),
                format!(
                    "<html>\r\n<head><title>{message}</title></head>\r\n<body><h1>{message}</h1></body>\r\n</html>\r\n"
                ),
            ),
        };
        if let Some(body) = &self.body {
            page.body = body.clone().into_bytes();
        }
        if self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
            page.headers.retain(|(name, _)| name != "Content-Type");
        }
        page.headers.extend(self.headers.iter().cloned());
        page
    }
}

/// Dialect a.
pub(crate) fn invalid_token(status: u16, description: &str) -> Page {
    let challenge = format!(
        r#"Bearer realm="service" error="invalid_token" error_description="{}""#,
        description.replace('"', "'")
    );
    Page::kong_json(status, &json!({ "error": "invalid_token", "error_description": description }))
        .with("WWW-Authenticate", &challenge)
}

/// Dialect c.
pub(crate) fn central_service(status: u16, description: &str) -> Page {
    let body = json!({ "description": description, "error_code": "0001", "service_name": "Licensing" });
    Page::json(status, &body)
}

/// Dialect b for what went wrong behind Kong: the one place where Kong looks at `Accept` (K).
fn upstream_error(status: u16, message: &str, accept: &str) -> Page {
    if accept.contains("application/json") {
        Page::new(status, Some("application/json; charset=utf-8"), format!("{}\n", json!({ "message": message })))
    } else if accept.contains("text/html") {
        let body = format!(
            "<html><head><title>Kong Error</title></head><body><h1>Kong Error</h1><p>{message}.</p></body></html>\n"
        );
        Page::new(status, Some("text/html; charset=utf-8"), body)
    } else if accept.contains("application/xml") {
        let body = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<error><message>{message}</message></error>\n");
        Page::new(status, Some("application/xml; charset=utf-8"), body)
    } else {
        Page::new(status, Some("text/plain; charset=utf-8"), format!("{message}\n"))
    }
}

fn usual_message(status: u16, dialect: Dialect) -> &'static str {
    match status {
        503 if dialect == Dialect::Text => {
            "upstream connect error or disconnect/reset before headers. reset reason: connection termination"
        }
        302 => "302 Found",
        400 => "Bad request",
        401 => "The access token is invalid or has expired",
        403 if dialect == Dialect::Kong => "You cannot consume this service",
        403 => "Access denied",
        404 => "Entity not found",
        409 => "Request unsuccessful",
        413 => "Request size limit exceeded",
        417 => "Expectation failed",
        422 => "Unprocessable entity",
        429 => "API rate limit exceeded",
        502 if dialect == Dialect::Html => "502 Bad Gateway",
        502 => "An invalid response was received from the upstream server",
        503 => "The upstream server is currently unavailable",
        504 => "The upstream server is timing out",
        _ => "An unexpected error occurred",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(answer: &Answer, accept: &str) -> String {
        String::from_utf8(answer.render(accept).body).expect("text")
    }

    #[test]
    fn only_what_went_wrong_behind_kong_depends_on_accept() {
        let bad_gateway = Answer::new(502);
        assert!(body(&bad_gateway, "application/json").starts_with("{\"message\":"));
        assert!(body(&bad_gateway, "*/*").starts_with("An invalid response"));
        assert!(body(&bad_gateway, "text/html").starts_with("<html>"));
        assert!(body(&Answer::new(429), "*/*").starts_with("{\"message\":"));
    }

    #[test]
    fn a_given_body_and_content_type_replace_the_dialects() {
        let page = Answer::new(500).body("x").header("content-TYPE", "a/b").render("");
        assert_eq!(page.body, b"x");
        assert_eq!(page.headers, [("content-TYPE".to_owned(), "a/b".to_owned())]);
    }
}
