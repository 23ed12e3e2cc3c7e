//! CPUs by number, for a copy of a model that is to compute on some of them, such as those of one socket. Its memory is then
//! near them too, since a page lies where the thread runs that writes it first.

use std::str::FromStr;
use std::sync::Arc;

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

/// CPUs of this machine, by the system's numbers; by default all that the process may use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cores(Option<Arc<[usize]>>);

impl FromStr for Cores {
    type Err = String;

    /// Numbers and ranges, joined by `+`: `0-15+32-47`. On Linux, and of what the process may use.
    fn from_str(text: &str) -> Result<Self, String> {
        let allowed = system::allowed().ok_or("threads are kept on CPUs on Linux alone")?;
        let mut all = Vec::new();
        for part in text.split('+') {
            let number = |text: &str| text.parse::<usize>().map_err(|e| format!("CPUs {text:?}: {e}"));
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(format!("CPUs {part:?} end before they begin"));
            }
            for cpu in first..=last {
                if !allowed.contains(&cpu) {
                    return Err(format!("CPU {cpu} is none that this process may use"));
                }
                all.push(cpu);
            }
        }
        all.sort_unstable();
        all.dedup();
        Ok(Self(Some(all.into())))
    }
}

impl std::fmt::Display for Cores {
    /// As they are read, in one way for the same CPUs; nothing for all.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let runs = self.0.iter().flat_map(|cpus| cpus.chunk_by(|a, b| a + 1 == *b));
        for (i, run) in runs.enumerate() {
            let (plus, first, last) = (if i > 0 { "+" } else { "" }, run[0], run[run.len() - 1]);
            match first == last {
                true => write!(f, "{plus}{first}")?,
                false => write!(f, "{plus}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

impl Cores {
    /// How many there are.
    pub fn count(&self) -> usize {
        match &self.0 {
            Some(cpus) => cpus.len(),
            None => std::thread::available_parallelism().map_or(1, usize::from),
        }
    }

    /// Whether they were chosen.
    pub fn are_chosen(&self) -> bool {
        self.0.is_some()
    }

    /// So many threads that stay on them; `name` gives theirs.
    pub fn pool(
        &self,
        threads: usize,
        name: impl FnMut(usize) -> String + 'static,
    ) -> Result<ThreadPool, ThreadPoolBuildError> {
        let builder = ThreadPoolBuilder::new().num_threads(threads.max(1)).thread_name(name);
        match self.0.clone() {
            Some(cpus) => builder.start_handler(move |_| system::keep_on(&cpus)).build(),
            None => builder.build(),
        }
    }
}

#[cfg(target_os = "linux")]
mod system {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    /// The CPUs that the calling thread may use, where they can be chosen.
    pub(super) fn allowed() -> Option<Vec<usize>> {
        let set = sched_getaffinity(None).ok()?;
        Some((0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect())
    }

    /// Keeps the calling thread on `cpus`. Where the system took them away since they were allowed, it runs where it may.
    pub(super) fn keep_on(cpus: &[usize]) {
        let mut set = CpuSet::new();
        cpus.iter().for_each(|cpu| set.set(*cpu));
        let _ = sched_setaffinity(None, &set);
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    pub(super) fn allowed() -> Option<Vec<usize>> {
        None
    }

    pub(super) fn keep_on(_: &[usize]) {}
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_said() {
        let allowed = system::allowed().unwrap();
        let list = |cpus: &[usize]| cpus.iter().map(ToString::to_string).collect::<Vec<_>>().join("+");
        let mut backwards = allowed.clone();
        backwards.reverse();
        let all: Cores = list(&backwards).parse().unwrap();
        assert_eq!(all.count(), allowed.len());
        assert_eq!(all.to_string().parse::<Cores>().unwrap(), all, "{all}");
        assert_eq!(Cores::default().to_string(), "");
        let of = |cpus: &[usize]| Cores(Some(cpus.into())).to_string();
        assert_eq!((of(&[3]), of(&[0, 1, 2, 5, 8, 9])), ("3".into(), "0-2+5+8-9".into()));
        let first = allowed[0];
        for wrong in
            ["", "+", "a", "1-", "-1", "5-2", "0-99999999999", &format!("{first}+"), &format!("{first}+5-2")]
        {
            assert!(wrong.parse::<Cores>().is_err(), "{wrong:?}");
        }
        let error = "1023".parse::<Cores>().unwrap_err();
        assert!(error.contains("CPU 1023 is none that this process may use"), "{error}");
    }

    #[test]
    fn threads_stay_where_they_are_to() {
        let last = *system::allowed().unwrap().last().unwrap();
        let cores: Cores = last.to_string().parse().unwrap();
        let pool = cores.pool(3, |i| format!("pinned-{i}")).unwrap();
        assert_eq!(pool.current_num_threads(), 3);
        assert!(pool.broadcast(|_| system::allowed().unwrap()).iter().all(|cpus| *cpus == [last]));
        assert!(
            pool.broadcast(|_| std::thread::current().name().unwrap().starts_with("pinned-"))
                .iter()
                .all(|is| *is)
        );
        let free = Cores::default().pool(2, |i| format!("free-{i}")).unwrap();
        assert!(free.broadcast(|_| system::allowed()).iter().all(|cpus| *cpus == system::allowed()));
    }
}
