//! `unassign`: one call of `UnassignLicenses`, and what became of it.

use std::{
    io::{self, BufRead, IsTerminal as _, Write},
    time::Duration,
};

use clap::{Args, builder::NonEmptyStringValueParser};
use serde::Serialize;
use tonic::{Request, Status};

use super::{
    Exit,
    client::Gateway,
    failure::{CallError, FailedCall},
    preview::{self, DEVICE_CALLS},
    print::{self, GOOD},
    scope::{self, ScopeArguments},
    watch::{self, ReleaseReport},
};
use crate::{
    license::Outcome,
    proto::{
        AutoLicensingPolicy, UnassignLicensesRequest, UnassignLicensesResponse, WatchReleaseRequest,
        licensing_service_client::LicensingServiceClient, unassign_licenses_request::Scope,
    },
};

/// Takes licences away from customers, through a running gateway.
#[derive(Debug, Args)]
#[command(after_help = UNASSIGN_AFTER_HELP)]
pub(super) struct Unassign {
    #[command(flatten)]
    scope: ScopeArguments,

    /// The services whose licences are taken away; `license-gateway services` lists them
    #[arg(long, short, required = true, num_args = 1.., value_name = "NAME")]
    service: Vec<String>,

    /// Why: a ticket number, say. It is logged
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    reason: String,

    /// Do not ask before a scope that may affect every customer; it needs --expect or --etag then
    #[arg(long)]
    yes: bool,

    /// Preview first, and send only if exactly so many customers are in scope
    #[arg(long, value_name = "N")]
    expect: Option<u32>,

    /// The etag that a preview of the same scope and services gave: nothing is sent if the customers have changed
    #[arg(long, value_parser = NonEmptyStringValueParser::new(), value_name = "ETAG")]
    etag: Option<String>,

    /// A UUID of your own choice that makes the request safe to repeat: with it, it acts once within 24 hours
    #[arg(long, value_parser = NonEmptyStringValueParser::new(), value_name = "UUID")]
    request_id: Option<String>,

    /// Refuse where Central assigns licences automatically to a customer in scope, and so would put them back
    #[arg(long)]
    refuse_auto_licensing: bool,

    /// Afterwards, watch until the licences are really gone, for so long at most; 10m if nothing is said
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "10m", value_name = "DURATION")]
    #[arg(value_parser = humantime::parse_duration)]
    wait: Option<Duration>,

    /// Print one JSON object, whether it worked or not
    #[arg(long)]
    json: bool,

    /// How long to wait for the answer; sent to the gateway as the deadline
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    timeout: Duration,

    #[command(flatten)]
    gateway: Gateway,
}

const UNASSIGN_AFTER_HELP: &str = "\
--exclude and --exclude-from and --all affect whatever customers there are when Central acts. The gateway refuses them
unless central.allow_open_scopes is set, and without the etag of a preview. So this command previews first, shows the
customers that it would affect, asks for their number, and sends the etag: if they are others by then, nothing is
changed. Where nobody can be asked, --yes goes on by itself, with --expect (the number that there must be) or --etag (of
an earlier preview).

Exit codes:
  0   applied: Central accepted it
  2   not applied: nothing was changed; so too where others are in scope than --expect or --etag say
  3   unknown or partial: check Central before you repeat it
  4   applied, but with --wait the licences were not seen to be gone
  64  the command line is wrong; nothing was sent

Keys of --json, all always there unless said otherwise:
  ok, outcome (applied, not_applied, partial, unknown), operation_id
  if ok: scope, customer_count (null for open scopes), resolved_customer_count (null without an etag), services,
    call_count, replayed (it is the recorded answer of an earlier request with this --request-id), release (as `watch --json` has it, or what its failure was; null without --wait)
  if not: code, reason, message, http_status, retry {allowed, after_seconds}, field_violations [{field, description}],
    quota_violations [{subject, description}], partial {applied_customer_ids, not_applied_customer_ids,
    unknown_customer_ids}; null where there is none
  Reasons of this command itself: GATEWAY_UNREACHABLE, CONNECTION_LOST, CLIENT_TIMEOUT, INTERRUPTED, DECLINED,
    COUNT_MISMATCH

