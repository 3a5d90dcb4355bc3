//! `results.md`: what came out, in tables, with what it was measured on.

use std::fmt::Write;
use std::process::Command;

use anyhow::Result;

use super::aims;
use super::candidate::TWILL;
use super::idle::{Idle, NOTHING};
use super::rounds::{LOOKS, WARM_UP};
use super::scene::Scene;
use super::{Options, Outcome, Place};
use crate::process;

/// Everything that is written down.
pub(super) struct Report<'a> {
    pub(super) command: &'a str,
    pub(super) options: &'a Options,
    pub(super) named: &'a [(&'a str, Outcome)],
    pub(super) scenes: &'a [(Place, Outcome)],
    pub(super) missing: &'a [String],
    pub(super) idle: &'a Result<Idle, String>,
}

impl Report<'_> {
    pub(super) fn markdown(&self) -> Result<String> {
        let mut out = String::from("# ADD and DEL, measured\n\n");
        self.conditions(&mut out)?;
        self.one_at_a_time(&mut out)?;
        self.at_once(&mut out)?;
        self.in_scenes(&mut out)?;
        self.ratios(&mut out)?;
        aims::write(self, &mut out)?;
        self.daemon(&mut out)?;
        self.notes(&mut out)?;
        Ok(out)
    }

    pub(super) fn outcome(&self, name: &str) -> Option<&Outcome> {
        self.named
            .iter()
            .find(|(other, _)| *other == name)
            .map(|(_, outcome)| outcome)
    }

    pub(super) fn in_scene(&self, scene: Scene, name: &str) -> Option<&Outcome> {
        let found = self
            .scenes
            .iter()
            .find(|((of, who), _)| *of == scene && *who == name);
        found.map(|(_, outcome)| outcome)
    }

    fn conditions(&self, out: &mut String) -> Result<()> {
        let Options {
            rounds,
            at_once_rounds,
            pods,
            ..
        } = self.options;
        writeln!(out, "- **when, on what**: {}", machine()?)?;
        writeln!(
            out,
            "- **rounds**: {rounds} one at a time, {at_once_rounds} of {pods} at once, interleaved, \
             after {WARM_UP} that are not counted"
        )?;
        writeln!(out, "- **command**: `{}`", self.command)?;
        for missing in self.missing {
            writeln!(out, "- **left out**: {missing}")?;
        }
        Ok(writeln!(out)?)
    }

    fn one_at_a_time(&self, out: &mut String) -> Result<()> {
        out.push_str("## One at a time\n\n");
        out.push_str("| | ADD median (ms) | p99 | CPU | DEL median (ms) | p99 | CPU | ");
        out.push_str("DEL again (ms) | pair gone after (ms) | peak RSS (MiB) |\n");
        out.push_str("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n");
        for (name, outcome) in self.named {
            let Outcome { add, del, .. } = outcome;
            let cells = [&add.wall, &del.wall].map(|wall| (wall.median(), wall.percentile(99)));
            let [(add_median, add_p99), (del_median, del_p99)] = cells;
            let (add_cpu, del_cpu) = (add.cpu.median(), del.cpu.median());
            let (again, gone) = (outcome.again.wall.median(), outcome.gone.median());
            let peak = outcome.peak_kib as f64 / 1024.0;
            writeln!(
                out,
                "| {name} | {add_median:.2} | {add_p99:.2} | {add_cpu:.2} \
                 | {del_median:.2} | {del_p99:.2} | {del_cpu:.2} \
                 | {again:.2} | {gone:.1} | {peak:.1} |"
            )?;
        }
        Ok(writeln!(out)?)
    }

    fn in_scenes(&self, out: &mut String) -> Result<()> {
        out.push_str("## Among other things\n\n");
        out.push_str(
            "| | | ADD median (ms) | CPU | DEL median (ms) | CPU | DEL again (ms) | rounds |\n",
        );
        out.push_str("|---|---|---:|---:|---:|---:|---:|---:|\n");
        for (
            (scene, name),
            Outcome {
                add, del, again, ..
            },
        ) in self.scenes
        {
            let [add_ms, del_ms, again] =
                [&add.wall, &del.wall, &again.wall].map(|series| series.median());
            let [add_cpu, del_cpu] = [&add.cpu, &del.cpu].map(|series| series.median());
            let (scene, rounds) = (scene.name(), add.wall.len());
            writeln!(
                out,
                "| {scene} | {name} | {add_ms:.2} | {add_cpu:.2} | {del_ms:.2} | {del_cpu:.2} \
                 | {again:.2} | {rounds} |"
            )?;
        }
        Ok(writeln!(out)?)
    }

    fn at_once(&self, out: &mut String) -> Result<()> {
        writeln!(out, "## {} at once\n", self.options.pods)?;
        out.push_str("| | ADD per pod (ms) | pods/s | median (ms) | p99 | CPU | ");
        out.push_str("DEL per pod (ms) | pods/s | median (ms) | p99 | CPU |\n");
        out.push_str("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n");
        for (name, Outcome { add, del, .. }) in self.named {
            write!(out, "| {name} ")?;
            for verb in [add, del] {
                let per_pod = verb.per_pod.median();
                let (median, p99) = (verb.at_once.median(), verb.at_once.percentile(99));
                let (rate, cpu) = (1e3 / per_pod, verb.at_once_cpu.median());
                write!(
                    out,
                    "| {per_pod:.2} | {rate:.0} | {median:.1} | {p99:.1} | {cpu:.2} "
                )?;
            }
            out.push_str("|\n");
        }
        Ok(writeln!(out)?)
    }

    fn ratios(&self, out: &mut String) -> Result<()> {
        let Some(twill) = self.outcome(TWILL) else {
            return Ok(());
        };
        out.push_str("## twill against the others (medians; above 1: the other takes longer)\n\n");
        out.push_str("| the other ÷ twill | ADD | CPU of an ADD | ADD at once | DEL | DEL at once | peak RSS |\n");
        out.push_str("|---|---:|---:|---:|---:|---:|---:|\n");
        for (name, other) in self.named.iter().filter(|(name, _)| *name != TWILL) {
            let pairs = [
                (other.add.wall.median(), twill.add.wall.median()),
                (other.add.cpu.median(), twill.add.cpu.median()),
                (other.add.per_pod.median(), twill.add.per_pod.median()),
                (other.del.wall.median(), twill.del.wall.median()),
                (other.del.per_pod.median(), twill.del.per_pod.median()),
                (other.peak_kib as f64, twill.peak_kib as f64),
            ];
            let cells = pairs
                .map(|(other, ours)| format!("{:.2}", other / ours))
                .join(" | ");
            writeln!(out, "| {name} | {cells} |")?;
        }
        Ok(writeln!(out)?)
    }

    fn daemon(&self, out: &mut String) -> Result<()> {
        out.push_str("## twilld, idle, with two peers\n\n");
        match self.idle {
            Ok(Idle {
                rss_kib,
                peak_kib,
                cpu_ms,
                seconds,
            }) => {
                let [rss, peak] = [rss_kib, peak_kib].map(|kib| *kib as f64 / 1024.0);
                let mark = if rss <= 8.0 { "reached" } else { "not reached" };
                writeln!(
                    out,
                    "- RSS {rss:.1} MiB (at its largest {peak:.1}); at most 8: {mark}"
                )?;
                let share = cpu_ms / 1e3 / seconds;
                let mark = if share < NOTHING {
                    "reached"
                } else {
                    "not reached"
                };
                writeln!(
                    out,
                    "- CPU {cpu_ms:.2} ms in {seconds:.0} s, {:.3} % of one processor; nothing measurable (0.0 % in top): {mark}",
                    share * 100.0
                )?;
            }
            Err(error) => writeln!(out, "not measured: {error}")?,
        }
        Ok(writeln!(out)?)
    }

    fn notes(&self, out: &mut String) -> Result<()> {
        out.push_str(
            "## How\n\n\
             Every candidate has a network namespace and a bridge of its own; the pods' namespaces are \
             made beforehand, so only the plugin is timed: from before posix_spawn to after wait4. CPU is \
             user and system time of the process and of those it waited for; what the kernel does later \
             is nobody's. Of plugins in a chain, each is timed and the times are added up; many at once, \
             each of them is over before the next begins. \"per pod\" is the wall time of all divided by their number; median and p99 are \
             of each process from its own start. On twill's nodes there is a twilld, to which DEL leaves \
             the deletion of the pair; what it does is on the same processors, and not in the CPU of an \
             ADD or a DEL. Under `./dev bench` twill and the floor are copies, as an installer leaves \
             them: a linker's own output lies in the page cache in pieces, which cost more to map. What \
             twill keeps in `/run` is on a tmpfs, as on a node.\n\n\
             The floor is a static process that sends the bare netlink messages for the same result \
             (veth with its peer in the pod's namespace, bridge port with hairpin; address, link up, two \
             routes) with every number given to it: no config, no lookup, no reservation, no result. ",
        );
        writeln!(
            out,
            "Peak RSS is the largest process of an ADD or DEL, the largest of {LOOKS} rounds of their own; in \
             them the pair is looked for with `ip link` until it is gone."
        )?;
        Ok(())
    }
}

