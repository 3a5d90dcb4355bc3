//! containerd and runc, one per node, as a machine of the cluster runs them: the distribution's
//! ([`Programs`] knows of another).
//!
//! ```text
//!  unshare --pid --mount, in the node's network namespace
//!    └─ sh (pid 1)  binds the node's folders over /run/containerd, /var/lib/cni, /etc/cni/net.d, …
//!         └─ containerd ── shims ── runc ── containers
//! ```
//!
//! The pid and mount namespaces are what makes it clean: when pid 1 dies, the kernel kills every
//! shim and container, and their mounts go with the namespace; nothing is left to hunt for, and a
//! killed test leaves nothing that [`Netns`] does not sweep. This file decides how containerd
//! starts and ends; [`config`] what it is told, [`image`] what it runs, [`cri`] how it is asked.

mod cgroup;
pub mod config;
pub mod cri;
pub mod image;
mod inside;
mod pod;
mod programs;
mod setup;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

pub use self::cri::{Cri, ExecOutput, PodStatus};
pub use self::inside::Process;
pub use self::pod::{HostPort, PodSpec};
pub use self::programs::Programs;
pub use self::setup::Setup;
pub use k8s_cri::v1::Protocol;

use crate::netns::Netns;
use crate::process::{self, Daemon, Output};
use crate::tools::{self, Missing};
use crate::wait::{self, Look};

/// How long containerd may take from its start to its first answer, and a container to run.
const DEADLINE: Duration = Duration::from_secs(60);

/// The containerd namespace of `ctr run`; the CRI's is `k8s.io`.
const CTR_NAMESPACE: &str = "default";

/// What must be on the machine: for `skip_unless!`.
pub fn available() -> Result<(), Missing> {
    Programs::of_the_distribution()?;
    let programs = ["ctr", "runc", "unshare", "nsenter", "socat", "perl"];
    programs
        .iter()
        .try_for_each(|name| tools::program(name).map(drop))?;
    image::busybox().map(drop)
}

/// A running containerd; it, its containers and its folder go when it is dropped.
pub struct Containerd {
    daemon: Daemon,
    /// Pid 1 of its pid namespace, as this process sees it.
    init: u32,
    dir: PathBuf,
    cgroup: String,
    kept: bool,
}

impl Containerd {
    /// Starts the distribution's containerd on a node, waits until it answers, and imports the image.
    pub fn start(setup: &Setup<'_>) -> Result<Self> {
        Self::start_as(&Programs::of_the_distribution()?, setup)
    }

