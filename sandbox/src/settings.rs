//! What the stand-in is told to be: the account's content and every point on which Central's behaviour is unknown.
//!
//! One type for the Rust API and for the JSON of the control surface. Marks as in [the crate](crate).

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{
    seed,
    state::{Customer, Device},
};

/// Everything that can be chosen. [`Settings::default`] is a small, complete account.
///
/// `listen` and `tls` are read once, at the start. What seeds the account (`customers`, `msp_*`, `services`,
/// `refresh_token`, `random_seed`) is read at the start and at every reset. All else is read for every call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where to listen. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Serve https with this certificate; none: plain http. Never shown by the control surface.
    #[serde(skip_serializing)]
    pub tls: Option<TlsPem>,

    /// The application's client id.
    pub client_id: String,
    /// The application's client secret.
    pub client_secret: String,
    /// The refresh token of the first pair, single-use like all of them.
    pub refresh_token: String,
    /// The user of the login flow.
    pub username: String,
    /// That user's password.
    pub password: String,

    /// The MSP's own customer id.
    pub msp_id: String,
    /// The MSP's own name.
    pub msp_name: String,
    /// The devices that the MSP keeps for itself.
    pub msp_devices: Vec<Device>,
    /// The MSP's customers, their names free text.
    pub customers: Vec<Customer>,
    /// The keys of `services/config`, spelled as Central spells them.
    pub services: Vec<String>,

    /// Calls a second, for the account; null: no limit. Central: 7 (C).
    pub per_second: Option<u32>,
    /// Calls a UTC day, for the account; null: no limit. Central: 5000, more with many licences (C).
    pub per_day: Option<u32>,
    /// Whether calls of the token endpoint draw on the quota too. Off: Kong answers them before it counts (K).
    pub count_token_calls: bool,
    /// The longest request body in bytes. 128 MB is Kong's default (K); Central's value is unknown.
    pub max_body_bytes: u64,

    /// Seconds until an access token dies. Central: 7200 (C).
    pub access_token_life_s: u64,
    /// Seconds until a pair that is not refreshed dies, from its issue. Central: 15 days (C); stock Kong: 14 days (K).
    pub refresh_token_life_s: u64,
    /// Milliseconds for which a replaced access token still works, as it may on other nodes of the gateway (A).
    pub old_access_token_lingers_ms: u64,
    /// What happens to two refreshes with the same token that overlap.
    pub refresh_race: RefreshRace,
    /// Where the token endpoint reads its parameters.
    pub grant_placement: GrantPlacement,
    /// Whose token it is.
    pub role: Role,

    /// Whom an unassignment without lists hits.
    pub unscoped: Unscoped,
    /// What `[]` means as a list of customers.
    pub empty_list: EmptyList,
    /// What happens if both lists are given.
    pub both_lists: BothLists,
    /// What happens if a list names somebody who is not a customer.
    pub unknown_customer: UnknownCustomer,
    /// What happens if a service is not in `services`.
    pub unknown_service: UnknownService,
    /// The most entries of a page of customers, whatever `limit` asks for; null: as many as it asks for.
    pub longest_page: Option<usize>,
    /// The most entries of a page of the inventory, and what a larger `limit` means. Clients in use disagree on both: 50,
    /// 500 and 1,000.
    pub inventory_page: InventoryPage,
    /// Whether the list of customers moves while it is read: after its first page the last customer becomes the first,
    /// so that the pages overlap and one customer is on none of them. Read from the beginning, it is in the order of ids.
    pub customers_move: bool,
    /// Milliseconds from the 200 until the last licence is gone; customers follow one another evenly. 0: at once.
    pub completion_delay_ms: u64,
    /// The work of an unassignment stops after so many customers of it, and the others keep their licences; null: it is
    /// finished.
    pub completion_stalls_after: Option<usize>,
    /// Milliseconds until auto-licensing gives a licence back to a customer who has it switched on; null: never.
    pub auto_license_after_ms: Option<u64>,
    /// The body of a successful unassignment. Central's is not documented.
    pub success_body: SuccessBody,

    /// Makes tokens reproducible; null: random.
    pub random_seed: Option<u64>,
    /// Every token, code and cookie that is issued starts with this: a canary for leak tests.
    pub token_prefix: String,
    /// How many calls the record keeps; older ones are dropped, the counters go on.
    pub keep_calls: usize,
}

/// A certificate and its key, as PEM text.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsPem {
    /// The certificate, then its issuers.
    pub certificate: String,
    /// The private key.
    pub key: String,
}

/// Two refreshes that overlap: Kong reads, inserts and deletes without a transaction (K). To make them overlap, hold
/// them with [`Fault::hold`](super::Fault::hold).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefreshRace {
    /// The token is looked up when the call is processed: one wins, the other gets 400.
    OneRefused,
    /// The token is looked up when the call arrives: both get a new pair.
    BothWin,
}

