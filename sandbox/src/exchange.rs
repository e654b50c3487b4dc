//! One call from its head to its end: received, recorded, let through or not, carried out or not, answered or not.

use std::sync::Arc;

use http::{Request, request::Parts};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::{
    calls::{Call, Ending, fingerprint},
    clock,
    connection::{Cut, Delivery},
    control,
    dialects::{Answer, Page, RateHeaders},
    faults::{Fault, Operation, Reply, Stage, TokenBody},
    grants, kong, limits, routes,
    settings::SuccessBody,
    state::ScopedServices,
    world::{Core, World},
};

/// The record shows so much of a body that is too large for the settings.
const KEPT_FOR_THE_RECORD: u64 = 64 * 1024;

/// A call as it was received.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) sequence: u64,
    pub(crate) operation: Operation,
    pub(crate) parts: Parts,
    /// The query, decoded.
    pub(crate) query: Vec<(String, String)>,
    /// At most as long as the settings allow, or what the record keeps of a longer one.
    pub(crate) body: Vec<u8>,
    /// Whether the body was longer.
    pub(crate) too_large: bool,
    /// Whether the caller waits for `100 Continue`.
    pub(crate) expects_continue: bool,
    /// What the body says, if it is a licensing call's that can be read.
    pub(crate) scope: Option<ScopedServices>,
}

impl Received {
    pub(crate) fn path(&self) -> &str {
        self.parts.uri.path()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.parts.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The first query parameter of this name.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn names(&self, customer_id: &str) -> bool {
        self.scope.as_ref().is_some_and(|scope| scope.includes(customer_id))
    }
}

/// Handles one call.
pub(crate) async fn answer(core: Arc<Core>, request: Request<Incoming>, connection: u64) -> Delivery {
    if request.uri().path().starts_with(control::PREFIX) {
        return Delivery::Whole(control::answer(&core, request).await);
    }
    let stopping = core.stopping.clone();
    tokio::select! {
        biased;
        () = stopping.cancelled() => Delivery::Silence,
        delivery = exchange(core, request, connection) => delivery,
    }
}

async fn exchange(core: Arc<Core>, request: Request<Incoming>, connection: u64) -> Delivery {
    let Some(call) = receive(&core, request, connection).await else {
        return Delivery::Silence; // nobody is there to read an answer
    };
    let delivery = handle(&core, &call).await;
    let (status, ending) = match &delivery {
        Delivery::Whole(page) => (Some(page.status), Ending::Answered),
        Delivery::Huge(_) => (Some(200), Ending::Answered),
        Delivery::Half(page, Cut::Reset) | Delivery::Unfinished(page, Cut::Reset) => {
            (Some(page.status), Ending::ResetMidway)
        }
        Delivery::Half(page, Cut::Close) | Delivery::Unfinished(page, Cut::Close) => {
            (Some(page.status), Ending::Truncated)
        }
        Delivery::Nothing(Cut::Reset) => (None, Ending::Reset),
        Delivery::Nothing(Cut::Close) => (None, Ending::Closed),
        Delivery::Silence => (None, Ending::Silent),
    };
    core.with(|world| {
        world.record.close(call.sequence, status, ending);
        world.show(call.sequence);
    });
    delivery
}

/// Reads the request and enters it in the record; none if the caller left before its end.
async fn receive(core: &Core, request: Request<Incoming>, connection: u64) -> Option<Received> {
    let (parts, body) = request.into_parts();
    let operation = routes::operation(&parts.method, parts.uri.path());
    let query: Vec<(String, String)> =
        url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes()).into_owned().collect();
    let (sequence, max, empty_list) = core.with(|world| {
        let at = world.now().to_string();
        let call = entry(&parts, &query, operation, at, connection);
        let sequence = world.record.open(call, world.settings.keep_calls);
        (sequence, world.settings.max_body_bytes, world.settings.empty_list)
    });

