//! The command line: the flags of `serve` and of what runs a model, and their environment twins. Other commands' flags are
//! with the commands.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::device::{Devices, Dtype, Wanted};
use crate::engine::Limits;
use crate::health::HealthArgs;
use crate::model::{self, Against, NamedModel};
use crate::plan::PlanArgs;
use crate::score::ScoreArgs;
use crate::shell::ShellArgs;
use crate::telemetry::otlp::Traces;
use crate::tls::TlsFiles;

/// Token-reward scoring server: one reward per response token, from a Q-RM checkpoint.
#[derive(Debug, Parser)]
#[command(name = "qrm-server", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Token-reward scoring server: one reward per response token, from a Q-RM checkpoint, over HTTP and gRPC.
    #[command(after_help = "qrm-server score --help: score a JSONL file offline")]
    Serve(Box<ServeArgs>),
    /// Score a JSONL file offline.
    Score(ScoreArgs),
    /// Measures this machine and says how many servers an RL job needs.
    Plan(PlanArgs),
    /// Asks the server on this machine whether it is ready; exit status 1 where it is not.
    Health(HealthArgs),
    /// Writes completions for a shell.
    Completions(ShellArgs),
    /// Writes the manual page.
    Man,
}

impl Cli {
    /// The process's arguments; flags without a subcommand are `serve`'s.
    pub(crate) fn read() -> Self {
        let mut args: Vec<OsString> = std::env::args_os().collect();
        let first = args.get(1).map(|a| a.to_string_lossy().into_owned());
        let is_version = |a: &str| a == "-V" || a == "--version";
        if first.is_none_or(|a| a.starts_with('-') && !is_version(&a)) {
            args.insert(1.min(args.len()), "serve".into());
        }
        Self::parse_from(args)
    }

    /// How it is told what happens.
    pub(crate) fn telemetry(&self) -> (LogFormat, Option<&Traces>) {
        match &self.command {
            Command::Serve(args) => (args.log_format, Some(&args.traces)),
            _ => (LogFormat::Text, None),
        }
    }
}

/// What runs the model; the same for serving and for files.
#[derive(Debug, Clone, Args)]
pub(crate) struct EngineArgs {
    /// Where the model runs: `auto` (all GPUs, else the CPU), `cpu`, `cuda:0`, or several, as `cuda:0,cuda:1`: a copy of the
    /// model on each. `cpu:0-15+32-47` is some of the CPUs, such as those of a socket: its threads stay there, with a copy of
    /// the weights in the memory beside them.
    #[arg(long, env = "QRM_DEVICE", default_value = "auto")]
    device: Wanted,
    /// One copy with its layers divided over the devices, for a model that is too large for one of them.
    #[arg(long, env = "QRM_SPLIT_LAYERS")]
    split_layers: bool,
    /// What weights are held in.
    #[arg(long, env = "QRM_DTYPE", default_value = "auto")]
    dtype: Dtype,
    /// Directory where int8 weights are kept from one start to the next, a file for each checkpoint.
    #[arg(long, env = "QRM_INT8_CACHE", value_name = "DIR")]
    int8_cache: Option<PathBuf>,
    /// Compute threads of all devices together; 0 = one for each CPU.
    #[arg(long, env = "QRM_THREADS", default_value_t = 0)]
    threads: usize,
    /// Batches that are computed side by side on each device; on the CPU they divide the threads among them.
    #[arg(long, env = "QRM_WORKERS", default_value_t = 1)]
    workers: usize,
    /// What one batch may cost, in unique tokens (a costlier trajectory is a batch of its own); default: measured at the
    /// start, the smallest at which the device is busy.
    #[arg(long, env = "QRM_MAX_BATCH_TOKENS")]
    max_batch_tokens: Option<NonZeroUsize>,
    /// MiB of keys and values of prompts that are kept between batches, on each device; 0 = none. Default: 512 on the CPU, a
    /// third of what a GPU has free once the model is loaded and has computed its largest batch.
    #[arg(long, env = "QRM_PREFIX_CACHE_MIB", value_parser = mebibytes)]
    prefix_cache_mib: Option<usize>,
}

