//! `demand.md`: what came out, with what the project wants to reach.

use std::fmt::Write;

use anyhow::Result;

use super::super::report;
use super::{Options, Seen};

/// How many peers may be in use (`MOST` in the daemon).
const MOST: usize = 1024;

pub(super) fn markdown(seen: &Seen, options: &Options, command: &str) -> Result<String> {
    let peers = options.peers;
    let mut out = format!("# vxlan on demand among {peers} peers, measured\n\n");
    writeln!(out, "- **when, on what**: {}", report::machine()?)?;
    writeln!(out, "- **command**: `{command}`\n")?;
    out.push_str("| peers in use | routes, neighbours and forwarding entries | until the last of them (ms) | RSS (MiB) |\n");
    out.push_str("|---|---:|---:|---:|\n");
    for row in &seen.rows {
        let rss = row.rss_kib as f64 / 1024.0;
        let (what, entries, took) = (&row.what, row.entries, row.took_ms);
        writeln!(out, "| {what} | {entries} | {took:.1} | {rss:.1} |")?;
    }
    out.push_str(
        "\n| a first packet and its answer | median (ms) | at worst (ms) |\n|---|---:|---:|\n",
    );
    for (what, series) in [
        ("all have entries", &seen.first_of_all),
        ("on demand", &seen.first_on_demand),
    ] {
        let (median, worst) = (series.median(), series.percentile(100));
        writeln!(out, "| {what} | {median:.2} | {worst:.2} |")?;
    }
    let scan = &seen.scan;
    let rate = scan.packets as f64 / scan.seconds / 1e3;
    let share = scan.cpu_ms / scan.seconds / 10.0;
    let (median, worst) = (scan.repaired.median(), scan.repaired.percentile(100));
    let times = scan.repaired.len();
    writeln!(
        out,
        "\nA scan of every address of 10.0.0.0/12, flat out by one thread for {:.0} s, {rate:.0} thousand \
         packets a second: twilld takes {share:.1} % of a processor, at most {} peers are in use at a \
         time, and the whole network's route, which somebody deletes {times} times, is seen again after \
         {median:.1} ms (at worst {worst:.1}).\n",
        scan.seconds, scan.most
    )?;
    for (aim, holds) in aims(seen) {
        let verdict = if holds { "reached" } else { "not reached" };
        writeln!(out, "- {aim}: {verdict}")?;
    }
    out.push_str("\n## How\n\nThe leases lie in a folder, and one node after the other is started among them: with entries for all peers, then on demand. The first two rows' times are from the daemon's start to `subnet.env`, the others' from the first of so many packets, one to each peer, to the kernel's notification of the last entry. The packets' times are `ping`'s, of single pings to the one peer that answers; on demand each is sent when the peer has lost its entries. The route's time is until `ip` shows it, with `ip`'s own start.\n");
    Ok(out)
}

/// What the project wants to reach, and whether it did.
fn aims(seen: &Seen) -> Vec<(String, bool)> {
    let most = seen.scan.most;
    let median = seen.scan.repaired.median();
    let follows = seen.rows.iter().skip(1).all(|row| {
        let in_use = row.what.parse().unwrap_or(0);
        // The peer that answers may be in use as well.
        (3 * in_use + 1..=3 * in_use + 4).contains(&row.entries)
    });
    vec![
        (
            "the tables are as large as the number of peers in use".to_owned(),
            follows,
        ),
        (
            format!("under a scan at most {MOST} peers are in use ({most})"),
            most <= MOST,
        ),
        (
            format!("and something deleted is back within 100 ms ({median:.1})"),
            median <= 100.0,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::Row;
    use super::*;

    #[test]
    fn tables_larger_than_the_use_made_of_them_are_told() {
        let row = |what: &str, entries| Row {
            what: what.to_owned(),
            entries,
            took_ms: 1.0,
            rss_kib: 1024,
        };
        let rows = ["all have entries", "none", "10"].into_iter();
        let mut seen = Seen {
            rows: rows
                .zip([30_000, 1, 34])
                .map(|(what, n)| row(what, n))
                .collect(),
            ..Seen::default()
        };
        seen.scan.most = 1025;
        seen.scan.repaired.push(99.0);
        let verdicts = |seen: &Seen| {
            aims(seen)
                .iter()
                .map(|(_, holds)| *holds)
                .collect::<Vec<_>>()
        };
        assert_eq!(verdicts(&seen), [true, false, true]);
        seen.rows.push(row("100", 30_000));
        seen.scan.most = 1024;
        seen.scan.repaired.push(101.0);
        seen.scan.repaired.push(101.0);
        assert_eq!(verdicts(&seen), [false, true, false]);
    }
}
