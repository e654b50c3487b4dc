//! The stand-in for Central keeps its word: whoever tests against it relies on what is shown here.
#![allow(clippy::unwrap_used)] // a test that unwraps is a test that fails with a place

use std::time::Duration;

use central_sandbox::{
    Answer, Dialect, Ending, Fault, GrantPlacement, Operation, Placement, RateHeaders, RefreshRace, Reply, Role,
    Sandbox, Settings, SuccessBody, TlsPem, TokenBody, UnknownCustomer, Unscoped,
};
use jiff::Timestamp;
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const UNASSIGN: &str = "/platform/licensing/v1/msp/subscriptions/devices/all";
const ALPINE: &str = "267958b55d5a463e94a302c20f4a6b68";
const BOREALIS: &str = "8c1d4e7fa2b349d0b6c5e8f90a1b2c3d";

/// A client with a token for a sandbox. No connection is kept between calls, so that a reset hits its own call only.
struct Caller {
    sandbox: Sandbox,
    http: Client,
    access: String,
}

impl Caller {
    async fn start(settings: Settings) -> Self {
        let sandbox = Sandbox::start(settings).await.expect("a free port on the loopback");
        let http = Client::builder()
            .pool_max_idle_per_host(0)
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(30))
            .build()
            .expect("a plain client");
        let access = sandbox.credentials().access_token.expect("a fresh sandbox has a pair");
        Self { sandbox, http, access }
    }

    fn call(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, self.sandbox.base_url() + path).bearer_auth(&self.access)
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        json_of(self.call(Method::GET, path).send().await.expect("an answer")).await
    }

    fn unassign(&self, body: &Value) -> RequestBuilder {
        self.call(Method::DELETE, UNASSIGN)
            .header("content-type", "application/json")
            .header("accept", "application/json")
            .body(body.to_string())
    }

    async fn unassign_alpine(&self) -> reqwest::Result<Response> {
        self.unassign(&alpine()).send().await
    }

    async fn refresh(&self, refresh: &str) -> reqwest::Result<Response> {
        let credentials = self.sandbox.credentials();
        let form = [
            ("grant_type", "refresh_token"),
            ("client_id", &credentials.client_id),
            ("client_secret", &credentials.client_secret),
            ("refresh_token", refresh),
        ];
        self.http.post(self.sandbox.base_url() + "/oauth2/token").form(&form).send().await
    }

    async fn control(&self, method: Method, path: &str, body: &Value) -> (StatusCode, Value) {
        let request = self.http.request(method, format!("{}/__sandbox/{path}", self.sandbox.base_url()));
        json_of(request.body(body.to_string()).send().await.expect("an answer")).await
    }

    /// How many licences Alpine holds: three at the start, two of them `advanced_ap`.
    fn alpine_licences(&self) -> usize {
        self.sandbox.licences_of(ALPINE).len()
    }
}

fn alpine() -> Value {
    json!({ "services": ["advanced_ap"], "include_customers": [ALPINE] })
}

fn noon() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().expect("a moment")
}

async fn json_of(response: Response) -> (StatusCode, Value) {
    let status = response.status();
    let text = response.text().await.expect("a body");
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|value| value.to_str().expect("text"))
}

#[tokio::test]
async fn an_unassignment_takes_the_licences_and_is_recorded() {
    let caller = Caller::start(Settings::default()).await;
    let (status, body) = json_of(caller.unassign_alpine().await.expect("an answer")).await;
    assert_eq!((status, body), (StatusCode::OK, json!({ "status": "success" })));
    assert_eq!(caller.alpine_licences(), 1);

    let call = caller.sandbox.unassign_calls().remove(0);
    assert_eq!(call.body, Some(alpine()));
    assert_eq!((call.status, call.ending, call.processed), (Some(200), Ending::Answered, true));
    assert_eq!((call.token_generation, call.delivery), (Some(1), Some(1)));
    let serials: Vec<_> = call.applied.iter().map(|applied| applied.serial.as_str()).collect();
    assert_eq!(serials, ["CNK9L0B101", "CNK9L0B102"]);
    assert_eq!(caller.sandbox.applied_customers(), [ALPINE]);
    let authorization = call.headers.iter().find(|(name, _)| name == "authorization").expect("it was sent");
    let fingerprint = authorization.1.strip_prefix("sha256:").expect("a fingerprint, not the token");
    assert_eq!(fingerprint.len(), 8, "{fingerprint}");
    caller.sandbox.stop().await;
}

#[tokio::test]
async fn kong_checks_token_then_size_then_role_then_quota_then_the_service() {
    let settings = Settings { max_body_bytes: 4, role: Role::NotMsp, per_second: Some(0), ..Settings::default() };
    let mut caller = Caller::start(settings).await;
    let good = std::mem::replace(&mut caller.access, "dead".into());
    let bad_body = json!({ "services": [] });

    let dead = caller.unassign(&bad_body).send().await.expect("an answer");
    assert_eq!(
        header(&dead, "www-authenticate"),
        Some(
            r#"Bearer realm="service" error="invalid_token" error_description="The access token is invalid or has expired""#
        )
    );
    assert_eq!(header(&dead, "x-ratelimit-limit-day"), None);
    let (status, body) = json_of(dead).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert_eq!(body["error"], "invalid_token");

    let none = caller.http.delete(caller.sandbox.base_url() + UNASSIGN).send().await.expect("an answer");
    let (status, body) = json_of(none).await;
    let missing = json!({ "error": "invalid_request", "error_description": "The access token is missing" });
    assert_eq!((status, body), (StatusCode::UNAUTHORIZED, missing));

    caller.access = good;
    let mut outcomes = Vec::new();
    let steps: [fn(&mut Settings); 4] =
        [|_| {}, |s| s.max_body_bytes = 1_000, |s| s.role = Role::Msp, |s| s.per_second = None];
    for step in steps {
        caller.sandbox.configure(step);
        let response = caller.unassign(&bad_body).send().await.expect("an answer");
        assert_eq!(header(&response, "via"), Some("kong/0.14.1"));
        let (status, body) = json_of(response).await;
        outcomes.push((status.as_u16(), body));
    }
    assert_eq!(
        outcomes,
        [
            (413, json!({ "message": "Request size limit exceeded" })),
            (403, json!({ "message": "You cannot consume this service" })),
            (429, json!({ "message": "API rate limit exceeded" })),
            (400, json!({ "detail": "services must not be empty" })),
        ]
    );
    let (status, body) = caller.get("/nowhere").await;
    let no_route = json!({ "message": "no route and no API found with those values" });
    assert_eq!((status, body), (StatusCode::NOT_FOUND, no_route));
}

