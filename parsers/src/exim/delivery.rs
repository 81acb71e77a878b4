//! Reads `<=`, and what became of a recipient: `=>`, `->`, `>>`, `==`, `**` (deliver.c, `delivery_log` and its like).
//!
//! Takes: the text behind the message id. Gives: the event, with the fields in the order in which Exim writes them:
//! address, parents in parentheses, `<original>`, `F=`, `Q=`, `P=`, `R=`, `T=`, `S=`, `H=`, `PRX=`, `I=`, `TFO`, `PS=`, `X=`,
//! `CV=`; nothing behind those is read, but the message of `==` and `**`.
//! When it fails: [`LineFamily::EximRecipient`].

use memchr::{memchr, memmem};

use super::fields;
use super::tls::{is_unknown_problem, parse_problem};
use crate::{
    event::{
        Peer,
        exim::{CertificateCheck, HostProblem, LineKind, RecipientLine, RecipientStatus},
    },
    family::{LineFamily, ParseResult},
};

pub(super) fn parse(text: &[u8], continues: bool) -> ParseResult<LineKind<'_>> {
    let (arrow, rest) = match *text {
        [a, b, b' ', ref rest @ ..] => ([a, b], rest),
        _ => return Ok(None),
    };
    let status = match &arrow {
        b"<=" => {
            let null_sender = rest == b"<>" || rest.starts_with(b"<> ");
            let message_id = parse_arrival(rest).unwrap_or_default();
            let tells = null_sender || !message_id.is_empty();
            return Ok(tells.then_some(LineKind::Arrived { message_id, null_sender }));
        }
        b"=>" | b">>" => RecipientStatus::Delivered,
        b"->" => RecipientStatus::DeliveredInSameTransaction,
        b"==" => RecipientStatus::Deferred,
        b"**" => RecipientStatus::Failed,
        // `*>` was not delivered at all (-N), `(=` is of no interest.
        _ => return Ok(None),
    };
    let Some((address, domain, rest)) = recipient(rest) else {
        // Mailboxes, pipes, and what failed before it was an address.
        return Ok(None);
    };
    let found = match status {
        RecipientStatus::Deferred => parse_deferred(rest),
        RecipientStatus::Delivered | RecipientStatus::DeliveredInSameTransaction | RecipientStatus::Failed => {
            parse_delivered_or_failed(rest, status)
        }
    };
    match found {
        Some(Fields { peer, continued_connection, tls, problem, recognized, complete: read }) => {
            // In the first part of a line that was cut, a field that is not there may be in the next.
            if continues && !read {
                return Err(LineFamily::EximRecipient);
            }
            Ok(Some(LineKind::Recipient(RecipientLine {
                status,
                address,
                domain,
                peer,
                continued_connection,
                tls,
                problem,
                recognized,
            })))
        }
        None => Err(LineFamily::EximRecipient),
    }
}

/// `sender … S=… id=…`: what stands before the identifier is counted off, as far as Exim writes it there (receive.c).
fn parse_arrival(text: &[u8]) -> Option<&[u8]> {
    // The sender, or `<>`; it may be quoted.
    let rest = match text.strip_prefix(b"<>") {
        Some(rest) => rest,
        None => fields::address(text).map_or_else(|| text.get(memchr(b' ', text)?..), |(_, _, rest)| Some(rest))?,
    };
    let rest = fields::skip_word(rest, b" R=");
    // ` H=name (helo) [ip]:port I=[ip]:port Ci=… U=… P=…`: the names are the client's, but have no space in them.
    let rest = match rest.strip_prefix(b" H=") {
        None => rest,
        Some(host) => host.get(memmem::find(host, b" [")?..)?,
    };
    let mut rest = rest;
    // Each further field is a space and a word of the form NAME=…, quoted where it can have spaces.
    loop {
        if let Some((id, _)) = fields::word(rest, b" id=") {
            return Some(id);
        }
        // What follows an identifier is the sender's own: the subject, the addresses.
        if rest.is_empty() || [&b" T="[..], b" from ", b" for "].iter().any(|end| rest.starts_with(end)) {
            return None;
        }
        rest = rest.strip_prefix(b" ")?;
        rest = rest.get(field_end(rest)?..)?;
    }
}

