//! The standard `OTEL_*` variables, as their specification has them: an empty one counts as unset, booleans come in any
//! case, lengths of time are whole milliseconds, and what cannot be used is ignored with a warning instead of stopping
//! the process. All of them are read here and handed to the SDK typed, also those that it would read by itself: so
//! `check-config` can show what holds, and tests can pass them in.
//!
//! Called by [`super::LoadedConfig::load`].

mod otlp;
#[cfg(test)]
mod tests;
mod variables;

use std::{collections::BTreeMap, time::Duration};

pub use self::otlp::{Otlp, Protocol};
use self::variables::Variables;
use super::{problem::Problems, reader::Reader};

/// What the standard `OTEL_*` variables say.
#[derive(Debug, Clone)]
pub struct Telemetry {
    /// Where spans go and how they are made.
    pub traces: TracesExport,
    /// Where metrics go.
    pub metrics: MetricsExport,
    /// Where log records go beside standard output.
    pub logs: LogsExport,
    /// Whether a caller's W3C `traceparent` and `tracestate` are read. `OTEL_PROPAGATORS`.
    pub reads_trace_context: bool,
    /// What the status code of an RPC is called.
    pub status_code_name: StatusCodeName,
    /// Who we are, as `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say.
    pub resource: Vec<(String, String)>,
    /// What is set and has no effect: for one warning. Names of variables, with the reason where there is one.
    pub ignored: Vec<String>,
}

/// Where spans go and how they are made.
#[derive(Debug, Clone)]
pub struct TracesExport {
    /// By OTLP; none: not by OTLP.
    pub otlp: Option<Otlp>,
    /// Which traces are kept. `OTEL_TRACES_SAMPLER`, `OTEL_TRACES_SAMPLER_ARG`.
    pub sampler: Sampler,
    /// How spans wait and travel. `OTEL_BSP_*`.
    pub batch: BatchLimits,
    /// `OTEL_SPAN_*_LIMIT`, `OTEL_ATTRIBUTE_*_LIMIT`.
    pub limits: SpanLimits,
}

/// Where metrics go.
#[derive(Debug, Clone)]
pub struct MetricsExport {
    /// By OTLP; none: not by OTLP.
    pub otlp: Option<Otlp>,
    /// On `/metrics` of `admin.listen`. Off only by `OTEL_SDK_DISABLED=true` and `OTEL_METRICS_EXPORTER=none`.
    pub served: bool,
    /// `OTEL_METRIC_EXPORT_INTERVAL`.
    pub interval: Duration,
    /// `OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE`.
    pub temporality: Temporality,
}

/// Where log records go beside standard output.
#[derive(Debug, Clone)]
pub struct LogsExport {
    /// By OTLP; none: not by OTLP.
    pub otlp: Option<Otlp>,
    /// How records wait and travel. `OTEL_BLRP_*`.
    pub batch: BatchLimits,
    /// The longest text of an attribute, in characters.
    pub value_length: Option<usize>,
}

/// What the status code of an RPC is called: the conventions are about to rename it. `OTEL_SEMCONV_STABILITY_OPT_IN`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusCodeName {
    /// `rpc.response.status_code`, the name up to release 1.44.
    Old,
    /// `rpc.status_code`. `rpc`.
    New,
    /// Both. `rpc/dup`.
    Both,
}

/// Which traces are kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampler {
    /// Whether the caller's decision comes first.
    pub parent_based: bool,
    /// How traces without a caller's decision are judged.
    pub root: RootSampler,
}

/// How traces without a caller's decision are judged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RootSampler {
    /// All are kept.
    AlwaysOn,
    /// None is.
    AlwaysOff,
    /// This share of them is.
    Ratio(f64),
}

/// How spans or log records wait and travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// How many may wait; more are dropped.
    pub queue_size: usize,
    /// How many travel together at most.
    pub export_size: usize,
    /// How long one may wait for others.
    pub delay: Duration,
}

/// How much a span may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanLimits {
    /// The longest text of an attribute, in characters.
    pub value_length: Option<usize>,
    /// How many attributes.
    pub attributes: u32,
    /// How many events.
    pub events: u32,
    /// How many links.
    pub links: u32,
}

/// What a reported sum counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Temporality {
    /// From the start of the process. `cumulative`.
    Cumulative,
    /// From the last report, where that makes sense. `delta`.
    Delta,
    /// As little memory as possible. `lowmemory`.
    LowMemory,
}

impl Default for Telemetry {
    /// What holds without a single variable: metrics are served, and nothing is sent.
    fn default() -> Self {
        Variables::new(BTreeMap::new()).telemetry()
    }
}

