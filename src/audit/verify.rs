//! Reads a whole audit trail, line by line, and says what was done to it. Called by `license-gateway audit verify`; takes
//! no lock.

use std::{
    fs,
    io::{self, BufRead, BufReader},
    path::Path,
};

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};

use super::{
    OpenError,
    chain::{self, HashChain, Open, RecordFlaw},
    files,
    record::{Event, Torn},
};

/// A record that somebody remembers: number and hash.
pub(crate) use super::chain::HashChain as Remembered;

/// More flaws than this tell nothing new.
const MOST_FLAWS: usize = 50;

/// What an audit trail came to.
#[derive(Debug, Default)]
pub(crate) struct Verification {
    pub(crate) files: usize,
    pub(crate) records: u64,
    /// The first record's number; 1 unless older files are gone.
    pub(crate) first: Option<u64>,
    /// The last record.
    pub(crate) last: Option<HashChain>,
    /// The number of operations that have an intent and no outcome.
    pub(crate) open: usize,
    /// What is wrong.
    pub(crate) flaws: Vec<String>,
    /// What is worth knowing, and no sign of a change.
    pub(crate) notes: Vec<String>,
}

/// Checks the audit trail of a directory. `older_are_away`: it need not begin with record 1. `expected`: records that
/// somebody remembers, as the log does.
pub(crate) fn verify(
    directory: &Path,
    older_are_away: bool,
    expected: &[HashChain],
) -> Result<Verification, OpenError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Io { action: "read", path, source }
    };
    // The head first: what is written meanwhile is behind it.
    let head = files::read_head(directory);
    let files = files::list(directory).map_err(io(directory))?;
    let names: Vec<_> = files.iter().map(|file| file.name.clone()).collect();
    let open = |index: usize| fs::File::open(&files[index].path).map(BufReader::new);
    check(&names, open, head.as_ref(), older_are_away, expected)
        .map_err(|(index, source): (usize, io::Error)| io(&files[index].path)(source))
}

/// The same for files of these names, in order, which `open` opens. Holds one line at a time. An error comes with the
/// index of its file.
pub(super) fn check<R: BufRead>(
    names: &[String],
    open: impl Fn(usize) -> io::Result<R>,
    head: Option<&HashChain>,
    older_are_away: bool,
    expected: &[HashChain],
) -> Result<Verification, (usize, io::Error)> {
    let mut declared: Vec<Torn> = Vec::new();
    for index in 0..names.len() {
        declared.extend(open(index).and_then(first_line).map_err(|error| (index, error))?);
    }
    let mut check = Check {
        report: Verification { files: names.len(), ..Verification::default() },
        chain: None,
        open: Open::default(),
        remembered: head.into_iter().chain(expected).cloned().collect(),
        older_are_away,
    };
    for (index, name) in names.iter().enumerate() {
        let torn = declared.iter().find(|torn| torn.file == *name);
        let checked = open(index).and_then(|reader| check.file(name, reader, torn, head));
        checked.map_err(|error| (index, error))?;
    }
    Ok(check.finish(head))
}

/// What the first record of a file says about the files before.
fn first_line(mut reader: impl BufRead) -> io::Result<Vec<Torn>> {
    let mut first = Vec::new();
    files::next_line(&mut reader, &mut first)?;
    Ok(match chain::open(&first).map(|(record, _)| record.event) {
        Ok(Event::Opened(opened)) => opened.torn,
        _ => Vec::new(),
    })
}

/// Hashes what is written to it.
struct HashWriter(Sha256);

impl io::Write for HashWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Check {
    report: Verification,
    /// None: there was no record yet.
    chain: Option<HashChain>,
    open: Open,
    /// What the audit trail must hold: the hash of a record.
    remembered: Vec<HashChain>,
    older_are_away: bool,
}

impl Check {
    fn file(
        &mut self,
        name: &str,
        reader: impl BufRead,
        torn: Option<&Torn>,
        head: Option<&HashChain>,
    ) -> io::Result<()> {
        let mut good = reader.take(torn.map_or(u64::MAX, |torn| torn.from));
        self.lines(name, &mut good, head)?;
        let Some(torn) = torn else { return Ok(()) };
        if good.limit() > 0 {
            self.flaw(format!("{name}: is shorter than when it was last written"));
            return Ok(());
        }
        let mut hash = HashWriter(Sha256::new());
        let length = io::copy(&mut good.into_inner(), &mut hash)?;
        if length == torn.bytes && HEXLOWER.encode(&hash.0.finalize()) == torn.sha256 {
            self.note(format!("{name}: {length} torn bytes at its end, left by a crash"));
        } else {
            self.flaw(format!("{name}: the torn bytes at its end are not those that the crash left"));
        }
        Ok(())
    }

