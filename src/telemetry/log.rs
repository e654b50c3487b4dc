//! Log lines on standard output: JSON for machines, text for people, with the ids of the request they belong to. And the
//! same records to a collector, if there is one for them: see [`export`].
//!
//! What dependencies say at `debug` and `trace` is never printed, whatever the filter says. They print what they
//! handle: tonic whole statuses with their metadata, h2 every frame it reads and writes. Today's h2 leaves out the
//! header fields, but nobody promises that the next one does, and headers carry tokens. Letting their spans through
//! would also cost several times the request itself. (reqwest and rustls use the `log` crate, which nothing here reads.)

mod export;
mod writer;

use std::{
    collections::HashMap,
    error::Error,
    fmt::{self, Write as _},
    io::{self, Write as _},
    panic,
    sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use anstyle::{AnsiColor, Style};
use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use opentelemetry::{
    Context,
    trace::{SpanContext, TraceContextExt as _},
};
use serde::{Serializer as _, ser::SerializeMap as _};
use serde_json::Value;
use tracing::{
    Event, Level, Metadata, Subscriber,
    callsite::Identifier,
    field::{Field, Visit},
    subscriber::Interest,
};
use tracing_subscriber::{
    Layer, Registry,
    layer::{self, SubscriberExt as _},
};

pub(super) use self::export::Export;
use self::writer::LogWriter;
use crate::{
    config::{self, LogFormat},
    license::OperationId,
};

/// Starts logging to standard output, for the whole process. A second call changes nothing.
///
/// `is_terminal`: whether a person is likely to read along, who gets text and colours unless told otherwise.
pub fn init(settings: &config::Log, is_terminal: bool) {
    let Some(writer) = WRITER.get_or_init(|| LogWriter::start(io::stdout()).ok()).clone() else {
        return; // no thread can be started: the runtime will say so
    };
    let write = Box::new(move |line: &str| writer.line(line));
    // Fails only if there is a subscriber already.
    let exported = Arc::clone(&EXPORTED);
    let _ = tracing::subscriber::set_global_default(subscriber(settings, is_terminal, write, exported));
}

/// Writes the process' log.
static WRITER: OnceLock<Option<LogWriter>> = OnceLock::new();

/// Before the process ends: waits until what was logged is written, but not for longer than this.
pub fn flush(limit: Duration) {
    if let Some(Some(writer)) = WRITER.get() {
        writer.flush(limit);
    }
}

/// Where the records of the process' log go beside standard output. Set after the log has begun: what goes wrong before
/// must be logged, too.
static EXPORTED: LazyLock<Exported> = LazyLock::new(Exported::default);

type Exported = Arc<ArcSwapOption<Export>>;

/// Begins or ends the export of the process' log.
pub(super) fn export_to(export: Option<Export>) {
    EXPORTED.store(export.map(Arc::new));
}

/// Logs panics as lines of their own, with the place. The message only if it is a constant: one that was put together
/// may hold anything.
pub fn install_panic_hook() {
    panic::set_hook(Box::new(|panic| {
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        let message = panic.payload().downcast_ref::<&'static str>().copied().unwrap_or("withheld, it may hold data");
        let thread = std::thread::current().name().unwrap_or_default().to_owned();
        if tracing::dispatcher::has_been_set() {
            tracing::error!(location, panic = message, thread, "panicked");
        } else {
            let _ = writeln!(io::stderr(), "panicked at {location}: {message}");
        }
    }));
}

fn subscriber(
    settings: &config::Log,
    is_terminal: bool,
    write: Box<dyn Fn(&str) + Send + Sync>,
    exported: Exported,
) -> impl Subscriber + Send + Sync + use<> {
    let shape = match settings.format {
        LogFormat::Json => Shape::Json,
        LogFormat::Auto if !is_terminal => Shape::Json,
        LogFormat::Auto | LogFormat::Text => Shape::Text { coloured: is_terminal },
    };
    let lines = Lines { shape, repeats: Repeats::default(), write, exported };
    Registry::default().with(settings.filter.clone()).with(lines)
}

/// Writes every event as one line.
struct Lines {
    shape: Shape,
    repeats: Repeats,
    write: Box<dyn Fn(&str) + Send + Sync>,
    exported: Exported,
}

#[derive(Debug, Clone, Copy)]
enum Shape {
    Json,
    Text { coloured: bool },
}

impl<S: Subscriber> Layer<S> for Lines {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if may_speak(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: layer::Context<'_, S>) -> bool {
        may_speak(metadata)
    }

    fn on_event(&self, event: &Event<'_>, _: layer::Context<'_, S>) {
        let metadata = event.metadata();
        let mut fields = Fields::default();
        event.record(&mut fields);
        let ids = if metadata.target().starts_with("opentelemetry") {
            let Some(held_back) = self.repeats.admit(metadata.callsite(), Instant::now()) else {
                return;
            };
            if held_back > 0 {
                fields.rest.push(("held_back", held_back.into()));
            }
            // Not the context: the SDK may speak while it changes it, and then reading it panics.
            Ids::default()
        } else {
            Ids::current()
        };
        if fields.message.is_empty() {
            metadata.name().clone_into(&mut fields.message);
        }
        let mut line = match self.shape {
            Shape::Json => json(metadata, &fields, &ids),
            Shape::Text { coloured } => text(metadata, &fields, &ids, coloured),
        };
        line.push('\n');
        (self.write)(&line);
        if let Some(export) = &*self.exported.load() {
            export.emit(metadata, &fields, &ids);
        }
    }
}

/// The rule at the top of this file. Nothing here uses spans of `tracing`, so nobody gets them.
fn may_speak(metadata: &Metadata<'_>) -> bool {
    let is_ours = metadata.target().split("::").next() == Some(env!("CARGO_CRATE_NAME"));
    metadata.is_event() && (is_ours || *metadata.level() <= Level::INFO) && metadata.name() != IGNORED_VARIABLE
}

/// What the exporter calls its warning of a variable that it does not understand. Ours names them all in one line.
const IGNORED_VARIABLE: &str = "Exporter.Config.InvalidEnvironmentVariable";

/// How often the OpenTelemetry SDK may say the same thing. It says so for every batch that it cannot deliver.
const REPEAT_AFTER: Duration = Duration::from_mins(1);

/// When each place in the SDK last spoke, and how often it was held back since.
#[derive(Default)]
struct Repeats(Mutex<HashMap<Identifier, (Instant, u64)>>);

impl Repeats {
    /// How many lines were held back since the last one; none if this one is, too.
    fn admit(&self, place: Identifier, now: Instant) -> Option<u64> {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match places.get_mut(&place) {
            None => {
                places.insert(place, (now, 0));
                Some(0)
            }
            Some((last, held_back)) if now.duration_since(*last) < REPEAT_AFTER => {
                *held_back += 1;
                None
            }
            Some((last, held_back)) => {
                *last = now;
                Some(std::mem::take(held_back))
            }
        }
    }
}

/// The ids of the request that the line belongs to.
#[derive(Default)]
struct Ids {
    span: Option<SpanContext>,
    operation: Option<String>,
}

impl Ids {
    fn current() -> Self {
        Context::map_current(|context| {
            let span = context.span();
            Self {
                span: Some(span.span_context()).filter(|span| span.is_valid()).cloned(),
                operation: context.get::<OperationId>().map(ToString::to_string),
            }
        })
    }

    /// In order; those that the line names itself are left out, because it knows better.
    fn named(&self, fields: &Fields) -> impl Iterator<Item = (&'static str, String)> {
        [
            ("trace_id", self.span.as_ref().map(|span| span.trace_id().to_string())),
            ("span_id", self.span.as_ref().map(|span| span.span_id().to_string())),
            ("operation_id", self.operation.clone()),
        ]
        .into_iter()
        .filter_map(|(name, id)| Some((name, id?)))
        .filter(|(name, _)| fields.rest.iter().all(|(field, _)| field != name))
    }
}

/// What an event says.
#[derive(Default)]
struct Fields {
    message: String,
    rest: Vec<(&'static str, Value)>,
}

impl Fields {
    fn push(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(message)) => self.message = message,
            ("message", value) => self.message = value.to_string(),
            (name, value) => self.rest.push((name.strip_prefix("r#").unwrap_or(name), value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.push(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.push(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.push(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.push(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.push(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.push(field, value.into());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.push(field, with_causes(value).into());
    }
}

/// An error and its causes, in one line.
pub(crate) fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let _ = write!(text, ": {cause}");
        next = cause.source();
    }
    text
}

fn json(metadata: &Metadata<'_>, fields: &Fields, ids: &Ids) -> String {
    let mut line = Vec::with_capacity(512);
    let written: Result<(), serde_json::Error> = (|| {
        let mut serializer = serde_json::Serializer::new(&mut line);
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("timestamp", &now())?;
        map.serialize_entry("level", metadata.level().as_str())?;
        map.serialize_entry("target", metadata.target())?;
        map.serialize_entry("message", &fields.message)?;
        for (name, value) in &fields.rest {
            match *name {
                // Each key once.
                "timestamp" | "level" | "target" => map.serialize_entry(&format!("field.{name}"), value)?,
                name => map.serialize_entry(name, value)?,
            }
        }
        for (name, id) in ids.named(fields) {
            map.serialize_entry(name, &id)?;
        }
        map.end()
    })();
    debug_assert!(written.is_ok(), "strings and plain values always serialize");
    let line = String::from_utf8_lossy(&line);

    // JSON asks for less, but a terminal obeys DEL and the C1 controls, too. They can only stand inside strings.
    let mut escaped = String::with_capacity(line.len() + 1);
    for c in line.chars() {
        if c.is_control() {
            let _ = write!(escaped, "\\u{:04x}", u32::from(c));
        } else {
            escaped.push(c);
        }
    }
    escaped
}

fn text(metadata: &Metadata<'_>, fields: &Fields, ids: &Ids, coloured: bool) -> String {
    let plain = Style::new();
    let (level, dim) = match *metadata.level() {
        _ if !coloured => (plain, plain),
        Level::ERROR => (AnsiColor::Red.on_default().bold(), plain.dimmed()),
        Level::WARN => (AnsiColor::Yellow.on_default(), plain.dimmed()),
        Level::INFO => (AnsiColor::Green.on_default(), plain.dimmed()),
        Level::DEBUG | Level::TRACE => (AnsiColor::Blue.on_default(), plain.dimmed()),
    };
    let mut line = format!(
        "{dim}{}{dim:#} {level}{:>5}{level:#} {dim}{}:{dim:#} {}",
        now(),
        metadata.level(),
        metadata.target(),
        Visible(&fields.message),
    );
    for (name, value) in &fields.rest {
        let _ = match value {
            Value::String(value) if value.is_empty() || value.contains([' ', '"', '=']) => {
                write!(line, " {dim}{name}={dim:#}\"{}\"", Visible(&value.replace('"', "\\\"")))
            }
            Value::String(value) => write!(line, " {dim}{name}={dim:#}{}", Visible(value)),
            value => write!(line, " {dim}{name}={dim:#}{value}"),
        };
    }
    for (name, id) in ids.named(fields) {
        // The end of an operation's id is the part that differs from its neighbours'.
        let short = match name {
            "operation_id" => id.get(id.len().saturating_sub(SHORT_ID)..),
            _ => id.get(..SHORT_ID),
        };
        let _ = write!(line, " {dim}{}={}{dim:#}", name.trim_end_matches("_id"), short.unwrap_or(&id));
    }
    line
}

/// How much of an id is enough for people, in characters.
const SHORT_ID: usize = 8;

fn now() -> String {
    format!("{:.3}", Timestamp::now())
}

/// Text whose control characters are spelled out: nobody writes lines, or to the terminal, through a value.
struct Visible<'a>(&'a str);

impl fmt::Display for Visible<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            if c.is_control() { write!(f, "{}", c.escape_default())? } else { f.write_char(c)? }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that cannot go on fails
mod tests {
    use opentelemetry::trace::{SpanId, TraceFlags, TraceId, TraceState};

    use super::*;

    /// What is written while `body` runs.
    fn lines(filter: &str, format: LogFormat, is_terminal: bool, body: impl FnOnce()) -> Vec<String> {
        let written = Arc::new(Mutex::new(String::new()));
        let sink = Arc::clone(&written);
        let settings = config::Log { filter: filter.parse().unwrap(), format };
        let write = Box::new(move |line: &str| sink.lock().unwrap().push_str(line));
        tracing::subscriber::with_default(subscriber(&settings, is_terminal, write, Exported::default()), body);
        let written = written.lock().unwrap();
        written.split_terminator('\n').map(str::to_owned).collect()
    }

    fn json_lines(filter: &str, body: impl FnOnce()) -> Vec<Value> {
        let lines = lines(filter, LogFormat::Json, false, body);
        lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn request() -> (Context, OperationId) {
        let operation_id = OperationId::new();
        let span = SpanContext::new(
            TraceId::from(0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736),
            SpanId::from(0x00f0_67aa_0ba9_02b7),
            TraceFlags::SAMPLED,
            true,
            TraceState::default(),
        );
        (Context::new().with_remote_span_context(span).with_value(operation_id), operation_id)
    }

    #[test]
    fn json_line_holds_fields_and_the_ids_of_its_request() {
        let (context, operation_id) = request();
        let lines = json_lines("info", || {
            let _guard = context.attach();
            tracing::warn!(customers = 3, dry = false, name = "x", why = ?Some(1), "taken {}", "away");
        });
        let [line] = &lines[..] else { panic!("{lines:?}") };
        let timestamp = line["timestamp"].as_str().unwrap();
        assert!(timestamp.parse::<Timestamp>().is_ok());
        assert_eq!((timestamp.len(), timestamp.ends_with('Z')), ("2026-11-23T12:00:00.000Z".len(), true));
        let mut rest = line.clone();
        rest.as_object_mut().unwrap().remove("timestamp");
        assert_eq!(
            rest,
            serde_json::json!({
                "level": "WARN",
                "target": "license_gateway::telemetry::log::tests",
                "message": "taken away",
                "customers": 3,
                "dry": false,
                "name": "x",
                "why": "Some(1)",
                "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
                "span_id": "00f067aa0ba902b7",
                "operation_id": operation_id.to_string(),
            })
        );
    }

    #[test]
    fn line_outside_of_a_request_has_no_ids() {
        let lines = json_lines("info", || tracing::info!("hello"));
        for id in ["trace_id", "span_id", "operation_id"] {
            assert_eq!(lines[0].get(id), None);
        }
    }

    #[test]
    fn key_stands_once() {
        let (context, _) = request();
        let lines = lines("info", LogFormat::Json, false, || {
            let _guard = context.attach();
            tracing::info!(operation_id = "another", level = "low", timestamp = 1, "hello");
        });
        assert_eq!(lines[0].matches("\"operation_id\":").count(), 1);
        assert_eq!(lines[0].matches("\"level\":").count(), 1);
        assert_eq!(lines[0].matches("\"timestamp\":").count(), 1);
        let line: Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(line["operation_id"], "another");
        assert_eq!(line["field.level"], "low");
    }

    #[test]
    fn text_line_shortens_the_ids() {
        let (context, operation_id) = request();
        let lines = lines("info", LogFormat::Auto, true, || {
            let _guard = context.attach();
            tracing::error!(path = "/a b", n = 1, "failed");
        });
        let (_, line) = lines[0].split_once(' ').unwrap();
        let operation = &operation_id.to_string()[28..];
        assert_eq!(
            anstream::adapter::strip_str(line).to_string(),
            format!(
                "ERROR license_gateway::telemetry::log::tests: failed path=\"/a b\" n=1 trace=4bf92f35 span=00f067aa \
                 operation={operation}"
            )
        );
    }

    #[test]
    fn colours_only_on_a_terminal() {
        let on = lines("info", LogFormat::Text, true, || tracing::info!(a = 1, "hello"));
        let off = lines("info", LogFormat::Text, false, || tracing::info!(a = 1, "hello"));
        assert!(on[0].contains('\u{1b}'), "{on:?}");
        assert!(!off[0].contains('\u{1b}'), "{off:?}");
    }

    #[test]
    fn control_characters_are_spelled_out() {
        let evil = "a\nb\r\u{1b}[31m\u{7f}\u{9b}c";
        for format in [LogFormat::Json, LogFormat::Text] {
            let lines = lines("info", format, false, || tracing::info!(evil, dbg = ?evil, "{evil}"));
            assert_eq!(lines.len(), 1, "{lines:?}");
            assert!(!lines[0].contains(char::is_control), "{lines:?}");
        }
        let lines = json_lines("info", || tracing::info!(evil, "{evil}"));
        assert_eq!(lines[0]["evil"], evil);
        assert_eq!(lines[0]["message"], evil);
    }

    #[test]
    fn dependencies_do_not_speak_below_info_whatever_the_filter() {
        let lines = json_lines("trace,h2=trace,tonic=trace,reqwest=trace", || {
            tracing::trace!(target: "h2::codec::framed_read", secret = "s3cr3t", "received");
            tracing::debug!(target: "hyper::proto", secret = "s3cr3t", "read");
            tracing::debug!(target: "reqwest::connect", secret = "s3cr3t", "url");
            tracing::debug!(target: "tonic::codec::decode", secret = "s3cr3t", "status");
            tracing::debug!(target: "license_gateway_look_alike", secret = "s3cr3t", "no");
            tracing::info_span!(target: "h2", "connection", secret = "s3cr3t").in_scope(|| ());
            tracing::info!(target: "hyper", "information");
            tracing::trace!("ours");
        });
        let messages: Vec<_> = lines.iter().map(|line| line["message"].as_str().unwrap()).collect();
        assert_eq!(messages, ["information", "ours"]);
    }

    #[test]
    fn levels_are_by_module() {
        let speak = || {
            tracing::debug!(target: "license_gateway::central", "central");
            tracing::debug!(target: "license_gateway::token", "token");
            tracing::info!(target: "license_gateway::token", "information");
        };
        let messages = |filter| {
            let lines = json_lines(filter, speak);
            lines.iter().map(|line| line["message"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(messages("info"), ["information"]);
        assert_eq!(messages("info,license_gateway::central=debug"), ["central", "information"]);
        assert_eq!(messages("warn,license_gateway::central=debug"), ["central"]);
        assert_eq!(messages("DEBUG"), ["central", "token", "information"]);
        assert_eq!(messages("off"), [] as [&str; 0]);
    }

    #[test]
    fn error_is_logged_with_its_causes() {
        let cause = io::Error::other("connection refused");
        let error = crate::telemetry::ExporterError::Exporter(Box::new(cause));
        let lines = json_lines("info", || tracing::info!(error = &error as &dyn Error, "no"));
        assert_eq!(
            lines[0]["error"],
            "telemetry cannot be exported with the OTEL_EXPORTER_OTLP_* settings given: connection refused"
        );
    }

    #[test]
    fn sdk_repeats_itself_once_a_minute() {
        let lines = json_lines("info", || {
            for _ in 0..100 {
                tracing::error!(name: "ExportError", target: "opentelemetry_sdk", error = "no route");
            }
        });
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0]["message"], "ExportError");

        let (repeats, start) = (Repeats::default(), Instant::now());
        let place = tracing::callsite!(name: "place", kind: tracing::metadata::Kind::EVENT, fields: );
        let admit = |seconds| {
            repeats.admit(tracing::Callsite::metadata(place).callsite(), start + Duration::from_secs(seconds))
        };
        assert_eq!([0, 1, 59, 60, 61, 120, 180].map(admit), [Some(0), None, None, Some(2), None, Some(1), Some(0)]);
    }

    #[test]
    fn sdk_may_speak_while_it_changes_the_context() {
        // More contexts than the SDK's stack holds: it complains while the stack is borrowed.
        let lines = json_lines("info", || {
            let guards: Vec<_> = (0..=u32::from(u16::MAX)).map(|_| Context::new().attach()).collect();
            for guard in guards.into_iter().rev() {
                drop(guard);
            }
        });
        assert!(lines.iter().any(|line| line["message"].as_str().unwrap().contains("Too many contexts")), "{lines:?}");
    }
}
