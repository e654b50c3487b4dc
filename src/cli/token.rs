//! `token status` and `token seed`: what the token store holds, and a new refresh token for it. Neither shows a secret.

use std::{
    ffi::OsString,
    io::{self, IsTerminal as _, Read as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    ConfigFile, Exit,
    client::chain,
    print::{self, BAD, GOOD, UNSURE},
};
use crate::{
    config::{self, Config, StoreKind},
    token::admin::{self, Exchange, SeedOutcome, Seeded, Status, Unsaved},
};

/// What can be done with the account's tokens.
#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Show what the token store holds, without its secrets, and whether a new refresh token is needed
    Status(TokenStatus),
    /// Put a new refresh token into the store; it is read from standard input
    Seed(TokenSeed),
}

/// Shows what the token store holds, without its secrets.
#[derive(Debug, Args)]
#[command(after_help = STATUS_AFTER_HELP)]
pub(super) struct TokenStatus {
    #[command(flatten)]
    file: ConfigFile,

    /// Print one JSON object, whether it worked or not
    #[arg(long)]
    json: bool,
}

const STATUS_AFTER_HELP: &str = "\
Only reads, also while a gateway runs: it takes no lock, writes nothing and does not call Central. Run it where the
gateway runs, with its configuration, and as its user.

Exit codes: 0 there is a usable chain of tokens, 1 a new refresh token is needed or the store cannot be read or written
(a Secret's write is rehearsed, and nothing is changed), 64 the configuration is not valid.

Keys of --json: ok, usable, store, needs_seed, unwritable, generation, family, received_at, age_seconds,
  access_token {valid, until}, refresh_token_until, seeds, last_seed, exchange {state (none, under_way, suspect,
  refused), tries, logins}, emergency_journal {path, generation, newest}, waiting_seed, warnings; null where there is none.
  Where the store cannot be read: ok, error.

Example:
  license-gateway token status --config gateway.toml";

/// Puts a new refresh token into the store.
#[derive(Debug, Args)]
#[command(after_help = SEED_AFTER_HELP)]
pub(super) struct TokenSeed {
    #[command(flatten)]
    file: ConfigFile,

    /// Put it in only if the configuration names this kind of store: file, redis or kubernetes
    #[arg(long, value_name = "KIND", value_parser = ["file", "redis", "kubernetes"])]
    store: Option<String>,

    /// Caught here, so that nothing repeats it.
    #[arg(hide = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

const SEED_AFTER_HELP: &str = "\
Standard input holds the bare refresh token, or the JSON that Central's \"Download Token\" gives. A token that was put in
before is not put in again: Central's refresh tokens work once.

The store is named before anything is read; in scripts, --store makes sure of its kind. Where a gateway holds a `file`
store, the token is handed to it, and this waits up to ten seconds until it is taken; one that is being stopped takes none.
Nothing is sent to Central from here. Run it with the configuration of the gateway, and as its user.

Exit codes: 0 put in, 1 not put in, 64 the command line, the input or the configuration is wrong.

Examples:
  license-gateway token seed --config gateway.toml < downloaded.json
  pass show central/refresh-token | license-gateway token seed --config gateway.toml";

/// More than any token, less than a mistake.
const MOST_INPUT_BYTES: u64 = 64 * 1024;

impl TokenCommand {
    pub(super) async fn run(self) -> Exit {
        match self {
            Self::Status(status) => status.run().await,
            Self::Seed(seed) => seed.run().await,
        }
    }
}

impl TokenStatus {
    async fn run(self) -> Exit {
        let config = match load(&self.file) {
            Ok(config) => config,
            Err(exit) => return exit,
        };
        match admin::status(&config.token_store, SystemTime::now()).await {
            Ok(status) => {
                if self.json {
                    print::json(&TokenReport::of(&status));
                } else {
                    print::out(&report(&status, &config));
                }
                if status.is_usable() { Exit::Clean } else { Exit::Failure }
            }
            Err(error) => {
                let error = print::clean(&chain(&error));
                if self.json {
                    print::json(&serde_json::json!({ "ok": false, "error": error }));
                } else {
                    print::error(&error);
                }
                Exit::Failure
            }
        }
    }
}

impl TokenSeed {
    async fn run(self) -> Exit {
        if !self.arguments.is_empty() {
            print::error(
                "a token must not be an argument, where others on this machine can see it; give it on standard input. \
                 If it was one: it is no secret any more, get another",
            );
            return Exit::Usage;
        }
        let config = match load(&self.file) {
            Ok(config) => config,
            Err(exit) => return exit,
        };
        let kind = match config.token_store.kind {
            StoreKind::File => "file",
            StoreKind::Redis(_) => "redis",
            StoreKind::Kubernetes(_) => "kubernetes",
        };
        if let Some(wanted) = self.store.filter(|wanted| wanted != kind) {
            print::error(&format!(
                "this configuration keeps its tokens in a {kind} store, not in a {wanted} one; nothing was read or \
                 changed. Is this the gateway that you mean? While one is replaced, name the new pod"
            ));
            return Exit::Usage;
        }
        // Before it is taken, for whoever is about to paste it.
        match admin::place(&config.token_store).await {
            Ok(place) => print::err(&format!("The refresh token goes into: {}.", print::clean(&place))),
            Err(error) => {
                print::error(&print::clean(&chain(&error)));
                return Exit::Failure;
            }
        }
        let text = match read_input() {
            Ok(text) => text,
            Err(message) => {
                print::error(message);
                return Exit::Usage;
            }
        };
        let central = config.central.base_url.as_str();
        match admin::put_seed(&config.token_store, central, &text).await {
            Ok(seeded) => seeded_exit(&seeded),
            Err(error) => {
                print::error(&print::clean(&chain(&error)));
                if error.is_input() { Exit::Usage } else { Exit::Failure }
            }
        }
    }
}

/// Says what became of the token.
fn seeded_exit(seeded: &Seeded) -> Exit {
    let (fingerprint, store) = (&seeded.fingerprint, print::clean(&seeded.store));
    match seeded.what {
        SeedOutcome::Adopted { generation } => {
            print::out(&format!(
                "{GOOD}The refresh token was put in{GOOD:#} as generation {generation} (fingerprint \
                 {fingerprint}, {store}).\nA running gateway notices; a stopped one uses it when it starts. \
                 Do not use this token anywhere else."
            ));
            Exit::Clean
        }
        SeedOutcome::TakenByGateway => {
            print::out(&format!(
                "{GOOD}The running gateway took the refresh token{GOOD:#} (fingerprint {fingerprint}, \
                 {store}).\n`license-gateway token status` shows whether Central accepted it. Do not use \
                 this token anywhere else."
            ));
            Exit::Clean
        }
        SeedOutcome::AlreadyKnown => {
            print::error(&format!(
                "this refresh token was put in before (fingerprint {fingerprint}, {store}), so nothing was \
                 changed: it works once, and is not presented again. Download another one from Central"
            ));
            Exit::Failure
        }
        SeedOutcome::NotTaken => {
            print::error(&format!(
                "another process holds the store and did not take the refresh token within ten seconds \
                 (fingerprint {fingerprint}, {store}); it was taken back. Repeat it in a minute: a gateway \
                 that waits for Central looks later. One that is being stopped takes none: name the pod \
                 that takes its place. May it read what this user writes?"
            ));
            Exit::Failure
        }
    }
}

fn load(file: &ConfigFile) -> Result<Config, Exit> {
    Config::load(file.config.as_deref(), config::process_environment()).map_err(|problems| {
        print::error(&problems.to_string());
        Exit::Usage
    })
}

/// What is on standard input; or why not, in words that hold nothing of it.
fn read_input() -> Result<String, &'static str> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        print::err(
            "Paste the refresh token, or the JSON that Central gave, then press Enter and Ctrl-D.\nIt will be visible \
             here: clear the screen afterwards, or give a file instead (token seed < file).",
        );
    }
    let mut text = String::new();
    match stdin.lock().take(MOST_INPUT_BYTES + 1).read_to_string(&mut text) {
        Ok(_) if text.len() as u64 > MOST_INPUT_BYTES => Err("standard input holds far more than a refresh token"),
        Ok(_) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err("standard input is not text"),
        Err(_) => Err("standard input cannot be read"),
    }
}