    fn lines(&mut self, name: &str, reader: &mut impl BufRead, head: Option<&HashChain>) -> io::Result<()> {
        let (mut number, mut line) = (0, Vec::new());
        while let Some(is_whole) = files::next_line(reader, &mut line)? {
            if !is_whole {
                self.note(format!("{name}: {} bytes at its end that are no whole record (yet)", line.len()));
                break;
            }
            number += 1;
            let line = line.as_slice();
            let place = format!("{name}, line {number}");
            let chain = self.chain.get_or_insert_with(HashChain::empty);
            match chain.follow(line) {
                Ok(record) => {
                    // Every file says what is open as it begins, and must be right.
                    let before = self.open.clone();
                    self.open.note(&record.event);
                    let is_first = self.report.records == 0;
                    if matches!(record.event, Event::Opened(_)) && self.open != before && !is_first {
                        self.flaw(format!("{place}: names other open operations than there are"));
                    }
                    self.took(record.seq);
                }
                Err(flaw) => {
                    let (seq, was_empty) = (chain.seq, self.report.records == 0);
                    let is_beyond = head.is_some_and(|head| seq >= head.seq);
                    match chain::open(line) {
                        // Goes on from there: what comes after may be whole.
                        Ok((record, end)) => {
                            if !(was_empty && self.older_are_away) {
                                self.flaw(format!("{place}: {flaw}"));
                            }
                            self.chain = Some(end);
                            self.open.note(&record.event);
                            self.took(record.seq);
                        }
                        Err(_) if is_beyond => self.note(format!("{place}: not acknowledged, left by a crash")),
                        Err(_) => {
                            self.flaw(format!("{place}: {flaw}"));
                            // One record is lost here; those after it are not out of place for that.
                            self.skip(line, &flaw);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Goes on behind a record that was edited in place, by the hash that it had.
    fn skip(&mut self, line: &[u8], flaw: &RecordFlaw) {
        if *flaw != RecordFlaw::Edited {
            return;
        }
        let hash = line.len().checked_sub(66).and_then(|from| line.get(from..from + 64));
        if let (Some(chain), Some(hash)) = (&mut self.chain, hash) {
            *chain = HashChain { seq: chain.seq + 1, hash: String::from_utf8_lossy(hash).into_owned() };
        }
    }

    fn took(&mut self, seq: u64) {
        self.report.records += 1;
        self.report.first.get_or_insert(seq);
        let Some(chain) = &self.chain else { return };
        let (seq, hash) = (chain.seq, chain.hash.clone());
        if self.remembered.iter().any(|other| other.seq == seq && other.hash != hash) {
            self.flaw(format!("record {seq} is not the one that was remembered: the trail was written anew"));
        }
    }

    fn finish(mut self, head: Option<&HashChain>) -> Verification {
        let last = self.chain.as_ref().map_or(0, |chain| chain.seq);
        let missing = self.remembered.iter().map(|other| other.seq).filter(|seq| *seq > last).max();
        if let Some(seq) = missing {
            self.flaw(format!("record {seq} was written, and the last one now is {last}: the end was cut off"));
        }
        let first = self.report.first.unwrap_or(1);
        let unseen: Vec<_> = self.remembered.iter().map(|other| other.seq).filter(|seq| *seq < first).collect();
        for seq in unseen.into_iter().filter(|seq| *seq > 0) {
            self.note(format!("record {seq} cannot be compared: it is in a file that is not here"));
        }
        if first > 1 && self.older_are_away {
            self.note(format!("begins with record {first}: older files are not here"));
        }
        if head.is_none() {
            self.note("there is no head file: whether the end was cut off cannot be told".to_owned());
        }
        self.report.open = self.open.0.len();
        self.report.last = self.chain.filter(|chain| chain.seq > 0);
        self.report
    }

    fn flaw(&mut self, flaw: String) {
        if self.report.flaws.len() < MOST_FLAWS {
            self.report.flaws.push(flaw);
        }
    }

    fn note(&mut self, note: String) {
        if self.report.notes.len() < MOST_FLAWS {
            self.report.notes.push(note);
        }
    }
}
