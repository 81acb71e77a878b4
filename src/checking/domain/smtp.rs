//! The beginning of an SMTP conversation: greeting, EHLO, STARTTLS.
//!
//! Takes: a stream. Gives: the stream where the TLS handshake begins, or why it does not come to that.
//! Limits: [`MAX_LINE`] octets a line, [`MAX_LINES`] lines a reply; the caller's time.
//! When it fails: an [`SmtpError`]; every text of the server is escaped and cut to [`MAX_TEXT`] characters.
//! Not here: TLS (`probe`), mail.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The longest line of a reply, in octets: RFC 5321 §4.5.3.1.5 allows 512, extensions more.
pub const MAX_LINE: usize = 2048;

/// The most lines of a reply: servers have about a dozen extensions.
pub const MAX_LINES: usize = 128;

/// How much of a server's text is shown, in characters.
const MAX_TEXT: usize = 200;

/// A reply (RFC 5321 §4.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SmtpReply {
    /// Three digits.
    pub code: u16,
    /// The text of each line, without code and line end.
    pub lines: Vec<String>,
}

/// The result of parsing the bytes received so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParsedReply {
    /// A reply, and how many bytes it takes.
    Complete(SmtpReply, usize),
    /// The beginning of a reply.
    Incomplete,
    /// Not a reply.
    Malformed,
}

/// Why TLS is not begun.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SmtpError {
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// The server does not speak SMTP.
    #[error("it does not speak SMTP")]
    NotSmtp,
    /// The server does not want to talk; its words.
    #[error("it does not take mail from here: {0}")]
    Refused(String),
    /// STARTTLS is not among the extensions.
    #[error("STARTTLS is not offered")]
    StarttlsNotOffered,
    /// It is, and is refused; the server's words.
    #[error("STARTTLS is offered and refused: {0}")]
    StarttlsRefused(String),
    /// Data follows the reply to STARTTLS in clear text: an attacker could have inserted it (CVE-2011-0411).
    #[error("clear text follows the reply to STARTTLS")]
    DataAfterStarttls,
}

/// Parses one reply at the beginning of the bytes received so far.
pub fn parse_reply(octets: &[u8]) -> ParsedReply {
    let mut lines = Vec::new();
    let mut code = None;
    let mut used = 0;
    loop {
        let rest = &octets[used..];
        let Some(end) = rest.iter().take(MAX_LINE).position(|b| *b == b'\n') else {
            return if rest.len() >= MAX_LINE { ParsedReply::Malformed } else { ParsedReply::Incomplete };
        };
        let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
        used += end + 1;
        let (Some(digits), lines_left) = (line.get(..3), lines.len() < MAX_LINES) else {
            return ParsedReply::Malformed;
        };
        let number = std::str::from_utf8(digits).ok().filter(|d| d.bytes().all(|b| b.is_ascii_digit()));
        let number = number.and_then(|digits| digits.parse::<u16>().ok()).filter(|n| (200..600).contains(n));
        let (Some(number), true) = (number, lines_left) else { return ParsedReply::Malformed };
        if code.is_some_and(|code| code != number) {
            return ParsedReply::Malformed;
        }
        code = Some(number);
        let text = String::from_utf8_lossy(line.get(4..).unwrap_or_default()).into_owned();
        lines.push(text);
        match line.get(3) {
            Some(b'-') => {}
            Some(b' ') | None => return ParsedReply::Complete(SmtpReply { code: number, lines }, used),
            Some(_) => return ParsedReply::Malformed,
        }
    }
}

/// Goes as far as the TLS handshake. `name` is who we are.
pub(crate) async fn start_tls<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, name: &str) -> Result<(), SmtpError> {
    let mut reader = ReplyReader { waiting: Vec::new() };
    let greeting = reader.read_reply(stream).await?;
    if greeting.code != 220 {
        return Err(SmtpError::Refused(greeting.text()));
    }
    let hello = reader.send_command(stream, &format!("EHLO {name}\r\n")).await?;
    if hello.code / 100 != 2 {
        return Err(SmtpError::Refused(hello.text()));
    }
    let offered = hello.lines.iter().skip(1).any(|line| line.trim().eq_ignore_ascii_case("STARTTLS"));
    if !offered {
        let _ = stream.write_all(b"QUIT\r\n").await;
        return Err(SmtpError::StarttlsNotOffered);
    }
    let started = reader.send_command(stream, "STARTTLS\r\n").await?;
    if started.code != 220 {
        let _ = stream.write_all(b"QUIT\r\n").await;
        return Err(SmtpError::StarttlsRefused(started.text()));
    }
    if reader.waiting.is_empty() { Ok(()) } else { Err(SmtpError::DataAfterStarttls) }
}

impl SmtpReply {
    fn text(&self) -> String {
        let text = format!("{} {}", self.code, self.lines.join(" "));
        text.chars().take(MAX_TEXT).flat_map(char::escape_debug).collect()
    }
}

