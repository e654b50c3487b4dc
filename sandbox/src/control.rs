//! The control surface under `/__sandbox/`: what [`Sandbox`](super::Sandbox)'s methods do, over HTTP. No token, no
//! quota, JSON in and out. It shows secrets on purpose: nothing here is worth one.

use std::time::Duration;

use http::{Method, Request};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Bytes, Incoming};
use jiff::Timestamp;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{
    dialects::Page,
    faults::{Fault, Reply},
    settings::Settings,
    state::{Applied, Customer},
    world::{Core, World},
};

/// Where the control surface is.
pub(crate) const PREFIX: &str = "/__sandbox";
/// More than any settings with 100,000 customers.
const MAX_BODY_BYTES: usize = 64 * 1024 * 1024;

/// Answers one request to the control surface.
pub(crate) async fn answer(core: &Core, request: Request<Incoming>) -> Page {
    let (parts, body) = request.into_parts();
    let body = match Limited::new(body, MAX_BODY_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return problem(400, "", &format!("the body could not be read: {error}"), "at most 64 MiB"),
    };
    let path = parts.uri.path().strip_prefix(PREFIX).unwrap_or_default().trim_matches('/');
    let query = parts.uri.query().unwrap_or_default();
    core.with(|world| route(world, &parts.method, path, query, &body)).unwrap_or_else(|refusal| refusal)
}

fn route(world: &mut World, method: &Method, path: &str, query: &str, body: &Bytes) -> Result<Page, Page> {
    world.now(); // background work that is due is done first
    let segments: Vec<&str> = path.split('/').collect();
    match (method.as_str(), segments.as_slice()) {
        ("GET", ["" | "help"]) => Ok(ok(&help())),
        ("GET", ["state"]) => Ok(ok(&state(world))),
        ("GET", ["settings"]) => Ok(ok(&world.settings)),
        ("PUT", ["settings"]) => change_settings(world, read(body)?),
        ("PATCH", ["settings"]) => merge_settings(world, read(body)?),
        ("GET", ["faults"]) => Ok(ok(&world.faults.list())),
        ("POST", ["faults"]) => add_faults(world, body),
        ("DELETE", ["faults"]) => {
            world.faults.clear();
            Ok(done())
        }
        ("GET", ["calls"]) => calls(world, query),
        ("DELETE", ["calls"]) => {
            world.record.clear();
            Ok(done())
        }
        ("GET", ["counters"]) => Ok(ok(world.record.counters())),
        ("GET", ["devices"]) => Ok(ok(&world.account.owners)),
        ("PUT", ["devices"]) => put_devices(world, read(body)?),
        ("GET", ["applied"]) => Ok(ok(&applied(world))),
        ("GET", ["credentials"]) => Ok(ok(&credentials(world))),
        ("POST", ["tokens", "revoke"]) => {
            let Revocation { what } = read(body)?;
            revoke(world, what);
            Ok(done())
        }
        ("GET", ["clock"]) => Ok(ok(&clock(world))),
        ("PUT" | "POST", ["clock"]) => set_clock(world, read(body)?),
        ("POST", ["gates", gate, "release"]) => {
            let released = world.release(gate);
            Ok(ok(&json!({ "released": released })))
        }
        ("PUT" | "POST", ["quota"]) => {
            let Quota { day_used } = read(body)?;
            let now = world.now();
            world.limits.set_day_used(now, day_used);
            Ok(done())
        }
        ("POST", ["reset"]) => {
            world.reset();
            Ok(done())
        }
        _ => Err(problem(
            404,
            "path",
            &format!("nothing here for {method} {PREFIX}/{path}"),
            "GET /__sandbox/ lists it all",
        )),
    }
}

/// Changes the settings that are named, and leaves the others.
fn merge_settings(world: &mut World, changes: Value) -> Result<Page, Page> {
    let mut merged = serde_json::to_value(&world.settings).unwrap_or_default();
    merge(&mut merged, changes);
    change_settings(world, read(merged.to_string().as_bytes())?)
}

/// The first owner is the MSP itself.
fn put_devices(world: &mut World, owners: Vec<Customer>) -> Result<Page, Page> {
    if owners.first().is_none_or(|owner| owner.id != world.settings.msp_id) {
        let allowed = format!("the MSP, id {}, then its customers", world.settings.msp_id);
        return Err(problem(400, "[0].id", "is not the MSP's", &allowed));
    }
    world.account.owners = owners;
    Ok(done())
}

