#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use std::{fs, time::Duration};

use secrecy::ExposeSecret as _;

use super::{BatchLimits, Protocol, RootSampler, Sampler, SpanLimits, StatusCodeName, Telemetry, Temporality};

fn all(variables: &[(&str, &str)]) -> Result<Telemetry, Vec<String>> {
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Telemetry::from_variables(variables).map_err(|problems| problems.0.iter().map(ToString::to_string).collect())
}

/// With an endpoint for everything.
fn with(variables: &[(&str, &str)]) -> Telemetry {
    let telemetry = all(&[&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317")], variables].concat());
    telemetry.unwrap()
}

/// Whether spans, metrics and log records go out by OTLP.
fn by_otlp(telemetry: &Telemetry) -> [bool; 3] {
    [telemetry.traces.otlp.is_some(), telemetry.metrics.otlp.is_some(), telemetry.logs.otlp.is_some()]
}

#[test]
fn nothing_is_sent_and_metrics_are_served_without_a_variable() {
    let telemetry = Telemetry::default();
    assert_eq!(by_otlp(&telemetry), [false; 3]);
    assert!(telemetry.metrics.served);
    assert_eq!(telemetry.ignored, [] as [&str; 0]);
    assert_eq!(by_otlp(&with(&[])), [true; 3]);
    // Empty is unset.
    assert_eq!(by_otlp(&all(&[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]).unwrap()), [false; 3]);
}

#[test]
fn otel_sdk_disabled_switches_everything_off() {
    let telemetry = with(&[("OTEL_SDK_DISABLED", "TRUE"), ("OTEL_TRACES_EXPORTER", "otlp")]);
    assert_eq!(by_otlp(&telemetry), [false; 3]);
    assert!(!telemetry.metrics.served);
    // It does not concern what is read of a caller's headers.
    assert!(telemetry.reads_trace_context);
    assert_eq!(by_otlp(&with(&[("OTEL_SDK_DISABLED", "false")])), [true; 3]);
    let telemetry = with(&[("OTEL_SDK_DISABLED", "yes")]);
    assert_eq!(by_otlp(&telemetry), [true; 3]);
    assert_eq!(telemetry.ignored, ["OTEL_SDK_DISABLED (neither true nor false)"]);
}

#[test]
fn otel_exporter_variables_choose_for_each_signal() {
    let telemetry = with(&[("OTEL_TRACES_EXPORTER", "none")]);
    assert_eq!(by_otlp(&telemetry), [false, true, true]);
    let telemetry = with(&[("OTEL_METRICS_EXPORTER", "none")]);
    assert!(telemetry.metrics.otlp.is_none() && !telemetry.metrics.served);
    let telemetry = with(&[("OTEL_METRICS_EXPORTER", "prometheus")]);
    assert!(telemetry.metrics.otlp.is_none() && telemetry.metrics.served);
    for off in ["none", "console"] {
        assert_eq!(by_otlp(&with(&[("OTEL_LOGS_EXPORTER", off)])), [true, true, false]);
    }
    // What is not known is ignored, and what is left counts.
    let telemetry = with(&[("OTEL_TRACES_EXPORTER", "zipkin"), ("OTEL_LOGS_EXPORTER", "jaeger,none")]);
    assert_eq!(by_otlp(&telemetry), [true, true, false]);
    let ignored =
        ["OTEL_TRACES_EXPORTER (`zipkin` is not supported)", "OTEL_LOGS_EXPORTER (`jaeger` is not supported)"];
    assert_eq!(telemetry.ignored, ignored);
}

#[test]
fn console_sends_nothing_and_is_named_where_it_has_no_effect() {
    let telemetry = with(&[
        ("OTEL_TRACES_EXPORTER", "console"),
        ("OTEL_METRICS_EXPORTER", "console"),
        ("OTEL_LOGS_EXPORTER", "console"),
    ]);
    assert_eq!(by_otlp(&telemetry), [false; 3]);
    assert!(telemetry.metrics.served);
    let ignored = ["TRACES", "METRICS"].map(|signal| format!("OTEL_{signal}_EXPORTER (`console` is not supported)"));
    assert_eq!(telemetry.ignored, ignored);
    // What stands beside it counts.
    assert_eq!(by_otlp(&with(&[("OTEL_TRACES_EXPORTER", "console, otlp")])), [true; 3]);
}

#[test]
fn otlp_that_is_asked_for_by_name_needs_no_endpoint() {
    let otlp = |variables: &[(&str, &str)]| {
        all(&[&[("OTEL_LOGS_EXPORTER", "otlp")], variables].concat()).unwrap().logs.otlp.unwrap().endpoint
    };
    assert_eq!(otlp(&[]), "http://localhost:4317");
    assert_eq!(otlp(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")]), "http://localhost:4318/v1/logs");
}

#[test]
fn otel_propagators_choose_what_is_read_of_callers() {
    let read = |value| {
        let telemetry = all(&[("OTEL_PROPAGATORS", value)]).unwrap();
        (telemetry.reads_trace_context, telemetry.ignored)
    };
    assert_eq!(read(""), (true, vec![]));
    assert_eq!(read("tracecontext,baggage"), (true, vec![]));
    assert_eq!(read("tracecontext"), (true, vec![]));
    assert_eq!(read("baggage"), (false, vec![]));
    assert_eq!(read("none"), (false, vec![]));
    let b3 = |word| format!("OTEL_PROPAGATORS (`{word}` is not supported)");
    assert_eq!(read("b3,tracecontext"), (true, vec![b3("b3")]));
    // Nothing of it can be used: as if it were not set.
    assert_eq!(read("b3,b3multi"), (true, vec![b3("b3"), b3("b3multi")]));
}

#[test]
fn endpoint_is_that_of_the_signal_or_that_of_all() {
    let endpoint = |variables: &[(&str, &str)]| with(variables).traces.otlp.unwrap().endpoint;
    let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://own:1/x");
    let http = ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
    assert_eq!(endpoint(&[]), "http://c:4317");
    assert_eq!(endpoint(&[own]), "http://own:1/x");
    assert_eq!(endpoint(&[http]), "http://c:4317/v1/traces");
    assert_eq!(endpoint(&[http, own]), "http://own:1/x");
    assert_eq!(endpoint(&[http, ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c/p/")]), "http://c/p/v1/traces");
    // Without a scheme it is encrypted, unless that is waived.
    let bare = ("OTEL_EXPORTER_OTLP_ENDPOINT", "c:4317");
    assert_eq!(endpoint(&[bare]), "https://c:4317");
    assert_eq!(endpoint(&[bare, ("OTEL_EXPORTER_OTLP_INSECURE", "true")]), "http://c:4317");
    let own_insecure = ("OTEL_EXPORTER_OTLP_TRACES_INSECURE", "false");
    assert_eq!(endpoint(&[bare, ("OTEL_EXPORTER_OTLP_INSECURE", "true"), own_insecure]), "https://c:4317");
    for bad in ["nonsense://c", "http://", "unix:///s", "http://a b"] {
        let problems = all(&[("OTEL_EXPORTER_OTLP_ENDPOINT", bad)]).unwrap_err();
        let problem = "OTEL_EXPORTER_OTLP_ENDPOINT: is not a URL of this kind; write it like http://collector:4317";
        assert_eq!(problems, [problem], "{bad}");
    }
}

#[test]
fn protocol_compression_and_timeout_are_those_of_the_signal_or_those_of_all() {
    let telemetry = with(&[
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_EXPORTER_OTLP_LOGS_COMPRESSION", "none"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "2000"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "3000"),
    ]);
    let seen = [telemetry.traces.otlp, telemetry.metrics.otlp, telemetry.logs.otlp].map(|otlp| {
        let otlp = otlp.unwrap();
        (otlp.protocol, otlp.gzip, otlp.timeout.as_secs())
    });
    let (grpc, http) = (Protocol::Grpc, Protocol::HttpProtobuf);
    assert_eq!(seen, [(http, true, 3), (grpc, true, 2), (http, false, 2)]);
    assert_eq!(telemetry.ignored, [] as [&str; 0]);

    let telemetry = with(&[
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
    ]);
    let otlp = telemetry.traces.otlp.unwrap();
    assert_eq!((otlp.protocol, otlp.gzip, otlp.timeout.as_secs()), (grpc, false, 10));
    // Each once, though each counts for three signals.
    assert_eq!(
        telemetry.ignored,
        [
            "OTEL_EXPORTER_OTLP_PROTOCOL (`http/json` is not supported)",
            "OTEL_EXPORTER_OTLP_COMPRESSION (`zstd` is not supported)",
            "OTEL_EXPORTER_OTLP_TIMEOUT (not a whole number that fits)",
        ]
    );
}

#[test]
fn headers_are_decoded_and_not_printed() {
    let telemetry = with(&[
        ("OTEL_EXPORTER_OTLP_HEADERS", "Api-Key=s3cr3t%20k%3Dy , x=1"),
        ("OTEL_EXPORTER_OTLP_LOGS_HEADERS", "y=2"),
    ]);
    let headers = |otlp: &Option<super::Otlp>| -> Vec<String> {
        let headers = &otlp.as_ref().unwrap().headers;
        headers.iter().map(|(name, value)| format!("{name}: {}", value.expose_secret())).collect()
    };
    assert_eq!(headers(&telemetry.traces.otlp), ["api-key: s3cr3t k=y", "x: 1"]);
    assert_eq!(headers(&telemetry.logs.otlp), ["y: 2"]);
    assert!(!format!("{telemetry:?}").contains("s3cr3t"));
    for bad in ["s3cr3t", "a b=s3cr3t", "a=s3cr3t%2", "a=s3cr3t%0A"] {
        let telemetry = with(&[("OTEL_EXPORTER_OTLP_HEADERS", bad)]);
        assert!(telemetry.traces.otlp.unwrap().headers.is_empty());
        assert_eq!(telemetry.ignored, ["OTEL_EXPORTER_OTLP_HEADERS (not of the form name=value,name=value)"]);
    }
}

#[test]
fn certificate_files_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let pair = rcgen::generate_simple_self_signed(["collector.test".to_owned()]).unwrap();
    fs::write(path("ca"), pair.cert.pem()).unwrap();
    fs::write(path("cert"), pair.cert.pem()).unwrap();
    fs::write(path("key"), pair.signing_key.serialize_pem()).unwrap();
    let (ca, cert, key) = (path("ca"), path("cert"), path("key"));
    let telemetry = with(&[
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", &ca),
        ("OTEL_EXPORTER_OTLP_METRICS_CLIENT_CERTIFICATE", &cert),
        ("OTEL_EXPORTER_OTLP_METRICS_CLIENT_KEY", &key),
    ]);
    let traces = telemetry.traces.otlp.unwrap();
    assert_eq!((traces.ca_file.unwrap().display().to_string(), traces.client_identity_files), (ca, None));
    let (found_cert, found_key) = telemetry.metrics.otlp.unwrap().client_identity_files.unwrap();
    assert_eq!((found_cert.display().to_string(), found_key.display().to_string()), (cert.clone(), key.clone()));

    let problems = |variables: &[(&str, &str)]| all(variables).unwrap_err();
    assert_eq!(
        problems(&[("OTEL_EXPORTER_OTLP_CERTIFICATE", &path("gone")), ("OTEL_EXPORTER_OTLP_CLIENT_KEY", &key)]),
        [
            "OTEL_EXPORTER_OTLP_CERTIFICATE: names a file that does not exist; create the file or correct the path",
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE: is missing; a certificate and its key go together",
        ]
    );
    // The wrong way round.
    assert_eq!(
        problems(&[("OTEL_EXPORTER_OTLP_CLIENT_KEY", &cert), ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", &key)]),
        [
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE: names a file that holds no certificate; it must be a PEM file of \
             certificates",
            "OTEL_EXPORTER_OTLP_CLIENT_KEY: names a file that holds no private key; it must be a PEM file",
        ]
    );
}

#[test]
fn samplers_are_read_with_their_argument() {
    let sampler = |name, argument| {
        let telemetry = all(&[("OTEL_TRACES_SAMPLER", name), ("OTEL_TRACES_SAMPLER_ARG", argument)]).unwrap();
        let Sampler { parent_based, root } = telemetry.traces.sampler;
        (parent_based, root, telemetry.ignored)
    };
    let good = |parent_based, root| (parent_based, root, vec![]);
    assert_eq!(sampler("", ""), good(true, RootSampler::AlwaysOn));
    assert_eq!(sampler("always_on", ""), good(false, RootSampler::AlwaysOn));
    assert_eq!(sampler("always_off", ""), good(false, RootSampler::AlwaysOff));
    assert_eq!(sampler("traceidratio", "0.25"), good(false, RootSampler::Ratio(0.25)));
    assert_eq!(sampler("traceidratio", ""), good(false, RootSampler::Ratio(1.0)));
    assert_eq!(sampler("parentbased_always_on", ""), good(true, RootSampler::AlwaysOn));
    assert_eq!(sampler("parentbased_always_off", ""), good(true, RootSampler::AlwaysOff));
    assert_eq!(sampler("parentbased_traceidratio", "0.01"), good(true, RootSampler::Ratio(0.01)));
    let (_, root, ignored) = sampler("traceidratio", "1%");
    assert_eq!((root, ignored.len()), (RootSampler::Ratio(1.0), 1));
    let (parent_based, root, ignored) = sampler("xray", "");
    assert_eq!((parent_based, root), (true, RootSampler::AlwaysOn));
    assert_eq!(ignored, ["OTEL_TRACES_SAMPLER (`xray` is not supported)"]);
}

#[test]
fn batches_have_their_sizes_delays_and_bounds() {
    let telemetry = with(&[
        ("OTEL_BSP_MAX_QUEUE_SIZE", "10"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "20"),
        ("OTEL_BSP_SCHEDULE_DELAY", "300"),
        ("OTEL_BSP_EXPORT_TIMEOUT", "4000"),
        ("OTEL_BLRP_MAX_QUEUE_SIZE", "50"),
        ("OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", "5"),
        ("OTEL_BLRP_SCHEDULE_DELAY", "0"),
        ("OTEL_BLRP_EXPORT_TIMEOUT", "6000"),
    ]);
    let (traces, logs) = (telemetry.traces, telemetry.logs);
    assert_eq!(traces.batch, BatchLimits { queue_size: 10, export_size: 10, delay: Duration::from_millis(300) });
    assert_eq!(traces.otlp.unwrap().timeout, Duration::from_secs(4));
    assert_eq!(logs.batch, BatchLimits { queue_size: 50, export_size: 5, delay: Duration::from_secs(1) });
    assert_eq!(logs.otlp.unwrap().timeout, Duration::from_secs(6));
    assert_eq!(telemetry.ignored, ["OTEL_BLRP_SCHEDULE_DELAY (must be more than 0)"]);
    let defaults = Telemetry::default();
    assert_eq!(
        defaults.traces.batch,
        BatchLimits { queue_size: 2048, export_size: 512, delay: Duration::from_secs(5) }
    );
    assert_eq!(defaults.logs.batch, BatchLimits { queue_size: 2048, export_size: 512, delay: Duration::from_secs(1) });
}

#[test]
fn metrics_have_their_interval_bound_and_temporality() {
    let telemetry = with(&[
        ("OTEL_METRIC_EXPORT_INTERVAL", "1500"),
        ("OTEL_METRIC_EXPORT_TIMEOUT", "700"),
        ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "Delta"),
    ]);
    assert_eq!(telemetry.metrics.interval, Duration::from_millis(1500));
    assert_eq!(telemetry.metrics.otlp.unwrap().timeout, Duration::from_millis(700));
    assert_eq!(telemetry.metrics.temporality, Temporality::Delta);
    assert_eq!(Telemetry::default().metrics.interval, Duration::from_mins(1));
    assert_eq!(Telemetry::default().metrics.temporality, Temporality::Cumulative);
}

#[test]
fn limits_are_those_of_the_kind_of_record_or_those_of_all() {
    let telemetry = with(&[
        ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "100"),
        ("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "50"),
        ("OTEL_ATTRIBUTE_COUNT_LIMIT", "7"),
        ("OTEL_SPAN_EVENT_COUNT_LIMIT", "2"),
        ("OTEL_SPAN_LINK_COUNT_LIMIT", "3"),
    ]);
    assert_eq!(telemetry.traces.limits, SpanLimits { value_length: Some(50), attributes: 7, events: 2, links: 3 });
    assert_eq!(telemetry.logs.value_length, Some(100));
    let none = Telemetry::default();
    assert_eq!(none.traces.limits, SpanLimits { value_length: None, attributes: 128, events: 128, links: 128 });
    assert_eq!(none.logs.value_length, None);
}

#[test]
fn semconv_opt_in_chooses_the_name_of_the_status_code() {
    let name = |value| all(&[("OTEL_SEMCONV_STABILITY_OPT_IN", value)]).unwrap().status_code_name;
    assert_eq!(name(""), StatusCodeName::Old);
    assert_eq!(name("rpc"), StatusCodeName::New);
    assert_eq!(name("http,rpc/dup"), StatusCodeName::Both);
    let ignored = all(&[("OTEL_SEMCONV_STABILITY_OPT_IN", "database")]).unwrap().ignored;
    assert_eq!(ignored, ["OTEL_SEMCONV_STABILITY_OPT_IN (`database` is not supported)"]);
}

#[test]
fn resource_is_what_the_variables_say_and_the_name_of_the_service_wins() {
    let resource = |variables: &[(&str, &str)]| all(variables).unwrap().resource;
    let attributes = ("OTEL_RESOURCE_ATTRIBUTES", "service.name=a, k8s.pod.name=p%201");
    let owned = |pairs: &[(&str, &str)]| -> Vec<_> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    assert_eq!(resource(&[attributes]), owned(&[("service.name", "a"), ("k8s.pod.name", "p 1")]));
    let named = resource(&[attributes, ("OTEL_SERVICE_NAME", "b")]);
    assert_eq!(named, owned(&[("k8s.pod.name", "p 1"), ("service.name", "b")]));
    let bad = all(&[("OTEL_RESOURCE_ATTRIBUTES", "nonsense")]).unwrap();
    assert_eq!((bad.resource.len(), bad.ignored.len()), (0, 1));
}

#[test]
fn variables_that_nothing_listens_to_are_named() {
    let telemetry = with(&[
        ("OTEL_LOG_LEVEL", "debug"),
        ("OTEL_METRICS_EXEMPLAR_FILTER", "trace_based"),
        ("OTEL_EXPORTER_OTLP_TRACE_ENDPOINT", "http://misspelt"),
        ("OTEL_EXPORTER_PROMETHEUS_PORT", "9000"),
        // What another overrules has its effect elsewhere, or would.
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://t"),
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://m"),
        ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://l"),
        ("OTEL_TRACES_SAMPLER_ARG", "0.5"),
        ("PATH", "/bin"),
    ]);
    assert_eq!(
        telemetry.ignored,
        [
            "OTEL_TRACES_SAMPLER_ARG (the sampler takes none)",
            "OTEL_EXPORTER_OTLP_TRACE_ENDPOINT",
            "OTEL_EXPORTER_PROMETHEUS_PORT",
            "OTEL_LOG_LEVEL",
            "OTEL_METRICS_EXEMPLAR_FILTER",
        ]
    );
}

#[test]
fn a_queue_that_no_memory_holds_is_ignored() {
    for size in ["100001", "4000000000", "18446744073709551615"] {
        for name in ["OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BLRP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"] {
            let telemetry = all(&[(name, size)]).unwrap();
            assert_eq!(telemetry.ignored, [format!("{name} (must be at most 100000)")]);
            let (spans, logs) = (telemetry.traces.batch, telemetry.logs.batch);
            assert_eq!((spans.queue_size, spans.export_size, logs.queue_size), (2048, 512, 2048), "{name}");
        }
    }
}

#[test]
fn a_disabled_sdk_forgives_the_rest() {
    let wrong = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://me:hunter2@collector"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere.pem"),
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/nowhere.key"),
    ];
    assert!(all(&wrong).is_err());
    let disabled = all(&[&wrong[..], &[("OTEL_SDK_DISABLED", "true")]].concat()).unwrap();
    assert!(disabled.traces.otlp.is_none() && !disabled.metrics.served);
}
