//! Any file of an audit trail: see [`crate::fuzz`].

use super::files;

/// What is read as good ends at a line's end, and reads the same by itself.
pub(crate) fn file(bytes: &[u8]) {
    let read = files::read_file(bytes, None);
    assert!(read.good_bytes == 0 || bytes[read.good_bytes - 1] == b'\n');
    let again = files::read_file(&bytes[..read.good_bytes], None);
    assert_eq!((again.good_bytes, again.records, again.damage.is_none()), (read.good_bytes, read.records, true));
    if let Some(head) = files::parse_head(bytes) {
        let _ = files::read_file(bytes, Some(&head));
    }
}
