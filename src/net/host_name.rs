//! The name that this host gives in EHLO (RFC 5321 §4.1.1.1: its fully qualified domain name).
//!
//! Takes: the kernel's host name, the hosts file, the address that reports come from. Gives: a name of at least two labels.
//! When it fails: without such a host name the domain of the reports' address is used, for servers refuse a bare label
//! and many an address literal.
//! Not here: the MTA's own name (`smtp_helo_name`, `primary_hostname`), which only the MTA uses.

use crate::base::domain_name;
use crate::net::hosts_file::HostsFile;

/// The name for EHLO; `from`: the address that reports come from.
pub(crate) fn ehlo_name(from: Option<&str>) -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    choose_name(kernel.trim(), &HostsFile::read(), from)
}

fn choose_name(kernel: &str, hosts: &HostsFile, from: Option<&str>) -> String {
    let qualified = |name: &str| domain_name::normalize(name).filter(|name| name.contains('.'));
    let from_domain = || qualified(from?.rsplit_once('@')?.1);
    qualified(kernel)
        .or_else(|| qualified(name_in_hosts(kernel, hosts)?))
        .or_else(from_domain)
        .unwrap_or_else(|| "localhost.localdomain".to_owned())
}

/// The full name of a host that the hosts file has beside its short one, as `hostname -f` finds it.
fn name_in_hosts<'a>(short: &str, hosts: &'a HostsFile) -> Option<&'a str> {
    let full = |name: &&str| name.strip_prefix(short).is_some_and(|rest| rest.starts_with('.') && !short.is_empty());
    hosts.names().find(full)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_name_is_found_or_the_domain_of_reports_is_used() {
        let hosts = "127.0.0.1 localhost\n# 192.0.2.9 mail.no.example mail\n192.0.2.1\tmail.example.com mail\n";
        let from = Some("tlsrpt@sender.example");
        for (kernel, hosts, from, wanted) in [
            ("MX1.Example.org", hosts, from, "mx1.example.org"),
            ("mail", hosts, from, "mail.example.com"),
            ("vm", hosts, from, "sender.example"),
            ("", hosts, from, "sender.example"),
            ("vm", "", None, "localhost.localdomain"),
        ] {
            assert_eq!(choose_name(kernel, &hosts.into(), from), wanted, "{kernel}");
        }
    }
}
