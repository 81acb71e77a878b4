//! What the administrator has said about single domains (`[[policy.override]]`), checked as a whole.
//!
//! Takes: the configuration. Gives: the first override that cannot be in force, with what is allowed; those answers that
//! one of the MTAs of this host cannot be given; the files of answers that are missing.
//! When it fails: the file is refused. What may be meant so, and what only other files show, is a warning.
//! Not here: the grammar of an answer (`override_answer`), which rule a domain has (`answering/policy/overrides.rs`).

use std::collections::HashSet;
use std::path::Path;

use crate::base::domain_name;
use crate::config::{Config, OverrideSection, PostfixVersion, override_answer, similar};

/// Which override, counted from 0, is wrong; its key, and what is wrong and what is allowed.
pub(super) fn check(config: &Config) -> Result<(), (usize, &'static str, String)> {
    let mut domains = HashSet::new();
    let exim_alone = config.socketmap.listen.is_empty() && !config.readsocket.listen.is_empty();
    for (nth, section) in config.policy.overrides.iter().enumerate() {
        let text = &section.domain;
        let (dot, name) = text.strip_prefix('.').map_or(("", text.as_str()), |parent| (".", parent));
        let Some(name) = domain_name::normalize(name) else {
            let problem = format!(
                "invalid domain name \"{}\": expected \"example.com\" or \".example.com\"{}",
                text.escape_debug(),
                similar::meant(similar::domain(text))
            );
            return Err((nth, "domain", problem));
        };
        if !domains.insert(format!("{dot}{name}")) {
            return Err((nth, "domain", format!("duplicate domain \"{dot}{name}\"")));
        }
        let said = [section.answer.is_some(), section.skip.is_some(), section.none];
        if said.into_iter().filter(|said| *said).count() != 1 {
            let problem = format!("{dot}{name}: expected one of `answer`, `skip` and `none = true`");
            return Err((nth, "domain", problem));
        }
        if let Some(answer) = &section.answer {
            let postfix = &config.postfix;
            // Where the version is not known yet nothing is too new.
            let version = postfix.version.unwrap_or(PostfixVersion::new(u16::MAX, 0));
            let checked = override_answer::check(answer, version, postfix.dnssec())
                .and_then(|()| if exim_alone { override_answer::check_for_exim(answer) } else { Ok(()) });
            checked.map_err(|problem| (nth, "answer", format!("{dot}{name}: {problem}")))?;
        }
    }
    Ok(())
}

impl Config {
    /// What the answers of the overrides name and is not on this host, a line each. Not checked when the file is read: that
    /// one domain's mail would be deferred stops neither the daemon nor a command.
    pub(crate) fn find_missing_override_files(&self) -> Vec<String> {
        find_problems(self, |answer| override_answer::check_files(answer, Path::new("/")))
    }

    /// The answers that Exim cannot be given, where both MTAs ask: a line each. They are not refused, for Postfix alone may
    /// be the one that sends to the domain.
    pub(crate) fn find_answers_for_postfix_alone(&self) -> Vec<String> {
        if self.socketmap.listen.is_empty() || self.readsocket.listen.is_empty() {
            return Vec::new();
        }
        find_problems(self, override_answer::check_for_exim)
    }
}

impl Config {
    /// The files that answers of the overrides name, with the domain of each.
    pub(crate) fn override_files(&self) -> Vec<(&str, &str)> {
        let mut files = Vec::new();
        for section in &self.policy.overrides {
            let named = section.answer.as_deref().map(override_answer::files).unwrap_or_default();
            files.extend(named.into_iter().map(|file| (section.domain.as_str(), file)));
        }
        files
    }
}

fn find_problems(config: &Config, check: impl Fn(&str) -> Result<(), String>) -> Vec<String> {
    let problem = |section: &OverrideSection| {
        let problem = check(section.answer.as_deref()?).err()?;
        Some(format!("[[policy.override]] answer: {}: {problem}", section.domain))
    };
    config.policy.overrides.iter().filter_map(problem).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ListenAddress;

    #[test]
    fn an_answer_that_exim_cannot_hold_is_warned_of_where_both_ask() {
        let answer = |domain: &str, answer: &str| OverrideSection {
            domain: domain.into(),
            answer: Some(answer.into()),
            skip: None,
            none: false,
        };
        let mut config = Config::default();
        config.policy.overrides =
            vec![answer("a.test", "encrypt"), answer(".b.test", "may"), answer("c.test", "secure match=nexthop")];
        let sockets = || vec![ListenAddress::Unix("/run/a".into())];
        for (socketmap, readsocket, warned) in
            [(sockets(), sockets(), vec!["a.test", "c.test"]), (sockets(), vec![], vec![]), (vec![], sockets(), vec![])]
        {
            (config.socketmap.listen, config.readsocket.listen) = (socketmap, readsocket);
            let lines = config.find_answers_for_postfix_alone();
            assert_eq!(lines.len(), warned.len(), "{lines:?}");
            for (line, domain) in lines.iter().zip(warned) {
                let begin = format!("[[policy.override]] answer: {domain}: level \"");
                assert!(line.starts_with(&begin) && line.contains("cannot be given to Exim"), "{line}");
            }
        }
    }
}