struct ReplyReader {
    /// Read, and no part of a reply yet.
    waiting: Vec<u8>,
}

impl ReplyReader {
    async fn send_command<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        line: &str,
    ) -> Result<SmtpReply, SmtpError> {
        if !self.waiting.is_empty() {
            return Err(SmtpError::NotSmtp);
        }
        stream.write_all(line.as_bytes()).await.map_err(broken)?;
        self.read_reply(stream).await
    }

    async fn read_reply<S: AsyncRead + Unpin>(&mut self, stream: &mut S) -> Result<SmtpReply, SmtpError> {
        loop {
            match parse_reply(&self.waiting) {
                ParsedReply::Complete(reply, used) => {
                    self.waiting.drain(..used);
                    return Ok(reply);
                }
                ParsedReply::Malformed => return Err(SmtpError::NotSmtp),
                ParsedReply::Incomplete => {}
            }
            let mut chunk = [0; 1024];
            match stream.read(&mut chunk).await.map_err(broken)? {
                0 => return Err(SmtpError::Broken("it was closed".into())),
                n => self.waiting.extend_from_slice(&chunk[..n]),
            }
        }
    }
}

fn broken(error: io::Error) -> SmtpError {
    SmtpError::Broken(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(text: &str) -> (u16, Vec<String>) {
        match parse_reply(text.as_bytes()) {
            ParsedReply::Complete(reply, used) if used == text.len() => (reply.code, reply.lines),
            other => panic!("{text:?}: {other:?}"),
        }
    }

    #[test]
    fn replies() {
        assert_eq!(whole("220 mx.example ESMTP\r\n"), (220, vec!["mx.example ESMTP".to_owned()]));
        assert_eq!(whole("250-mx\r\n250-STARTTLS\r\n250 SIZE\r\n").1, ["mx", "STARTTLS", "SIZE"]);
        assert_eq!(whole("354\n"), (354, vec![String::new()]));
        for partial in ["", "22", "220 mx", "250-mx\r\n", "250-mx\r\n250 "] {
            assert_eq!(parse_reply(partial.as_bytes()), ParsedReply::Incomplete, "{partial:?}");
        }
        let many = "250-x\r\n".repeat(MAX_LINES + 1);
        let long = format!("220 {}", "x".repeat(MAX_LINE));
        for none in [
            "\n",
            "HTTP/1.1 400\r\n",
            "220_x\r\n",
            "250-a\r\n251 b\r\n",
            "999 x\r\n",
            "\u{0}\u{0}\u{0}\n",
            &many,
            &long,
        ] {
            assert_eq!(parse_reply(none.as_bytes()), ParsedReply::Malformed, "{none:?}");
        }
        assert!(matches!(parse_reply(b"220 a\r\n220 b\r\n"), ParsedReply::Complete(_, 7)));
    }

    async fn talk(server: &'static [(&'static str, &'static str)]) -> Result<(), SmtpError> {
        let (mut ours, mut theirs) = tokio::io::duplex(4096);
        let server = tokio::spawn(async move {
            for (wait, say) in server {
                let mut heard = vec![0; wait.len()];
                if theirs.read_exact(&mut heard).await.is_err() {
                    return;
                }
                assert_eq!(String::from_utf8_lossy(&heard), *wait);
                theirs.write_all(say.as_bytes()).await.unwrap();
            }
        });
        let done = start_tls(&mut ours, "me.example").await;
        drop(ours);
        server.await.unwrap();
        done
    }

    #[tokio::test]
    async fn conversations() {
        const HELLO: &str = "EHLO me.example\r\n";
        const OFFER: &str = "250-mx\r\n250-starttls\r\n250 X\r\n";
        assert_eq!(talk(&[("", "220 x\r\n"), (HELLO, OFFER), ("STARTTLS\r\n", "220 go\r\n")]).await, Ok(()));
        assert_eq!(talk(&[("", "220 x\r\n"), (HELLO, "250 STARTTLS\r\n")]).await, Err(SmtpError::StarttlsNotOffered));
        let refused = talk(&[("", "220 x\r\n"), (HELLO, OFFER), ("STARTTLS\r\n", "454 no\u{1b}\r\n")]).await;
        assert_eq!(refused, Err(SmtpError::StarttlsRefused("454 no\\u{1b}".into())));
        let injected = talk(&[("", "220 x\r\n"), (HELLO, OFFER), ("STARTTLS\r\n", "220 go\r\n250 ok\r\n")]).await;
        assert_eq!(injected, Err(SmtpError::DataAfterStarttls));
        assert_eq!(talk(&[("", "554 go away\r\n")]).await, Err(SmtpError::Refused("554 go away".into())));
        assert_eq!(talk(&[("", "220 x\r\n250 y\r\n")]).await, Err(SmtpError::NotSmtp));
        assert!(matches!(talk(&[("", "22")]).await, Err(SmtpError::Broken(_))));
    }
}
