//! `tables.md`: what came out, with what the project wants to reach.

use std::fmt::Write;

use anyhow::Result;

use super::super::idle::{IDLE, NOTHING};
use super::super::report;
use super::Row;

pub(super) fn markdown(rows: &[Row], rounds: usize, command: &str) -> Result<String> {
    let mut out = String::from("# A node's tables with very many peers, measured\n\n");
    writeln!(out, "- **when, on what**: {}", report::machine()?)?;
    writeln!(out, "- **rounds**: {rounds}, in turns; medians")?;
    writeln!(out, "- **command**: `{command}`\n")?;
    out.push_str("![ms over peers](tables.svg)\n\n## From nothing\n\n");
    out.push_str("| peers | bare netlink, batched (ms) | flannel's order, one by one (ms) | twilld (ms) | twilld ÷ batched | flannel's ÷ twilld | twilld per peer (µs) |\n");
    out.push_str("|---:|---:|---:|---:|---:|---:|---:|\n");
    for row in rows {
        let [batched, flannels, first] =
            [&row.batched, &row.flannels, &row.first].map(super::Series::median);
        let (times, against) = (first / batched, flannels / first);
        let (peers, each) = (row.peers, first * 1e3 / row.peers as f64);
        writeln!(
            out,
            "| {peers} | {batched:.1} | {flannels:.1} | {first:.1} | {times:.2} | {against:.1} | {each:.2} |"
        )?;
    }
    out.push_str("\n## When they are there\n\n");
    out.push_str("| peers | three dumps (ms) | restart (ms) | changes made by it | one peer changed (ms) | one entry deleted (ms) | all routes deleted (ms) | RSS (MiB) | CPU in an idle minute (ms) |\n");
    out.push_str("|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n");
    for row in rows {
        let [dumps, restart, changed, deleted, flushed, rss, idle] = [
            &row.dumps,
            &row.restart,
            &row.one_changed,
            &row.one_deleted,
            &row.all_flushed,
            &row.rss,
            &row.idle_cpu,
        ]
        .map(super::Series::median);
        let (peers, written, rss) = (row.peers, row.written, rss / 1024.0);
        writeln!(
            out,
            "| {peers} | {dumps:.1} | {restart:.1} | {written:.0} | {changed:.2} | {deleted:.1} | {flushed:.1} | {rss:.1} | {idle:.1} |"
        )?;
    }
    out.push('\n');
    for (aim, holds) in aims(rows) {
        let verdict = if holds { "reached" } else { "not reached" };
        writeln!(out, "- {aim}: {verdict}")?;
    }
    out.push_str("\n## How\n\nThe same routes, neighbours and forwarding entries are made on a VXLAN device in a network namespace. Batched: all of a kind in sends of 48 KiB, the last message of each acknowledged. Flannel's order: per peer neighbour, forwarding entry and route, each sent alone and waited for, the routes without a metric. twilld's time is that of its first look at everything, from the complete list of leases to `subnet.env`, as its log has it (dump, decision, device, entries, nftables); a restart's is that of the first look with everything there. One peer changed: from the rename of its lease in the folder to the kernel's notification. Deleted: from the last acknowledged delete to the notification of the last entry that is back.\n");
    Ok(out)
}

/// What the project wants to reach, and whether it did.
fn aims(rows: &[Row]) -> Vec<(String, bool)> {
    let mut aims = Vec::new();
    let mut aim = |text: String, holds| aims.push((text, holds));
    if let Some(row) = rows.iter().find(|row| row.peers == 10_000) {
        let first = row.first.median();
        let times = first / row.batched.median();
        let text = format!("from nothing at most 3 times the batched cost ({times:.2})");
        aim(text, times <= 3.0);
        let times = row.flannels.median() / first;
        let text = format!("at least 10 times faster than flannel's order ({times:.1})");
        aim(text, times >= 10.0);
        let times = row.restart.median() / row.dumps.median();
        let text = format!("a restart takes at most twice the dumps ({times:.2})");
        aim(text, times <= 2.0);
        let written = row.written;
        let text = format!("and writes nothing ({written:.0} changes)");
        aim(text, written == 0.0);
        for (what, series, most) in [
            ("one peer changed", &row.one_changed, 5.0),
            ("one entry deleted", &row.one_deleted, 100.0),
            ("all routes deleted", &row.all_flushed, 500.0),
        ] {
            let (median, worst) = (series.median(), series.percentile(100));
            let text = format!("{what}: within {most} ms ({median:.2}, at worst {worst:.2})");
            aim(text, median <= most);
        }
        let rss = row.rss.median() / 1024.0;
        aim(format!("RSS at most 16 MiB ({rss:.1})"), rss <= 16.0);
        let (idle, seconds) = (row.idle_cpu.median(), IDLE.as_secs());
        let share = idle / 1e3 / IDLE.as_secs_f64();
        let text = format!(
            "CPU when idle: nothing measurable over {seconds} s, which is 0.0 % in top ({idle:.1} ms, {:.3} %)",
            share * 100.0
        );
        aim(text, share < NOTHING);
    }
    if let [first, .., last] = rows {
        let each = |row: &Row| row.first.median() / row.peers as f64;
        let growth = each(last) / each(first);
        let (least, most) = (first.peers, last.peers);
        let text = format!("a peer's cost is level from {least} to {most} ({growth:.2} times)");
        aim(text, growth <= 1.5);
    }
    aims
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aims_are_judged_by_the_medians() {
        let row = |peers, batched, first| {
            let mut row = Row {
                peers,
                ..Row::default()
            };
            row.batched.push(batched);
            row.first.push(first);
            row.flannels.push(900.0);
            row.dumps.push(20.0);
            row.restart.push(30.0);
            row.one_changed.push(6.0);
            row.idle_cpu.push(20.0);
            row
        };
        let rows = [row(1_000, 4.0, 10.0), row(10_000, 40.0, 90.0)];
        let verdicts: Vec<bool> = aims(&rows).iter().map(|(_, holds)| *holds).collect();
        let want = [true, true, true, true, false, true, true, true, true, true];
        assert_eq!(verdicts, want);
        assert_eq!(aims(&[]), []);
    }
}
