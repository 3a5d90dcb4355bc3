//! What the plugin is to reach, and whether it does: a table of the report.

use std::fmt::Write;

use anyhow::Result;

use super::Outcome;
use super::candidate::{DEBIAN, FLANNEL, FLOOR, NOTHING, TWILL};
use super::report::Report;
use super::scene::Scene;

/// One aim: what is measured of it, and the most that it may be.
struct Aim {
    what: &'static str,
    most: f64,
    /// None if it was not measured.
    is: Option<f64>,
}

/// Writes the table.
pub(super) fn write(report: &Report<'_>, out: &mut String) -> Result<()> {
    let Some(twill) = report.outcome(TWILL) else {
        return Ok(());
    };
    out.push_str("## What is to be reached\n\n| twill's | at most | is | |\n|---|---:|---:|---|\n");
    for Aim { what, most, is } in aims(report, twill) {
        let mark = match is {
            None => "not measured",
            Some(is) if is <= most => "reached",
            Some(_) => "not reached",
        };
        let is = is.map_or(String::new(), |is| format!(" {}", share(is, most)));
        writeln!(out, "| {what} | {} |{is} | {mark} |", share(most, most))?;
    }
    Ok(writeln!(out)?)
}

/// A number, written as the aim is: as a part where that is a part.
fn share(number: f64, most: f64) -> String {
    match most < 1.0 {
        true if number == most => format!("1/{:.0}", 1.0 / number),
        true => format!("1/{:.1}", 1.0 / number),
        false => format!("{number:.2}"),
    }
}

fn aims(report: &Report<'_>, twill: &Outcome) -> Vec<Aim> {
    let of = |name: &str, value: fn(&Outcome) -> f64| {
        let other = report.outcome(name).map(value);
        other.map(|other| value(twill) / other)
    };
    let aim = |what, most, is| Aim { what, most, is };
    let full = report.in_scene(Scene::FullNode, TWILL);
    let nothing = report.outcome(NOTHING);
    vec![
        aim(
            "ADD, of Debian's bridge + host-local",
            1.0 / 8.0,
            of(DEBIAN, |o| o.add.wall.median()),
        ),
        aim(
            "ADD, of flannel's chain",
            1.0 / 16.0,
            of(FLANNEL, |o| o.add.wall.median()),
        ),
        aim(
            "ADD, of the floor",
            1.25,
            of(FLOOR, |o| o.add.wall.median()),
        ),
        aim(
            "CPU of an ADD, of Debian's",
            1.0 / 10.0,
            of(DEBIAN, |o| o.add.cpu.median()),
        ),
        aim(
            "ADD at once, per pod, of Debian's",
            1.0 / 8.0,
            of(DEBIAN, |o| o.add.per_pod.median()),
        ),
        aim(
            "ADD with 4000 reservations, of one on an empty node",
            1.5,
            full.map(|full| full.add.wall.median() / twill.add.wall.median()),
        ),
        aim(
            "DEL of a live pod, of Debian's",
            1.0 / 10.0,
            of(DEBIAN, |o| o.del.wall.median()),
        ),
        aim(
            "pair gone after DEL, ms",
            100.0,
            (twill.gone.len() > 0).then(|| twill.gone.median()),
        ),
        aim(
            "DEL of what is gone, of a process that does nothing",
            1.5,
            nothing.map(|nothing| twill.again.wall.median() / nothing.del.wall.median()),
        ),
        aim("peak RSS, MiB", 4.0, Some(twill.peak_kib as f64 / 1024.0)),
    ]
}
