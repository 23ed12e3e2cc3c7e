//! `qrm-server health`: whether the server on this machine is ready, for images without a shell or curl.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

/// For each step of asking.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Args)]
pub(crate) struct HealthArgs {
    /// Where the server listens.
    #[arg(long, env = "QRM_HOST", default_value = "127.0.0.1")]
    host: String,
    /// Its HTTP port, without TLS.
    #[arg(long, env = "QRM_PORT", default_value_t = 8080)]
    port: u16,
}

/// Exit status 0 where `GET /ready` is answered with 200.
pub(crate) fn run(args: &HealthArgs) -> anyhow::Result<ExitCode> {
    let address = (args.host.as_str(), args.port).to_socket_addrs()?.next().context("no such host")?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /ready HTTP/1.0\r\nhost: localhost\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(1 << 16).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    anyhow::ensure!(
        answer.split(' ').nth(1) == Some("200"),
        "not ready: {}",
        answer.lines().last().unwrap_or_default()
    );
    Ok(ExitCode::SUCCESS)
}
