//! The tests of the kernel's crate and the plugin's that look at namespaces, once more on an older
//! kernel: the same programs, built here and run in the virtual machine.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cni_test_harness::vm::{File, Vm};
use cni_test_harness::{process, skip_unless};
use serde_json::Value;

/// The tests' programs. Those that need more than the machine has (Go's plugins) are not among them.
const SUITES: [&str; 5] = ["elements", "tc", "attach", "bridge", "surroundings"];

/// The paths of the programs, which are built if they are not.
fn built() -> Result<BTreeMap<String, PathBuf>> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(["test", "--no-run", "--locked", "--message-format=json"])
        .args(["-p", "kernel", "-p", "twill"])
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    for suite in SUITES {
        cargo.args(["--test", suite]);
    }
    let output = process::run(&mut cargo, b"", Duration::from_secs(1800))?;
    ensure!(output.status.success(), "{}", output.stderr_text());
    let mut found = BTreeMap::new();
    for line in output.stdout_text().lines() {
        let message: Value = serde_json::from_str(line).context("a message of cargo's")?;
        let name = message["target"]["name"].as_str();
        if let Some((name, path)) = name.zip(message["executable"].as_str()) {
            found.insert(name.to_owned(), PathBuf::from(path));
        }
    }
    Ok(found)
}

#[test]
#[ignore = "boots a virtual machine: ./dev test-vm"]
fn what_holds_on_the_kernel_at_hand_holds_on_an_older_one() -> Result<()> {
    let mut vm = skip_unless!(Vm::find());
    // The programs lie in it twice while it starts.
    vm.memory_mib = 2048;
    vm.deadline = Duration::from_secs(1800);
    let built = built()?;
    let mut files = vec![];
    for suite in SUITES {
        let path = built.get(suite).with_context(|| format!("no {suite}"))?;
        files.push(File::new(path, format!("/srv/{suite}")));
    }
    let script = format!(
        r#"#!/bin/sh
mkdir -p /var/lib /opt/cni/bin /usr/lib/cni
failed=
for suite in {}; do
    echo "@ $suite"
    RUST_BACKTRACE=0 CI=true /srv/$suite || failed="$failed $suite"
done
test -z "$failed" || {{ echo "failed:$failed"; exit 1; }}
"#,
        SUITES.join(" ")
    );
    let text = vm.run(&script, &files)?.success()?.text;
    assert_eq!(text.matches("test result: ok").count(), SUITES.len());
    Ok(())
}
