//! The greeting: one message each way, each with its length before it.

use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::error::{Error, Result};

/// The longest greeting: a token has about 1 KiB, labels at most some 10.
const BYTES_MAX: u32 = 64 << 10;

/// Sends a message.
pub(super) async fn send(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &impl Message,
) -> Result<()> {
    let body = message.encode_to_vec();
    let len = u32::try_from(body.len()).ok().filter(|len| *len <= BYTES_MAX);
    let len = len.ok_or_else(|| Error::host("a greeting is too long"))?;
    let failed = |e| Error::unavailable("the peer went away during the greeting").because(e);
    stream.write_all(&len.to_be_bytes()).await.map_err(failed)?;
    stream.write_all(&body).await.map_err(failed)?;
    stream.flush().await.map_err(failed)
}

/// Receives a message.
pub(super) async fn receive<M: Message + Default>(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<M> {
    let failed = |e| Error::unavailable("the peer went away during the greeting").because(e);
    let mut len = [0; 4];
    stream.read_exact(&mut len).await.map_err(failed)?;
    let len = u32::from_be_bytes(len);
    if len > BYTES_MAX {
        return Err(Error::invalid(format!("a greeting of {len} bytes is too long")));
    }
    let mut body = vec![0; usize::try_from(len).unwrap_or_default()];
    stream.read_exact(&mut body).await.map_err(failed)?;
    M::decode(body.as_slice())
        .map_err(|e| Error::invalid("the greeting is not understood").because(e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cinderblock_proto::agent::v1::Hello;

    #[tokio::test]
    async fn greetings_arrive_and_rubbish_is_bounded() {
        let hello = Hello { protocol: 1, token: "secret".to_owned(), ..Hello::default() };
        let mut wire = Vec::new();
        send(&mut wire, &hello).await.unwrap();
        let got: Hello = receive(&mut wire.as_slice()).await.unwrap();
        assert_eq!(got, hello);
        assert!(!format!("{got:?}").contains("secret"));
        for bad in [&b"GET / HTTP/1.1\r\n"[..], &[0, 0, 0, 9, 1], &[0, 0, 0, 2, 255, 255], b""] {
            let mut bad = bad;
            assert!(receive::<Hello>(&mut bad).await.is_err());
        }
        let long = Hello { token: "x".repeat(100_000), ..Hello::default() };
        assert!(send(&mut Vec::new(), &long).await.is_err());
    }
}
