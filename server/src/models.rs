//! The models that are served, by name, each with an engine of its own.
//!
//! A reload puts the new checkpoint beside the old one, warms it and swaps: what comes then goes to the new one, what the
//! old one had accepted it still answers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, TryLockError, Weak};
use std::time::Duration;

use anyhow::Context;
use qrm_model::RewardModel;

use crate::device::Devices;
use crate::engine::{self, Engine, Limits, Terms};
use crate::metrics::Metrics;
use crate::metrics::drift::Drift;
use crate::model::{self, Against, NamedModel};

/// Requests that name none go to the first.
pub(crate) struct Models(Vec<Served>);

/// A name that requests may give.
pub(crate) struct Served {
    /// In requests and answers.
    pub(crate) name: Arc<str>,
    /// Directory or hub id; none: built in.
    source: Option<String>,
    against: Option<Against>,
    current: RwLock<Arc<Loaded>>,
    /// Replaced, and not yet done with what they had accepted.
    retired: Mutex<Vec<Weak<Loaded>>>,
    /// One reload at a time.
    reloading: Mutex<()>,
    limits: Limits,
    metrics: Metrics,
}

/// A checkpoint in memory, and what computes with it.
pub(crate) struct Loaded {
    /// Of the model.
    pub(crate) name: Arc<str>,
    pub(crate) model: Arc<RewardModel>,
    /// Where it computes.
    pub(crate) devices: Devices,
    pub(crate) engine: Engine,
    pub(crate) drift: Drift,
    /// The first batch has been through: the weights are in memory, the threads have started.
    warm: AtomicBool,
}

impl Models {
    /// Loads every model; [`Models::warm`] comes next.
    pub(crate) fn load(
        named: &[NamedModel],
        devices: &Devices,
        limits: Limits,
        metrics: &Metrics,
    ) -> anyhow::Result<Self> {
        let one = |named: &NamedModel| -> anyhow::Result<Served> {
            let name: Arc<str> = named.name.as_str().into();
            let (source, against) = (named.source.as_deref(), named.against.as_ref());
            let loaded = Loaded::new(name.clone(), source, against, devices, limits, metrics)?;
            metrics.serves(&name, &loaded.model, None);
            Ok(Served {
                name,
                source: named.source.clone(),
                against: named.against.clone(),
                current: RwLock::new(Arc::new(loaded)),
                retired: Mutex::default(),
                reloading: Mutex::new(()),
                limits,
                metrics: metrics.clone(),
            })
        };
        Ok(Self(named.iter().map(one).collect::<anyhow::Result<_>>()?))
    }

    /// The one of that name.
    pub(crate) fn find(&self, name: &str) -> Option<&Served> {
        self.0.iter().find(|served| *served.name == *name)
    }

    /// Where requests go that name none.
    pub(crate) fn first_name(&self) -> &str {
        self.0.first().map_or("", |served| &served.name)
    }

    /// All of them, the first first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Served> {
        self.0.iter()
    }

    /// Runs one token through every engine. Blocks.
    pub(crate) fn warm(&self) -> anyhow::Result<()> {
        self.0.iter().try_for_each(|served| served.current().warm())
    }

    /// Refuses new work; what was accepted is still answered.
    pub(crate) fn close(&self) {
        self.0.iter().for_each(Served::close);
    }

    /// Whether new work is refused.
    pub(crate) fn is_closed(&self) -> bool {
        self.0.iter().all(|served| served.current().engine.is_closed())
    }

    /// Whether accepted work is left after [`Models::close`].
    pub(crate) fn is_busy(&self) -> bool {
        self.0.iter().any(Served::is_busy)
    }

    /// Whether the last accepted work is done: no more will come.
    pub(crate) fn is_done(&self) -> bool {
        self.is_closed() && !self.is_busy()
    }

    /// Whether each has a worker.
    pub(crate) fn are_alive(&self) -> bool {
        self.0.iter().all(|served| served.current().engine.is_alive())
    }

    /// Whether all of them are ready for requests; the first reason why not.
    pub(crate) fn ready(&self) -> Result<(), (&'static str, &'static str)> {
        for loaded in self.0.iter().map(Served::current) {
            if loaded.engine.has_failed() {
                return Err(("worker_dead", "the model's device has failed"));
            }
            if loaded.engine.is_closed() {
                return Err(("draining", "the server is shutting down"));
            }
            if !loaded.warm.load(Ordering::Acquire) {
                return Err(("warming_up", "the model is warming up"));
            }
        }
        Ok(())
    }
}