impl EngineArgs {
    /// Opens the devices.
    pub(crate) fn devices(&self) -> anyhow::Result<Devices> {
        let devices = Devices::open(&self.device, self.dtype, self.split_layers)?;
        Ok(devices.with_int8_cache(self.int8_cache.as_ref()))
    }

    /// An engine's sizes; so many tokens and requests may wait.
    pub(crate) fn limits(&self, max_queue_tokens: usize, max_queue_requests: usize) -> Limits {
        Limits {
            max_batch_tokens: self.max_batch_tokens.map(NonZeroUsize::get),
            max_queue_tokens,
            max_queue_requests,
            prefix_cache_bytes: self.prefix_cache_mib.map(|mib| mib << 20),
            workers: self.workers,
            threads: Some(self.threads).filter(|threads| *threads > 0),
        }
    }
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// Checkpoint directory in Hugging Face layout, or a hub id (`org/name[@revision]`), perhaps with a name before it:
    /// `name=path`. Several serve several models; requests that name none go to the first. Default: a small built-in Q-RM
    /// for arithmetic word problems.
    #[arg(long, env = "QRM_MODEL", value_delimiter = ',')]
    model: Vec<NamedModel>,
    /// Policy that the first model is read against, of the same tokens: the model's own reward is then β log π/π_ref (DPO).
    #[arg(long, env = "QRM_REFERENCE_MODEL")]
    reference_model: Option<String>,
    /// β of that reward; default: the checkpoint's, else 0.1.
    #[arg(long, env = "QRM_REFERENCE_BETA", requires = "reference_model")]
    reference_beta: Option<f64>,
    /// The first model's name in requests and answers; default: the last part of `--model`.
    #[arg(long, env = "QRM_SERVED_MODEL_NAME")]
    served_model_name: Option<String>,
    /// Address to listen on.
    #[arg(long, env = "QRM_HOST", default_value = "127.0.0.1")]
    pub(crate) host: String,
    /// HTTP port; 0 picks a free one and logs it.
    #[arg(long, env = "QRM_PORT", default_value_t = 8080)]
    pub(crate) port: u16,
    /// gRPC port; 0 picks a free one and logs it.
    #[arg(long, env = "QRM_GRPC_PORT", default_value_t = 8081)]
    pub(crate) grpc_port: u16,
    /// Trajectories one request may hold.
    #[arg(long, env = "QRM_MAX_INPUTS", default_value_t = 8192)]
    pub(crate) max_inputs: usize,
    /// Bytes of a request's body.
    #[arg(long, env = "QRM_MAX_BODY_BYTES", default_value_t = 256 << 20)]
    pub(crate) max_body_bytes: usize,
    /// Bytes of the bodies of all requests until they are answered, and of answers until they are taken.
    #[arg(long, env = "QRM_MAX_REQUEST_BYTES", default_value_t = 1 << 30)]
    pub(crate) max_request_bytes: usize,
    /// Tokens that may wait. The default holds a rollout of 4 096 trajectories of 2 048 tokens twice.
    #[arg(long, env = "QRM_MAX_QUEUE_TOKENS", default_value_t = 16 << 20)]
    pub(crate) max_queue_tokens: usize,
    /// Requests that may wait.
    #[arg(long, env = "QRM_MAX_QUEUE_REQUESTS", default_value_t = 16_384)]
    pub(crate) max_queue_requests: usize,
    /// Status of a refusal for load, 503 or 429: some clients abort on any 4xx.
    #[arg(long, env = "QRM_OVERLOAD_STATUS", default_value_t = 503, value_parser = overload_status)]
    pub(crate) overload_status: u16,
    /// Deadline of requests that name none, milliseconds; 0 = none.
    #[arg(long, env = "QRM_DEFAULT_TIMEOUT_MS", default_value_t = 0)]
    pub(crate) default_timeout_ms: u64,
    /// Connections at once, of both ports together; more wait until one ends.
    #[arg(long, env = "QRM_MAX_CONNECTIONS", default_value_t = 16_384, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_connections: u32,
    /// Seconds that a connection without a request is kept.
    #[arg(long, env = "QRM_IDLE_TIMEOUT", default_value = "300", value_parser = seconds)]
    pub(crate) idle_timeout: Duration,
    /// Seconds that a client may take to send its body, and pause in taking its answer. A long body has as much more as it
    /// needs at 16 KiB/s.
    #[arg(long, env = "QRM_STALL_TIMEOUT", default_value = "30", value_parser = seconds)]
    pub(crate) stall_timeout: Duration,
    /// Seconds that accepted work may take after SIGTERM.
    #[arg(long, env = "QRM_DRAIN_TIMEOUT", default_value = "60", value_parser = seconds)]
    pub(crate) drain_timeout: Duration,
    /// File of API keys, `KEY` or `NAME KEY` a line; blank lines and lines starting with # do not count. Read again when it
    /// changes. Or keys in `QRM_API_KEYS`, comma-separated. The key of `POST /admin/reload` is in `QRM_ADMIN_KEY`; without one
    /// the route is closed.
    #[arg(long, env = "QRM_API_KEY_FILE")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// The server's certificate chain, PEM: with it both ports speak TLS. Read again when it changes.
    #[arg(long, env = "QRM_TLS_CERT", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its private key, PEM.
    #[arg(long, env = "QRM_TLS_KEY", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Authorities, PEM: every client needs a certificate that one of them has signed.
    #[arg(long, env = "QRM_TLS_CLIENT_CA", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
    /// Origins of pages whose scripts may call the service (`https://lab.example`, or `*`); default: none but its own page.
    #[arg(long, env = "QRM_CORS_ORIGIN", value_delimiter = ',')]
    pub(crate) cors_origin: Vec<String>,
    #[command(flatten)]
    traces: Traces,
    /// Form of the log on stderr.
    #[arg(long, env = "QRM_LOG_FORMAT", default_value = "text")]
    log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

impl ServeArgs {
    /// None: plain text.
    pub(crate) fn tls(&self) -> Option<TlsFiles> {
        let (cert, key) = (self.tls_cert.clone()?, self.tls_key.clone()?);
        Some(TlsFiles { cert, key, client_ca: self.tls_client_ca.clone() })
    }

