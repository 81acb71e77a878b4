//! Whether reports about broken TLS can leave this host: RFC 8460 §3 has them delivered despite TLS failures.
//!
//! Takes: a [`PostfixInstance`], and our configuration. Gives: a finding where Postfix before 3.10, which does not know
//! `TLS-Required: No` (RFC 8689), has no transport of its own for reports.
//! Not here: the transport itself (`packaging/postfix.example`).

use crate::answering::policy::decision::ATTRIBUTES_SINCE;
use crate::checking::finding::{Finding, Severity};
use crate::checking::host::postconf::PostfixInstance;
use crate::checking::host::postfix::ServiceCheck;
use crate::config::identity::missing_identity;
use crate::config::{Config, DeliveryMethod};

/// The parameter that chooses a transport by the envelope sender.
const MAPS: &str = "sender_dependent_default_transport_maps";

impl ServiceCheck<'_> {
    /// Whether the service is set up to ask for no policy, as the transport of reports is.
    pub(super) fn asks_for_no_policy(&self) -> bool {
        self.service.overrides.get("smtp_tls_policy_maps").is_some_and(String::is_empty)
    }

    /// Whether mail of one envelope sender is given to it, as the transport of reports is chosen.
    pub(super) fn takes_mail_of_a_sender(&self) -> bool {
        let transport = format!("{}:", self.service.name);
        let words = self.instance.get(MAPS).split(|c: char| c.is_whitespace() || matches!(c, ',' | '=' | '{' | '}'));
        words.into_iter().any(|word| word.starts_with(&transport))
    }
}

/// Checks the instance that reports are handed to, if this is one.
pub(super) fn check(instance: &PostfixInstance, config: &Config, found: &mut Vec<Finding>) {
    let report = &config.report;
    let here = match &report.deliver {
        DeliveryMethod::Localhost(_) | DeliveryMethod::Sendmail(_) => true,
        DeliveryMethod::Smtp(address) => address.ip().is_loopback(),
        DeliveryMethod::Submission(..) | DeliveryMethod::Submissions(..) => false,
    };
    let knows_header = instance.version().unwrap_or(config.postfix.version()) >= ATTRIBUTES_SINCE;
    if knows_header || !here || !missing_identity(report).is_empty() || instance.smtp_clients.is_empty() {
        return;
    }
    let envelope = report.envelope.as_ref().or(report.from.as_ref()).map_or_else(String::new, ToString::to_string);
    if !instance.get(MAPS).is_empty() {
        return;
    }
    let problem =
        format!("mail from {envelope} has no transport of its own, and this Postfix does not know TLS-Required");
    let impact = "Reports to domains whose TLS is broken are held to those domains' policies, wait, and are returned.";
    let finding = Finding::new(
        Severity::Warning,
        "no-report-transport",
        format!("{}/main.cf", instance.folder.display()),
        problem,
        impact,
    );
    let (postconf, reload) = (instance.postconf_command(), instance.reload_command());
    let chroot = instance.smtp_clients.iter().any(|service| service.name == "smtp" && service.chroot);
    let chroot = if chroot { "y" } else { "n" };
    found.push(
        finding
            .fix(format!("{postconf} -M 'tlswarden/unix=tlswarden unix - - {chroot} - - smtp'"))
            .fix(format!(
                "{postconf} -P tlswarden/unix/syslog_name=postfix/tlswarden tlswarden/unix/smtp_tls_security_level=may \
                 tlswarden/unix/smtp_tls_policy_maps="
            ))
            .fix(format!("{postconf} -e '{MAPS} = inline:{{ {{ {envelope} = tlswarden: }} }}' && {reload}")),
    );
}
