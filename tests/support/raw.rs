//! HTTP by hand, for what no client of its own accord does: half a request, an answer that is taken slowly.

use std::net::TcpStream;
use std::time::Duration;

/// Connects to `host:port`. Who reads waits a minute at most.
pub fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).expect("connects");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("set");
    stream
}

/// The head of a request for rewards with a body of that many bytes.
pub fn head(length: usize) -> String {
    format!(
        "POST /v1/rewards HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    )
}

/// The whole request.
pub fn request(body: &str) -> Vec<u8> {
    (head(body.len()) + body).into_bytes()
}

/// Bytes of an answer's head and body, once the head is there.
pub fn length(answer: &[u8]) -> Option<usize> {
    let text = String::from_utf8_lossy(&answer[..answer.len().min(1000)]);
    let (head, _) = text.split_once("\r\n\r\n")?;
    let body = head.lines().find_map(|l| l.strip_prefix("content-length: ")?.parse::<usize>().ok());
    Some(head.len() + 4 + body.expect("a length"))
}
