//! `operations`: what became of your requests, by a list or by an id.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;
use tonic::{Request, Status, service::interceptor::InterceptedService, transport::Channel};

use super::{
    Exit,
    client::{Bearer, ConnectError, Gateway},
    failure::FailedCall,
    print, scope,
    services::time,
};
use crate::{
    license::Outcome,
    proto::{
        GetOperationRequest, ListOperationsRequest, Operation, OperationOutcome, get_operation_request::Id,
        licensing_service_client::LicensingServiceClient,
    },
};

/// Shows what became of your requests of the last 24 hours; reads nothing of Central.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, after_help = OPERATIONS_AFTER_HELP)]
pub(super) struct OperationsCommand {
    #[command(subcommand)]
    one: Option<One>,

    /// The most operations to list, the newest first
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    limit: u32,

    #[command(flatten)]
    asking: Asking,
}

#[derive(Debug, Subcommand)]
enum One {
    /// Show one operation, with the ids of its customers
    Show(Show),
}

#[derive(Debug, Args)]
struct Show {
    /// The operation's id
    #[arg(required_unless_present = "request_id", conflicts_with = "request_id", value_name = "OPERATION_ID")]
    operation_id: Option<String>,

    /// The id that the request was sent with: its last operation
    #[arg(long, value_name = "UUID")]
    request_id: Option<String>,

    #[command(flatten)]
    asking: Asking,
}

/// How it is asked for.
#[derive(Debug, Args)]
struct Asking {
    /// Print one JSON object, whether it worked or not
    #[arg(long)]
    json: bool,

    /// How long to wait for each answer; sent to the gateway as the deadline
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    timeout: Duration,

    #[command(flatten)]
    gateway: Gateway,
}

const OPERATIONS_AFTER_HELP: &str = "\
You see your own operations only. One that was refused before anything was sent is not among them.

Exit codes: 0 done, 1 failed, 64 the command line is wrong.

Keys of --json: ok, operations [{operation_id, request_id, state (RUNNING, DONE), outcome (applied, not_applied, partial,
  unknown; null while it runs), scope, services, customer_count, resolved_customer_count, call_count, reason,
  create_time, send_time, end_time, failure {reason, message, http_status} or null}]
  `show`: ok, operation, with applied_customer_ids, not_applied_customer_ids, unknown_customer_ids,
  excluded_customer_ids, customer_ids_omitted beside those; or, where it failed, those of `unassign --json`.

Examples:
  license-gateway operations
  license-gateway operations show 01a21408-280a-7466-b810-6fcfabaebe46
  license-gateway operations show --request-id 0f8fad5b-d9cb-469f-a165-70867728950e --json";

/// As much as the gateway gives at once.
const PAGE_OF_OPERATIONS: u32 = 500;

/// An operation in the `--json` output, whose keys are stable.
#[derive(Serialize)]
struct Told {
    operation_id: String,
    request_id: String,
    state: String,
    outcome: Option<String>,
    scope: &'static str,
    services: Vec<String>,
    customer_count: Option<u32>,
    resolved_customer_count: Option<u32>,
    call_count: u32,
    reason: String,
    create_time: Option<String>,
    send_time: Option<String>,
    end_time: Option<String>,
    failure: Option<Why>,
    #[serde(flatten)]
    ids: Option<OperationIds>,
}

#[derive(Serialize)]
struct Why {
    reason: String,
    message: String,
    http_status: Option<u32>,
}

#[derive(Serialize)]
struct OperationIds {
    #[serde(rename = "applied_customer_ids")]
    applied: Vec<String>,
    #[serde(rename = "not_applied_customer_ids")]
    not_applied: Vec<String>,
    #[serde(rename = "unknown_customer_ids")]
    unknown: Vec<String>,
    #[serde(rename = "excluded_customer_ids")]
    excluded: Vec<String>,
    customer_ids_omitted: bool,
}

#[derive(Serialize)]
struct ToldAll {
    ok: bool,
    operations: Vec<Told>,
}

#[derive(Serialize)]
struct ToldOne {
    ok: bool,
    operation: Told,
}

impl OperationsCommand {
    pub(super) async fn run(self) -> Exit {
        let asking = match &self.one {
            None => &self.asking,
            Some(One::Show(show)) => &show.asking,
        };
        let failure = match asking.gateway.connect(asking.timeout).await {
            Ok(channel) => match self.show(asking, LicensingServiceClient::new(channel)).await {
                Ok(()) => return Exit::Clean,
                // Reading changes nothing.
                Err(status) => FailedCall::of_status(&status, Outcome::NotApplied),
            },
            Err(ConnectError::Usage(message)) => {
                print::error(&message);
                return Exit::Usage;
            }
            Err(ConnectError::Failed(message)) => FailedCall::not_connected(message),
        };
        failure.print(asking.json);
        Exit::Failure
    }

