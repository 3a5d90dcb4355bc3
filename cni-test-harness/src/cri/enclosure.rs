//! The place in which a container runtime runs on a node.
//!
//! ```text
//!  unshare --pid --mount, in the node's network namespace
//!    └─ sh (pid 1)  binds the node's folders over the machine's: /var/lib/cni, /etc/cni/net.d, …
//!         └─ the runtime ── shims or conmon ── runc ── containers
//! ```
//!
//! The pid and mount namespaces are what makes it clean: when pid 1 dies, the kernel kills every
//! shim and container, and their mounts go with the namespace; nothing is left to hunt for, and a
//! killed test leaves nothing that [`Netns`] does not sweep. Pid 1 also does what systemd does for a
//! runtime: one that was killed is started again, and finds its containers running.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{Cri, DEADLINE, PodSpec, Process, Setup, cgroup, inside, setup};
use crate::netns::Netns;
use crate::process::Daemon;
use crate::wait::{self, Look};

/// A runtime, its containers and its folder; all of them go when it is dropped.
pub struct Enclosure {
    runtime: &'static str,
    daemon: Daemon,
    /// Pid 1 of its pid namespace, as this process sees it.
    init: u32,
    dir: PathBuf,
    cgroup: String,
    kept: bool,
}

impl Enclosure {
    /// Starts `runtime` by `line`, a simple command of the shell, with its folder `dir`, and waits
    /// until it answers. `binds` are (folder, over what), beyond those of every runtime.
    pub(crate) fn start(
        runtime: &'static str,
        setup: &Setup<'_>,
        dir: &Path,
        binds: &[(PathBuf, PathBuf)],
        line: &str,
    ) -> Result<Self> {
        let mut command = Netns::open(setup.netns)?.command("unshare")?;
        command.args(["--fork", "--kill-child", "--pid", "--mount-proc"]);
        command.args(["sh", "-euc"]);
        command.arg(init_script(&all_binds(dir, setup, binds)?, line));
        let log_path = dir.join(format!("{runtime}.log"));
        let mut daemon = Daemon::spawn(runtime, &mut command, &log_path)
            .with_context(|| format!("on node {}", setup.netns))?;
        let init = inside::wait_for_init(&mut daemon)?;
        let mut enclosure = Self {
            runtime,
            daemon,
            init,
            dir: dir.to_owned(),
            cgroup: cgroup::unique_name(),
            kept: false,
        };
        enclosure.wait_until_answering()?;
        Ok(enclosure)
    }

    fn wait_until_answering(&mut self) -> Result<()> {
        let socket = self.socket_path();
        let what = format!("{}'s first answer", self.runtime);
        self.daemon.wait_until(&what, DEADLINE, || {
            Ok(match Cri::connect(&socket).and_then(|cri| cri.version()) {
                Ok(_) => Look::Done(()),
                Err(error) => Look::NotYet(format!("{error:#}")),
            })
        })
    }

    /// Kills the runtime as a crash would, its containers left running, and waits until the next
    /// one answers. Clients of the old one are of no more use.
    pub fn crash(&mut self) -> Result<()> {
        let all = self.processes()?;
        let Some(old) = all.into_iter().find(|found| found.name == self.runtime) else {
            bail!("no {} is running: {}", self.runtime, self.log_tail());
        };
        inside::kill(old.pid)?;
        let what = format!("the end of {}, process {}", self.runtime, old.pid);
        wait::until_true(&what, DEADLINE, || Ok(!self.processes()?.contains(&old)))?;
        self.wait_until_answering()
    }

    /// Waits until the CRI has the image `reference`: asked too early it would try to pull.
    pub(crate) fn wait_for_image(&mut self, reference: &str) -> Result<()> {
        let cri = self.cri()?;
        self.daemon
            .wait_until("the image to reach the CRI", DEADLINE, || {
                Ok(match cri.has_image(reference)? {
                    true => Look::Done(()),
                    false => Look::NotYet(format!("the CRI does not list {reference}")),
                })
            })
    }

    /// Its folder, which is the runtime's.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The runtime's gRPC socket.
    pub fn socket_path(&self) -> PathBuf {
        setup::socket_path(&self.dir, self.runtime)
    }

    /// The cgroup, from the root of its hierarchy, under which all its containers should be.
    pub fn cgroup(&self) -> String {
        format!("/{}", self.cgroup)
    }

    /// What stands in for /var/lib/cni on this node: `networks/<name>` is host-local's default.
    pub fn cni_state_dir(&self) -> PathBuf {
        self.dir.join("cni")
    }

    /// The names of what libcni remembers of ADDs that no DEL has followed.
    pub fn cached_results(&self) -> Result<Vec<String>> {
        let dir = self.cni_state_dir().join("results");
        let entries = match std::fs::read_dir(&dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            read => read.with_context(|| format!("list {}", dir.display()))?,
        };
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect()
    }

