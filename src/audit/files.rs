//! The files of an audit trail, read: their names, the head, what a crash left behind, and where to go on.
//!
//! Called by [`super::directory`] before it writes, and by [`super::verify`]. Writes nothing.

use std::{
    fs,
    io::{self, BufRead},
    path::{Path, PathBuf},
};

use super::{
    OpenError,
    chain::{self, HashChain, Open, RecordFlaw, sha256},
    record::{Event, Torn},
};

/// The last record that is known to be durable: its number, 20 digits, and its hash.
pub(super) const HEAD_FILE: &str = "head";
/// How long the head is.
pub(super) const HEAD_FILE_BYTES: usize = 20 + 1 + 64 + 1;

/// A file of the audit trail.
#[derive(Debug, Clone)]
pub(super) struct AuditFile {
    pub(super) number: u64,
    pub(super) name: String,
    pub(super) path: PathBuf,
}

/// The name of the file of this number: names sort as the files follow each other.
pub(super) fn name(number: u64) -> String {
    format!("audit-{number:010}.jsonl")
}

/// The files in a directory, in order.
pub(super) fn list(directory: &Path) -> io::Result<Vec<AuditFile>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let digits = name.strip_prefix("audit-").and_then(|rest| rest.strip_suffix(".jsonl"));
        if let Some(number) = digits.and_then(|digits| digits.parse().ok()) {
            files.push(AuditFile { number, path: directory.join(&name), name });
        }
    }
    files.sort_by_key(|file| file.number);
    Ok(files)
}

/// The head as it stands; none if there is none, or a crash of the machine spoilt it.
pub(super) fn read_head(directory: &Path) -> Option<HashChain> {
    parse_head(&fs::read(directory.join(HEAD_FILE)).ok()?)
}

pub(super) fn head_line(chain: &HashChain) -> String {
    format!("{:020} {}\n", chain.seq, chain.hash)
}

pub(super) fn parse_head(bytes: &[u8]) -> Option<HashChain> {
    let text = std::str::from_utf8(bytes).ok().filter(|text| text.len() == HEAD_FILE_BYTES)?;
    let (seq, hash) = text.strip_suffix('\n')?.split_once(' ')?;
    Some(HashChain { seq: seq.parse().ok()?, hash: hash.to_owned() })
}

/// Lines with the place where each begins, and what stands behind the last line feed.
pub(super) fn lines(bytes: &[u8]) -> (impl Iterator<Item = (usize, &[u8])>, &[u8]) {
    let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let (whole, rest) = bytes.split_at(end);
    let lines = whole.split_inclusive(|byte| *byte == b'\n').scan(0, |at, line| {
        let from = *at;
        *at += line.len();
        Some((from, &line[..line.len() - 1]))
    });
    (lines, rest)
}

/// No record is as long: 1,000 customers and 100 services of 128 characters fit ten times.
const MOST_LINE_BYTES: usize = 4 * 1024 * 1024;

/// Reads the next line, without its line feed. None: there is none. False: no line feed ends it, so it is not whole. Of a
/// line that is longer than any record, only the beginning is kept.
pub(super) fn next_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<Option<bool>> {
    line.clear();
    let mut is_begun = false;
    loop {
        let bytes = match reader.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            bytes => bytes?,
        };
        if bytes.is_empty() {
            return Ok(is_begun.then_some(false));
        }
        is_begun = true;
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let part = &bytes[..end.unwrap_or(bytes.len())];
        line.extend_from_slice(&part[..part.len().min(MOST_LINE_BYTES - line.len())]);
        let read = part.len() + usize::from(end.is_some());
        reader.consume(read);
        if end.is_some() {
            return Ok(Some(true));
        }
    }
}

/// Where an audit trail goes on.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ResumePoint {
    pub(super) chain: HashChain,
    pub(super) open: Open,
    /// What a crash left behind the last good record.
    pub(super) torn: Vec<Torn>,
    pub(super) last_number: u64,
}

