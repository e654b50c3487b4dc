//! Nobody reads the log.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    time::Duration,
};

use license_gateway::proto::licensing_service_client::LicensingServiceClient;
use serde_json::Value;
use tokio::time::timeout;

use crate::{
    admin::page,
    support::{PATIENCE, channel, config_file, customer, include, sandbox},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_of_the_log_that_stalls_stops_nothing() {
    let sandbox = sandbox().await;
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_license-gateway"))
        .args(["serve", "--config"])
        .arg(config_file(&sandbox, dir.path()))
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stdout.take().unwrap());
    let mut listening = || {
        let mut line = String::new();
        log.read_line(&mut line).unwrap();
        let line: Value = serde_json::from_str(&line).unwrap();
        line["listen"].as_str().unwrap().parse().unwrap()
    };
    let (address, admin) = (listening(), listening());

    let mut client = LicensingServiceClient::new(channel(address).await);
    let customer = customer(&sandbox, 0);
    for _ in 0..600 {
        // Its line is longer than 200 bytes, and a pipe holds 64 KiB.
        let answer = timeout(PATIENCE, client.unassign_licenses(include(&[&customer]))).await;
        answer.expect("an answer although nobody reads the log").unwrap();
    }
    assert_eq!(timeout(PATIENCE, page(admin, "/livez")).await.unwrap().0, 200);
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let ended = async {
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert_eq!(timeout(PATIENCE, ended).await.expect("SIGTERM is heard").code(), Some(0));
    drop(log);
}
