//! A running server's fronts side by side: the same trajectories as JSON, as JSON with base64, and over gRPC, alone and all at
//! once. Bytes on the wire, the server's CPU time, and how much of the wall time its engine was at work.

use std::time::Instant;

use anyhow::Context;
use prost::Message;
use qrm_proto::v1::input::Context as Prompt;
use qrm_proto::v1::response::Content;
use qrm_proto::v1::reward_service_client::RewardServiceClient;
use qrm_proto::v1::{Input, Response, ScoreRequest, TokenIds};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tonic::transport::Endpoint;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    http: String,
    #[arg(long, default_value = "http://127.0.0.1:8081")]
    grpc: String,
    /// The server's process.
    #[arg(long)]
    pid: u32,
    /// Fronts of one measurement, by comma: json, base64, grpc. Several are at work at once.
    #[arg(long, default_values = ["json", "base64", "grpc", "json,grpc"])]
    fronts: Vec<String>,
    /// Requests of each front, one after the other on each connection.
    #[arg(long, default_value_t = 32)]
    requests: usize,
    /// Connections of each front.
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Trajectories of a request.
    #[arg(long, default_value_t = 32)]
    trajectories: usize,
    /// Tokens.
    #[arg(long, default_value_t = 100)]
    prompt: usize,
    /// Tokens.
    #[arg(long, default_value_t = 200)]
    response: usize,
    /// Times all of it is done.
    #[arg(long, default_value_t = 1)]
    runs: usize,
}

type Rows = Vec<(Vec<u32>, Vec<u32>)>;

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let info: Value = serde_json::from_str(&get(args, "/info")?)?;
    let vocabulary = info["vocab_size"].as_u64().context("no vocabulary in /info")? as u32;
    let mut seed = 0;
    for _ in 0..args.runs {
        for fronts in &args.fronts {
            let fronts: Vec<&str> = fronts.split(',').collect();
            // Everything is new to the server's cache.
            let mut work = |_: &&str| {
                seed += 1;
                (0..args.requests).map(|i| rows(args, vocabulary, seed * 100_000 + i as u64)).collect()
            };
            let work: Vec<Vec<Rows>> = fronts.iter().map(&mut work).collect();
            let before = Usage::of(args)?;
            let start = Instant::now();
            let sent: Vec<(usize, usize)> = std::thread::scope(|scope| {
                let running: Vec<_> = fronts
                    .iter()
                    .zip(&work)
                    .flat_map(|(front, requests)| {
                        let share = requests.chunks(requests.len().div_ceil(args.connections.max(1)));
                        share.map(|share| scope.spawn(|| connection(args, front, share))).collect::<Vec<_>>()
                    })
                    .collect();
                running
                    .into_iter()
                    .map(|c| c.join().unwrap_or_else(|_| anyhow::bail!("a panic")))
                    .collect::<anyhow::Result<_>>()
            })?;
            let (wall, after) = (start.elapsed().as_secs_f64(), Usage::of(args)?);
            let tokens = fronts.len() * args.requests * args.trajectories * (args.prompt + args.response);
            let bytes =
                |f: fn(&(usize, usize)) -> usize| sent.iter().map(f).sum::<usize>() as f64 / tokens as f64;
            let (cpu, engine) = (after.cpu - before.cpu, after.engine - before.engine);
            println!(
                "{:12} {:8.0} tokens/s, {:5.2} bytes in and {:5.2} out a token, server {:6.2} CPU s, engine at work \
                 {:5.1} % of {:5.2} s",
                fronts.join("+"),
                tokens as f64 / wall,
                bytes(|s| s.0),
                bytes(|s| s.1),
                cpu,
                100.0 * engine / wall,
                wall
            );
        }
    }
    Ok(())
}

fn rows(args: &Args, vocabulary: u32, seed: u64) -> Rows {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut ids = |n: usize| (0..n).map(|_| rng.random_range(0..vocabulary)).collect::<Vec<u32>>();
    (0..args.trajectories).map(|_| (ids(args.prompt), ids(args.response))).collect()
}

/// Bytes that went and came.
fn connection(args: &Args, front: &str, requests: &[Rows]) -> anyhow::Result<(usize, usize)> {
    let (mut sent, mut got) = (0, 0);
    if front == "grpc" {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        return runtime.block_on(async {
            let channel = Endpoint::from_shared(args.grpc.clone())?.connect().await?;
            let mut client = RewardServiceClient::new(channel).max_decoding_message_size(256 << 20);
            for rows in requests {
                let ids = |ids: &Vec<u32>| TokenIds { ids: ids.clone() };
                let input = |(prompt, response): &(Vec<u32>, Vec<u32>)| Input {
                    context: Some(Prompt::PromptIds(ids(prompt))),
                    responses: vec![Response { content: Some(Content::Ids(ids(response))) }],
                    ..Input::default()
                };
                let request = ScoreRequest { options: None, inputs: rows.iter().map(input).collect() };
                sent += request.encoded_len();
                got += client.score(request).await?.into_inner().encoded_len();
            }
            Ok((sent, got))
        });
    }
    let agent = ureq::Agent::new_with_defaults();
    let format = if front == "base64" { "base64" } else { "float" };
    for rows in requests {
        let input =
            |(prompt, response): &(Vec<u32>, Vec<u32>)| json!({"prompt": prompt, "response": response});
        let inputs: Vec<_> = rows.iter().map(input).collect();
        let body = json!({"inputs": inputs, "encoding_format": format}).to_string();
        sent += body.len();
        let request =
            agent.post(format!("{}/v1/rewards", args.http)).header("content-type", "application/json");
        let mut answer = request.send(body)?;
        got += answer.body_mut().with_config().limit(1 << 30).read_to_vec()?.len();
    }
    Ok((sent, got))
}

/// What the server has used so far.
struct Usage {
    /// Seconds of CPU.
    cpu: f64,
    /// Seconds in batches.
    engine: f64,
}

impl Usage {
    fn of(args: &Args) -> anyhow::Result<Self> {
        let metrics = get(args, "/metrics")?;
        let engine = metrics.lines().find_map(|l| l.strip_prefix("qrm_compute_seconds_sum ")?.parse().ok());
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", args.pid))?;
        // After the name in brackets: utime and stime are the 12th and 13th, in hundredths.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
        Ok(Self { cpu: (ticks(11) + ticks(12)) / 100.0, engine: engine.context("no compute seconds")? })
    }
}

fn get(args: &Args, path: &str) -> anyhow::Result<String> {
    Ok(ureq::get(format!("{}{path}", args.http)).call()?.body_mut().read_to_string()?)
}
