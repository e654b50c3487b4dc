//! The store fails in the worst moment: Central has given a new pair, and it exists nowhere else.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use central_sandbox::{Fault, Operation, Sandbox};
use license_gateway::config::Config;
use tempfile::TempDir;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::{
    A_LOOK, UNAVAILABLE, applied, holds_the_living, place, presented, refused, stop, store, unassign, wait_for,
};
use crate::support::{Failure, Gateway, Process, channel, customer, include, living, sandbox};
#[cfg(feature = "tests-with-redis")]
use crate::{redis_server::RedisServer, shared_store::redis};

/// How long the store stays away in the worst case that is promised.
const OUTAGE: Duration = Duration::from_mins(1);
/// How long the pair may take into a store that works again.
const STORED_WITHIN: Duration = Duration::from_secs(5);

/// A ready gateway whose next exchange Central has carried out and not answered yet: release `answer`. The request
/// that waits for it comes back too.
async fn before_the_answer(sandbox: &Sandbox, state: &Arc<TempDir>) -> (Gateway, JoinHandle<Result<(), Failure>>) {
    before_the_answer_with(sandbox, state, |_| {}).await
}

/// The same, with other settings.
async fn before_the_answer_with(
    sandbox: &Sandbox,
    state: &Arc<TempDir>,
    change: impl FnOnce(&mut Config),
) -> (Gateway, JoinHandle<Result<(), Failure>>) {
    let gateway = Gateway::start_in(sandbox, Arc::clone(state), change).await;
    gateway.ready().await;
    sandbox.revoke_access_token();
    sandbox.fault(Fault::hold_answer("answer").on(Operation::Token));
    let (mut client, customer) = (gateway.client(), customer(sandbox, 0));
    let caller = tokio::spawn(async move {
        client.unassign_licenses(include(&[&customer])).await.map(|_| ()).map_err(Failure::from)
    });
    sandbox.wait_for_held("answer", 1).await;
    (gateway, caller)
}

/// The store is away and stays so for a minute: every request is applied with the pair that is nowhere but in memory.
async fn serves_without_a_store(gateway: &Gateway, sandbox: &Sandbox, is_stored: impl Fn() -> bool) {
    let back = Instant::now() + OUTAGE;
    while Instant::now() < back {
        gateway.unassign(&customer(sandbox, 1)).await.expect("applied with the pair in memory");
        assert!(!is_stored(), "the store is away");
        sleep(Duration::from_millis(250)).await;
    }
}

/// The store is back: the pair is in it within seconds, and a new process needs nothing else.
async fn nothing_was_lost(gateway: Gateway, sandbox: &Sandbox) {
    let state = Arc::clone(&gateway.state);
    let is_stored = async || holds_the_living(state.path(), sandbox).then_some(());
    wait_for("the pair to be stored", STORED_WITHIN, is_stored).await;
    gateway.stop().await;
    assert!(!store(state.path()).join("unsaved.json").exists());
    let exchanges = sandbox.token_exchanges().len();
    let gateway = Gateway::start_in(sandbox, state, |_| {}).await;
    gateway.unassign(&customer(sandbox, 2)).await.expect("the stored token is good");
    assert_eq!(sandbox.token_exchanges().len(), exchanges);
    // The refresh token is, too.
    sandbox.revoke_access_token();
    gateway.unassign(&customer(sandbox, 2)).await.expect("the stored refresh token is good");
    gateway.stop().await;
}

/// Each of them for a minute, at once: between Central's answer and the store. The token is kept, requests are served,
/// and the pair is stored within seconds of the repair. Needs the right to mount a tmpfs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_away_for_a_minute_under_an_exchange_gets_the_pair_when_it_is_back() {
    let redis_away = async {
        #[cfg(feature = "tests-with-redis")]
        tokio::join!(redis_away(false), redis_away(true));
    };
    tokio::join!(moved_away(), read_only(), full(), redis_away);
}

async fn moved_away() {
    let (sandbox, state) = (sandbox().await, place());
    let (gateway, caller) = before_the_answer(&sandbox, &state).await;
    let (here, away) = (store(state.path()), state.path().join("away"));
    fs::rename(&here, &away).unwrap();
    sandbox.release("answer");
    caller.await.unwrap().expect("the call that waited is applied");
    serves_without_a_store(&gateway, &sandbox, || holds_the_living(state.path(), &sandbox)).await;
    // Made anew, it would stand in the way of the one that comes back; and nobody holds its lock.
    assert!(!here.exists(), "another store was begun in its place: {:?}", listing(&here));
    fs::rename(&away, &here).unwrap();
    nothing_was_lost(gateway, &sandbox).await;
}

