//! What tests of the token's custody ask of the process. Not part of any release.

use std::{path::PathBuf, sync::OnceLock, time::Duration};

/// What tests that kill, pause and hurry processes ask for.
#[derive(Debug)]
pub struct Failpoints {
    /// The file that names the moment at which to stop for good. `LICENSE_GATEWAY_FAILPOINTS_MOMENT_FILE`.
    pub moment_file: Option<PathBuf>,
    /// How far the wall clock is ahead. `LICENSE_GATEWAY_FAILPOINTS_CLOCK_AHEAD_SECONDS`.
    pub clock_ahead: Duration,
    /// How many times shorter the bounds of the token's custody are. `LICENSE_GATEWAY_FAILPOINTS_HURRY`.
    pub hurry: u32,
}

/// What the environment asks for; read once.
pub fn failpoints() -> &'static Failpoints {
    static FAILPOINTS: OnceLock<Failpoints> = OnceLock::new();
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    FAILPOINTS.get_or_init(|| Failpoints {
        moment_file: std::env::var_os("LICENSE_GATEWAY_FAILPOINTS_MOMENT_FILE").map(PathBuf::from),
        clock_ahead: Duration::from_secs(number("LICENSE_GATEWAY_FAILPOINTS_CLOCK_AHEAD_SECONDS").unwrap_or(0)),
        hurry: number("LICENSE_GATEWAY_FAILPOINTS_HURRY").and_then(|hurry| u32::try_from(hurry).ok()).unwrap_or(1),
    })
}
