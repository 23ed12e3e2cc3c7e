//! Connections that do nothing, or do it slowly: they are let go of, and hold nobody else up.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use qrm_tests::raw::{connect, head, length, request};
use qrm_tests::{Rng, Server, fixture, until};
use serde_json::json;

const SECOND: Duration = Duration::from_secs(1);

/// Reads one answer, at most so many bytes at a time with a pause between: its status line.
fn answer(stream: &mut TcpStream, piece: usize, pause: Duration) -> String {
    let (mut all, mut piece) = (Vec::new(), vec![0; piece]);
    loop {
        let n = stream.read(&mut piece).expect("an answer");
        assert!(n > 0, "cut after {} bytes", all.len());
        all.extend_from_slice(&piece[..n]);
        if length(&all) == Some(all.len()) {
            let line = all.split(|b| *b == b'\r').next().unwrap_or_default();
            return String::from_utf8_lossy(line).into_owned();
        }
        std::thread::sleep(pause);
    }
}

/// Reads until the server closes: what came, and after how long.
fn to_end(mut stream: TcpStream) -> (String, Duration) {
    let start = Instant::now();
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => {}
        end => assert!(end.is_ok(), "not closed: {end:?}"),
    }
    (String::from_utf8_lossy(&bytes).into_owned(), start.elapsed())
}

#[test]
fn the_silent_and_the_slow_are_let_go() {
    let server = Server::start(&fixture("qwen2"), &["--idle-timeout", "2", "--stall-timeout", "1.5"]);
    let body = Rng::new(1).request(2).to_string();
    let starts: [&[u8]; 5] = [
        b"",
        b"P",
        b"PRI * HTTP/2.0\r\n",
        b"POST /v1/rewards HT",
        b"POST /v1/rewards HTTP/1.1\r\nhost: x\r\n",
    ];
    std::thread::scope(|scope| {
        for start in starts {
            let mut stream = connect(server.address());
            scope.spawn(move || {
                stream.write_all(start).expect("sent");
                let (answer, time) = to_end(stream);
                assert!(!answer.starts_with("HTTP/1.1 2"), "{answer}");
                assert!(time > SECOND && time < 10 * SECOND, "closed after {time:?}");
            });
        }
        // A head that comes byte by byte does not end any later.
        let mut stream = connect(server.address());
        scope.spawn(move || {
            let start = Instant::now();
            while stream.write_all(b"x").is_ok() {
                assert!(start.elapsed() < 10 * SECOND, "still open");
                std::thread::sleep(SECOND / 10);
            }
            assert!(start.elapsed() > SECOND / 2);
        });
        // A body that stalls is answered.
        let mut stream = connect(server.address());
        let body = &body;
        scope.spawn(move || {
            stream.write_all(head(body.len()).as_bytes()).expect("sent");
            stream.write_all(&body.as_bytes()[..10]).expect("sent");
            let (answer, time) = to_end(stream);
            assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("request_timeout"), "{answer}");
            assert!(time > SECOND, "told after {time:?}");
        });
        // A connection that is used now and then is kept; idle for longer it is not.
        let mut stream = connect(server.address());
        scope.spawn(move || {
            for _ in 0..4 {
                stream.write_all(&request(body)).expect("sent");
                assert_eq!(answer(&mut stream, 4096, Duration::ZERO), "HTTP/1.1 200 OK");
                std::thread::sleep(SECOND * 6 / 10);
            }
            let (_, time) = to_end(stream);
            assert!(time < 10 * SECOND, "closed after {time:?}");
        });
    });
    server.client().rewards(&Rng::new(2).request(2)).ok();
    server.client().until("qrm_request_bytes", |bytes| bytes == 0.0);
    server.assert_quiet();
}

#[test]
fn a_body_that_is_late_makes_its_request_late() {
    let server = Server::start(&fixture("qwen2"), &[]);
    let mut request = Rng::new(4).request(1);
    request["timeout_ms"] = json!(300);
    let body = request.to_string();
    for (pause, status) in [(Duration::ZERO, "HTTP/1.1 200 OK"), (SECOND / 2, "HTTP/1.1 504 Gateway Timeout")]
    {
        let mut stream = connect(server.address());
        stream.write_all(head(body.len()).as_bytes()).expect("sent");
        std::thread::sleep(pause);
        stream.write_all(body.as_bytes()).expect("sent");
        assert_eq!(answer(&mut stream, 4096, Duration::ZERO), status);
    }
}

/// An answer of some 20 MB, more than the two sockets hold, that takes no time to compute.
fn large() -> String {
    let mut rng = Rng::new(3);
    let (prompt, response) = (rng.ids(4), rng.ids(400));
    let responses = vec![response; 1000];
    let include = ["token_ids", "logit", "logsumexp", "max", "entropy"];
    json!({"inputs": [{"prompt": prompt, "responses": responses}], "include": include}).to_string()
}

