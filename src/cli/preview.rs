//! `preview`: the customers that an unassignment would affect now. `unassign` shows the same before it asks.

use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tonic::Request;

use super::{
    Exit,
    client::Gateway,
    failure::{CallError, FailedCall},
    print::{self, HEADING, UNSURE},
    scope::{self, ScopeArguments},
    services::time,
};
use crate::{
    license::Outcome,
    proto::{
        PreviewUnassignLicensesRequest, PreviewUnassignLicensesResponse, PreviewWarningCode,
        licensing_service_client::LicensingServiceClient, preview_unassign_licenses_request as previewed,
        unassign_licenses_request::Scope,
    },
};

/// Shows the customers that an unassignment would affect now, and changes nothing.
#[derive(Debug, Args)]
#[command(after_help = PREVIEW_AFTER_HELP)]
pub(super) struct PreviewCommand {
    #[command(flatten)]
    scope: ScopeArguments,

    /// The services whose licences would be taken away; `license-gateway services` lists them
    #[arg(long, short, required = true, num_args = 1.., value_name = "NAME")]
    service: Vec<String>,

    /// How many calls to Central may be spent on counting devices, 100 devices a call; 0: they are not counted
    #[arg(long, default_value_t = DEVICE_CALLS, value_parser = clap::value_parser!(u32).range(0..=100), value_name = "N")]
    device_calls: u32,

    /// Print one JSON object, whether it worked or not
    #[arg(long)]
    json: bool,

    /// How long to wait for the answer; sent to the gateway as the deadline
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    timeout: Duration,

    #[command(flatten)]
    gateway: Gateway,
}

/// A thousand devices: few enough calls for a preview.
pub(super) const DEVICE_CALLS: u32 = 10;

const PREVIEW_AFTER_HELP: &str = "\
Costs calls of Central's quota: one for every 100 customers of the account, one about automatic licensing, and at most
--device-calls: what devices do not need of them is spent on automatic licensing of further customers.

The etag stands for exactly this scope, these services and these customers: give it to `unassign --etag`, which then
fails, and changes nothing, if the customers are others by then.

Exit codes: 0 done, 1 failed, 64 the command line is wrong.

Keys of --json, all always there unless said otherwise:
  ok, scope, services, customer_count, customers [{id, name}] (the first 100 by name), unknown_customer_ids, etag,
  resolved_at, devices {device_count, customers_seen, is_complete} (null: not counted), auto_licensing {customer_count,
  customer_ids, customers_seen, is_complete}, warnings [{code, text}],
  call_count; or, where it failed, those of `unassign --json`
  Codes of warnings: MSP_DEVICES_IN_REACH, AUTO_LICENSING, QUOTA_MAY_SHRINK, UNUSUAL_CUSTOMER_ID,
    UNKNOWN_CUSTOMER_EXCLUDED, DEVICES_NOT_COUNTED; there may be more one day

Examples:
  license-gateway preview --all --service advanced_ap
  license-gateway preview --exclude-from keep.txt --service advanced_ap foundation_ap --device-calls 0 --json";

impl PreviewCommand {
    pub(super) async fn run(self) -> Exit {
        let scope = match self.scope.read() {
            Ok(scope) => scope,
            Err(message) => {
                print::error(&message);
                return Exit::Usage;
            }
        };
        match fetch(&self.gateway, scope, self.service, self.device_calls, self.timeout).await {
            Ok(report) => {
                if self.json {
                    print::json(&report);
                } else {
                    print::out(&format!("{}\n{ADVICE}", report.text()));
                }
                Exit::Clean
            }
            Err(error) => error.print(self.json),
        }
    }
}

const ADVICE: &str = "Nothing was changed. With `unassign --etag` and this etag, no other customer is affected.";

/// Asks a gateway which customers this would affect now.
pub(super) async fn fetch(
    gateway: &Gateway,
    scope: Scope,
    services: Vec<String>,
    max_device_calls: u32,
    timeout: Duration,
) -> Result<PreviewReport, CallError> {
    let channel = gateway.connect(timeout).await?;
    let mut request = Request::new(request(scope, services, max_device_calls));
    request.set_timeout(timeout);
    let mut client = LicensingServiceClient::new(channel);
    // A preview changes nothing, however it ends.
    let failure = tokio::select! {
        answer = tokio::time::timeout(timeout, client.preview_unassign_licenses(request)) => match answer {
            Ok(Ok(response)) => return Ok(PreviewReport::of(response.into_inner())),
            Ok(Err(status)) => FailedCall::of_status(&status, Outcome::NotApplied),
            Err(_) => FailedCall::timed_out(Outcome::NotApplied),
        },
        Ok(()) = tokio::signal::ctrl_c() => FailedCall::interrupted(Outcome::NotApplied),
    };
    Err(failure.into())
}

