//! A look into a runtime's pid and mount namespaces from outside, through /proc.
//!
//! It only looks, but for [`kill`]; what the processes and mounts mean is the caller's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use crate::process::Daemon;
use crate::wait::Look;

/// A process of a runtime's tree; zombies are not among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its pid as this process sees it.
    pub pid: u32,
    /// Its name, cut by the kernel at 15 characters.
    pub name: String,
}

/// Waits for the child of `unshare`, which is pid 1 of the new pid namespace.
pub(super) fn wait_for_init(daemon: &mut Daemon) -> Result<u32> {
    let parent = daemon.pid();
    daemon.wait_until(
        "pid 1 of the runtime's namespace",
        Duration::from_secs(10),
        || {
            let child = pids()?.into_iter().find(|pid| {
                let parent_of = stat(*pid).map(|stat| stat.parent);
                parent_of == Some(parent)
            });
            Ok(child.map_or_else(|| Look::NotYet("no child yet".to_owned()), Look::Done))
        },
    )
}

/// Kills a process: by pid 1 of a namespace all that is in it. One that is gone already is fine.
pub(super) fn kill(pid: u32) -> Result<()> {
    let target = Pid::from_raw(i32::try_from(pid).context("a pid of the kernel's")?);
    match signal::kill(target, Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno).with_context(|| format!("kill process {pid}")),
    }
}

/// `init` and all its descendants: every process of its pid namespace and of those below it (a
/// container has one of its own), because orphans are handed to the nearest namespace's pid 1.
pub(super) fn processes(init: u32) -> Result<Vec<Process>> {
    let all = pids()?
        .into_iter()
        .filter_map(|pid| Some((pid, stat(pid)?)));
    let all: BTreeMap<u32, Stat> = all.collect();
    let inside = |mut pid: u32| {
        while pid != init && pid > 1 {
            pid = all.get(&pid).map_or(0, |stat| stat.parent);
        }
        pid == init
    };
    let alive = all.iter().filter(|(_, stat)| stat.state != 'Z');
    let inside = alive.filter(|(pid, _)| inside(**pid));
    Ok(inside
        .map(|(&pid, stat)| Process {
            pid,
            name: stat.name.clone(),
        })
        .collect())
}

/// The mount points below `dirs` in the mount namespace of `init`.
pub(super) fn mounts_below(init: u32, dirs: &[&Path]) -> Result<Vec<PathBuf>> {
    let path = format!("/proc/{init}/mountinfo");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    // Field 5 is the mount point (proc_pid_mountinfo(5)).
    let points = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from);
    let below = |point: &PathBuf| {
        dirs.iter()
            .any(|dir| point != dir && point.starts_with(dir))
    };
    Ok(points.filter(below).collect())
}

fn pids() -> Result<Vec<u32>> {
    let entries = std::fs::read_dir("/proc").context("read /proc")?;
    Ok(entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect())
}

struct Stat {
    name: String,
    state: char,
    parent: u32,
}

/// None for a process that is gone.
fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// `PID (NAME) STATE PPID …`; the name may hold spaces and parentheses (proc_pid_stat(5)).
fn parse_stat(text: &str) -> Option<Stat> {
    let (before, after) = text.rsplit_once(')')?;
    let name = before.split_once('(')?.1.to_owned();
    let mut fields = after.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some(Stat {
        name,
        state,
        parent: fields.next()?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_may_look_like_the_rest_of_the_line() {
        let stat = parse_stat("12 (a) S 1 (b)) Z 7 12 12").unwrap();
        assert_eq!(
            (stat.name.as_str(), stat.state, stat.parent),
            ("a) S 1 (b)", 'Z', 7)
        );
    }
}
