//! The server that judges: one process with all reward models.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use serde_json::Value;

use super::stage::program;

/// Killed when dropped.
pub(super) struct Server {
    child: Child,
    url: String,
}

impl Server {
    /// Serves `(name, checkpoint)`s on a free port; waits until it listens.
    pub(super) fn start(models: &[(String, String)], log_file: &Path) -> anyhow::Result<Self> {
        let mut log = File::create(log_file)?;
        let mut command = Command::new(program("qrm-server")?);
        command.args(["--port", "0", "--grpc-port", "0", "--log-format", "json"]);
        for (name, checkpoint) in models {
            command.arg("--model").arg(format!("{name}={checkpoint}"));
        }
        let mut child = command.stderr(Stdio::piped()).spawn().context("qrm-server")?;
        let lines = BufReader::new(child.stderr.take().context("its log")?).lines();
        // Holds the process from here on: it does not outlive an error.
        let mut server = Self { child, url: String::new() };
        let mut lines = lines.map_while(Result::ok);
        for line in lines.by_ref() {
            writeln!(log, "{line}")?;
            let fields = serde_json::from_str::<Value>(&line).unwrap_or_default()["fields"].take();
            if fields["message"] == "listening" {
                server.url = format!("http://{}", fields["http"].as_str().unwrap_or_default());
                break;
            }
        }
        anyhow::ensure!(!server.url.is_empty(), "qrm-server does not listen, see {}", log_file.display());
        std::thread::spawn(move || lines.try_for_each(|line| writeln!(log, "{line}")));
        Ok(server)
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
