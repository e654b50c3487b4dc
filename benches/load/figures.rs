//! Numbers: medians with their spread, percentiles, tables, and what machine they are of.

use std::{fmt::Write as _, fs, path::Path, process::Command, time::Duration};

/// The value that this share of all values do not exceed; `sorted` is not empty.
pub(crate) fn percentile(sorted: &[Duration], share: f64) -> Duration {
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)] // small counts
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// p50, p99 and the slowest, in milliseconds; none if there is nothing.
pub(crate) fn latencies(mut times: Vec<Duration>) -> Option<[f64; 3]> {
    times.sort();
    let slowest = times.last()?;
    Some([percentile(&times, 0.5), percentile(&times, 0.99), *slowest].map(milliseconds))
}

pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

/// The median of several runs and the least and the most of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    /// Of at least one run.
    pub(crate) fn of(runs: impl IntoIterator<Item = f64>) -> Self {
        let mut runs: Vec<f64> = runs.into_iter().collect();
        runs.sort_by(f64::total_cmp);
        let middle = runs.len() / 2;
        let median =
            if runs.len().is_multiple_of(2) { f64::midpoint(runs[middle - 1], runs[middle]) } else { runs[middle] };
        Self { median, least: runs[0], most: runs[runs.len() - 1] }
    }

    /// `1.23 (1.20–1.31)`.
    pub(crate) fn shown(self) -> String {
        let Self { median, least, most } = self;
        if least.to_bits() == most.to_bits() {
            return number(median);
        }
        format!("{} ({}–{})", number(median), number(least), number(most))
    }
}

/// With about three digits that mean something.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => thousands(value),
        medium if medium >= 10.0 => format!("{value:.1}"),
        0.0 => "0".to_owned(),
        _ => format!("{value:.2}"),
    }
}

fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A table in Markdown, with a line above it.
pub(crate) fn table(title: &str, head: &[&str], rows: &[Vec<String>]) -> String {
    let mut text = format!("**{title}**\n\n| {} |\n|{}\n", head.join(" | "), "---|".repeat(head.len()));
    for row in rows {
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
    text
}

/// Where, when and what: numbers without it mean nothing.
pub(crate) fn circumstances(gateway: &Path, is_quick: bool) -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, model)| model);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = read("/proc/sys/kernel/osrelease");
    let commit = printed("git", &["describe", "--always", "--dirty", "--abbrev=10"]);
    let profile = if gateway.components().any(|part| part.as_os_str() == "release") { "release" } else { "unusual" };
    let date = jiff::Timestamp::now().strftime("%Y-%m-%d");
    let arguments: Vec<_> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let warning = if is_quick { " **Quick: these numbers mean nothing.**" } else { "" };
    format!(
        "{date}, {cores} cores ({}), Linux {}, {profile} build of commit {commit}; load average before: {}. \
         Command: `{}`.{warning}",
        model.unwrap_or("unknown CPU"),
        kernel.trim().split('-').next().unwrap_or_default(),
        load_average(),
        ["cargo bench --bench load", &arguments.join(" ")].join(" -- ").trim_end_matches(" -- "),
    )
}

/// How much else the machine does, and after a run how much it did.
pub(crate) fn load_average() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').next().unwrap_or_default().to_owned()
}

fn printed(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map_or_else(|_| "unknown".to_owned(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
