//! What carries how much between two nodes: the backends of twilld beside plain routing and beside
//! devices made by hand.
//!
//! All ways stand at the same time, each with two nodes of its own, and are measured in turns: a
//! slice of each for one measure, then the next measure, and the order changes from round to round.
//! What is compared is compared within a round, so that what the machine does meanwhile hits both.
//!
//! `way` lays the nodes out, `traffic` sends and counts, `report` judges, writes and
//! draws.

mod report;
mod traffic;
mod way;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use super::numbers::Series;
use crate::progress::Progress;

use traffic::Measure;
use way::{Site, Way};

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// Rounds of one slice for each way and measure.
    pub rounds: usize,
    /// How long packets are counted in a slice.
    pub slice: Duration,
    /// The folder for `data.md` and `data.svg`.
    pub out: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            rounds: 15,
            slice: Duration::from_millis(500),
            out: "bench".into(),
        }
    }
}

/// What was seen of one way: of each measure one value a round.
struct Row {
    way: Way,
    seen: [Vec<f64>; Measure::ALL.len()],
}

impl Row {
    fn new(way: Way) -> Self {
        Self {
            way,
            seen: Default::default(),
        }
    }

    /// The measure's median over all rounds.
    fn median(&self, measure: Measure) -> f64 {
        series(self.seen[measure as usize].iter().copied()).median()
    }

    /// How many times as much as the other way, round by round.
    fn ratios(&self, other: &Self, measure: Measure) -> Series {
        let pairs = self.seen[measure as usize]
            .iter()
            .zip(&other.seen[measure as usize]);
        series(pairs.map(|(ours, theirs)| ours / theirs))
    }
}

fn series(values: impl Iterator<Item = f64>) -> Series {
    let mut series = Series::default();
    values.for_each(|value| series.push(value));
    series
}

/// Measures everything and writes the report; says on stdout how it goes.
pub fn run(options: &Options, command: &str) -> Result<()> {
    let progress = Progress::new();
    let (sites, missing) = progress.step("two nodes for each way", lay_out)?;
    missing
        .iter()
        .for_each(|missing| progress.line(&format!("  left out: {missing}")));
    let mut rows: Vec<Row> = sites.iter().map(|site| Row::new(site.way())).collect();
    for round in 0..=options.rounds {
        // The first one warms up: connections, caches, neighbours.
        let what = match round {
            0 => "a round that is not counted".to_owned(),
            _ => format!("round {round} of {}", options.rounds),
        };
        progress.step(&what, || {
            one_round(&sites, &mut rows, round, options.slice, &progress)
        })?;
    }
    std::fs::create_dir_all(&options.out)
        .with_context(|| format!("make {}", options.out.display()))?;
    let text = report::markdown(&rows, options, &missing, command)?;
    for (name, content) in [("data.md", &text), ("data.svg", &report::picture(&rows))] {
        let path = options.out.join(name);
        std::fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
        progress.line(&format!("written: {}", path.display()));
    }
    progress.line(&format!("\n{text}"));
    Ok(())
}

/// The ways that can be had here, and why the others cannot.
fn lay_out() -> Result<(Vec<Site>, Vec<String>)> {
    let (mut sites, mut missing) = (Vec::new(), Vec::new());
    for way in Way::ALL {
        match way.needs() {
            Ok(()) => sites.push(Site::new(way).with_context(|| way.name())?),
            Err(reason) => missing.push(format!("{}: {reason}", way.name())),
        }
    }
    Ok((sites, missing))
}

/// A slice of everything, beginning with another way each time.
fn one_round(
    sites: &[Site],
    rows: &mut [Row],
    round: usize,
    slice: Duration,
    progress: &Progress,
) -> Result<()> {
    for measure in Measure::ALL {
        for turn in 0..sites.len() {
            let at = (turn + round) % sites.len();
            let (name, what) = (sites[at].way().name(), measure.name());
            progress.show(&format!("{name}: {what}"));
            let value = traffic::measure(&sites[at], measure, slice);
            let value = value.with_context(|| format!("{name}: {what}"))?;
            if round > 0 {
                rows[at].seen[measure as usize].push(value);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_within_a_round() {
        let row = |way, values: [f64; 3]| {
            let mut row = Row::new(way);
            row.seen[Measure::Tcp as usize].extend(values);
            row
        };
        // Twice as much in every round, whatever the machine did meanwhile.
        let ours = row(Way::Vxlan, [20.0, 8.0, 14.0]);
        let theirs = row(Way::Udp, [10.0, 4.0, 7.0]);
        let ratios = ours.ratios(&theirs, Measure::Tcp);
        assert_eq!((ratios.len(), ratios.median()), (3, 2.0));
        assert_eq!(ours.median(Measure::Tcp), 14.0);
        assert_eq!(ours.ratios(&theirs, Measure::RoundTrips).len(), 0);
    }
}