/// The answer as people read it.
fn report(status: &Status, config: &Config) -> String {
    let head = match (status.needs_seed, &status.chain) {
        _ if status.unwritable.is_some() => format!(
            "{BAD}The store cannot be written:{BAD:#} no token is refreshed and no seed is taken before it can be."
        ),
        (Some(reason), _) => format!("{BAD}A new refresh token is needed:{BAD:#} {reason}."),
        (None, _) if status.journal.as_ref().is_some_and(|journal| journal.is_newest) => {
            format!("{UNSURE}The newest pair of tokens is not in the store:{UNSURE:#} it could not be stored yet.")
        }
        (None, Some(chain)) if matches!(chain.exchange, Exchange::Suspect { .. }) => {
            format!("{UNSURE}The refresh token may be spent:{UNSURE:#} an exchange ended without a clear answer.")
        }
        (None, _) => format!("{GOOD}There is a usable chain of tokens.{GOOD:#}"),
    };
    let mut rows = vec![("kept in", status.store.clone())];
    if let Some(chain) = &status.chain {
        let (word, until) = if chain.access_token_until.is_none() {
            ("seeded", "none yet: the seed was not exchanged".to_owned())
        } else if chain.has_valid_access_token {
            ("refreshed", format!("valid until {}", moment(chain.access_token_until)))
        } else {
            ("refreshed", format!("expired at {}", moment(chain.access_token_until)))
        };
        rows.extend([
            ("generation", chain.generation.to_string()),
            ("family", chain.family.clone()),
            (word, format!("{} ({} ago)", moment(Some(chain.received_at)), rough(chain.age))),
            ("access token", until),
            ("refresh token", format!("dies at {} unless refreshed", moment(Some(chain.refresh_token_until)))),
            ("exchange", exchange(chain.exchange)),
            (
                "seeds adopted",
                match &chain.last_seed {
                    Some(last) => format!("{}, the last one {last}", chain.seeds),
                    None => "none".to_owned(),
                },
            ),
        ]);
    }
    let journal = match &status.journal {
        None => "none".to_owned(),
        Some(Unsaved { path, generation: Some(generation), .. }) => {
            format!("{}, generation {generation}", path.display())
        }
        Some(Unsaved { path, generation: None, .. }) => format!("{}, which cannot be understood", path.display()),
    };
    rows.push(("emergency journal", journal));
    if let Some(path) = &status.waiting_seed {
        rows.push(("waiting seed", path.display().to_string()));
    }
    let mut text = format!("{head}\n\n{}", print::list(&rows));
    for line in advice(status, config) {
        text = format!("{text}\n{}", print::clean(&line));
    }
    text
}

