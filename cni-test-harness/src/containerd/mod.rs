//! containerd and runc, one per node, as a machine of the cluster runs them: the distribution's
//! ([`Programs`] knows of another), each in an [`Enclosure`].
//!
//! This file decides how containerd is started and fed; [`config`] what it is told.

pub mod config;
mod programs;

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

pub use self::programs::Programs;

use crate::cri::{self, DEADLINE, Enclosure, Setup, image};
use crate::process::{self, Output};
use crate::tools::{self, Missing};

/// The name of its program, its folder and its socket.
const RUNTIME: &str = "containerd";

/// Where shim sockets, FIFOs and runc's state are.
const RUN_DIR: &str = "/run/containerd";

/// The containerd namespace of `ctr run`; the CRI's is `k8s.io`.
const CTR_NAMESPACE: &str = "default";

/// What must be on the machine: for `skip_unless!`.
pub fn available() -> Result<(), Missing> {
    Programs::of_the_distribution()?;
    tools::program("ctr")?;
    cri::available()
}

/// A running containerd; it, its containers and its folder go when it is dropped.
pub struct Containerd(Enclosure);

impl Containerd {
    /// Starts the distribution's containerd on a node, waits until it answers, and imports the image.
    pub fn start(setup: &Setup<'_>) -> Result<Self> {
        Self::start_as(&Programs::of_the_distribution()?, setup)
    }

    /// The same with a containerd of choice.
    pub fn start_as(programs: &Programs, setup: &Setup<'_>) -> Result<Self> {
        let dir = setup.make_dir(RUNTIME)?;
        let config_path = config::write(&dir, setup)?;
        let binds = [(dir.join("run"), PathBuf::from(RUN_DIR))];
        let line = programs.line(&config_path);
        let mut containerd = Self(Enclosure::start(RUNTIME, setup, &dir, &binds, &line)?);
        containerd.import(&image::write(&dir)?, image::REFERENCE)?;
        Ok(containerd)
    }

    /// Imports an archive in which the image `reference` is.
    pub fn import(&mut self, archive: &Path, reference: &str) -> Result<()> {
        let archive = archive.to_string_lossy().into_owned();
        for namespace in [CTR_NAMESPACE, "k8s.io"] {
            self.ctr(&["--namespace", namespace, "images", "import", &archive])?;
        }
        // The CRI hears of it by an event.
        self.wait_for_image(reference)
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
        let cgroup = format!("{}/{id}", self.cgroup());
        let mut ctr = vec!["--namespace", CTR_NAMESPACE, "run", "--rm", "--cni"];
        ctr.extend(["--cgroup", &cgroup, image::REFERENCE, id]);
        ctr.extend(args);
        self.ctr(&ctr)
    }

    /// The mount points below its state folder: what runs or was left behind there.
    pub fn mounts(&self) -> Result<Vec<PathBuf>> {
        self.0.mounts(Path::new(RUN_DIR))
    }
}

impl Deref for Containerd {
    type Target = Enclosure;

    fn deref(&self) -> &Enclosure {
        &self.0
    }
}

impl DerefMut for Containerd {
    fn deref_mut(&mut self) -> &mut Enclosure {
        &mut self.0
    }
}
