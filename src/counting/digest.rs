//! A digest of bytes that is stored: of lines before a position, of deliveries that are counted.
//!
//! Takes: any bytes. Gives: 64 bits. Whoever can write to the log can forge counts anyway, so it need not resist anybody.
//! Not here: digests that outsiders must not be able to choose (`store/format`).

/// The digest of `bytes`: the same in every build and on every host, because it is stored; eight bytes a step.
pub(crate) fn digest(bytes: &[u8]) -> u64 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let step = |hash: u64, word: u64| (hash.rotate_left(29) ^ word).wrapping_mul(FACTOR);
    let (words, rest) = bytes.as_chunks::<8>();
    let hash = words.iter().fold(bytes.len() as u64, |hash, word| step(hash, u64::from_le_bytes(*word)));
    let hash = rest.iter().fold(hash, |hash, byte| step(hash, u64::from(*byte)));
    let hash = (hash ^ (hash >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash ^ (hash >> 32)
}

#[cfg(test)]
mod tests {
    use super::digest;

    #[test]
    fn digests_tell_texts_apart_and_stay_the_same() {
        // Stored: another value means another format of the store.
        assert_eq!(digest(b""), 0);
        let texts: Vec<Vec<u8>> = (0..20_000).map(|n| format!("line {n} of a log\n").into_bytes()).collect();
        let lines: std::collections::BTreeSet<u64> = texts.iter().map(|text| digest(text)).collect();
        assert_eq!(lines.len(), texts.len());
    }
}
