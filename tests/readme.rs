//! The README is true: the commands that it promises are run, in the order they stand in.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use cni_test_harness::{process, tools};

/// The Go plugins' names that twill takes.
const NAMES: [&str; 6] = [
    "bridge",
    "host-local",
    "portmap",
    "bandwidth",
    "tuning",
    "loopback",
];

const DEADLINE: Duration = Duration::from_secs(60);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn readme() -> Result<String> {
    std::fs::read_to_string(root().join("README.md")).context("read README.md")
}

/// The lines of the fenced block that opens with this.
fn block(readme: &str, opening: &str) -> Vec<String> {
    let lines = readme.lines().skip_while(|line| *line != opening).skip(1);
    lines
        .take_while(|line| *line != "```")
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_command_of_dev_that_it_names_exists() -> Result<()> {
    let help = process::check(Command::new(root().join("dev")).arg("help"))?.stdout_text();
    let readme = readme()?;
    let named: std::collections::BTreeSet<&str> = readme
        .split("./dev ")
        .skip(1)
        .filter_map(|rest| {
            rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '-')
                .next()
        })
        .collect();
    assert!(
        named.contains("demo") && named.contains("test"),
        "{named:?}"
    );
    for command in named {
        assert!(
            help.contains(&format!("\n  {command}")),
            "{command} is not in: {help}"
        );
    }
    Ok(())
}

#[test]
fn every_file_and_folder_that_it_names_exists() -> Result<()> {
    let readme = readme()?;
    let quoted = readme.split('`').skip(1).step_by(2);
    let paths = quoted.filter(|text| {
        [
            "conf/",
            "plugin/",
            "sidecar/",
            "kernel/",
            "cni-test-harness/",
        ]
        .iter()
        .any(|folder| text.starts_with(folder))
    });
    let linked = readme
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next());
    for path in paths.chain(linked) {
        assert!(root().join(path).exists(), "{path}");
    }
    Ok(())
}

#[test]
fn the_steps_onto_a_node_put_everything_in_place() -> Result<()> {
    let readme = readme()?;
    let steps = block(&readme, "```sh node");
    assert_eq!(
        steps.last().map(String::as_str),
        Some("systemctl enable --now twilld"),
        "no systemd runs where tests run, so that this one step is left out"
    );
    let built = tools::built("twilld")?;
    let release = built.parent().context("twilld is in a folder")?;
    let steps: Vec<String> = steps[..steps.len() - 1]
        .iter()
        .map(|step| {
            let built = "target/x86_64-unknown-linux-musl/release";
            step.replace(built, &release.display().to_string())
        })
        .collect();
    // A mount namespace of its own: the machine's folders are not touched.
    let covered = [
        "/opt",
        "/etc/cni",
        "/etc/systemd/system",
        "/etc/default",
        "/usr/local/sbin",
    ];
    let mut script = "set -e\n".to_owned();
    for folder in covered.iter().filter(|folder| Path::new(folder).is_dir()) {
        script += &format!("mount -t tmpfs none {folder}\n");
    }
    script += &steps.join("\n");
    script += "\n/usr/local/sbin/twilld --version\n";
    script += "CNI_COMMAND=VERSION /opt/cni/bin/twill\n";
    // In the place of something that is there.
    script += "echo theirs > /opt/cni/bin/portmap\n";
    let names = block(&readme, "```sh names").join("\n");
    script += &format!("{names}\n{names}\ncat /opt/cni/bin/portmap.go\n");
    for name in NAMES {
        script += &format!("/opt/cni/bin/{name} 2>&1\n");
    }
    script += "cat /etc/cni/net.d/10-twill.conflist /etc/default/twilld /etc/systemd/system/twilld.service\n";
    let mut unshare = Command::new("unshare");
    unshare
        .args(["-m", "sh", "-c", &script])
        .current_dir(root());
    let said = process::check_with(&mut unshare, b"", DEADLINE)?.stdout_text();
    for name in NAMES {
        let about = format!("CNI {name} plugin v");
        assert!(said.contains(&about), "{about} in {said}");
    }
    for expected in [
        "theirs\n",
        "supportedVersions",
        "\"type\": \"twill\"",
        "TWILLD_FLAGS=",
        "ExecStart=",
    ] {
        assert!(said.contains(expected), "{expected} in {said}");
    }
    Ok(())
}

#[test]
fn the_demo_is_kept_looked_at_and_taken_down() -> Result<()> {
    let dev = |args: &[&str]| -> Result<String> {
        let mut command = Command::new(root().join("dev"));
        command.args(args);
        // The first one builds what `./dev test` has not built.
        let deadline = Duration::from_secs(900);
        Ok(process::check_with(&mut command, b"", deadline)?.stdout_text())
    };
    let said = dev(&["demo"])?;
    assert!(
        said.contains("All 36 pings answered: every pod reaches every pod."),
        "{said}"
    );
    let kept = dev(&["demo", "--keep"])?;
    let state = PathBuf::from("/run/twill-demo");
    assert!(
        kept.contains("All 36 pings answered") && state.exists(),
        "{kept}"
    );
    dev(&["demo", "--down"])?;
    assert!(!state.exists());
    Ok(())
}
