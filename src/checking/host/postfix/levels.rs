//! The level that each service has by itself, and the level that the daemon takes it to have.
//!
//! Takes: a service's view, and our configuration. Gives: findings, each with the line that fixes it. No line sets a weaker
//! level: what the daemon answers is never weaker than the own level (`answering::policy::decision`), provided that it is
//! told that level, by `[postfix] default_level` or by the name of the map, `policy@LEVEL`.
//! Not here: which answer follows from a level (`answering::policy::decision`).

use crate::answering::policy::decision::ATTRIBUTES_SINCE;
use crate::answering::socketmap::reply::MapName;
use crate::checking::finding::{Finding, Severity};
use crate::checking::host::postfix::{ServiceCheck, SocketmapTable};
use crate::config::PostfixLevel;

const LEVEL: &str = "smtp_tls_security_level";

impl ServiceCheck<'_> {
    /// `smtp_tls_security_level`, or the level that older parameters give where it is empty (postconf(5)).
    pub(super) fn own_level(&self) -> &str {
        match (self.get(LEVEL), self.get("smtp_enforce_tls"), self.get("smtp_use_tls")) {
            ("", "yes", _) if self.get("smtp_tls_enforce_peername") == "no" => "encrypt",
            ("", "yes", _) => "verify",
            ("", _, "yes") => "may",
            ("", ..) => "none",
            (level, ..) => level,
        }
    }

    /// The map that this service should ask: with its level in the name where `[postfix] default_level` is another.
    pub(super) fn map_name_with_level(&self) -> String {
        let (name, level) = (self.map_name(), self.own_level());
        match level == self.config.postfix.default_level().name() || PostfixLevel::from_name(level).is_none() {
            true => name.to_owned(),
            false => format!("{name}@{level}"),
        }
    }

    /// `primary`: whether this is the instance that the daemon asks for its level.
    pub(super) fn check_level(&self, primary: bool, found: &mut Vec<Finding>) {
        let level = self.own_level();
        if level == "none" {
            let problem = "a destination without a policy is sent to in clear text".to_owned();
            let impact = "TLS is not tried where no policy asks for it, and there is nothing to count.";
            let finding = self.finding(Severity::Warning, "level-none", LEVEL, problem, impact);
            let finding = finding.fix(self.set_command(LEVEL, "may"));
            found.push(finding.fix("tlswarden.toml: [postfix] default_level = \"may\""));
        }
        if matches!(PostfixLevel::from_name(level), None | Some(PostfixLevel::Fingerprint)) {
            let problem = format!("no answer replaces the level `{level}`");
            let impact =
                "Published policies are counted and not enforced: every destination needs what that level needs.";
            found.push(self.finding(Severity::Warning, "level-holds", LEVEL, problem, impact));
        }
        match self.our_table() {
            Some((table, _)) => self.check_level_of_map(&table, primary, found),
            None => self.check_default_level(found),
        }
    }

    /// Compares the level that a service has with the one that it asks with.
    fn check_level_of_map(&self, table: &SocketmapTable, primary: bool, found: &mut Vec<Finding>) {
        let Some(map) = MapName::parse(table.map.as_bytes()) else { return };
        let level = self.own_level();
        let Some(asked) = map.own_level else {
            // The level of main.cf is what `[postfix] default_level` is for.
            let is_default = primary && !self.service.overrides.contains_key(LEVEL);
            match is_default {
                true => self.check_default_level(found),
                false => self.report_level_of_service(self.config.postfix.default_level(), &table.map, found),
            }
            return;
        };
        if asked == PostfixLevel::Unknown {
            let problem = format!("the map `{}` names a level that Postfix does not have", table.map);
            let impact = "No answer replaces a level that is not known: published policies are not enforced.";
            let finding = self.finding(Severity::Error, "level-unknown", "smtp_tls_policy_maps", problem, impact);
            found.push(finding.fix(self.ask_with_level(&table.map, level)));
        } else {
            self.report_level_of_service(asked, &table.map, found);
        }
    }

    /// Reports a service whose level is not the one that the daemon answers for.
    fn report_level_of_service(&self, asked: PostfixLevel, map: &str, found: &mut Vec<Finding>) {
        let level = self.own_level();
        if asked.name() == level {
            return;
        }
        let problem = format!(
            "service {} has the level `{level}`, and asks the map `{map}`, which is answered for `{}`",
            self.service.name,
            asked.name()
        );
        let weaker = is_weaker(asked.name(), level);
        let (severity, impact) = match weaker {
            true => (Severity::Error, "An answer may be weaker than the level of this service."),
            false => (Severity::Warning, "Answers are for another level, and DANE is counted by it."),
        };
        let finding = self.finding(severity, "service-level", LEVEL, problem, impact);
        found.push(finding.fix(self.ask_with_level(map, level)));
    }

    /// The command that has this service ask with its own level.
    fn ask_with_level(&self, map: &str, level: &str) -> String {
        const MAPS: &str = "smtp_tls_policy_maps";
        let base = map.split('@').next().unwrap_or(map);
        let tables = self.get(MAPS).replace(&format!(":{map}"), &format!(":{base}@{level}"));
        match self.service.overrides.contains_key(LEVEL) {
            true => self.override_command(MAPS, &tables),
            false => self.set_command(MAPS, &tables),
        }
    }

    /// `[postfix] default_level` against main.cf.
    fn check_default_level(&self, found: &mut Vec<Finding>) {
        let (level, told) = (self.own_level(), self.config.postfix.default_level().name());
        // `default_level` does not describe a service that overrides the level.
        let of_its_own = self.service.overrides.contains_key(LEVEL) && told == self.instance.get(LEVEL);
        if told == level || of_its_own || PostfixLevel::from_name(level).is_none() {
            return;
        }
        let severity = if is_weaker(told, level) { Severity::Error } else { Severity::Warning };
        let attributes = self.version() >= ATTRIBUTES_SINCE && self.config.postfix.version() >= ATTRIBUTES_SINCE;
        let impact = match (severity, attributes) {
            (Severity::Error, _) => "An answer may be weaker than the level of this host.",
            (_, true) => "A domain with a testing policy is answered with that level, and DANE is counted by it.",
            (_, false) => "Answers are for another level, and DANE is counted by it.",
        };
        let problem = format!("it says {told}, and Postfix has {level}");
        let finding =
            Finding::new(severity, "level-differs", "tlswarden.toml [postfix] default_level", problem, impact);
        found.push(finding.fix(format!("tlswarden.toml: [postfix] default_level = \"{level}\"")));
    }
}

