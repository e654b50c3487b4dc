//! What went wrong between us and the server, in words for whoever runs the gateway.
//!
//! The server's own words are shown, but never what it quotes of a command: that may be a token.

use redis::{ErrorKind, RedisError, ServerErrorKind};

use super::connect::ANSWER_TIMEOUT;

/// Why a command has no good answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum RedisFault {
    /// It may or may not have been carried out.
    #[error("there is no answer within {} s", ANSWER_TIMEOUT.as_secs())]
    NoAnswer,
    /// It may or may not have been carried out; the connection is of no use any more.
    #[error("the connection failed")]
    Connection(#[source] RedisError),
    /// Not carried out.
    #[error("this server is no primary (or no longer): token_store.url must name the primary")]
    Replica,
    /// Not carried out: the key holds another kind of value.
    #[error("something else than a text is stored under the key")]
    WrongType,
    /// Not carried out.
    #[error("{0}")]
    Refused(String),
}

impl RedisFault {
    /// The server said no: the command was surely not carried out.
    pub(super) fn is_refusal(&self) -> bool {
        match self {
            Self::Replica | Self::WrongType | Self::Refused(_) => true,
            Self::NoAnswer | Self::Connection(_) => false,
        }
    }
}

impl From<RedisError> for RedisFault {
    fn from(error: RedisError) -> Self {
        match error.kind() {
            ErrorKind::Io if error.is_timeout() => Self::NoAnswer,
            ErrorKind::AuthenticationFailed => Self::Refused(refusal("WRONGPASS", "")),
            ErrorKind::Server(ServerErrorKind::ReadOnly) => Self::Replica,
            // So it says within a script, or through a proxy.
            ErrorKind::Server(_) | ErrorKind::Extension
                if error.detail().is_some_and(|detail| detail.starts_with("READONLY")) =>
            {
                Self::Replica
            }
            ErrorKind::Server(_) | ErrorKind::Extension => match error.code().unwrap_or("ERR") {
                "WRONGTYPE" => Self::WrongType,
                code => Self::Refused(refusal(code, error.detail().unwrap_or_default())),
            },
            _ => Self::Connection(error),
        }
    }
}

/// A refusal, and what to do about it where that is known.
fn refusal(code: &str, detail: &str) -> String {
    let advice = match code {
        "WRONGPASS" => "the user name or the password of the token_store is wrong, or the server knows no such user",
        "NOAUTH" => "it wants a password: set token_store.password_file",
        "NOPERM" => {
            "the user needs the key and +get +set +eval; +role +config|get +info let the gateway check the rest; \
             max_customers_per_hour needs +time and the key with :usage behind it too"
        }
        "OOM" => "the server's memory is full: raise its maxmemory",
        "NOREPLICAS" => {
            "too few replicas follow this server: it was cut off from them, or min-replicas-to-write is too high"
        }
        "MISCONF" => "the server cannot write to its disk",
        "MOVED" | "ASK" | "CLUSTERDOWN" => "a Redis Cluster is not supported: use one primary of its own",
        _ => "",
    };
    // "unknown command 'X', with args beginning with: …"
    let detail = detail.split(", with args").next().unwrap_or_default();
    let said = [detail, advice].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ");
    format!("the server refuses: {code}: {said}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_to_do_and_quotes_no_command() {
        let table = [
            (
                "WRONGPASS",
                "",
                "the server refuses: WRONGPASS: the user name or the password of the token_store is wrong",
            ),
            ("NOAUTH", "Authentication required.", "NOAUTH: Authentication required.; it wants a password"),
            ("OOM", "command not allowed", "OOM: command not allowed; the server's memory is full"),
            ("LOADING", "loading the dataset", "LOADING: loading the dataset"),
            ("ERR", "unknown command 'EVAL', with args beginning with: 'secret'", "ERR: unknown command 'EVAL'"),
        ];
        for (code, detail, expected) in table {
            let said = refusal(code, detail);
            assert!(said.contains(expected), "{said}");
            assert!(!said.contains("secret"), "{said}");
        }
    }
}