/// Finds where the audit trail of a directory ends. Reads no more than the last file with a record in it and what comes
/// after: every file begins with all that is needed.
pub(super) fn resume_point(directory: &Path) -> Result<ResumePoint, OpenError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Io { action: "read", path, source }
    };
    let files = list(directory).map_err(io(directory))?;
    let head = read_head(directory);
    let last_number = files.last().map_or(0, |file| file.number);
    let mut standing = ResumePoint { chain: HashChain::empty(), open: Open::default(), torn: Vec::new(), last_number };
    for file in files.iter().rev() {
        let bytes = fs::read(&file.path).map_err(io(&file.path))?;
        let read = read_file(&bytes, head.as_ref());
        if let Some(flaw) = read.damage {
            return Err(OpenError::Damaged {
                path: file.path.clone(),
                problem: format!("line {} {flaw}", read.records + 1),
            });
        }
        standing.torn.extend(torn(&file.name, &bytes, read.good_bytes));
        if let Some((chain, open)) = read.end {
            (standing.chain, standing.open) = (chain, open);
            break;
        }
    }
    standing.torn.reverse();
    match head {
        Some(head) if head.seq > standing.chain.seq => Err(OpenError::Damaged {
            path: directory.to_owned(),
            problem: format!(
                "record {} was written, and the last one now is {}: the end was cut off, as by a log rotator that copies \
                 and truncates (copytruncate). Put its copy back in place of the file that was cut, and keep it away from here",
                head.seq, standing.chain.seq
            ),
        }),
        _ => Ok(standing),
    }
}

/// What a file's bytes come to.
pub(super) struct FileScan {
    pub(super) good_bytes: usize,
    pub(super) records: usize,
    end: Option<(HashChain, Open)>,
    /// A line that is no good and that no crash left so.
    pub(super) damage: Option<RecordFlaw>,
}

/// Reads records as far as they are good. What follows is what a crash left if nobody was told that it was written:
/// the head is not behind it, or, without one, no good record stands behind it.
pub(super) fn read_file(bytes: &[u8], head: Option<&HashChain>) -> FileScan {
    let (mut lines, _) = lines(bytes);
    let mut read = FileScan { good_bytes: 0, records: 0, end: None, damage: None };
    while let Some((from, line)) = lines.next() {
        let next = match &mut read.end {
            Some((chain, open)) => chain.follow(line).map(|record| open.note(&record.event)),
            None => chain::open(line).map(|(record, chain)| {
                let mut open = Open::default();
                open.note(&record.event);
                // Only a file's first record says what was open before it.
                if matches!(record.event, Event::Opened(_)) {
                    read.end = Some((chain, open));
                }
            }),
        };
        let reached = read.end.as_ref().map_or(0, |(chain, _)| chain.seq);
        if let (Some((chain, _)), Some(head)) = (&read.end, head)
            && chain.seq == head.seq
            && chain.hash != head.hash
            && next.is_ok()
        {
            read.damage = Some(RecordFlaw::DoesNotFollow);
            return read;
        }
        match next {
            Ok(()) if read.end.is_some() => {
                read.good_bytes = from + line.len() + 1;
                read.records += 1;
            }
            next => {
                let was_durable = match head {
                    // Where nothing is good, an older file says how far the audit trail reached.
                    Some(head) => read.end.is_some() && reached < head.seq,
                    None => chain::open(line).is_ok() || lines.any(|(_, line)| chain::open(line).is_ok()),
                };
                read.damage = was_durable.then(|| next.err().unwrap_or(RecordFlaw::NotARecord));
                return read;
            }
        }
    }
    read
}

fn torn(name: &str, bytes: &[u8], from: usize) -> Option<Torn> {
    let rest = &bytes[from..];
    (!rest.is_empty()).then(|| Torn {
        file: name.to_owned(),
        from: from as u64,
        bytes: rest.len() as u64,
        sha256: sha256(rest),
    })
}
