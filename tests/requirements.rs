//! Every requirement of CNI has a test, and every test that is named for one exists: the table is
//! requirements.md.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use cni_test_harness::suite;

/// The specification's requirements.
const SPECIFICATION: &str = "G1 G2 G3 G4 G5 G6 A1 A2 A3 A4 A5 A6 D1 D2 D3 D4 D5 D6 C1 C2 C3 C4 C5 \
    S1 S2 S3 GC1 GC2 GC3 GC4 V1 V2 X1";

/// What runtimes and the reference plugins made of it. (R3, speed, is `./dev bench`'s.)
const PRACTICE: &str = "P1 P2 P3 P4 P5 P6 P7 P8 P9 P10 P11 P12 P13 P14 P15 \
    B1 B2 B3 B4 B5 B6 B7 B8 B9 B10 B11 B12 I1 I2 I3 I4 F1 F2 F3 F4 M1 M2 M3 M4 R1 R2";

/// The rows of the tables: an ID, and the tests in backquotes in the last cell.
fn rows() -> BTreeMap<&'static str, Vec<&'static str>> {
    let lines = include_str!("requirements.md").lines();
    let cells = lines.filter(|line| line.starts_with("| ")).map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let tests = cells.last().copied().unwrap_or_default();
        let quoted = tests.split('`').skip(1).step_by(2).collect();
        (cells[0], quoted)
    });
    cells.filter(|(id, _)| *id != "ID").collect()
}

#[test]
fn every_requirement_has_a_test() {
    let rows = rows();
    let all = SPECIFICATION
        .split_whitespace()
        .chain(PRACTICE.split_whitespace());
    let without: Vec<&str> = all
        .filter(|id| rows.get(id).is_none_or(Vec::is_empty))
        .collect();
    assert!(without.is_empty(), "no test for {without:?}");
    let empty: Vec<_> = rows.iter().filter(|(_, tests)| tests.is_empty()).collect();
    assert!(empty.is_empty(), "no test in {empty:?}");
}

#[test]
fn every_test_that_is_named_exists() -> Result<()> {
    let promises: BTreeSet<&str> = suite::promises()
        .iter()
        .map(|promise| promise.name)
        .collect();
    for (id, tests) in rows() {
        for test in tests {
            let (file, name) = test
                .split_once("::")
                .with_context(|| format!("{id}: {test}"))?;
            if file == "suite" {
                ensure!(
                    promises.contains(name),
                    "{id}: the suite promises no {name}"
                );
                continue;
            }
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
            let text = std::fs::read_to_string(&path).with_context(|| format!("{id}: {file}"))?;
            // A replayed case is a line of a macro: its test's name, and the case's.
            let is_case = |line: &str| line.trim_start().starts_with(&format!("{name} \""));
            let there = text.contains(&format!("fn {name}(")) || text.lines().any(is_case);
            ensure!(there, "{id}: {file} has no test {name}");
        }
    }
    Ok(())
}

/// A test whose name begins with an ID is in that ID's row.
#[test]
fn every_test_that_carries_an_id_is_in_its_row() -> Result<()> {
    let rows = rows();
    for file in [
        "tests/protocol.rs",
        "tests/gc_status.rs",
        "tests/arguments.rs",
    ] {
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file))?;
        let names = text
            .lines()
            .filter_map(|line| line.strip_prefix("fn ")?.split_once('('));
        for (name, _) in names {
            let ids = name.split('_').map(str::to_uppercase);
            for id in ids.take_while(|id| rows.contains_key(id.as_str())) {
                let listed = rows[id.as_str()].contains(&format!("{file}::{name}").as_str());
                ensure!(listed, "{file}: {name} is not in the row of {id}");
            }
        }
    }
    Ok(())
}
