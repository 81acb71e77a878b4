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
pub(super) const HANDSHAKE_FAILURE: &str = "tls-handshake-failure";

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

/// What Postfix itself reports, as it is: its names have underscores in the log, hyphens in the policy table.
pub(super) fn tlsrpt_verdict(failure_type: &[u8], reason: Option<&[u8]>) -> SessionResult {
    let name = lossy(failure_type).replace('_', "-").to_ascii_lowercase();
    let result = serde_json::from_value(serde_json::Value::String(name.clone()));
    match result {
        Ok(result) => SessionResult::Failure(result, reason.map(to_reason_code)),
        Err(_) => SessionResult::Failure(ResultType::ValidationFailure, Some(to_reason_code(name.as_bytes()))),
    }
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
