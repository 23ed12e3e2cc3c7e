//! A running server under a closed-loop client: each of C connections sends its next request when its last is answered.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde_json::{Value, json};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where the server listens.
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// A JSON array of `{"prompt": [ids], "response": [ids]}`.
    #[arg(long)]
    input: PathBuf,
    /// Connections.
    #[arg(long, default_value_t = 1)]
    concurrency: usize,
    /// Trajectories of one request; 0 = all in one.
    #[arg(long, default_value_t = 0)]
    per_request: usize,
    /// Times the input is sent.
    #[arg(long, default_value_t = 3)]
    runs: usize,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let rows: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(&args.input)?)?;
    let inputs: Vec<Value> =
        rows.iter().map(|r| json!({"prompt": r["prompt"], "response": r["response"]})).collect();
    let per_request = if args.per_request == 0 { inputs.len().max(1) } else { args.per_request };
    let requests: Vec<Value> = inputs.chunks(per_request).map(|inputs| json!({"inputs": inputs})).collect();
    for _ in 0..args.runs {
        once(args, &requests)?;
    }
    Ok(())
}

fn once(args: &Args, requests: &[Value]) -> anyhow::Result<()> {
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    let client = || -> anyhow::Result<Vec<(f64, Value)>> {
        let agent = ureq::agent();
        let mut answers = Vec::new();
        while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
            let sent = Instant::now();
            let mut response = agent.post(format!("{}/v1/rewards", args.url)).send_json(request)?;
            let answer = response.body_mut().with_config().limit(1 << 30).read_json()?;
            answers.push((sent.elapsed().as_secs_f64(), answer));
        }
        Ok(answers)
    };
    let answers = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..args.concurrency.max(1)).map(|_| scope.spawn(client)).collect();
        let joined =
            clients.into_iter().map(|c| c.join().map_err(|_| anyhow::anyhow!("a client panicked"))?);
        joined.collect::<anyhow::Result<Vec<_>>>()
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let answers: Vec<_> = answers.into_iter().flatten().collect();
    let sum = |pointer: &str| answers.iter().filter_map(|(_, a)| a.pointer(pointer)?.as_f64()).sum::<f64>();
    let total = sum("/usage/prompt_tokens") + sum("/usage/response_tokens");
    let mut latencies: Vec<f64> = answers.iter().map(|(l, _)| *l).collect();
    latencies.sort_by(f64::total_cmp);
    let quantile = |q: f64| latencies[((latencies.len() - 1) as f64 * q) as usize] * 1e3;
    println!(
        "{} requests, {:.1} total tokens/s, {:.1} response tokens/s, latency ms p50 {:.1} p95 {:.1} p99 {:.1}, computed {}",
        answers.len(),
        total / seconds,
        sum("/usage/response_tokens") / seconds,
        quantile(0.5),
        quantile(0.95),
        quantile(0.99),
        sum("/usage/computed_tokens")
    );
    Ok(())
}
