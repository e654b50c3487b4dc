//! Trails in real directories: gone on with after crashes, and changed in every way that must be found.

pub(super) mod watched;

use std::{fs, path::Path};

use jiff::Timestamp;
use tempfile::TempDir;
use uuid::Uuid;

use super::{
    OpenError,
    chain::{self, HashChain},
    directory::AuditDirectory,
    files,
    record::{Ended, Event, Intent, Opened, RecordedScope},
    verify::{Verification, verify},
};

const LARGE: u64 = 1 << 30;

fn intent(n: u128) -> Event {
    Event::Intent(Intent {
        operation_id: Uuid::from_u128(n),
        call: 1,
        travelling: 1,
        caller: "caller".to_owned(),
        identified_by: "connection".to_owned(),
        from: None,
        scope: RecordedScope::IncludeCustomers,
        customers: vec!["c1".to_owned()],
        services: vec!["s".to_owned()],
        reason: String::new(),
        etag: None,
        resolved_customers: None,
        request_id: None,
        request_digest: None,
        trace_id: None,
    })
}

fn outcome(n: u128) -> Event {
    Event::Outcome(Ended { outcome: "applied".to_owned(), cause: None, ..Ended::cut_short(Uuid::from_u128(n), "") })
}

fn open(dir: &Path, max_file_bytes: u64) -> (AuditDirectory, Vec<Uuid>) {
    AuditDirectory::open(dir, max_file_bytes, Timestamp::UNIX_EPOCH).unwrap()
}

fn append(directory: &mut AuditDirectory, events: Vec<Event>) -> Vec<HashChain> {
    directory.append(events, Timestamp::UNIX_EPOCH).unwrap()
}

fn file(dir: &Path, number: u64) -> std::path::PathBuf {
    dir.join(files::name(number))
}

fn check(dir: &Path) -> Verification {
    verify(dir, false, &[]).unwrap()
}

fn is_whole(dir: &Path) {
    let report = check(dir);
    assert!(report.flaws.is_empty(), "{report:?}");
}

/// Ten records in one file: its first one, and the intents and outcomes of 1 to 4 and an intent of 5.
fn ten_records() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (mut directory, _) = open(dir.path(), LARGE);
    for n in 1..5 {
        append(&mut directory, vec![intent(n)]);
        append(&mut directory, vec![outcome(n)]);
    }
    append(&mut directory, vec![intent(5)]);
    dir
}

#[test]
fn a_restart_goes_on_with_the_chain_and_gives_open_intents_their_outcome() {
    let dir = ten_records();
    let (mut directory, cut_short) = open(dir.path(), LARGE);
    assert_eq!(cut_short, [Uuid::from_u128(5)]);
    assert!(!directory.is_open(Uuid::from_u128(5)));
    append(&mut directory, vec![intent(6), outcome(6)]);
    drop(directory);
    let report = check(dir.path());
    assert_eq!((report.flaws.as_slice(), report.files, report.records, report.open), (&[][..], 2, 14, 0));
    let text = fs::read_to_string(file(dir.path(), 2)).unwrap();
    assert!(text.lines().nth(1).unwrap().contains("\"outcome\":\"unknown\",\"cause\":\"crash\""), "{text}");
    assert!(open(dir.path(), LARGE).1.is_empty(), "nothing is cut short twice");
}

#[test]
fn one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path(), LARGE);
    let second = AuditDirectory::open(dir.path(), LARGE, Timestamp::UNIX_EPOCH);
    assert!(matches!(second, Err(OpenError::Held { .. })));
    drop(first);
    open(dir.path(), LARGE);
}

#[test]
fn files_follow_each_other_when_they_are_full_and_carry_what_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let (mut directory, _) = open(dir.path(), 1);
    append(&mut directory, vec![intent(1)]);
    append(&mut directory, vec![intent(2)]);
    append(&mut directory, vec![outcome(1)]);
    drop(directory);
    let names: Vec<_> = files::list(dir.path()).unwrap().into_iter().map(|file| file.name).collect();
    assert_eq!(names.len(), 4, "{names:?}");
    assert!(names.is_sorted());
    is_whole(dir.path());
    // The intent stands two files before the last one.
    assert_eq!(open(dir.path(), LARGE).1, [Uuid::from_u128(2)]);
    is_whole(dir.path());
}

