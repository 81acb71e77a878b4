//! Whole lines from a stream that comes in pieces.
//!
//! Takes: octets as they are read. Gives: whole lines, and how many were left out.
//! Limits: a line of the length given at most is held; longer ones are skipped and counted.

use memchr::{memchr, memrchr};

/// What has been read and not handed on.
#[derive(Debug)]
pub struct Cutter {
    held: Vec<u8>,
    most: usize,
    /// Within a line that is too long.
    skipping: bool,
    skipped: u64,
}

impl Cutter {
    /// Lines of at most so many octets.
    pub fn new(most: usize) -> Cutter {
        Cutter { held: Vec::new(), most, skipping: false, skipped: 0 }
    }

    /// Takes what was read.
    pub fn push(&mut self, mut octets: &[u8]) {
        if self.skipping {
            let Some(end) = memchr(b'\n', octets) else { return };
            octets = &octets[end + 1..];
            self.skipping = false;
        }
        self.held.extend_from_slice(octets);
        let rest = memrchr(b'\n', &self.held).map_or(0, |at| at + 1);
        if self.held.len() - rest > self.most {
            self.held.truncate(rest);
            self.skipping = true;
            self.skipped += 1;
        }
    }

    /// How many octets of whole lines are there.
    pub fn whole(&self) -> usize {
        memrchr(b'\n', &self.held).map_or(0, |at| at + 1)
    }

    /// The whole lines, and how many were left out since the last call.
    pub fn take(&mut self) -> (Vec<u8>, u64) {
        let rest = self.held.split_off(self.whole());
        let mut lines = std::mem::replace(&mut self.held, rest);
        let too_long = |line: &&[u8]| line.len() > self.most + 1;
        let long = lines.split_inclusive(|b| *b == b'\n').filter(too_long).count() as u64;
        if long > 0 {
            let kept = lines.split_inclusive(|b| *b == b'\n').filter(|line| !too_long(line)).flatten();
            lines = kept.copied().collect();
        }
        (lines, std::mem::take(&mut self.skipped) + long)
    }

    /// The first whole line, without its `\n`.
    pub fn first(&self) -> &[u8] {
        memchr(b'\n', &self.held).map_or(b"", |end| &self.held[..end])
    }

    /// Forgets the first whole line.
    pub fn drop_first(&mut self) {
        if let Some(end) = memchr(b'\n', &self.held) {
            self.held.drain(..=end);
        }
    }

    /// The last line, which nobody will end: with `\n`; empty where there is none.
    pub fn last(&mut self) -> Vec<u8> {
        let mut line = std::mem::take(&mut self.held);
        if !line.is_empty() && !line.ends_with(b"\n") {
            line.push(b'\n');
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_become_lines_and_long_ones_are_left_out() {
        let mut cutter = Cutter::new(8);
        for piece in ["ab", "c\nde", "f", "\n123456789", "123\nx\n", "12345678\n123456789\n", "y"] {
            cutter.push(piece.as_bytes());
        }
        assert_eq!(cutter.take(), (b"abc\ndef\nx\n12345678\n".to_vec(), 2));
        assert_eq!(cutter.take(), (Vec::new(), 0));
        assert_eq!(cutter.last(), b"y\n");
        assert_eq!(cutter.last(), b"");
    }
}