Examples:
  license-gateway unassign --include 0123456789abcdef0123456789abcdef --service advanced_ap --reason TICKET-42
  license-gateway unassign --include-from customers.txt --service advanced_ap foundation_ap --json
  license-gateway unassign --all --service advanced_ap --yes --expect 12
  license-gateway unassign --include 0123456789abcdef0123456789abcdef --service advanced_ap --wait=5m
  license-gateway unassign --include-from customers.txt --service advanced_ap --request-id $(uuidgen)";

impl Unassign {
    pub(super) async fn run(self) -> Exit {
        let scope = match self.scope.read() {
            Ok(scope) => scope,
            Err(message) => return usage(&message),
        };
        let is_open = !matches!(scope, Scope::IncludeCustomers(_));
        let asks = is_open && !self.yes;
        let somebody_is_there = io::stdin().is_terminal() && io::stderr().is_terminal();
        if asks && (!somebody_is_there || self.scope.reads_standard_input()) {
            return usage(
                "this may affect every customer, and nobody is there to ask; run `license-gateway preview` first, then add \
                 --yes, and --expect or --etag",
            );
        }
        if is_open && self.yes && self.expect.is_none() && self.etag.is_none() {
            return usage(
                "--yes for what may affect every customer needs --expect with the number of customers, or --etag",
            );
        }
        let etag = if asks || self.expect.is_some() {
            match self.preview(scope.clone(), asks).await {
                Ok(etag) => etag,
                Err(CallError::Usage(message)) => return usage(&message),
                Err(CallError::Failed(failure)) => return self.failed(&failure),
            }
        } else {
            self.etag.clone().unwrap_or_default()
        };
        let request = UnassignLicensesRequest {
            scope: Some(scope.clone()),
            services: self.service.clone(),
            reason: self.reason.clone(),
            etag,
            auto_licensing: self.auto_licensing().into(),
            request_id: self.request_id.clone().unwrap_or_default(),
        };
        let watched = watch::request(scope, self.service.clone());
        match self.call(request).await {
            Ok(response) => self.done(Done::of(response), watched).await,
            Err(CallError::Usage(message)) => usage(&message),
            Err(CallError::Failed(failure)) => self.failed(&failure),
        }
    }

    /// Tells of what was done, and waits for it to be seen where that is wanted.
    async fn done(&self, mut done: Done, watched: WatchReleaseRequest) -> Exit {
        if !self.json {
            print::out(&done.text());
        }
        let Some(limit) = self.wait else {
            if self.json {
                print::json(&done);
            }
            return Exit::Clean;
        };
        let seen = watch::follow(&self.gateway, watched, limit).await;
        let exit = seen.as_ref().map_or(Exit::NotReleased, ReleaseReport::exit);
        if self.json {
            let seen = match &seen {
                Ok(report) => serde_json::to_value(report),
                Err(CallError::Failed(failure)) => serde_json::to_value(failure),
                Err(CallError::Usage(message)) => Ok(message.as_str().into()),
            };
            done.release = seen.ok();
            print::json(&done);
            return exit;
        }
        match seen {
            Ok(report) => print::out(&format!("\n{}", report.text())),
            Err(CallError::Failed(failure)) => failure.print(false),
            Err(CallError::Usage(message)) => print::error(&message),
        }
        exit
    }

    fn auto_licensing(&self) -> AutoLicensingPolicy {
        if self.refuse_auto_licensing { AutoLicensingPolicy::Refuse } else { AutoLicensingPolicy::Unspecified }
    }

    /// Previews it, and checks that its customers are meant: the etag to send.
    async fn preview(&self, scope: Scope, asks: bool) -> Result<String, CallError> {
        // Devices are counted for people only.
        let device_calls = if asks { DEVICE_CALLS } else { 0 };
        let report = preview::fetch(&self.gateway, scope, self.service.clone(), device_calls, self.timeout).await?;
        if let Some(expected) = self.expect
            && expected != report.customer_count
        {
            return Err(FailedCall::unexpected_count(expected, report.customer_count).into());
        }
        if asks {
            print::err(&report.text());
            if !confirmed(report.customer_count, &mut io::stdin().lock(), &mut anstream::stderr()) {
                return Err(FailedCall::declined().into());
            }
        }
        Ok(self.etag.clone().unwrap_or(report.etag))
    }

