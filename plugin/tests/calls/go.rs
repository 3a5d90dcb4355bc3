//! The Go plugins, where `./dev install` puts them (cni-test-harness/go-tools.txt names them).

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::{Answer, variables};

/// The folder of the node's in which Go plugins are put.
pub(crate) const DIR: &str = "/run/cni-bin";

/// The path of a Go plugin in the cache.
fn cached(name: &str) -> Option<PathBuf> {
    let list = include_str!("../../../cni-test-harness/go-tools.txt");
    let version = list.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(name)).then(|| words.nth(1))?
    })?;
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let home = || set("HOME").unwrap_or_default().join(".cache");
    let cache = set("TWILL_CACHE")
        .unwrap_or_else(|| set("XDG_CACHE_HOME").unwrap_or_else(home).join("twill"));
    let path = cache.join(format!("go/{name}@{version}/{name}"));
    path.is_file().then_some(path)
}

/// Installs Go plugins on the node, each under a name; false if one is not on this machine.
#[must_use]
pub(crate) fn install(plugins: &[(&str, &str)]) -> bool {
    fs::create_dir_all(DIR).unwrap();
    for (plugin, name) in plugins {
        let Some(path) = cached(plugin) else {
            super::skip(&format!(
                "the Go plugin {plugin} is missing: run `./dev install`"
            ));
            return false;
        };
        symlink(path, format!("{DIR}/{name}")).unwrap();
    }
    true
}

/// Runs an installed Go plugin; see [`variables`].
pub(crate) fn run(name: &str, verb: &str, env: &[(&str, &str)], conf: &Value) -> Answer {
    let mut vars = variables(verb, &[("CNI_PATH", DIR)]);
    vars.extend(env.iter().copied());
    let mut child = Command::new(format!("{DIR}/{name}"))
        .envs(vars)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(conf.to_string().as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Answer {
        exit: output.status.code().unwrap(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}
