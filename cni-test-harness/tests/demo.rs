//! The demo does what it prints: every pod answers, the commands it names work, and nothing stays.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use cni_test_harness::{demo, netns, process, skip_unless, wait};

const DEADLINE: Duration = Duration::from_secs(120);

fn harness(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cni-test-harness"));
    command.args(args);
    command
}

fn nothing_is_left() -> Result<()> {
    assert_eq!(netns::names_with_prefix(demo::NAME), [] as [&str; 0]);
    assert!(!Path::new(demo::DIR).exists());
    for process in std::fs::read_dir("/proc")?.flatten() {
        let Ok(line) = std::fs::read(process.path().join("cmdline")) else {
            continue;
        };
        let line = String::from_utf8_lossy(&line).into_owned();
        assert!(!line.contains(demo::DIR), "still running: {line}");
    }
    Ok(())
}

/// One test, because there is one demo on a machine.
#[test]
fn the_demo_stands_as_it_says_and_goes_without_a_trace() -> Result<()> {
    skip_unless!(
        !demo::stands(),
        "a demo stands on this machine: `./dev demo --down`"
    );
    let args = ["demo", "--nodes", "2", "--pods", "1", "--keep"];
    let shown = process::check_with(&mut harness(&args), b"", DEADLINE)?.stdout_text();
    assert!(shown.contains("All 4 pings answered"), "{shown}");
    let (_, look) = shown
        .split_once("How to look around")
        .context("no way to look around")?;
    let commands = look
        .lines()
        .filter_map(|line| line.split_once('#'))
        .map(|(line, _)| line.trim());
    let commands: Vec<&str> = commands
        .filter(|command| !command.starts_with("./dev"))
        .collect();
    assert!(commands.len() > 5, "{look}");
    for command in commands {
        process::check(Command::new("sh").args(["-c", command]))?;
    }
    process::check(&mut harness(&["demo", "--down"]))?;
    nothing_is_left()?;

    // A run that is killed in the middle leaves things, which --down removes.
    let mut killed = harness(&args).process_group(0).spawn()?;
    wait::until_true("the demo to begin", DEADLINE, || Ok(demo::stands()))?;
    killed.kill()?;
    killed.wait()?;
    process::check(&mut harness(&["demo", "--down"]))?;
    nothing_is_left()?;

    process::check_with(
        &mut harness(&["demo", "--nodes", "1", "--pods", "2"]),
        b"",
        DEADLINE,
    )?;
    nothing_is_left()
}