    async fn call(&self, message: UnassignLicensesRequest) -> Result<UnassignLicensesResponse, CallError> {
        let channel = self.gateway.connect(self.timeout).await?;
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        let mut client = LicensingServiceClient::new(channel);
        let failure = tokio::select! {
            answer = tokio::time::timeout(self.timeout, client.unassign_licenses(request)) => match answer {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => FailedCall::of_status(&status, Outcome::Unknown),
                Err(_) => FailedCall::timed_out(Outcome::Unknown),
            },
            // The gateway finishes what it has begun: leaving does not undo it.
            Ok(()) = tokio::signal::ctrl_c() => FailedCall::interrupted(Outcome::Unknown),
        };
        Err(failure.into())
    }

    fn failed(&self, failure: &FailedCall) -> Exit {
        failure.print(self.json);
        failure.exit()
    }
}

/// Asks for the number, so that nobody says yes to what they have not read.
fn confirmed(count: u32, input: &mut impl BufRead, output: &mut impl Write) -> bool {
    let mut answer = String::new();
    let asked = write!(output, "\nType the number of customers to go on: ").and_then(|()| output.flush());
    asked.and_then(|()| input.read_line(&mut answer)).is_ok() && answer.trim() == count.to_string()
}

fn usage(message: &str) -> Exit {
    print::error(&format!("{message}\nNothing was sent."));
    Exit::Usage
}

/// What the command says of an answer.
pub fn answer_text(answer: Result<UnassignLicensesResponse, Status>) -> String {
    match answer {
        Ok(response) => Done::of(response).text(),
        Err(status) => FailedCall::of_status(&status, Outcome::Unknown).text(),
    }
}

/// Success. Serialized, it is the `--json` output, whose keys are stable.
#[derive(Serialize)]
pub(super) struct Done {
    ok: bool,
    outcome: &'static str,
    operation_id: String,
    scope: &'static str,
    customer_count: Option<u32>,
    resolved_customer_count: Option<u32>,
    services: Vec<String>,
    call_count: u32,
    replayed: bool,
    release: Option<serde_json::Value>,
}

impl Done {
    pub(super) fn of(response: UnassignLicensesResponse) -> Self {
        Self {
            ok: true,
            outcome: Outcome::Applied.as_str(),
            scope: scope::kind(response.scope()),
            operation_id: response.operation_id,
            customer_count: response.customer_count,
            resolved_customer_count: response.resolved_customer_count,
            services: response.services,
            call_count: response.call_count,
            replayed: response.replayed,
            release: None,
        }
    }

    pub(super) fn text(&self) -> String {
        let customers = match (self.customer_count, self.resolved_customer_count) {
            (Some(count), _) => count.to_string(),
            (None, Some(count)) => format!("{count}, as previewed"),
            (None, None) => "not known: the scope is open".to_owned(),
        };
        let rows = [
            ("operation", self.operation_id.clone()),
            ("outcome", self.outcome.to_owned()),
            ("scope", self.scope.to_owned()),
            ("customers", customers),
            ("services", self.services.join(", ")),
            ("calls to Central", self.call_count.to_string()),
        ];
        let head = if self.replayed {
            format!("{GOOD}Done before:{GOOD:#} this is the recorded answer, and nothing was sent.")
        } else {
            format!("{GOOD}Done: Central accepted it.{GOOD:#} It may still be working on it in the background.")
        };
        format!("{head}\n\n{}", print::list(&rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_number_goes_on() {
        for (answer, expected) in [
            ("12\n", true),
            (" 12 \r\n", true),
            ("y\n", false),
            ("yes\n", false),
            ("everyone\n", false),
            ("", false),
            ("\n", false),
            ("1\n", false),
            ("012\n", false),
            ("12.0\n", false),
            ("120\n", false),
        ] {
            let mut asked = Vec::new();
            assert_eq!(confirmed(12, &mut answer.as_bytes(), &mut asked), expected, "{answer:?}");
            assert!(!String::from_utf8_lossy(&asked).contains("12"), "the number is to be read above");
        }
    }
}
