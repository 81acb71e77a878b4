//! Splits a stream that arrives in chunks into whole lines.
//!
//! Takes: bytes as they are read. Gives: whole lines, and how many were left out.
//! Limits: a line of the length given at most is held; longer ones are skipped and counted.

use memchr::{memchr, memrchr};

/// Collects chunks until they make whole lines.
#[derive(Debug)]
pub(crate) struct LineSplitter {
    buffer: Vec<u8>,
    max_line: usize,
    /// Within a line that is too long.
    skipping: bool,
    skipped: u64,
}

impl LineSplitter {
    /// A splitter for lines of at most `max_line` bytes.
    pub(super) fn new(max_line: usize) -> LineSplitter {
        LineSplitter { buffer: Vec::new(), max_line, skipping: false, skipped: 0 }
    }

    /// Takes what was read.
    pub(crate) fn push(&mut self, mut bytes: &[u8]) {
        if self.skipping {
            let Some(end) = memchr(b'\n', bytes) else { return };
            bytes = &bytes[end + 1..];
            self.skipping = false;
        }
        self.buffer.extend_from_slice(bytes);
        let rest = memrchr(b'\n', &self.buffer).map_or(0, |at| at + 1);
        if self.buffer.len() - rest > self.max_line {
            self.buffer.truncate(rest);
            self.skipping = true;
            self.skipped += 1;
        }
    }

    /// How many bytes of whole lines are buffered.
    pub(crate) fn complete_bytes(&self) -> usize {
        memrchr(b'\n', &self.buffer).map_or(0, |at| at + 1)
    }

    /// Takes the whole lines, and how many were too long since the last call.
    pub(crate) fn take_lines(&mut self) -> (Vec<u8>, u64) {
        let rest = self.buffer.split_off(self.complete_bytes());
        let mut lines = std::mem::replace(&mut self.buffer, rest);
        let too_long = |line: &&[u8]| line.len() > self.max_line + 1;
        let long = lines.split_inclusive(|b| *b == b'\n').filter(too_long).count() as u64;
        if long > 0 {
            let kept = lines.split_inclusive(|b| *b == b'\n').filter(|line| !too_long(line)).flatten();
            lines = kept.copied().collect();
        }
        (lines, std::mem::take(&mut self.skipped) + long)
    }

    /// The first whole line, without its `\n`.
    pub(crate) fn first_line(&self) -> &[u8] {
        memchr(b'\n', &self.buffer).map_or(b"", |end| &self.buffer[..end])
    }

    /// Drops the first whole line.
    pub(crate) fn drop_first_line(&mut self) {
        if let Some(end) = memchr(b'\n', &self.buffer) {
            self.buffer.drain(..=end);
        }
    }

    /// Takes a last line without an end, and adds `\n`; empty if there is none.
    pub(crate) fn take_unterminated(&mut self) -> Vec<u8> {
        let mut line = std::mem::take(&mut self.buffer);
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
        let mut splitter = LineSplitter::new(8);
        for chunk in ["ab", "c\nde", "f", "\n123456789", "123\nx\n", "12345678\n123456789\n", "y"] {
            splitter.push(chunk.as_bytes());
        }
        assert_eq!(splitter.take_lines(), (b"abc\ndef\nx\n12345678\n".to_vec(), 2));
        assert_eq!(splitter.take_lines(), (Vec::new(), 0));
        assert_eq!(splitter.take_unterminated(), b"y\n");
        assert_eq!(splitter.take_unterminated(), b"");
    }
}