/// The end of one field of `<=`: the next space that is in no quotes.
fn field_end(text: &[u8]) -> Option<usize> {
    let space = memchr(b' ', text).unwrap_or(text.len());
    match memmem::find(text.get(..space)?, b"=\"") {
        None => Some(space),
        Some(open) => {
            // `DN="…"`, `SNI="…"`: a quote within is not escaped by every version, so that the last one before ` NAME=` ends it.
            let mut at = open + 2;
            loop {
                at += memchr(b'"', text.get(at..)?)? + 1;
                if matches!(text.get(at), None | Some(b' ')) {
                    return Some(at);
                }
            }
        }
    }
}

/// The address, without its parents and its original: the address, its domain, and what follows all of them.
pub(super) fn recipient(text: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (address, domain, mut rest) = fields::address(text).or_else(|| fields::dequoted_address(text))?;
    if let Some(parents) = rest.strip_prefix(b" (") {
        rest = parents;
        loop {
            (_, _, rest) = fields::address(rest)?;
            match rest.strip_prefix(b", ") {
                Some(next) => rest = next,
                None => break,
            }
        }
        rest = rest.strip_prefix(b")")?;
    }
    if let Some(original) = rest.strip_prefix(b" <") {
        // What was submitted may be no address at all.
        let end =
            fields::address(original).map_or_else(|| original.get(memchr(b'>', original)?..), |(_, _, r)| Some(r))?;
        rest = end.strip_prefix(b">")?;
    }
    Some((address, domain, rest))
}

/// The fields behind the address that are read.
struct Fields<'a> {
    peer: Option<Peer<'a>>,
    continued_connection: bool,
    tls: Option<CertificateCheck>,
    problem: HostProblem<'a>,
    /// Not where the message, or what stands in the place of `X=`, may concern TLS and is unknown.
    recognized: bool,
    /// All of them were there, or something behind them.
    complete: bool,
}

/// `=>` and its like, and `**`.
fn parse_delivered_or_failed(text: &[u8], status: RecipientStatus) -> Option<Fields<'_>> {
    let rest = fields::skip_path(text, b" F=<")?;
    let rest = fields::skip_word(rest, b" Q=");
    let rest = fields::skip_path(rest, b" P=<")?;
    let rest = fields::skip_word(rest, b" R=");
    let rest = fields::skip_word(rest, b" T=");
    let rest = fields::skip_word(rest, b" S=");
    let (host, rest) = host(rest)?;
    // 4.99: ` PS=` and the commands, a letter each.
    let rest = fields::skip_word(rest, b" PS=");
    let (tls, rest) = match fields::word(rest, b" X=") {
        None => (None, rest),
        Some((_, rest)) => match fields::word(rest, b" CV=") {
            None => (Some(CertificateCheck::NotLogged), rest),
            Some((word, rest)) => (Some(certificate_check(word)?), rest),
        },
    };
    // Behind `DN="…"` stands what a stranger wrote; with `X=` nothing is wanted from there.
    let message = if status == RecipientStatus::Failed && tls.is_none() { message(rest) } else { None };
    let (peer, continued_connection) =
        host.map_or((None, false), |(peer, continued_connection)| (Some(peer), continued_connection));
    let problem = message.map_or(HostProblem::Other, parse_problem);
    let recognized = tls.is_some()
        || peer.is_none()
        || match message {
            Some(message) => !is_unknown_problem(problem, message),
            None => !begins_with_tls_version(rest),
        };
    Some(Fields {
        peer,
        continued_connection,
        tls,
        problem,
        recognized,
        complete: !rest.is_empty() && tls != Some(CertificateCheck::NotLogged),
    })
}

