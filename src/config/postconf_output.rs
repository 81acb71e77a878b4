//! The output of `postconf`, `name = value` a line.
//!
//! Takes: the output, and the name of a parameter. Gives: its value.
//! When it fails: a parameter that is not in it has none.
//! Not here: asking `postconf` (`detect`), what follows from a value (`sending_address`, `postfix_relays`).

/// The value of a parameter.
pub(super) fn parameter<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.split_once('=').filter(|(n, _)| n.trim() == name)).map(|(_, value)| value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_may_be_empty_or_have_an_equals_sign() {
        let text = "relayhost =\ntransport_maps = inline:{ {a.example = smtp:[b.example]} }\n";
        assert_eq!(parameter(text, "relayhost"), Some(""));
        assert_eq!(parameter(text, "transport_maps"), Some("inline:{ {a.example = smtp:[b.example]} }"));
        assert_eq!(parameter(text, "relay"), None);
    }
}
