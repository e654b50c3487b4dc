//! The records of late, read back at the start: what [`crate::operations`] remembers of the last day.
//!
//! Read line by line, so that a day of large requests takes no more memory than one of its lines.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader},
    path::Path,
    time::{Duration, SystemTime},
};

use jiff::Timestamp;

use super::{
    OpenError, chain,
    files::{self, AuditFile},
    record::AuditRecord,
};

/// Gives every record since this moment to `take`, oldest first. What a crash left at the end of a file is passed over;
/// a bad line with good ones behind it is damage.
pub(crate) fn read_recent(
    directory: &Path,
    since: Timestamp,
    mut take: impl FnMut(&AuditRecord),
) -> Result<(), OpenError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Io { action: "read", path, source }
    };
    let files = files::list(directory).map_err(io(directory))?;
    // A file is written after the one before, so what follows a recent one is recent.
    let is_old = |file: &AuditFile| is_older(&file.path, since).unwrap_or(false);
    for file in files.iter().skip_while(|file| is_old(file)) {
        if let Some(line) = read_file(&file.path, since, &mut take).map_err(io(&file.path))? {
            let problem = format!("line {line} is no record, or was changed");
            return Err(OpenError::Damaged { path: file.path.clone(), problem });
        }
    }
    Ok(())
}

/// Whether a file was last written before this moment.
fn is_older(path: &Path, since: Timestamp) -> io::Result<bool> {
    let since = u64::try_from(since.as_millisecond()).unwrap_or_default();
    let since = SystemTime::UNIX_EPOCH + Duration::from_millis(since);
    Ok(path.metadata()?.modified()? < since)
}

/// The number of a line that is damaged.
fn read_file(path: &Path, since: Timestamp, take: &mut impl FnMut(&AuditRecord)) -> io::Result<Option<usize>> {
    let (mut bad, mut number) = (None, 0);
    let mut reader = BufReader::new(File::open(path)?);
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        number += 1;
        match chain::open(line.strip_suffix(b"\n").unwrap_or(&line)) {
            Ok(_) if bad.is_some() => return Ok(bad),
            Ok((record, _)) if record.at >= since => take(&record),
            Ok(_) => {}
            Err(_) => bad = bad.or(Some(number)),
        }
    }
}
