//! `data.md` and `data.svg`: what came out, with what the project wants to reach.

use std::fmt::Write;

use anyhow::Result;

use super::super::numbers::Series;
use super::super::picture::{self, Bar, Panel};
use super::super::report;
use super::traffic::{LARGE, Measure};
use super::way::Way;
use super::{Options, Row};

pub(super) fn markdown(
    rows: &[Row],
    options: &Options,
    missing: &[String],
    command: &str,
) -> Result<String> {
    let mut out = String::from("# Traffic between two nodes, measured\n\n");
    writeln!(out, "- **when, on what**: {}", report::machine()?)?;
    let (rounds, slice) = (options.rounds, options.slice.as_millis());
    writeln!(
        out,
        "- **rounds**: {rounds} of {slice} ms for each way and measure, in turns; medians"
    )?;
    writeln!(out, "- **command**: `{command}`")?;
    for missing in missing {
        writeln!(out, "- **left out**: {missing}")?;
    }
    out.push_str("\n![What each way carries](data.svg)\n\n## What arrives\n\n");
    writeln!(
        out,
        "| | TCP (Gb/s) | UDP, {LARGE} bytes (Gb/s) | round trips (1000/s) | 64-byte packets (1000/s) |\n\
         |---|---:|---:|---:|---:|"
    )?;
    for row in rows {
        let cells = Measure::ALL.map(|measure| {
            let (_, unit) = unit(measure);
            format!("{:.2}", row.median(measure) / unit)
        });
        writeln!(out, "| {} | {} |", row.way.name(), cells.join(" | "))?;
    }
    against(rows, Way::Plain, "plain routing", &mut out)?;
    out.push_str("## What is to be reached\n\n");
    for (aim, ratios, least) in aims(rows) {
        let is = ratios.median();
        let (low, high) = (ratios.percentile(25), ratios.percentile(75));
        let verdict = match is >= least {
            true => "reached",
            false => "not reached",
        };
        writeln!(
            out,
            "- {aim}: at least {least} ({is:.2}, half of the rounds from {low:.2} to {high:.2}): {verdict}"
        )?;
    }
    out.push_str("\n## How\n\nTwo nodes for each way, network namespaces with a veth pair each into one bridge; all stand at once, and the daemons of those that are not measured have nothing to do. The way by hand is `ip link add … type vxlan` with twilld's options, an address, one neighbour, one forwarding entry and one route; plain routing is one route. Traffic goes between an address of each node, without pods, without masquerading. *One by one* is twilld's udp backend with `\"Offload\": false`, which reads, sends, receives and writes one packet with each system call, as flanneld does in one thread. A sender and a receiver, threads with plain sockets, share the processors with the daemons. TCP: one stream, with reno, so that no congestion control's own pace is measured. UDP and 64-byte packets: a system call for each datagram, as fast as the sender can, and what arrived is counted. Round trips: a byte there and a byte back on a connection that stands. What is compared is compared within a round; the numbers are medians of the rounds' ratios.\n");
    Ok(out)
}

/// How a measure is written, and what to divide by for that.
fn unit(measure: Measure) -> (&'static str, f64) {
    match measure {
        Measure::Tcp => ("TCP, one stream: Gb/s", 1e9),
        Measure::Udp => ("UDP, large datagrams: Gb/s", 1e9),
        Measure::RoundTrips => ("Round trips: 1000 per second", 1e3),
        Measure::SmallPackets => ("64-byte packets: 1000 per second", 1e3),
    }
}

fn find(rows: &[Row], way: Way) -> Option<&Row> {
    rows.iter().find(|row| row.way == way)
}

/// A table of how many times as much each way carries as this one.
fn against(rows: &[Row], way: Way, name: &str, out: &mut String) -> Result<()> {
    let Some(base) = find(rows, way) else {
        return Ok(());
    };
    writeln!(
        out,
        "\n## In parts of {name}\n\n| | TCP | UDP | round trips | 64-byte packets |\n|---|---:|---:|---:|---:|"
    )?;
    for row in rows.iter().filter(|row| row.way != way) {
        let cells =
            Measure::ALL.map(|measure| format!("{:.2}", row.ratios(base, measure).median()));
        writeln!(out, "| {} | {} |", row.way.name(), cells.join(" | "))?;
    }
    Ok(writeln!(out)?)
}

/// What the project wants to reach: of which ratios, at least how much.
fn aims(rows: &[Row]) -> Vec<(String, Series, f64)> {
    let mut aims = Vec::new();
    let mut aim = |ours, theirs, measure: Measure, least| {
        if let (Some(ours), Some(theirs)) = (find(rows, ours), find(rows, theirs)) {
            let (what, ratios) = (measure.name(), ours.ratios(theirs, measure));
            let text = format!("{what}, {} ÷ {}", ours.way.name(), theirs.way.name());
            aims.push((text, ratios, least));
        }
    };
    for measure in Measure::ALL {
        aim(Way::Vxlan, Way::ByHand, measure, 0.98);
    }
    aim(Way::Udp, Way::Vxlan, Measure::Tcp, 0.4);
    aim(Way::Udp, Way::UdpOneByOne, Measure::Tcp, 5.0);
    aim(Way::Udp, Way::Flanneld, Measure::Tcp, 5.0);
    aims
}

/// The picture.
pub(super) fn picture(rows: &[Row]) -> String {
    let panels = Measure::ALL.map(|measure| {
        let (title, unit) = unit(measure);
        let bar = |row: &Row| Bar {
            name: row.way.name(),
            value: row.median(measure) / unit,
            ours: row.way.ours(),
        };
        Panel {
            title,
            bars: rows.iter().map(bar).collect(),
        }
    });
    picture::draw(&panels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn row(way: Way, tcp: f64) -> Row {
        let mut row = Row::new(way);
        for measure in Measure::ALL {
            row.seen[measure as usize] = vec![tcp; 3];
        }
        row
    }

    #[test]
    fn aims_are_judged_by_the_ratios_of_the_rounds() {
        let rows = [
            row(Way::Plain, 12e9),
            row(Way::ByHand, 11e9),
            row(Way::Vxlan, 10.9e9),
            row(Way::Udp, 4e9),
            row(Way::UdpOneByOne, 0.5e9),
        ];
        let options = Options {
            slice: Duration::from_millis(300),
            ..Options::default()
        };
        let gone = ["flanneld, udp: it is missing".to_owned()];
        let text = markdown(&rows, &options, &gone, "./dev bench").unwrap();
        let verdict = |start: &str| {
            let line = text.lines().find(|line| line.starts_with(start));
            line.map(|line| line.ends_with(": reached"))
        };
        assert_eq!(verdict("- TCP, twilld, vxlan ÷"), Some(true));
        assert_eq!(verdict("- TCP, twilld, udp ÷ twilld, vxlan"), Some(false));
        let one_by_one = verdict("- TCP, twilld, udp ÷ twilld, udp, one by one");
        assert_eq!(one_by_one, Some(true));
        assert_eq!(verdict("- TCP, twilld, udp ÷ flanneld"), None);
        assert!(
            text.contains("| twilld, udp | 4.00 | 4.00 | 4000000.00 |"),
            "{text}"
        );
        assert!(text.contains("**left out**: flanneld"), "{text}");
        let picture = picture(&rows);
        assert_eq!(picture.matches("<rect").count(), 20);
    }
}