async fn read_only() {
    let (sandbox, state) = (sandbox().await, place());
    let (gateway, caller) = before_the_answer(&sandbox, &state).await;
    let over = Mounted::over(&store(state.path()), "ro,size=4k");
    sandbox.release("answer");
    caller.await.unwrap().expect("the call that waited is applied");
    serves_without_a_store(&gateway, &sandbox, || holds_the_living(state.path(), &sandbox)).await;
    drop(over);
    nothing_was_lost(gateway, &sandbox).await;
}

/// Full, and the room that was reserved is gone too: somebody removed the file, or the file system promised too much.
async fn full() {
    let (sandbox, state) = (sandbox().await, place());
    let disk = Mounted::over(&store(state.path()), "size=512k");
    let (gateway, caller) = before_the_answer(&sandbox, &state).await;
    fs::remove_file(disk.0.join("token.next")).expect("room was reserved");
    let filler = fill(&disk.0);
    sandbox.release("answer");
    caller.await.unwrap().expect("the call that waited is applied");
    serves_without_a_store(&gateway, &sandbox, || holds_the_living(state.path(), &sandbox)).await;
    fs::remove_file(filler).unwrap();
    nothing_was_lost(gateway, &sandbox).await;
    drop(disk);
}

/// Gone, or there and silent.
#[cfg(feature = "tests-with-redis")]
async fn redis_away(hangs: bool) {
    let (sandbox, state, mut server) = (sandbox().await, place(), RedisServer::start());
    let kind = redis(&server);
    let (gateway, caller) = before_the_answer_with(&sandbox, &state, |config| config.token_store.kind = kind).await;
    let is_stored = |server: &RedisServer| {
        let writes = server.writes();
        let token = writes.iter().rfind(|write| write.get(1).is_some_and(|key| key == b"license-gateway:token"));
        token.is_some_and(|write| String::from_utf8_lossy(write.last().expect("a value")).contains(&living(&sandbox)))
    };
    if hangs {
        server.pause();
    } else {
        server.kill();
    }
    sandbox.release("answer");
    // A change needs the shared store for its operation; reads are served with the pair that is nowhere but in memory.
    assert_eq!(caller.await.unwrap().unwrap_err().reason, "OPERATIONS_UNAVAILABLE");
    let back = Instant::now() + OUTAGE;
    while Instant::now() < back {
        gateway.preview(&include(&[&customer(&sandbox, 1)]), 0).await.expect("read with the pair in memory");
        assert!(!is_stored(&server), "the store is away");
        sleep(Duration::from_millis(500)).await;
    }
    if hangs {
        server.resume();
    } else {
        server.run();
    }
    // Redis may have it before the gateway knows; then no second copy is left about.
    let journal = store(state.path()).join("unsaved.json");
    let stored = async || (is_stored(&server) && !journal.exists()).then_some(());
    wait_for("the pair to be stored in Redis", STORED_WITHIN, stored).await;
    let exchanges = sandbox.token_exchanges().len();
    sandbox.revoke_access_token();
    gateway.unassign(&customer(&sandbox, 2)).await.expect("the stored refresh token is good");
    assert_eq!(sandbox.token_exchanges().len(), exchanges + 1);
    gateway.stop().await;
}

/// A volume that is gone leaves an empty directory, its mount point.
#[tokio::test]
async fn a_store_whose_volume_is_gone_under_an_exchange_gets_the_pair_when_it_is_back() {
    let (sandbox, state) = (sandbox().await, place());
    let (gateway, caller) = before_the_answer(&sandbox, &state).await;
    let (here, away) = (store(state.path()), state.path().join("away"));
    fs::rename(&here, &away).unwrap();
    fs::create_dir(&here).unwrap();
    sandbox.release("answer");
    caller.await.unwrap().expect("the call that waited is applied");
    sleep(A_LOOK).await;
    gateway.unassign(&customer(&sandbox, 1)).await.expect("applied with the pair in memory");
    fs::remove_dir_all(&here).unwrap();
    fs::rename(&away, &here).unwrap();
    nothing_was_lost(gateway, &sandbox).await;
}

#[tokio::test]
async fn stopping_waits_for_a_store_that_comes_back_in_time() {
    let (sandbox, state) = (sandbox().await, place());
    let (gateway, caller) = before_the_answer(&sandbox, &state).await;
    let over = Mounted::over(&store(state.path()), "ro,size=4k");
    sandbox.release("answer");
    caller.await.unwrap().expect("the call that waited is applied");
    let stopping = tokio::spawn(gateway.stop());
    sleep(A_LOOK).await;
    assert!(!stopping.is_finished(), "the pair is nowhere but here");
    drop(over);
    stopping.await.unwrap();
    assert!(holds_the_living(state.path(), &sandbox));
}

