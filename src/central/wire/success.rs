//! Whether the body of a 2xx is a success.
//!
//! The body of the unassignment is not documented. Other operations of classic Central answer 2xx with nothing, a bare
//! boolean, a string, `{"status":"success"}`, and sometimes with a report of failures, at the top or in a list for each
//! device or customer. A plain report of failure is one, wherever it stands. Everything else is success.

use serde_json::{Map, Value};

/// What the body of a 2xx says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::central) enum Report {
    Success,
    Failure,
    /// It is not Central's: a web page of a proxy or a login, or not text.
    Foreign,
}

/// Reads the body of a 2xx.
pub(in crate::central) fn report(status: u16, body: &[u8]) -> Report {
    if is_page(body) || std::str::from_utf8(body).is_err() {
        return Report::Foreign;
    }
    let failed = match serde_json::from_slice(body) {
        Ok(Value::Bool(succeeded)) => !succeeded,
        Ok(Value::String(text)) => begins_badly(&text),
        Ok(value) => tells_failure(&value),
        Err(_) => begins_badly(&String::from_utf8_lossy(body)),
    };
    // Multi-Status: the parts fared differently, and no document says how Central would tell.
    if failed || status == 207 { Report::Failure } else { Report::Success }
}

/// Whether this is a web page. Central speaks JSON, and plain text at most.
pub(in crate::central) fn is_page(body: &[u8]) -> bool {
    const ENOUGH: usize = 1_024;
    let start = String::from_utf8_lossy(&body[..body.len().min(ENOUGH)]).to_ascii_lowercase();
    let start = start.trim_start_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
    let marks = ["<!doctype html", "<html", "<head", "<body"];
    start.starts_with('<') || (!start.starts_with(['{', '[', '"']) && marks.iter().any(|mark| start.contains(mark)))
}

fn tells_failure(value: &Value) -> bool {
    match value {
        Value::Array(list) => list.iter().any(tells_failure),
        Value::Object(fields) => is_failure(fields) || fields.values().any(tells_failure),
        _ => false,
    }
}

/// Whether an object says by itself that something failed.
fn is_failure(fields: &Map<String, Value>) -> bool {
    let names = || fields.iter().map(|(name, value)| (name.to_ascii_lowercase(), value));
    let says_succeeded = names().any(|(name, value)| is_status(&name) && says_succeeded(value));
    names().any(|(name, value)| match name.as_str() {
        name if is_status(name) => says_failed(value),
        "code" | "status_code" | "statuscode" | "http_status" | "http_code" => says_failed(value),
        // Platform services word their refusals like this.
        "detail" => !says_succeeded && is_something(value),
        name => {
            ["error", "fail", "exception", "reject", "unsuccessful"].iter().any(|bad| name.starts_with(bad))
                && is_something(value)
        }
    })
}

fn is_status(name: &str) -> bool {
    matches!(name, "status" | "success" | "succeeded" | "ok" | "result" | "response" | "outcome")
}

fn says_succeeded(value: &Value) -> bool {
    match value {
        Value::Bool(succeeded) => *succeeded,
        Value::String(word) => matches!(word.to_ascii_lowercase().as_str(), "success" | "ok" | "true" | "succeeded"),
        _ => http_status(value).is_some_and(|status| (200..300).contains(&status)),
    }
}

fn says_failed(value: &Value) -> bool {
    if http_status(value).is_some_and(|status| (400..600).contains(&status)) {
        return true;
    }
    match value {
        Value::Bool(succeeded) => !succeeded,
        Value::String(word) => {
            let word = word.to_ascii_lowercase();
            let bad =
                ["fail", "error", "reject", "denied", "unauthori", "forbidden", "invalid", "unsuccess", "not found"];
            word == "false" || bad.iter().any(|bad| word.contains(bad))
        }
        _ => false,
    }
}

/// `500`, `"500"`, `"400 Bad Request"`.
fn http_status(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => text.split_whitespace().next()?.parse().ok(),
        _ => None,
    }
}

