//! Every borrowed part of an event, for the tests that hold them to the input.

use tlswarden_parsers::event::exim::{Line, Problem, Recipient, Says};
use tlswarden_parsers::event::{Event, Peer, Reason, VerifyCause, What};

/// All text fields of an event. A new field belongs here: the match has no `..` for text.
pub fn texts<'a>(event: &Event<'a>) -> Vec<&'a [u8]> {
    let mut texts = vec![event.process.instance, event.process.name];
    let host = |peer: &Peer<'a>| peer.host;
    match &event.what {
        What::Established { peer, trust: _, reused: _ } => texts.push(host(peer)),
        What::VerificationFailed { peer, cause } => {
            texts.push(host(peer));
            texts.extend(cause_text(cause));
        }
        What::HandshakeFailed { peer, cause } => texts.extend([host(peer), cause]),
        What::LibraryProblem { text } => texts.push(text),
        What::ResumedUntrusted { peer } | What::TlsaUnusable { peer } => texts.push(host(peer)),
        What::HostRuledOut { next_hop, host, why: _ } => texts.extend([next_hop, host]),
        What::Native { domain, peer, failure } => {
            texts.extend([domain, host(peer)]);
            if let Some(failure) = failure {
                texts.push(failure.failure_type);
                texts.extend(failure.reason);
            }
        }
        What::HostLeft { queue_id, reason } => {
            texts.push(queue_id);
            texts.extend(reason_host(reason));
        }
        What::Delivery { queue_id, recipient_domain, relay, cached_connection: _, tls, sent: _, reason } => {
            texts.extend([queue_id, recipient_domain]);
            texts.extend(tls.iter().flat_map(|tls| [tls.asked, tls.reached]));
            texts.extend(relay.as_ref().map(host));
            texts.extend(reason_host(reason));
        }
        What::MessageId { queue_id, message_id } => texts.extend([queue_id, message_id]),
        What::Active { queue_id } | What::Removed { queue_id } => texts.push(queue_id),
        What::Started { version } => texts.push(version),
        What::NativeUnsent => {}
        What::Exim(line) => exim(line, &mut texts),
        What::Reloaded | What::Proxied => {}
    }
    texts
}

fn exim<'a>(line: &Line<'a>, texts: &mut Vec<&'a [u8]>) {
    texts.push(line.id);
    match &line.says {
        Says::Arrived { message_id } => texts.push(message_id),
        Says::Recipient(Recipient { became: _, address, domain, peer, continued: _, tls: _, problem }) => {
            texts.extend([address, domain]);
            texts.extend(peer.map(|peer| peer.host));
            texts.extend(problem_text(problem));
        }
        Says::Host { peer, problem } => {
            texts.push(peer.host);
            texts.extend(problem_text(problem));
        }
        Says::VerifyError { ip: _, cause } => texts.extend(cause_text(cause)),
        Says::NoUsableTlsa | Says::Completed => {}
    }
}

fn problem_text<'a>(problem: &Problem<'a>) -> Option<&'a [u8]> {
    match *problem {
        Problem::Handshake(text) | Problem::DaneMismatch(text) => Some(text),
        Problem::StarttlsNotOffered
        | Problem::StarttlsRefused
        | Problem::CertificateInvalid
        | Problem::CertificateName
        | Problem::CertificateRevoked
        | Problem::CertificateMissing
        | Problem::CertificateRejected
        | Problem::TlsaUnusable
        | Problem::TlsaLookup
        | Problem::DaneRequired
        | Problem::StsMxMismatch
        | Problem::Local
        | Problem::Other => None,
    }
}

fn cause_text<'a>(cause: &VerifyCause<'a>) -> Option<&'a [u8]> {
    match *cause {
        VerifyCause::Code(_, text) | VerifyCause::ExternalPolicy(text) => Some(text),
        VerifyCause::NotTrusted
        | VerifyCause::SelfSigned
        | VerifyCause::UntrustedIssuer
        | VerifyCause::NotYetValid
        | VerifyCause::Expired
        | VerifyCause::WrongPurpose
        | VerifyCause::ChainTooLong => None,
    }
}

fn reason_host<'a>(reason: &Reason<'a>) -> Option<&'a [u8]> {
    match reason {
        Reason::StarttlsRefused(peer) | Reason::StarttlsNotOffered(peer) => Some(peer.host),
        Reason::HandshakeFailure | Reason::NotVerified | Reason::NotTrusted | Reason::Other => None,
    }
}

/// Whether a part lies in the line by address, not only by content; an empty one may be anywhere.
pub fn lies_in(part: &[u8], line: &[u8]) -> bool {
    part.is_empty() || {
        let (part, line) = (part.as_ptr_range(), line.as_ptr_range());
        line.start <= part.start && part.end <= line.end
    }
}
