//! Netstrings, as socketmap(5) frames its requests and replies: `LEN:DATA,`.
//!
//! Takes: octets as they arrive. Gives: the first whole frame, what is missing of it, or why it is none.
//! Limits: [`MAX_REQUEST`] octets of data are handed on; up to [`MAX_SKIP`] are passed over, so that the next
//! request is found; a longer length, or text that is not a netstring, ends the connection.
//! Not here: what a request says (`reply`, `server`).

use std::io::Write;

/// The longest request that is looked at, in octets. No next hop that has a policy comes near it.
pub const MAX_REQUEST: usize = 12_000;

/// The longest request that is read and answered NOTFOUND, in octets.
pub const MAX_SKIP: usize = 1_000_000;

/// Digits of the longest length: those of [`MAX_SKIP`].
const MAX_DIGITS: usize = 7;

/// What the octets begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A whole request.
    Whole {
        /// Its data.
        data: &'a [u8],
        /// How many octets the frame took.
        used: usize,
    },
    /// Not yet a whole request.
    Partial,
    /// A request over the limit: `header` octets of length, then `data` octets and a comma to pass over.
    TooLong {
        /// Octets up to the colon, included.
        header: usize,
        /// The length that it names.
        data: usize,
    },
    /// No netstring: nothing behind it can be found.
    Malformed,
}

/// Reads the first frame.
pub fn decode(octets: &[u8]) -> Frame<'_> {
    let digits = octets.iter().take(MAX_DIGITS + 1).take_while(|b| b.is_ascii_digit()).count();
    match octets.get(digits) {
        _ if digits > MAX_DIGITS => return Frame::Malformed,
        None => return Frame::Partial,
        Some(b':') if digits > 0 => {}
        Some(_) => return Frame::Malformed,
    }
    if digits > 1 && octets[0] == b'0' {
        return Frame::Malformed;
    }
    let length = octets[..digits].iter().fold(0usize, |n, b| n * 10 + usize::from(b - b'0'));
    let header = digits + 1;
    if length > MAX_SKIP {
        return Frame::Malformed;
    }
    if length > MAX_REQUEST {
        return Frame::TooLong { header, data: length };
    }
    match octets.get(header + length) {
        None => Frame::Partial,
        Some(b',') => Frame::Whole { data: &octets[header..header + length], used: header + length + 1 },
        Some(_) => Frame::Malformed,
    }
}

/// Appends a frame.
pub fn encode(data: &[u8], out: &mut Vec<u8>) {
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{}:", data.len());
    out.extend_from_slice(data);
    out.push(b',');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames() {
        assert_eq!(decode(b"5:a b c,4:"), Frame::Whole { data: b"a b c", used: 8 });
        assert_eq!(decode(b"0:,"), Frame::Whole { data: b"", used: 3 });
        for part in ["", "1", "12", "5:", "5:abcde", "12000:"] {
            assert_eq!(decode(part.as_bytes()), Frame::Partial, "{part}");
        }
        for bad in [":", "a", "5;", "5:abcdef", "05:abcde,", "00:,", "-1:", " 5:", "12345678", "1000001:", "9999999:"] {
            assert_eq!(decode(bad.as_bytes()), Frame::Malformed, "{bad}");
        }
        assert_eq!(decode(b"12001:"), Frame::TooLong { header: 6, data: 12_001 });
        assert_eq!(decode(b"1000000:xx"), Frame::TooLong { header: 8, data: 1_000_000 });
    }

    proptest::proptest! {
        #[test]
        fn what_is_encoded_is_decoded(data: Vec<u8>, rest: Vec<u8>) {
            let mut octets = Vec::new();
            encode(&data, &mut octets);
            let used = octets.len();
            for cut in 0..used {
                assert_eq!(decode(&octets[..cut]), Frame::Partial);
            }
            octets.extend(rest);
            assert_eq!(decode(&octets), Frame::Whole { data: &data, used });
        }

        #[test]
        fn nothing_makes_it_panic(octets: Vec<u8>) {
            if let Frame::Whole { data, used } = decode(&octets) {
                assert!(used <= octets.len() && data.len() < used);
            }
        }
    }
}