    /// The same with a containerd of choice.
    pub fn start_as(programs: &Programs, setup: &Setup<'_>) -> Result<Self> {
        let dir = setup.dir.join("containerd");
        for path in [&dir, setup.cni_bin_dir, setup.cni_conf_dir] {
            std::fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))?;
        }
        let config_path = config::write(&dir, setup)?;
        let mut command = Netns::open(setup.netns)?.command("unshare")?;
        command.args([
            "--fork",
            "--kill-child",
            "--pid",
            "--mount-proc",
            "sh",
            "-euc",
        ]);
        command.arg(setup::init_script(
            programs,
            &setup::binds(&dir, setup)?,
            &config_path,
        ));
        let mut daemon = Daemon::spawn("containerd", &mut command, &dir.join("containerd.log"))
            .with_context(|| format!("on node {}", setup.netns))?;
        let init = inside::wait_for_init(&mut daemon)?;
        let mut containerd = Self {
            daemon,
            init,
            dir,
            cgroup: cgroup::unique_name(),
            kept: false,
        };
        containerd.wait_ready()?;
        containerd.import(&image::write(&containerd.dir)?, image::REFERENCE)?;
        Ok(containerd)
    }

    fn wait_ready(&mut self) -> Result<()> {
        let socket = self.socket_path();
        self.daemon
            .wait_until("containerd's first answer", DEADLINE, || {
                Ok(match Cri::connect(&socket).and_then(|cri| cri.version()) {
                    Ok(_) => Look::Done(()),
                    Err(error) => Look::NotYet(format!("{error:#}")),
                })
            })
    }

    /// Imports an archive in which the image `reference` is.
    pub fn import(&mut self, archive: &Path, reference: &str) -> Result<()> {
        let archive = archive.to_string_lossy().into_owned();
        for namespace in [CTR_NAMESPACE, "k8s.io"] {
            self.ctr(&["--namespace", namespace, "images", "import", &archive])?;
        }
        // The CRI hears of it by an event; asked too early it would try to pull.
        let cri = self.cri()?;
        self.daemon
            .wait_until("the image to reach the CRI", DEADLINE, || {
                Ok(match cri.has_image(reference)? {
                    true => Look::Done(()),
                    false => Look::NotYet(format!("the CRI does not list {reference}")),
                })
            })
    }

    /// Its gRPC socket.
    pub fn socket_path(&self) -> PathBuf {
        config::socket_path(&self.dir)
    }

    /// The cgroup, from the root of its hierarchy, under which all its containers should be.
    pub fn cgroup(&self) -> String {
        format!("/{}", self.cgroup)
    }

    /// What stands in for /var/lib/cni on this node: `networks/<name>` is host-local's default.
    pub fn cni_state_dir(&self) -> PathBuf {
        self.dir.join("cni")
    }

    /// The last lines of its log, for failure messages.
    pub fn log_tail(&self) -> String {
        self.daemon.log_tail(20)
    }

    /// A client of its CRI.
    pub fn cri(&self) -> Result<Cri> {
        Cri::connect(&self.socket_path())
    }

    /// A pod of this node, for [`Cri::run_pod`]: its cgroup is under this containerd's own.
    pub fn pod(&self, name: &str) -> PodSpec {
        PodSpec::new(name, &self.cgroup)
    }

    /// A command that runs in containerd's network, mount and pid namespaces.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args([
            "--target",
            &self.init.to_string(),
            "--net",
            "--mount",
            "--pid",
        ]);
        command.arg(program);
        command
    }

    /// `ctr ARGS`; an exit code other than 0 is an error with the end of containerd's log.
    pub fn ctr(&self, args: &[&str]) -> Result<Output> {
        let mut command = self.command("ctr");
        command.env("CONTAINERD_SNAPSHOTTER", config::SNAPSHOTTER);
        command.arg("--address").arg(self.socket_path()).args(args);
        process::check_with(&mut command, b"", DEADLINE)
            .with_context(|| format!("the end of containerd's log:\n{}", self.log_tail()))
    }

    /// `ctr run --rm --cni`: runs `args` in a container with a network by the node's conflist, to
    /// its end; the network is taken away again.
    pub fn run_with_cni(&self, id: &str, args: &[&str]) -> Result<Output> {
        let cgroup = format!("/{}/{id}", self.cgroup);
        let mut ctr = vec!["--namespace", CTR_NAMESPACE, "run", "--rm", "--cni"];
        ctr.extend(["--cgroup", &cgroup, image::REFERENCE, id]);
        ctr.extend(args);
        self.ctr(&ctr)
    }

    /// The processes below it: pid 1, containerd, shims, containers.
    pub fn processes(&self) -> Result<Vec<Process>> {
        inside::processes(self.init)
    }

    /// The mount points below its state folder: what runs or was left behind there.
    pub fn mounts(&self) -> Result<Vec<PathBuf>> {
        inside::mounts_below(self.init, &[&self.dir, Path::new("/run/containerd")])
    }

    /// Lets it run on, with all its containers, when this is dropped.
    pub fn keep(&mut self) {
        self.kept = true;
        self.daemon.keep();
    }

    fn end(&mut self) -> Result<()> {
        inside::kill_init(self.init)?;
        // `unshare` ends when its child, pid 1, is gone; that is when everything inside is.
        wait::until_true("the end of containerd's namespaces", DEADLINE, || {
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

impl Drop for Containerd {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Err(error) = self.end() {
            eprintln!("clean up containerd in {}: {error:#}", self.dir.display());
        }
    }
}
