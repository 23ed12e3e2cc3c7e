//! Compressed bodies, in and out.

use std::io::{Read, Write};
use std::net::TcpStream;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use qrm_tests::{Rng, Server, fixture};
use serde_json::Value;

const JSON: (&str, &str) = ("content-type", "application/json");

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).expect("written");
    encoder.finish().expect("finished")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).expect("encoded")
}

/// The body as it comes. HTTP/1.0 knows no chunks.
fn raw(server: &Server, accept: &str, body: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(server.address()).expect("connects");
    let head = format!(
        "POST /v1/rewards HTTP/1.0\r\ncontent-type: application/json\r\naccept-encoding: {accept}\r\n"
    );
    write!(stream, "{head}content-length: {}\r\n\r\n{body}", body.len()).expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").expect("a head") + 4;
    let body = answer.split_off(end);
    let head = String::from_utf8(answer).expect("UTF-8");
    assert!(head.contains(&format!("content-encoding: {accept}\r\n")), "{head}");
    body
}

#[test]
fn both_ways() {
    let server = Server::start(&fixture("qwen2"), &["--max-body-bytes", "100000"]);
    let client = server.client();
    let body = Rng::new(1).request(40).to_string();
    let plain = client.send("POST", "/v1/rewards", &[JSON], body.as_bytes()).ok();
    for (name, packed) in [("gzip", gzip(body.as_bytes())), ("zstd", zstd(body.as_bytes()))] {
        let headers = [JSON, ("content-encoding", name)];
        assert_eq!(client.send("POST", "/v1/rewards", &headers, &packed).ok()["data"], plain["data"]);
        let packed = raw(&server, name, &body);
        let mut text = Vec::new();
        match name {
            "gzip" => GzDecoder::new(&packed[..]).read_to_end(&mut text).map(drop),
            _ => zstd::stream::copy_decode(&packed[..], &mut text),
        }
        .expect("decoded");
        assert!(packed.len() < text.len() * 3 / 4, "{} of {} bytes", packed.len(), text.len());
        assert_eq!(serde_json::from_slice::<Value>(&text).expect("JSON")["data"], plain["data"]);
    }
    server.assert_quiet();
}

#[test]
fn bombs_and_rubbish() {
    let server = Server::start(&fixture("qwen2"), &["--max-body-bytes", "100000"]);
    let client = server.client();
    let send = |encoding, body: &[u8]| {
        client.send("POST", "/v1/rewards", &[JSON, ("content-encoding", encoding)], body)
    };
    let memory = server.status("VmRSS");
    for bomb in [gzip(&vec![b' '; 90 << 20]), gzip(&vec![b' '; 100_001])] {
        assert!(bomb.len() < 100_000);
        assert_eq!(send("gzip", &bomb).refused(413).0, "body_too_large");
    }
    assert!(server.status("VmRSS") < memory + (30 << 10), "the bomb was unpacked");
    let body = Rng::new(2).request(3).to_string();
    let whole = gzip(body.as_bytes());
    for (encoding, bytes) in [
        ("gzip", body.as_bytes()),
        ("gzip", &whole[..whole.len() / 2]),
        ("zstd", &whole),
        ("zstd", &zstd(body.as_bytes())[..9]),
    ] {
        assert_eq!(send(encoding, bytes).refused(400).0, "not_json");
    }
    for encoding in ["br", "deflate", "gzip, gzip", "x"] {
        assert_eq!(send(encoding, &whole).refused(415).0, "unsupported_encoding");
    }
    send("identity", body.as_bytes()).ok();
    server.assert_quiet();
}
