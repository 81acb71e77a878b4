//! Every borrowed part of an event, for the tests that hold them to the input.

use tlswarden_parsers::event::exim::{EximLine, HostProblem, LineKind, RecipientLine};
use tlswarden_parsers::event::{Event, EventKind, Peer, TlsReason, VerificationError};

/// All text fields of an event. A new field belongs here: the match has no `..` for text.
pub(crate) fn texts<'a>(event: &Event<'a>) -> Vec<&'a [u8]> {
    let mut texts = vec![event.process.host, event.process.instance, event.process.name];
    let host = |peer: &Peer<'a>| peer.host;
    match &event.kind {
        EventKind::Established { peer, trust: _, reused: _ } => texts.push(host(peer)),
        EventKind::VerificationFailed { peer, cause } => {
            texts.push(host(peer));
            texts.extend(cause_text(cause));
        }
        EventKind::HandshakeFailed { peer, cause } => texts.extend([host(peer), cause]),
        EventKind::LibraryProblem { text } => texts.push(text),
        EventKind::ResumedUntrusted { peer } | EventKind::TlsaUnusable { peer } => texts.push(host(peer)),
        EventKind::HostExcluded { next_hop, host, reason: _ } => texts.extend([next_hop, host]),
        EventKind::TlsrptResult { domain, peer, failure } => {
            texts.extend([domain, host(peer)]);
            if let Some(failure) = failure {
                texts.push(failure.failure_type);
                texts.extend(failure.reason);
            }
        }
        EventKind::HostGivenUp { queue_id, reason, recognized: _ } => {
            texts.push(queue_id);
            texts.extend(reason_host(reason));
        }
        EventKind::Delivery {
            queue_id,
            recipient_domain,
            relay,
            cached_connection: _,
            delays,
            tls,
            sent: _,
            reason,
            recognized: _,
        } => {
            texts.extend([queue_id, recipient_domain, delays]);
            texts.extend(tls.iter().flat_map(|tls| [tls.requested, tls.effective]));
            texts.extend(relay.as_ref().map(host));
            texts.extend(reason_host(reason));
        }
        EventKind::MessageId { queue_id, message_id } => texts.extend([queue_id, message_id]),
        EventKind::QueueActive { queue_id, .. } | EventKind::QueueRemoved { queue_id } => texts.push(queue_id),
        EventKind::DaemonStarted { version } => texts.push(version),
        EventKind::TlsrptNotSent => {}
        EventKind::Exim(line) => exim(line, &mut texts),
        EventKind::DaemonReloaded
        | EventKind::TlsproxyConnect
        | EventKind::LinesLost { number: _ }
        | EventKind::LastLineRepeated { times: _ } => {}
    }
    texts
}

fn exim<'a>(line: &EximLine<'a>, texts: &mut Vec<&'a [u8]>) {
    texts.push(line.id);
    match &line.kind {
        LineKind::Arrived { message_id, .. } => texts.push(message_id),
        LineKind::Recipient(RecipientLine {
            status: _,
            address,
            domain,
            peer,
            continued_connection: _,
            tls: _,
            problem,
            recognized: _,
        }) => {
            texts.extend([address, domain]);
            texts.extend(peer.map(|peer| peer.host));
            texts.extend(problem_text(problem));
        }
        LineKind::Host { peer, problem, clear_text_follows: _ } => {
            texts.push(peer.host);
            texts.extend(problem_text(problem));
        }
        LineKind::VerifyError { ip: _, cause } => texts.extend(cause_text(cause)),
        LineKind::NoUsableTlsa | LineKind::Completed => {}
    }
}

fn problem_text<'a>(problem: &HostProblem<'a>) -> Option<&'a [u8]> {
    match *problem {
        HostProblem::Handshake(text) | HostProblem::DaneMismatch(text) | HostProblem::StsMxMismatch(text) => Some(text),
        HostProblem::StarttlsNotOffered
        | HostProblem::StarttlsRefused
        | HostProblem::CertificateInvalid
        | HostProblem::CertificateName
        | HostProblem::CertificateRevoked
        | HostProblem::CertificateMissing
        | HostProblem::CertificateRejected
        | HostProblem::TlsaUnusable
        | HostProblem::TlsaLookup
        | HostProblem::DaneRequired
        | HostProblem::PolicyUnknown
        | HostProblem::Local
        | HostProblem::Other => None,
    }
}

fn cause_text<'a>(cause: &VerificationError<'a>) -> Option<&'a [u8]> {
    match *cause {
        VerificationError::Code(_, text) | VerificationError::ExternalPolicy(text) => Some(text),
        VerificationError::NotTrusted
        | VerificationError::SelfSigned
        | VerificationError::UntrustedIssuer
        | VerificationError::NotYetValid
        | VerificationError::Expired
        | VerificationError::WrongPurpose
        | VerificationError::ChainTooLong => None,
    }
}

fn reason_host<'a>(reason: &TlsReason<'a>) -> Option<&'a [u8]> {
    match reason {
        TlsReason::StarttlsRefused(peer) | TlsReason::StarttlsNotOffered(peer) => Some(peer.host),
        TlsReason::HandshakeFailure
        | TlsReason::NotVerified
        | TlsReason::NotTrusted
        | TlsReason::PolicyUnknown
        | TlsReason::Other => None,
    }
}

/// Whether a part lies in the line by address, not only by content; an empty one may be anywhere.
pub(crate) fn lies_in(part: &[u8], line: &[u8]) -> bool {
    part.is_empty() || {
        let (part, line) = (part.as_ptr_range(), line.as_ptr_range());
        line.start <= part.start && part.end <= line.end
    }
}