/// A text that is the whole answer.
fn begins_badly(text: &str) -> bool {
    let text = text.trim_start().to_ascii_lowercase();
    let bad =
        ["fail", "error", "internal server error", "exception", "unauthori", "forbidden", "access denied", "upstream"];
    text == "false" || bad.iter().any(|bad| text.starts_with(bad))
}

fn is_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(set) => *set,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => {
            let text = text.trim().to_ascii_lowercase();
            let nothing = matches!(text.as_str(), "" | "none" | "null" | "false" | "ok" | "success" | "no error");
            !nothing && !text.chars().all(|c| c == '0')
        }
        Value::Array(list) => !list.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_report_of_failure_counts_as_one() {
        for body in [
            "",
            " \n",
            "true",
            "0",
            r#""""#,
            r#""ok""#,
            "OK",
            "accepted",
            "{}",
            "[]",
            "null",
            r#"{"status":"success"}"#,
            r#"{"response":"success"}"#,
            r#"{"status":200,"error":null,"failed_devices":[]}"#,
            r#"{"status":"success","detail":"3 devices","code":200}"#,
            r#"{"message":"0 failures"}"#,
            r#"{"error_code":0,"error":"none"}"#,
            r#"{"status":[{"serial":"X","status":"success","error_code":""}]}"#,
            r#"{"success":true,"data":{"devices":[{"status":"Down"}]}}"#,
            r#"{"count":500}"#,
            r#"{"note":"<html>"}"#,
        ] {
            assert_eq!(report(200, body.as_bytes()), Report::Success, "{body}");
        }
        for body in [
            "false",
            r#""failed to unassign""#,
            "Internal Server Error",
            "upstream connect error or disconnect/reset before headers",
            r#"{"status":"Failed"}"#,
            r#"{"status":"error"}"#,
            r#"{"status":false}"#,
            r#"{"status":"500"}"#,
            r#"{"status":"400 Bad Request"}"#,
            r#"{"success":false}"#,
            r#"{"Success":"false"}"#,
            r#"{"response":"failure"}"#,
            r#"{"code":"500"}"#,
            r#"{"code":400,"message":"x"}"#,
            r#"{"detail":"not here"}"#,
            r#"{"status":"success","failed_customers":["a"]}"#,
            r#"{"error":"invalid_token","error_description":"x"}"#,
            r#"{"error":{"code":1}}"#,
            r#"{"error_code":"0001","description":"x"}"#,
            r#"{"error_code":400,"message":"x"}"#,
            r#"{"errors":[{"x":1}]}"#,
            r#"{"extra":{"error_code":"ATHENA_ERROR_NO_DEVICE","message":{}}}"#,
            r#"{"status":[{"serial":"X","error_code":"E1"}]}"#,
            r#"[{"status":"success"},{"status":"failed"}]"#,
            r#"[[{"detail":"x"}]]"#,
            r#"{"status":"success","results":{"a":{"status_code":404}}}"#,
        ] {
            assert_eq!(report(200, body.as_bytes()), Report::Failure, "{body}");
        }
        assert_eq!(report(207, b""), Report::Failure, "multi-status");
        assert_eq!(report(207, br#"{"status":"success"}"#), Report::Failure, "multi-status");
    }

    #[test]
    fn a_page_is_never_a_success() {
        let pages: [&[u8]; 8] = [
            b"<html><body>Log in</body></html>",
            b"\xef\xbb\xbf\r\n<!DOCTYPE html>",
            b"<?xml version=\"1.0\"?><error/>",
            b"<script>location='/login'</script>",
            b"Please log in <HTML>",
            b"\x1f\x8b\x08\x00\x00",
            b"\xff\xfe{\x00}\x00",
            b"<",
        ];
        for body in pages {
            assert_eq!(report(200, body), Report::Foreign, "{}", String::from_utf8_lossy(body));
        }
    }
}
