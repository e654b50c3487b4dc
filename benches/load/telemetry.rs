//! What traces, metrics and logs cost: the same requests, every one a call of its own, to gateways that differ in
//! nothing but OpenTelemetry's variables. The collector is real gRPC, in this process.

use std::path::Path;

use crate::{
    Plan,
    collector::Collector,
    figures::{self, Spread, number},
    rounds::{self, Loop, ONE_BY_ONE, Run, Running, What},
};

/// What a gateway does about telemetry.
struct Way {
    closed: Loop,
    variables: &'static [(&'static str, &'static str)],
    has_collector: bool,
}

/// The first is what the others are compared with.
const WAYS: [Way; 7] = [
    Way {
        closed: ONE_BY_ONE.named("off: `OTEL_SDK_DISABLED=true`", What::Alone),
        variables: &[("OTEL_SDK_DISABLED", "true")],
        has_collector: false,
    },
    Way {
        closed: ONE_BY_ONE.named("off, callers with a trace that is not sampled", What::Unsampled),
        variables: &[("OTEL_SDK_DISABLED", "true")],
        has_collector: false,
    },
    Way {
        closed: ONE_BY_ONE.named("as by default: metrics on `/metrics`", What::Alone),
        variables: &[],
        has_collector: false,
    },
    Way {
        closed: ONE_BY_ONE.named("a collector, traces sampled at 1 %", What::Alone),
        variables: &[("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0.01")],
        has_collector: true,
    },
    Way {
        closed: ONE_BY_ONE.named("a collector, traces sampled at 100 %", What::Alone),
        variables: EVERYTHING,
        has_collector: true,
    },
    Way {
        closed: ONE_BY_ONE.named("the same, callers with a trace that is not sampled", What::Unsampled),
        variables: EVERYTHING,
        has_collector: true,
    },
    Way {
        closed: ONE_BY_ONE.named("the same callers, and `OTEL_LOGS_EXPORTER=none`", What::Unsampled),
        variables: &[
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "1.0"),
            ("OTEL_LOGS_EXPORTER", "none"),
        ],
        has_collector: true,
    },
];

const EVERYTHING: &[(&str, &str)] =
    &[("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "1.0")];

pub(crate) async fn measure(gateway: &Path, plan: &Plan) -> String {
    let (mut all, mut collectors) = (Vec::new(), Vec::new());
    for way in &WAYS {
        let collector = way.has_collector.then(Collector::start);
        let endpoint = collector.as_ref().map(Collector::endpoint);
        let endpoint = endpoint.iter().map(|endpoint| ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()));
        let variables: Vec<_> = way.variables.iter().copied().chain(endpoint).collect();
        all.push(Running::start(gateway, &way.closed, &variables).await);
        collectors.push(collector);
    }
    rounds::take_turns(plan, &mut all).await;

    let off: Vec<_> = all[0].runs.iter().map(Run::cpu).collect();
    let mut rows = Vec::new();
    for ((running, collector), way) in all.into_iter().zip(&collectors).zip(&WAYS) {
        let cpu: Vec<_> = running.runs.iter().map(Run::cpu).collect();
        // Runs of the same round stand beside each other, as in `rounds`.
        let ratios = cpu.iter().zip(&off).map(|(cpu, off)| cpu / off);
        let mut row =
            vec![way.closed.title.to_owned(), Spread::of(cpu.iter().copied()).shown(), Spread::of(ratios).shown()];
        let (memory, requests) = (running.memory(), running.requests);
        // Not before: what has not been sent yet is neither received nor lost.
        running.stop();
        let counted = collector.as_ref().map(Collector::counted).unwrap_or_default();
        row.extend(counted.map(|count| number(count / requests * 10_000.0)));
        row.push(memory);
        rows.push(row);
    }
    let head = [
        "One by one, 64 callers",
        "CPU s per 10,000 requests",
        "× off, round by round",
        "spans received per 10,000",
        "spans dropped",
        "log records received per 10,000",
        "log records dropped",
        "memory, MiB (peak)",
    ];
    let title = format!("Telemetry: median (least–most) of {} runs of {:?}", plan.repetitions, plan.run);
    figures::table(&title, &head, &rows)
}