    /// The last lines of its log, for failure messages.
    pub fn log_tail(&self) -> String {
        self.daemon.log_tail(20)
    }

    /// A client of its CRI.
    pub fn cri(&self) -> Result<Cri> {
        Cri::connect(&self.socket_path())
    }

    /// A pod of this node, for [`Cri::run_pod`]: its cgroup is under this runtime's own.
    pub fn pod(&self, name: &str) -> PodSpec {
        PodSpec::new(name, &self.cgroup)
    }

    /// A command that runs in its network, mount and pid namespaces.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg("--target").arg(self.init.to_string());
        command.args(["--net", "--mount", "--pid"]).arg(program);
        command
    }

    /// The processes in it: pid 1, the runtime, shims, containers.
    pub fn processes(&self) -> Result<Vec<Process>> {
        inside::processes(self.init)
    }

    /// The mount points below its folder and below `run_dir`, where the runtime keeps what runs.
    pub(crate) fn mounts(&self, run_dir: &Path) -> Result<Vec<PathBuf>> {
        inside::mounts_below(self.init, &[&self.dir, run_dir])
    }

    /// Lets it run on, with all its containers, when this is dropped.
    pub fn keep(&mut self) {
        self.kept = true;
        self.daemon.keep();
    }

    fn end(&mut self) -> Result<()> {
        inside::kill(self.init)?;
        // `unshare` ends when its child, pid 1, is gone; that is when everything inside is.
        wait::until_true("the end of a runtime's namespaces", DEADLINE, || {
            Ok(self.daemon.ended()?.is_some())
        })?;
        cgroup::remove(&self.cgroup)?;
        match std::fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", self.dir.display()))
            }
            _ => Ok(()), // the node's folder may have gone first
        }
    }
}

impl Drop for Enclosure {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Err(error) = self.end() {
            let (runtime, dir) = (self.runtime, self.dir.display());
            eprintln!("clean up {runtime} in {dir}: {error:#}");
        }
    }
}

/// What is put over the machine's folders: paths that programs have built in, so that nodes do not
/// share them and the machine's own runtime is left alone. What is missing there is made, and stays
/// as an empty folder: a bind needs one.
fn all_binds(
    dir: &Path,
    setup: &Setup<'_>,
    more: &[(PathBuf, PathBuf)],
) -> Result<Vec<(PathBuf, PathBuf)>> {
    let over = |own: PathBuf, path: &str| (own, PathBuf::from(path));
    let mut binds = vec![
        over(dir.join("cni"), "/var/lib/cni"), // libcni's results, host-local's reservations
        over(setup.cni_conf_dir.to_owned(), "/etc/cni/net.d"), // ctr run --cni
        over(setup.cni_bin_dir.to_owned(), "/opt/cni/bin"), // ctr run --cni
    ];
    binds.extend(more.iter().chain(&setup.binds).cloned());
    for (own, path) in &binds {
        for dir in [own, path] {
            std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        }
        if own.to_string_lossy().contains('\'') {
            bail!(
                "a quote in the path {}: choose another folder",
                own.display()
            );
        }
    }
    Ok(binds)
}

/// What pid 1 does: the binds, the runtime, and reaping what is left to it until the runtime ends
/// otherwise than by SIGKILL (137 in a shell).
fn init_script(binds: &[(PathBuf, PathBuf)], line: &str) -> String {
    let mount = |(own, path): &(PathBuf, PathBuf)| {
        format!("mount --bind '{}' '{}'\n", own.display(), path.display())
    };
    let mounts: String = binds.iter().map(mount).collect();
    format!(
        "{mounts}code=137\nwhile [ $code = 137 ]; do\n  {line} && code=0 || code=$?\ndone\nexit $code\n"
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{netns, process};

    #[test]
    fn only_what_was_killed_is_started_again() {
        let count = |end: &str| {
            let runs = std::env::temp_dir().join(netns::unique_name("runs"));
            // Once more than it is killed, whatever the script makes of that.
            let line = format!(
                "sh -c 'echo run >>{0}; [ $(wc -l <{0}) -lt 3 ] || exit 0; {end}'",
                runs.display()
            );
            let mut sh = Command::new("sh");
            sh.args(["-euc", &init_script(&[], &line)]);
            let code = process::run(&mut sh, b"", Duration::from_secs(10))
                .unwrap()
                .code();
            let text = std::fs::read_to_string(&runs).unwrap();
            std::fs::remove_file(&runs).unwrap();
            (text.lines().count(), code)
        };
        assert_eq!(count("kill -9 $$"), (3, 0));
        assert_eq!(count("kill $$"), (1, 128 + 15));
        assert_eq!(count("exit 1"), (1, 1));
    }
}
