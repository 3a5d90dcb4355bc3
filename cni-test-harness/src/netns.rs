//! Named network namespaces: made, entered, removed.
//!
//! A name carries the process that made it (`twh-<pid>-<n>-<label>`), so that what a killed run
//! left behind is recognised and removed by the next one. Children enter by setns
//! between fork and exec, not through `ip netns exec`, which puts a fresh /sys over the old one
//! and so hides the cgroups from container runtimes.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process;
use crate::wait;

const RUN_DIR: &str = "/run/netns";
const PREFIX: &str = "twh-";

/// A name no other namespace or folder of this machine has: `twh-<pid>-<n>-<label>`.
pub fn unique_name(label: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    static SWEEP: Once = Once::new();
    SWEEP.call_once(sweep);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{PREFIX}{}-{number}-{label}", std::process::id())
}

/// A named network namespace (as `ip netns` knows it); removed when dropped, unless kept.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
    owned: bool,
}

impl Netns {
    /// Makes a namespace with a unique name; its loopback is up.
    pub fn new(label: &str) -> Result<Self> {
        Self::create(&unique_name(label))
    }

    /// `ip netns add NAME; ip -n NAME link set lo up`
    pub fn create(name: &str) -> Result<Self> {
        process::check(Command::new("ip").args(["netns", "add", name]))?;
        let netns = Self::owned(name)?;
        netns.ip(&["link", "set", "lo", "up"])?;
        Ok(netns)
    }

    /// Makes many at once in one `ip -batch`: their loopbacks stay down, as a runtime leaves them.
    pub fn create_many(names: &[String]) -> Result<Vec<Self>> {
        let batch: String = names
            .iter()
            .map(|name| format!("netns add {name}\n"))
            .collect();
        let mut ip = Command::new("ip");
        process::check_with(
            ip.args(["-batch", "-"]),
            batch.as_bytes(),
            process::DEADLINE,
        )?;
        names.iter().map(|name| Self::owned(name)).collect()
    }

    fn owned(name: &str) -> Result<Self> {
        let mut netns = Self::open(name)?;
        netns.owned = true;
        Ok(netns)
    }

    /// A namespace that somebody else made and removes.
    pub fn open(name: &str) -> Result<Self> {
        let path = Path::new(RUN_DIR).join(name);
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        Ok(Self {
            name: name.to_owned(),
            file,
            owned: false,
        })
    }

    /// Its name under /run/netns.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its path, as CNI_NETNS gives it.
    pub fn path(&self) -> PathBuf {
        Path::new(RUN_DIR).join(&self.name)
    }

    /// Leaves the namespace standing when this is dropped.
    pub fn keep(&mut self) {
        self.owned = false;
    }

    /// A command that will run inside.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let file = self
            .file
            .try_clone()
            .context("duplicate a namespace's descriptor")?;
        let mut command = Command::new(program);
        // SAFETY: setns is one system call and allocates nothing, so it may run between fork and
        // exec; the descriptor is owned by the closure.
        unsafe {
            command.pre_exec(move || {
                setns(file.as_fd(), CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from)
            });
        }
        Ok(command)
    }

    /// Runs a program inside to its end; an exit code other than 0 is an error.
    pub fn exec(&self, program: &str, args: &[&str]) -> Result<process::Output> {
        process::check(self.command(program)?.args(args))
            .with_context(|| format!("in namespace {}", self.name))
    }

    /// `ip ARGS` inside.
    pub fn ip(&self, args: &[&str]) -> Result<process::Output> {
        self.exec("ip", args)
    }

    /// `ip -batch -` inside: one line per command, the first failure ends it.
    pub fn ip_batch(&self, lines: &str) -> Result<()> {
        let mut ip = self.command("ip")?;
        process::check_with(
            ip.args(["-batch", "-"]),
            lines.as_bytes(),
            process::DEADLINE,
        )
        .with_context(|| format!("in namespace {}:\n{lines}", self.name))?;
        Ok(())
    }

    /// Moves the calling thread into the namespace for good.
    pub fn enter(&self) -> Result<()> {
        setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("enter namespace {}", self.name))
    }

    /// Runs `work` on a thread of its own inside the namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| self.enter().and_then(|()| work()));
            inside
                .join()
                .map_err(|_| anyhow!("a thread in namespace {} panicked", self.name))?
        })
    }

    /// Writes `/proc/sys/net/<key>` (with slashes) inside.
    pub fn set_sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys/net").join(key);
        self.run(|| std::fs::write(&path, value).with_context(|| format!("write {path:?}")))
    }

    /// Reads `/proc/sys/net/<key>` (with slashes) inside, trimmed.
    pub fn sysctl(&self, key: &str) -> Result<String> {
        let path = Path::new("/proc/sys/net").join(key);
        let read = || std::fs::read_to_string(&path).with_context(|| format!("read {path:?}"));
        Ok(self.run(read)?.trim().to_owned())
    }

    /// The processes inside, by `ip netns pids`.
    pub fn pids(&self) -> Result<Vec<Pid>> {
        pids(&self.name)
    }

    /// Removes the name now; the namespace goes with its last process.
    pub fn remove(self) {
        drop(self);
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if self.owned {
            let _ = process::check(Command::new("ip").args(["netns", "del", &self.name]));
        }
    }
}

fn pids(name: &str) -> Result<Vec<Pid>> {
    let output = process::check(Command::new("ip").args(["netns", "pids", name]))?;
    let parse = |line: &str| line.trim().parse().map(Pid::from_raw);
    output
        .stdout_text()
        .lines()
        .map(parse)
        .collect::<Result<_, _>>()
        .context("ip netns pids")
}

/// The names under /run/netns that begin with `prefix`.
pub fn names_with_prefix(prefix: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(RUN_DIR) else {
        return Vec::new();
    };
    let names = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| name.starts_with(prefix)).collect();
    names.sort();
    names
}

/// Kills every process in a namespace, waits for their end and removes its name. For namespaces of
/// our own making only: all that runs in them was started by us.
pub fn tear_down(name: &str) -> Result<()> {
    wait::until_true(
        &format!("the processes in {name} to end"),
        process::DEADLINE,
        || {
            let running = pids(name)?;
            for pid in &running {
                let _ = kill(*pid, Signal::SIGKILL);
            }
            Ok(running.is_empty())
        },
    )?;
    process::check(Command::new("ip").args(["netns", "del", name])).map(drop)
}

/// Removes namespaces, their processes and state folders whose maker is dead.
fn sweep() {
    let dead = |name: &String| {
        let pid = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next());
        let pid = pid.and_then(|pid| pid.parse::<u32>().ok());
        pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
    };
    names_with_prefix(PREFIX)
        .iter()
        .filter(|name| dead(name))
        .for_each(|name| drop(tear_down(name)));
    let Ok(entries) = std::fs::read_dir(std::env::temp_dir()) else {
        return;
    };
    for entry in entries.flatten() {
        if dead(&entry.file_name().to_string_lossy().into_owned()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