#[tokio::test]
async fn a_body_announced_too_large_is_refused_unread_with_417_if_the_caller_waits_for_continue() {
    let caller = Caller::start(Settings { max_body_bytes: 10, ..Settings::default() }).await;
    let head = format!(
        "DELETE {UNASSIGN} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nExpect: 100-continue\r\nContent-Length: 11\r\n\r\n",
        caller.access
    );
    let answer = raw(&caller.sandbox, &head).await;
    assert!(answer.starts_with("HTTP/1.1 417 "), "{answer}");
    let head = head.replace("Expect: 100-continue\r\n", "") + "12345678901";
    let answer = raw(&caller.sandbox, &head.replace("Host: x", "Host: x\r\nConnection: close")).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}

/// Sends bytes, shows all that comes back until the connection ends.
async fn raw(sandbox: &Sandbox, request: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(sandbox.address()).await.expect("it listens");
    stream.write_all(request.as_bytes()).await.expect("it reads");
    let mut answer = Vec::new();
    let reading = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut answer));
    reading.await.expect("an answer and an end").expect("it closes properly");
    String::from_utf8(answer).expect("text")
}

#[tokio::test]
async fn headers_are_spelled_as_kong_spells_them() {
    let caller = Caller::start(Settings::default()).await;
    caller.sandbox.freeze_clock(noon());
    caller.sandbox.script(
        Operation::Customers,
        [Fault::none(), Fault::new(Reply::Answer(Answer::new(200).header("x-rAtElImIt-ReMaInInG-dAy", "3")))],
    );
    let head = format!(
        "GET /msp_api/v1/customers HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nConnection: close\r\n\r\n",
        caller.access
    );
    let usual = raw(&caller.sandbox, &head).await;
    for line in [
        "X-RateLimit-Limit-day: 5000\r\n",
        "X-RateLimit-Remaining-day: 4999\r\n",
        "X-RateLimit-Limit-second: 7\r\n",
        "X-RateLimit-Remaining-second: 6\r\n",
        "Date: Sun, 01 Mar 2026 12:00:00 GMT\r\n",
        "X-Request-Start: t=1772366400000\r\n",
        "Via: kong/0.14.1\r\n",
    ] {
        assert!(usual.contains(line), "{line:?} is not in {usual}");
    }
    let odd = raw(&caller.sandbox, &head).await;
    assert!(odd.contains("x-rAtElImIt-ReMaInInG-dAy: 3\r\n"), "{odd}");
}

#[tokio::test]
async fn both_windows_of_calls_end_on_their_boundaries() {
    let caller = Caller::start(Settings { per_second: Some(2), per_day: Some(3), ..Settings::default() }).await;
    caller.sandbox.freeze_clock("2026-03-01T23:59:58Z".parse().expect("a moment"));
    let remaining = async || {
        let response = caller.call(Method::GET, "/msp_api/v1/customers").send().await.expect("an answer");
        let number = |name| header(&response, name).expect("always there").parse::<u32>().expect("a number");
        let left = (number("x-ratelimit-remaining-day"), number("x-ratelimit-remaining-second"));
        assert_eq!(header(&response, "retry-after"), None);
        (response.status().as_u16(), left)
    };
    assert_eq!(remaining().await, (200, (2, 1)));
    assert_eq!(remaining().await, (200, (1, 0)));
    assert_eq!(remaining().await, (429, (1, 0)), "the second is spent");
    caller.sandbox.advance_clock(Duration::from_secs(1));
    assert_eq!(remaining().await, (200, (0, 1)));
    assert_eq!(remaining().await, (429, (0, 1)), "the day is spent");
    caller.sandbox.advance_clock(Duration::from_secs(1));
    assert_eq!(remaining().await, (200, (2, 1)), "midnight");
}

