//! Result types and reason codes of RFC 8460 §4.3 for what Postfix and Exim log of a failure.
//!
//! Takes: causes as the parsers read them, and Postfix's own names. Gives: result types and reason codes.
//! Limits: a reason code has at most 64 characters, because a stranger may have chosen them.
//! When it fails: never; an unknown name becomes `validation-failure` with the name as the reason code.
//! Not here: which line is about which session (`postfix`, `exim`).

use tlswarden_parsers::event::VerificationError;

use crate::base::tlsrpt::{ResultType, SessionResult};
use crate::counting::session::FailureCause;
use crate::counting::session::text::lossy;

/// The reason code of an MX host outside an MTA-STS policy.
pub(crate) const MX_MISMATCH: &str = "mtasts-policy-mx-mismatch";

/// The reason code of a certificate that no TLSA record fits.
pub(crate) const DANE_NO_MATCH: &str = "dane-no-match";

/// The reason code of TLSA records of which none is usable, in Postfix's words.
pub(crate) const TLSA_UNUSABLE: &str = "all-TLSA-records-unusable";

/// The reason code of a host that the MTA was told not to use, because its TLSA records could not be followed.
pub(crate) const HOST_EXCLUDED: &str = "mx-host-excluded-for-dane";

/// The reason code of a handshake that failed.
pub(crate) const HANDSHAKE_FAILURE: &str = "tls-handshake-failure";

/// RFC 8460 §4.3's words for a verification failure: the cause goes into the reason code, in OpenSSL's words.
pub(super) fn verification_failure(cause: VerificationError<'_>) -> FailureCause {
    use ResultType::{CertificateExpired, CertificateHostMismatch, CertificateNotTrusted};
    let not_trusted = |code: &str| (CertificateNotTrusted, Some(code.to_owned()));
    match cause {
        VerificationError::NotTrusted => (CertificateNotTrusted, None),
        VerificationError::SelfSigned => not_trusted("self-signed_certificate"),
        VerificationError::UntrustedIssuer => not_trusted("unable_to_get_local_issuer_certificate"),
        VerificationError::NotYetValid => not_trusted("certificate_is_not_yet_valid"),
        VerificationError::Expired => (CertificateExpired, None),
        VerificationError::WrongPurpose => not_trusted("unsuitable_certificate_purpose"),
        VerificationError::ChainTooLong => not_trusted("certificate_chain_too_long"),
        VerificationError::Code(62, _) => (CertificateHostMismatch, None),
        VerificationError::Code(65, _) => not_trusted(DANE_NO_MATCH),
        VerificationError::Code(_, words) => not_trusted(&to_reason_code(words)),
        VerificationError::ExternalPolicy(word) => match tlsrpt_verdict(word, None) {
            SessionResult::Failure(result, code) => (result, code),
            SessionResult::Success => (ResultType::ValidationFailure, None),
        },
    }
}

/// What Postfix itself reports: its names have underscores in the log, hyphens in the policy table.
pub(super) fn tlsrpt_verdict(failure_type: &[u8], reason: Option<&[u8]>) -> SessionResult {
    let name = lossy(failure_type).replace('_', "-").to_ascii_lowercase();
    let result = serde_json::from_value(serde_json::Value::String(name.clone()));
    match result {
        Ok(result) => {
            let (result, code) = in_words_of_rfc8460(result, reason.map(to_reason_code));
            SessionResult::Failure(result, code)
        }
        Err(_) => SessionResult::Failure(ResultType::ValidationFailure, Some(to_reason_code(name.as_bytes()))),
    }
}

/// A result of Postfix's own in RFC 8460 §4.3's words and ours. To Postfix a certificate that does not pass, for a cause that
/// has no result type, is a `validation-failure` with OpenSSL's words, which alone have underscores; those of 1.1.1, 3.0 and
/// 3.5 differ, and the log has one word for both self-signed roots and unknown issuers.
pub(super) fn in_words_of_rfc8460(result: ResultType, code: Option<String>) -> FailureCause {
    let result = match &code {
        Some(words) if result == ResultType::ValidationFailure && words.contains('_') => {
            ResultType::CertificateNotTrusted
        }
        _ => result,
    };
    let known = match code.as_deref() {
        Some("self_signed_certificate") => "self-signed_certificate",
        Some("self-signed_certificate_in_certificate_chain" | "self_signed_certificate_in_certificate_chain") => {
            "unable_to_get_local_issuer_certificate"
        }
        Some("certificate_is_not_yet_valid_or_the_system_clock_is_incorrect") => "certificate_is_not_yet_valid",
        Some("unsupported_certificate_purpose") => "unsuitable_certificate_purpose",
        _ => return (result, code),
    };
    (result, Some(known.to_owned()))
}

/// Words as a reason code: spaces become underscores, at most 64 of them, printable.
pub(super) fn to_reason_code(words: &[u8]) -> String {
    let fit = |b: &u8| match b {
        b' ' => '_',
        b if b.is_ascii_graphic() => char::from(*b),
        _ => '?',
    };
    words.iter().take(64).map(fit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_postfix_in_the_words_of_the_rfc() {
        use ResultType::{CertificateExpired, CertificateNotTrusted, TlsaInvalid, ValidationFailure};
        let issuer = Some("unable_to_get_local_issuer_certificate");
        for (kind, reason, want) in [
            ("validation_failure", Some("tls-handshake-failure"), (ValidationFailure, Some(HANDSHAKE_FAILURE))),
            ("validation_failure", None, (ValidationFailure, None)),
            (
                "validation_failure",
                Some("self-signed_certificate"),
                (CertificateNotTrusted, Some("self-signed_certificate")),
            ),
            (
                "validation_failure",
                Some("self_signed_certificate"),
                (CertificateNotTrusted, Some("self-signed_certificate")),
            ),
            (
                "validation_failure",
                Some("self-signed_certificate_in_certificate_chain"),
                (CertificateNotTrusted, issuer),
            ),
            (
                "validation_failure",
                Some("certificate_is_not_yet_valid_or_the_system_clock_is_incorrect"),
                (CertificateNotTrusted, Some("certificate_is_not_yet_valid")),
            ),
            ("certificate_expired", None, (CertificateExpired, None)),
            ("tlsa_invalid", Some("all-TLSA-records-unusable"), (TlsaInvalid, Some(TLSA_UNUSABLE))),
        ] {
            let (result, code) = want;
            let want = SessionResult::Failure(result, code.map(str::to_owned));
            assert_eq!(tlsrpt_verdict(kind.as_bytes(), reason.map(str::as_bytes)), want, "{kind} {reason:?}");
        }
    }
}
