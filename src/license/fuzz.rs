//! Any etag: see [`crate::fuzz`].

use super::Etag;

/// Exactly one spelling is an etag.
pub(crate) fn etag(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(etag) = Etag::parse(text.to_owned()) {
        assert_eq!((etag.as_str(), text.len()), (text, 67));
    }
}
