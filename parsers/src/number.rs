//! Numbers in a line.

/// A run of at least one ASCII digit that fits in 32 bits, and what follows it.
#[inline]
pub(crate) fn decimal(text: &[u8]) -> Option<(u32, &[u8])> {
    let mut value = 0u32;
    let mut rest = text;
    while let [digit @ b'0'..=b'9', after @ ..] = rest {
        value = value.checked_mul(10)?.checked_add(u32::from(digit - b'0'))?;
        rest = after;
    }
    (rest.len() < text.len()).then_some((value, rest))
}