    let announced = parts.headers.get("content-length").and_then(|length| length.to_str().ok()?.parse().ok());
    let mut too_large = announced.is_some_and(|length: u64| length > max);
    let expects_continue =
        parts.headers.get("expect").is_some_and(|expect| expect.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    let (mut kept, mut length) = (Vec::new(), 0);
    // Whoever waits for our word is refused unread. Others are read to the end: a client that is still writing might
    // miss the answer otherwise.
    if !(too_large && expects_continue) {
        let mut body = body;
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else {
                core.with(|world| world.record.close(sequence, None, Ending::Incomplete));
                return None;
            };
            let data = frame.into_data().unwrap_or_default();
            length += data.len() as u64;
            too_large |= length > max;
            if !too_large || length <= KEPT_FOR_THE_RECORD {
                kept.extend_from_slice(&data);
            }
        }
    }
    let is_scoped = matches!(operation, Operation::Unassign | Operation::Assign | Operation::AutoLicense);
    core.with(|world| {
        world.record.note(sequence, |call| {
            call.body_bytes = length;
            if is_scoped && !kept.is_empty() {
                call.body = Some(
                    serde_json::from_slice(&kept)
                        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&kept).into_owned())),
                );
            }
        });
        world.show(sequence);
    });
    let scope = if is_scoped { ScopedServices::parse(&kept, empty_list).ok() } else { None };
    Some(Received { sequence, operation, parts, query, body: kept, too_large, expects_continue, scope })
}

fn entry(parts: &Parts, query: &[(String, String)], operation: Operation, at: String, connection: u64) -> Call {
    const SECRET_HEADERS: [&str; 4] = ["authorization", "proxy-authorization", "cookie", "x-csrf-token"];
    const SECRET_PARAMETERS: [&str; 5] = ["client_secret", "refresh_token", "access_token", "code", "password"];
    Call {
        sequence: 0,
        at,
        connection,
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: query
            .iter()
            .map(|(name, value)| {
                let hidden = SECRET_PARAMETERS.contains(&name.as_str());
                (name.clone(), if hidden { fingerprint(value) } else { value.clone() })
            })
            .collect(),
        headers: parts
            .headers
            .iter()
            .map(|(name, value)| {
                let value = String::from_utf8_lossy(value.as_bytes());
                let hidden = SECRET_HEADERS.contains(&name.as_str());
                (name.to_string(), if hidden { fingerprint(&value) } else { value.into_owned() })
            })
            .collect(),
        operation,
        body: None,
        body_bytes: 0,
        grant: None,
        token_generation: None,
        processed: false,
        applied: Vec::new(),
        delivery: None,
        status: None,
        ending: Ending::Open,
    }
}

/// What the first look at a call leads to.
enum Step {
    Refused(Page),
    Faulty(Fault, Admitted),
    Normal(Admitted),
}

/// A call that was let through, or was not asked for its token because a fault comes first.
struct Admitted {
    checked: bool,
    rate_headers: Vec<(String, String)>,
}

async fn handle(core: &Core, call: &Received) -> Delivery {
    let step = core.with(|world| first_look(world, call));
    // Looked up now for `refresh_race = both_win`: whatever happens while the call waits, the token was good.
    let seen = core.with(|world| grants::refresh_seen(world, call));
    match step {
        Step::Refused(page) => Delivery::Whole(core.with(|world| finished(world, page, true))),
        Step::Normal(admitted) => Delivery::Whole(core.with(|world| carry_out(world, call, &admitted, seen))),
        Step::Faulty(fault, admitted) => {
            if let Some(wait) = &fault.before {
                core.wait(wait).await;
            }
            let normal = core.with(|world| fault.applied.then(|| carry_out(world, call, &admitted, seen)));
            if let Some(wait) = &fault.after {
                core.wait(wait).await;
            }
            core.with(|world| deliver(world, call, &fault, normal, &admitted))
        }
    }
}

