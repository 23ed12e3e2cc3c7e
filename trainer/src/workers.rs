//! The processes that train one model together: each has a share of every step's examples, gradients are summed.
//!
//! With the feature `mpi` and under `mpirun` there may be several; else there is one, and nothing is exchanged.

/// This process among all of them.
pub struct Workers {
    /// None of a process that was not started by `mpirun`: it is alone.
    #[cfg(feature = "mpi")]
    mpi: Option<mpi::environment::Universe>,
}

/// Numbers of one exchange: large enough to be worth a message, small enough not to double the memory.
#[cfg(feature = "mpi")]
const BUCKET: usize = 1 << 20;

/// What the launchers of Open MPI, MPICH and Slurm tell each process.
#[cfg(feature = "mpi")]
const LAUNCHED: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK"];

#[cfg(not(feature = "mpi"))]
impl Workers {
    /// Joins the others.
    pub fn join() -> anyhow::Result<Self> {
        Ok(Self {})
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        1
    }

    /// Which of them this is, from 0.
    pub fn rank(&self) -> usize {
        0
    }

    /// Replaces all numbers by their sums over the processes, the same bits on each.
    pub fn sum(&self, _: &mut [Vec<f32>]) {}

    /// The same in f64.
    pub fn sum_f64(&self, _: &mut [f64]) {}

    /// Ends all processes: the others would wait for this one for ever.
    pub fn abort(&self) {}
}

#[cfg(feature = "mpi")]
impl Workers {
    /// Joins the others.
    pub fn join() -> anyhow::Result<Self> {
        if LAUNCHED.iter().all(|name| std::env::var_os(name).is_none()) {
            return Ok(Self { mpi: None });
        }
        // Only the main thread speaks; rayon's threads compute.
        let joined = mpi::initialize_with_threading(mpi::Threading::Funneled);
        let (mpi, threading) = joined.ok_or_else(|| anyhow::anyhow!("MPI is in use already"))?;
        anyhow::ensure!(
            threading >= mpi::Threading::Funneled,
            "this MPI cannot be used by a program with threads"
        );
        Ok(Self { mpi: Some(mpi) })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        use mpi::traits::Communicator;
        self.mpi.as_ref().map_or(1, |mpi| mpi.world().size().max(1) as usize)
    }

    /// Which of them this is, from 0.
    pub fn rank(&self) -> usize {
        use mpi::traits::Communicator;
        self.mpi.as_ref().map_or(0, |mpi| mpi.world().rank() as usize)
    }

    /// Replaces all numbers by their sums over the processes, the same bits on each: they go around in buckets, each of
    /// several tensors or a part of one.
    pub fn sum(&self, numbers: &mut [Vec<f32>]) {
        use mpi::traits::CommunicatorCollectives;
        let Some(mpi) = self.mpi.as_ref().filter(|_| self.count() > 1) else { return };
        let world = mpi.world();
        let total: usize = numbers.iter().map(Vec::len).sum();
        let mut bucket = Vec::with_capacity(BUCKET.min(total));
        let mut summed = vec![0.0f32; BUCKET.min(total)];
        let (mut taken, mut put) = (Cursor::default(), Cursor::default());
        for start in (0..total).step_by(BUCKET) {
            let len = BUCKET.min(total - start);
            bucket.clear();
            taken.each(numbers, len, |part| bucket.extend_from_slice(part));
            let sum = mpi::collective::SystemOperation::sum();
            world.all_reduce_into(&bucket[..], &mut summed[..len], sum);
            let mut rest = &summed[..len];
            put.each(numbers, len, |part| {
                let (now, later) = rest.split_at(part.len());
                part.copy_from_slice(now);
                rest = later;
            });
        }
    }

    /// The same in f64.
    pub fn sum_f64(&self, numbers: &mut [f64]) {
        use mpi::traits::CommunicatorCollectives;
        let Some(mpi) = &self.mpi else { return };
        let mine = numbers.to_vec();
        mpi.world().all_reduce_into(&mine[..], numbers, mpi::collective::SystemOperation::sum());
    }

    /// Ends all processes: the others would wait for this one for ever.
    pub fn abort(&self) {
        use mpi::traits::Communicator;
        if let Some(mpi) = &self.mpi {
            mpi.world().abort(1);
        }
    }
}

/// A place in a list of vectors.
#[cfg(feature = "mpi")]
#[derive(Default)]
struct Cursor {
    vector: usize,
    at: usize,
}

#[cfg(feature = "mpi")]
impl Cursor {
    /// Visits the next `len` numbers, vector by vector.
    fn each(&mut self, numbers: &mut [Vec<f32>], mut len: usize, mut visit: impl FnMut(&mut [f32])) {
        while len > 0 {
            let vector = &mut numbers[self.vector];
            let end = vector.len().min(self.at + len);
            visit(&mut vector[self.at..end]);
            len -= end - self.at;
            self.at = end;
            if end == vector.len() {
                (self.vector, self.at) = (self.vector + 1, 0);
            }
        }
    }
}
