//! Central's JSON, spelled as Central spells it. Facts: the vendor's reference page for this operation, its Python
//! SDK and Kong 0.14.1's source; nothing here was tried against a live Central.

pub(super) mod listings;
mod success;

use serde::Serialize;
use serde_json::Value;

pub(super) use self::success::{Report, is_page, report};
use crate::license::{CustomerId, Customers, Scope, ServiceName, Services};

/// The body of `DELETE /platform/licensing/v1/msp/subscriptions/devices/all`.
///
/// An absent list and an empty one mean *everyone* to Central, so an empty list is never written, and neither is
/// `null`: the fields are slices of types that cannot be empty.
pub(crate) fn unassign_body(scope: &Scope, services: &Services) -> Vec<u8> {
    #[derive(Serialize)]
    struct UnassignBody<'a> {
        services: Vec<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        include_customers: Option<Vec<&'a str>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        exclude_customers: Option<Vec<&'a str>>,
    }

    let (include_customers, exclude_customers) = match scope {
        Scope::Include(customers) => (Some(ids(customers)), None),
        Scope::Exclude(customers) => (None, Some(ids(customers))),
        Scope::All(_) => (None, None),
    };
    let services = services.names().iter().map(ServiceName::as_str).collect();
    serde_json::to_vec(&UnassignBody { services, include_customers, exclude_customers })
        .expect("strings and lists of strings are always JSON")
}

fn ids(customers: &Customers) -> Vec<&str> {
    customers.ids().iter().map(CustomerId::as_str).collect()
}

/// The names in an answer of `GET /platform/licensing/v1/services/config`: an object whose keys are the services
/// (the shape of the values is not documented). None if it is anything else.
pub(super) fn service_names(body: &[u8]) -> Option<Vec<ServiceName>> {
    let Ok(Value::Object(services)) = serde_json::from_slice(body) else { return None };
    let mut names: Vec<_> = services.into_iter().filter_map(|(name, _)| ServiceName::new(name).ok()).collect();
    names.sort();
    (!names.is_empty()).then_some(names)
}

/// What Central says in a refusal, whichever of its dialects it speaks. For decisions and the debug log; never for
/// callers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Complaint {
    /// Which dialect.
    pub dialect: Dialect,
    /// A code, where the dialect has one.
    pub code: Option<String>,
    /// The text; empty where there is none.
    pub text: String,
}

/// Central's dialects of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// `{"error":"invalid_token","error_description":"…"}`: Kong's OAuth plugin.
    OAuth,
    /// `{"message":"…"}`: Kong and its plugins.
    Kong,
    /// `{"description":"…","error_code":"0001","service_name":"…"}`: Central's services.
    Service,
    /// `{"detail":"…"}`: platform services.
    Detail,
    /// `{"extra":{"error_code":"ATHENA_ERROR_…","message":…}}`: the platform's inventory.
    Athena,
    /// Text or HTML, of proxies on the way; or nothing at all.
    Text,
}

impl Complaint {
    /// Reads the body of a refusal. Never fails: what is no known JSON is text.
    pub(super) fn read(body: &[u8]) -> Self {
        let Ok(Value::Object(fields)) = serde_json::from_slice::<Value>(body) else {
            return Self { dialect: Dialect::Text, code: None, text: excerpt(&String::from_utf8_lossy(body)) };
        };
        let text = |name: &str| fields.get(name).map(plain).filter(|text| !text.is_empty());
        if let Some(extra) = fields.get("extra").and_then(Value::as_object) {
            Self {
                dialect: Dialect::Athena,
                code: extra.get("error_code").map(plain),
                text: extra.get("message").map(plain).unwrap_or_default(),
            }
        } else if let Some(error) = text("error") {
            Self { dialect: Dialect::OAuth, code: Some(error), text: text("error_description").unwrap_or_default() }
        } else if let Some(description) = text("description") {
            Self { dialect: Dialect::Service, code: text("error_code"), text: description }
        } else if let Some(detail) = text("detail") {
            Self { dialect: Dialect::Detail, code: None, text: detail }
        } else if let Some(message) = text("message") {
            Self { dialect: Dialect::Kong, code: None, text: message }
        } else {
            Self { dialect: Dialect::Text, code: None, text: excerpt(&String::from_utf8_lossy(body)) }
        }
    }

    /// The text for a log: words only. Whatever could be a token is masked, in any encoding: a hostile or careless
    /// answer may repeat what we sent. (Ids of customers are masked with it; our own log lines have them.)
    pub(super) fn for_log(&self) -> String {
        let mut words = String::new();
        let mut run = String::new();
        for c in self.text.chars().chain([' ']) {
            if c.is_alphanumeric() || "+/=_%.-~".contains(c) {
                run.push(c);
                continue;
            }
            words.push_str(if run.chars().count() < LONGEST_PLAIN_WORD { &run } else { "[masked]" });
            run.clear();
            words.push(c);
        }
        words.trim_end().to_owned()
    }

