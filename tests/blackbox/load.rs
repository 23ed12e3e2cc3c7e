//! Under load: what is accepted is answered, what is refused is told when to come back, what nobody waits for is
//! dropped.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use qrm_tests::server::binary;
use qrm_tests::{Client, Rng, Server, fixture, raw, until};
use serde_json::{Value, json};

fn answered(server: &Server) -> usize {
    let ok = |l: &&Value| l["fields"]["route"] == "/v1/rewards" && l["fields"]["status"] == 200;
    server.log().iter().filter(ok).count()
}

/// A request that keeps the worker busy for a while, of sequences that share nothing.
fn bulk(n: usize, seed: u64) -> Value {
    let mut rng = Rng::new(seed);
    let inputs: Vec<_> = (0..n).map(|_| rng.input(100, 400)).collect();
    json!({ "inputs": inputs })
}

fn idle(client: &Client) {
    client.until("qrm_queue_requests", |waiting| waiting == 0.0);
}

#[test]
fn sigterm_answers_what_was_accepted() {
    let mut server = Server::start(&fixture("qwen2"), &["--drain-timeout", "30"]);
    let client = server.client();
    let stopping = AtomicBool::new(false);
    let (ok, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for seed in 0..12 {
            let (client, stopping, ok, refused) = (client.clone(), &stopping, &ok, &refused);
            scope.spawn(move || {
                let body = Rng::new(seed).request(64).to_string();
                loop {
                    let headers = [("content-type", "application/json")];
                    match client.try_send("POST", "/v1/rewards", &headers, body.as_bytes()) {
                        Ok(answer) if answer.status == 200 => {
                            assert_eq!(answer.body["data"].as_array().map(Vec::len), Some(64));
                            ok.fetch_add(1, Ordering::SeqCst);
                        }
                        // Refused, or no connection any more: only once it is told to stop.
                        other => {
                            assert!(stopping.load(Ordering::SeqCst), "{other:?}");
                            if let Ok(answer) = other {
                                assert_eq!(answer.refused(503).0, "draining");
                                refused.fetch_add(1, Ordering::SeqCst);
                            }
                            return;
                        }
                    }
                }
            });
        }
        until("more than a dozen are answered", || ok.load(Ordering::SeqCst) > 12);
        stopping.store(true, Ordering::SeqCst);
        server.terminate();
    });
    assert!(server.wait(Duration::from_secs(40)).success());
    assert_eq!(answered(&server), ok.load(Ordering::SeqCst), "an answer was lost on its way");
    server.assert_quiet();
}

#[test]
fn a_drain_that_takes_too_long_ends_with_failure() {
    let mut server = Server::start(&fixture("qwen2"), &["--drain-timeout", "0.2", "--threads", "1"]);
    let client = server.client();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let body = bulk(2000, 1).to_string();
            let _ = client.try_send(
                "POST",
                "/v1/rewards",
                &[("content-type", "application/json")],
                body.as_bytes(),
            );
        });
        server.client().until("qrm_queue_requests", |waiting| waiting > 0.0);
        server.terminate();
        assert_eq!(server.wait(Duration::from_secs(20)).code(), Some(1));
    });
}

