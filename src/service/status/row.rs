//! A row of the failure table, and the status that it becomes: details, pushback, and never more than fits.

use std::{collections::HashMap, time::Duration};

use prost::Message as _;
use prost_types::Any;
use tokio::time::Instant;
use tonic::{
    Code, Status,
    metadata::{MetadataMap, MetadataValue},
};
use tonic_types::pb;
use uuid::Uuid;

use super::{DOMAIN, PUSHBACK, Violation};
use crate::{
    central::Parts,
    license::{CustomerId, Outcome},
    proto::PartialOutcome,
};

/// All headers of a failure together, counted as HTTP/2 counts them. Peers and proxies end a stream, or the whole
/// connection, over their own limit: Java's is 8 KiB, some proxies' is 4 KiB. A peer's announced limit
/// (`SETTINGS_MAX_HEADER_LIST_SIZE`) cannot be read: h2 does not pass it on.
pub(super) const MOST_HEADER_BYTES: usize = 4_096;
/// What the headers take beside the values of `grpc-message` and `grpc-status-details-bin`: 32 bytes and a name for each
/// of `:status`, `content-type`, `date`, `grpc-status`, `grpc-message`, `grpc-status-details-bin`,
/// `grpc-retry-pushback-ms`, and the short values of the others.
const OTHER_BYTES: usize = 400;
/// A message, encoded for its header. It travels twice: the details repeat it.
const MOST_MESSAGE_BYTES: usize = 900;
/// The text of one violation.
const MOST_PROBLEM_BYTES: usize = 300;
/// Kept free for the violation that says how many are left out.
const MORE_BYTES: usize = 200;
/// Kept free for the type of a list and its lengths.
const LIST_BYTES: usize = 100;

/// A row of the table.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) code: Code,
    pub(super) reason: &'static str,
    pub(super) outcome: Outcome,
    pub(super) message: String,
    /// How long to wait before a repeat that may help; none: a repeat must not happen, or is pointless.
    pub(super) repeat_after: Option<Duration>,
    /// The status of Central's answer.
    pub(super) http_status: Option<u16>,
    /// The quota that is spent.
    pub(super) quota: Option<QuotaDetail>,
    /// The list that tells more; it is cut where it does not fit.
    pub(super) list: Option<ListDetail>,
    /// Whether it is the recorded failure of an earlier request.
    pub(super) is_replayed: bool,
}

/// A limit that was reached.
#[derive(Debug, Clone, Copy)]
pub(super) struct QuotaDetail {
    /// What is limited, and whose limit it is.
    pub(super) subject: &'static str,
    pub(super) description: &'static str,
}

#[derive(Debug)]
pub(super) enum ListDetail {
    Violations(Vec<Violation>),
    Parts(Parts),
}

impl Row {
    pub(super) fn new(code: Code, reason: &'static str, outcome: Outcome, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            outcome,
            message: message.into(),
            repeat_after: None,
            http_status: None,
            quota: None,
            list: None,
            is_replayed: false,
        }
    }

    pub(super) fn repeat_after(self, wait: Duration) -> Self {
        Self { repeat_after: Some(wait), ..self }
    }

    pub(super) fn quota(self, quota: QuotaDetail) -> Self {
        Self { quota: Some(quota), ..self }
    }

    pub(super) fn violations(self, violations: &[Violation]) -> Self {
        Self { list: Some(ListDetail::Violations(violations.to_vec())), ..self }
    }

    pub(super) fn parts(self, parts: &Parts) -> Self {
        Self { list: Some(ListDetail::Parts(parts.clone())), ..self }
    }

    /// The status for a caller who waits until `deadline`.
    pub(super) fn into_status(self, operation_id: Uuid, deadline: Option<Instant>, now: Instant) -> Status {
        let pushback = self.pushback(deadline, now);
        let message = cut(&self.message, MOST_MESSAGE_BYTES, percent_encoded);
        let details = self.details(operation_id);
        let mut status = pb::Status { code: self.code as i32, message: message.clone(), details };
        // Three bytes become four characters of base64.
        let room = (MOST_HEADER_BYTES - OTHER_BYTES).saturating_sub(encoded_len(&message)) / 4 * 3;
        let room = room.saturating_sub(status.encoded_len() + LIST_BYTES);
        status.details.extend(self.list.map(|list| match list {
            ListDetail::Violations(violations) => detail("google.rpc.BadRequest", &bad_request(&violations, room)),
            ListDetail::Parts(parts) => detail("central.licensing.v1.PartialOutcome", &partial_outcome(&parts, room)),
        }));

        let mut trailers = MetadataMap::new();
        trailers.insert(PUSHBACK, MetadataValue::from(pushback));
        Status::with_details_and_metadata(self.code, message, status.encode_to_vec().into(), trailers)
    }

    /// A library that is told to wait sleeps through its own deadline, and the reason never arrives.
    fn pushback(&self, deadline: Option<Instant>, now: Instant) -> i64 {
        let fits = |wait: &Duration| deadline.is_none_or(|deadline| *wait < deadline.saturating_duration_since(now));
        let wait = self.repeat_after.filter(fits);
        wait.map_or(-1, |wait| i64::try_from(wait.as_millis()).unwrap_or(i64::MAX))
    }

    /// The short ones.
    fn details(&self, operation_id: Uuid) -> Vec<Any> {
        let mut metadata = HashMap::from([
            ("outcome".to_owned(), self.outcome.as_str().to_owned()),
            ("operation_id".to_owned(), operation_id.to_string()),
        ]);
        if let Some(status) = self.http_status {
            metadata.insert("http_status".to_owned(), status.to_string());
        }
        if self.is_replayed {
            metadata.insert("replayed".to_owned(), "true".to_owned());
        }
        let info = pb::ErrorInfo { reason: self.reason.to_owned(), domain: DOMAIN.to_owned(), metadata };
        let request = pb::RequestInfo { request_id: operation_id.to_string(), serving_data: String::new() };
        let mut details = vec![detail("google.rpc.ErrorInfo", &info), detail("google.rpc.RequestInfo", &request)];
        if let Some(wait) = self.repeat_after {
            let retry_delay = prost_types::Duration::try_from(wait).ok();
            details.push(detail("google.rpc.RetryInfo", &pb::RetryInfo { retry_delay }));
        }
        if let Some(QuotaDetail { subject, description }) = self.quota {
            let violation = pb::quota_failure::Violation {
                subject: subject.to_owned(),
                description: description.to_owned(),
                ..pb::quota_failure::Violation::default()
            };
            details.push(detail("google.rpc.QuotaFailure", &pb::QuotaFailure { violations: vec![violation] }));
        }
        details
    }
}