fn exchange(exchange: Exchange) -> String {
    match exchange {
        Exchange::None => "none under way".to_owned(),
        Exchange::UnderWay { tries } => {
            format!("under way or cut off, since when is not known (presented {tries} time(s))")
        }
        Exchange::Suspect { tries } => format!("no clear answer from Central (presented {tries} time(s)); tried again"),
        Exchange::Refused { logins: 0 } => "refused by Central".to_owned(),
        Exchange::Refused { logins } => format!("refused by Central; {logins} login(s) tried since"),
    }
}

/// What to do, a line each.
fn advice(status: &Status, config: &Config) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(Unsaved { path, is_newest: true, .. }) = &status.journal {
        lines.push(format!(
            "Keep {}: it holds the only living pair. The gateway on this machine stores it as soon as the store works; \
             start it if it does not run.",
            path.display()
        ));
    }
    if let Some(problem) = &status.unwritable {
        lines.push(format!("What is wrong: {problem}."));
    }
    if status.needs_seed.is_some() {
        let file = match &config.credentials.refresh_token_file {
            Some(path) => format!("write it into {}", path.display()),
            None => "set credentials.refresh_token_file".to_owned(),
        };
        lines.push(format!(
            "Download a token from Central for the client id of this configuration, and nowhere else in use. Then \
             {file}, or give it to `license-gateway token seed`. No restart is needed."
        ));
    }
    lines.extend(status.warnings.iter().map(|warning| format!("Warning: {warning}.")));
    lines
}

