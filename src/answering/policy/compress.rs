//! Texts in a third of their octets: one octet stands for each word of a list, and one for the name of the domain.
//!
//! Takes: a list of words, a name, a text. Gives: the text packed, and back.
//! Such octets are control characters; a text that has some of its own is kept as it is.
//! Limits: 7 words.
//! Not here: which words are common in what (`sts/text`, `entries`).

/// Stands for the name; the words are counted from 1.
pub const NAME: u8 = 8;

/// Begins a text that is kept as it is.
pub const PLAIN: u8 = 0;

/// Packs a text, behind what is in `packed`.
pub fn pack(words: &[&str], name: &str, text: &[u8], packed: &mut Vec<u8>) {
    if text.iter().any(|octet| *octet <= NAME) {
        packed.push(PLAIN);
        packed.extend_from_slice(text);
        return;
    }
    let mut rest = text;
    'text: while let Some((first, after)) = rest.split_first() {
        for (octet, word) in (1..NAME).zip(words) {
            if let Some(after) = rest.strip_prefix(word.as_bytes()) {
                packed.push(octet);
                rest = after;
                continue 'text;
            }
        }
        match rest.strip_prefix(name.as_bytes()).filter(|_| !name.is_empty()) {
            Some(after) => {
                packed.push(NAME);
                rest = after;
            }
            None => {
                packed.push(*first);
                rest = after;
            }
        }
    }
}

/// The text again, behind what is in `text`. A word that is not in the list becomes `?`.
pub fn unpack(words: &[&str], name: &str, packed: &[u8], text: &mut Vec<u8>) {
    if let Some(plain) = packed.strip_prefix(&[PLAIN]) {
        return text.extend_from_slice(plain);
    }
    let mut rest = packed;
    loop {
        // What stands for itself is copied in one piece: an answer may be long.
        let (plain, coded) = rest.split_at(rest.iter().position(|octet| *octet <= NAME).unwrap_or(rest.len()));
        text.extend_from_slice(plain);
        let Some((octet, after)) = coded.split_first() else { return };
        let word = match octet {
            &NAME => name,
            octet => words.get(usize::from(*octet).wrapping_sub(1)).unwrap_or(&"?"),
        };
        text.extend_from_slice(word.as_bytes());
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_unpacked() {
        let words = ["secure ", "match="];
        let unpacked = |packed: &[u8]| {
            let mut text = b"before ".to_vec();
            unpack(&words, "a.example", packed, &mut text);
            String::from_utf8(text).unwrap()
        };
        for (text, length) in [
            ("", 0),
            ("x", 1),
            ("secure match=a.example", 3),
            ("secure match=a.example:b.example", 13),
            ("matches a.example", 9),
            ("\u{1} as it is", 11),
        ] {
            let mut packed = Vec::new();
            pack(&words, "a.example", text.as_bytes(), &mut packed);
            assert_eq!((unpacked(&packed), packed.len()), (format!("before {text}"), length));
        }
        assert_eq!(unpacked(b"a\x03b\x00c"), "before a?b?c", "from another version");
    }
}
