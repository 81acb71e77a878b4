//! Names in log lines as text.
//!
//! Takes: bytes of a line. Gives: owned text for an outcome or for a key that is stored.
//! Limits: none of its own; the parsers bound every field.
//! When it fails: never; bytes that are not UTF-8 are replaced (U+FFFD).
//! Not here: domain names in their canonical form (`base::domain_name`).

/// Bytes of a line as text.
pub(super) fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A host name in lower case.
pub(super) fn lower_case(name: &[u8]) -> String {
    let mut name = lossy(name);
    name.make_ascii_lowercase();
    name
}
