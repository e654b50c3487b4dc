//! Whether what the server says is stored would be there after a crash: that depends on the server's settings alone.
//!
//! With `appendonly yes` and `appendfsync always` Redis syncs its journal before it answers.

use std::collections::HashMap;

use redis::{Cmd, FromRedisValue, Value, aio::MultiplexedConnection};

use super::fault::RedisFault;

/// What could be learnt about the server; none: it would not say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ServerSettings {
    role: Option<String>,
    /// Differs for every start of every server.
    pub(super) run_id: Option<String>,
    appendonly: Option<String>,
    appendfsync: Option<String>,
    no_appendfsync_on_rewrite: Option<String>,
    maxmemory_policy: Option<String>,
}

impl ServerSettings {
    /// Asks the server. Where a user may not use `CONFIG`, `INFO` knows half of it.
    pub(super) async fn read(connection: &mut MultiplexedConnection) -> Result<Self, RedisFault> {
        let role: Option<Vec<Value>> = ask(connection, &["ROLE"]).await?;
        let role = role.and_then(|role| role.into_iter().next()).and_then(|role| String::from_redis_value(role).ok());
        let server: Option<String> = ask(connection, &["INFO", "server"]).await?;
        let run_id = server.as_deref().and_then(|server| find(server, "run_id"));
        // One pattern at a time: Redis 6 takes no more.
        let journal: Option<HashMap<String, String>> = ask(connection, &["CONFIG", "GET", "*append*"]).await?;
        let memory: Option<HashMap<String, String>> = ask(connection, &["CONFIG", "GET", "maxmemory-policy"]).await?;
        if let (Some(mut journal), Some(mut memory)) = (journal, memory) {
            return Ok(Self {
                role,
                run_id,
                appendonly: journal.remove("appendonly"),
                appendfsync: journal.remove("appendfsync"),
                no_appendfsync_on_rewrite: journal.remove("no-appendfsync-on-rewrite"),
                maxmemory_policy: memory.remove("maxmemory-policy"),
            });
        }
        let persistence: Option<String> = ask(connection, &["INFO", "persistence"]).await?;
        let memory: Option<String> = ask(connection, &["INFO", "memory"]).await?;
        let known = Self::from_info(role, &persistence.unwrap_or_default(), &memory.unwrap_or_default());
        Ok(Self { run_id, ..known })
    }

    fn from_info(role: Option<String>, persistence: &str, memory: &str) -> Self {
        let appendonly = find(persistence, "aof_enabled").map(|on| if on == "1" { "yes" } else { "no" }.to_owned());
        let maxmemory_policy = find(memory, "maxmemory_policy");
        Self { role, appendonly, maxmemory_policy, ..Self::default() }
    }

    /// Whether the server takes writes of its own; none: it would not say.
    pub(super) fn is_primary(&self) -> Option<bool> {
        self.role.as_ref().map(|role| role == "master")
    }

    /// What is unsafe, what that means, and what to set.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let mut unknown = Vec::new();
        match self.appendonly.as_deref() {
            Some("yes") => {
                match self.appendfsync.as_deref() {
                    Some("always") => {}
                    Some(other) => warnings.push(format!(
                        "appendfsync is {other}: a record may be lost that was stored seconds before a crash; set \
                         appendfsync always"
                    )),
                    None => unknown.push("appendfsync always"),
                }
                match self.no_appendfsync_on_rewrite.as_deref() {
                    Some("no") => {}
                    Some(_) => warnings.push(
                        "no-appendfsync-on-rewrite is yes: nothing is synced while the journal is rewritten; set \
                         no-appendfsync-on-rewrite no"
                            .to_owned(),
                    ),
                    None => unknown.push("no-appendfsync-on-rewrite no"),
                }
            }
            Some(_) => warnings.push(
                "appendonly is no: after a crash the server goes back to its last snapshot; set appendonly yes and \
                 appendfsync always"
                    .to_owned(),
            ),
            None => unknown.extend(["appendonly yes", "appendfsync always", "no-appendfsync-on-rewrite no"]),
        }
        match self.maxmemory_policy.as_deref() {
            Some("noeviction") => {}
            // The tokens have no time to live, but operations have: without their record a repeat runs again.
            Some(policy) => warnings.push(format!(
                "maxmemory-policy is {policy}: the server may throw records away when its memory is full; set \
                 maxmemory-policy noeviction"
            )),
            None => unknown.push("maxmemory-policy noeviction"),
        }
        if self.role.is_none() {
            unknown.push("that it is the primary");
        }
        if !unknown.is_empty() {
            warnings.push(format!(
                "this cannot be checked, for the server does not let this user ask: {}; make sure of it, or allow \
                 +role +config|get",
                unknown.join(", ")
            ));
        }
        warnings
    }
}