#[tokio::test]
async fn a_refresh_token_works_once_and_kills_the_old_access_token() {
    let mut caller = Caller::start(Settings::default()).await;
    let first = caller.sandbox.credentials().refresh_token.expect("a chain");
    let response = caller.refresh(&first).await.expect("an answer");
    assert_eq!(header(&response, "cache-control"), Some("no-store"));
    let (status, pair) = json_of(response).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!((&pair["expires_in"], &pair["token_type"]), (&json!(7200), &json!("bearer")));
    assert_eq!(caller.unassign_alpine().await.expect("an answer").status(), StatusCode::UNAUTHORIZED);

    caller.access = pair["access_token"].as_str().expect("a token").to_owned();
    assert_eq!(caller.unassign_alpine().await.expect("an answer").status(), StatusCode::OK);
    let (status, body) = json_of(caller.refresh(&first).await.expect("an answer")).await;
    let used = json!({ "error": "invalid_request", "error_description": "Invalid refresh_token" });
    assert_eq!((status, body), (StatusCode::BAD_REQUEST, used));

    let exchange = caller.sandbox.token_exchanges().remove(0);
    let grant = exchange.grant.expect("it was one");
    assert_eq!((grant.kind.as_str(), grant.placement), ("refresh_token", Placement::Form));
    assert!(exchange.processed && exchange.token_generation == Some(1));

    caller.sandbox.advance_clock(Duration::from_hours(2));
    assert_eq!(caller.unassign_alpine().await.expect("an answer").status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn the_token_endpoint_refuses_in_kongs_words_and_spends_nothing() {
    let caller = Caller::start(Settings::default()).await;
    let credentials = caller.sandbox.credentials();
    let refresh = credentials.refresh_token.expect("a chain");
    let url = caller.sandbox.base_url() + "/oauth2/token";
    let good = [
        ("grant_type", "refresh_token"),
        ("client_id", credentials.client_id.as_str()),
        ("client_secret", credentials.client_secret.as_str()),
        ("refresh_token", refresh.as_str()),
    ];
    let with = |name: &str, value: &'static str| good.map(|(key, old)| (key, if key == name { value } else { old }));
    for (form, status, error, description) in [
        (with("grant_type", "password2"), 400, "unsupported_grant_type", "Invalid grant_type"),
        (with("client_id", "other"), 400, "invalid_client", "Invalid client authentication"),
        (with("client_secret", "other"), 400, "invalid_client", "Invalid client authentication"),
        (with("refresh_token", "other"), 400, "invalid_request", "Invalid refresh_token"),
        (with("grant_type", "authorization_code"), 400, "invalid_request", "Invalid code"),
    ] {
        let answer = json_of(caller.http.post(&url).form(&form).send().await.expect("an answer")).await;
        let expected = json!({ "error": error, "error_description": description });
        assert_eq!((answer.0.as_u16(), answer.1), (status, expected));
    }
    let basic = [("grant_type", "refresh_token"), ("refresh_token", refresh.as_str())];
    let response = caller.http.post(&url).basic_auth("other", Some("x")).form(&basic).send().await.expect("an answer");
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);

    caller.sandbox.configure(|settings| settings.grant_placement = GrantPlacement::QueryOnly);
    let (status, body) = json_of(caller.http.post(&url).form(&good).send().await.expect("an answer")).await;
    assert_eq!((status.as_u16(), body["error"].as_str()), (400, Some("unsupported_grant_type")));
    let response = caller.http.post(&url).query(&good).send().await.expect("an answer");
    assert_eq!(response.status(), StatusCode::OK, "nothing was spent until now");
    let exchanges = caller.sandbox.token_exchanges();
    assert_eq!(
        exchanges.last().and_then(|call| call.grant.clone()).map(|grant| grant.placement),
        Some(Placement::Query)
    );
    let shown = serde_json::to_string(&exchanges).expect("plain data");
    assert!(!shown.contains(&refresh) && !shown.contains(&credentials.client_secret), "{shown}");
}

#[tokio::test]
async fn overlapping_refreshes_both_win_or_one_is_refused() {
    for (race, expected) in [(RefreshRace::OneRefused, [200, 400]), (RefreshRace::BothWin, [200, 200])] {
        let caller = Caller::start(Settings { refresh_race: race, ..Settings::default() }).await;
        caller.sandbox.fault(Fault::hold("race").on(Operation::Token).times(2));
        let refresh = caller.sandbox.credentials().refresh_token.expect("a chain");
        let release = async {
            caller.sandbox.wait_for_held("race", 2).await;
            assert_eq!(caller.sandbox.release("race"), 2);
        };
        let (one, two, ()) = tokio::join!(caller.refresh(&refresh), caller.refresh(&refresh), release);
        let mut statuses = [one, two].map(|response| response.expect("an answer").status().as_u16());
        statuses.sort_unstable();
        assert_eq!(statuses, expected, "{race:?}");
    }
}

#[tokio::test]
async fn the_login_flow_gives_a_second_chain_and_is_throttled() {
    let caller = Caller::start(Settings::default()).await;
    caller.sandbox.freeze_clock(noon());
    let base = caller.sandbox.base_url();
    let credentials = caller.sandbox.credentials();
    let login = || {
        let body = json!({ "username": credentials.username, "password": credentials.password });
        let url = format!("{base}/oauth2/authorize/central/api/login?client_id={}", credentials.client_id);
        caller.http.post(url).body(body.to_string()).send()
    };
    let response = login().await.expect("an answer");
    let cookies: Vec<String> =
        response.headers().get_all("set-cookie").iter().map(|v| v.to_str().expect("text").to_owned()).collect();
    let cookie = |name: &str| {
        let found = cookies.iter().find_map(|cookie| cookie.strip_prefix(name)).expect("it is set");
        found.split(';').next().expect("a value").to_owned()
    };
    let (csrf, session) = (cookie("csrftoken="), cookie("session="));
    assert_eq!(json_of(response).await, (StatusCode::OK, json!({ "status": true })));

    let url =
        format!("{base}/oauth2/authorize/central/api?client_id={}&response_type=code&scope=all", credentials.client_id);
    let body = json!({ "customer_id": credentials.msp_id }).to_string();
    let refused = caller.http.post(&url).body(body.clone()).send().await.expect("an answer");
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    let request = caller.http.post(&url).header("X-CSRF-TOKEN", &csrf).header("Cookie", format!("session={session}"));
    let (_, body) = json_of(request.body(body).send().await.expect("an answer")).await;
    let form = json!({
        "grant_type": "authorization_code", "code": body["auth_code"],
        "client_id": credentials.client_id, "client_secret": credentials.client_secret,
    });
    let exchange = || {
        let request = caller.http.post(format!("{base}/oauth2/token")).header("content-type", "application/json");
        request.body(form.to_string()).send()
    };
    let (status, pair) = json_of(exchange().await.expect("an answer")).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(exchange().await.expect("an answer").status(), StatusCode::BAD_REQUEST, "a code works once");

    let revoke = json!({ "access_token": pair["access_token"], "customer_id": credentials.msp_id }).to_string();
    let request = caller.http.delete(format!("{base}/oauth2/api/tokens")).header("X-CSRF-TOKEN", &csrf);
    let response = request.header("Cookie", format!("session={session}")).body(revoke).send().await.expect("an answer");
    assert_eq!(response.status(), StatusCode::OK);

    for _ in 0..2 {
        assert_eq!(login().await.expect("an answer").status(), StatusCode::OK);
    }
    let (status, body) = json_of(login().await.expect("an answer")).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert!(body["message"].as_str().expect("words").contains("after 1800 seconds"), "{body}");
}

#[tokio::test]
async fn each_reading_of_the_unscoped_call_can_be_chosen() {
    for (unscoped, owners) in [(Unscoped::TenantsOnly, 5), (Unscoped::MspAndTenants, 6)] {
        let caller = Caller::start(Settings { unscoped, ..Settings::default() }).await;
        let response = caller.unassign(&json!({ "services": ["advanced_ap"], "include_customers": [] })).send().await;
        assert_eq!(response.expect("an answer").status(), StatusCode::OK);
        assert_eq!(caller.sandbox.applied_customers().len(), owners, "{unscoped:?}");
    }
}

#[tokio::test]
async fn an_unknown_customer_is_refused_as_chosen() {
    let body = json!({ "services": ["advanced_ap"], "include_customers": [ALPINE, "nobody"] });
    for (unknown_customer, status, left) in
        [(UnknownCustomer::NotFound, 404, 3), (UnknownCustomer::BadRequest, 400, 3), (UnknownCustomer::Ignored, 200, 1)]
    {
        let caller = Caller::start(Settings { unknown_customer, ..Settings::default() }).await;
        let response = caller.unassign(&body).send().await.expect("an answer");
        assert_eq!((response.status().as_u16(), caller.alpine_licences()), (status, left));
    }
}

#[tokio::test]
async fn background_work_ends_when_the_clock_says_so() {
    let caller = Caller::start(Settings { completion_delay_ms: 60_000, ..Settings::default() }).await;
    caller.sandbox.freeze_clock(noon());
    assert_eq!(caller.unassign_alpine().await.expect("an answer").status(), StatusCode::OK);
    assert_eq!(caller.alpine_licences(), 3);
    caller.sandbox.advance_clock(Duration::from_mins(1));
    assert_eq!(caller.alpine_licences(), 1);
}

#[tokio::test]
async fn every_dialect_is_spoken() {
    let caller = Caller::start(Settings::default().unlimited()).await;
    for (dialect, status, pointer, expected) in [
        (Dialect::Oauth, 401, "/error", json!("invalid_token")),
        (Dialect::Kong, 500, "/message", json!("An unexpected error occurred")),
        (Dialect::CentralService, 404, "/error_code", json!("0001")),
        (Dialect::Detail, 400, "/detail", json!("Bad request")),
        (Dialect::Athena, 400, "/extra/message/failed_devices/0", json!("Bad request")),
        (
            Dialect::Text,
            503,
            "",
            json!("upstream connect error or disconnect/reset before headers. reset reason: connection termination"),
        ),
        (
            Dialect::Html,
            502,
            "",
            json!(
                "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body><h1>502 Bad Gateway</h1></body>\r\n</html>\r\n"
            ),
        ),
    ] {
        caller.sandbox.fault(Fault::new(Reply::Answer(Answer::new(status).dialect(dialect))).on(Operation::Unassign));
        let (got, body) = json_of(caller.unassign_alpine().await.expect("an answer")).await;
        assert_eq!((got.as_u16(), body.pointer(pointer)), (status, Some(&expected)), "{dialect:?}");
    }
    assert_eq!(caller.alpine_licences(), 3, "nothing was applied");
    let record = caller.sandbox.unassign_calls();
    assert!(record.iter().all(|call| !call.processed && call.applied.is_empty()));
}

#[tokio::test]
async fn a_script_is_played_in_order_and_resends_are_counted() {
    let caller = Caller::start(Settings::default()).await;
    caller.sandbox.script(Operation::Unassign, [Fault::answer(503), Fault::answer(503).and_applied(), Fault::none()]);
    let mut statuses = Vec::new();
    for left in [3, 1, 1] {
        statuses.push(caller.unassign_alpine().await.expect("an answer").status().as_u16());
        assert_eq!(caller.alpine_licences(), left);
    }
    assert_eq!(statuses, [503, 503, 200]);
    let deliveries: Vec<_> = caller.sandbox.unassign_calls().iter().map(|call| call.delivery).collect();
    assert_eq!(deliveries, [Some(1), Some(2), Some(3)]);
    assert_eq!(caller.sandbox.counters().duplicate_deliveries, 2);
    assert_eq!(caller.sandbox.deliveries_naming(ALPINE), 3);
    assert_eq!(caller.sandbox.deliveries_naming(BOREALIS), 0);
    assert!(caller.sandbox.faults().is_empty());
}

#[tokio::test]
async fn a_prescribed_429_says_which_window_is_spent_and_is_neither_counted_nor_delivered() {
    let caller = Caller::start(Settings::default()).await;
    caller.sandbox.freeze_clock(noon());
    let with = |headers| Fault::new(Reply::Answer(Answer::new(429).rate_headers(headers)));
    caller.sandbox.script(
        Operation::Unassign,
        [Fault::answer(429), with(RateHeaders::SecondSpent), with(RateHeaders::DaySpent), with(RateHeaders::None)],
    );
    let mut seen = Vec::new();
    for _ in 0..5 {
        let response = caller.unassign_alpine().await.expect("an answer");
        let left = |window| header(&response, &format!("x-ratelimit-remaining-{window}")).map(str::to_owned);
        seen.push((response.status().as_u16(), left("day"), left("second")));
    }
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(
        seen,
        [
            (429, text("4999"), text("0")),
            (429, text("4999"), text("0")),
            (429, text("0"), text("6")),
            (429, None, None),
            (200, text("4999"), text("6")),
        ]
    );
    assert_eq!(caller.sandbox.deliveries_naming(ALPINE), 1);
}

#[tokio::test]
async fn a_fault_waits_for_a_call_that_kong_lets_through_unless_it_is_a_proxys() {
    let mut caller = Caller::start(Settings::default()).await;
    let good = std::mem::replace(&mut caller.access, "dead".into());
    caller.sandbox.fault(Fault::answer(500).on(Operation::Unassign));
    assert_eq!(caller.unassign_alpine().await.expect("an answer").status(), StatusCode::UNAUTHORIZED);
    caller.sandbox.fault(Fault::answer(502).at_proxy());
    let response = caller.unassign_alpine().await.expect("an answer");
    assert_eq!((response.status().as_u16(), header(&response, "via")), (502, None));
    caller.access = good;
    assert_eq!(caller.unassign_alpine().await.expect("an answer").status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(caller.unassign_alpine().await.expect("an answer").status(), StatusCode::OK);
}

#[tokio::test]
async fn a_fault_for_a_customer_hits_only_calls_that_name_them() {
    let caller = Caller::start(Settings::default()).await;
    caller.sandbox.fault(Fault::answer(404).naming(BOREALIS).always());
    assert_eq!(caller.unassign_alpine().await.expect("an answer").status(), StatusCode::OK);
    let both = json!({ "services": ["advanced_ap"], "include_customers": [ALPINE, BOREALIS] });
    for _ in 0..2 {
        assert_eq!(caller.unassign(&both).send().await.expect("an answer").status(), StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn connections_break_as_told_and_the_record_says_whether_it_was_applied() {
    for (reply, ending, status) in [
        (Reply::Reset, Ending::Reset, None),
        (Reply::Close, Ending::Closed, None),
        (Reply::ResetMidway, Ending::ResetMidway, Some(200)),
        (Reply::Truncated, Ending::Truncated, Some(200)),
    ] {
        for applied in [false, true] {
            let caller = Caller::start(Settings::default()).await;
            let fault = Fault::new(reply.clone()).on(Operation::Unassign);
            caller.sandbox.fault(if applied { fault.and_applied() } else { fault });
            let error = match caller.unassign_alpine().await {
                Err(error) => error,
                Ok(response) => {
                    assert!(status.is_some(), "an answer where none was due: {reply:?}");
                    response.text().await.expect_err("half an answer")
                }
            };
            assert!(!error.is_timeout() && !error.is_connect(), "{error:?}");
            let resets = matches!(reply, Reply::Reset | Reply::ResetMidway);
            let error = format!("{error:?}");
            assert_eq!(error.contains("ConnectionReset"), resets, "RST or FIN: {reply:?} {error}");
            let call = caller.sandbox.unassign_calls().remove(0);
            assert_eq!((call.ending, call.status, call.processed), (ending, status, applied), "{reply:?}");
            assert_eq!(caller.alpine_licences(), if applied { 1 } else { 3 }, "{reply:?}");
        }
    }
}

#[tokio::test]
async fn a_connection_can_be_closed_before_anything_is_read() {
    let caller = Caller::start(Settings::default()).await;
    caller.sandbox.fault(Fault::new(Reply::CloseOnAccept));
    caller.unassign_alpine().await.expect_err("no answer");
    assert!(caller.sandbox.calls().is_empty());
    assert_eq!(caller.unassign_alpine().await.expect("an answer").status(), StatusCode::OK);
}

#[tokio::test]
async fn silence_lasts_until_the_caller_gives_up() {
    for applied in [false, true] {
        let caller = Caller::start(Settings::default()).await;
        let fault = Fault::silence().on(Operation::Unassign);
        caller.sandbox.fault(if applied { fault.and_applied() } else { fault });
        let waiting = tokio::spawn(caller.unassign(&alpine()).send());
        caller.sandbox.until("silence", |_, calls| calls.iter().any(|call| call.ending == Ending::Silent)).await;
        assert!(!waiting.is_finished());
        assert_eq!(caller.alpine_licences(), if applied { 1 } else { 3 });
        waiting.abort();
    }
}

#[tokio::test]
async fn a_held_call_goes_on_when_released_even_if_its_caller_has_left() {
    let caller = Caller::start(Settings::default()).await;
    caller.sandbox.script(Operation::Unassign, [Fault::hold("before"), Fault::hold_answer("after")]);
    let leaving = tokio::spawn(caller.unassign(&alpine()).send());
    caller.sandbox.wait_for_held("before", 1).await;
    assert_eq!(caller.alpine_licences(), 3);
    leaving.abort();
    assert!(leaving.await.is_err_and(|error| error.is_cancelled()));
    caller.sandbox.until("the connection closed", |counters, _| counters.open_connections == 0).await;
    assert_eq!(caller.sandbox.release("before"), 1);
    caller.sandbox.wait_until_idle().await;
    assert_eq!(caller.alpine_licences(), 1, "Central does not notice that its caller has left");

    let all = json!({ "services": ["foundation_switch_6300"], "include_customers": [ALPINE] });
    let staying = tokio::spawn(caller.unassign(&all).send());
    caller.sandbox.wait_for_held("after", 1).await;
    assert_eq!(caller.alpine_licences(), 0, "applied, not answered");
    assert!(!staying.is_finished());
    caller.sandbox.release("after");
    assert_eq!(staying.await.expect("no panic").expect("an answer").status(), StatusCode::OK);
}

#[tokio::test]
async fn a_delayed_call_is_applied_before_or_after_the_delay() {
    let caller = Caller::start(Settings::default()).await;
    let hour = Duration::from_hours(1);
    caller.sandbox.script(
        Operation::Unassign,
        [
            Fault::none().delayed(hour),
            Fault::none().answering_late(hour),
            Fault::none().delayed(Duration::from_millis(1)),
        ],
    );
    let early = tokio::spawn(caller.unassign(&alpine()).send());
    caller.sandbox.wait_for_operation(Operation::Unassign, 1).await;
    assert_eq!(caller.alpine_licences(), 3);
    let late = tokio::spawn(caller.unassign(&alpine()).send());
    caller.sandbox.until("applied", |_, calls| calls.iter().any(|call| !call.applied.is_empty())).await;
    assert!(!early.is_finished() && !late.is_finished());
    assert_eq!(caller.unassign_alpine().await.expect("an answer").status(), StatusCode::OK);
    caller.sandbox.stop().await; // does not wait for the hour
    assert!(early.await.expect("no panic").is_err() && late.await.expect("no panic").is_err());
}

#[tokio::test]
async fn a_success_has_every_body() {
    let caller = Caller::start(Settings::default().unlimited()).await;
    for (body, text) in [
        (SuccessBody::Empty, ""),
        (SuccessBody::True, "true"),
        (SuccessBody::Text, "\"success\""),
        (SuccessBody::Object, "{\"status\":\"success\"}"),
        (SuccessBody::NotJson, "OK"),
    ] {
        caller.sandbox.configure(|settings| settings.success_body = body);
        let response = caller.unassign_alpine().await.expect("an answer");
        assert_eq!(response.text().await.expect("a body"), text);
    }
    caller.sandbox.fault(Fault::new(Reply::Success(SuccessBody::ReportsFailure)));
    let (status, body) = json_of(caller.unassign_alpine().await.expect("an answer")).await;
    assert_eq!((status, &body["status"]), (StatusCode::OK, &json!("failed")));
}

#[tokio::test]
async fn strange_answers_are_given_byte_for_byte() {
    let caller = Caller::start(Settings::default()).await;
    let answers =
        [Answer::lying_gzip(), Answer::redirect("https://elsewhere.example/"), Answer::new(299).body("\u{0}x")];
    caller.sandbox.script(Operation::Unassign, answers.map(|answer| Fault::new(Reply::Answer(answer))));
    let gzip = caller.unassign_alpine().await.expect("an answer");
    assert_eq!(header(&gzip, "content-encoding"), Some("gzip"));
    assert_eq!(gzip.text().await.expect("not decoded"), "{\"status\":\"success\"}");
    let redirect = caller.unassign_alpine().await.expect("an answer");
    assert_eq!((redirect.status().as_u16(), header(&redirect, "location")), (302, Some("https://elsewhere.example/")));
    let odd = caller.unassign_alpine().await.expect("an answer");
    assert_eq!((odd.status().as_u16(), odd.text().await.expect("a body").as_str()), (299, "\u{0}x"));
}

#[tokio::test]
async fn a_huge_body_is_streamed() {
    let caller = Caller::start(Settings::default()).await;
    caller.sandbox.script(Operation::Unassign, [1 << 30, 3_000_000].map(|bytes| Fault::new(Reply::Huge(bytes))));
    let mut gigabyte = caller.unassign_alpine().await.expect("an answer");
    assert_eq!(gigabyte.content_length(), Some(1 << 30));
    assert!(gigabyte.chunk().await.expect("the beginning").is_some());
    drop(gigabyte); // nobody reads the rest
    let body = caller.unassign_alpine().await.expect("an answer").bytes().await.expect("all of it");
    assert_eq!(body.len(), 3_000_000);
}

#[tokio::test]
async fn the_hostile_answer_repeats_every_secret_it_received() {
    let caller = Caller::start(Settings { token_prefix: "CANARY".into(), ..Settings::default() }).await;
    caller.sandbox.fault(Fault::new(Reply::EchoSecrets(500)).times(2));
    assert!(caller.access.starts_with("CANARY"));
    let body = caller.unassign_alpine().await.expect("an answer").text().await.expect("a body");
    assert!(body.contains(&caller.access), "{body}");
    let body = caller.refresh("my-refresh-token").await.expect("an answer").text().await.expect("a body");
    assert!(body.contains("my-refresh-token") && body.contains(&caller.sandbox.credentials().client_secret), "{body}");
}

#[tokio::test]
async fn the_token_endpoints_answer_can_be_wrong_or_lost_and_the_pair_rotated_or_not() {
    let caller = Caller::start(Settings::default()).await;
    let token = |body| Fault::new(Reply::Token(body)).on(Operation::Token).and_applied();
    let newest = || caller.sandbox.credentials().refresh_token.expect("a chain");
    for (body, check) in [
        (TokenBody::Malformed, (|text: &str| serde_json::from_str::<Value>(text).is_err()) as fn(&str) -> bool),
        (TokenBody::Html, |text| text.starts_with("<html>")),
        (TokenBody::Empty, str::is_empty),
        (TokenBody::Without("refresh_token".into()), |text| {
            text.contains("access_token") && !text.contains("refresh_token")
        }),
        (TokenBody::ExpiresIn(json!("7200")), |text| text.contains(r#""expires_in":"7200""#)),
        (TokenBody::ExpiresIn(json!(-1)), |text| text.contains(r#""expires_in":-1"#)),
        (TokenBody::ExpiresIn(json!(1e12)), |text| text.contains(r#""expires_in":1000000000000.0"#)),
    ] {
        let before = newest();
        caller.sandbox.fault(token(body.clone()));
        let response = caller.refresh(&before).await.expect("an answer");
        assert_eq!(response.status(), StatusCode::OK);
        let text = response.text().await.expect("a body");
        assert!(check(&text), "{body:?}: {text}");
        assert_ne!(newest(), before, "committed");
    }

    let before = newest();
    caller.sandbox.fault(Fault::reset().on(Operation::Token));
    caller.refresh(&before).await.expect_err("no answer");
    assert_eq!(newest(), before, "not committed");
    caller.sandbox.fault(Fault::reset().on(Operation::Token).and_applied());
    caller.refresh(&before).await.expect_err("no answer");
    assert_ne!(newest(), before, "committed, the answer lost");
    assert_eq!(caller.refresh(&before).await.expect("an answer").status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn tokens_can_be_revoked_by_half_or_whole() {
    let caller = Caller::start(Settings::default()).await;
    let refresh = caller.sandbox.credentials().refresh_token.expect("a chain");
    caller.sandbox.revoke_access_token();
    assert_eq!(caller.unassign_alpine().await.expect("an answer").status(), StatusCode::UNAUTHORIZED);
    assert_eq!(caller.refresh(&refresh).await.expect("an answer").status(), StatusCode::OK);
    let refresh = caller.sandbox.credentials().refresh_token.expect("a chain");
    caller.sandbox.revoke_chain();
    assert_eq!(caller.refresh(&refresh).await.expect("an answer").status(), StatusCode::BAD_REQUEST);
    assert_eq!(caller.sandbox.credentials().refresh_token, None);
}

#[tokio::test]
async fn customers_and_devices_are_listed_in_pages() {
    let caller = Caller::start(Settings::default().unlimited().with_generated_customers(12)).await;
    let (_, first) = caller.get("/msp_api/v1/customers").await;
    let ids = |page: &Value| page["customers"].as_array().map(Vec::len);
    assert_eq!((ids(&first), &first["total"]), (Some(10), &json!(12)));
    let (_, rest) = caller.get("/msp_api/v1/customers?offset=10&limit=100").await;
    assert_eq!(ids(&rest), Some(2));
    let (_, named) = caller.get("/msp_api/v1/customers?customer_name=customer%201").await;
    assert_eq!(ids(&named), Some(3), "a filter for parts: 1, 10, 11");

    let id = first["customers"][0]["customer_id"].as_str().expect("an id").to_owned();
    let (_, devices) = caller.get(&format!("/msp_api/v1/customers/{id}/devices")).await;
    assert_eq!(devices["deviceList"]["total_devices"], 1);
    assert_eq!(devices["deviceList"]["devices"][0]["services"], json!(["advanced_ap"]));
    let (status, _) = caller.get("/msp_api/v1/devices?limit=10&offset=5").await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "offset must be a multiple of limit");
    let (_, inventory) = caller.get("/platform/device_inventory/v1/devices?limit=3").await;
    assert_eq!((inventory["devices"].as_array().map(Vec::len), &inventory["total"]), (Some(3), &json!(14)));
    let (_, tenant) = caller.get(&format!("/platform/device_inventory/v1/msp/{id}/devices")).await;
    assert_eq!(tenant["devices"][0]["services"], json!(["ADVANCED_AP"]), "upper case here");
}

#[tokio::test]
async fn services_subscriptions_and_auto_licensing_answer() {
    let caller = Caller::start(Settings::default()).await;
    let (_, config) = caller.get("/platform/licensing/v1/services/config").await;
    assert!(config.get("advanced_ap").is_some(), "{config}");
    let (_, enabled) = caller.get("/platform/licensing/v1/services/enabled").await;
    assert!(enabled["services"]["services"].as_array().is_some_and(|services| services.len() > 10));
    let (_, subscriptions) = caller.get("/platform/licensing/v1/subscriptions").await;
    assert!(subscriptions["subscriptions"].as_array().is_some_and(|list| !list.is_empty()));

    let path = "/platform/licensing/v1/msp/customer/settings/autolicense";
    let of_alpine = format!("{path}?customer_id={ALPINE}");
    for (method, services) in [(Method::POST, json!(["advanced_ap"])), (Method::DELETE, json!([]))] {
        let response = caller.call(method, path).body(alpine().to_string()).send().await.expect("an answer");
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(caller.get(&of_alpine).await.1, json!({ "services": services }));
    }
}

#[tokio::test]
async fn the_control_surface_does_what_the_handle_does() {
    let caller = Caller::start(Settings::default()).await;
    let fault = json!([
        { "operation": "unassign", "applied": true, "reply": { "answer": { "status": 503 } } },
        { "operation": "unassign", "reply": "reset" },
    ]);
    let (status, left) = caller.control(Method::POST, "faults", &fault).await;
    assert_eq!((status, left.as_array().map(Vec::len)), (StatusCode::OK, Some(2)), "{left}");
    let round_trip: Vec<Fault> = serde_json::from_value(left).expect("what it shows is what it takes");
    assert_eq!(round_trip, caller.sandbox.faults());
    assert_eq!(caller.unassign_alpine().await.expect("an answer").status(), StatusCode::SERVICE_UNAVAILABLE);

    let (_, calls) = caller.control(Method::GET, "calls?operation=unassign", &Value::Null).await;
    assert_eq!((&calls[0]["processed"], &calls[0]["body"]), (&json!(true), &alpine()));
    let (_, applied) = caller.control(Method::GET, "applied", &Value::Null).await;
    assert_eq!(applied[0]["customer_id"], ALPINE);
    let (_, counters) = caller.control(Method::GET, "counters", &Value::Null).await;
    assert_eq!(
        (&counters["calls"], &counters["by_status"]["503"]),
        (&json!(1), &json!(1)),
        "control calls do not count"
    );

    let (_, credentials) = caller.control(Method::GET, "credentials", &Value::Null).await;
    assert_eq!(credentials["refresh_token"], json!(caller.sandbox.credentials().refresh_token));
    let (_, clock) = caller.control(Method::PUT, "clock", &json!({ "freeze_at": "2026-01-31T23:59:59Z" })).await;
    assert_eq!(clock, json!({ "now": "2026-01-31T23:59:59Z", "frozen": true }));
    let (_, clock) = caller.control(Method::PUT, "clock", &json!({ "advance_ms": 1_000 })).await;
    assert_eq!(clock["now"], "2026-02-01T00:00:00Z");
    caller.control(Method::POST, "tokens/revoke", &json!({ "what": "chain" })).await;
    assert_eq!(caller.sandbox.credentials().refresh_token, None);

    let (status, settings) =
        caller.control(Method::PATCH, "settings", &json!({ "per_second": null, "unknown_customer": "ignored" })).await;
    assert_eq!((status, &settings["unknown_customer"]), (StatusCode::OK, &json!("ignored")), "{settings}");
    assert_eq!(caller.sandbox.settings().per_second, None);
    let (status, _) = caller.control(Method::PUT, "settings", &settings).await;
    assert_eq!(status, StatusCode::OK, "what it shows is what it takes");

    let (_, mut owners) = caller.control(Method::GET, "devices", &Value::Null).await;
    owners.as_array_mut().expect("a list").truncate(2);
    assert_eq!(caller.control(Method::PUT, "devices", &owners).await.0, StatusCode::OK);
    assert_eq!(caller.sandbox.owners().len(), 2, "the MSP and one customer are left");

    caller.control(Method::POST, "reset", &Value::Null).await;
    assert_eq!((caller.alpine_licences(), caller.sandbox.calls().len()), (3, 0));
    for path in ["", "state", "settings", "faults", "devices", "clock"] {
        assert_eq!(caller.control(Method::GET, path, &Value::Null).await.0, StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn a_bad_control_request_is_told_what_is_wrong_and_what_is_allowed() {
    let caller = Caller::start(Settings::default()).await;
    for (method, path, body, field, allowed) in [
        (Method::POST, "faults", json!({ "operation": "unasign" }), "operation", "`unassign`"),
        (Method::POST, "faults", json!({ "operation": "unassign", "time": 1 }), "time", "`times`"),
        (Method::POST, "faults", json!({ "reply": { "answer": { "status": "x" } } }), "reply.answer.status", "u16"),
        (Method::POST, "faults", json!({ "reply": { "answer": { "status": 99 } } }), "reply.answer.status", "200"),
        (Method::POST, "faults", json!([{ "times": 0 }]), "[0].times", "at least 1"),
        (Method::POST, "faults", json!({ "operation": "token", "reply": "close_on_accept" }), "operation", "any"),
        (
            Method::POST,
            "faults",
            json!({ "reply": { "answer": { "status": 200, "headers": [["a b", "c"]] } } }),
            "reply.answer.headers",
            "token",
        ),
        (Method::PATCH, "settings", json!({ "unscoped": "all" }), "unscoped", "tenants_only"),
        (Method::PATCH, "settings", json!({ "per_secnd": 1 }), "per_secnd", "`per_second`"),
        (Method::PATCH, "settings", json!({ "listen": "127.0.0.1:1" }), "listen", "leave it out"),
        (Method::PUT, "devices", json!([]), "[0].id", "the MSP"),
        (Method::PUT, "clock", json!({ "freeze_at": "noon" }), "freeze_at", "2026"),
        (Method::POST, "tokens/revoke", json!({ "what": "all" }), "what", "`chain`"),
        (Method::GET, "calls?after=x", Value::Null, "after", "whole number"),
    ] {
        let (status, answer) = caller.control(method, path, &body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
        let error = &answer["error"];
        assert_eq!(error["field"], field, "{body}: {answer}");
        assert!(error["allowed"].as_str().expect("words").contains(allowed), "{body}: {answer}");
    }
    assert!(caller.sandbox.faults().is_empty());
    assert_eq!(caller.control(Method::GET, "nothing", &Value::Null).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn every_control_request_in_the_documentation_is_accepted() {
    let caller = Caller::start(Settings::default()).await;
    let page = include_str!("../../docs/sandbox.md");
    let commands: Vec<&str> = page.lines().filter(|line| line.starts_with("curl ")).collect();
    assert!(commands.len() > 20, "they are found");
    for command in commands {
        let Some((_, path)) = command.split_once("$SANDBOX/__sandbox/") else { continue };
        let path = path.split(['\'', '"', ' ']).next().expect("a path");
        let method = command.split_once("-X ").map_or("GET", |(_, rest)| rest.split(' ').next().expect("a method"));
        let body = command.split_once("-d '").map_or("null", |(_, rest)| rest.rsplit_once('\'').expect("a body").0);
        let body: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{command}: {error}"));
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let (status, answer) = caller.control(method, path, &body).await;
        assert_eq!(status, StatusCode::OK, "{command}: {answer}");
    }
    let table = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
    let mut replies = 0;
    for (reply, _) in table.filter(|(reply, _)| reply.starts_with(['"', '{'])) {
        let reply: Value = serde_json::from_str(reply).unwrap_or_else(|error| panic!("{reply}: {error}"));
        let operation = if reply.get("token").is_some() { "token" } else { "any" };
        let fault = json!({ "operation": operation, "reply": reply });
        let (status, answer) = caller.control(Method::POST, "faults", &fault).await;
        assert_eq!(status, StatusCode::OK, "{fault}: {answer}");
        caller.sandbox.clear_faults(); // `close_on_accept` would hit the next of these
        replies += 1;
    }
    assert!(replies > 15, "the table of faults is found");
}

#[tokio::test]
async fn sandboxes_are_independent_and_gone_when_stopped() {
    let (one, two) = tokio::join!(Caller::start(Settings::default()), Caller::start(Settings::default()));
    assert_ne!(one.access, two.access);
    one.unassign_alpine().await.expect("an answer");
    assert_eq!((one.alpine_licences(), two.alpine_licences()), (1, 3));
    one.sandbox.clone().stop().await;
    assert!(one.unassign_alpine().await.expect_err("nobody listens").is_connect());
    assert_eq!(two.unassign_alpine().await.expect("an answer").status(), StatusCode::OK);
}

#[tokio::test]
async fn the_same_seed_gives_the_same_tokens() {
    let settings = Settings { random_seed: Some(1), ..Settings::default() };
    let (one, two) = tokio::join!(Caller::start(settings.clone()), Caller::start(settings));
    assert_eq!(one.access, two.access);
}

#[tokio::test]
#[should_panic(expected = "the sandbox panicked 1 times")]
async fn a_panic_of_the_sandbox_fails_the_test_that_uses_it() {
    let caller = Caller::start(Settings::default()).await;
    caller.sandbox.fault(Fault::new(Reply::Panic));
    let response = caller.unassign_alpine().await.expect("an answer");
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    caller.sandbox.wait_until_idle().await;
    caller.sandbox.stop().await;
}

#[tokio::test]
async fn it_speaks_tls_and_breaks_tls_connections_too() {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("a certificate");
    let tls = TlsPem { certificate: cert.pem(), key: signing_key.serialize_pem() };
    let mut caller = Caller::start(Settings { tls: Some(tls), ..Settings::default() }).await;
    caller.http = Client::builder()
        .pool_max_idle_per_host(0)
        .tls_certs_only([reqwest::Certificate::from_pem(cert.pem().as_bytes()).expect("a certificate")])
        .build()
        .expect("a client");
    assert!(caller.sandbox.base_url().starts_with("https://localhost:"));
    assert_eq!(caller.unassign_alpine().await.expect("an answer").status(), StatusCode::OK);
    caller.sandbox.fault(Fault::reset().and_applied());
    caller.unassign_alpine().await.expect_err("no answer");
}
