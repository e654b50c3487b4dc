//! `customers`: the account's customers, for `--include` and its like.

use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tonic::Request;

use super::{
    Exit,
    client::Gateway,
    failure::{CallError, FailedCall},
    preview::CustomerJson,
    print,
    services::time,
};
use crate::{
    license::Outcome,
    proto::{ListCustomersRequest, licensing_service_client::LicensingServiceClient},
};

/// Lists the customers of the account that you may work on.
#[derive(Debug, Args)]
#[command(after_help = CUSTOMERS_AFTER_HELP)]
pub(super) struct CustomersCommand {
    /// Only customers whose name contains this, whatever the case
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    name: String,

    /// Print one JSON object, whether it worked or not
    #[arg(long)]
    json: bool,

    /// How long to wait for each page; sent to the gateway as the deadline
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    timeout: Duration,

    #[command(flatten)]
    gateway: Gateway,
}

const CUSTOMERS_AFTER_HELP: &str = "\
The gateway keeps the list, and asks Central for it when it is older than five minutes.

Exit codes: 0 done, 1 failed, 64 the command line is wrong.

Keys of --json: ok, customers [{id, name}], fetched_at; or, where it failed, those of `unassign --json`.

Examples:
  license-gateway customers --name hotel
  license-gateway customers --name hotel --json | jq -r '.customers[].id' > customers.txt";

/// As much as the gateway gives at once.
const PAGE_OF_CUSTOMERS: u32 = 500;

/// Success. Serialized, it is the `--json` output, whose keys are stable.
#[derive(Serialize)]
struct CustomerListJson {
    ok: bool,
    customers: Vec<CustomerJson>,
    /// When Central gave the list: RFC 3339, UTC.
    fetched_at: Option<String>,
}

impl CustomersCommand {
    pub(super) async fn run(self) -> Exit {
        match self.list().await {
            Ok(list) => {
                self.print(&list);
                Exit::Clean
            }
            Err(error) => error.print(self.json),
        }
    }

    /// All pages. Reading changes nothing.
    async fn list(&self) -> Result<CustomerListJson, CallError> {
        let mut client = LicensingServiceClient::new(self.gateway.connect(self.timeout).await?);
        let mut list = CustomerListJson { ok: true, customers: Vec::new(), fetched_at: None };
        let mut page_token = String::new();
        loop {
            let mut request = Request::new(ListCustomersRequest {
                page_size: PAGE_OF_CUSTOMERS,
                page_token,
                name_contains: self.name.clone(),
            });
            request.set_timeout(self.timeout);
            let page = client.list_customers(request).await;
            let page = page.map_err(|status| FailedCall::of_status(&status, Outcome::NotApplied))?.into_inner();
            list.customers.extend(page.customers.into_iter().map(|one| CustomerJson { id: one.id, name: one.name }));
            list.fetched_at = page.fetched_at.and_then(time);
            if page.next_page_token.is_empty() {
                return Ok(list);
            }
            page_token = page.next_page_token;
        }
    }

    fn print(&self, list: &CustomerListJson) {
        if self.json {
            return print::json(list);
        }
        let rows: Vec<_> = list.customers.iter().map(|one| [one.id.clone(), one.name.clone()]).collect();
        let fetched_at = list.fetched_at.as_deref().unwrap_or("an unknown time");
        print::out(&format!(
            "{}\n{} customer(s), as Central listed them at {fetched_at}",
            print::table(["CUSTOMER", "NAME"], &rows),
            rows.len()
        ));
    }
}
