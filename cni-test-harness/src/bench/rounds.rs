//! The order of things: round after round, every candidate in each, and what is noted of it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::candidate::Candidate;
use super::measure::{self, Round, Sample};
use super::{Options, Outcome};
use crate::progress::Progress;
use crate::suite::BRIDGE;
use crate::wait;

/// Rounds that are run before anything is counted.
pub(super) const WARM_UP: usize = 3;
/// Rounds in which peak memory and the end of the pair are looked at, and not the time.
pub(super) const LOOKS: usize = 5;
/// A candidate in a scene has no further round after so long: what takes seconds needs no many.
const ENOUGH: Duration = Duration::from_secs(10);
const FEWEST: usize = 3;
/// Until a deleted pair is gone.
const DEADLINE: Duration = Duration::from_secs(10);

/// The plain pod: one at a time, many at once, then memory.
pub(super) fn plain(
    options: &Options,
    candidates: &[Candidate],
    progress: &Progress,
) -> Result<Vec<Outcome>> {
    let mut outcomes: Vec<Outcome> = candidates.iter().map(|_| Outcome::default()).collect();
    let total = WARM_UP + options.rounds;
    for round in 0..total {
        progress.show(&format!("one at a time: round {} of {total}", round + 1));
        for index in order(candidates.len(), round) {
            let candidate = &candidates[index];
            one(candidate, &mut outcomes[index], round >= WARM_UP)
                .with_context(|| candidate.name.to_owned())?;
        }
    }
    let seconds = progress.seconds();
    progress.line(&format!("  {total} rounds one at a time: {seconds:.1} s"));
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
    let (pods, rounds, seconds) = (options.pods, options.at_once_rounds, progress.seconds());
    progress.line(&format!(
        "  {rounds} rounds of {pods} at once: {seconds:.1} s"
    ));
    for _ in 0..LOOKS {
        for (candidate, outcome) in candidates.iter().zip(&mut outcomes) {
            look(candidate, outcome).with_context(|| candidate.name.to_owned())?;
        }
    }
    Ok(outcomes)
}

/// One pod at a time, on nodes where more is going on.
pub(super) fn in_scenes(
    options: &Options,
    candidates: &[Candidate],
    progress: &Progress,
) -> Result<Vec<Outcome>> {
    let mut outcomes: Vec<Outcome> = candidates.iter().map(|_| Outcome::default()).collect();
    let mut spent = vec![Duration::ZERO; candidates.len()];
    let total = 1 + (options.rounds / 2).max(FEWEST);
    for round in 0..total {
        progress.show(&format!(
            "among other things: round {} of {total}",
            round + 1
        ));
        for index in order(candidates.len(), round) {
            if round > FEWEST && spent[index] > ENOUGH {
                continue;
            }
            let (candidate, start) = (&candidates[index], Instant::now());
            one(candidate, &mut outcomes[index], round > 0)
                .with_context(|| candidate.name.to_owned())?;
            spent[index] += start.elapsed();
        }
    }
    let seconds = progress.seconds();
    progress.line(&format!(
        "  {total} rounds among other things: {seconds:.1} s"
    ));
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

fn one(candidate: &Candidate, outcome: &mut Outcome, counts: bool) -> Result<()> {
    candidate.node().netns().enter()?;
    let before = candidate.node().view().link_names()?;
    let add = add(candidate, 0)?;
    let gone = del(candidate, 0, &add.stdout)?;
    let again = match candidate.repeats_del() {
        true => {
            // What is still on its way out is not gone, and keeps the kernel busy.
            until_gone(candidate, &before)?;
            Some(del(candidate, 0, &add.stdout)?)
        }
        false => None,
    };
    if counts {
        outcome.add.note(&add);
        outcome.del.note(&gone);
        again.iter().for_each(|again| outcome.again.note(again));
    }
    Ok(())
}

/// All steps of an ADD, one after the other; what the runtime does in between is not counted.
fn add(candidate: &Candidate, pod: usize) -> Result<Sample> {
    let mut sample = measure::one(&candidate.add(pod, 0, None)?)?;
    for step in 1..candidate.steps() {
        let next = candidate.add(pod, step, Some(&sample.stdout))?;
        sample = sample.then(measure::one(&next)?);
    }
    Ok(sample)
}

fn del(candidate: &Candidate, pod: usize, added: &[u8]) -> Result<Sample> {
    let mut sample = measure::one(&candidate.del(pod, 0, added)?)?;
    for step in 1..candidate.steps() {
        let next = candidate.del(pod, step, added)?;
        sample = sample.then(measure::one(&next)?);
    }
    Ok(sample)
}

/// All pods at once, each step when all have done the one before.
fn many(candidate: &Candidate, pods: usize) -> Result<(Round, Round)> {
    candidate.node().netns().enter()?;
    let mut adds: Option<Round> = None;
    for step in 0..candidate.steps() {
        let of = |pod: usize| {
            let before = adds.as_ref().map(|adds| &*adds.samples[pod].stdout);
            candidate.add(pod, step, before)
        };
        let next = measure::at_once(&(0..pods).map(of).collect::<Result<Vec<_>>>()?)?;
        adds = Some(match adds.take() {
            Some(adds) => adds.then(next),
            None => next,
        });
    }
    let adds = adds.context("an ADD has a step")?;
    let mut dels: Option<Round> = None;
    for step in 0..candidate.steps() {
        let starts = adds.samples.iter().enumerate();
        let starts = starts.map(|(pod, add)| candidate.del(pod, step, &add.stdout));
        let next = measure::at_once(&starts.collect::<Result<Vec<_>>>()?)?;
        dels = Some(match dels.take() {
            Some(dels) => dels.then(next),
            None => next,
        });
    }
    Ok((adds, dels.context("a DEL has a step")?))
}

/// Waits until the node has no link that it had not `before`; its bridge does not count.
fn until_gone(candidate: &Candidate, before: &[String]) -> Result<()> {
    wait::until_true("the pair to be gone", DEADLINE, || {
        let links = candidate.node().view().link_names()?;
        let is_old = |name: &String| before.contains(name) || name == BRIDGE;
        Ok(links.iter().all(is_old))
    })
}

/// Peak memory of an ADD and a DEL, and how long after it the pair is still there.
fn look(candidate: &Candidate, outcome: &mut Outcome) -> Result<()> {
    candidate.node().netns().enter()?;
    let before = candidate.node().view().link_names()?;
    let mut added: Option<Vec<u8>> = None;
    for step in 0..candidate.steps() {
        let (kib, stdout) = measure::peak_kib(&candidate.add(0, step, added.as_deref())?)?;
        outcome.peak_kib = outcome.peak_kib.max(kib);
        added = Some(stdout);
    }
    let added = added.context("an ADD has a step")?;
    for step in 0..candidate.steps() {
        let (kib, _) = measure::peak_kib(&candidate.del(0, step, &added)?)?;
        outcome.peak_kib = outcome.peak_kib.max(kib);
    }
    let start = Instant::now();
    until_gone(candidate, &before)?;
    outcome.gone.push(start.elapsed().as_secs_f64() * 1e3);
    Ok(())
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