/// Whether a level asks less of some host than another: less TLS, or less authentication (`answering::policy::decision`).
fn is_weaker(level: &str, than: &str) -> bool {
    // TLS required, peer authenticated: never, where TLSA records ask for it, always.
    let protection = |level: &str| match level {
        "none" | "may" => (0, 0),
        "dane" => (1, 1),
        "encrypt" => (2, 0),
        _ => (2, 2),
    };
    let ((tls, peer), (tls_of_other, peer_of_other)) = (protection(level), protection(than));
    tls < tls_of_other || peer < peer_of_other
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checking::host::postconf::{MasterService, PostfixInstance};
    use crate::checking::host::postfix::check_instance;
    use crate::config::{Config, PostfixSection};

    const MAPS: &str = "hash:/etc/postfix/tls, socketmap:unix:tlswarden/socketmap:";

    /// The findings about levels, and their lines: `severity name: line`.
    fn check(main: &str, service: Option<&str>, map: &str, told: PostfixLevel, primary: bool) -> Vec<String> {
        let mut smtp = MasterService {
            name: "slow".into(),
            kind: "unix".into(),
            command: "smtp".into(),
            ..MasterService::default()
        };
        smtp.overrides.extend(service.map(|level| (LEVEL.to_owned(), level.to_owned())));
        let maps = format!("{MAPS}{map}");
        let parameters = [
            ("mail_version", "3.7.11"),
            ("queue_directory", "/var/spool/postfix"),
            ("smtp_tls_policy_maps", maps.as_str()),
            (LEVEL, main),
            ("smtp_tls_loglevel", "1"),
            ("smtp_dns_support_level", "dnssec"),
            ("smtp_host_lookup", "dns"),
            ("tls_append_default_CA", "yes"),
        ];
        let instance = PostfixInstance::for_tests(&parameters, &[smtp]);
        let postfix = PostfixSection { default_level: Some(told), ..PostfixSection::default() };
        let config = Config { postfix, ..Config::default() };
        let found = check_instance(&instance, &config, false, primary);
        let about_levels = |f: &&Finding| f.name != "map-before";
        let severity = |f: &Finding| f.severity.to_string().to_lowercase();
        let line = |f: &Finding| format!("{} {}: {}", severity(f), f.name, f.fix.join("; "));
        found.iter().filter(about_levels).map(line).collect()
    }

    fn own(level: &str, map: &str) -> String {
        format!("postconf -P 'slow/unix/smtp_tls_policy_maps={MAPS}{map}@{level}' && postfix reload")
    }

    #[test]
    fn a_service_with_a_level_of_its_own_asks_with_it() {
        use PostfixLevel::{Encrypt, May};
        for (main, service, map, told, want) in [
            ("may", None, "policy", May, None),
            ("may", Some("may"), "policy", May, None),
            ("may", Some("encrypt"), "policy@encrypt", May, None),
            ("encrypt", Some("dane"), "policy@dane", Encrypt, None),
            ("may", Some("encrypt"), "policy", May, Some(("error", own("encrypt", "policy")))),
            ("may", Some("dane"), "policy", May, Some(("error", own("dane", "policy")))),
            ("may", Some("secure"), "policy@encrypt", May, Some(("error", own("secure", "policy")))),
            ("encrypt", Some("may"), "policy", Encrypt, Some(("warning", own("may", "policy")))),
            // Neither is weaker than the other.
            ("encrypt", Some("dane"), "policy", Encrypt, Some(("error", own("dane", "policy")))),
        ] {
            let want: Vec<String> =
                want.map(|(severity, line)| format!("{severity} service-level: {line}")).into_iter().collect();
            assert_eq!(check(main, service, map, told, true), want, "{main} {service:?} {map}");
        }
        let typo = check("may", Some("encrypt"), "policy@encrpyt", May, true);
        assert_eq!(typo, [format!("error level-unknown: {}", own("encrypt", "policy"))]);
    }

    #[test]
    fn another_instance_asks_with_its_level() {
        let found = check("encrypt", None, "policy", PostfixLevel::May, false);
        let line = format!("postconf -e 'smtp_tls_policy_maps = {MAPS}policy@encrypt' && postfix reload");
        assert_eq!(found, [format!("error service-level: {line}")]);
        assert_eq!(check("encrypt", None, "policy@encrypt", PostfixLevel::May, false), Vec::<String>::new());
    }

    #[test]
    fn the_level_of_main_cf_is_what_the_daemon_is_told() {
        for (main, told, severity) in [
            ("encrypt", PostfixLevel::May, "error"),
            ("dane", PostfixLevel::May, "error"),
            ("dane", PostfixLevel::Encrypt, "error"),
            ("may", PostfixLevel::Encrypt, "warning"),
            ("may", PostfixLevel::None, "warning"),
            ("verify", PostfixLevel::Secure, "warning"),
        ] {
            let line = format!("{severity} level-differs: tlswarden.toml: [postfix] default_level = \"{main}\"");
            assert_eq!(check(main, None, "policy", told, true), [line], "{told:?}");
        }
    }

    #[test]
    fn no_line_sets_a_weaker_level() {
        for (level, known) in PostfixLevel::ALL.map(|(level, name)| (name, level)) {
            for line in check(level, None, "policy", known, true) {
                assert!(!line.contains("smtp_tls_security_level = ") || level == "none", "{level}: {line}");
            }
        }
        let holds = check("fingerprint", None, "policy", PostfixLevel::Fingerprint, true);
        assert_eq!(holds, ["warning level-holds: "]);
    }

    #[test]
    fn weaker_is_less_of_either() {
        let order = ["none", "may", "dane", "encrypt", "dane-only", "verify", "secure", "fingerprint"];
        for level in order {
            assert!(!is_weaker(level, level));
            assert!(!is_weaker("secure", level) && !is_weaker(level, "none") && !is_weaker(level, "may"));
        }
        assert!(is_weaker("may", "encrypt") && is_weaker("may", "dane"));
        assert!(is_weaker("dane", "encrypt") && is_weaker("encrypt", "dane"));
        assert!(!is_weaker("verify", "dane-only") && is_weaker("encrypt", "verify"));
    }
}
