//! `services`: what Central accepts as services.

use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tonic::Request;

use super::{
    Exit,
    client::Gateway,
    failure::{CallError, FailedCall},
    print,
};
use crate::{
    license::Outcome,
    proto::{ListServicesRequest, licensing_service_client::LicensingServiceClient},
};

/// Lists the services whose licences can be taken away.
#[derive(Debug, Args)]
#[command(after_help = SERVICES_AFTER_HELP)]
pub(super) struct ServicesCommand {
    /// Print one JSON object, whether it worked or not
    #[arg(long)]
    json: bool,

    /// How long to wait for the answer; sent to the gateway as the deadline
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    timeout: Duration,

    #[command(flatten)]
    gateway: Gateway,
}

const SERVICES_AFTER_HELP: &str = "\
The gateway keeps the list and asks Central for it at most once an hour.

Exit codes: 0 done, 1 failed, 64 the command line is wrong.

Keys of --json: ok, services, fetched_at; or, where it failed, those of `unassign --json`.

Example:
  license-gateway services --address https://gateway.example.com";

/// Success. Serialized, it is the `--json` output, whose keys are stable.
#[derive(Serialize)]
struct ServiceListJson {
    ok: bool,
    services: Vec<String>,
    /// When Central gave the list: RFC 3339, UTC.
    fetched_at: Option<String>,
}

impl ServicesCommand {
    pub(super) async fn run(self) -> Exit {
        match self.list().await {
            Ok(list) => {
                self.print(&list);
                Exit::Clean
            }
            Err(error) => error.print(self.json),
        }
    }

    /// Reading changes nothing.
    async fn list(&self) -> Result<ServiceListJson, CallError> {
        let mut client = LicensingServiceClient::new(self.gateway.connect(self.timeout).await?);
        let mut request = Request::new(ListServicesRequest {});
        request.set_timeout(self.timeout);
        let list = client.list_services(request).await;
        let list = list.map_err(|status| FailedCall::of_status(&status, Outcome::NotApplied))?.into_inner();
        Ok(ServiceListJson {
            ok: true,
            services: list.services.into_iter().map(|service| service.name).collect(),
            fetched_at: list.fetched_at.and_then(time),
        })
    }

    fn print(&self, list: &ServiceListJson) {
        if self.json {
            return print::json(list);
        }
        let rows: Vec<_> = list.services.iter().map(|name| [name.clone()]).collect();
        let fetched_at = list.fetched_at.as_deref().unwrap_or("an unknown time");
        print::out(&format!(
            "{}\n{} service(s), as Central listed them at {fetched_at}",
            print::table(["SERVICE"], &rows),
            rows.len()
        ));
    }
}

pub(super) fn time(timestamp: prost_types::Timestamp) -> Option<String> {
    jiff::Timestamp::new(timestamp.seconds, timestamp.nanos).ok().map(|time| format!("{time:.0}"))
}
