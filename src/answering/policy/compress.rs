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
    for octet in packed {
        match octet {
            &NAME => text.extend_from_slice(name.as_bytes()),
            1..NAME => text.extend_from_slice(words.get(usize::from(*octet) - 1).unwrap_or(&"?").as_bytes()),
            octet => text.push(*octet),
        }
    }
}