/// Checks what is to hold from now on.
pub(crate) fn change_settings(world: &mut World, mut settings: Settings) -> Result<Page, Page> {
    if settings.listen != world.settings.listen {
        return Err(problem(400, "listen", "is read only at the start", "leave it out, or as it is"));
    }
    if settings.tls.is_some() {
        return Err(problem(400, "tls", "is read only at the start", "leave it out"));
    }
    settings.tls = world.settings.tls.take();
    world.settings = settings;
    Ok(ok(&world.settings))
}

/// Puts faults at the end of the queue, all or none.
fn add_faults(world: &mut World, body: &[u8]) -> Result<Page, Page> {
    let is_list = body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
    let faults: Vec<Fault> = if is_list { read(body)? } else { vec![read(body)?] };
    for (position, fault) in faults.iter().enumerate() {
        if let Err((field, allowed)) = fault.check() {
            let field = if is_list { format!("[{position}].{field}") } else { field.to_owned() };
            return Err(problem(400, &field, "does not make sense here", &allowed));
        }
        check_headers(fault)?;
    }
    for fault in faults {
        world.faults.push(fault);
    }
    Ok(ok(&world.faults.list()))
}

fn check_headers(fault: &Fault) -> Result<(), Page> {
    let Reply::Answer(answer) = &fault.reply else { return Ok(()) };
    for (name, value) in &answer.headers {
        if http::HeaderName::try_from(name).is_err() || http::HeaderValue::try_from(value).is_err() {
            let text = format!("{name:?}: {value:?} is not a header");
            return Err(problem(400, "reply.answer.headers", &text, "pairs of a token and visible text"));
        }
    }
    Ok(())
}

fn calls(world: &World, query: &str) -> Result<Page, Page> {
    let mut wanted = Wanted { operation: None, after: 0 };
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        match name.as_ref() {
            "operation" => wanted.operation = Some(read(json!(value).to_string().as_bytes())?),
            "after" => {
                let refusal =
                    |_| problem(400, "after", &format!("{value:?} is not a sequence number"), "a whole number");
                wanted.after = value.parse().map_err(refusal)?;
            }
            _ => return Err(problem(400, &name, "unknown parameter", "operation, after")),
        }
    }
    let calls: Vec<_> = world
        .record
        .calls()
        .iter()
        .filter(|call| call.sequence > wanted.after && wanted.operation.is_none_or(|wanted| wanted == call.operation))
        .collect();
    Ok(ok(&calls))
}

struct Wanted {
    operation: Option<super::Operation>,
    after: u64,
}

/// Who holds what can be given to a client of the gateway.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, Deserialize)]
pub struct Credentials {
    /// The application's client id.
    pub client_id: String,
    /// The application's client secret.
    pub client_secret: String,
    /// The newest living refresh token; none if the chain is lost.
    pub refresh_token: Option<String>,
    /// The access token of the same pair, alive or not.
    pub access_token: Option<String>,
    /// The user of the login flow.
    pub username: String,
    /// That user's password.
    pub password: String,
    /// The MSP's own customer id.
    pub msp_id: String,
}

pub(crate) fn credentials(world: &mut World) -> Credentials {
    let now = world.now();
    let newest = world.tokens.newest(now);
    Credentials {
        client_id: world.settings.client_id.clone(),
        client_secret: world.settings.client_secret.clone(),
        refresh_token: newest.map(|row| row.refresh.clone()),
        access_token: newest.map(|row| row.access.clone()),
        username: world.settings.username.clone(),
        password: world.settings.password.clone(),
        msp_id: world.settings.msp_id.clone(),
    }
}

/// Which tokens die.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Revoked {
    /// The access tokens.
    Access,
    /// Everything.
    Chain,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Revocation {
    what: Revoked,
}