/// The seed's file is still in place, and spent. A store that has forgotten that must not bring it back to life: it
/// would be presented, refused, and stored in place of the living pair.
#[tokio::test]
async fn a_record_that_vanishes_is_put_back_and_the_spent_seed_is_not_taken_for_a_new_one() {
    use license_gateway::config::GrantPlacement;

    let sandbox = sandbox().await;
    let gateway =
        Gateway::start_with(&sandbox, |config| config.credentials.grant_placement = GrantPlacement::Query).await;
    gateway.ready().await;
    fs::remove_file(store(gateway.state.path()).join("token.json")).unwrap();
    sleep(A_LOOK).await;
    gateway.unassign(&customer(&sandbox, 0)).await.expect("the token is still good");
    sandbox.revoke_access_token();
    applied("the refresh token in memory is good", &gateway, &customer(&sandbox, 0)).await;
    assert!(holds_the_living(gateway.state.path(), &sandbox));
    let presented = presented(&sandbox);
    assert_eq!(presented.len(), 2, "{presented:?}");
    assert_ne!(presented[0], presented[1], "the spent seed was presented again");
    gateway.stop().await;
}

/// Nobody asks for a token: the next one might be asked for after a restart, and then nobody knew the newer pair.
#[tokio::test]
async fn a_record_that_is_replaced_by_an_older_one_or_vanishes_is_put_back_at_once() {
    let (sandbox, state) = (sandbox().await, place());
    let gateway = Gateway::start_in(&sandbox, Arc::clone(&state), |_| {}).await;
    gateway.ready().await;
    let record = store(state.path()).join("token.json");
    let old = fs::read(&record).unwrap();
    sandbox.revoke_access_token();
    gateway.unassign(&customer(&sandbox, 0)).await.expect("refreshed");
    for older in [Some(&old), None] {
        match older {
            Some(old) => fs::write(&record, old).unwrap(),
            None => fs::remove_file(&record).unwrap(),
        }
        assert!(!holds_the_living(state.path(), &sandbox));
        let is_back = async || holds_the_living(state.path(), &sandbox).then_some(());
        wait_for("the newer pair to be put back", Duration::from_secs(5), is_back).await;
    }
    let exchanges = sandbox.token_exchanges().len();
    nothing_was_lost(gateway, &sandbox).await;
    assert_eq!(sandbox.token_exchanges().len(), exchanges + 1, "nothing was presented for it");
}

/// The gateway holds the pair, so half a record is no reason to need anybody. Also with the access token at its end.
#[tokio::test]
async fn a_record_that_is_damaged_under_a_running_gateway_is_written_anew() {
    let (sandbox, state) = (sandbox().await, place());
    let gateway = Gateway::start_in(&sandbox, Arc::clone(&state), |_| {}).await;
    gateway.ready().await;
    let record = store(state.path()).join("token.json");
    for damaged in ["", "half of a rec"] {
        fs::write(&record, damaged).unwrap();
        let is_back = async || holds_the_living(state.path(), &sandbox).then_some(());
        wait_for("the pair to be written anew", Duration::from_secs(5), is_back).await;
        assert_eq!(fs::read_to_string(store(state.path()).join("token.damaged.json")).unwrap(), damaged);
    }
    let exchanges = sandbox.token_exchanges().len();
    fs::write(&record, "damaged").unwrap();
    sandbox.revoke_access_token();
    applied("after the damage", &gateway, &customer(&sandbox, 0)).await;
    assert_eq!(sandbox.token_exchanges().len(), exchanges + 1);
    nothing_was_lost(gateway, &sandbox).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_must_stop_before_the_store_works_leaves_the_pair_in_the_journal() {
    let sandbox = sandbox().await;
    let dir = tempfile::tempdir().unwrap();
    let first = customer(&sandbox, 0);
    let more = [("LICENSE_GATEWAY__SERVER__DRAIN_TIMEOUT", "300ms")];
    let process = Process::serve(&sandbox, dir.path(), &more).await;
    let connection = channel(process.address).await;
    let ready = async || unassign(&connection, &first).await.ok();
    wait_for("a first token", Duration::from_secs(20), ready).await;
    sandbox.revoke_access_token();
    sandbox.fault(Fault::hold_answer("answer").on(Operation::Token));
    let (on_its_way, customer_id) = (connection.clone(), first.clone());
    let caller = tokio::spawn(async move { unassign(&on_its_way, &customer_id).await });
    sandbox.wait_for_held("answer", 1).await;

    // Nothing can be reserved or written under this name.
    let (next, journal) = (store(dir.path()).join("token.next"), store(dir.path()).join("unsaved.json"));
    fs::remove_file(&next).unwrap();
    fs::create_dir(&next).unwrap();
    sandbox.release("answer");
    assert_eq!(caller.await.unwrap(), Ok(()), "the call that waited is applied");
    assert!(!holds_the_living(dir.path(), &sandbox));
    // Those who wait are answered first.
    let living = living(&sandbox);
    let is_written = async || fs::read_to_string(&journal).is_ok_and(|text| text.contains(&living)).then_some(());
    wait_for("the living pair in the journal", STORED_WITHIN, is_written).await;
    assert_eq!(fs::metadata(&journal).unwrap().permissions().mode() & 0o777, 0o600);
    drop(connection);
    let log = stop(process).await;
    assert!(
        log.iter().any(|line| line.to_string().contains("do not stop this process before the store works again")),
        "{log:#?}"
    );
    assert!(journal.exists(), "it outlives the process");

    fs::remove_dir(&next).unwrap();
    let exchanges = sandbox.token_exchanges().len();
    let process = Process::serve(&sandbox, dir.path(), &more).await;
    let connection = channel(process.address).await;
    let is_used = async || unassign(&connection, &first).await.ok();
    wait_for("the journal's pair to be used", Duration::from_secs(20), is_used).await;
    assert!(holds_the_living(dir.path(), &sandbox), "stored before it is used");
    assert!(!journal.exists(), "no second copy is left about");
    assert_eq!(sandbox.token_exchanges().len(), exchanges);
    sandbox.revoke_access_token();
    assert_eq!(unassign(&connection, &first).await, Ok(()), "its refresh token is good");
    drop(connection);
    stop(process).await;
}

/// Restarted while the store is still in trouble: the journal's pair is alive, and callers wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pair_in_the_journal_is_served_while_the_store_still_fails() {
    let (sandbox, state) = (sandbox().await, place());
    let gateway = Gateway::start_in(&sandbox, Arc::clone(&state), |_| {}).await;
    gateway.ready().await;
    gateway.stop().await;
    // As it is left behind: the newest pair in the journal, an older one in the store.
    let (record, journal) = (store(state.path()).join("token.json"), store(state.path()).join("unsaved.json"));
    fs::copy(&record, &journal).unwrap();
    super::edit_record(&record, |record| record["generation"] = 1.into());
    let next = store(state.path()).join("token.next");
    let _ = fs::remove_file(&next);
    fs::create_dir(&next).unwrap();

    let gateway = Gateway::start_in(&sandbox, Arc::clone(&state), |_| {}).await;
    applied("served from the journal", &gateway, &customer(&sandbox, 0)).await;
    fs::remove_dir(&next).unwrap();
    nothing_was_lost(gateway, &sandbox).await;
}