/// A line of what `INFO` says.
fn find(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim().to_owned()))
}

/// The answer, or none if the server refuses to say.
async fn ask<T: FromRedisValue>(
    connection: &mut MultiplexedConnection,
    words: &[&str],
) -> Result<Option<T>, RedisFault> {
    match Cmd::new().arg(words).query_async(connection).await.map_err(RedisFault::from) {
        Ok(answer) => Ok(Some(answer)),
        Err(fault) if fault.is_refusal() => Ok(None),
        Err(fault) => Err(fault),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(appendonly: &str, appendfsync: &str, on_rewrite: &str, policy: &str) -> ServerSettings {
        let known = |text: &str| (text != "?").then(|| text.to_owned());
        ServerSettings {
            role: Some("master".to_owned()),
            run_id: None,
            appendonly: known(appendonly),
            appendfsync: known(appendfsync),
            no_appendfsync_on_rewrite: known(on_rewrite),
            maxmemory_policy: known(policy),
        }
    }

    #[test]
    fn each_warning_names_what_is_unsafe_and_what_to_set() {
        let table: [(ServerSettings, &[&str]); 8] = [
            (settings("yes", "always", "no", "noeviction"), &[]),
            (settings("yes", "always", "no", "volatile-lru"), &["set maxmemory-policy noeviction"]),
            (settings("yes", "everysec", "no", "noeviction"), &["set appendfsync always"]),
            (settings("yes", "always", "yes", "noeviction"), &["set no-appendfsync-on-rewrite no"]),
            (settings("no", "everysec", "yes", "noeviction"), &["set appendonly yes and appendfsync always"]),
            (
                settings("yes", "no", "no", "allkeys-lru"),
                &["set appendfsync always", "set maxmemory-policy noeviction"],
            ),
            (
                settings("yes", "?", "?", "noeviction"),
                &["cannot be checked, for the server does not let this user ask: appendfsync always, no-append"],
            ),
            (
                ServerSettings { role: None, ..settings("?", "?", "?", "?") },
                &["appendonly yes, appendfsync always, no-appendfsync-on-rewrite no, maxmemory-policy noeviction, \
                   that it is the primary"],
            ),
        ];
        for (settings, expected) in table {
            let warnings = settings.warnings();
            assert_eq!(warnings.len(), expected.len(), "{settings:?}: {warnings:?}");
            for (warning, expected) in warnings.iter().zip(expected) {
                assert!(warning.contains(expected), "{settings:?}: {warning}");
            }
        }
    }

    #[test]
    fn info_tells_half() {
        let info = ServerSettings::from_info(
            None,
            "# Persistence\r\nloading:0\r\naof_enabled:0\r\n",
            "maxmemory_policy:allkeys-lfu\r\n",
        );
        assert_eq!(info, ServerSettings { role: None, ..settings("no", "?", "?", "allkeys-lfu") });
        assert_eq!(ServerSettings::from_info(None, "", ""), ServerSettings::default());
    }
}