#[test]
fn a_full_queue_says_when_to_come_back() {
    for (flags, status) in [(&[][..], 503), (&["--overload-status", "429"], 429)] {
        let flags = [&["--max-queue-tokens", "60000"], flags].concat();
        let server = Server::start(&fixture("qwen2"), &flags);
        let client = server.client();
        let (ok, full) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for seed in 0..16 {
                let (client, ok, full) = (client.clone(), &ok, &full);
                scope.spawn(move || {
                    let answer = client.rewards(&bulk(50, seed));
                    if answer.status == 200 {
                        assert_eq!(answer.body["data"].as_array().map(Vec::len), Some(50));
                        ok.fetch_add(1, Ordering::SeqCst);
                    } else {
                        assert!(answer.retry_after >= Some(1), "{answer:?}");
                        assert_eq!(answer.refused(status).0, "queue_full");
                        full.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        let (ok, full) = (ok.into_inner(), full.into_inner());
        assert!(ok >= 2 && full >= 1 && ok + full == 16, "{ok} answered, {full} refused");
        assert_eq!(client.metric("qrm_queue_refused_total"), full as f64);
        // What no queue could hold is the request's fault, not the load's.
        assert_eq!(client.rewards(&bulk(121, 99)).refused(413).1.as_deref(), Some("inputs"));
        idle(&client);
        client.rewards(&bulk(1, 0)).ok();
        server.assert_quiet();
    }
}

#[test]
fn deadlines_and_disconnects_drop_queued_work() {
    let server = Server::start(&fixture("qwen2"), &["--threads", "1"]);
    let client = server.client();
    let warm_up = client.metric("qrm_computed_tokens_total");
    let first = std::thread::scope(|scope| {
        let first = scope.spawn(|| client.rewards(&bulk(400, 1)).ok());
        client.until("qrm_queue_requests", |waiting| waiting >= 1.0);
        let mut late = bulk(300, 2);
        late["timeout_ms"] = json!(50);
        late["priority"] = json!(-1); // or it would go first
        let start = Instant::now();
        assert_eq!(client.rewards(&late).refused(504).0, "deadline_exceeded");
        assert!(start.elapsed() < Duration::from_secs(5), "told only after {:?}", start.elapsed());

        let mut gone = raw::connect(server.address());
        gone.write_all(&raw::request(&bulk(300, 3).to_string())).expect("sent");
        while client.metric("qrm_queue_requests") < 2.0 {
            assert!(!first.is_finished(), "the bulk request was too quick for this test");
            std::thread::sleep(Duration::from_millis(2));
        }
        drop(gone);
        first.join().expect("answered")
    });
    idle(&client);
    let gone =
        r#"qrm_requests_total{dialect="native",key="",model="qwen2",route="/v1/rewards",status="499"} 1"#;
    until("the client that went is counted", || {
        client.get("/metrics").ok().as_str().is_some_and(|text| text.contains(gone))
    });
    // Of the two that nobody waited for, nothing was computed.
    let computed = client.metric("qrm_computed_tokens_total") - warm_up;
    assert_eq!(first["usage"]["computed_tokens"].as_f64(), Some(computed));
    server.assert_quiet();
}

/// Two clients, told apart by their keys: the small one does not wait for all of the large one's work.
#[test]
fn clients_share_the_engine() {
    let keys = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(keys.path(), "bulk\nsmall\n").expect("written");
    let path = keys.path().to_str().expect("UTF-8");
    let server = Server::start(&fixture("qwen2"), &["--threads", "1", "--api-key-file", path]);
    let (large, small) = (server.client().with_key("bulk"), server.client().with_key("small"));
    std::thread::scope(|scope| {
        let answer = scope.spawn(|| large.rewards(&bulk(300, 1)).ok());
        large.until("qrm_queue_requests", |waiting| waiting >= 1.0);
        for seed in 2..5 {
            small.rewards(&bulk(1, seed)).ok();
        }
        assert!(!answer.is_finished(), "the small requests waited for all of the bulk");
        answer.join().expect("answered");
    });
    server.assert_quiet();
}

#[test]
fn a_higher_priority_overtakes() {
    let server = Server::start(&fixture("qwen2"), &["--threads", "1"]);
    let client = server.client();
    std::thread::scope(|scope| {
        let low = scope.spawn(|| client.rewards(&bulk(300, 1)).ok());
        client.until("qrm_queue_requests", |waiting| waiting >= 1.0);
        let mut urgent = bulk(1, 2);
        urgent["priority"] = json!(1);
        client.rewards(&urgent).ok();
        assert!(!low.is_finished(), "the urgent request waited for all of the bulk");
        low.join().expect("answered");
    });
}

/// A container's first process has no handler of signals but its own, and loading may take minutes.
#[test]
fn who_is_told_to_go_while_it_loads_goes() {
    let model = tempfile::tempdir().expect("a directory");
    // Nobody writes into it: reading it takes for ever.
    let config = model.path().join("config.json");
    assert!(Command::new("mkfifo").arg(&config).status().expect("it runs").success());
    let mut server = Command::new(binary());
    server.args(["--port", "0", "--grpc-port", "0", "--model"]).arg(model.path()).stderr(Stdio::null());
    let mut server = server.spawn().expect("it runs");
    let id = server.id().to_string();
    let signal = |name: &str| {
        assert!(Command::new("kill").args([name, &id]).status().expect("it runs").success());
        std::thread::sleep(Duration::from_millis(300));
    };
    let catches_both = || {
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or_default().trim();
        u64::from_str_radix(mask, 16).is_ok_and(|mask| mask & 1 != 0 && mask >> 14 & 1 != 0)
    };
    until("signals have handlers", catches_both);
    signal("-HUP");
    assert!(server.try_wait().expect("a child").is_none(), "a reload of what is being loaded is nothing");
    signal("-TERM");
    let mut status = None;
    until("it is gone", || {
        status = server.try_wait().expect("a child");
        status.is_some()
    });
    assert!(status.is_some_and(|status| status.success()), "{status:?}");
}