impl Telemetry {
    /// What these variables say; others than `OTEL_*` count for nothing.
    pub fn from_variables(variables: impl IntoIterator<Item = (String, String)>) -> Result<Self, Problems> {
        let mut reader =
            Reader::new(None, variables.into_iter().filter(|(name, _)| name.starts_with("OTEL_")).collect());
        let telemetry = read(&mut reader);
        let (_, problems) = reader.finish();
        if problems.is_empty() { Ok(telemetry) } else { Err(Problems(problems)) }
    }
}

/// The room for it is taken at the start: about 40 MB for so many spans.
const LARGEST_QUEUE: usize = 100_000;

/// Reads the variables; what must stop the process becomes a problem of the reader.
pub(super) fn read(reader: &mut Reader) -> Telemetry {
    let mut variables = Variables::new(reader.variables("OTEL_"));
    let telemetry = variables.telemetry();
    for (name, message) in variables.problems {
        reader.problem(&name, message);
    }
    telemetry
}

/// One of the three kinds of telemetry, as it stands in the names of variables.
#[derive(Clone, Copy)]
enum Signal {
    Traces,
    Metrics,
    Logs,
}

impl Signal {
    const fn word(self) -> &'static str {
        match self {
            Self::Traces => "TRACES",
            Self::Metrics => "METRICS",
            Self::Logs => "LOGS",
        }
    }
}

impl Variables {
    fn telemetry(&mut self) -> Telemetry {
        let disabled = self.boolean("OTEL_SDK_DISABLED");
        let mut traces = self.traces();
        let mut metrics = self.metrics();
        let mut logs = self.logs();
        if disabled {
            (traces.otlp, metrics.otlp, logs.otlp) = (None, None, None);
            metrics.served = false;
            // What is not used need not be right.
            self.problems.clear();
        }
        let reads_trace_context = self.reads_trace_context();
        let status_code_name = self.status_code_name();
        let resource = self.resource();
        let ignored = self.without_effect();
        Telemetry { traces, metrics, logs, reads_trace_context, status_code_name, resource, ignored }
    }

    fn traces(&mut self) -> TracesExport {
        let exporters = self.exporters(Signal::Traces, &["otlp", "console", "none"]);
        let batch = self.batch("BSP", Duration::from_secs(5));
        let export_timeout = self.milliseconds("OTEL_BSP_EXPORT_TIMEOUT", Duration::from_secs(30));
        TracesExport {
            otlp: self.otlp(Signal::Traces, exporters.as_deref(), export_timeout),
            sampler: self.sampler(),
            batch,
            limits: SpanLimits {
                value_length: self.value_length("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT"),
                attributes: self
                    .number("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT")
                    .or_else(|| self.number("OTEL_ATTRIBUTE_COUNT_LIMIT"))
                    .unwrap_or(128),
                events: self.number("OTEL_SPAN_EVENT_COUNT_LIMIT").unwrap_or(128),
                links: self.number("OTEL_SPAN_LINK_COUNT_LIMIT").unwrap_or(128),
            },
        }
    }

    fn metrics(&mut self) -> MetricsExport {
        let exporters = self.exporters(Signal::Metrics, &["otlp", "prometheus", "console", "none"]);
        let export_timeout = self.milliseconds("OTEL_METRIC_EXPORT_TIMEOUT", Duration::from_secs(30));
        let temporality = [
            ("cumulative", Temporality::Cumulative),
            ("delta", Temporality::Delta),
            ("lowmemory", Temporality::LowMemory),
        ];
        MetricsExport {
            otlp: self.otlp(Signal::Metrics, exporters.as_deref(), export_timeout),
            served: exporters.is_none_or(|exporters| !exporters.is_empty()),
            interval: self.milliseconds("OTEL_METRIC_EXPORT_INTERVAL", Duration::from_mins(1)),
            temporality: self
                .word("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", &temporality)
                .unwrap_or(Temporality::Cumulative),
        }
    }

    fn logs(&mut self) -> LogsExport {
        let exporters = self.exporters(Signal::Logs, &["otlp", "console", "none"]);
        let batch = self.batch("BLRP", Duration::from_secs(1));
        let export_timeout = self.milliseconds("OTEL_BLRP_EXPORT_TIMEOUT", Duration::from_secs(30));
        LogsExport {
            otlp: self.otlp(Signal::Logs, exporters.as_deref(), export_timeout),
            batch,
            value_length: self.value_length("OTEL_LOGRECORD_ATTRIBUTE_VALUE_LENGTH_LIMIT"),
        }
    }