    /// Whether Kong says that it has no such route: usually a wrong base URL, never an unknown customer. Its versions say
    /// `no route and no API found with those values`, `no Route matched with those values`, `Not found`.
    pub(super) fn is_missing_route(&self) -> bool {
        let text = self.text.to_ascii_lowercase();
        let says_so = text.starts_with("no route") || text.starts_with("no api found") || text == "not found";
        matches!(self.dialect, Dialect::Kong | Dialect::Text) && says_so
    }

    /// Whether this is text of a proxy: Central's services speak JSON. (An empty body may be anybody's.)
    pub(super) fn is_foreign_text(&self) -> bool {
        self.dialect == Dialect::Text && !self.text.trim().is_empty()
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => excerpt(text),
        Value::Null => String::new(),
        other => excerpt(&other.to_string()),
    }
}

/// Words of at least this length are masked in logs. Central's tokens have 32 characters; no word of its known texts
/// has 16.
const LONGEST_PLAIN_WORD: usize = 16;

/// Enough to recognise a text by, without control characters.
fn excerpt(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn services(names: &[&str]) -> Services {
        Services::new(names.iter().map(|name| ServiceName::new((*name).to_owned()).unwrap()).collect()).unwrap()
    }

    fn customers(ids: &[&str]) -> Customers {
        Customers::new(ids.iter().map(|id| CustomerId::new((*id).to_owned()).unwrap()).collect()).unwrap()
    }

    #[test]
    fn bodies_are_spelled_as_central_spells_them() {
        let services = services(&["advanced_ap", "pa"]);
        let table = [
            (
                Scope::Include(customers(&["a", "b"])),
                r#"{"services":["advanced_ap","pa"],"include_customers":["a","b"]}"#,
            ),
            (Scope::Exclude(customers(&["c"])), r#"{"services":["advanced_ap","pa"],"exclude_customers":["c"]}"#),
            (Scope::everyone(), r#"{"services":["advanced_ap","pa"]}"#),
        ];
        for (scope, expected) in table {
            assert_eq!(String::from_utf8(unassign_body(&scope, &services)).unwrap(), expected);
        }
    }

    #[test]
    fn all_dialects_are_understood() {
        let table = [
            (
                r#"{"error":"invalid_token","error_description":"The access token is invalid or has expired"}"#,
                Dialect::OAuth,
                Some("invalid_token"),
                "The access token is invalid or has expired",
            ),
            (r#"{"message":"API rate limit exceeded"}"#, Dialect::Kong, None, "API rate limit exceeded"),
            (
                r#"{"description":"no","error_code":"0001","service_name":"Configuration"}"#,
                Dialect::Service,
                Some("0001"),
                "no",
            ),
            (r#"{"detail":"not here"}"#, Dialect::Detail, None, "not here"),
            (
                r#"{"extra":{"error_code":"ATHENA_ERROR_NO_DEVICE","message":{"invalid":["x"]}}}"#,
                Dialect::Athena,
                Some("ATHENA_ERROR_NO_DEVICE"),
                r#"{"invalid":["x"]}"#,
            ),
            ("upstream connect error", Dialect::Text, None, "upstream connect error"),
            ("<html>\n<b>502</b></html>", Dialect::Text, None, "<html><b>502</b></html>"),
            ("", Dialect::Text, None, ""),
            ("[1]", Dialect::Text, None, "[1]"),
        ];
        for (body, dialect, code, text) in table {
            let expected = Complaint { dialect, code: code.map(str::to_owned), text: text.to_owned() };
            assert_eq!(Complaint::read(body.as_bytes()), expected);
        }
        let echo = r#"{"message":"no: Authorization: Bearer cLdEEdbEOvw3rhDxFvnS2PlrqvMrPL1w, sorry"}"#;
        assert_eq!(Complaint::read(echo.as_bytes()).for_log(), "no: Authorization: Bearer [masked], sorry");
        assert!(Complaint::read(br#"{"message":"no route and no API found with those values"}"#).is_missing_route());
        for words in ["no Route matched with those values", "Not found"] {
            assert!(Complaint::read(format!(r#"{{"message":"{words}"}}"#).as_bytes()).is_missing_route(), "{words}");
        }
        for words in [r#"{"message":"customer not found"}"#, r#"{"detail":"Not found"}"#, r#"{"detail":"no route"}"#] {
            assert!(!Complaint::read(words.as_bytes()).is_missing_route(), "{words}");
        }
    }
}
