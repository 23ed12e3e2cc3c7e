//! The real server as a process.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::client::Client;

/// A running `qrm-server`; killed when dropped.
pub struct Server {
    child: Child,
    address: String,
    grpc: String,
    log: Arc<Mutex<Vec<Value>>>,
}

impl Server {
    /// Starts it on a free port with `model` and more flags, and waits until it listens.
    pub fn start(model: &str, flags: &[&str]) -> Self {
        Self::start_without_model(&[&["--model", model], flags].concat())
    }

    /// The same with environment variables of its own.
    pub fn start_with(model: &str, flags: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::spawn(&[&["--model", model], flags].concat(), variables)
    }

    /// The same without a model of its own, unless the flags name one.
    pub fn start_without_model(flags: &[&str]) -> Self {
        Self::spawn(flags, &[])
    }

    fn spawn(flags: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut child = Command::new(binary())
            .args(["--port", "0", "--grpc-port", "0", "--log-format", "json"])
            .args(flags)
            .envs(variables.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let lines = BufReader::new(child.stderr.take().expect("stderr is piped")).lines();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (listening, address) = mpsc::channel();
        let kept = log.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                // A line that is no JSON (a panic's message) is kept as a string, for the tests that look for it.
                let entry = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if entry["fields"]["message"] == "listening" {
                    let field = |name: &str| entry["fields"][name].as_str().unwrap_or_default().to_owned();
                    let _ = listening.send((field("http"), field("grpc")));
                }
                kept.lock().expect("no panic holds it").push(entry);
            }
        });
        let address = address.recv_timeout(Duration::from_secs(60));
        let (address, grpc) =
            address.unwrap_or_else(|_| panic!("the server did not listen: {:?}", log.lock()));
        Self { child, address, grpc, log }
    }

    /// A client of it.
    pub fn client(&self) -> Client {
        Client::new(&self.address)
    }

    /// `host:port` of gRPC.
    pub fn grpc(&self) -> &str {
        &self.grpc
    }

    /// `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Open files of the process, sockets among them.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("a process").count()
    }

    /// A number of the process's `status`: `VmRSS` (KiB), `Threads`.
    pub fn status(&self, name: &str) -> usize {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("a process");
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|l| l.split_whitespace().next()?.parse().ok()).expect("a number")
    }

    /// Its threads: their names, and the CPUs that each may use.
    pub fn threads(&self) -> Vec<(String, String)> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("a process");
        // One that ends meanwhile has no files any more.
        let read = |task: std::io::Result<std::fs::DirEntry>| {
            let path = task.ok()?.path();
            let status = std::fs::read_to_string(path.join("status")).ok()?;
            let field = |name: &str| {
                let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
                value.map(|value| value.trim().to_owned())
            };
            Some((field("Name")?, field("Cpus_allowed_list")?))
        };
        tasks.filter_map(read).collect()
    }

    /// The log so far.
    pub fn log(&self) -> Vec<Value> {
        self.log.lock().expect("no panic holds it").clone()
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Sends a signal.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
    }

    /// Waits for the process to end by itself.
    pub fn wait(&mut self, most: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("the child can be waited for") {
                std::thread::sleep(Duration::from_millis(50)); // the log's reader sees the last lines
                return status;
            }
            assert!(start.elapsed() < most, "the server is still running after {most:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asserts that nothing unusual was logged: no panic, no line that is no log line, no error.
    pub fn assert_quiet(&self) {
        for entry in self.log() {
            assert!(entry.is_object() && entry["level"] != "ERROR", "in the log: {entry}");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Path of the server's binary, built in the profile of these tests, because `cargo test` builds no other package's.
/// All tests of the workspace are named with it, so that cargo resolves the features that `cargo test --workspace` did
/// and compiles no dependency a second time.
pub fn binary() -> &'static PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        // target/PROFILE/deps/this-test
        let test = std::env::current_exe().expect("a path of its own");
        let profile = test.ancestors().nth(2).expect("a profile's directory");
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--workspace", "--bins", "--tests", "--examples"]);
        build.current_dir(env!("CARGO_MANIFEST_DIR"));
        build.env("CARGO_TARGET_DIR", profile.parent().expect("a target directory"));
        // What cargo tells a test of its package would look like a change to build scripts that ask for it.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("CARGO_PKG_") || name == "CARGO_MANIFEST_DIR" {
                build.env_remove(name);
            }
        }
        if profile.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().expect("cargo runs").success(), "the server does not build");
        profile.join("qrm-server")
    })
}