    /// What is served under which name; no two names the same.
    pub(crate) fn models(&self) -> anyhow::Result<Vec<NamedModel>> {
        let mut models = self.model.clone();
        if models.is_empty() {
            models.push(NamedModel { name: model::name(None), source: None, against: None });
        }
        if let Some(source) = &self.reference_model {
            models[0].against = Some(Against { source: source.clone(), beta: self.reference_beta });
        }
        if let Some(name) = &self.served_model_name {
            models[0].name.clone_from(name);
        }
        for (i, model) in models.iter().enumerate() {
            anyhow::ensure!(
                models[..i].iter().all(|other| other.name != model.name),
                "two models are named {:?}: --model name=path gives one another",
                model.name
            );
        }
        Ok(models)
    }
}

fn overload_status(text: &str) -> Result<u16, String> {
    match text {
        "503" => Ok(503),
        "429" => Ok(429),
        _ => Err("503 or 429".into()),
    }
}

fn mebibytes(text: &str) -> Result<usize, String> {
    let mib: usize = text.parse().map_err(|_| "a number of MiB")?;
    mib.checked_mul(1 << 20).map(|_| mib).ok_or_else(|| "too many".into())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "a number of seconds")?;
    // Beyond this a point in time plus it may be none.
    let most = Duration::from_secs(1 << 30);
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|d| *d <= most)
        .ok_or_else(|| "too long, or less than 0".into())
}
