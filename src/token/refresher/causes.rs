//! Why there is no token, where nothing else says it.

/// Central's answer to too many exchanges.
#[derive(Debug, thiserror::Error)]
#[error("Central throttles the token endpoint (HTTP 429)")]
pub(super) struct Throttled;

/// Somebody else's intent stands in the record.
#[derive(Debug, thiserror::Error)]
#[error("another process is exchanging the refresh token")]
pub(super) struct OtherProcess;

/// The chain is lost, and a login may still heal it.
#[derive(Debug, thiserror::Error)]
#[error(
    "Central refuses the refresh token, so the chain of tokens is lost, and the last login did not heal it; another one \
     is tried later. Not to wait for it, put a new refresh token into credentials.refresh_token_file"
)]
pub(super) struct NotHealedYet;

/// Central refuses the refresh token, and another replica may hold its successor.
#[derive(Debug, thiserror::Error)]
#[error("Central refuses the refresh token; whether another replica holds its successor shows within seconds")]
pub(super) struct PerhapsElsewhere;

/// Another server answers under the store's name.
#[derive(Debug, thiserror::Error)]
#[error(
    "the token store is another server, or was restarted: nothing is presented until others had time to put back what it lost"
)]
pub(super) struct ServerChanged;

/// A seed is not presented by a process that is about to end.
#[derive(Debug, thiserror::Error)]
#[error("this process is being replaced: it presents no new refresh token")]
pub(super) struct BeingReplaced;

/// A seed that was put in place does not work.
#[derive(Debug, thiserror::Error)]
#[error("Central refuses the new refresh token")]
pub(super) struct SeedRefused;

/// Too much time went by between claiming and sending.
#[derive(Debug, thiserror::Error)]
#[error("the token store took too long; the refresh token was not presented")]
pub(super) struct TooSlow;