fn said(program: &str, args: &[&str]) -> Result<String> {
    Ok(process::check(Command::new(program).args(args))?
        .stdout_text()
        .trim()
        .to_owned())
}

/// When it is, and what this runs on.
pub(super) fn machine() -> Result<String> {
    Ok(format!(
        "{}, Linux {}, {}",
        date()?,
        kernel()?,
        processor()?
    ))
}

fn date() -> Result<String> {
    said("date", &["-u", "+%Y-%m-%d"])
}

fn kernel() -> Result<String> {
    said("uname", &["-r"])
}

fn processor() -> Result<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo")?;
    let count = text
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let model = text
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let unnamed = std::env::consts::ARCH;
    Ok(format!("{count} × {}", model.unwrap_or(unnamed)))
}

#[cfg(test)]
mod tests {
    use super::super::candidate::{DEBIAN, FLOOR, UPSTREAM};
    use super::*;

    fn outcome(add_ms: f64) -> Outcome {
        let mut outcome = Outcome {
            peak_kib: 1024,
            ..Outcome::default()
        };
        for verb in [&mut outcome.add, &mut outcome.del, &mut outcome.again] {
            for series in [
                &mut verb.wall,
                &mut verb.cpu,
                &mut verb.at_once,
                &mut verb.per_pod,
            ] {
                series.push(add_ms);
            }
        }
        outcome
    }

