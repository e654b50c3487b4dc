//! `unassign`: one call of `UnassignLicenses`, and what became of it.

use std::{
    fs,
    io::{self, BufRead, IsTerminal as _, Read as _, Write},
    time::Duration,
};

use clap::Args;
use serde::Serialize;
use tonic::Request;

use super::{
    Exit,
    client::{ConnectError, Gateway},
    failure::Failure,
    print::{self, GOOD},
};
use crate::{
    license::Outcome,
    proto::{
        AllCustomers, CustomerList, ScopeKind, UnassignLicensesRequest, UnassignLicensesResponse,
        licensing_service_client::LicensingServiceClient, unassign_licenses_request::Scope,
    },
};

/// Takes licences away from customers, through a running gateway.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Unassign {
    #[command(flatten)]
    scope: ScopeArguments,

    /// The services whose licences are taken away; `license-gateway services` lists them
    #[arg(long, short, required = true, num_args = 1.., value_name = "NAME")]
    service: Vec<String>,

    /// Why: a ticket number, say. It is logged
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    reason: String,

    /// Do not ask before a scope that may hit everyone
    #[arg(long)]
    yes: bool,

    /// Print one JSON object, whether it worked or not
    #[arg(long)]
    json: bool,

    /// How long to wait for the answer; the gateway is told
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    timeout: Duration,

    #[command(flatten)]
    gateway: Gateway,
}

/// Whose licences are taken away: exactly one of these.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct ScopeArguments {
    /// Exactly these customers, by Central's customer id
    #[arg(long, num_args = 1.., value_name = "ID")]
    include: Vec<String>,

    /// As --include, from a file: one id a line, blank lines and lines that begin with # left out; - is standard input
    #[arg(long, value_name = "FILE")]
    include_from: Option<String>,

    /// Every customer and the MSP's own devices, except these customers
    #[arg(long, num_args = 1.., value_name = "ID")]
    exclude: Vec<String>,

    /// As --exclude, from a file
    #[arg(long, value_name = "FILE")]
    exclude_from: Option<String>,

    /// Every customer
    #[arg(long)]
    all: bool,
}

const AFTER_HELP: &str = "\
--exclude and --exclude-from and --all hit whoever is a customer when Central acts. The gateway refuses them unless
central.allow_open_scopes is set; this command asks before it sends them.

Exit codes:
  0   applied: Central accepted it
  2   not applied: nothing was changed
  3   unknown or partial: look at Central before you repeat it
  64  the command line is wrong; nothing was sent

Keys of --json, all always there unless said otherwise:
  ok, outcome (applied, not_applied, partial, unknown), operation_id
  if ok: scope, customer_count (null for open scopes), services, call_count
  if not: code, reason, message, http_status, retry {allowed, after_seconds}, field_violations [{field, description}],
    quota_violations [{subject, description}], partial {applied_customer_ids, not_applied_customer_ids,
    unknown_customer_ids}; null where there is none
  Reasons of this command itself: GATEWAY_UNREACHABLE, CONNECTION_LOST, CLIENT_TIMEOUT, INTERRUPTED, DECLINED

Examples:
  license-gateway unassign --include 0123456789abcdef0123456789abcdef --service advanced_ap --reason TICKET-42
  license-gateway unassign --include-from customers.txt --service advanced_ap foundation_ap --json
  license-gateway unassign --all --service advanced_ap --yes";

impl Unassign {
    pub(super) async fn run(self) -> Exit {
        let scope = match self.scope.read() {
            Ok(scope) => scope,
            Err(message) => return usage(&message),
        };
        if let Some(question) = question(&scope, &self.service)
            && !self.yes
        {
            if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
                return usage("this may hit everyone, and nobody is there to ask; add --yes if that is meant");
            }
            if !confirmed(&question, &mut io::stdin().lock(), &mut anstream::stderr()) {
                return self.failed(&Failure::declined());
            }
        }
        let request =
            UnassignLicensesRequest { scope: Some(scope), services: self.service.clone(), reason: self.reason.clone() };
        match self.call(request).await {
            Ok(response) => {
                let done = Done::of(response);
                if self.json {
                    print::json(&done);
                } else {
                    print::out(&done.text());
                }
                Exit::Clean
            }
            Err(CallError::Usage(message)) => usage(&message),
            Err(CallError::Failed(failure)) => self.failed(&failure),
        }
    }

    async fn call(&self, message: UnassignLicensesRequest) -> Result<UnassignLicensesResponse, CallError> {
        let channel = self.gateway.connect(self.timeout).await.map_err(|error| match error {
            ConnectError::Usage(message) => CallError::Usage(message),
            ConnectError::Failed(message) => CallError::Failed(Box::new(Failure::not_connected(message))),
        })?;
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        let mut client = LicensingServiceClient::new(channel);
        let failure = tokio::select! {
            answer = tokio::time::timeout(self.timeout, client.unassign_licenses(request)) => match answer {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => Failure::of_status(&status, Outcome::Unknown),
                Err(_) => Failure::timed_out(Outcome::Unknown),
            },
            // The gateway finishes what it has begun: leaving does not undo it.
            Ok(()) = tokio::signal::ctrl_c() => Failure::interrupted(Outcome::Unknown),
        };
        Err(CallError::Failed(Box::new(failure)))
    }

    fn failed(&self, failure: &Failure) -> Exit {
        failure.print(self.json);
        failure.exit()
    }
}