#[test]
fn whatever_a_crash_cuts_off_is_kept_apart_and_no_flaw() {
    let whole = ten_records();
    let bytes = fs::read(file(whole.path(), 1)).unwrap();
    let last = bytes[..bytes.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
    // The last record was not acknowledged: the head is the one before it.
    let head = {
        let (_, chain) = chain::open(files::lines(&bytes[..last]).0.last().unwrap().1).unwrap();
        files::head_line(&chain)
    };
    let first = bytes.iter().position(|byte| *byte == b'\n').unwrap();
    for cut in (last..bytes.len()).step_by(7).chain([last, last + 1, bytes.len() - 1]) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(file(dir.path(), 1), &bytes[..cut]).unwrap();
        fs::write(dir.path().join(files::HEAD_FILE), &head).unwrap();
        is_whole(dir.path());
        let (directory, cut_short) = open(dir.path(), LARGE);
        assert!(cut_short.is_empty(), "the intent that was cut off was never acknowledged: {cut}");
        drop(directory);
        let report = check(dir.path());
        assert!(report.flaws.is_empty(), "{cut}: {report:?}");
        assert_eq!(report.notes.len(), usize::from(cut > last), "{report:?}");
        assert_eq!(fs::read(file(dir.path(), 1)).unwrap(), &bytes[..cut], "left as it is");
    }
    // While a process begins its very first file.
    for cut in [0, 1, first] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(file(dir.path(), 1), &bytes[..cut]).unwrap();
        drop(open(dir.path(), LARGE));
        is_whole(dir.path());
    }
}

/// The machine dies: blocks of the last write may be zeros, and the head an older one.
#[test]
fn garbage_behind_what_was_acknowledged_is_no_flaw_but_before_it_is() {
    let dir = ten_records();
    let mut bytes = fs::read(file(dir.path(), 1)).unwrap();
    bytes.extend([0; 100]);
    bytes.extend(b"\n{\"half\n");
    fs::write(file(dir.path(), 1), &bytes).unwrap();
    is_whole(dir.path());
    drop(open(dir.path(), LARGE));
    is_whole(dir.path());

    let dir = ten_records();
    let mut bytes = fs::read(file(dir.path(), 1)).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 20].fill(0);
    fs::write(file(dir.path(), 1), &bytes).unwrap();
    assert!(!check(dir.path()).flaws.is_empty());
    let error = AuditDirectory::open(dir.path(), LARGE, Timestamp::UNIX_EPOCH).unwrap_err();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
}

/// An audit trail of three files; the first was left torn by a crash.
fn three_files() -> TempDir {
    let dir = ten_records();
    let torn = file(dir.path(), 1);
    let mut bytes = fs::read(&torn).unwrap();
    bytes.extend(b"{\"seq\":11,\"at\":\"19");
    fs::write(&torn, bytes).unwrap();
    for n in [6, 8] {
        let (mut directory, _) = open(dir.path(), LARGE);
        append(&mut directory, vec![intent(n), intent(n + 1)]);
        append(&mut directory, vec![outcome(n), outcome(n + 1)]);
    }
    dir
}

/// Changes the lines of a file.
fn edit(path: &Path, change: impl FnOnce(&mut Vec<String>)) {
    let text = fs::read_to_string(path).unwrap();
    let mut lines: Vec<_> = text.split('\n').map(str::to_owned).collect();
    change(&mut lines);
    fs::write(path, lines.join("\n")).unwrap();
}

