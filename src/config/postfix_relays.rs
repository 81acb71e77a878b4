//! The next hops other than the recipient domains' own that Postfix is configured to use.
//!
//! Takes: what `postconf` prints. Gives: [`PostfixRelays`]: relayhost, and those of default_transport, fallback relays, and
//! of maps by recipient or sender as far as they can be read: text files (also the source of an indexed map, beside it),
//! `inline:` and `static:`. Where Postfix takes one next hop, it takes a list of destinations too (postconf(5)).
//! Limits: [`MAX_MAP`] of a file, [`MAX_RELAYS`].
//! When it fails: a map that cannot be read has no next hops here, and is named in [`PostfixRelays::problems`].
//! Not here: what counts under them (`counting::attribution`).

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::base::next_hop::NextHop;
use crate::config::postconf_output::{parameter, split_list};

/// What is asked of `postconf`.
pub(super) const PARAMETERS: [&str; 6] = [
    "relayhost",
    "default_transport",
    "smtp_fallback_relay",
    "transport_maps",
    "sender_dependent_relayhost_maps",
    "sender_dependent_default_transport_maps",
];

/// How much of a map is read, in bytes.
const MAX_MAP: u64 = 1024 * 1024;

/// How many next hops are known: each is a line in a map.
const MAX_RELAYS: usize = 1000;

/// Types of maps whose file is text, or is made from a text file of that name (postmap(1)).
const FILE_MAPS: [&str; 9] = ["texthash", "hash", "btree", "lmdb", "cdb", "dbm", "regexp", "pcre", "cidr"];

/// Next hops, in canonical form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PostfixRelays {
    /// The first of all mail with no other next hop.
    pub(super) relayhost: Option<String>,
    /// The others.
    pub(super) others: Vec<String>,
    /// Whether all mail with no other next hop is relayed, also where no policy can exist for that next hop.
    pub(super) relays_all: bool,
    /// What is not known and why, one line each.
    pub(super) problems: Vec<String>,
}

impl PostfixRelays {
    /// Reads them from the output of `postconf`.
    pub(super) fn read(postconf: &str) -> PostfixRelays {
        let value = |name| parameter(postconf, name).unwrap_or_default();
        let mut relays = PostfixRelays::default();
        // The default transport's next hop overrides relayhost (postconf(5)).
        match next_hop_of(value("default_transport")) {
            Some(next_hop) => relays.add_relayhost("default_transport", next_hop),
            None => relays.add_relayhost("relayhost", value("relayhost")),
        }
        relays.add(value("smtp_fallback_relay"));
        for name in ["transport_maps", "sender_dependent_default_transport_maps"] {
            for value in relays.map_values(value(name)) {
                next_hop_of(&value).into_iter().for_each(|next_hop| relays.add(next_hop));
            }
        }
        for value in relays.map_values(value("sender_dependent_relayhost_maps")) {
            // The sender has no relay host of its own (postconf(5)).
            if !value.eq_ignore_ascii_case("DUNNO") {
                relays.add(&value);
            }
        }
        relays
    }

    /// Adds the destinations that all mail with no other next hop goes to.
    fn add_relayhost(&mut self, parameter: &str, next_hop: &str) {
        let mut destinations = split_list(next_hop).into_iter();
        let Some(first) = destinations.next() else { return };
        self.relays_all = true;
        self.relayhost = canonical(&first);
        if self.relayhost.is_none() {
            self.problems.push(format!(
                "postfix: {parameter}: {first}: cannot have a policy: expected a domain or [host]; sessions with it are \
                 not counted"
            ));
        }
        destinations.for_each(|other| self.add(&other));
    }

    /// Adds the destinations of a next hop.
    fn add(&mut self, next_hop: &str) {
        for next_hop in split_list(next_hop).iter().filter_map(|one| canonical(one)) {
            if self.others.contains(&next_hop) {
                continue;
            }
            if self.others.len() < MAX_RELAYS {
                self.others.push(next_hop);
                continue;
            }
            let problem = format!("postfix: relays: more than {MAX_RELAYS} next hops; the others are not known");
            if !self.problems.contains(&problem) {
                self.problems.push(problem);
            }
        }
    }

    /// The values of the maps in a list.
    fn map_values(&mut self, maps: &str) -> Vec<String> {
        let mut values = Vec::new();
        for map in split_list(maps) {
            if let Err(problem) = read_map(map.strip_prefix("proxy:").unwrap_or(&map), &mut values) {
                self.problems.push(format!("postfix: {map}: {problem}"));
            }
        }
        values
    }
}

fn canonical(next_hop: &str) -> Option<String> {
    NextHop::parse(next_hop.as_bytes()).map(|hop| hop.key())
}

