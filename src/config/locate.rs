//! Where in the file an option is set.
//!
//! Takes: the text of the file. Gives: a line, counted from 1.
//! When it fails: the line of the section's head, or nothing if the file does not have the section.
//! Not here: the lines of errors of the TOML reader (`toml_errors`).

/// The line of a key within a section; the section's own where the key is missing. `nth`, from 0, is which of several
/// sections of that name.
pub(super) fn line_of(text: &str, section: &str, nth: usize, key: &str) -> Option<usize> {
    let mut within = false;
    let mut head = None;
    let mut heads = 0;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.starts_with('[') {
            let here = name_of_head(line) == section;
            within = here && heads >= nth;
            heads += usize::from(here);
            if within && head.is_some() && nth > 0 {
                return head;
            }
            if within {
                head = Some(number + 1);
            }
        } else if within && line.split_once('=').is_some_and(|(k, _)| k.trim() == key) {
            return Some(number + 1);
        }
    }
    head
}

/// The line that a problem is about, which begins with its section: `[section] key: …`, `[[section]] NAME: …`. Of several
/// lines, the one that has that key, or the longest value that the problem names.
pub(super) fn line_of_problem(text: &str, problem: &str) -> Option<usize> {
    let (section, rest) = problem.trim_start_matches('[').split_once(']')?;
    let rest = rest.trim_start_matches(']').trim_start();
    let (word, details) = rest.split_once(':').unwrap_or((rest, ""));
    let mut within = false;
    let mut best: Option<((usize, usize), usize)> = None;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.starts_with('[') {
            within = name_of_head(line) == section;
            continue;
        }
        let Some((key, value)) = line.split_once('=').filter(|_| within) else { continue };
        let named = value.split(['"', '\'']).nth(1).filter(|named| named.len() > 1);
        // The key with the value that is named, the value alone, the key alone.
        let weight = match (key.trim() == word, named.is_some_and(|named| details.contains(named))) {
            (true, true) => 4,
            (false, true) => 3,
            (true, false) => 2,
            (false, false) if named == Some(word) => 1,
            (false, false) => continue,
        };
        let weight = (weight, named.map_or(0, str::len));
        if best.is_none_or(|(known, _)| weight > known) {
            best = Some((weight, number + 1));
        }
    }
    best.map(|(_, line)| line).or_else(|| line_of(text, section, 0, word))
}

/// `report.dkim` of `[[report.dkim]]  # comment`.
fn name_of_head(line: &str) -> &str {
    line.split('#').next().unwrap_or_default().trim().trim_matches(['[', ']']).trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "[report]\ncontact = \"a\"\npassword = \"/p\"\n[[report.dkim]] # one\nselector = \"one\"\n\
                        key = \"/k/one.pem\"\n[[report.dkim]]\nselector = \"two\"\nkey = \"/k/two.pem\"\n\
                        [[input]]\nfile = \"/var/log\"\n";

    #[test]
    fn the_line_of_a_key() {
        assert_eq!(line_of(TEXT, "report", 0, "contact"), Some(2));
        assert_eq!(line_of(TEXT, "report.dkim", 0, "key"), Some(6));
        assert_eq!(line_of(TEXT, "report.dkim", 1, "key"), Some(9));
        assert_eq!(line_of(TEXT, "report", 0, "from"), Some(1));
        assert_eq!(line_of(TEXT, "status", 0, "listen"), None);
    }

    #[test]
    fn the_line_of_a_problem() {
        for (problem, want) in [
            ("[report] password: /p: No such file or directory", Some(3)),
            ("[[report.dkim]] two: /k/two.pem: cannot be read", Some(9)),
            ("[[report.dkim]] two: wrong", Some(8)),
            ("[[input]] file: /var/log: not a log file", Some(11)),
            ("[status] listen: x", None),
            ("store: x", None),
        ] {
            assert_eq!(line_of_problem(TEXT, problem), want, "{problem}");
        }
    }
}