#[test]
fn whatever_somebody_does_to_the_files_is_found() {
    type Change = fn(&Path);
    let table: [(&str, Change, Option<&str>); 17] = [
        ("nothing", |_| {}, None),
        ("edit", |dir| edit(&file(dir, 1), |lines| lines[3] = lines[3].replace("c1", "c2")), Some("edited")),
        (
            "edit of the last",
            |dir| edit(&file(dir, 3), |lines| lines[4] = lines[4].replace("applied", "unknown")),
            Some("edited"),
        ),
        ("removal", |dir| edit(&file(dir, 1), |lines| drop(lines.remove(3))), Some("record 5 where record 4 belongs")),
        ("removal of a first line", |dir| edit(&file(dir, 2), |lines| drop(lines.remove(0))), Some("belongs")),
        ("swap", |dir| edit(&file(dir, 1), |lines| lines.swap(3, 4)), Some("record 5 where record 4 belongs")),
        ("doubling", |dir| edit(&file(dir, 1), |lines| lines.insert(3, lines[3].clone())), Some("belongs")),
        ("a line cut short", |dir| edit(&file(dir, 1), |lines| lines[3].truncate(30)), Some("is no record")),
        ("a blank line", |dir| edit(&file(dir, 1), |lines| lines.insert(3, String::new())), Some("is no record")),
        ("a file cut off in the middle", |dir| edit(&file(dir, 2), |lines| lines.truncate(2)), Some("belongs")),
        ("the torn line taken away", |dir| edit(&file(dir, 1), |lines| lines[10].clear()), Some("torn bytes")),
        ("more behind the torn line", |dir| edit(&file(dir, 1), |lines| lines[10].push('x')), Some("torn bytes")),
        ("a file removed", |dir| fs::remove_file(file(dir, 2)).unwrap(), Some("belongs")),
        ("the first file removed", |dir| fs::remove_file(file(dir, 1)).unwrap(), Some("where record 1 belongs")),
        ("the last file removed", |dir| fs::remove_file(file(dir, 3)).unwrap(), Some("the end was cut off")),
        ("the end cut off", |dir| edit(&file(dir, 3), |lines| lines.truncate(3)), Some("the end was cut off")),
        (
            "files exchanged",
            |dir| {
                fs::rename(file(dir, 2), dir.join("x")).unwrap();
                fs::rename(file(dir, 3), file(dir, 2)).unwrap();
                fs::rename(dir.join("x"), file(dir, 3)).unwrap();
            },
            Some("belongs"),
        ),
    ];
    for (name, change, expected) in table {
        let dir = three_files();
        change(dir.path());
        let report = check(dir.path());
        match expected {
            None => assert!(report.flaws.is_empty(), "{name}: {report:?}"),
            Some(words) => assert!(report.flaws.iter().any(|flaw| flaw.contains(words)), "{name}: {report:?}"),
        }
    }
}

/// What is acknowledged would be there after a power cut, with the name of its file.
#[test]
fn nothing_is_acknowledged_before_it_is_synced() {
    let dir = tempfile::tempdir().unwrap();
    for life in 0..3 {
        let (mut directory, _) = open(dir.path(), 1_000);
        assert!(watched::unsynced().is_empty(), "{:?}", watched::unsynced());
        for n in 0..20 {
            append(&mut directory, vec![intent(100 * life + n)]);
            assert!(watched::unsynced().is_empty(), "{:?}", watched::unsynced());
        }
    }
    assert!(files::list(dir.path()).unwrap().len() > 6, "files followed each other");
    is_whole(dir.path());
}

/// The chain holds, and a file still hides what was open before it.
#[test]
fn a_file_that_begins_with_other_open_operations_than_there_are_is_found() {
    for (named, is_right) in [(vec![1], true), (vec![], false), (vec![1, 2], false)] {
        let opened = |open: &[u128]| {
            let open = open.iter().map(|n| Uuid::from_u128(*n)).collect();
            Event::Opened(Opened { version: "1".to_owned(), open, torn: Vec::new() })
        };
        let mut chain = HashChain::empty();
        let mut seal = |event| chain.seal(Timestamp::UNIX_EPOCH, event);
        let contents =
            [(files::name(1), [seal(opened(&[])), seal(intent(1))].concat()), (files::name(2), seal(opened(&named)))];
        let names = contents.each_ref().map(|(name, _)| name.clone());
        let report = super::verify::check(&names, |index| Ok(&contents[index].1[..]), None, false, &[]).unwrap();
        let flaw = report.flaws.iter().any(|flaw| flaw.contains("names other open operations"));
        assert_eq!(flaw, !is_right, "{named:?}: {report:?}");
    }
}

