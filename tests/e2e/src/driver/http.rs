//! The little of HTTP that asks a program in a VM how it is: one GET, from the host, over the lab's network.

use std::io::{Read, Write};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::vm::Node;

/// For one answer; the driver answers from memory.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What a GET gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    /// Status code.
    pub(super) status: u16,
    /// The body as text.
    pub(super) body: String,
}

/// Asks a node.
pub(super) fn get(node: &Node, port: u16, path: &str) -> Result<Answer> {
    let mut stream = node.net().connect(node.address(), port, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    // Of 1.0, an answer ends with its connection and comes in one piece.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", node.address());
    let mut bytes = Vec::new();
    stream
        .write_all(request.as_bytes())
        .and_then(|()| stream.read_to_end(&mut bytes))
        .with_context(|| format!("asking {} for {path}", node.name()))?;
    parse(&String::from_utf8_lossy(&bytes))
        .with_context(|| format!("{} gave no HTTP answer to {path}", node.name()))
}

fn parse(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let text = "HTTP/1.0 503 Service Unavailable\r\ncontent-length: 10\r\n\r\nnot ready\n";
        let want = Answer { status: 503, body: "not ready\n".to_owned() };
        assert_eq!(parse(text), Some(want));
        assert_eq!(parse("HTTP/1.1 200 OK\r\n\r\n").unwrap().status, 200);
        for bad in ["", "HTTP/1.0 200 OK\r\n", "SSH-2.0\r\n\r\n", "HTTP/1.0 x\r\n\r\n"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
