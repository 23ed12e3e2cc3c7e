//! Hub ids, against a small file server.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use qrm_model::RewardModel;
use qrm_model::checkpoint::{Hub, resolve};
use serde_json::json;
use tempfile::TempDir;

use crate::{copy, fixture};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Serves one directory as the repository `org/tiny`, branches `main` and `v2`.
struct Server {
    endpoint: String,
    /// `path authorization` of every request.
    seen: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(dir: PathBuf) -> Self {
        Self::start_failing(dir, 0)
    }

    /// The first `fails` times that somebody wants the weights (not only where they are), he does not get them.
    fn start_failing(dir: PathBuf, fails: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = seen.clone();
        let fails = Arc::new(AtomicUsize::new(fails));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (dir, log, fails) = (dir.clone(), log.clone(), fails.clone());
                std::thread::spawn(move || answer(stream, &dir, &log, &fails));
            }
        });
        Self { endpoint, seen }
    }

    /// How many requests were made for a file's content or description.
    fn count(&self, part: &str) -> usize {
        self.seen.lock().unwrap().iter().filter(|line| line.contains(part)).count()
    }

    fn hub(&self, model: &str, cache: &Path) -> Hub {
        Hub::new(model, &self.endpoint, cache.to_owned(), None).unwrap()
    }
}

/// Answers one request and closes.
fn answer(mut stream: TcpStream, dir: &Path, log: &Mutex<Vec<String>>, fails: &AtomicUsize) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(path) = lines.next().and_then(|line| line.split(' ').nth(1).map(str::to_owned)) else { return };
    let headers: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
    let header = |name: &str| {
        let found = headers.iter().filter_map(|line| line.split_once(": "));
        found.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned()).next()
    };
    log.lock().unwrap().push(format!("{path} {}", header("authorization").unwrap_or_default()));
    let wanted = path.ends_with("model.safetensors") && header("range").is_none_or(|r| r != "bytes=0-0");
    let fails =
        wanted && fails.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
    let (status, extra, body) = match fails {
        true => ("503 Service Unavailable", String::new(), Vec::new()),
        false => respond(&path, header("range"), dir),
    };
    let head =
        format!("HTTP/1.1 {status}\r\n{extra}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
}

fn respond(path: &str, range: Option<String>, dir: &Path) -> (&'static str, String, Vec<u8>) {
    let missing = ("404 Not Found", String::new(), Vec::new());
    if let Some(revision) = path.strip_prefix("/api/models/org/tiny/revision/") {
        if !["main", "v2"].contains(&revision) {
            return missing;
        }
        let siblings: Vec<_> = files(dir, "").iter().map(|name| json!({ "rfilename": name })).collect();
        let body = json!({"sha": COMMIT, "siblings": siblings, "private": false}).to_string();
        return ("200 OK", "Content-Type: application/json\r\n".into(), body.into_bytes());
    }
    let name = path.strip_prefix(&format!("/org/tiny/resolve/{COMMIT}/"));
    let Some(content) = name.and_then(|name| fs::read(dir.join(name)).ok()) else { return missing };
    let etag = name.unwrap_or_default().replace('/', "-"); // a file's name in the cache
    let common = format!("ETag: \"etag-{etag}\"\r\nX-Repo-Commit: {COMMIT}\r\n");
    let Some(range) = range else { return ("200 OK", common, content) };
    let (from, to) = range.trim_start_matches("bytes=").split_once('-').unwrap();
    let from: usize = from.parse().unwrap();
    let to = to.parse().map_or(content.len(), |to: usize| content.len().min(to + 1));
    let extra = format!("{common}Content-Range: bytes {from}-{}/{}\r\n", to - 1, content.len());
    ("206 Partial Content", extra, content[from..to].to_vec())
}

/// The names of all files in a directory, those of directories within it after their own.
fn files(dir: &Path, within: &str) -> Vec<String> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir.join(within)).unwrap() {
        let name = format!("{within}{}", entry.unwrap().file_name().into_string().unwrap());
        match dir.join(&name).is_dir() {
            true => all.extend(files(dir, &format!("{name}/"))),
            false => all.push(name),
        }
    }
    all
}

#[test]
fn a_directory_is_itself() {
    let dir = fixture("qwen2");
    assert_eq!(resolve(dir.to_str().unwrap()).unwrap(), dir);
    for name in ["nowhere", "a/b/c", "../x/y", "org/", "org/name@", "org/na me", "", "org/.."] {
        assert!(resolve(name).unwrap_err().to_string().contains("neither"), "{name}");
    }
}

#[test]
fn fetches_once_and_survives_without_the_hub() {
    let server = Server::start(fixture("qwen2"));
    let cache = TempDir::new().unwrap();
    let dir = server.hub("org/tiny", cache.path()).fetch().unwrap();
    assert!(dir.ends_with(format!("models--org--tiny/snapshots/{COMMIT}")));
    assert!(dir.join("tokenizer_config.json").exists() && !dir.join("golden.json").exists());
    assert!(RewardModel::load(&dir).is_ok());

    let fetched = server.count("/resolve/");
    assert_eq!(server.hub("org/tiny@v2", cache.path()).fetch().unwrap(), dir);
    assert_eq!(server.count("/resolve/"), fetched, "the cache has this commit");

    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let away = |model: &str| {
        Hub::new(model, &format!("http://{closed}"), cache.path().to_owned(), None).unwrap().fetch()
    };
    assert_eq!(away("org/tiny").unwrap(), dir);
    assert!(away("org/other").unwrap_err().to_string().contains("org/other"));
}