/// Whether the next field is one of TLS under another name than `X=`: its value begins with the version.
fn begins_with_tls_version(rest: &[u8]) -> bool {
    let value = memchr(b'=', rest).and_then(|at| rest.get(at + 1..));
    value.is_some_and(|value| value.starts_with(b"TLS1") || value.starts_with(b"TLSv1"))
}

fn certificate_check(word: &[u8]) -> Option<CertificateCheck> {
    Some(match word {
        b"dane" => CertificateCheck::Dane,
        b"yes" => CertificateCheck::Pkix,
        b"no" => CertificateCheck::No,
        _ => return None,
    })
}

/// `== … defer (N)[: text of errno] H=… DT=…: message`; from 4.100 on without the number, `defer[ (text of errno)] H=…`.
fn parse_deferred(text: &[u8]) -> Option<Fields<'_>> {
    let nothing = Fields {
        peer: None,
        continued_connection: false,
        tls: None,
        problem: HostProblem::Other,
        recognized: true,
        complete: true,
    };
    let rest = fields::skip_word(text, b" Q=");
    let rest = fields::skip_word(rest, b" R=");
    let rest = fields::skip_word(rest, b" T=");
    let Some(rest) = rest.strip_prefix(b" defer") else {
        // ` routing defer (N)`, ` transport concurrency limit …`: no host was tried.
        return Some(nothing);
    };
    let rest = skip_errno(rest)?;
    let (host, rest) = host(rest)?;
    let rest = fields::skip_word(rest, b" DT=");
    let (peer, continued_connection) =
        host.map_or((None, false), |(peer, continued_connection)| (Some(peer), continued_connection));
    let message = message(rest);
    let problem = message.map_or(HostProblem::Other, parse_problem);
    let recognized = message.is_none_or(|message| !is_unknown_problem(problem, message));
    Some(Fields { peer, continued_connection, problem, recognized, complete: !rest.is_empty(), ..nothing })
}

/// What follows ` (N)`, ` (N): text of errno`, ` (text of errno)` or nothing at all.
fn skip_errno(text: &[u8]) -> Option<&[u8]> {
    let Some(inside) = text.strip_prefix(b" (") else {
        return (text.is_empty() || [b' ', b':'].contains(text.first()?)).then_some(text);
    };
    let (negative, digits) = inside.strip_prefix(b"-").map_or((false, inside), |rest| (true, rest));
    let number = crate::number::decimal(digits).and_then(|(number, rest)| Some((number, rest.strip_prefix(b")")?)));
    let Some((number, rest)) = number else {
        // What the C library says of an errno has no parentheses.
        return inside.get(memchr(b')', inside)? + 1..);
    };
    if negative || number == 0 {
        return Some(rest);
    }
    // And neither of these.
    let rest = rest.strip_prefix(b": ")?;
    let ends = [memmem::find(rest, b" H="), memmem::find(rest, b" DT="), memmem::find(rest, b": ")];
    rest.get(ends.into_iter().flatten().min().unwrap_or(rest.len())..)
}

/// ` H=HOST [IP]:PORT*` and what belongs to it; `None` inside where no host is named.
#[allow(clippy::type_complexity)] // The host, whether it is a connection that stood already, and what follows.
fn host(text: &[u8]) -> Option<(Option<(Peer<'_>, bool)>, &[u8])> {
    let Some(rest) = text.strip_prefix(b" H=") else { return Some((None, text)) };
    let Some((peer, rest)) = fields::peer(rest) else {
        // A local delivery has a bare name.
        return rest.iter().all(|&b| b != b'[').then_some((None, b""));
    };
    let (continued_connection, rest) = rest.strip_prefix(b"*").map_or((false, rest), |rest| (true, rest));
    let rest = fields::skip_word(rest, b" PRX=");
    let rest = fields::skip_word(rest, b" I=");
    let rest = fields::skip_word(rest, b" TFO");
    Some((Some((peer, continued_connection)), rest))
}

/// `: message`; from 4.99 on ` : message` in `**`.
fn message(text: &[u8]) -> Option<&[u8]> {
    text.strip_prefix(b": ").or_else(|| text.strip_prefix(b" : "))
}