    /// Where a signal goes: none if nobody says, empty for `none`.
    fn exporters(&mut self, signal: Signal, known: &[&'static str]) -> Option<Vec<&'static str>> {
        let name = format!("OTEL_{}_EXPORTER", signal.word());
        let words = self.words(&name, known)?;
        // Of logs it asks for nothing: standard output has every record.
        if words.contains(&"console") && !matches!(signal, Signal::Logs) {
            self.ignore(&name, "`console` is not supported");
        }
        Some(if words.contains(&"none") { Vec::new() } else { words })
    }

    fn sampler(&mut self) -> Sampler {
        let words = [
            ("always_on", (false, "on")),
            ("always_off", (false, "off")),
            ("traceidratio", (false, "ratio")),
            ("parentbased_always_on", (true, "on")),
            ("parentbased_always_off", (true, "off")),
            ("parentbased_traceidratio", (true, "ratio")),
        ];
        let (parent_based, root) = self.word("OTEL_TRACES_SAMPLER", &words).unwrap_or((true, "on"));
        let argument = self.text("OTEL_TRACES_SAMPLER_ARG");
        let root = match root {
            "off" => RootSampler::AlwaysOff,
            "ratio" => {
                let ratio = argument
                    .as_deref()
                    .map_or(Some(1.0), |text| text.parse().ok().filter(|ratio: &f64| (0.0..=1.0).contains(ratio)));
                if ratio.is_none() {
                    self.ignore("OTEL_TRACES_SAMPLER_ARG", "not a number from 0 to 1");
                }
                RootSampler::Ratio(ratio.unwrap_or(1.0))
            }
            _ => {
                if argument.is_some() {
                    self.ignore("OTEL_TRACES_SAMPLER_ARG", "the sampler takes none");
                }
                RootSampler::AlwaysOn
            }
        };
        Sampler { parent_based, root }
    }

    fn batch(&mut self, processor: &str, delay: Duration) -> BatchLimits {
        let size = |variables: &mut Self, what, default| {
            let name = format!("OTEL_{processor}_{what}");
            match variables.number(&name) {
                Some(0) => {
                    variables.ignore(&name, "must be more than 0");
                    default
                }
                Some(size) if size > LARGEST_QUEUE => {
                    variables.ignore(&name, "must be at most 100000");
                    default
                }
                size => size.unwrap_or(default),
            }
        };
        let queue_size = size(self, "MAX_QUEUE_SIZE", 2048);
        BatchLimits {
            queue_size,
            export_size: size(self, "MAX_EXPORT_BATCH_SIZE", 512).min(queue_size),
            delay: self.milliseconds(&format!("OTEL_{processor}_SCHEDULE_DELAY"), delay),
        }
    }

    fn reads_trace_context(&mut self) -> bool {
        // Nothing here reads baggage; the word is known because the specification's default has it.
        let words = self.words("OTEL_PROPAGATORS", &["tracecontext", "baggage", "none"]);
        words.is_none_or(|words| words.contains(&"tracecontext") && !words.contains(&"none"))
    }

    fn status_code_name(&mut self) -> StatusCodeName {
        // Our spans of HTTP have their final names whether or not somebody opts in.
        let known = ["rpc", "rpc/dup", "http", "http/dup"];
        let words = self.words("OTEL_SEMCONV_STABILITY_OPT_IN", &known).unwrap_or_default();
        if words.contains(&"rpc/dup") {
            StatusCodeName::Both
        } else if words.contains(&"rpc") {
            StatusCodeName::New
        } else {
            StatusCodeName::Old
        }
    }

    fn resource(&mut self) -> Vec<(String, String)> {
        let name = "OTEL_RESOURCE_ATTRIBUTES";
        let mut attributes = match self.text(name).map(|text| otlp::pairs(&text)) {
            Some(Some(attributes)) => attributes,
            Some(None) => {
                self.ignore(name, "not of the form key=value,key=value");
                Vec::new()
            }
            None => Vec::new(),
        };
        if let Some(service) = self.text("OTEL_SERVICE_NAME") {
            attributes.retain(|(key, _)| key != "service.name");
            attributes.push(("service.name".to_owned(), service));
        }
        attributes
    }

    /// The limit of this kind of record, or the one for all kinds.
    fn value_length(&mut self, name: &str) -> Option<usize> {
        let general = self.number("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT");
        self.number(name).or(general)
    }
}

fn has(exporters: Option<&[&str]>, exporter: &str) -> bool {
    exporters.is_some_and(|exporters| exporters.contains(&exporter))
}