/// The violations that fit, and how many do not.
fn bad_request(violations: &[Violation], room: usize) -> pb::BadRequest {
    let violation = |violation: &Violation| pb::bad_request::FieldViolation {
        field: violation.field.clone(),
        description: cut(&violation.problem, MOST_PROBLEM_BYTES, |_| 1),
        ..pb::bad_request::FieldViolation::default()
    };
    let mut field_violations: Vec<_> = violations.iter().map(violation).collect();
    let whole: usize = field_violations.iter().map(|violation| embedded(violation.encoded_len())).sum();
    if whole > room {
        let mut left = room.saturating_sub(MORE_BYTES);
        let fits = |violation: &&pb::bad_request::FieldViolation| take(&mut left, embedded(violation.encoded_len()));
        let kept = field_violations.iter().take_while(fits).count();
        let more = violations.len() - kept;
        field_violations.truncate(kept);
        field_violations.push(pb::bad_request::FieldViolation {
            field: violations.get(kept).map(|first| first.field.clone()).unwrap_or_default(),
            description: format!("and {more} more violations, from this field on, that do not fit into the answer"),
            reason: "MORE_VIOLATIONS".to_owned(),
            ..pb::bad_request::FieldViolation::default()
        });
    }
    pb::BadRequest { field_violations }
}

/// As many ids of each kind as fit, and how many there are.
fn partial_outcome(parts: &Parts, room: usize) -> PartialOutcome {
    const COUNT_BYTES: usize = 6;
    let lists = [&parts.applied, &parts.not_applied, &parts.unknown];
    let mut kept = [0; 3];
    let mut left = room.saturating_sub(3 * COUNT_BYTES);
    // In turn, so that a long list leaves room for a short one.
    let longest = lists.iter().map(|ids| ids.len()).max().unwrap_or_default();
    'full: for index in 0..longest {
        for (list, kept) in lists.iter().zip(&mut kept) {
            let Some(id) = list.get(index) else { continue };
            if !take(&mut left, embedded(id.as_str().len())) {
                break 'full;
            }
            *kept += 1;
        }
    }
    let ids = |list: usize| -> Vec<String> { lists[list][..kept[list]].iter().map(CustomerId::to_string).collect() };
    let count = |list: usize| u32::try_from(lists[list].len()).unwrap_or(u32::MAX);
    PartialOutcome {
        applied_customer_ids: ids(0),
        not_applied_customer_ids: ids(1),
        unknown_customer_ids: ids(2),
        applied_count: count(0),
        not_applied_count: count(1),
        unknown_count: count(2),
    }
}

/// Takes so many bytes, if they are left.
fn take(left: &mut usize, bytes: usize) -> bool {
    match left.checked_sub(bytes) {
        Some(rest) => *left = rest,
        None => return false,
    }
    true
}

/// What a text or message of this length takes inside another: its tag and its length too.
fn embedded(length: usize) -> usize {
    1 + prost::length_delimiter_len(length) + length
}

/// The text, or as much of it as fits; `width` is what a byte takes.
fn cut(text: &str, most: usize, width: impl Fn(u8) -> usize) -> String {
    const DOTS: &str = "...";
    if text.bytes().map(&width).sum::<usize>() <= most {
        return text.to_owned();
    }
    let mut left = most - DOTS.len();
    let fits = |c: &char| {
        let mut bytes = [0; 4];
        take(&mut left, c.encode_utf8(&mut bytes).bytes().map(&width).sum())
    };
    let mut kept: String = text.chars().take_while(fits).collect();
    kept.push_str(DOTS);
    kept
}

fn encoded_len(message: &str) -> usize {
    message.bytes().map(percent_encoded).sum()
}

/// What a byte of a message takes in `grpc-message`: tonic encodes the same.
fn percent_encoded(byte: u8) -> usize {
    match byte {
        b' ' | b'"' | b'#' | b'%' | b'<' | b'>' | b'`' | b'?' | b'{' | b'}' => 3,
        0x21..=0x7e => 1,
        _ => 3,
    }
}

fn detail(name: &str, message: &impl prost::Message) -> Any {
    Any { type_url: format!("type.googleapis.com/{name}"), value: message.encode_to_vec() }
}
