//! The cluster that all tests share, who may use it when, and its end. No test lives here.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use cinderblock_lab::{Cluster, NodeSpec, Options, packages};
use libtest_mimic::{Arguments, Failed, Trial};

use crate::objects;

const NAME: &str = "kubernetes-ring";
const GIB: u64 = 1 << 30;

/// The data disks: with more room on one node than on the other.
pub(crate) const DISKS: [u64; 2] = [40 * GIB, 80 * GIB];
/// And each has two of these.
const RAID_DISK: u64 = 2 * GIB;

/// Kubernetes, the sidecars and the volumes of several tests at once.
const MEMORY_MIB: u32 = 2048;

/// Leave the cluster running.
const KEEP: &str = "CINDERBLOCK_KEEP";

type Test = fn(&Cluster) -> Result<()>;

/// All tests, in the order in which they begin: those that disturb others at the end.
pub(crate) struct Tests {
    /// Parts of names, of which one is enough. None: all.
    words: Vec<String>,
    trials: Vec<Trial>,
    world: Arc<World>,
}

#[derive(Default)]
struct World {
    cluster: Mutex<Option<Arc<Cluster>>>,
    /// Written by a test that nobody else may run beside.
    use_: RwLock<()>,
}

impl Tests {
    /// None yet, and only such as have one of these words in their names.
    pub(crate) fn with_any_of(words: Vec<String>) -> Self {
        Self { words, trials: Vec::new(), world: Arc::default() }
    }

    /// A test that runs beside others.
    pub(crate) fn add(&mut self, name: &str, test: Test) {
        self.add_as(name, test, false);
    }

    /// A test that restarts what all others need.
    pub(crate) fn add_alone(&mut self, name: &str, test: Test) {
        self.add_as(name, test, true);
    }

    fn add_as(&mut self, name: &str, test: Test, alone: bool) {
        if !self.words.is_empty() && !self.words.iter().any(|word| name.contains(word)) {
            return;
        }
        let world = Arc::clone(&self.world);
        let named = name.to_owned();
        self.trials.push(Trial::test(name, move || world.run(&named, test, alone)));
    }

    /// Runs those that are asked for, and throws the cluster away.
    pub(crate) fn run(self, arguments: &Arguments) -> ExitCode {
        let conclusion = libtest_mimic::run(arguments, self.trials);
        match self.world.end() {
            Ok(()) => conclusion.exit_code(),
            Err(error) => {
                println!("{error:#}");
                ExitCode::FAILURE
            }
        }
    }
}

impl World {
    fn run(&self, name: &str, test: Test, alone: bool) -> Result<(), Failed> {
        let cluster = self.cluster().map_err(|error| Failed::from(format!("{error:#}")))?;
        let (_shared, _alone) = if alone {
            (None, Some(self.use_.write().unwrap_or_else(PoisonError::into_inner)))
        } else {
            (Some(self.use_.read().unwrap_or_else(PoisonError::into_inner)), None)
        };
        let start = Instant::now();
        let ended = test(&cluster);
        println!("{name}: {:.0} s", start.elapsed().as_secs_f32());
        ended.map_err(|error| {
            // At once, and not only at the end of all tests.
            println!("{name}: {error:#}");
            Failed::from(format!("{error:#}"))
        })
    }

    /// The cluster with the driver; who comes first brings it up.
    fn cluster(&self) -> Result<Arc<Cluster>> {
        let mut place = self.cluster.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cluster) = &*place {
            return Ok(Arc::clone(cluster));
        }
        packages::ensure()?;
        if !keeps() {
            // What a run left behind that was killed.
            Cluster::down_at(NAME, &folder())?;
        }
        let nodes = DISKS.iter().zip(1..).map(|(bytes, index)| {
            let node = NodeSpec::new(index).own_kernel().memory_mib(MEMORY_MIB).disk(*bytes);
            node.disk(RAID_DISK).disk(RAID_DISK)
        });
        let guest = Path::new(env!("CARGO_BIN_EXE_lab-guest"));
        let options = Options::new(NAME).dir(&folder()).guest(guest).node_specs(nodes);
        let cluster = Cluster::up(options)?;
        objects::install(&cluster).context("installing the driver")?;
        objects::storage_classes(&cluster)?;
        Ok(Arc::clone(place.insert(Arc::new(cluster))))
    }

    fn end(&self) -> Result<()> {
        let place = self.cluster.lock().unwrap_or_else(PoisonError::into_inner);
        if place.is_none() || keeps() {
            return Ok(());
        }
        Cluster::down_at(NAME, &folder()).map_err(|error| anyhow!("taking it down: {error:#}"))
    }
}

fn keeps() -> bool {
    std::env::var_os(KEEP).is_some()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("lab").join(NAME)
}