/// What the chain and the head cannot tell, a remembered record does.
#[test]
fn a_trail_that_was_written_anew_is_found_by_a_record_that_somebody_remembers() {
    let forged = ten_records();
    let real = tempfile::tempdir().unwrap();
    let (mut directory, _) = open(real.path(), LARGE);
    let remembered = append(&mut directory, vec![intent(77)]);
    assert!(check(forged.path()).flaws.is_empty());
    let report = verify(forged.path(), false, &remembered).unwrap();
    assert!(report.flaws.iter().any(|flaw| flaw.contains("written anew")), "{report:?}");
    assert!(verify(real.path(), false, &remembered).unwrap().flaws.is_empty());

    // The end cut off, and the head with it.
    let dir = ten_records();
    let last = verify(dir.path(), false, &[]).unwrap().last.unwrap();
    edit(&file(dir.path(), 1), |lines| drop(lines.remove(9)));
    fs::remove_file(dir.path().join(files::HEAD_FILE)).unwrap();
    let report = check(dir.path());
    assert!(report.flaws.is_empty() && report.notes[0].contains("no head file"), "{report:?}");
    let report = verify(dir.path(), false, &[last]).unwrap();
    assert!(report.flaws[0].contains("the end was cut off"), "{report:?}");
}

#[test]
fn older_files_may_be_moved_away_if_one_says_so() {
    let dir = three_files();
    fs::remove_file(file(dir.path(), 1)).unwrap();
    assert!(!check(dir.path()).flaws.is_empty());
    let report = verify(dir.path(), true, &[]).unwrap();
    assert_eq!((report.flaws.as_slice(), report.first), (&[][..], Some(11)));
    drop(open(dir.path(), LARGE));
    assert!(verify(dir.path(), true, &[]).unwrap().flaws.is_empty(), "and the gateway goes on");
}

#[test]
fn a_trail_that_was_changed_is_not_gone_on_with() {
    type Change = fn(&Path);
    let table: [(&str, Change); 6] = [
        ("edit", |dir| edit(&file(dir, 1), |lines| lines[3] = lines[3].replace("c1", "c2"))),
        ("edit, and no head", |dir| {
            edit(&file(dir, 1), |lines| lines[3] = lines[3].replace("c1", "c2"));
            fs::remove_file(dir.join(files::HEAD_FILE)).unwrap();
        }),
        ("swap, and no head", |dir| {
            edit(&file(dir, 1), |lines| lines.swap(3, 4));
            fs::remove_file(dir.join(files::HEAD_FILE)).unwrap();
        }),
        ("the end cut off", |dir| edit(&file(dir, 1), |lines| drop(lines.remove(9)))),
        ("all files removed", |dir| fs::remove_file(file(dir, 1)).unwrap()),
        ("the last record replaced", |dir| {
            let bytes = fs::read(file(dir, 1)).unwrap();
            edit(&file(dir, 1), |lines| {
                let (record, _) = chain::open(lines[9].as_bytes()).unwrap();
                let mut chain = HashChain { seq: 9, hash: record.prev };
                let line = chain.seal(Timestamp::UNIX_EPOCH, intent(99));
                lines[9] = String::from_utf8(line).unwrap().trim_end().to_owned();
            });
            assert_ne!(fs::read(file(dir, 1)).unwrap(), bytes);
        }),
    ];
    for (name, change) in table {
        let dir = ten_records();
        change(dir.path());
        let before = files::list(dir.path()).unwrap().len();
        let opened = AuditDirectory::open(dir.path(), LARGE, Timestamp::UNIX_EPOCH);
        assert!(matches!(opened, Err(OpenError::Damaged { .. })), "{name}: {opened:?}");
        assert_eq!(files::list(dir.path()).unwrap().len(), before, "{name}: nothing is written");
    }
}

/// What is written to a file that nobody finds is written for nobody.
#[test]
fn a_file_that_is_taken_away_takes_nothing_more() {
    let dir = tempfile::tempdir().unwrap();
    let (mut directory, _) = open(dir.path(), LARGE);
    append(&mut directory, vec![intent(1)]);
    let (here, away) = (file(dir.path(), 1), dir.path().join("away"));
    fs::rename(&here, &away).unwrap();
    directory.append(vec![intent(2)], Timestamp::UNIX_EPOCH).unwrap_err();
    fs::write(&here, "").unwrap();
    directory.append(vec![intent(2)], Timestamp::UNIX_EPOCH).unwrap_err();
    fs::rename(&away, &here).unwrap();
    append(&mut directory, vec![intent(2)]);
    is_whole(dir.path());
}

