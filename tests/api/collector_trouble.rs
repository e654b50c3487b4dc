//! A collector that is down, hangs, is slow or answers nonsense: no request waits for it, no memory grows with it, and
//! the process ends in time.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use license_gateway::{
    proto::licensing_service_client::LicensingServiceClient,
    telemetry::{Origin, Telemetry, http::ClientSpan},
};
use tokio::{net::TcpSocket, time::timeout};

use crate::{
    collector::Collector,
    support::{PATIENCE, Process, channel, customer, include, otel, sandbox},
    telemetry::{ENOUGH, central, delete},
};

/// What is wrong with a collector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    /// Nobody listens.
    Refuses,
    /// It does not even take a connection, and nobody says so.
    Unreachable,
    /// It takes connections and never says a word.
    Hangs,
    /// It answers with what is no protocol at all.
    Garbage,
    /// It accepts everything, in an answer that has no end.
    Endless,
    /// It accepts everything, a byte now and then.
    Slow,
}

/// A collector with this trouble. Its threads end with the test's process, or with their connections.
fn collector(trouble: Trouble) -> SocketAddr {
    if trouble == Trouble::Unreachable {
        return unreachable();
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    if trouble != Trouble::Refuses {
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                // The client going away is the usual end.
                thread::spawn(move || trouble.answer(stream));
            }
        });
    }
    address
}

/// A listener whose queue of connections is full: the kernel answers nobody any more.
fn unreachable() -> SocketAddr {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let listener = socket.listen(1).unwrap().into_std().unwrap();
    let address = listener.local_addr().unwrap();
    let patience = Duration::from_millis(100);
    let held: Vec<_> = std::iter::from_fn(|| TcpStream::connect_timeout(&address, patience).ok()).collect();
    // For as long as the test's process lives.
    std::mem::forget((listener, held));
    address
}

impl Trouble {
    fn answer(self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut some = [0; 1024];
        let _ = stream.read(&mut some)?;
        match self {
            Self::Refuses | Self::Unreachable | Self::Hangs => while stream.read(&mut some)? > 0 {},
            Self::Garbage => stream.write_all(&b"\xff\x00nonsense\r\n".repeat(1_000))?,
            Self::Endless => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
                loop {
                    stream.write_all(b"400\r\n")?;
                    stream.write_all(&[b'x'; 1024])?;
                    stream.write_all(b"\r\n")?;
                }
            }
            Self::Slow => {
                for byte in b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n".iter().cycle() {
                    stream.write_all(&[*byte])?;
                    thread::sleep(Duration::from_millis(50));
                }
            }
        }
        Ok(())
    }
}

const ALL: [Trouble; 6] =
    [Trouble::Refuses, Trouble::Unreachable, Trouble::Hangs, Trouble::Garbage, Trouble::Endless, Trouble::Slow];
const PROTOCOLS: [&str; 2] = ["grpc", "http/protobuf"];

/// What telemetry says of itself: how many spans were dropped, for this cause.
fn dropped(telemetry: &Telemetry, cause: &str) -> u64 {
    let metrics = telemetry.tracing().metrics().render().expect("metrics are served");
    let labels = format!("{{cause=\"{cause}\",signal=\"traces\"}} ");
    let series = format!("license_gateway_telemetry_dropped_total{labels}");
    let value = metrics.lines().find_map(|line| line.strip_prefix(series.as_str()));
    value.unwrap_or_else(|| panic!("no {series} in {metrics}")).parse().expect("a number")
}

fn started(trouble: Trouble, more: &[(&str, &str)]) -> Telemetry {
    let endpoint = format!("http://{}", collector(trouble));
    let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("OTEL_BSP_SCHEDULE_DELAY", "10")];
    Telemetry::start(&otel(&[&variables, more].concat())).expect("it starts")
}

