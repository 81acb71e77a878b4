//! A socketmap client: asks as Postfix does (socketmap_table(5)).
//!
//! Takes: a map name and a key. Gives: the reply's payload, such as `OK secure match=…` or `NOTFOUND `.
//! Limits: `MAX_REPLY` octets (Postfix's default), `TIMEOUT` for the whole.
//! Not here: what a reply means.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// The longest reply, in octets: Postfix's `socketmap_max_reply_size`.
const MAX_REPLY: usize = 100_000;
/// The longest wait. Postfix waits for 100 s; nothing in a closed world takes so long.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Asks once, on a connection of its own.
pub async fn ask(socket: &Path, map: &str, key: &str) -> io::Result<String> {
    tokio::time::timeout(TIMEOUT, async {
        let mut stream = UnixStream::connect(socket).await?;
        let request = format!("{map} {key}");
        stream.write_all(format!("{}:{request},", request.len()).as_bytes()).await?;
        read(&mut stream).await
    })
    .await?
}

/// Reads one netstring.
async fn read(stream: &mut UnixStream) -> io::Result<String> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("no netstring: {what}"));
    let mut length = 0;
    loop {
        match stream.read_u8().await? {
            b':' => break,
            digit @ b'0'..=b'9' => length = length * 10 + usize::from(digit - b'0'),
            _ => return Err(bad("the length")),
        }
        if length > MAX_REPLY {
            return Err(bad("too long"));
        }
    }
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await?;
    if stream.read_u8().await? != b',' {
        return Err(bad("the end"));
    }
    String::from_utf8(payload).map_err(|_| bad("the text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_question_one_answer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = [0; 17];
            stream.read_exact(&mut asked).await.unwrap();
            stream.write_all(b"9:NOTFOUND ,").await.unwrap();
            asked
        });
        assert_eq!(ask(&path, "policy", "a.test").await.unwrap(), "NOTFOUND ");
        assert_eq!(&server.await.unwrap(), b"13:policy a.test,");
    }
}