/// The preview of an unassignment.
pub(super) fn request(scope: Scope, services: Vec<String>, max_device_calls: u32) -> PreviewUnassignLicensesRequest {
    let scope = match scope {
        Scope::IncludeCustomers(list) => previewed::Scope::IncludeCustomers(list),
        Scope::ExcludeCustomers(list) => previewed::Scope::ExcludeCustomers(list),
        Scope::AllCustomers(all) => previewed::Scope::AllCustomers(all),
    };
    PreviewUnassignLicensesRequest { scope: Some(scope), services, max_device_calls }
}

/// What the command says of an answer.
pub fn preview_text(answer: PreviewUnassignLicensesResponse) -> String {
    PreviewReport::of(answer).text()
}

/// What was seen. Serialized, it is the `--json` output, whose keys are stable.
#[derive(Debug, Serialize)]
pub(super) struct PreviewReport {
    ok: bool,
    scope: &'static str,
    services: Vec<String>,
    pub(super) customer_count: u32,
    customers: Vec<CustomerJson>,
    unknown_customer_ids: Vec<String>,
    pub(super) etag: String,
    /// RFC 3339, UTC.
    resolved_at: Option<String>,
    devices: Option<Devices>,
    auto_licensing: Option<Automatic>,
    warnings: Vec<Warning>,
    call_count: u32,
}

#[derive(Debug, Serialize)]
pub(super) struct CustomerJson {
    pub(super) id: String,
    pub(super) name: String,
}

#[derive(Debug, Serialize)]
struct Devices {
    device_count: u64,
    customers_seen: u32,
    is_complete: bool,
}

#[derive(Debug, Serialize)]
struct Automatic {
    customer_count: u32,
    customer_ids: Vec<String>,
    customers_seen: u32,
    is_complete: bool,
}

#[derive(Debug, Serialize)]
struct Warning {
    code: String,
    text: String,
}

impl PreviewReport {
    pub(super) fn of(response: PreviewUnassignLicensesResponse) -> Self {
        let code = |code: PreviewWarningCode| code.as_str_name().trim_start_matches("PREVIEW_WARNING_CODE_").to_owned();
        let warnings = response.warnings.iter();
        Self {
            ok: true,
            scope: scope::kind(response.scope()),
            warnings: warnings.map(|one| Warning { code: code(one.code()), text: one.text.clone() }).collect(),
            services: response.services,
            customer_count: response.customer_count,
            customers: response.customers.into_iter().map(|one| CustomerJson { id: one.id, name: one.name }).collect(),
            unknown_customer_ids: response.unknown_customer_ids,
            etag: response.etag,
            resolved_at: response.resolved_at.and_then(time),
            devices: response.devices.map(|count| Devices {
                device_count: count.device_count,
                customers_seen: count.customers_seen,
                is_complete: count.is_complete,
            }),
            auto_licensing: response.auto_licensing.map(|seen| Automatic {
                customer_count: seen.customer_count,
                customer_ids: seen.customer_ids,
                customers_seen: seen.customers_seen,
                is_complete: seen.is_complete,
            }),
            call_count: response.call_count,
        }
    }

    pub(super) fn text(&self) -> String {
        let devices = match &self.devices {
            None => "not counted".to_owned(),
            Some(devices) if devices.is_complete => devices.device_count.to_string(),
            Some(devices) => format!(
                "at least {} (of {} customers seen; not all were counted)",
                devices.device_count, devices.customers_seen
            ),
        };
        let mut rows = vec![
            ("scope", self.scope.to_owned()),
            ("services", self.services.join(", ")),
            ("customers", self.customer_count.to_string()),
            ("devices", devices),
        ];
        if !self.unknown_customer_ids.is_empty() {
            rows.push(("unknown to Central", self.unknown_customer_ids.join(", ")));
        }
        rows.extend(self.resolved_at.clone().map(|at| ("as of", at)));
        rows.push(("calls to Central", self.call_count.to_string()));
        rows.push(("etag", self.etag.clone()));

        let customers: Vec<_> = self.customers.iter().map(|one| [one.id.clone(), one.name.clone()]).collect();
        let mut parts = vec![format!("{HEADING}This would affect:{HEADING:#}\n"), print::list(&rows)];
        if !customers.is_empty() {
            let more = self.customer_count as usize - customers.len().min(self.customer_count as usize);
            let more = if more > 0 { format!("  and {more} more\n") } else { String::new() };
            parts.push(print::table(["CUSTOMER", "NAME"], &customers) + &more);
        }
        if !self.warnings.is_empty() {
            let lines = self.warnings.iter().map(|one| format!("{UNSURE}Mind:{UNSURE:#} {}", print::clean(&one.text)));
            parts.push(print::lines(lines));
        }
        parts.join("\n")
    }
}