impl Served {
    /// What requests that come now are for.
    pub(crate) fn current(&self) -> Arc<Loaded> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Refuses new work; what was accepted is still answered.
    fn close(&self) {
        let current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        current.engine.close();
    }

    /// Whether accepted work is left.
    fn is_busy(&self) -> bool {
        self.current().engine.is_alive() || self.retired().iter().any(|old| old.strong_count() > 0)
    }

    fn retired(&self) -> MutexGuard<'_, Vec<Weak<Loaded>>> {
        self.retired.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Loads `source`, or the checkpoint it was started with, beside the current one and swaps. Where it cannot be loaded
    /// the old one stays. Blocks until it is there; what the old one had accepted is answered after that.
    pub(crate) fn reload(&self, source: Option<&str>) -> anyhow::Result<Arc<Loaded>> {
        let _one = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        self.reload_alone(source)
    }

    /// The same unless another reload is under way: callers that waited for it would take the threads that requests are
    /// read by.
    pub(crate) fn try_reload(&self, source: Option<&str>) -> Option<anyhow::Result<Arc<Loaded>>> {
        let _one = match self.reloading.try_lock() {
            Ok(one) => one,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(self.reload_alone(source))
    }

    fn reload_alone(&self, source: Option<&str>) -> anyhow::Result<Arc<Loaded>> {
        let reloaded = self.replace(source);
        self.metrics.reloaded(&self.name, reloaded.is_ok());
        reloaded
    }

    fn replace(&self, source: Option<&str>) -> anyhow::Result<Arc<Loaded>> {
        let source = source.or(self.source.as_deref());
        let new = Arc::new(Loaded::new(
            self.name.clone(),
            source,
            self.against.as_ref(),
            &self.current().devices,
            self.limits,
            &self.metrics,
        )?);
        new.warm()?;
        let old = {
            let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
            anyhow::ensure!(!current.engine.is_closed(), "the server is shutting down");
            std::mem::replace(&mut *current, new.clone())
        };
        self.metrics.serves(&self.name, &new.model, Some(&old.model));
        tracing::info!(model = %self.name, from = old.model.version(), to = new.model.version(), "reloaded");
        let mut retired = self.retired();
        retired.retain(|old| old.strong_count() > 0);
        retired.push(Arc::downgrade(&old));
        drop(retired);
        let drain = std::thread::Builder::new().name("drain".into()).spawn(move || {
            // Requests hold it from before they are read until they are answered.
            while Arc::strong_count(&old) > 1 {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        if let Err(error) = drain {
            // Then the last request lets go of it.
            tracing::warn!("no thread for the end of the old checkpoint: {error}");
        }
        Ok(new)
    }
}

impl Loaded {
    fn new(
        name: Arc<str>,
        source: Option<&str>,
        against: Option<&Against>,
        devices: &Devices,
        limits: Limits,
        metrics: &Metrics,
    ) -> anyhow::Result<Self> {
        let copies = model::load(source, against, devices)?;
        let engine = Engine::start(&copies, limits, metrics.clone())?;
        let (model, devices) = (copies.first.model, devices.clone());
        let drift = metrics.drift(&name, model.head());
        Ok(Self { name, model, devices, engine, drift, warm: AtomicBool::new(false) })
    }

    /// Runs one token through the engine. Blocks.
    pub(crate) fn warm(&self) -> anyhow::Result<()> {
        let terms = Terms { client: "".into(), priority: 0, deadline: None };
        let ticket = self.engine.submit(vec![engine::smallest()], terms)?;
        ticket.blocking_answer().context("the first batch failed")?;
        self.warm.store(true, Ordering::Release);
        Ok(())
    }
}