/// Needs the right to mount a tmpfs.
#[tokio::test]
async fn a_disk_that_fills_up_under_an_exchange_still_has_room_for_the_pair() {
    let (sandbox, state) = (sandbox().await, place());
    let disk = Mounted::over(&store(state.path()), "size=512k");
    let (gateway, caller) = before_the_answer(&sandbox, &state).await;
    fill(&disk.0);
    sandbox.release("answer");
    caller.await.unwrap().expect("the call that waited is applied");
    assert!(holds_the_living(state.path(), &sandbox), "room was reserved before the token was spent");

    // Without room for its successor the next token is not spent.
    let filler = fill(&disk.0);
    sandbox.revoke_access_token();
    let exchanges = sandbox.token_exchanges().len();
    refused("no room", &gateway, &customer(&sandbox, 1), UNAVAILABLE).await;
    sleep(A_LOOK).await;
    refused("still no room", &gateway, &customer(&sandbox, 1), UNAVAILABLE).await;
    assert_eq!(sandbox.token_exchanges().len(), exchanges);
    fs::remove_file(filler).unwrap();
    applied("room again", &gateway, &customer(&sandbox, 1)).await;
    nothing_was_lost(gateway, &sandbox).await;
    drop(disk);
}

fn listing(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).map(|entries| entries.map(|entry| entry.unwrap().path()).collect()).unwrap_or_default()
}

/// Leaves not one byte free.
pub fn fill(directory: &Path) -> PathBuf {
    let path = directory.join("filler");
    let mut file = fs::File::options().create(true).append(true).open(&path).unwrap();
    for size in [16 * 1024, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
    let room = fs::write(directory.join("probe"), [0; 1]);
    room.expect_err("the disk is full");
    let _ = fs::remove_file(directory.join("probe"));
    path
}

/// A tmpfs over a directory; gone when this is dropped.
pub struct Mounted(pub PathBuf);

impl Mounted {
    pub fn over(directory: &Path, options: &str) -> Self {
        fs::create_dir_all(directory).unwrap();
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(directory).output();
        let done = mount.as_ref().is_ok_and(|output| output.status.success());
        assert!(
            done,
            "this test needs the right to mount a tmpfs (CAP_SYS_ADMIN): run it as root, in a container with \
             --privileged or --cap-add SYS_ADMIN; mount said: {mount:?}"
        );
        Self(directory.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: after a panic a gateway may still hold its lock file.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}