enum CallError {
    Usage(String),
    Failed(Box<Failure>),
}

impl ScopeArguments {
    /// The scope, with its file read. What the ids are worth is for the gateway to judge, but a file without any is
    /// most likely the wrong file.
    fn read(&self) -> Result<Scope, String> {
        if self.all {
            return Ok(Scope::AllCustomers(AllCustomers {}));
        }
        if let Some(file) = &self.include_from {
            return Ok(Scope::IncludeCustomers(CustomerList { customer_ids: read_ids(file)? }));
        }
        if let Some(file) = &self.exclude_from {
            return Ok(Scope::ExcludeCustomers(CustomerList { customer_ids: read_ids(file)? }));
        }
        if self.exclude.is_empty() {
            return Ok(Scope::IncludeCustomers(CustomerList { customer_ids: self.include.clone() }));
        }
        Ok(Scope::ExcludeCustomers(CustomerList { customer_ids: self.exclude.clone() }))
    }
}

fn read_ids(file: &str) -> Result<Vec<String>, String> {
    let (name, text) = if file == "-" {
        let mut text = String::new();
        ("standard input", io::stdin().read_to_string(&mut text).map(|_| text))
    } else {
        (file, fs::read_to_string(file))
    };
    let text = text.map_err(|error| format!("cannot read the customer ids from {name}: {error}"))?;
    let ids = ids(&text);
    if ids.is_empty() {
        return Err(format!("{name} holds no customer id, one a line; an empty list never means everyone"));
    }
    Ok(ids)
}

/// One id a line. Blanks around it go, because editors leave them; so does the mark that some put before the first.
fn ids(text: &str) -> Vec<String> {
    let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
}

/// What to ask before an open scope.
fn question(scope: &Scope, services: &[String]) -> Option<String> {
    let whom = match scope {
        Scope::IncludeCustomers(_) => return None,
        Scope::ExcludeCustomers(list) => format!(
            "EVERY customer of the account and the MSP's own devices, except {} customer(s)",
            list.customer_ids.len()
        ),
        Scope::AllCustomers(_) => "EVERY customer of the account, and perhaps the MSP's own devices".to_owned(),
    };
    Some(format!("This takes the licences of {} away from {whom}.\nType everyone to go on: ", services.join(", ")))
}

fn confirmed(question: &str, input: &mut impl BufRead, output: &mut impl Write) -> bool {
    let mut answer = String::new();
    let asked = write!(output, "{question}").and_then(|()| output.flush());
    asked.and_then(|()| input.read_line(&mut answer)).is_ok() && answer.trim() == "everyone"
}

fn usage(message: &str) -> Exit {
    print::error(&format!("{message}\nNothing was sent."));
    Exit::Usage
}

/// Success. Serialized, it is the `--json` output, whose keys are stable.
#[derive(Serialize)]
pub(super) struct Done {
    ok: bool,
    outcome: &'static str,
    operation_id: String,
    scope: &'static str,
    customer_count: Option<u32>,
    services: Vec<String>,
    call_count: u32,
}

impl Done {
    pub(super) fn of(response: UnassignLicensesResponse) -> Self {
        Self {
            ok: true,
            outcome: Outcome::Applied.as_str(),
            scope: match response.scope() {
                ScopeKind::IncludeCustomers => "include_customers",
                ScopeKind::ExcludeCustomers => "exclude_customers",
                ScopeKind::AllCustomers => "all_customers",
                ScopeKind::Unspecified => "unspecified",
            },
            operation_id: response.operation_id,
            customer_count: response.customer_count,
            services: response.services,
            call_count: response.call_count,
        }
    }

    pub(super) fn text(&self) -> String {
        let customers =
            self.customer_count.map_or_else(|| "not known: the scope is open".to_owned(), |count| count.to_string());
        let rows = [
            ("operation", self.operation_id.clone()),
            ("outcome", self.outcome.to_owned()),
            ("scope", self.scope.to_owned()),
            ("customers", customers),
            ("services", self.services.join(", ")),
            ("calls to Central", self.call_count.to_string()),
        ];
        format!(
            "{GOOD}Done: Central accepted it.{GOOD:#} It may still be working on it in the background.\n\n{}",
            print::list(&rows)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_files_may_have_blank_lines_comments_and_foreign_line_ends() {
        assert_eq!(ids("\u{feff}a\r\n\r\n# b\n  c  \n#\nd#1"), ["a", "c", "d#1"]);
        assert_eq!(ids("# none\n\n"), Vec::<String>::new());
    }

    #[test]
    fn open_scopes_are_confirmed_by_the_word_alone() {
        let question =
            question(&Scope::AllCustomers(AllCustomers {}), &["advanced_ap".to_owned()]).expect("it is open");
        for (answer, expected) in
            [("everyone\n", true), ("y\n", false), ("", false), ("\n", false), ("Everyone\n", false)]
        {
            let mut asked = Vec::new();
            assert_eq!(confirmed(&question, &mut answer.as_bytes(), &mut asked), expected, "{answer:?}");
            assert_eq!(String::from_utf8_lossy(&asked), question);
        }
    }

    #[test]
    fn closed_scopes_are_not_questioned() {
        let scope = Scope::IncludeCustomers(CustomerList { customer_ids: vec!["a".to_owned()] });
        assert_eq!(question(&scope, &[]), None);
    }
}
