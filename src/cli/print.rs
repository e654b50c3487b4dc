//! What people see: text with tables, colour where a terminal shows it and `NO_COLOR` does not forbid it.
//!
//! A reader that has gone is no reason to fail: what the command did stays done, and its exit code says so.

use std::{
    io::{ErrorKind, Write as _},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use anstyle::{AnsiColor, Style};
use serde::Serialize;

/// For what went well.
pub(super) const GOOD: Style = AnsiColor::Green.on_default().bold();
/// For what went wrong.
pub(super) const BAD: Style = AnsiColor::Red.on_default().bold();
/// For what may have gone either way.
pub(super) const UNSURE: Style = AnsiColor::Yellow.on_default().bold();
/// For heads and names.
pub const HEADING: Style = Style::new().bold();

/// Whether something could not be written to standard output although somebody reads it: a full disk, say.
static IS_INCOMPLETE: AtomicBool = AtomicBool::new(false);

/// Writes a text to standard output.
pub fn out(text: &str) {
    let mut stream = anstream::stdout();
    let written = writeln!(stream, "{}", text.trim_end()).and_then(|()| stream.flush());
    if let Err(failure) = written
        && failure.kind() != ErrorKind::BrokenPipe
    {
        IS_INCOMPLETE.store(true, Relaxed);
        error(&format!("standard output cannot be written: {failure}"));
    }
}

/// Whether what was written with [`out`] is not all there.
pub(super) fn is_incomplete() -> bool {
    IS_INCOMPLETE.load(Relaxed)
}

/// Writes a text to standard error.
pub(super) fn err(text: &str) {
    let _ = writeln!(anstream::stderr(), "{}", text.trim_end());
}

/// Writes why a command cannot go on to standard error.
pub fn error(message: &str) {
    err(&format!("{BAD}error:{BAD:#} {message}"));
}

/// Writes one JSON object to standard output.
pub(super) fn json(value: &impl Serialize) {
    out(&serde_json::to_string(value).expect("plain structs of strings and numbers can always be written"));
}

/// Rows under a head, in aligned columns.
pub fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let widths = widths(rows.iter().map(|row| row.each_ref().map(String::as_str)).chain([head]));
    let head = format!("  {HEADING}{}{HEADING:#}", line(head, widths));
    let rows = rows.iter().map(|row| format!("  {}", line(row.each_ref().map(String::as_str), widths)));
    lines([head].into_iter().chain(rows))
}

/// Names and their values, in two aligned columns.
pub fn list(rows: &[(&str, String)]) -> String {
    let widths = widths(rows.iter().map(|(name, value)| [*name, value.as_str()]));
    lines(rows.iter().map(|(name, value)| format!("  {}", line([name, value], widths))))
}

/// Text of these lines.
pub fn lines(lines: impl Iterator<Item = String>) -> String {
    lines.flat_map(|line| [line, "\n".to_owned()]).collect()
}

/// The text without control characters: what a server sends must not steer the terminal, nor turn its lines around.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || changes_direction(c) { '\u{fffd}' } else { c }).collect()
}

/// Marks of direction, and ends of lines that are no control characters.
fn changes_direction(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn widths<'a, const N: usize>(rows: impl Iterator<Item = [&'a str; N]>) -> [usize; N] {
    rows.fold([0; N], |mut widths, row| {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
        widths
    })
}

fn line<const N: usize>(cells: [&str; N], widths: [usize; N]) -> String {
    let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{:width$}  ", clean(cell)));
    padded.collect::<String>().trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_control_characters_are_replaced() {
        let rows = [["é".to_owned(), "1".to_owned()], ["long\u{1b}[2\u{202e}".to_owned(), "2".to_owned()]];
        let text = anstream::adapter::strip_str(&table(["A", "B"], &rows)).to_string();
        assert_eq!(text, "  A         B\n  é         1\n  long\u{fffd}[2\u{fffd}  2\n");
    }
}
