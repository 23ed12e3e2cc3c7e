//! A running server under load: clients of several shapes at once, closed loop (each connection sends its next request when
//! its last is answered) or open loop (requests come when they come, answered or not).

mod report;
mod work;

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::Value;

use report::{Outcome, Snapshot};
use work::{Request, Shape, WorkArgs};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where the server listens.
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// A client of this shape; several for several at once.
    #[arg(long = "client", default_values = ["singles"])]
    clients: Vec<Shape>,
    /// The server's key file, where it has one: client i sends the i-th key, so that the server tells them apart.
    #[arg(long)]
    keys: Option<PathBuf>,
    /// Connections of each client.
    #[arg(long, default_value_t = 1)]
    concurrency: usize,
    /// Requests per second of each client, at even distances (open loop); else closed loop.
    #[arg(long)]
    rate: Option<f64>,
    /// Send the work again until this many seconds have passed; 0 = once.
    #[arg(long, default_value_t = 0.0)]
    seconds: f64,
    /// Times all of this is done, each with a line of its own.
    #[arg(long, default_value_t = 1)]
    runs: usize,
    /// The server's process, to report its memory.
    #[arg(long)]
    pid: Option<u32>,
    #[command(flatten)]
    work: WorkArgs,
}

/// One client while it runs.
struct Client<'a> {
    args: &'a Args,
    key: Option<String>,
    requests: &'a [Request],
    start: Instant,
    next: AtomicUsize,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let keys: Vec<String> = match &args.keys {
        Some(path) => {
            // A line is `KEY` or `NAME KEY`.
            let text = std::fs::read_to_string(path)?;
            let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
            lines.filter_map(|line| line.split_whitespace().last()).map(str::to_owned).collect()
        }
        None => Vec::new(),
    };
    let get = |path: &str| {
        let mut request = ureq::get(format!("{}{path}", args.url));
        if let Some(key) = keys.first() {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        anyhow::Ok(request.call()?.body_mut().read_to_string()?)
    };
    let info: Value = serde_json::from_str(&get("/info")?)?;
    let vocabulary = info["vocab_size"].as_u64().context("no vocabulary in /info")? as u32;
    let work = args.clients.iter().enumerate().map(|(i, shape)| args.work.requests(*shape, i, vocabulary));
    let work = work.collect::<anyhow::Result<Vec<_>>>()?;
    for _ in 0..args.runs {
        let before = Snapshot::of(&get("/metrics")?);
        let start = Instant::now();
        let clients: Vec<Client<'_>> = work
            .iter()
            .enumerate()
            .map(|(i, requests)| Client {
                args,
                key: keys.get(i).cloned(),
                requests,
                start,
                next: AtomicUsize::new(0),
            })
            .collect();
        let peak = AtomicUsize::new(0);
        let outcomes = std::thread::scope(|scope| {
            let watching = args.pid.map(|pid| {
                scope.spawn({
                    let peak = &peak;
                    move || watch(pid, peak)
                })
            });
            let running: Vec<Vec<_>> = clients
                .iter()
                .map(|c| (0..args.concurrency.max(1)).map(|_| scope.spawn(|| c.connection())).collect())
                .collect();
            let joined = running.into_iter().map(|connections| {
                connections.into_iter().flat_map(|c| c.join().unwrap_or_default()).collect()
            });
            let outcomes: Vec<Vec<Outcome>> = joined.collect();
            if let Some(watching) = watching {
                peak.fetch_or(DONE, Ordering::SeqCst);
                let _ = watching.join();
            }
            outcomes
        });
        let after = Snapshot::of(&get("/metrics")?);
        let seconds = start.elapsed().as_secs_f64();
        report::print(&args.clients, &outcomes, seconds, &before, &after);
        if args.pid.is_some() {
            println!("memory of the server at most {} MiB", (peak.load(Ordering::SeqCst) & !DONE) >> 10);
        }
    }
    Ok(())
}

/// Set beside the peak once the clients are done.
const DONE: usize = 1 << 62;

/// Keeps the largest resident size of a process, KiB, until it is told that all is done.
fn watch(pid: u32, peak: &AtomicUsize) {
    while peak.load(Ordering::SeqCst) & DONE == 0 {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let resident =
            status.lines().find_map(|l| l.strip_prefix("VmRSS:")?.trim().split(' ').next()?.parse().ok());
        peak.fetch_max(resident.unwrap_or(0), Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(50));
    }
}

impl Client<'_> {
    /// Sends what is next until nothing is.
    fn connection(&self) -> Vec<Outcome> {
        let config = ureq::Agent::config_builder().http_status_as_error(false);
        let agent: ureq::Agent = config.timeout_global(Some(Duration::from_secs(600))).build().into();
        let mut outcomes = Vec::new();
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let is_again = number >= self.requests.len();
            if is_again && self.start.elapsed().as_secs_f64() >= self.args.seconds {
                return outcomes;
            }
            let Some(request) = self.requests.get(number % self.requests.len().max(1)) else {
                return outcomes;
            };
            // Open loop: time counts from when the request should have been sent, however late it was.
            let mut due = Instant::now();
            if let Some(rate) = self.args.rate {
                due = self.start + Duration::from_secs_f64(number as f64 / rate);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            outcomes.push(self.send(&agent, request, due));
        }
    }

    fn send(&self, agent: &ureq::Agent, request: &Request, due: Instant) -> Outcome {
        let mut post = agent.post(format!("{}/v1/rewards", self.args.url)).content_type("application/json");
        if let Some(key) = &self.key {
            post = post.header("authorization", format!("Bearer {key}"));
        }
        let status = post.send(&request.body).and_then(|mut response| {
            let status = response.status().as_u16();
            std::io::copy(&mut response.body_mut().as_reader(), &mut std::io::sink())?;
            Ok(status)
        });
        let done = self.start.elapsed().as_secs_f64();
        Outcome { status: status.ok(), tokens: request.tokens, latency: due.elapsed().as_secs_f64(), done }
    }
}