#[test]
fn nobody_else_may_read_the_trail() {
    use std::os::unix::fs::PermissionsExt as _;

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit");
    let _directory = open(&path, LARGE);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    for name in [files::name(1).as_str(), files::HEAD_FILE, "lock"] {
        assert_eq!(mode(&path.join(name)), 0o600, "{name}");
    }
}

/// Written by a gateway that knew no previews, and kept: it is whole, and it is read.
const OF_BEFORE_PREVIEWS: &str = r#"{"seq":1,"at":"2026-11-01T08:00:00Z","type":"INTENT","operation_id":"019abc00-0000-7000-8000-000000000001","call":1,"travelling":1,"caller":"c","identified_by":"connection","scope":"all_customers","customers":[],"services":["s"],"reason":"","prev":"0000000000000000000000000000000000000000000000000000000000000000","hash":"e810351fb381ba4c5befd9485ff50ae4c1fe889dde73186f73fe6e6e00260618"}"#;

#[test]
fn records_of_before_previews_are_read_and_followed() {
    let mut chain = HashChain::empty();
    let old = chain.follow(OF_BEFORE_PREVIEWS.as_bytes()).unwrap();
    let Event::Intent(old) = old.event else { panic!("an intent") };
    assert_eq!((&old.etag, old.resolved_customers), (&None, None));
    let bound = Intent { call: 2, etag: Some("v1:x".to_owned()), resolved_customers: Some(7), ..old.clone() };
    let mut end = chain.clone();
    let sealed = end.seal(Timestamp::UNIX_EPOCH, Event::Intent(bound.clone()));
    let sealed = sealed.strip_suffix(b"\n").unwrap();
    assert_eq!(chain.follow(sealed).unwrap().event, Event::Intent(bound));
    let unbound = HashChain::empty().seal(Timestamp::UNIX_EPOCH, Event::Intent(old));
    assert!(!String::from_utf8(unbound).unwrap().contains("etag"), "who is bound to nothing is written as before");
}

#[test]
fn a_file_that_a_rotator_copies_and_truncates_is_noticed_at_the_next_record() {
    let dir = tempfile::tempdir().unwrap();
    let (mut directory, _) = open(dir.path(), LARGE);
    append(&mut directory, vec![intent(1)]);
    let copy = fs::read(file(dir.path(), 1)).unwrap();
    fs::OpenOptions::new().write(true).open(file(dir.path(), 1)).unwrap().set_len(0).unwrap();
    let error = directory.append(vec![intent(2)], Timestamp::UNIX_EPOCH).unwrap_err().to_string();
    assert!(error.contains("was cut off: 0 bytes are there") && error.contains("copytruncate"), "{error}");
    drop(directory);
    // The next start says what to do, and `check-config` does.
    let Err(refused) = AuditDirectory::open(dir.path(), LARGE, Timestamp::UNIX_EPOCH) else { panic!("opened") };
    assert!(refused.to_string().contains("Put its copy back in place of the file that was cut"), "{refused}");
    assert_eq!(super::check(dir.path()).unwrap_err().to_string(), refused.to_string());
    fs::write(file(dir.path(), 1), copy).unwrap();
    let (mut directory, _) = open(dir.path(), LARGE);
    append(&mut directory, vec![intent(3)]);
    drop(directory);
    is_whole(dir.path());
}

#[test]
fn lines_are_read_one_by_one_and_a_line_that_never_ends_is_not_kept() {
    let long = vec![b'x'; 9 * 1024 * 1024];
    let text = [&b"a\n\n"[..], &long, b"\nb\nrest"].concat();
    let (mut reader, mut line, mut found) = (std::io::BufReader::new(&text[..]), Vec::new(), Vec::new());
    while let Some(is_whole) = files::next_line(&mut reader, &mut line).unwrap() {
        found.push((line.len(), is_whole));
    }
    assert_eq!(found, [(1, true), (0, true), (4 * 1024 * 1024, true), (1, true), (4, false)]);
}