fn first_look(world: &mut World, call: &Received) -> Step {
    if let Some(fault) = world.faults.take(Stage::Proxy, call.operation, |customer| call.names(customer)) {
        return Step::Faulty(fault, Admitted { checked: false, rate_headers: Vec::new() });
    }
    if call.operation == Operation::NoRoute {
        return Step::Refused(Page::kong(404, kong::NO_ROUTE));
    }
    match kong::admit(world, call) {
        Err(page) => return Step::Refused(page),
        Ok(generation) => world.record.note(call.sequence, |call| call.token_generation = generation),
    }
    // A refusal in Kong's place comes before counting; any other fault is hit only by what the quota lets through.
    if let Some(fault) = world.faults.take_refusal(call.operation, |customer| call.names(customer)) {
        let rate_headers = world.limits.headers(world.settings.per_second, world.settings.per_day);
        return Step::Faulty(fault, Admitted { checked: true, rate_headers });
    }
    let rate_headers = match kong::count(world, call) {
        Ok(headers) => headers,
        Err(page) => return Step::Refused(page),
    };
    note_delivery(world, call);
    let admitted = Admitted { checked: true, rate_headers };
    match world.faults.take(Stage::Service, call.operation, |customer| call.names(customer)) {
        Some(fault) => Step::Faulty(fault, admitted),
        None => Step::Normal(admitted),
    }
}

fn note_delivery(world: &mut World, call: &Received) {
    if let (Operation::Unassign, Some(scope)) = (call.operation, &call.scope) {
        world.record.deliver(call.sequence, scope.canonical());
    }
}

/// Does what the call asks for and says what is answered.
fn carry_out(world: &mut World, call: &Received, admitted: &Admitted, seen: Option<u64>) -> Page {
    let mut rate_headers = admitted.rate_headers.clone();
    if !admitted.checked {
        if call.operation == Operation::NoRoute {
            return finished(world, Page::kong(404, kong::NO_ROUTE), true);
        }
        let admission = kong::admit(world, call).and_then(|generation| {
            world.record.note(call.sequence, |call| call.token_generation = generation);
            kong::count(world, call)
        });
        match admission {
            Ok(headers) => rate_headers = headers,
            Err(page) => return finished(world, page, true),
        }
        note_delivery(world, call);
    }
    let mut page =
        if call.operation.is_oauth() { grants::carry_out(world, call, seen) } else { routes::carry_out(world, call) };
    page.headers.extend(rate_headers);
    finished(world, page, true)
}

/// The headers that every answer carries.
fn finished(world: &mut World, mut page: Page, via_kong: bool) -> Page {
    let now = world.now();
    let has = |page: &Page, name: &str| page.headers.iter().any(|(header, _)| header.eq_ignore_ascii_case(name));
    if !has(&page, "date") {
        page.headers.push(("Date".into(), clock::http_date(now)));
    }
    let has_quota = has(&page, "X-RateLimit-Limit-day") || has(&page, "X-RateLimit-Limit-second");
    if via_kong && has_quota {
        page.headers.push(("X-Request-Start".into(), format!("t={}", now.as_millisecond())));
    }
    if via_kong && !has(&page, "via") {
        page.headers.push(("Via".into(), "kong/0.14.1".into()));
    }
    page
}