#[test]
fn what_was_broken_off_is_gone_on_with() {
    let source = fixture("qwen2");
    let whole = fs::read(source.join("model.safetensors")).unwrap();
    let server = Server::start_failing(source, 2);
    let cache = TempDir::new().unwrap();
    let blobs = cache.path().join("models--org--tiny/blobs");
    fs::create_dir_all(&blobs).unwrap();
    let part = blobs.join("etag-model.part");
    fs::write(&part, &whole[..whole.len() / 2]).unwrap();
    let dir = server.hub("org/tiny", cache.path()).fetch().unwrap();
    assert!(!part.exists(), "it was found");
    assert!(fs::read(dir.join("model.safetensors")).unwrap() == whole);
}

#[test]
fn shards_and_gguf_are_found() {
    let source = copy("qwen2");
    let path = |name: &str| source.path().join(name);
    fs::rename(path("model.safetensors"), path("part-1.safetensors")).unwrap();
    let index = json!({"weight_map": {"model.norm.weight": "part-1.safetensors"}});
    fs::write(path("model.safetensors.index.json"), index.to_string()).unwrap();
    let cache = TempDir::new().unwrap();
    let server = Server::start(source.path().to_owned());
    let dir = server.hub("org/tiny", cache.path()).fetch().unwrap();
    assert!(RewardModel::load(&dir).is_ok());

    fs::remove_file(path("model.safetensors.index.json")).unwrap();
    let cache = TempDir::new().unwrap();
    let message = server.hub("org/tiny", cache.path()).fetch().unwrap_err().to_string();
    assert!(message.contains("neither model.safetensors"), "{message}");
    fs::write(path("weights.gguf"), "GGUF").unwrap();
    assert!(server.hub("org/tiny", cache.path()).fetch().unwrap().join("weights.gguf").exists());
}

#[test]
fn a_reference_comes_with_its_policy_and_nothing_else_does() {
    let source = copy("qwen2");
    let path = |name: &str| source.path().join(name);
    let write = |reward_model: &str, reference: &str| {
        let config = json!({"reward_model": reward_model, "beta": 0.1, "reference": reference});
        fs::write(path("qrm_config.json"), config.to_string()).unwrap();
    };
    let template = json!({"chat_template": "{{ messages[0].content }}"}).to_string();
    fs::write(path("chat_template.json"), template).unwrap();
    for within in ["base", "checkpoint-1"] {
        fs::create_dir(path(within)).unwrap();
        for file in ["config.json", "tokenizer.json", "model.safetensors"] {
            fs::copy(path(file), path(within).join(file)).unwrap();
        }
    }
    let server = Server::start(source.path().to_owned());
    let fetch = || {
        let cache = TempDir::new().unwrap();
        let dir = server.hub("org/tiny", cache.path()).fetch();
        (cache, dir)
    };
    write("dpo", "base");
    let (_cache, dir) = fetch();
    let dir = dir.unwrap();
    assert!(dir.join("chat_template.json").exists() && !dir.join("checkpoint-1").exists());
    assert!(RewardModel::load(&dir).is_ok());
    // What is published without it may have one from elsewhere; what has another head needs none.
    for (reward_model, reference) in [("dpo", "reference"), ("q_vocab", "base")] {
        write(reward_model, reference);
        let (_cache, dir) = fetch();
        assert!(!dir.unwrap().join("base").exists(), "{reward_model}");
    }
    write("dpo", "../base");
    assert!(fetch().1.unwrap_err().to_string().contains("../base"));
}

#[test]
fn what_is_missing_is_named() {
    let server = Server::start(fixture("qwen2"));
    let cache = TempDir::new().unwrap();
    for model in ["org/tiny@v3", "org/absent"] {
        let message = server.hub(model, cache.path()).fetch().unwrap_err().to_string();
        assert!(message.contains(model) && message.contains("404"), "{message}");
    }
    let source = copy("qwen2");
    fs::remove_file(source.path().join("tokenizer.json")).unwrap();
    let server = Server::start(source.path().to_owned());
    let message = server.hub("org/tiny", cache.path()).fetch().unwrap_err().to_string();
    assert!(message.contains("tokenizer.json"), "{message}");
}

/// The environment is a process's own, so the call is made in another one: this test binary again.
#[test]
fn the_environment_is_honoured() {
    let server = Server::start(fixture("qwen2"));
    let home = TempDir::new().unwrap();
    let run = |offline: &str| {
        let run = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "hub::in_its_own_process", "--ignored", "--nocapture"])
            .env("HF_ENDPOINT", format!("{}/", server.endpoint))
            .env("HF_HOME", home.path())
            .env("HF_TOKEN", "secret")
            .env("HF_HUB_OFFLINE", offline)
            .output()
            .unwrap();
        (run.status.success(), String::from_utf8_lossy(&run.stderr).into_owned())
    };
    let (done, why) = run("1");
    assert!(!done && why.contains("HF_HUB_OFFLINE is set"), "{why}");
    let (done, why) = run("0");
    assert!(done, "{why}");
    let asked = server.seen.lock().unwrap().len();
    let (done, why) = run("1");
    assert!(done && server.seen.lock().unwrap().len() == asked, "{why}");
    assert!(home.path().join("hub/models--org--tiny/snapshots").join(COMMIT).join("config.json").exists());
    assert_eq!(server.count(" Bearer secret"), server.seen.lock().unwrap().len());
}

#[test]
#[ignore = "run by the_environment_is_honoured with an environment of its own"]
fn in_its_own_process() {
    resolve("org/tiny").unwrap();
}
