//! What the gateway costs under load: the release binary as a process of its own, another process of this
//! program as the sandbox, and real gRPC clients in this one.
//!
//! Prints Markdown; `make performance` pastes it into docs/performance.md, which says what the scenarios are. It asserts
//! nothing about time. What is on standard error is progress.

#![allow(clippy::print_stdout)] // it prints what it measured

mod bursts;
mod callers;
mod collector;
mod day;
mod figures;
mod flood;
mod rounds;
mod soak;
mod starts;
mod telemetry;
mod world;

use std::{env, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

/// Measures the gateway under load.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo bench --bench load --")]
struct Arguments {
    /// What to measure; all of it where nothing is named
    scenarios: Vec<Scenario>,

    /// A few seconds of everything: shows that the benchmark works, its numbers mean nothing
    #[arg(long)]
    quick: bool,

    /// How long `soak` takes
    #[arg(long, value_name = "SECONDS", default_value_t = 1_200)]
    soak_seconds: u64,

    /// Measure this binary: for comparing two builds
    #[arg(long, value_name = "PATH", default_value = env!("CARGO_BIN_EXE_license-gateway"))]
    gateway: PathBuf,

    /// Put there by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// Start, idle memory, size
    Start,
    /// 100,000 operations with ids: memory, lookups, repeats, a start with their audit trail
    Day,
    /// Reads that are answered from memory
    Read,
    /// Every request its own call to Central: one caller, and 64
    OneByOne,
    /// 64 callers who want the same services, few calls on their way
    Shared,
    /// Requests of 1,000 customers each
    ManyIds,
    /// What traces, metrics and logs cost: one by one with 64 callers
    Telemetry,
    /// 1,000 callers at the same moment, at Central's true limits
    AtOnce,
    /// Ten times what Central's limits allow
    Overload,
    /// Callers, failures and strangers at once for twenty minutes: what must not grow. Only where it is named
    Soak,
}

/// What this program does as a process of its own beside what is measured.
#[derive(Debug, Parser)]
enum Central {
    Sandbox(central_sandbox::Command),
}

/// How long and how often things are measured.
#[derive(Debug, Clone, Copy)]
struct Plan {
    /// How many runs a median is taken of.
    repetitions: usize,
    /// One run of a closed loop.
    run: Duration,
    /// The same, not counted, before the first one.
    warm_up: Duration,
    /// How often 1,000 callers come at once.
    bursts: usize,
    /// How long there is too much.
    flood: Duration,
    /// How long things are looked at before that.
    before: Duration,
    /// And after.
    after: Duration,
    /// Operations of a day.
    operations: usize,
}

impl Plan {
    const WHOLE: Self = Self {
        repetitions: 7,
        run: Duration::from_secs(3),
        warm_up: Duration::from_secs(2),
        bursts: 5,
        flood: Duration::from_secs(30),
        before: Duration::from_secs(4),
        after: Duration::from_secs(12),
        operations: 100_000,
    };
    const QUICK: Self = Self {
        repetitions: 1,
        run: Duration::from_millis(300),
        warm_up: Duration::from_millis(100),
        bursts: 1,
        flood: Duration::from_secs(2),
        before: Duration::from_secs(1),
        after: Duration::from_secs(2),
        operations: 2_000,
    };
}

#[tokio::main]
async fn main() -> ExitCode {
    if env::args().nth(1).as_deref() == Some("sandbox") {
        let Central::Sandbox(sandbox) = Central::parse();
        return sandbox.run().await;
    }
    let arguments = Arguments::parse();
    if cfg!(not(target_os = "linux")) {
        eprintln!("CPU and memory are read from /proc: this benchmark runs on Linux only");
        return ExitCode::FAILURE;
    }
    let mut told_to_stop = signal(SignalKind::terminate()).expect("a process may listen for signals");
    tokio::select! {
        is_good = measure(&arguments) => if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE },
        _ = told_to_stop.recv() => ExitCode::from(143), // the processes went with what was measured
    }
}

/// Whether nothing was wrong.
async fn measure(arguments: &Arguments) -> bool {
    let plan = if arguments.quick { Plan::QUICK } else { Plan::WHOLE };
    let wanted = |scenario| arguments.scenarios.is_empty() || arguments.scenarios.contains(&scenario);
    let gateway = &arguments.gateway;

    println!("{}\n", figures::circumstances(gateway, arguments.quick));
    let loops: Vec<_> = rounds::LOOPS.iter().filter(|closed| wanted(closed.scenario)).collect();
    if !loops.is_empty() {
        println!("{}", rounds::measure(gateway, &plan, &loops).await);
    }
    if wanted(Scenario::Telemetry) {
        println!("{}", telemetry::measure(gateway, &plan).await);
    }
    if wanted(Scenario::AtOnce) {
        println!("{}", bursts::measure(gateway, &plan).await);
    }
    if wanted(Scenario::Overload) {
        println!("{}", flood::measure(gateway, &plan).await);
    }
    if wanted(Scenario::Start) {
        println!("{}", starts::measure(gateway, &plan).await);
    }
    if wanted(Scenario::Day) {
        println!("{}", day::measure(gateway, &plan).await);
    }
    let mut is_good = true;
    if arguments.scenarios.contains(&Scenario::Soak) {
        let time = if arguments.quick { plan.flood * 10 } else { Duration::from_secs(arguments.soak_seconds) };
        let (table, is_flat) = soak::measure(gateway, time).await;
        println!("{table}");
        is_good = is_flat;
    }
    println!("Load average after: {}.", figures::load_average());
    is_good
}
