//! `watch`: whether the licences are really gone. `unassign --wait` ends with the same.

use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tonic::Request;

use super::{
    Exit,
    client::Gateway,
    failure::{CallError, FailedCall},
    print::{self, BAD, GOOD, UNSURE},
    scope::ScopeArguments,
};
use crate::{
    license::Outcome,
    proto::{
        ReleaseState, WatchEnd, WatchReleaseRequest, WatchReleaseResponse,
        licensing_service_client::LicensingServiceClient, unassign_licenses_request::Scope,
        watch_release_request::Scope as Target,
    },
};

/// Watches whether licences are really gone, and changes nothing.
#[derive(Debug, Args)]
#[command(after_help = WATCH_AFTER_HELP)]
pub(super) struct WatchCommand {
    #[command(flatten)]
    scope: ScopeArguments,

    /// The services whose licences were taken away
    #[arg(long, short, num_args = 1.., required_unless_present = "operation", value_name = "NAME")]
    service: Vec<String>,

    /// Instead of a scope and services: those of this operation of yours
    #[arg(long, conflicts_with_all = ["ScopeArguments", "service"], value_name = "OPERATION_ID")]
    operation: Option<String>,

    /// How many calls to Central the watch may make; 0: as many as the gateway usually allows, 200
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000), value_name = "N")]
    max_calls: u32,

    /// For how many seconds the licences must stay away; 0: as the gateway usually wants, 10
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_800), value_name = "SECONDS")]
    settle: u32,

    /// Go on where an earlier watch of the same scope and services ended
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TOKEN")]
    resume: String,

    /// Print one JSON object at the end, whether it worked or not
    #[arg(long)]
    json: bool,

    /// How long to watch; sent to the gateway as the deadline
    #[arg(long, default_value = "10m", value_parser = humantime::parse_duration, value_name = "DURATION")]
    timeout: Duration,

    #[command(flatten)]
    gateway: Gateway,
}

const WATCH_AFTER_HELP: &str = "\
Costs calls of Central's quota: one for each round, and in rounds that saw a change one for each customer (up to 10) or
one for every 1,000 devices of the account. The rounds are 5, 10, 20, 40 and then 60 seconds apart.

Exit codes:
  0   released: no device in scope holds any of the licences
  1   failed
  4   still held, came back (automatic licensing, or somebody), or not seen to the end
  64  the command line is wrong

Keys of --json, all always there unless said otherwise:
  ok, state (RELEASED, STILL_HELD, CAME_BACK, UNCONFIRMED), end (SEEN, CALLS_USED, TIME_OVER), customer_count,
  released_customer_count, held_device_count, held_devices [{serial, customer_id}] (the first 100), call_count,
  resume_token; or, where it failed, those of `unassign --json`

Examples:
  license-gateway watch --include 0123456789abcdef0123456789abcdef --service advanced_ap --timeout 5m
  license-gateway watch --operation 01a21408-280a-7466-b810-6fcfabaebe46";

impl WatchCommand {
    pub(super) async fn run(self) -> Exit {
        let wanted = match &self.operation {
            Some(id) => Ok(WatchReleaseRequest {
                scope: Some(Target::OperationId(id.clone())),
                ..WatchReleaseRequest::default()
            }),
            None => self.scope.read().map(|scope| request(scope, self.service.clone())),
        };
        let wanted = match wanted {
            Ok(wanted) => wanted,
            Err(message) => {
                print::error(&message);
                return Exit::Usage;
            }
        };
        let request = WatchReleaseRequest {
            max_calls: self.max_calls,
            settle_seconds: self.settle,
            resume_token: self.resume.clone(),
            ..wanted
        };
        match follow(&self.gateway, request, self.timeout).await {
            Ok(report) => {
                if self.json {
                    print::json(&report);
                } else {
                    print::out(&report.text());
                }
                report.exit()
            }
            Err(error) => error.print(self.json),
        }
    }
}

/// A watch of this, with what the gateway usually allows.
pub(super) fn request(scope: Scope, services: Vec<String>) -> WatchReleaseRequest {
    let scope = match scope {
        Scope::IncludeCustomers(list) => Target::IncludeCustomers(list),
        Scope::ExcludeCustomers(list) => Target::ExcludeCustomers(list),
        Scope::AllCustomers(all) => Target::AllCustomers(all),
    };
    WatchReleaseRequest { scope: Some(scope), services, ..WatchReleaseRequest::default() }
}