pub(crate) fn revoke(world: &mut World, what: Revoked) {
    let now = world.now();
    match what {
        Revoked::Access => world.tokens.kill_access(now),
        Revoked::Chain => world.tokens.kill_all(),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Quota {
    day_used: u32,
}

/// The calls' losses, one after the other.
pub(crate) fn applied(world: &World) -> Vec<Applied> {
    world.record.calls().iter().flat_map(|call| call.applied.iter().cloned()).collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
enum ClockChange {
    /// Forward, running or frozen.
    AdvanceMs(u64),
    /// Runs, this far ahead of the machine's.
    OffsetMs(u64),
    /// Stands at this moment.
    FreezeAt(String),
}

fn set_clock(world: &mut World, change: ClockChange) -> Result<Page, Page> {
    match change {
        ClockChange::AdvanceMs(by) => world.clock.advance(Duration::from_millis(by)),
        ClockChange::OffsetMs(by) => world.clock.run(Duration::from_millis(by)),
        ClockChange::FreezeAt(text) if text == "now" => {
            let now = world.clock.now();
            world.clock.freeze(now);
        }
        ClockChange::FreezeAt(text) => match text.parse::<Timestamp>() {
            Ok(at) => world.clock.freeze(at),
            Err(error) => {
                return Err(problem(400, "freeze_at", &error.to_string(), "\"now\", or such as 2026-01-31T23:59:59Z"));
            }
        },
    }
    Ok(ok(&clock(world)))
}

fn clock(world: &mut World) -> Value {
    json!({ "now": world.now().to_string(), "frozen": world.clock.is_frozen() })
}

fn state(world: &mut World) -> Value {
    let now = world.now();
    let waiting: serde_json::Map<String, Value> =
        world.gates.iter().map(|(name, gate)| (name.clone(), gate.waiting.into())).collect();
    json!({
        "clock": clock(world),
        "settled": world.account.is_settled(),
        "live_refresh_tokens": world.tokens.live_chains(now),
        "token_generation": world.tokens.newest(now).map(|row| row.generation),
        "customers": world.account.customers().len(),
        "quota": world.limits.headers(world.settings.per_second, world.settings.per_day)
            .into_iter().map(|(name, value)| (name, Value::from(value))).collect::<serde_json::Map<_, _>>(),
        "waiting_at_gates": waiting,
        "faults": world.faults.list().len(),
        "counters": world.record.counters(),
    })
}

fn help() -> Value {
    json!({
        "what": "a stand-in for HPE Aruba Networking (Classic) Central; everything below is the stand-in's own",
        "GET /__sandbox/state": "clock, quota, gates, counters at a glance",
        "GET /__sandbox/credentials": "client id and secret, the refresh token that is good now",
        "GET /__sandbox/settings": "every setting; PATCH changes some: {\"per_second\":null,\"unknown_customer\":\"ignored\"}; PUT replaces all",
        "POST /__sandbox/faults": {
            "what": "one fault or a list of them, taken in order; GET shows what is left, DELETE clears",
            "example": {"operation": "unassign", "times": 2, "reply": {"answer": {"status": 503}}},
            "applied but the answer is lost": {"operation": "unassign", "applied": true, "reply": "reset"},
            "slow": {"operation": "unassign", "before": {"delay_ms": 5000}},
            "wait for a release": {"operation": "token", "before": {"gate": "a"}},
        },
        "POST /__sandbox/gates/{name}/release": "lets the calls go on that wait at this gate",
        "GET /__sandbox/calls": "the record, oldest first: ?operation=unassign&after=17; DELETE resets it and the counters",
        "GET /__sandbox/counters": "by operation, by status, duplicates, most in flight, panics",
        "GET /__sandbox/devices": "the MSP, then its customers, their devices and licences; PUT replaces all of it",
        "GET /__sandbox/applied": "every licence that was taken away, in order",
        "POST /__sandbox/tokens/revoke": "{\"what\":\"access\"}: access tokens die; {\"what\":\"chain\"}: everything does",
        "PUT /__sandbox/clock": "{\"advance_ms\":7200000}, {\"freeze_at\":\"now\"}, {\"freeze_at\":\"2026-01-31T23:59:59Z\"}, {\"offset_ms\":0}",
        "PUT /__sandbox/quota": "{\"day_used\":4990}",
        "POST /__sandbox/reset": "account, tokens, quota, faults, record as at the start; the settings stay",
    })
}

fn merge(target: &mut Value, patch: Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => target.extend(patch),
        (target, patch) => *target = patch,
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Page> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let message = error.inner().to_string();
        let (wrong, allowed) = message.split_once(", expected ").unwrap_or((&message, "see GET /__sandbox/"));
        problem(400, error.path().to_string().trim_matches('.'), wrong, allowed)
    })?;
    match json.end() {
        Ok(()) => Ok(value),
        Err(error) => Err(problem(400, "", &error.to_string(), "one JSON value")),
    }
}

fn ok(value: &impl serde::Serialize) -> Page {
    let text = serde_json::to_string_pretty(value).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"));
    Page::new(200, Some("application/json"), text + "\n")
}

fn done() -> Page {
    ok(&json!({ "status": "done" }))
}

fn problem(status: u16, field: &str, wrong: &str, allowed: &str) -> Page {
    Page::json(status, &json!({ "error": { "field": field, "problem": wrong, "allowed": allowed } }))
}