/// The next hop of `transport:nexthop`, if it has one; none for transports that do not use SMTP by their usual names, such
/// as `error:…`.
fn next_hop_of(value: &str) -> Option<&str> {
    let (transport, next_hop) = value.split_once(':')?;
    let is_other = ["error", "retry", "discard", "local", "virtual", "lmtp", "pipe"].contains(&transport);
    Some(next_hop.trim()).filter(|next_hop| !is_other && !next_hop.is_empty())
}

/// Adds the values of a map, `type:name`.
fn read_map(map: &str, values: &mut Vec<String>) -> Result<(), String> {
    let unread = |cause: &str| format!("cannot be read: {cause}; its next hops are not known");
    let (kind, name) = map.split_once(':').ok_or_else(|| unread("expected TYPE:NAME"))?;
    let inside = name.trim().strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).map(str::trim);
    match kind {
        "static" => values.push(inside.unwrap_or(name).to_owned()),
        "inline" => {
            let entry = |entry: &String| {
                let entry = entry.trim().trim_start_matches('{').trim_end_matches('}');
                entry.split_once('=').map(|(_, value)| value.trim().to_owned())
            };
            values.extend(split_list(inside.unwrap_or_default()).iter().filter_map(entry));
        }
        kind if FILE_MAPS.contains(&kind) => {
            let mut bytes = Vec::new();
            let file = File::open(Path::new(name)).map_err(|e| unread(&e.to_string()))?;
            file.take(MAX_MAP + 1).read_to_end(&mut bytes).map_err(|e| unread(&e.to_string()))?;
            let is_whole = bytes.len() as u64 <= MAX_MAP;
            if !is_whole {
                // Half a line is left out.
                bytes.truncate(bytes.iter().rposition(|b| *b == b'\n').unwrap_or_default());
            }
            let has_patterns = ["regexp", "pcre"].contains(&kind);
            values.extend(file_values(&String::from_utf8_lossy(&bytes), has_patterns));
            if !is_whole {
                return Err(format!("larger than {} MiB; the next hops behind that are not known", MAX_MAP >> 20));
            }
        }
        _ => return Err(unread(&format!("the daemon does not read maps of type {kind}"))),
    }
    Ok(())
}

/// What follows the key of each line; a line that begins with white space continues the one before (postmap(1)).
fn file_values(text: &str, has_patterns: bool) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#')) {
        match lines.last_mut() {
            Some(before) if line.starts_with([' ', '\t']) => before.push_str(line),
            _ => lines.push(line.to_owned()),
        }
    }
    let behind_key = |line: &String| match has_patterns {
        true => behind_pattern(line).map(|value| value.trim().to_owned()),
        false => line.split_once(char::is_whitespace).map(|(_, value)| value.trim().to_owned()),
    };
    lines.iter().filter_map(behind_key).collect()
}

