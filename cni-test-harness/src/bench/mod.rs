//! The benchmark: what an ADD and a DEL cost, ours beside others' and beside the floor.
//!
//! All candidates are measured in one run, a round of each after the other, so that what the
//! machine does meanwhile hits all alike; the order changes from round to round. Each has a node of
//! its own. Pods' namespaces are made beforehand: only the plugin is timed.
//!
//! `candidate` says what is started, `chain` and `scene` how it is configured and among what,
//! `measure` starts it, `rounds` in which order, `idle` looks at twilld doing nothing,
//! `report`, `aims` and `picture` write down what came out. `peers` and `nodes` measure twilld
//! beside flanneld, `tables` its tables, `demand` those on demand, `data` what its backends carry.

mod aims;
mod arrivals;
mod candidate;
mod chain;
pub mod data;
pub mod demand;
mod idle;
mod measure;
pub mod nodes;
mod numbers;
pub mod peers;
mod picture;
mod relay;
mod report;
mod rounds;
mod scene;
pub mod tables;

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use candidate::{CHAIN, Candidate, FLANNEL, TWILL};
use measure::Sample;
use numbers::Series;
use scene::Scene;

use crate::progress::Progress;
use crate::tools;

/// What to measure and where to put it.
#[derive(Debug, Clone)]
pub struct Options {
    /// Rounds of one ADD and one DEL per candidate.
    pub rounds: usize,
    /// Rounds of [`Options::pods`] ADDs and DELs at once per candidate.
    pub at_once_rounds: usize,
    /// How many pods are added at once.
    pub pods: usize,
    /// The folder for `results.md` and `add-del.svg`.
    pub out: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            rounds: 50,
            at_once_rounds: 5,
            pods: 100,
            out: "bench".into(),
        }
    }
}

/// What was seen of one verb of one candidate.
#[derive(Debug, Default)]
struct Verb {
    /// One at a time: start to end, in ms.
    wall: Series,
    /// One at a time: user and system time, in ms.
    cpu: Series,
    /// At once: each process from its start to its end, in ms.
    at_once: Series,
    /// At once: the whole round divided by the pods, in ms.
    per_pod: Series,
    /// At once: user and system time of each process, in ms.
    at_once_cpu: Series,
}

/// What was seen of one candidate.
#[derive(Debug, Default)]
struct Outcome {
    add: Verb,
    del: Verb,
    /// The DEL of what is gone, one at a time.
    again: Verb,
    /// From the end of DEL until the pod's pair was not there any more, in ms.
    gone: Series,
    /// The largest peak RSS of a process of an ADD or DEL, in KiB.
    peak_kib: u64,
}

/// Measures everything and writes the report; says on stdout how it goes.
pub fn run(options: &Options, command: &str) -> Result<()> {
    let progress = Progress::new();
    let (candidates, mut missing) = progress.step("nodes and pods' namespaces", || {
        candidate::all(options.pods)
    })?;
    for name in ["twill", "twilld", "floor"] {
        let path = tools::built(name)?;
        if path.components().any(|part| part.as_os_str() == "debug") {
            missing.push(format!(
                "an optimised {name}: what stands here is a debug build\'s"
            ));
        }
    }
    missing
        .iter()
        .for_each(|missing| progress.line(&format!("  left out: {missing}")));
    let outcomes = apart(|| rounds::plain(options, &candidates, &progress))?;
    let named: Vec<(&str, Outcome)> = candidates
        .iter()
        .map(|candidate| candidate.name)
        .zip(outcomes)
        .collect();
    drop(candidates);
    let (places, candidates) = progress.step("nodes with other pods on them", in_scenes)?;
    let outcomes = apart(|| rounds::in_scenes(options, &candidates, &progress))?;
    let scenes: Vec<_> = places.into_iter().zip(outcomes).collect();
    drop(candidates);
    let idle = progress.step("twilld with two peers, idle", idle::measure);
    let idle = idle.map_err(|error| format!("{error:#}"));
    let report = report::Report {
        command,
        options,
        named: &named,
        scenes: &scenes,
        missing: &missing,
        idle: &idle,
    };
    std::fs::create_dir_all(&options.out)
        .with_context(|| format!("make {}", options.out.display()))?;
    let text = report.markdown()?;
    for (name, content) in [
        ("results.md", &text),
        ("add-del.svg", &picture::svg(&named)),
    ] {
        let path = options.out.join(name);
        std::fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
        progress.line(&format!("written: {}", path.display()));
    }
    progress.line(&format!("\n{text}"));
    idle.map(drop)
        .map_err(|error| anyhow!("twilld was not measured: {error}"))
}

/// Where a candidate stands: its scene and its name.
type Place = (Scene, &'static str);

/// Those that have a part in host ports, in every scene; who is not there was named already.
fn in_scenes() -> Result<(Vec<Place>, Vec<Candidate>)> {
    let (mut places, mut candidates) = (Vec::new(), Vec::new());
    for scene in Scene::OTHERS {
        for name in [TWILL, CHAIN, FLANNEL] {
            match Candidate::of_plugins(name, scene, 1) {
                Ok(candidate) => {
                    places.push((scene, name));
                    candidates.push(candidate);
                }
                Err(error) if name == TWILL => return Err(error),
                Err(_) => {}
            }
        }
    }
    Ok((places, candidates))
}

/// On a thread of its own: the measuring thread moves from namespace to namespace. What is in `/run`
/// is in memory for it, as on a node: this machine may have it on its disk.
fn apart<T: Send>(measure: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            in_memory("/run/twill").context("mount a tmpfs for what twill keeps in /run")?;
            measure()
        });
        thread
            .join()
            .map_err(|_| anyhow!("the measuring thread panicked"))?
    })
}

/// For this thread and what it starts alone.
fn in_memory(dir: &str) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    let nothing = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(
        nothing,
        "/",
        nothing,
        MsFlags::MS_REC | MsFlags::MS_SLAVE,
        nothing,
    )?;
    mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), nothing)?;
    Ok(())
}

impl Verb {
    fn note(&mut self, sample: &Sample) {
        self.wall.push(sample.wall_ms);
        self.cpu.push(sample.cpu_ms);
    }

    fn note_many(&mut self, round: &measure::Round) {
        for sample in &round.samples {
            self.at_once.push(sample.wall_ms);
            self.at_once_cpu.push(sample.cpu_ms);
        }
        self.per_pod
            .push(round.wall_ms / round.samples.len() as f64);
    }
}
