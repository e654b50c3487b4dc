//! `health`: one health check, for a container without a shell.

use std::time::Duration;

use clap::Args;
use tonic::{Code, Request};

use super::{
    Exit,
    client::{ConnectError, Gateway},
    print,
};
use crate::proto::health::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

/// Asks a running gateway whether it is serving.
#[derive(Debug, Args)]
#[command(after_help = HEALTH_AFTER_HELP)]
pub(super) struct Health {
    /// The gRPC service to ask for, such as `central.licensing.v1.LicensingService`; empty: the gateway as a whole
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME")]
    service: String,

    /// How long to wait for the answer
    #[arg(long, default_value = "3s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    timeout: Duration,

    #[command(flatten)]
    gateway: Gateway,
}

const HEALTH_AFTER_HELP: &str = "\
Exit codes: 0 if it is serving, else 1.

Example, in a Dockerfile:
  HEALTHCHECK CMD [\"/license-gateway\", \"health\"]";

impl Health {
    pub(super) async fn run(self) -> Exit {
        let (word, exit) = match tokio::time::timeout(self.timeout, self.check()).await {
            Ok(Ok(ServingStatus::Serving)) => ("SERVING".to_owned(), Exit::Clean),
            Ok(Ok(status)) => (status.as_str_name().to_owned(), Exit::Failure),
            Ok(Err(ConnectError::Usage(message))) => {
                print::error(&message);
                return Exit::Usage;
            }
            Ok(Err(ConnectError::Failed(message))) => (message, Exit::Failure),
            Err(_) => (format!("no answer within {}", humantime::format_duration(self.timeout)), Exit::Failure),
        };
        let word = print::clean(&word);
        if exit == Exit::Clean {
            print::out(&word);
        } else {
            print::err(&word);
        }
        exit
    }

    async fn check(&self) -> Result<ServingStatus, ConnectError> {
        let channel = self.gateway.connect(self.timeout).await?;
        let request = Request::new(HealthCheckRequest { service: self.service.clone() });
        match HealthClient::new(channel).check(request).await {
            Ok(response) => Ok(response.into_inner().status()),
            Err(status) if status.code() == Code::NotFound => Ok(ServingStatus::ServiceUnknown),
            Err(status) => Err(ConnectError::Failed(format!("no answer: {}", status.message()))),
        }
    }
}
