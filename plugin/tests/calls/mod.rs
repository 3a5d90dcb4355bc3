//! What tests do on a node of their own: run the plugin under one of its names, run what the Go
//! plugins' programs would do, and look with other people's tools.

#![allow(dead_code, reason = "each test program uses a part of it")]

pub(crate) mod go;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::path::Path;
use std::process::Command;

use nix::sched::{CloneFlags, setns};
use serde_json::Value;

/// What a run answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) exit: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Answer {
    /// The document on stdout; null if there is none.
    pub(crate) fn json(&self) -> Value {
        match self.stdout.as_str() {
            "" => Value::Null,
            text => serde_json::from_str(text).unwrap_or_else(|_| panic!("no JSON: {self:?}")),
        }
    }

    /// Fails unless the run succeeded.
    pub(crate) fn ok(self) -> Answer {
        assert_eq!(self.exit, 0, "{} {}", self.stdout, self.stderr);
        self
    }

    /// The code and the text of the error that the run must have ended in.
    pub(crate) fn failure(&self) -> (u64, String) {
        assert_eq!(self.exit, 1, "{}", self.stdout);
        let document = self.json();
        let msg = document["msg"].as_str().unwrap().to_owned();
        (document["code"].as_u64().unwrap(), msg)
    }

    /// The text of the error that the run must have ended in.
    pub(crate) fn error(&self) -> String {
        self.failure().1
    }
}

/// The variables of a verb for the container `abc`'s `eth0` in the sandbox `/run/netns/pod`, with
/// others in their place or beside them.
pub(crate) fn variables<'a>(
    verb: &'a str,
    env: &[(&'a str, &'a str)],
) -> BTreeMap<&'a str, &'a str> {
    let mut vars = BTreeMap::from([
        ("CNI_COMMAND", verb),
        ("CNI_CONTAINERID", "abc"),
        ("CNI_NETNS", "/run/netns/pod"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin"),
    ]);
    vars.extend(env.iter().copied());
    vars
}

/// Runs twill under a name, in the calling thread's namespaces, with these variables alone.
pub(crate) fn run_with(name: &str, vars: &BTreeMap<&str, &str>, stdin: &str) -> Answer {
    let (mut stdout, mut stderr) = (vec![], vec![]);
    let exit = twill::run(twill::Process {
        program: &OsString::from(format!("/opt/cni/bin/{name}")),
        env: &|key| vars.get(key).map(OsString::from),
        stdin: &mut stdin.as_bytes(),
        stdout: &mut stdout,
        stderr: &mut stderr,
    });
    Answer {
        exit,
        stdout: String::from_utf8(stdout).unwrap(),
        stderr: String::from_utf8(stderr).unwrap(),
    }
}

/// Runs a verb of twill under a name; see [`variables`].
pub(crate) fn run(name: &str, verb: &str, env: &[(&str, &str)], conf: &Value) -> Answer {
    run_with(name, &variables(verb, env), &conf.to_string())
}

/// The same, which must succeed; the document on stdout.
pub(crate) fn ok(name: &str, verb: &str, env: &[(&str, &str)], conf: &Value) -> Value {
    run(name, verb, env, conf).ok().json()
}

/// Runs a tool in the calling thread's namespaces, and returns what it printed.
pub(crate) fn tool(command: &str) -> String {
    let (ok, stdout, stderr) = try_tool(command);
    assert!(ok, "{command}: {stderr}");
    stdout
}

/// The same for one that may fail: whether it succeeded, stdout, stderr.
pub(crate) fn try_tool(command: &str) -> (bool, String, String) {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap_or_else(|error| panic!("{command}: {error}"));
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.success(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// Runs `f` in a thread in the sandbox; "" is the node itself.
pub(crate) fn inside<T: Send>(pod: &str, f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            if !pod.is_empty() {
                let file = File::open(Path::new("/run/netns").join(pod)).unwrap();
                setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            }
            f()
        });
        worker
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Writes the daemon's file, as a daemon does.
pub(crate) fn write_subnet_env() {
    let text = include_str!("../../../conf/subnet.env");
    std::fs::create_dir_all("/run/flannel").unwrap();
    std::fs::write("/run/flannel/new", text).unwrap();
    std::fs::rename("/run/flannel/new", "/run/flannel/subnet.env").unwrap();
}

/// The addresses that a network has reserved.
pub(crate) fn reserved(network: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(Path::new("/var/lib/cni/networks").join(network)) else {
        return vec![];
    };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let is_address = |name: &String| name.parse::<std::net::IpAddr>().is_ok();
    let mut names: Vec<String> = names.filter(is_address).collect();
    names.sort();
    names
}

/// How many containers have a scratch file.
pub(crate) fn scratch_files() -> usize {
    std::fs::read_dir("/var/lib/cni/flannel").map_or(0, Iterator::count)
}

/// Ends the test as skipped, which fails in CI.
pub(crate) fn skip(reason: &str) {
    eprintln!("skipped: {reason}");
    assert!(std::env::var_os("CI").is_none(), "skipped in CI: {reason}");
}