    async fn show(
        &self,
        asking: &Asking,
        mut client: LicensingServiceClient<InterceptedService<Channel, Bearer>>,
    ) -> Result<(), Status> {
        let Some(One::Show(show)) = &self.one else {
            let operations = self.list(client).await?;
            if asking.json {
                print::json(&ToldAll { ok: true, operations });
            } else {
                print::out(&list_text(&operations));
            }
            return Ok(());
        };
        let id = match (&show.operation_id, &show.request_id) {
            (Some(id), _) => Id::OperationId(id.clone()),
            (None, id) => Id::RequestId(id.clone().unwrap_or_default()),
        };
        let request = asking.timed(GetOperationRequest { id: Some(id) });
        let operation = client.get_operation(request).await?.into_inner().operation.unwrap_or_default();
        let operation = Told::of(operation, true);
        if asking.json {
            print::json(&ToldOne { ok: true, operation });
        } else {
            print::out(&operation.text());
        }
        Ok(())
    }

    /// Pages, until there are enough or no more.
    async fn list(
        &self,
        mut client: LicensingServiceClient<InterceptedService<Channel, Bearer>>,
    ) -> Result<Vec<Told>, Status> {
        let (mut operations, mut page_token) = (Vec::new(), String::new());
        loop {
            let left = self.limit.saturating_sub(u32::try_from(operations.len()).unwrap_or(self.limit));
            let request =
                self.asking.timed(ListOperationsRequest { page_size: left.min(PAGE_OF_OPERATIONS), page_token });
            let page = client.list_operations(request).await?.into_inner();
            operations.extend(page.operations.into_iter().map(|one| Told::of(one, false)));
            if page.next_page_token.is_empty() || operations.len() >= self.limit as usize {
                return Ok(operations);
            }
            page_token = page.next_page_token;
        }
    }
}

impl Asking {
    fn timed<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        request
    }
}

impl Told {
    fn of(one: Operation, has_ids: bool) -> Self {
        let outcome = one.outcome().as_str_name().trim_start_matches("OPERATION_OUTCOME_").to_lowercase();
        Self {
            state: one.state().as_str_name().trim_start_matches("OPERATION_STATE_").to_owned(),
            outcome: (one.outcome() != OperationOutcome::Unspecified).then_some(outcome),
            scope: scope::kind(one.scope()),
            operation_id: one.operation_id,
            request_id: one.request_id,
            services: one.services,
            customer_count: one.customer_count,
            resolved_customer_count: one.resolved_customer_count,
            call_count: one.call_count,
            reason: one.reason,
            create_time: one.create_time.and_then(time),
            send_time: one.send_time.and_then(time),
            end_time: one.end_time.and_then(time),
            failure: one.failure.map(|why| Why {
                reason: why.reason,
                message: why.message,
                http_status: why.http_status,
            }),
            ids: has_ids.then_some(OperationIds {
                applied: one.applied_customer_ids,
                not_applied: one.not_applied_customer_ids,
                unknown: one.unknown_customer_ids,
                excluded: one.excluded_customer_ids,
                customer_ids_omitted: one.customer_ids_omitted,
            }),
        }
    }

    /// In one word, for a list.
    fn word(&self) -> String {
        self.outcome.clone().unwrap_or_else(|| "running".to_owned())
    }

    fn customers(&self) -> String {
        match (self.customer_count, self.scope) {
            (Some(count), "exclude_customers") => format!("all but {count}"),
            (Some(count), _) => count.to_string(),
            (None, _) => "all".to_owned(),
        }
    }

    fn text(&self) -> String {
        let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "not yet".to_owned());
        let mut rows = vec![
            ("operation", self.operation_id.clone()),
            ("request id", self.request_id.clone()),
            ("outcome", self.word()),
            ("scope", self.scope.to_owned()),
            ("customers", self.customers()),
            ("services", self.services.join(", ")),
            ("reason", self.reason.clone()),
            ("calls to Central", self.call_count.to_string()),
            ("accepted", or_none(&self.create_time)),
            ("sent", or_none(&self.send_time)),
            ("ended", or_none(&self.end_time)),
        ];
        if let Some(why) = &self.failure {
            rows.push(("failure", why.reason.clone()));
            rows.push(("message", why.message.clone()));
        }
        let mut parts = vec![print::list(&rows)];
        if let Some(ids) = &self.ids {
            let lists = [
                ("applied", &ids.applied),
                ("not applied", &ids.not_applied),
                ("unknown", &ids.unknown),
                ("spared", &ids.excluded),
            ];
            let all = lists.into_iter().flat_map(|(word, ids)| ids.iter().map(|id| [id.clone(), word.to_owned()]));
            let all: Vec<_> = all.collect();
            if !all.is_empty() {
                parts.push(print::table(["CUSTOMER", "OUTCOME"], &all));
            }
            if ids.customer_ids_omitted {
                parts.push("The ids of its customers were dropped; the audit trail has them.".to_owned());
            }
        }
        parts.join("\n")
    }
}

fn list_text(operations: &[Told]) -> String {
    let row = |one: &Told| {
        let when = one.create_time.clone().unwrap_or_default();
        [when, one.word(), one.customers(), one.services.join(","), one.operation_id.clone()]
    };
    let rows: Vec<_> = operations.iter().map(row).collect();
    let head = ["ACCEPTED", "OUTCOME", "CUSTOMERS", "SERVICES", "OPERATION"];
    format!("{}\n{} operation(s) of the last 24 hours", print::table(head, &rows), rows.len())
}