    #[test]
    fn the_report_says_what_is_reached_and_what_is_not() {
        let named = [
            (FLOOR, outcome(1.0)),
            (TWILL, outcome(2.0)),
            (DEBIAN, outcome(18.0)),
        ];
        let scenes = [((Scene::FullNode, TWILL), outcome(3.2))];
        let missing = [format!("{UPSTREAM}: not installed")];
        let idle = Ok(Idle {
            rss_kib: 4096,
            peak_kib: 5120,
            cpu_ms: 0.1,
            seconds: 5.0,
        });
        let options = Options::default();
        let report = Report {
            command: "bench",
            options: &options,
            named: &named,
            scenes: &scenes,
            missing: &missing,
            idle: &idle,
        };
        let text = report.markdown().unwrap();
        for part in [
            "| twill | 2.00 | 2.00 |",
            "| ADD, of Debian's bridge + host-local | 1/8 | 1/9.0 | reached |",
            "| ADD, of the floor | 1.25 | 2.00 | not reached |",
            "| CPU of an ADD, of Debian's | 1/10 | 1/9.0 | not reached |",
            "| ADD with 4000 reservations, of one on an empty node | 1.50 | 1.60 | not reached |",
            "| ADD, of flannel's chain | 1/16 | | not measured |",
            "| peak RSS, MiB | 4.00 | 1.00 | reached |",
            "RSS 4.0 MiB (at its largest 5.0); at most 8: reached",
            "**left out**: bridge + host-local v1.9.1: not installed",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }
}