/// Makes spans, one after the other.
fn make(telemetry: &Telemetry, count: usize) {
    let (tracing, url) = (telemetry.tracing(), central());
    for _ in 0..count {
        ClientSpan::start(&tracing, &Origin::none(), &[], &delete(&url)).answered(200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exports_that_do_not_work_end_in_time_and_are_counted() {
    for trouble in ALL {
        for protocol in PROTOCOLS {
            let bounds = [("OTEL_EXPORTER_OTLP_TIMEOUT", "200"), ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)];
            let telemetry = started(trouble, &bounds);
            make(&telemetry, 3);
            let given_up = async {
                while dropped(&telemetry, "export_failed") < 3 {
                    tokio::task::yield_now().await;
                }
            };
            timeout(PATIENCE, given_up).await.unwrap_or_else(|_| panic!("{trouble:?} by {protocol} holds the export"));
            assert_eq!(dropped(&telemetry, "queue_full"), 0);
            telemetry.shutdown(ENOUGH).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_collector_that_hangs_has_a_bound() {
    for protocol in PROTOCOLS {
        let sizes = [
            ("OTEL_BSP_MAX_QUEUE_SIZE", "16"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
        ];
        let telemetry = started(Trouble::Hangs, &sizes);
        make(&telemetry, 1_000);
        // The queue, and the batch that is being sent.
        let dropped = dropped(&telemetry, "queue_full");
        assert!((1_000 - 16 - 8..=1_000 - 16).contains(&dropped), "{protocol}: {dropped}");
        timeout(PATIENCE, telemetry.shutdown(Duration::from_millis(100))).await.expect("bounded");
    }
}

#[tokio::test]
async fn a_collector_that_takes_what_it_gets_frees_the_queue() {
    let collector = Collector::start().await;
    let endpoint = collector.endpoint();
    let telemetry = Telemetry::start(&otel(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
        ("OTEL_BSP_SCHEDULE_DELAY", "10"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "4"),
    ]))
    .expect("it starts");
    for round in 1..=5 {
        make(&telemetry, 3);
        collector.wait_for_spans(|spans| spans.len() == 3 * round).await;
    }
    assert_eq!((dropped(&telemetry, "queue_full"), dropped(&telemetry, "export_failed")), (0, 0));
    telemetry.shutdown(ENOUGH).await;
}

/// The whole process, with requests one after the other for as long as LICENSE_GATEWAY_TEST_SECONDS says (2): none fails,
/// none waits, memory stays where it is, and the end comes in time.
async fn process_goes_on(trouble: Trouble, protocol: &str) {
    let sandbox = sandbox().await;
    let dir = tempfile::tempdir().unwrap();
    let endpoint = format!("http://{}", collector(trouble));
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
        ("OTEL_BLRP_SCHEDULE_DELAY", "100"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "100"),
    ];
    let mut process = Process::serve(&sandbox, dir.path(), &variables).await;
    let client = LicensingServiceClient::new(channel(process.address).await);
    let customer = customer(&sandbox, 0);
    let requests = async |until: Instant, at_least: usize| {
        let mut answered = 0;
        while answered < at_least || Instant::now() < until {
            let mut client = client.clone();
            timeout(PATIENCE, client.unassign_licenses(include(&[&customer])))
                .await
                .expect("no request waits")
                .expect("no request fails");
            answered += 1;
            if answered % 500 == 0 {
                sandbox.clear_calls();
            }
        }
        answered
    };
    requests(Instant::now(), 20).await;
    let before = process.resident_kib();
    let seconds = std::env::var("LICENSE_GATEWAY_TEST_SECONDS").map_or(2, |text| text.parse().expect("a number"));
    let answered = requests(Instant::now() + Duration::from_secs(seconds), 20).await;
    let growth = process.resident_kib().saturating_sub(before);
    println!("{trouble:?} by {protocol}: {answered} requests in {seconds} s, grown by {growth} KiB");
    assert!(growth <= 10 * 1024, "{trouble:?} by {protocol}: grown by {growth} KiB");

    process.terminate();
    process.said("drained").await;
    let drained = Instant::now();
    let (status, log) = process.exit().await;
    assert_eq!(status.code(), Some(0), "{log:#?}");
    let delay = drained.elapsed();
    println!("{trouble:?} by {protocol}: {delay:?} from the end of the drain to the end of the process");
    assert!(delay <= Duration::from_secs(2), "{trouble:?} by {protocol}: the exit was delayed by {delay:?}: {log:#?}");
    let panics: Vec<_> = log.iter().filter(|line| line["message"] == "panicked").collect();
    assert!(panics.is_empty(), "{trouble:?} by {protocol}: {panics:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_down_disturbs_nobody() {
    for protocol in PROTOCOLS {
        process_goes_on(Trouble::Refuses, protocol).await;
        process_goes_on(Trouble::Unreachable, protocol).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_hangs_disturbs_nobody() {
    for protocol in PROTOCOLS {
        process_goes_on(Trouble::Hangs, protocol).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_answers_nonsense_disturbs_nobody() {
    for (trouble, protocol) in
        [(Trouble::Garbage, "grpc"), (Trouble::Garbage, "http/protobuf"), (Trouble::Endless, "http/protobuf")]
    {
        process_goes_on(trouble, protocol).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_slow_disturbs_nobody() {
    for protocol in PROTOCOLS {
        process_goes_on(Trouble::Slow, protocol).await;
    }
}

/// While the last telemetry waits for a collector that hangs, the last numbers can still be had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_are_served_until_the_process_ends() {
    let (sandbox, dir) = (sandbox().await, tempfile::tempdir().unwrap());
    let endpoint = format!("http://{}", collector(Trouble::Hangs));
    let variables = [("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", endpoint.as_str())];
    let mut process = Process::serve(&sandbox, dir.path(), &variables).await;
    let admin = process.line("admin listening").await["listen"].as_str().unwrap().to_owned();
    let mut client = LicensingServiceClient::new(channel(process.address).await);
    client.unassign_licenses(include(&[&customer(&sandbox, 0)])).await.unwrap();
    process.terminate();
    process.said("drained").await;
    let mut pages = 0;
    while let Ok(answer) = reqwest::get(format!("http://{admin}/metrics")).await {
        let Ok(page) = answer.text().await else { break };
        assert!(page.contains("license_gateway_requests_total"), "page {pages} after the drain: {page:?}");
        pages += 1;
    }
    assert!(pages > 0, "nothing was served after the drain");
    process.exit().await;
}