/// What follows `/pattern/flags` (regexp_table(5), pcre_table(5)): a pattern may have white space, and its delimiter behind
/// a backslash. None for `if` and `endif`.
fn behind_pattern(line: &str) -> Option<&str> {
    let line = line.trim_start_matches(['!', ' ', '\t']);
    let delimiter = line.chars().next().filter(|c| !c.is_alphanumeric())?;
    let mut characters = line.char_indices().skip(1);
    let end = loop {
        match characters.next()? {
            (_, '\\') => {
                characters.next();
            }
            (at, c) if c == delimiter => break at,
            _ => {}
        }
    };
    let behind = line[end + delimiter.len_utf8()..].trim_start_matches(char::is_alphanumeric);
    // `/pattern/!/pattern/` matches the first and not the second.
    if behind.starts_with('!') { behind_pattern(behind) } else { Some(behind) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_hops_of_all_parameters() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(path("transport"), "# comment\ninner.example smtp:[mail.inner.example]\n.x.example\n  relay:out.example:2525\nold.example error:5.1.1 gone\nlocal.example :\n").unwrap();
        std::fs::write(path("senders"), "@brand.example [out.esp.example]:587\n").unwrap();
        std::fs::write(path("pcre"), "/@(a b)\\.example$/ [pcre.example]\n").unwrap();
        let postconf = format!(
            "relayhost = [Smart.example]:submission\ndefault_transport = smtp\n\
             smtp_fallback_relay = [backup.example], backup2.example\n\
             transport_maps = hash:{}, inline:{{ {{b.example = smtp:[inline.example]:26}}, c.example=smtp:[192.0.2.1] }}, ldap:x\n\
             sender_dependent_relayhost_maps = texthash:{} pcre:{}\n\
             sender_dependent_default_transport_maps = static:smtp:[static.example]\n",
            path("transport"),
            path("senders"),
            path("pcre")
        );
        let relays = PostfixRelays::read(&postconf);
        assert_eq!(relays.relayhost.as_deref(), Some("[smart.example]:587"));
        let wanted = [
            "[backup.example]",
            "backup2.example",
            "[mail.inner.example]",
            "out.example:2525",
            "[inline.example]:26",
            "[static.example]",
            "[out.esp.example]:587",
            "[pcre.example]",
        ];
        assert_eq!(relays.others, wanted);
        assert_eq!(relays.problems.len(), 1, "{:?}", relays.problems);
        assert_eq!(
            relays.problems[0],
            "postfix: ldap:x: cannot be read: the daemon does not read maps of type ldap; its next hops are not known"
        );
        assert_eq!(PostfixRelays::read("relayhost =\ndefault_transport = smtp\n"), PostfixRelays::default());
        let by_transport = PostfixRelays::read("relayhost = a.example\ndefault_transport = relay:[b.example]\n");
        assert_eq!(by_transport.relayhost.as_deref(), Some("[b.example]"));
    }

    #[test]
    fn a_next_hop_is_a_list_of_destinations() {
        for (postconf, relayhost, others) in [
            ("relayhost = mail1.example, mail2.example\n", Some("mail1.example"), vec!["mail2.example"]),
            (
                "relayhost = [mail1.example]:587 [mail2.example]:587\n",
                Some("[mail1.example]:587"),
                vec!["[mail2.example]:587"],
            ),
            (
                "relayhost = x.example\ndefault_transport = smtp:[a.example], [b.example]\n",
                Some("[a.example]"),
                vec!["[b.example]"],
            ),
            ("relayhost = x.example\ndefault_transport = smtp:\n", Some("x.example"), vec![]),
            ("relayhost = [192.0.2.1], b.example\n", None, vec!["b.example"]),
            (
                "transport_maps = inline:{ {x.example = smtp:[a.example], [b.example]} }\n",
                None,
                vec!["[a.example]", "[b.example]"],
            ),
            ("transport_maps = static:{smtp:[a.example], [b.example]}\n", None, vec!["[a.example]", "[b.example]"]),
            ("sender_dependent_relayhost_maps = static:DUNNO inline:{ @a.example=dunno }\n", None, vec![]),
        ] {
            let relays = PostfixRelays::read(postconf);
            assert_eq!(
                (relays.relayhost.as_deref(), relays.others),
                (relayhost, others.into_iter().map(str::to_owned).collect()),
                "{postconf}"
            );
            assert_eq!(relays.relays_all, postconf.starts_with("relayhost = "), "{postconf}");
        }
    }

    #[test]
    fn a_relayhost_that_cannot_have_a_policy_relays_all_the_same() {
        for (postconf, parameter) in [
            ("relayhost = [192.0.2.1]:587\n", "relayhost"),
            ("relayhost = a.example\ndefault_transport = smtp:[192.0.2.1]:587\n", "default_transport"),
        ] {
            let relays = PostfixRelays::read(postconf);
            assert_eq!((relays.relayhost, relays.relays_all), (None, true));
            let wanted = format!(
                "postfix: {parameter}: [192.0.2.1]:587: cannot have a policy: expected a domain or [host]; sessions with it \
                 are not counted"
            );
            assert_eq!(relays.problems, [wanted]);
        }
    }

    #[test]
    fn what_follows_the_key_is_the_value() {
        let lines = "a.example smtp:[a.example], [b.example]\nb.example\t smtp:[c.example]\n  [d.example]\n";
        assert_eq!(file_values(lines, false), ["smtp:[a.example], [b.example]", "smtp:[c.example]  [d.example]"]);
        let patterns = "/a b\\/c$/i smtp:[a.example], [b.example]\n!/x/ smtp:y\n/x/!/y z/ smtp:z\nif /a b/\nendif\n";
        assert_eq!(
            file_values(patterns, true),
            ["smtp:[a.example], [b.example]", "smtp:y", "smtp:z"].map(|value| value.to_owned())
        );
    }

    #[test]
    fn maps_are_read_as_far_as_possible_and_problems_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(path("latin1"), b"# M\xfcller\na.example smtp:[a.example]\n").unwrap();
        let long =
            format!("b.example smtp:[b.example]\n{}c.example smtp:[c.example]\n", "# a comment\n".repeat(100_000));
        std::fs::write(path("long"), long).unwrap();
        let maps = |list: &str| PostfixRelays::read(&format!("transport_maps = {list}\n"));
        assert_eq!(maps(&format!("proxy:hash:{}", path("latin1"))).others, ["[a.example]"]);
        let long = maps(&format!("hash:{}", path("long")));
        assert_eq!(long.others, ["[b.example]"]);
        let wanted =
            format!("postfix: hash:{}: larger than 1 MiB; the next hops behind that are not known", path("long"));
        assert_eq!(long.problems, [wanted]);
        let absent = maps(&format!("proxy:hash:{}", path("absent")));
        let wanted = format!(
            "postfix: proxy:hash:{}: cannot be read: No such file or directory (os error 2); its next hops are not known",
            path("absent")
        );
        assert_eq!((absent.others.len(), absent.problems), (0, vec![wanted]));
        // A folder can be opened, and not read.
        assert!(maps(&format!("texthash:{}", folder.path().display())).problems[0].contains("cannot be read: "));
    }
}
