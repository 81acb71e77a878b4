//! `tlswarden.toml(5)`: every option, its default, and why, from the sample that a test holds to the code.
//!
//! A comment belongs to the option or the section that follows it; a comment with nothing behind it, to its section.
//! Values below a `[[section]]`, and those with `# example` behind them, are examples and not defaults.

use crate::page::Page;

/// The page.
pub(crate) fn page(sample: &str) -> String {
    let mut page = Page::new("tlswarden.toml", "5", "the configuration of tlswarden(8)");
    page.section("DESCRIPTION");
    page.paragraph(
        "The file is TOML. What is not in it has its default; an unknown option is an error, and \
         `tlswarden check-config` names its line. Lengths of time are written as `5s`, `4h` or `3days`. SIGHUP \
         rereads the file.",
    );
    page.section("OPTIONS");
    let mut comment = Vec::new();
    let mut in_examples = false;
    // The head says how to read the sample itself.
    let body = sample.split_once("\n\n").map_or(sample, |(_, body)| body);
    for line in body.lines() {
        let (code, is_example) = option_line(line);
        if let Some(text) = line.strip_prefix("# ") {
            comment.push(text);
        } else if code.starts_with('[') {
            page.subsection(code);
            in_examples = code.starts_with("[[");
            tell(&mut page, &mut comment);
        } else if code.is_empty() {
            tell(&mut page, &mut comment);
        } else {
            if is_example || in_examples {
                comment.push("The value is an example.");
            }
            page.term(code, &comment.join(" "));
            comment.clear();
        }
    }
    page.section("FILES");
    page.term("/etc/tlswarden/tlswarden.toml", "Where it is looked for without `--config`.");
    page.section("SEE ALSO");
    page.paragraph("tlswarden(8), postconf(5), exim4(8)");
    page.render()
}

/// The option or section in a line of the sample, and whether its value is an example.
fn option_line(line: &str) -> (&str, bool) {
    let code = line.strip_prefix('#').unwrap_or(line);
    code.split_once("  # example").map_or((code, false), |(code, _)| (code, true))
}

fn tell(page: &mut Page, comment: &mut Vec<&str>) {
    if !comment.is_empty() {
        page.paragraph(&comment.join(" "));
        comment.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sample is held to the code by a test of its own; the page has all of the sample.
    #[test]
    fn every_option_of_the_sample_is_in_it_with_its_reason() {
        let page = page(crate::SAMPLE);
        let (_, body) = crate::SAMPLE.split_once("\n\n").unwrap();
        let mut options = 0;
        for line in body.lines() {
            let code = line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line);
            if let Some((key, _)) = code.split_once(" = ").filter(|_| !code.starts_with('#')) {
                assert!(page.contains(&format!("\\fB{key} = ")), "{key}");
                options += 1;
            } else if let Some(text) = line.strip_prefix("# ") {
                let first = text.split([' ', '`', '-', '\'']).find(|word| word.len() > 3);
                assert!(first.is_none_or(|word| page.contains(word)), "{text}");
            }
        }
        assert!(options > 20, "{options}");
    }

    #[test]
    fn an_example_is_not_shown_as_a_default() {
        for key in ["user", "password", "ca_file", "dkim", "tlsrpt", "organization", "key"] {
            let page = page(crate::SAMPLE);
            let at =
                page.find(&format!("\\fB{key} = ")).unwrap_or_else(|| panic!("{key} is not an option of the page"));
            let term = page[at..].split(".TP").next().unwrap();
            assert!(term.contains("The value is an example."), "{key}: {term}");
            assert!(!term.contains("# example"), "{key}: {term}");
        }
        let page = page(crate::SAMPLE);
        let at = page.find("\\fBspread = ").unwrap();
        assert!(!page[at..].split(".TP").next().unwrap().contains("example"));
    }
}
