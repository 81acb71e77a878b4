//! The next hops other than the recipient domains' own that Postfix is configured to use.
//!
//! Takes: what `postconf` prints. Gives: [`PostfixRelays`]: relayhost, and those of default_transport, fallback relays, and
//! of maps by recipient or sender as far as they can be read: text files (also the source of an indexed map, beside it),
//! `inline:` and `static:`.
//! Limits: [`MAX_MAP`] of a file, [`MAX_RELAYS`].
//! When it fails: a map that cannot be read has no next hops here.
//! Not here: what counts under them (`counting::attribution`).

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::base::next_hop::NextHop;
use crate::config::postconf_output::parameter;

/// What is asked of `postconf`.
pub(super) const PARAMETERS: [&str; 6] = [
    "relayhost",
    "default_transport",
    "smtp_fallback_relay",
    "transport_maps",
    "sender_dependent_relayhost_maps",
    "sender_dependent_default_transport_maps",
];

/// How much of a map is read, in octets.
const MAX_MAP: u64 = 1024 * 1024;

/// How many next hops are known: each is a line in a map.
const MAX_RELAYS: usize = 1000;

/// Types of maps whose file is text, or is made from a text file of that name (postmap(1)).
const FILE_MAPS: [&str; 9] = ["texthash", "hash", "btree", "lmdb", "cdb", "dbm", "regexp", "pcre", "cidr"];

/// Next hops, in canonical form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PostfixRelays {
    /// That of all mail with no other next hop.
    pub(super) relayhost: Option<String>,
    /// The others.
    pub(super) others: Vec<String>,
}

impl PostfixRelays {
    /// Reads them from the output of `postconf`.
    pub(super) fn read(postconf: &str) -> PostfixRelays {
        let value = |name| parameter(postconf, name).unwrap_or_default();
        let mut relays = PostfixRelays { relayhost: canonical(value("relayhost")), others: Vec::new() };
        // The default transport's next hop overrides relayhost (postconf(5)).
        if let Some(next_hop) = of_transport(value("default_transport")) {
            relays.relayhost = Some(next_hop);
        }
        for next_hop in split_list(value("smtp_fallback_relay")) {
            relays.add(canonical(&next_hop));
        }
        for name in ["transport_maps", "sender_dependent_default_transport_maps"] {
            for map in split_list(value(name)) {
                map_values(&map).iter().for_each(|value| relays.add(of_transport(value)));
            }
        }
        for map in split_list(value("sender_dependent_relayhost_maps")) {
            map_values(&map).iter().for_each(|value| relays.add(canonical(value)));
        }
        relays
    }

    fn add(&mut self, next_hop: Option<String>) {
        let Some(next_hop) = next_hop else { return };
        if self.others.len() < MAX_RELAYS && !self.others.contains(&next_hop) {
            self.others.push(next_hop);
        }
    }
}

fn canonical(next_hop: &str) -> Option<String> {
    NextHop::parse(next_hop.as_bytes()).map(|hop| hop.key())
}

/// The next hop of `transport:nexthop`; none of what is no SMTP transport by its usual name, such as `error:…`.
fn of_transport(value: &str) -> Option<String> {
    let (transport, next_hop) = value.split_once(':')?;
    let is_other = ["error", "retry", "discard", "local", "virtual", "lmtp", "pipe"].contains(&transport);
    (!is_other).then(|| canonical(next_hop)).flatten()
}

/// The values of a map, `type:name`.
fn map_values(map: &str) -> Vec<String> {
    let Some((kind, name)) = map.split_once(':') else { return Vec::new() };
    match kind {
        "static" => vec![name.to_owned()],
        "inline" => {
            let inside = name.trim().strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or_default();
            let entry = |entry: &String| {
                let entry = entry.trim().trim_start_matches('{').trim_end_matches('}');
                entry.split_once('=').map(|(_, value)| value.trim().to_owned())
            };
            split_list(inside).iter().filter_map(entry).collect()
        }
        kind if FILE_MAPS.contains(&kind) => file_values(Path::new(name)),
        _ => Vec::new(),
    }
}

/// What follows the first white space of each line; a line that begins with white space continues the one before.
fn file_values(path: &Path) -> Vec<String> {
    let mut text = String::new();
    if File::open(path).and_then(|file| file.take(MAX_MAP).read_to_string(&mut text)).is_err() {
        return Vec::new();
    }
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#')) {
        match lines.last_mut() {
            Some(before) if line.starts_with([' ', '\t']) => before.push_str(line),
            _ => lines.push(line.to_owned()),
        }
    }
    // A pattern may have white space in it, a next hop has none.
    lines.iter().filter_map(|line| line.split_whitespace().skip(1).last().map(str::to_owned)).collect()
}

/// The elements of a list, separated by white space and commas, except within braces.
fn split_list(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut depth = 0_usize;
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
        assert_eq!(PostfixRelays::read("relayhost =\ndefault_transport = smtp\n"), PostfixRelays::default());
        let by_transport = PostfixRelays::read("relayhost = a.example\ndefault_transport = relay:[b.example]\n");
        assert_eq!(by_transport.relayhost.as_deref(), Some("[b.example]"));
        assert_eq!(PostfixRelays::read("relayhost = [127.0.0.1]:10025\n"), PostfixRelays::default());
    }
}
