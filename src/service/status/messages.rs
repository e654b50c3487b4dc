//! What a caller reads about a failure, where it is always the same. The table is in the two files that use this.

pub(super) const USAGE_UNAVAILABLE: &str =
    "you may touch so many customers an hour, and the gateway cannot count them now; nothing was changed";
pub(super) const OPEN_SCOPE_DENIED: &str = "this gateway does not allow exclude_customers and all_customers; list the \
    customers in include_customers, or have central.allow_open_scopes set";
pub(super) const PREVIEW_REQUIRED: &str = "exclude_customers and all_customers need the etag of a preview: ask \
    PreviewUnassignLicenses for the same scope and services, look whom it hits, and send its etag";
pub(super) const REPEATED_BY_PROXY: &str = "a proxy or a library announces that it sends this request again, and what \
    became of the earlier attempt is not known: look whether it was done; nothing was sent for this attempt";
pub(super) const REQUEST_ID_REUSED: &str = "another request of yours had this request_id within the last 24 hours: its \
    scope, services or etag differ; make a new id for each request";
pub(super) const OPERATIONS_UNAVAILABLE: &str =
    "the gateway cannot record operations now, and sends nothing without that; nothing was changed";
pub(super) const HELD_ELSEWHERE: &str = "another replica has an operation under this request_id";
pub(super) const OPERATION_NOT_FOUND: &str = "you have no operation of this id that was sent within the last 24 hours";
pub(super) const OVERLOADED: &str = "this gateway has as many requests as it takes; nothing was changed";
pub(super) const DRAINING: &str = "this gateway is stopping; use another one";
pub(super) const INTERNAL: &str = "the gateway failed; its log names the place under this operation id";
pub(super) const MESSAGE_TOO_LARGE: &str = "the message is larger than 256 KiB; send fewer customers at once";
pub(super) const MESSAGE_MALFORMED: &str =
    "the bytes are not a message of this method; generate your client from the current contract";
pub(super) const NOT_IMPLEMENTED: &str =
    "this gateway has no such method; generate your client from the current contract";
pub(super) const ENCODING_UNKNOWN: &str =
    "the message is compressed, and this gateway takes none that is; switch the compression of requests off";
pub(super) const METADATA_TOO_LARGE: &str =
    "the metadata of this call is larger than 16 KiB, tokens and tracing included; send less of it";

pub(super) const DEADLINE_BEFORE_SENDING: &str = "the deadline passed, and nothing was changed";
pub(super) const DEADLINE_WHILE_AT_WORK: &str =
    "the deadline passed while Central was at work; look whether it was done before you repeat it";
pub(super) const DEADLINE_OF_A_READ: &str = "the deadline passed before Central answered";
pub(super) const STILL_RUNNING: &str =
    "the operation of this request_id still runs; repeat the request with the same id, or ask GetOperation";

pub(super) const ARGUMENT_REJECTED: &str =
    "Central rejected the request: most likely a customer id or the name of a service is wrong";
pub(super) const CREDENTIALS: &str =
    "Central rejects the gateway's own credentials; an operator must look at the gateway";
pub(super) const TOKEN_UNAVAILABLE: &str = "the gateway has no valid access token and cannot get one now";
pub(super) const PERMISSION_DENIED: &str =
    "Central does not permit this to the gateway's account (it is not you who may not)";
pub(super) const CUSTOMER_NOT_FOUND: &str = "Central does not know a customer of the request; ids are those of Central \
    (customer_id), not of GreenLake";
pub(super) const ENDPOINT_NOT_FOUND: &str =
    "Central's API gateway has no such operation; an operator must check central.base_url";
pub(super) const CONFLICT: &str = "Central reports a conflict, most likely with other work on the same licences; look \
    what it is before you try again";
pub(super) const SCOPE_TOO_LARGE: &str =
    "the scope is too large for Central and cannot be split; name fewer customers or services";
pub(super) const RATE_LIMITED: &str =
    "Central's calls of this second are spent, and there is no time left to wait for the next one";
pub(super) const QUOTA_EXHAUSTED: &str = "Central's calls of this day are spent; there are new ones at 00:00 UTC";
pub(super) const CENTRAL_FAILED: &str = "Central failed; look whether it was done before you repeat it";
pub(super) const UNIMPLEMENTED: &str = "Central does not implement this operation";
pub(super) const UNAVAILABLE: &str =
    "Central is unavailable; it may have acted before it said so: look before you repeat it";
pub(super) const REDIRECTED: &str = "Central's address answers with a redirect, which may follow a change that was \
    made: look before you repeat it; an operator must check central.base_url";
pub(super) const NOT_CENTRAL: &str = "the answer is not one of Central's: a proxy's, or central.base_url is wrong; an \
    operator must check both";
pub(super) const UNREADABLE: &str = "Central's answer is not what this operation returns; look whether it was done, \
    and at the gateway's log";
pub(super) const REPORTED_FAILURE: &str =
    "Central accepted the request and reports a failure in the same answer; look what was done";
pub(super) const UNREACHABLE: &str = "Central cannot be reached; nothing was changed";
pub(super) const DOWN: &str = "Central is down: the last calls to it failed, and no more are made for a while; nothing \
    was changed";
pub(super) const TOO_MANY_WAIT: &str =
    "more requests wait for Central than it takes in the time there is; nothing was changed";
pub(super) const PREVIEW_STALE: &str = "other customers are in scope now than when it was previewed, or the etag is of \
    another scope or other services; nothing was changed: preview it again, and look";
pub(super) const AUDIT_UNAVAILABLE: &str = "the gateway cannot write its audit trail, and makes no change without it; \
    an operator must look at the gateway";
pub(super) const CONNECTION_LOST: &str =
    "the connection to Central was lost after the request was sent; look whether it was done";
pub(super) const CALL_TIMED_OUT: &str = "Central did not answer in time; look whether it was done before you repeat it";
pub(super) const READS_SPENT: &str = "your hourly quota of reads of Central is exhausted; nothing was changed";