/// Watches to the end, with a bar where a terminal shows it.
pub(super) async fn follow(
    gateway: &Gateway,
    message: WatchReleaseRequest,
    timeout: Duration,
) -> Result<ReleaseReport, CallError> {
    let channel = gateway.connect(timeout).await?;
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    let mut client = LicensingServiceClient::new(channel);
    let bar = bar();
    let watching = async {
        let mut updates = client.watch_release(request).await?.into_inner();
        let mut last = None;
        while let Some(update) = updates.message().await? {
            show(&bar, &update);
            last = Some(update);
        }
        Ok(last)
    };
    let result = tokio::select! {
        result = tokio::time::timeout(timeout, watching) => match result {
            Ok(Ok(Some(last))) if last.end() != WatchEnd::Unspecified => Ok(ReleaseReport::of(last)),
            Ok(Ok(_)) => Err(FailedCall::cut_short()),
            Ok(Err(status)) => Err(FailedCall::of_status(&status, Outcome::NotApplied)),
            Err(_) => Err(FailedCall::timed_out(Outcome::NotApplied)),
        },
        Ok(()) = tokio::signal::ctrl_c() => Err(FailedCall::interrupted(Outcome::NotApplied)),
    };
    bar.finish_and_clear();
    result.map_err(CallError::from)
}

/// On standard error, and on a terminal alone.
fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} [{bar:30}] {pos}/{len} customers released; {msg} ({elapsed})");
    let bar = ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn show(bar: &ProgressBar, update: &WatchReleaseResponse) {
    bar.set_length(update.customer_count.into());
    bar.set_position(update.released_customer_count.into());
    bar.set_message(format!("{} devices hold some, {} calls", update.held_device_count, update.call_count));
}

/// What the command says of the last message.
pub fn release_text(last: WatchReleaseResponse) -> String {
    ReleaseReport::of(last).text()
}

/// What was seen. Serialized, it is the `--json` output, whose keys are stable.
#[derive(Debug, Serialize)]
pub(super) struct ReleaseReport {
    ok: bool,
    state: String,
    end: String,
    customer_count: u32,
    released_customer_count: u32,
    held_device_count: u64,
    held_devices: Vec<HeldDeviceJson>,
    call_count: u32,
    resume_token: String,
    #[serde(skip)]
    kind: ReleaseState,
}

#[derive(Debug, Serialize)]
struct HeldDeviceJson {
    serial: String,
    customer_id: String,
}

impl ReleaseReport {
    pub(super) fn of(last: WatchReleaseResponse) -> Self {
        Self {
            ok: true,
            kind: last.state(),
            state: last.state().as_str_name().trim_start_matches("RELEASE_STATE_").to_owned(),
            end: last.end().as_str_name().trim_start_matches("WATCH_END_").to_owned(),
            customer_count: last.customer_count,
            released_customer_count: last.released_customer_count,
            held_device_count: last.held_device_count,
            held_devices: last
                .held_devices
                .into_iter()
                .map(|one| HeldDeviceJson { serial: one.serial, customer_id: one.customer_id })
                .collect(),
            call_count: last.call_count,
            resume_token: last.resume_token,
        }
    }

    pub(super) fn exit(&self) -> Exit {
        if self.kind == ReleaseState::Released { Exit::Clean } else { Exit::NotReleased }
    }

    pub(super) fn text(&self) -> String {
        let head = match self.kind {
            ReleaseState::Released => {
                format!("{GOOD}Released:{GOOD:#} no device in scope holds any of these licences.")
            }
            ReleaseState::CameBack => format!(
                "{BAD}Came back:{BAD:#} licences that were gone are held again, by automatic licensing or by somebody."
            ),
            ReleaseState::StillHeld => {
                format!(
                    "{UNSURE}Still held:{UNSURE:#} devices hold some of these licences. Central may be slow: watch on."
                )
            }
            _ => format!("{UNSURE}Not confirmed:{UNSURE:#} not every device was looked at twice. Watch on."),
        };
        let end = match self.end.as_str() {
            "CALLS_USED" => "the calls were used",
            "TIME_OVER" => "the time was over",
            _ => "everything was seen",
        };
        let mut rows = vec![
            ("customers released", format!("{} of {}", self.released_customer_count, self.customer_count)),
            ("devices that hold some", self.held_device_count.to_string()),
            ("calls to Central", self.call_count.to_string()),
            ("ended because", end.to_owned()),
        ];
        if self.kind != ReleaseState::Released {
            rows.push(("go on with", format!("--resume {}", self.resume_token)));
        }
        let devices: Vec<_> =
            self.held_devices.iter().map(|one| [one.serial.clone(), one.customer_id.clone()]).collect();
        let mut parts = vec![format!("{head}\n"), print::list(&rows)];
        if !devices.is_empty() {
            parts.push(print::table(["SERIAL", "CUSTOMER"], &devices));
        }
        parts.join("\n")
    }
}
