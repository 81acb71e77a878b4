//! The text of a document as it is kept: as served, in a third of its octets.
//!
//! Takes: lines, and the domain that served them. Gives: a [`PolicyText`], which many can hold, and the same lines
//! back. Documents are made of few words and the domain's own name (`packed`).
//! Not here: what the lines mean (`document`).

use std::sync::Arc;

use crate::answering::policy::compress;

/// The words. Stored texts name these by number: the list may grow at its end, up to 7.
const DICTIONARY: [&str; 6] =
    ["version: STSv1\n", "mode: enforce\n", "mode: testing\n", "mx: ", "max_age: ", "604800\n"];

/// Lines of a document, packed. Two are equal if their lines are and one domain served both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyText(Arc<[u8]>);

impl PolicyText {
    /// Packs lines, which have no line feeds in them.
    pub fn new<S: AsRef<str>>(name: &str, lines: &[S]) -> PolicyText {
        let mut whole = String::with_capacity(lines.iter().map(|line| line.as_ref().len() + 1).sum());
        for line in lines {
            whole.push_str(line.as_ref());
            whole.push('\n');
        }
        let mut packed = Vec::with_capacity(whole.len() / 2);
        compress::pack(&DICTIONARY, name, whole.as_bytes(), &mut packed);
        PolicyText(packed.into())
    }

    /// A text as it was stored.
    pub fn from_packed(bytes: &[u8]) -> PolicyText {
        PolicyText(bytes.into())
    }

    /// As it is stored.
    pub fn packed_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether both are the same piece of memory or have the same lines; makes them the same piece if so.
    pub fn share_with(&mut self, other: &PolicyText) -> bool {
        let same = self == other;
        if same {
            self.0 = Arc::clone(&other.0);
        }
        same
    }

    /// The lines.
    pub fn lines(&self, name: &str) -> Vec<String> {
        self.unpack(name).split_terminator('\n').map(str::to_owned).collect()
    }

    /// The lines, each with a line feed behind it. Octets that this program has not packed become U+FFFD.
    pub fn unpack(&self, name: &str) -> String {
        let mut whole = Vec::with_capacity(self.0.len() * 4);
        compress::unpack(&DICTIONARY, name, &self.0, &mut whole);
        String::from_utf8(whole).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::answering::policy::compress::PLAIN;

    #[test]
    fn a_common_document_takes_few_octets() {
        let lines = ["version: STSv1", "mode: enforce", "mx: mx.example.com", "mx: *.example.net", "max_age: 604800"];
        let text = PolicyText::new("example.com", &lines);
        assert_eq!(text.packed_bytes(), b"\x01\x02\x04mx.\x08\n\x04*.example.net\n\x05\x06");
        assert_eq!(text.lines("example.com"), lines);
    }

    #[test]
    fn what_is_no_plain_text_is_kept_as_it_is() {
        let lines = ["<html>\u{1}\u{8}", "\u{fffd}\r", "  "];
        let text = PolicyText::new("example.com", &lines);
        assert_eq!((text.packed_bytes()[0], text.lines("other.example")), (PLAIN, lines.map(str::to_owned).to_vec()));
    }

    proptest! {
        #[test]
        fn lines_come_back(name in "[a-z.]{0,4}", lines in proptest::collection::vec("(mx: |mode: enforce|[a-z.]{0,6}|[^\n]{1,8}){1,3}", 0..6)) {
            prop_assert_eq!(PolicyText::new(&name, &lines).lines(&name), lines);
        }

        #[test]
        fn strange_bytes_are_no_panic(name in "[a-z.]{0,4}", bytes: Vec<u8>) {
            let _ = PolicyText::from_packed(&bytes).lines(&name);
        }
    }
}