/// What the caller gets to see of a call that a fault has hit. `normal` is there if it was carried out.
fn deliver(world: &mut World, call: &Received, fault: &Fault, normal: Option<Page>, admitted: &Admitted) -> Delivery {
    let via_kong = fault.stage == Stage::Service;
    let success = |body: SuccessBody| {
        let (content_type, text) = body.render();
        let mut page = Page::new(200, content_type, text);
        page.headers.extend(admitted.rate_headers.iter().cloned());
        page
    };
    // What a cut answer is cut from: it needs a body, or there is nothing to cut.
    let cut_from = |world: &mut World, normal: Option<Page>| match normal {
        Some(page) if page.body.len() > 1 => page,
        _ => finished(world, success(SuccessBody::Object), via_kong),
    };
    // No answer says that something was done which Central has refused to do.
    let is_success = match &fault.reply {
        Reply::Answer(answer) => answer.status < 300,
        Reply::Success(_) => true,
        _ => false,
    };
    if let Some(refusal) = normal.as_ref().filter(|page| is_success && page.status >= 400) {
        return Delivery::Whole(refusal.clone());
    }
    match &fault.reply {
        Reply::Normal | Reply::CloseOnAccept => {
            Delivery::Whole(normal.unwrap_or_else(|| success(world.settings.success_body)))
        }
        Reply::Answer(answer) => {
            let mut page = answer.render(call.header("accept").unwrap_or_default());
            page.headers.extend(rate_headers(world, call, answer, &admitted.rate_headers));
            Delivery::Whole(finished(world, page, via_kong))
        }
        Reply::Success(body) => Delivery::Whole(finished(world, success(*body), via_kong)),
        Reply::Token(body) => Delivery::Whole(token_page(world, body, normal)),
        Reply::Reset => Delivery::Nothing(Cut::Reset),
        Reply::Close => Delivery::Nothing(Cut::Close),
        Reply::ResetMidway => Delivery::Half(cut_from(world, normal), Cut::Reset),
        Reply::Truncated => Delivery::Half(cut_from(world, normal), Cut::Close),
        Reply::ResetBehind => Delivery::Unfinished(cut_from(world, normal), Cut::Reset),
        Reply::Silence => Delivery::Silence,
        Reply::Huge(bytes) => Delivery::Huge(*bytes),
        Reply::EchoSecrets(status) => {
            let body = json!({
                "message": "request rejected",
                "authorization": call.header("authorization"),
                "query": call.parts.uri.query(),
                "body": String::from_utf8_lossy(&call.body),
            });
            Delivery::Whole(finished(world, Page::json(*status, &body), via_kong))
        }
        Reply::Panic => panic!("asked for by a fault"),
    }
}

fn rate_headers(world: &World, call: &Received, answer: &Answer, live: &[(String, String)]) -> Vec<(String, String)> {
    let (second, day) = (world.settings.per_second.unwrap_or(7), world.settings.per_day.unwrap_or(5_000));
    let both = |day_left, second_left| {
        [limits::pair("day", day, day_left), limits::pair("second", second, second_left)].concat()
    };
    match answer.rate_headers {
        RateHeaders::None => Vec::new(),
        RateHeaders::DaySpent => both(0, second - second.min(1)),
        RateHeaders::SecondSpent => both(day - day.min(1), 0),
        RateHeaders::Live if answer.status == 429 && !call.operation.is_oauth() => both(day - day.min(1), 0),
        // Kong refuses tokens and sizes before it knows the quota.
        RateHeaders::Live if matches!(answer.status, 401 | 413 | 417) => Vec::new(),
        RateHeaders::Live => live.to_vec(),
    }
}

fn token_page(world: &mut World, wrong: &TokenBody, normal: Option<Page>) -> Page {
    let normal = normal.unwrap_or_else(|| {
        let (access, refresh) = (world.tokens.secret(), world.tokens.secret());
        let life_s = world.settings.access_token_life_s;
        finished(world, grants::pair_page(&access, &refresh, life_s), true)
    });
    let mut fields = serde_json::from_slice::<Value>(&normal.body).unwrap_or_default();
    let body = match wrong {
        TokenBody::Malformed => {
            let mut text = fields.to_string();
            text.pop();
            text.truncate(text.trim_end_matches('"').len());
            text
        }
        TokenBody::Html => "<html><body>Please wait</body></html>".to_owned(),
        TokenBody::Empty => String::new(),
        TokenBody::Without(name) => {
            if let Some(fields) = fields.as_object_mut() {
                fields.remove(name);
            }
            fields.to_string()
        }
        TokenBody::ExpiresIn(value) => {
            fields["expires_in"] = value.clone();
            fields.to_string()
        }
    };
    let mut page = Page { body: body.into_bytes(), ..normal };
    if *wrong == TokenBody::Html {
        page.headers.retain(|(name, _)| name != "Content-Type");
        page.headers.push(("Content-Type".into(), "text/html".into()));
    }
    page
}
