//! Checkpoints by name: a directory as it is, a hub id fetched into the Hugging Face cache.

use std::fmt::Display;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use super::safetensors::Index;
use super::{
    CONFIG, CheckpointError, GENERATION_CONFIG, INDEX, QRM_CONFIG, QrmConfig, SINGLE, only_gguf, read_json,
};

use crate::reward::HeadKind;

/// Times that a file is tried again, and how long after.
const TRIES: usize = 2;
const PAUSE: Duration = Duration::from_millis(500);

/// Files taken along where a repository has them.
const OPTIONAL: [&str; 5] =
    ["tokenizer_config.json", GENERATION_CONFIG, "chat_template.jinja", "chat_template.json", QRM_CONFIG];

/// The directory of `model`: itself where it is one, else the hub's `org/name[@revision]`, fetched unless the cache
/// has it. Honours `HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE`: with that no hub is asked.
pub fn resolve(model: &str) -> Result<PathBuf, CheckpointError> {
    let path = Path::new(model);
    match path.is_dir() {
        true => Ok(path.to_owned()),
        false => {
            let (hub, offline) = (Hub::from_env(model)?, std::env::var("HF_HUB_OFFLINE").unwrap_or_default());
            match ["1", "true", "yes", "on"].contains(&offline.to_lowercase().as_str()) {
                true => {
                    hub.cached().ok_or_else(|| hub.error("the cache", "not in it, and HF_HUB_OFFLINE is set"))
                }
                false => hub.fetch(),
            }
        }
    }
}

/// One model repository of a hub, and the cache it is fetched into.
pub struct Hub {
    model: String,
    api: Api,
    cache: Cache,
    repo: Repo,
}

