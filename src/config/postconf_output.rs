//! The output of `postconf`, `name = value` a line.
//!
//! Takes: the output, and the name of a parameter. Gives: its value, and the elements of one that is a list.
//! When it fails: a parameter that is not in it has none.
//! Not here: asking `postconf` (`detect`), what follows from a value (`sending_address`, `postfix_relays`).

/// The value of a parameter.
pub(super) fn parameter<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.split_once('=').filter(|(n, _)| n.trim() == name)).map(|(_, value)| value.trim())
}

/// The elements of a list: separated by white space and commas, except within braces.
pub(crate) fn split_list(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut depth = 0usize;
    for c in text.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        match words.last_mut() {
            Some(_) if depth == 0 && (c == ',' || c.is_whitespace()) => words.push(String::new()),
            Some(word) => word.push(c),
            None => {}
        }
    }
    words.retain(|word| !word.is_empty());
    words
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

    #[test]
    fn lists_are_split_except_within_braces() {
        assert_eq!(split_list("hash:/a, socketmap:unix:s:policy"), ["hash:/a", "socketmap:unix:s:policy"]);
        assert_eq!(split_list("inline:{ {a = b}, c=d },x"), ["inline:{ {a = b}, c=d }", "x"]);
        assert_eq!(split_list(" ,\t"), Vec::<String>::new());
        assert_eq!(split_list("}a b{"), ["}a", "b{"]);
    }
}
