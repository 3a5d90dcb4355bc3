//! The benchmark: what an ADD and a DEL cost, ours beside others' and beside the floor.
//!
//! All candidates are measured in one run, a round of each after the other, so that what the
//! machine does meanwhile hits all alike; the order changes from round to round. Each has a node of
//! its own. Pods' namespaces are made beforehand: only the plugin is timed.
//!
//! `candidate` says what is started, `measure` starts it, `idle` looks at twilld doing nothing,
//! `report` and `picture` write down what came out. `peers` and `nodes` measure twilld
//! beside flanneld.

mod arrivals;
mod candidate;
mod idle;
mod measure;
pub mod nodes;
mod numbers;
pub mod peers;
mod picture;
mod relay;
mod report;
pub mod tables;

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};

use candidate::Candidate;
use measure::Sample;
use numbers::Series;

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
            at_once_rounds: 50,
            pods: 100,
            out: "bench".into(),
        }
    }
}

/// Rounds that are run before anything is counted.
const WARM_UP: usize = 3;
/// Rounds in which peak memory is looked at, and not the time.
const MEMORY_ROUNDS: usize = 5;

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
    // The measuring thread moves from namespace to namespace, so it is not this one.
    let outcomes = std::thread::scope(|scope| {
        let thread = scope.spawn(|| measure_all(options, &candidates, &progress));
        thread
            .join()
            .map_err(|_| anyhow!("the measuring thread panicked"))?
    })?;
    let named: Vec<(&str, Outcome)> = candidates
        .iter()
        .map(|candidate| candidate.name)
        .zip(outcomes)
        .collect();
    drop(candidates);
    let idle = progress.step("twilld with two peers, idle", idle::measure);
    let idle = idle.map_err(|error| format!("{error:#}"));
    let report = report::Report {
        command,
        options,
        named: &named,
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

fn measure_all(
    options: &Options,
    candidates: &[Candidate],
    progress: &Progress,
) -> Result<Vec<Outcome>> {
    let mut outcomes: Vec<Outcome> = candidates.iter().map(|_| Outcome::default()).collect();
    let total = WARM_UP + options.rounds;
    for round in 0..total {
        progress.show(&format!("one at a time: round {} of {total}", round + 1));
        for index in order(candidates.len(), round) {
            let (add, del) =
                one(&candidates[index]).with_context(|| candidates[index].name.to_owned())?;
            if round >= WARM_UP {
                outcomes[index].add.note(&add);
                outcomes[index].del.note(&del);
            }
        }
    }
    progress.line(&format!(
        "  {} rounds one at a time: {:.1} s",
        total,
        progress.seconds()
    ));
    for round in 0..=options.at_once_rounds {
        progress.show(&format!("{} at once: round {round}", options.pods));
        for index in order(candidates.len(), round) {
            let (adds, dels) = many(&candidates[index], options.pods)
                .with_context(|| candidates[index].name.to_owned())?;
            // The first round warms up.
            if round > 0 {
                outcomes[index].add.note_many(&adds);
                outcomes[index].del.note_many(&dels);
            }
        }
    }
    let (pods, rounds) = (options.pods, options.at_once_rounds);
    progress.line(&format!(
        "  {rounds} rounds of {pods} at once: {:.1} s",
        progress.seconds()
    ));
    for _ in 0..MEMORY_ROUNDS {
        for (candidate, outcome) in candidates.iter().zip(&mut outcomes) {
            outcome.peak_kib = outcome.peak_kib.max(memory(candidate)?);
        }
    }
    Ok(outcomes)
}

/// Another order in every round, each once as it is and once backwards, so that nobody always
/// comes after the same neighbour.
fn order(count: usize, round: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    order.rotate_left((round / 2) % count);
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

fn one(candidate: &Candidate) -> Result<(Sample, Sample)> {
    candidate.node().netns().enter()?;
    let add = measure::one(&candidate.add(0)?)?;
    let del = measure::one(&candidate.del(0, &add.stdout)?)?;
    Ok((add, del))
}

fn many(candidate: &Candidate, pods: usize) -> Result<(measure::Round, measure::Round)> {
    candidate.node().netns().enter()?;
    let starts = (0..pods)
        .map(|pod| candidate.add(pod))
        .collect::<Result<Vec<_>>>()?;
    let adds = measure::at_once(&starts)?;
    let starts = adds.samples.iter().enumerate();
    let starts = starts.map(|(pod, add)| candidate.del(pod, &add.stdout));
    let dels = measure::at_once(&starts.collect::<Result<Vec<_>>>()?)?;
    Ok((adds, dels))
}

fn memory(candidate: &Candidate) -> Result<u64> {
    candidate.node().netns().enter()?;
    let (add, stdout) = measure::peak_kib(&candidate.add(0)?)?;
    let (del, _) = measure::peak_kib(&candidate.del(0, &stdout)?)?;
    Ok(add.max(del))
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

#[cfg(test)]
mod tests {
    #[test]
    fn every_round_has_every_candidate_and_the_order_changes() {
        let orders: Vec<_> = (0..10).map(|round| super::order(5, round)).collect();
        for order in &orders {
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3, 4]);
        }
        let distinct: std::collections::BTreeSet<_> = orders.iter().collect();
        assert_eq!(distinct.len(), 10);
    }
}
