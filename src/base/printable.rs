//! Text of strangers, made safe to print.

/// Text from others, made fit for a line of log or mail: printable ASCII, `max` characters at most.
pub(crate) fn escape_and_cut(text: &str, max: usize) -> String {
    let mut out = String::new();
    for c in text.chars() {
        let plain = c.is_ascii_graphic() || c == ' ';
        let escaped = if plain { c.to_string() } else { c.escape_default().to_string() };
        if out.len() + escaped.len() > max {
            out.push_str("...");
            break;
        }
        out.push_str(&escaped);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_text_is_escaped_and_cut() {
        assert_eq!(escape_and_cut("a\r\nb\u{202e}", 40), "a\\r\\nb\\u{202e}");
        assert_eq!(escape_and_cut("abcdef", 3), "abc...");
    }
}