/// The answer as programs read it, whose keys are stable.
#[derive(Serialize)]
struct TokenReport<'a> {
    ok: bool,
    usable: bool,
    store: &'a str,
    needs_seed: Option<&'static str>,
    unwritable: Option<&'a str>,
    generation: Option<u64>,
    family: Option<&'a str>,
    received_at: Option<String>,
    age_seconds: Option<u64>,
    access_token: Option<AccessTokenReport>,
    refresh_token_until: Option<String>,
    seeds: usize,
    last_seed: Option<&'a str>,
    exchange: Option<ExchangeReport>,
    emergency_journal: Option<JournalReport<'a>>,
    waiting_seed: Option<&'a PathBuf>,
    warnings: &'a [String],
}

#[derive(Serialize)]
struct AccessTokenReport {
    valid: bool,
    until: String,
}

#[derive(Serialize)]
struct JournalReport<'a> {
    path: &'a Path,
    generation: Option<u64>,
    newest: bool,
}

#[derive(Serialize)]
struct ExchangeReport {
    state: &'static str,
    tries: u32,
    logins: u32,
}

impl<'a> TokenReport<'a> {
    fn of(status: &'a Status) -> Self {
        let chain = status.chain.as_ref();
        Self {
            ok: true,
            usable: status.is_usable(),
            store: &status.store,
            needs_seed: status.needs_seed,
            unwritable: status.unwritable.as_deref(),
            generation: chain.map(|chain| chain.generation),
            family: chain.map(|chain| &*chain.family),
            received_at: chain.map(|chain| moment(Some(chain.received_at))),
            age_seconds: chain.map(|chain| chain.age.as_secs()),
            access_token: chain.filter(|chain| chain.access_token_until.is_some()).map(|chain| AccessTokenReport {
                valid: chain.has_valid_access_token,
                until: moment(chain.access_token_until),
            }),
            refresh_token_until: chain.map(|chain| moment(Some(chain.refresh_token_until))),
            seeds: chain.map_or(0, |chain| chain.seeds),
            last_seed: chain.and_then(|chain| chain.last_seed.as_deref()),
            exchange: chain.map(|chain| ExchangeReport::of(chain.exchange)),
            emergency_journal: status.journal.as_ref().map(|journal| JournalReport {
                path: &journal.path,
                generation: journal.generation,
                newest: journal.is_newest,
            }),
            waiting_seed: status.waiting_seed.as_ref(),
            warnings: &status.warnings,
        }
    }
}

impl ExchangeReport {
    fn of(exchange: Exchange) -> Self {
        let (state, tries, logins) = match exchange {
            Exchange::None => ("none", 0, 0),
            Exchange::UnderWay { tries } => ("under_way", tries, 0),
            Exchange::Suspect { tries } => ("suspect", tries, 0),
            Exchange::Refused { logins } => ("refused", 0, logins),
        };
        Self { state, tries, logins }
    }
}

/// RFC 3339, UTC, whole seconds.
fn moment(time: Option<SystemTime>) -> String {
    let time = time.and_then(|time| jiff::Timestamp::try_from(time).ok());
    time.map_or_else(|| "an unknown time".to_owned(), |time| format!("{time:.0}"))
}

fn rough(duration: Duration) -> String {
    humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string()
}
