//! What the protocol of gRPC says of odd requests, and of a handshake that fails.

use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt as _;
use hyper::client::conn::http2::handshake;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use tokio::{net::TcpStream, time::timeout};
use tonic::{Code, body::Body};

use crate::support::{Failure, Gateway, PATIENCE, customer, include, sandbox};

const UNASSIGN: &str = "/central.licensing.v1.LicensingService/UnassignLicenses";

/// An unassignment with these headers: HTTP's status, and the answer's headers with its trailers.
async fn post(gateway: &Gateway, message: &[u8], headers: &[(&str, &str)]) -> (StatusCode, HeaderMap) {
    call(gateway, "POST", UNASSIGN, message, &[headers, &[("te", "trailers")]].concat()).await
}

/// A message by this method to this path.
async fn call(
    gateway: &Gateway,
    method: &str,
    path: &str,
    message: &[u8],
    headers: &[(&str, &str)],
) -> (StatusCode, HeaderMap) {
    let uri = format!("http://{}{path}", gateway.address);
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let body = [&[0], &length[..], message].concat();
    let request = request.body(Body::new(http_body_util::Full::from(body))).unwrap();
    // Not tonic's client, which keeps the deadline itself.
    let stream = TcpStream::connect(gateway.address).await.unwrap();
    let (mut client, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let answer = timeout(PATIENCE, client.send_request(request)).await.expect("an answer").unwrap();
    let (head, body) = answer.into_parts();
    let mut headers = head.headers;
    headers.extend(body.collect().await.unwrap().trailers().cloned().unwrap_or_default());
    (head.status, headers)
}

fn failure(headers: &HeaderMap) -> Failure {
    Failure::from(tonic::Status::from_header_map(headers).expect("a failure"))
}

const GRPC: (&str, &str) = ("content-type", "application/grpc");

#[tokio::test]
async fn what_is_not_grpc_does_nothing() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    let message = include(&[&customer(&sandbox, 0)]).encode_to_vec();
    let form = "application/x-www-form-urlencoded";
    for content_type in ["text/plain", "application/json", form, "multipart/form-data", "application/grpc-web"] {
        let (status, _) = post(&gateway, &message, &[("content-type", content_type)]).await;
        assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{content_type}");
    }
    assert_eq!(post(&gateway, &message, &[]).await.0, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(sandbox.unassign_calls().len(), 0);
    let (status, headers) = post(&gateway, &message, &[("content-type", "application/grpc+proto")]).await;
    assert_eq!((status, &headers["grpc-status"]), (StatusCode::OK, &"0".parse().unwrap()));
    assert_eq!(sandbox.unassign_calls().len(), 1);
}

#[tokio::test]
async fn only_post_acts_te_is_not_needed_and_what_is_not_there_is_said() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    let message = include(&[&customer(&sandbox, 0)]).encode_to_vec();
    for method in ["GET", "PUT", "DELETE", "OPTIONS", "PATCH"] {
        let (status, headers) = call(&gateway, method, UNASSIGN, &message, &[GRPC]).await;
        assert_eq!((status, &headers["allow"]), (StatusCode::METHOD_NOT_ALLOWED, &"POST".parse().unwrap()), "{method}");
    }
    assert_eq!(sandbox.unassign_calls().len(), 0);
    for path in
        ["/central.licensing.v1.LicensingService/Nothing", "/nobody.Nothing/Nothing", "/", UNASSIGN.trim_matches('/')]
    {
        let path = if path.starts_with('/') { path.to_owned() } else { format!("//{path}") };
        let (status, headers) = call(&gateway, "POST", &path, &message, &[GRPC]).await;
        let failure = failure(&headers);
        assert_eq!((status, failure.code), (StatusCode::OK, Code::Unimplemented), "{path}");
        assert_eq!((failure.reason.as_str(), failure.outcome.as_str()), ("NOT_IMPLEMENTED", "not_applied"), "{path}");
    }
    assert_eq!(sandbox.unassign_calls().len(), 0);
    let (status, headers) = call(&gateway, "POST", UNASSIGN, &message, &[GRPC]).await;
    assert_eq!((status, &headers["grpc-status"]), (StatusCode::OK, &"0".parse().unwrap()), "without te");
}

#[tokio::test]
async fn a_failure_is_trailers_only() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    let stream = TcpStream::connect(gateway.address).await.unwrap();
    let (mut client, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post(format!("http://{}{UNASSIGN}", gateway.address)).header("content-type", GRPC.1);
    let request = request.body(Body::new(http_body_util::Full::from(vec![0; 5]))).unwrap();
    let answer = timeout(PATIENCE, client.send_request(request)).await.expect("an answer").unwrap();
    assert_eq!(answer.headers()["content-type"], "application/grpc");
    assert_eq!(failure(answer.headers()).reason, "INVALID_REQUEST");
    assert!(hyper::body::Body::is_end_stream(answer.body()), "nothing comes after the headers");
}

#[tokio::test]
async fn a_deadline_that_is_past_or_no_time_is_refused_as_such() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    let message = include(&[&customer(&sandbox, 0)]).encode_to_vec();
    for past in ["0m", "0S", "1n"] {
        let (_, headers) = post(&gateway, &message, &[GRPC, ("grpc-timeout", past)]).await;
        let failure = failure(&headers);
        assert_eq!((failure.code, failure.outcome.as_str()), (Code::DeadlineExceeded, "not_applied"), "{past}");
    }
    for malformed in ["soon", "1s", "-1S", "123456789S", ""] {
        let (_, headers) = post(&gateway, &message, &[GRPC, ("grpc-timeout", malformed)]).await;
        let failure = failure(&headers);
        assert_eq!((failure.code, failure.reason.as_str()), (Code::InvalidArgument, "INVALID_REQUEST"), "{malformed}");
    }
    assert_eq!(sandbox.unassign_calls().len(), 0);
}

#[tokio::test]
async fn a_compressed_message_is_refused_with_what_would_be_taken() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    let message = include(&[&customer(&sandbox, 0)]).encode_to_vec();
    let (_, headers) = post(&gateway, &message, &[GRPC, ("grpc-encoding", "gzip")]).await;
    assert_eq!(headers["grpc-accept-encoding"], "identity");
    let failure = failure(&headers);
    assert_eq!((failure.code, failure.reason.as_str()), (Code::Unimplemented, "NOT_IMPLEMENTED"));
    assert!(failure.status.message().contains("compressed"), "{}", failure.status.message());
}

#[tokio::test]
async fn too_much_metadata_is_refused_in_our_words() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    let message = include(&[&customer(&sandbox, 0)]).encode_to_vec();
    let (_, headers) = post(&gateway, &message, &[GRPC, ("baggage", &"x".repeat(20 * 1024))]).await;
    let failure = failure(&headers);
    assert_eq!((failure.code, failure.reason.as_str()), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"));
    assert!(failure.status.message().contains("metadata"), "{}", failure.status.message());
    assert_eq!(failure.outcome, "not_applied");
}