/// Where the token endpoint reads its parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GrantPlacement {
    /// Query, form body and JSON body, merged (K).
    Any,
    /// The query alone: a form is answered with 400 `unsupported_grant_type`, and no token is spent (A).
    QueryOnly,
}

/// Whose token it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// An MSP user's.
    Msp,
    /// Somebody else's: MSP paths answer 403 (A).
    NotMsp,
}

/// Whom an unassignment without lists hits. Two official texts disagree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unscoped {
    /// The customers: the reference page.
    TenantsOnly,
    /// The customers and the MSP's own devices: HPE's Python library.
    MspAndTenants,
}

/// What `[]` means as a list of customers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EmptyList {
    /// The same as no list: everybody (A, strongly implied).
    SameAsAbsent,
    /// 400.
    BadRequest,
}

/// What happens if both lists are given. No source says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BothLists {
    /// 400.
    BadRequest,
    /// The included ones without the excluded ones.
    Difference,
}

/// What happens if a list names somebody who is not a customer. Not documented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownCustomer {
    /// 404 for the whole call, nothing is applied.
    NotFound,
    /// The others are served.
    Ignored,
    /// 400 for the whole call, nothing is applied.
    BadRequest,
}

/// How long the inventory's pages get (A).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InventoryPage {
    /// As long as `limit` says.
    AnySize,
    /// At most so many entries, whatever `limit` says.
    CappedAt(usize),
    /// 400 for a larger `limit`.
    RefusedAbove(usize),
}

/// What happens if a service is not in the list. Not documented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownService {
    /// 400 for the whole call, nothing is applied.
    BadRequest,
    /// The others are served.
    Ignored,
}

/// The body of a 200. Classic Central is known to use all but the last two elsewhere (C); here none is documented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SuccessBody {
    /// No bytes at all.
    Empty,
    /// `true`.
    True,
    /// `"success"`, a JSON string.
    Text,
    /// `{"status":"success"}`.
    Object,
    /// `{"status":"failed",…}`: a 200 that carries a failure, seen elsewhere in classic Central (C).
    ReportsFailure,
    /// `OK`, as plain text.
    NotJson,
}

impl SuccessBody {
    /// Content type, if any, and text.
    pub(crate) fn render(self) -> (Option<&'static str>, &'static str) {
        let json = Some("application/json");
        match self {
            Self::Empty => (None, ""),
            Self::True => (json, "true"),
            Self::Text => (json, "\"success\""),
            Self::Object => (json, r#"{"status":"success"}"#),
            Self::ReportsFailure => {
                (json, r#"{"status":"failed","message":"Unable to unassign licenses for some devices"}"#)
            }
            Self::NotJson => (Some("text/plain"), "OK"),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            tls: None,
            client_id: "SandboxClientIdNumberOne00000001".into(),
            client_secret: "SandboxClientSecretNumberOne0001".into(),
            refresh_token: "SandboxRefreshTokenNumberOne0001".into(),
            username: "msp-admin@example.com".into(),
            password: "sandbox-password".into(),
            msp_id: seed::MSP_ID.into(),
            msp_name: "Sandbox MSP".into(),
            msp_devices: seed::msp_devices(),
            customers: seed::customers(),
            services: seed::SERVICES.iter().map(ToString::to_string).collect(),
            per_second: Some(7),
            per_day: Some(5_000),
            count_token_calls: false,
            max_body_bytes: 128 * 1024 * 1024,
            access_token_life_s: 7_200,
            refresh_token_life_s: 15 * 24 * 3_600,
            old_access_token_lingers_ms: 0,
            refresh_race: RefreshRace::OneRefused,
            grant_placement: GrantPlacement::Any,
            role: Role::Msp,
            unscoped: Unscoped::MspAndTenants,
            empty_list: EmptyList::SameAsAbsent,
            both_lists: BothLists::BadRequest,
            unknown_customer: UnknownCustomer::NotFound,
            unknown_service: UnknownService::BadRequest,
            longest_page: None,
            inventory_page: InventoryPage::AnySize,
            customers_move: false,
            completion_delay_ms: 0,
            completion_stalls_after: None,
            auto_license_after_ms: None,
            success_body: SuccessBody::Object,
            random_seed: None,
            token_prefix: String::new(),
            keep_calls: 10_000,
        }
    }
}

impl Settings {
    /// No limits of calls: for tests that are not about them.
    #[must_use]
    pub fn unlimited(self) -> Self {
        Self { per_second: None, per_day: None, ..self }
    }

    /// That many generated customers, each with one access point that holds `advanced_ap`, in place of the seeded ones.
    #[must_use]
    pub fn with_generated_customers(self, count: usize) -> Self {
        Self { customers: (0..count).map(seed::generated_customer).collect(), ..self }
    }
}
