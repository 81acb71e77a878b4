//! What is sent where, what the receiving servers see of it, and what must be counted.

use std::sync::Arc;

use lab::ca::Fault;
use lab::postfix::Installation;
use lab::world::{Domain, Server, Tlsa};
use tlswarden::base::tlsrpt::{Mode, Policy, PolicyInForce, PolicyType, ResultType};

use super::Told;

/// A session count: successful, failed.
pub(crate) type Counts = (u64, u64);

/// One destination.
pub(crate) struct Scenario {
    pub name: &'static str,
    pub domain: Domain,
    /// The line of smtp_tls_policy_maps, and with MTA-STS the mode and the label of the pattern.
    pub level: String,
    sts: Option<(Mode, &'static str)>,
    /// The local parts that each message goes to; one message after the other.
    pub messages: Vec<Vec<&'static str>>,
    /// A line for the message's header.
    pub header: &'static str,
    /// What the servers see: TLS connections that carried mail or a refused recipient, and such that carried nothing.
    pub seen: Counts,
    pub want: Counts,
    pub kind: Option<ResultType>,
    /// At log level 0, up to Postfix 3.10 and from 3.11 on.
    pub hidden: [Counts; 2],
    /// What native reports instead, since when, and why.
    pub native: Option<(Counts, [u32; 3], &'static str)>,
    /// What native reports instead where the sessions are tlsproxy(8)'s.
    pub native_by_proxy: Option<(Counts, &'static str)>,
    /// It is tried again, when Postfix goes on in clear text after a failed handshake.
    pub retried: bool,
    /// A recipient that is answered with this.
    pub refused: Option<(&'static str, &'static str)>,
}

impl Scenario {
    fn new(domain: Domain, level: &str, want: Counts) -> Scenario {
        let name: &'static str = domain.name().split('.').next().unwrap_or_default().to_owned().leak();
        Scenario {
            name,
            domain: domain.reports_to("tlsrpt@reports.test"),
            level: level.to_owned(),
            sts: None,
            messages: vec![vec!["u"]],
            header: "",
            seen: want,
            want,
            kind: None,
            hidden: [(0, want.1), want],
            native: None,
            native_by_proxy: None,
            retried: false,
            refused: None,
        }
    }

    fn kind(mut self, kind: ResultType) -> Scenario {
        self.kind = Some(kind);
        self
    }

    fn seen(mut self, seen: Counts) -> Scenario {
        self.seen = seen;
        self
    }

    fn hidden(mut self, older: Counts, newer: Counts) -> Scenario {
        self.hidden = [older, newer];
        self
    }

    fn native(mut self, counts: Counts, why: &'static str) -> Scenario {
        self.native = Some((counts, [3, 10, 0], why));
        self
    }

    fn by_proxy(mut self, counts: Counts, why: &'static str) -> Scenario {
        self.native_by_proxy = Some((counts, why));
        self
    }

    /// What native reports other than we count, and why.
    pub(crate) fn exception(&self, installation: &Installation, proxied: bool) -> Option<(Counts, &'static str)> {
        let since = self.native.filter(|(_, since, _)| installation.at_least(*since));
        self.native_by_proxy.filter(|_| proxied).or(since.map(|(counts, _, why)| (counts, why)))
    }

    fn messages(mut self, messages: &[&[&'static str]]) -> Scenario {
        self.messages = messages.iter().map(|to| to.to_vec()).collect();
        self
    }

    fn refuses(mut self, recipient: &'static str, reply: &'static str) -> Scenario {
        self.refused = Some((recipient, reply));
        self
    }

    /// Under an MTA-STS policy of this mode with this pattern.
    fn sts(mut self, mode: Mode, pattern: &'static str) -> Scenario {
        self.sts = Some((mode, pattern));
        self
    }

    /// What must be counted, and what the servers must have seen.
    pub(crate) fn wanted(&self, installation: &Installation, level_0: bool) -> (Counts, Counts) {
        let since = |version: [u32; 3]| installation.at_least(version);
        let (mut want, mut seen, mut hidden) = (self.want, self.seen, self.hidden);
        match self.name {
            // Older ones connect to the host and find its certificate to be for another name.
            "sts-outside" if !since([3, 10, 5]) => seen = (0, 1),
            // Older ones do not know the header.
            "tlsrequired-no" if !since([3, 10, 4]) => (want, seen, hidden) = ((0, 1), (0, 1), [(0, 1); 2]),
            _ => {}
        }
        if level_0 {
            want = hidden[usize::from(since([3, 11, 0]))];
        }
        (want, seen)
    }

    /// The one kind of failure that there is.
    pub(crate) fn kind_at(&self, installation: &Installation, level_0: bool) -> Option<ResultType> {
        // `QID: Server certificate not verified` is all that older ones say of the first host, and not which it is.
        let untold = level_0 && self.name == "dane-two" && !installation.at_least([3, 6, 0]);
        self.kind.filter(|_| !untold)
    }

    /// Whether log level 0 hides what native reports.
    pub(crate) fn hidden_at(&self, installation: &Installation, told: &Told) -> bool {
        told.counts == self.wanted(installation, true).0 && told.counts != self.want
    }

    /// The line of the policy table for a Postfix that knows the attributes for TLSRPT, or not.
    pub(crate) fn policy(&self, knows_attributes: bool) -> Option<String> {
        let name = self.domain.name();
        let Some((mode, label)) = self.sts else { return (!self.level.is_empty()).then(|| self.level.clone()) };
        let host = format!("{label}.{name}");
        let (level, word) = match mode {
            Mode::Enforce => (format!("secure match={host} servername=hostname {}", self.level), "enforce"),
            _ => ("may".to_owned(), "testing"),
        };
        match (knows_attributes, mode) {
            (false, Mode::Enforce) => Some(level),
            (false, _) => None,
            (true, _) => Some(format!(
                "{level} policy_type=sts policy_domain={name} mx_host_pattern={host} {{ policy_string = version: STSv1 }} \
                 {{ policy_string = mode: {word} }} {{ policy_string = mx: {host} }} {{ policy_string = max_age: 604800 }}"
            )),
        }
    }

    /// The decision of our responder.
    pub(crate) fn in_force(&self) -> PolicyInForce {
        let name = self.domain.name();
        let Some((mode, label)) = self.sts else {
            let tlsa = |host: &str| Policy {
                policy_type: PolicyType::Tlsa,
                policy_string: vec![format!("3 1 1 {}", "AA".repeat(32))],
                policy_domain: host.to_owned(),
                mx_host: vec![],
            };
            let hosts = self.domain.dane_hosts().map(|host| (host.to_owned(), Arc::new(tlsa(host)))).collect();
            return PolicyInForce::Dane { hosts, unsigned_mx: false };
        };
        let policy = Policy {
            policy_type: PolicyType::Sts,
            policy_string: vec!["version: STSv1".into()],
            policy_domain: name.to_owned(),
            mx_host: vec![format!("{label}.{name}")],
        };
        PolicyInForce::Sts { mode, policy: Arc::new(policy), failure: None }
    }
}

/// A fatal alert: handshake_failure.
const ALERT: &[u8] = &[0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x28];
const GARBAGE: &[u8] = b"500 what was that?\r\n";

/// All of them. A Postfix since 3.10.6 skips hosts outside the patterns itself, and one since 3.10.4 knows `TLS-Required: no`.
#[allow(clippy::too_many_lines)] // One table.
pub(crate) fn all() -> Vec<Scenario> {
    use ResultType::{
        CertificateExpired, CertificateHostMismatch, CertificateNotTrusted, DaneRequired, DnssecInvalid,
        StarttlsNotSupported, TlsaInvalid, ValidationFailure,
    };
    let test = |name: &str, server| Domain::new(&format!("{name}.test")).host("mx", server);
    let may = |name: &str, server, want| Scenario::new(test(name, server), "", want);
    let encrypt = |name: &str, server, want| Scenario::new(test(name, server), "encrypt", want);
    let enforce = |name: &str, server, want| Scenario::new(test(name, server), "", want).sts(Mode::Enforce, "mx");
    let testing = |name: &str, server, want| Scenario::new(test(name, server), "", want).sts(Mode::Testing, "mx");
    let dane = |name: &str, level: &str, server, tlsa, want| {
        let domain = Domain::new(&format!("{name}.example")).signed();
        let domain = match tlsa {
            Some(tlsa) => domain.dane_host("mx", server, tlsa),
            None => domain.host("mx", server),
        };
        Scenario::new(domain, level, want)
    };
    let faulty = Server::Faulty;
    let (ok, failed, nothing) = ((1, 0), (0, 1), (0, 0));
    let ruled_out = "native never reports a host that was ruled out before a connection";
    vec![
        may("may-ok", Server::Sound, ok),
        may("may-selfsigned", faulty(Fault::SelfSigned), ok),
        may("may-wrongname", faulty(Fault::WrongName), ok),
        may("may-expired", faulty(Fault::Expired), ok),
        may("may-plain", Server::Plain, nothing),
        Scenario {
            native: Some((failed, [3, 11, 0], "at level may a refused STARTTLS is not in the log")),
            ..may("may-refuses", Server::Refuses, nothing).seen(failed)
        },
        may("may-hangs", Server::HangsUp, failed).kind(ValidationFailure),
        Scenario { retried: true, ..may("may-falls-back", Server::HangsUp, (0, 2)).kind(ValidationFailure) },
        may("may-garbage", Server::Says(GARBAGE), failed).kind(ValidationFailure),
        may("may-alert", Server::Says(ALERT), failed).kind(ValidationFailure),
        may("may-stalls", Server::Stalls, failed)
            .kind(ValidationFailure)
            .by_proxy(nothing, "tlsproxy(8) reports no handshake that smtp(8) gave up waiting for"),
        encrypt("enc-ok", Server::Sound, ok),
        encrypt("enc-otherca", faulty(Fault::OtherAuthority), ok),
        encrypt("enc-plain", Server::Plain, failed).seen(nothing).kind(StarttlsNotSupported),
        encrypt("enc-refuses", Server::Refuses, failed).kind(StarttlsNotSupported),
        encrypt("enc-hangs", Server::HangsUp, failed).kind(ValidationFailure),
        encrypt("enc-alert", Server::Says(ALERT), failed).kind(ValidationFailure),
        encrypt("enc-garbage", Server::Says(GARBAGE), failed).kind(ValidationFailure),
        enforce("sts-ok", Server::Sound, ok),
        enforce("sts-selfsigned", faulty(Fault::SelfSigned), failed).kind(CertificateNotTrusted),
        enforce("sts-otherca", faulty(Fault::OtherAuthority), failed).kind(CertificateNotTrusted),
        enforce("sts-notyet", faulty(Fault::NotYetValid), failed).kind(CertificateNotTrusted),
        enforce("sts-expired", faulty(Fault::Expired), failed).kind(CertificateExpired),
        enforce("sts-wrongname", faulty(Fault::WrongName), failed).kind(CertificateHostMismatch),
        enforce("sts-plain", Server::Plain, failed).seen(nothing).kind(StarttlsNotSupported),
        enforce("sts-refuses", Server::Refuses, failed).kind(StarttlsNotSupported),
        enforce("sts-hangs", Server::HangsUp, failed).kind(ValidationFailure),
        enforce("sts-twice", faulty(Fault::SelfSigned), (0, 2))
            .kind(CertificateNotTrusted)
            .messages(&[&["u"], &["v"]])
            .by_proxy((0, 2), "of the resumed session native knows no reason code, the log names it earlier"),
        Scenario::new(Domain::new("sts-outside.test").host("rogue", Server::Sound), "", failed)
            .sts(Mode::Enforce, "mx")
            .kind(ValidationFailure)
            .seen(nothing)
            .native(nothing, ruled_out),
        Scenario { header: "TLS-Required: no\n", ..enforce("tlsrequired-no", faulty(Fault::SelfSigned), ok) }
            .native(nothing, "native reports nothing of a message with `TLS-Required: no`"),
        testing("try-ok", Server::Sound, ok).hidden(nothing, nothing),
        testing("try-selfsigned", faulty(Fault::SelfSigned), failed)
            .kind(CertificateNotTrusted)
            .seen(ok)
            .hidden(nothing, nothing)
            .native(ok, "native reports the level may, not the policy that is tested"),
        testing("try-plain", Server::Plain, failed)
            .kind(StarttlsNotSupported)
            .seen(nothing)
            .hidden(nothing, failed)
            .native(nothing, "native reports the level may, not the policy that is tested"),
        testing("try-hangs", Server::HangsUp, failed).kind(ValidationFailure),
        Scenario { retried: true, ..testing("try-falls-back", Server::Says(ALERT), (0, 2)).kind(ValidationFailure) },
        Scenario::new(Domain::new("try-outside.test").host("rogue", faulty(Fault::SelfSigned)), "", failed)
            .sts(Mode::Testing, "mx")
            .kind(ValidationFailure)
            .seen(ok)
            .hidden(nothing, failed)
            .native(ok, "native reports the level may, not the policy that is tested"),
        dane("dane-ok", "dane", faulty(Fault::SelfSigned), Some(Tlsa::Matching), ok),
        dane("dane-only-ok", "dane-only", faulty(Fault::SelfSigned), Some(Tlsa::Matching), ok),
        dane("dane-mismatch", "dane", Server::Sound, Some(Tlsa::Mismatching), failed).kind(CertificateNotTrusted),
        dane("dane-plain", "dane", Server::Plain, Some(Tlsa::Matching), failed)
            .seen(nothing)
            .kind(StarttlsNotSupported),
        dane("dane-hangs", "dane", Server::HangsUp, Some(Tlsa::Matching), failed).kind(ValidationFailure),
        dane("dane-none", "dane", Server::Sound, None, ok),
        dane("dane-only-none", "dane-only", Server::Sound, None, failed)
            .seen(nothing)
            .kind(DaneRequired)
            .native(nothing, ruled_out),
        dane("dane-unusable", "dane", Server::Sound, None, ok)
            .native(ok, "as no-policy-found: Postfix goes on as if there were no record"),
        dane("dane-only-unusable", "dane-only", Server::Sound, None, failed)
            .seen(nothing)
            .kind(TlsaInvalid)
            .native(nothing, ruled_out),
        dane("dane-servfail", "dane", Server::Sound, Some(Tlsa::Matching), failed)
            .seen(nothing)
            .kind(DnssecInvalid)
            .native(nothing, ruled_out),
        Scenario::new(
            Domain::new("dane-two.example").signed().dane_host("mx1", Server::Sound, Tlsa::Mismatching).dane_host(
                "mx2",
                Server::Sound,
                Tlsa::Matching,
            ),
            "dane",
            (1, 1),
        )
        .kind(CertificateNotTrusted),
        Scenario::new(
            Domain::new("two-plain.test").host("mx1", Server::Plain).host("mx2", Server::Sound),
            "encrypt",
            (1, 1),
        )
        .seen(ok)
        .kind(StarttlsNotSupported),
        Scenario::new(
            Domain::new("two-hangs.test").host("mx1", Server::HangsUp).host("mx2", Server::Sound),
            "encrypt",
            (1, 1),
        )
        .kind(ValidationFailure),
        may("rcpt-three", Server::Sound, ok).messages(&[&["a", "b", "c"]]),
        may("rcpt-mixed", Server::Sound, ok).messages(&[&["a", "no"]]).refuses("no", "550 5.1.1 no such user"),
        may("rcpt-later", Server::Sound, ok).refuses("u", "450 4.2.0 later), status=sent (250 ok"),
        may("quoted", Server::Sound, ok).messages(&[&["\"a b>, relay=none, x\""]]),
        may("resume-may", Server::Sound, (2, 0)).messages(&[&["u"], &["v"]]),
        Scenario::new(test("reuse-ok", Server::Sound), "may connection_reuse=yes", ok)
            .messages(&[&["u"], &["v"]])
            .hidden(ok, ok),
        Scenario {
            level: "connection_reuse=yes".into(),
            ..enforce("reuse-selfsigned", faulty(Fault::SelfSigned), failed)
        }
        .kind(CertificateNotTrusted),
        Scenario {
            level: "connection_reuse=yes".into(),
            ..enforce("reuse-wrongname", faulty(Fault::WrongName), failed)
        }
        .kind(CertificateHostMismatch),
        Scenario::new(test("reuse-alert", Server::Says(ALERT)), "encrypt connection_reuse=yes", failed)
            .kind(ValidationFailure),
        dane("reuse-mismatch", "dane connection_reuse=yes", Server::Sound, Some(Tlsa::Mismatching), failed)
            .kind(CertificateNotTrusted),
    ]
}
