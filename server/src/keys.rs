//! API keys: who may ask, by name. A file of them is read again when it changes.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::Context;
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

/// The keys that open the service; without any it is open to all.
#[derive(Default)]
pub(crate) struct Keys {
    file: Option<PathBuf>,
    clients: RwLock<Vec<Key>>,
    /// Opens `/admin/…`, which is closed without it.
    admin: Option<String>,
}

#[derive(PartialEq)]
struct Key {
    /// In metrics and in the queue; the secret is in neither.
    name: Arc<str>,
    secret: String,
}

impl Keys {
    /// From the file, else from `QRM_API_KEYS` (comma-separated); the admin's from `QRM_ADMIN_KEY`. Never from a flag, which
    /// every user of the machine can read. A configured source without a key is an error: an empty file must not open the
    /// service.
    pub(crate) fn load(file: Option<&Path>) -> anyhow::Result<Self> {
        // A file's last newline comes with it; no request could.
        let admin = std::env::var("QRM_ADMIN_KEY").ok().map(|key| key.trim().to_owned());
        anyhow::ensure!(admin.as_deref() != Some(""), "QRM_ADMIN_KEY is empty");
        let clients = match (file, std::env::var("QRM_API_KEYS")) {
            (Some(file), _) => read(file)?,
            (None, Ok(text)) => parse(&text.replace(',', "\n")).context("QRM_API_KEYS")?,
            (None, Err(_)) => Vec::new(),
        };
        let file = file.map(Path::to_owned);
        Ok(Self { file, clients: RwLock::new(clients), admin })
    }

    /// Reads the file again; whether anything in it is new. A file that cannot be used leaves the keys as they were.
    pub(crate) fn reload(&self) -> anyhow::Result<bool> {
        let Some(file) = &self.file else { return Ok(false) };
        let new = read(file)?;
        let mut clients = self.clients.write().unwrap_or_else(PoisonError::into_inner);
        let is_new = *clients != new;
        *clients = new;
        Ok(is_new)
    }

    /// Whether anyone may ask.
    pub(crate) fn is_open(&self) -> bool {
        self.clients.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// The name of a key that opens. Compares with every one, so that the time tells neither which nor how much of it
    /// matched.
    pub(crate) fn name_of(&self, secret: &str) -> Option<Arc<str>> {
        let clients = self.clients.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = u64::MAX;
        for (i, key) in (0..).zip(clients.iter()) {
            found.conditional_assign(&i, same(&key.secret, secret));
        }
        clients.get(usize::try_from(found).ok()?).map(|key| key.name.clone())
    }

    pub(crate) fn is_admin(&self, secret: &str) -> bool {
        self.admin.as_ref().is_some_and(|admin| same(admin, secret).into())
    }
}

fn same(known: &str, given: &str) -> Choice {
    known.as_bytes().ct_eq(given.as_bytes())
}

fn read(file: &Path) -> anyhow::Result<Vec<Key>> {
    let context = || format!("the key file {}", file.display());
    parse(&std::fs::read_to_string(file).with_context(context)?).with_context(context)
}

/// `KEY` or `NAME KEY`, one a line; the nth without a name is `key-n`.
fn parse(text: &str) -> anyhow::Result<Vec<Key>> {
    let mut keys: Vec<Key> = Vec::new();
    let lines = text.lines().map(str::trim).enumerate();
    for (i, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (name, secret) = match words[..] {
            [secret] => (format!("key-{}", keys.len() + 1), secret),
            [name, secret] => (name.to_owned(), secret),
            _ => anyhow::bail!("line {}: neither KEY nor NAME KEY", i + 1),
        };
        let twice = keys.iter().any(|key| *key.name == *name || key.secret == secret);
        anyhow::ensure!(!twice, "line {}: a name or key for the second time", i + 1);
        keys.push(Key { name: name.into(), secret: secret.to_owned() });
    }
    anyhow::ensure!(!keys.is_empty(), "no key in it");
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(keys: &Keys) -> Vec<String> {
        keys.clients.read().expect("no panic").iter().map(|key| key.name.to_string()).collect()
    }

    #[test]
    fn reads_names_and_keys() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "# team\nalice  one\n\ntwo\n").expect("written");
        let keys = Keys::load(Some(file.path())).expect("good keys");
        assert_eq!(names(&keys), ["alice", "key-2"]);
        assert_eq!(keys.name_of("one").as_deref(), Some("alice"));
        assert_eq!(keys.name_of("two").as_deref(), Some("key-2"));
        for other in ["", "on", "onee", "alice", "alice one"] {
            assert_eq!(keys.name_of(other), None, "{other:?}");
        }
        assert!(!keys.is_admin("one") && !keys.is_admin(""));
    }

    #[test]
    fn a_bad_file_changes_nothing() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "alice one").expect("written");
        let keys = Keys::load(Some(file.path())).expect("good keys");
        for bad in ["", "# nobody", "a b c", "alice one\nalice two", "alice one\nbob one"] {
            std::fs::write(file.path(), bad).expect("written");
            assert!(keys.reload().is_err(), "{bad:?}");
            assert_eq!(keys.name_of("one").as_deref(), Some("alice"));
        }
        std::fs::write(file.path(), "alice one\nbob two").expect("written");
        assert!(keys.reload().expect("good keys"));
        assert!(!keys.reload().expect("good keys"), "nothing new");
        assert_eq!(names(&keys), ["alice", "bob"]);
    }
}