impl Hub {
    /// `model` (`org/name[@revision]`) at an endpoint, with the directory that holds fetched repositories.
    pub fn new(
        model: &str,
        endpoint: &str,
        cache: PathBuf,
        token: Option<String>,
    ) -> Result<Self, CheckpointError> {
        let (id, revision) = model.split_once('@').unwrap_or((model, "main"));
        let plain = |part: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') && part.chars().all(allowed)
        };
        let is_id = id.split('/').count() == 2 && id.split('/').all(plain);
        if !is_id || !revision.split('/').all(plain) {
            let message = "neither a directory nor a hub id, org/name or org/name@revision";
            return Err(CheckpointError::Hub { model: model.into(), message: message.into() });
        }
        let cache = Cache::new(cache);
        let api = ApiBuilder::from_cache(cache.clone())
            .with_endpoint(endpoint.trim_end_matches('/').to_owned())
            .with_token(token)
            .build()
            .map_err(|e| CheckpointError::Hub { model: model.into(), message: e.to_string() })?;
        let repo = Repo::with_revision(id.into(), RepoType::Model, revision.into());
        Ok(Self { model: model.into(), api, cache, repo })
    }

    /// The hub and cache that the environment names.
    fn from_env(model: &str) -> Result<Self, CheckpointError> {
        let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let home = match set("HF_HOME") {
            Some(home) => Some(PathBuf::from(home)),
            None => std::env::home_dir().map(|home| home.join(".cache/huggingface")),
        };
        let home = home.ok_or_else(|| CheckpointError::Hub {
            model: model.into(),
            message: "no home directory to cache it in; set HF_HOME".into(),
        })?;
        let cache = home.join("hub");
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let token = set("HF_TOKEN").or_else(|| Cache::new(cache.clone()).token());
        Self::new(model, &endpoint, cache, token)
    }

    /// Fetches what is not cached yet and returns the snapshot's directory. A hub that cannot be reached leaves
    /// what an earlier fetch cached.
    pub fn fetch(&self) -> Result<PathBuf, CheckpointError> {
        let info = match self.api.repo(self.repo.clone()).info() {
            Ok(info) => info,
            Err(e) => return self.cached().ok_or_else(|| self.error("its list of files", e)),
        };
        if info.sha.is_empty() || !info.sha.chars().all(|c| c.is_ascii_alphanumeric()) {
            return Err(self.error("its list of files", format!("{:?} is no commit", info.sha)));
        }
        // Everything comes from the commit the branch stands at now, even if it moves meanwhile. Naming the commit
        // first lets files that another client cached under it count.
        let commit = Repo::with_revision(self.repo_id(), RepoType::Model, info.sha.clone());
        let name = |repo: &Repo| self.cache.repo(repo.clone()).create_ref(&info.sha);
        name(&commit).map_err(|e| self.error("the cache", e))?;
        let remote = self.api.repo(commit);

        let files: Vec<_> = info.siblings.iter().map(|s| s.rfilename.as_str()).collect();
        let dir = self.checkpoint(&remote, &files, "")?;
        let qrm_config: QrmConfig = match files.contains(&QRM_CONFIG) {
            true => read_json(&dir.join(QRM_CONFIG))?,
            false => QrmConfig::default(),
        };
        if qrm_config.reward_model == Some(HeadKind::Dpo) {
            let within = format!("{}/", qrm_config.reference_dir()?);
            // A policy that is published alone can be served against a reference from elsewhere.
            if files.iter().any(|file| file.starts_with(&within)) {
                self.checkpoint(&remote, &files, &within)?;
            }
        }
        name(&self.repo).map_err(|e| self.error("the cache", e))?;
        Ok(dir)
    }

    /// Fetches the checkpoint in a directory of the repository, `""` or `reference/`, and gives where it is now.
    fn checkpoint(&self, remote: &ApiRepo, files: &[&str], within: &str) -> Result<PathBuf, CheckpointError> {
        let files = files.iter().filter_map(|file| file.strip_prefix(within));
        let files: Vec<&str> = files.filter(|file| !file.contains('/')).collect();
        let fetch = |file: &str| self.file(remote, &format!("{within}{file}"));
        let dir = fetch(CONFIG)?.parent().map(Path::to_owned).unwrap_or_default();
        fetch("tokenizer.json")?;
        for file in OPTIONAL.iter().filter(|file| files.contains(file)) {
            fetch(file)?;
        }
        if files.contains(&SINGLE) {
            fetch(SINGLE)?;
        } else if files.contains(&INDEX) {
            for file in Index::read(&fetch(INDEX)?)?.files() {
                fetch(file)?;
            }
        } else {
            fetch(only_gguf(files.iter().copied()).map_err(|e| self.error("its weights", e))?)?;
        }
        Ok(dir)
    }

    /// Tries again by itself: hf-hub's own retries begin at byte 0 of a file that an earlier process left unfinished, and add
    /// to it. One that another process is fetching is waited for.
    fn file(&self, remote: &ApiRepo, file: &str) -> Result<PathBuf, CheckpointError> {
        let mut tries = 0;
        loop {
            match remote.get(file) {
                Ok(path) => return Ok(path),
                Err(ApiError::LockAcquisition(lock)) if is_held(&lock) => {}
                Err(_) if tries < TRIES => {
                    tries += 1;
                    std::thread::sleep(PAUSE);
                }
                Err(e) => return Err(self.error(file, e)),
            }
        }
    }

    /// The snapshot of an earlier fetch.
    fn cached(&self) -> Option<PathBuf> {
        self.cache.repo(self.repo.clone()).get(CONFIG)?.parent().map(Path::to_owned)
    }

    fn repo_id(&self) -> String {
        self.repo.url()
    }

    fn error(&self, what: &str, cause: impl Display) -> CheckpointError {
        CheckpointError::Hub { model: self.model.clone(), message: format!("{what}: {cause}") }
    }
}

/// Whether another process has a lock, rather than nobody can lock files there.
fn is_held(lock: &Path) -> bool {
    let file = File::options().write(true).open(lock);
    file.is_ok_and(|file| !matches!(file.try_lock(), Err(TryLockError::Error(_))))
}
