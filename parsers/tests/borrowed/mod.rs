//! Every borrowed part of an event, for the tests that hold them to the input.

use tlswarden_parsers::event::{Event, Peer, Reason, VerifyCause, What};

/// All text fields of an event. A new field belongs here: the match has no `..` for text.
pub fn texts<'a>(event: &Event<'a>) -> Vec<&'a [u8]> {
    let mut texts = vec![event.process.instance, event.process.name];
    let host = |peer: &Peer<'a>| peer.host;
    match &event.what {
        What::Established { peer, trust: _, reused: _ } => texts.push(host(peer)),
        What::VerificationFailed { peer, cause } => {
            texts.push(host(peer));
            match *cause {
                VerifyCause::Code(_, text) | VerifyCause::ExternalPolicy(text) => texts.push(text),
                VerifyCause::NotTrusted
                | VerifyCause::SelfSigned
                | VerifyCause::UntrustedIssuer
                | VerifyCause::NotYetValid
                | VerifyCause::Expired
                | VerifyCause::WrongPurpose
                | VerifyCause::ChainTooLong => {}
            }
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
        What::Delivery { queue_id, recipient_domain, relay, cached_connection: _, sent: _, reason } => {
            texts.extend([queue_id, recipient_domain]);
            texts.extend(relay.as_ref().map(host));
            texts.extend(reason_host(reason));
        }
        What::MessageId { queue_id, message_id } => texts.extend([queue_id, message_id]),
        What::Active { queue_id } | What::Removed { queue_id } => texts.push(queue_id),
        What::Started { version } => texts.push(version),
        What::NativeUnsent => {}
    }
    texts
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