#[test]
fn who_reads_slowly_gets_all_and_who_stops_is_let_go() {
    let server = Server::start(&fixture("qwen2"), &["--idle-timeout", "3", "--stall-timeout", "3"]);
    let large = request(&large());
    let send = || {
        let mut stream = connect(server.address());
        stream.write_all(&large).expect("sent");
        stream
    };
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| {
            let mut stream = send();
            let start = Instant::now();
            assert_eq!(answer(&mut stream, 1 << 20, SECOND / 5), "HTTP/1.1 200 OK");
            start.elapsed()
        });
        let stopped = send();
        stopped.peek(&mut [0]).expect("an answer begins");
        // Answers count until they are taken.
        assert!(server.client().metric("qrm_request_bytes") > 1e7);
        std::thread::sleep(8 * SECOND);
        let taken = to_end(stopped).0.len();
        let slow = slow.join().expect("the slow reader has all of it");
        assert!(slow > 2 * SECOND, "not slow: {slow:?}");
        assert!(taken > 0 && taken < 15 << 20, "{taken} bytes went to one who did not read");
    });
    server.client().until("qrm_request_bytes", |bytes| bytes == 0.0);
    server.assert_quiet();
}

/// The work is done when the server is told to stop; the answer is taken later.
#[test]
fn a_drain_waits_for_answers_to_be_taken() {
    for (patience, is_taken) in [("40", true), ("0.5", false)] {
        let mut server = Server::start(&fixture("qwen2"), &["--drain-timeout", patience]);
        let mut stream = connect(server.address());
        stream.write_all(&request(&large())).expect("sent");
        stream.peek(&mut [0]).expect("an answer begins");
        server.terminate();
        std::thread::sleep(8 * SECOND);
        if is_taken {
            assert_eq!(answer(&mut stream, 1 << 20, Duration::ZERO), "HTTP/1.1 200 OK");
        }
        assert_eq!(server.wait(30 * SECOND).success(), is_taken);
    }
}

#[test]
fn a_drain_sends_its_clients_elsewhere() {
    let mut server = Server::start(&fixture("qwen2"), &["--threads", "1", "--drain-timeout", "60"]);
    let small = request(&Rng::new(1).request(1).to_string());
    let mut kept = connect(server.address());
    kept.write_all(&small).expect("sent");
    assert_eq!(answer(&mut kept, 1 << 16, Duration::ZERO), "HTTP/1.1 200 OK");
    // Enough work that it drains for a while.
    let mut busy = connect(server.address());
    let mut rng = Rng::new(2);
    let work: Vec<_> = (0..300).map(|_| rng.input(300, 200)).collect();
    busy.write_all(&request(&json!({ "inputs": work }).to_string())).expect("sent");
    server.client().until("qrm_queue_requests", |waiting| waiting >= 1.0);
    server.terminate();
    until("it drains", || server.log().iter().any(|line| line["fields"]["message"] == "draining"));
    kept.write_all(&small).expect("sent");
    let (refused, _) = to_end(kept);
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("connection: close\r\n"), "{refused}");
    assert_eq!(answer(&mut busy, 1 << 16, Duration::ZERO), "HTTP/1.1 200 OK");
    assert!(server.wait(60 * SECOND).success());
}

#[test]
fn bodies_are_refused_before_they_fill_the_memory() {
    let limits = ["--max-body-bytes", "1000000", "--max-request-bytes", "2500000", "--idle-timeout", "3"];
    let server = Server::start(&fixture("qwen2"), &limits);
    let hold = |n: usize| {
        let mut stream = connect(server.address());
        stream.write_all(head(1_000_000).as_bytes()).expect("sent");
        let _ = stream.write_all(&vec![b' '; n]);
        stream
    };
    let client = server.client();
    let held: Vec<_> = (0..2).map(|_| hold(990_000)).collect();
    client.until("qrm_request_bytes", |bytes| bytes >= 1_980_000.0);
    let answer = to_end(hold(1_000_000)).0;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after: "), "{answer}");
    // Who is in the middle of his body when there is no more room can send the rest, and then read why.
    let mut late = hold(600_000);
    std::thread::sleep(SECOND / 2);
    late.write_all(&[b' '; 200_000]).expect("sent");
    std::thread::sleep(SECOND / 10);
    late.write_all(&[b' '; 200_000]).expect("the connection is still there");
    let answer = to_end(late).0;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    client.rewards(&Rng::new(4).request(2)).ok(); // a small one still fits
    drop(held);
    let start = Instant::now();
    while client.metric("qrm_request_bytes") > 0.0 {
        assert!(start.elapsed() < 10 * SECOND, "not given back");
    }
    server.assert_quiet();
}

/// A port to which nobody comes keeps no place from the other.
#[test]
fn one_connection_is_enough_for_either_port() {
    let server = Server::start(&fixture("qwen2"), &["--max-connections", "1", "--idle-timeout", "1"]);
    for _ in 0..3 {
        for address in [server.address(), server.grpc()] {
            let mut stream = TcpStream::connect(address).expect("connects");
            stream.set_read_timeout(Some(20 * SECOND)).expect("set");
            write!(stream, "GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("sent");
            assert!(to_end(stream).0.starts_with("HTTP/1.1 "), "{address}");
        }
    }
    server.assert_quiet();
}
