//! CRI-O, conmon and runc, one per node, as a machine of the cluster runs them, each in an
//! [`Enclosure`].
//!
//! No registry has CRI-O, so a test names one by its path ([`Programs::named`]). This file decides
//! how it is started and fed; [`config`] what it is told.

pub mod config;
mod programs;

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

pub use self::programs::Programs;

use crate::cri::{DEADLINE, Enclosure, Setup, image};
use crate::process;

/// The name of its program, its folder and its socket.
const RUNTIME: &str = "crio";

/// Where it keeps what runs, if it is not told otherwise: what it is not told of is here.
const RUN_DIR: &str = "/run/crio";

/// A running CRI-O; it, its containers and its folder go when it is dropped.
pub struct Crio {
    enclosure: Enclosure,
    programs: Programs,
}

impl Crio {
    /// Starts CRI-O on a node, waits until it answers, and loads the image.
    pub fn start(programs: &Programs, setup: &Setup<'_>) -> Result<Self> {
        let dir = setup.make_dir(RUNTIME)?;
        let config_path = config::write(&dir, programs, setup)?;
        let binds = [(dir.join("run"), PathBuf::from(RUN_DIR))];
        // No drop-ins: the machine's are its own CRI-O's.
        let line = format!(
            "'{}' --config '{}' --config-dir ''",
            programs.crio.display(),
            config_path.display()
        );
        let mut crio = Self {
            enclosure: Enclosure::start(RUNTIME, setup, &dir, &binds, &line)?,
            programs: programs.clone(),
        };
        crio.load(&image::write(&dir)?)?;
        crio.wait_for_image(image::REFERENCE)?;
        Ok(crio)
    }

    /// Puts an archive's images into the store, as podman does: CRI-O has no command for it.
    fn load(&self, archive: &Path) -> Result<()> {
        let dir = self.dir();
        let mut podman: Command = self.command(&self.programs.podman);
        podman
            .args(["--storage-driver", config::STORAGE_DRIVER])
            .args(["--cgroup-manager", "cgroupfs", "--events-backend", "none"])
            .arg("--root")
            .arg(config::storage_dir(dir))
            .arg("--runroot")
            .arg(config::storage_run_dir(dir))
            .arg("--tmpdir")
            .arg(dir.join("podman"))
            .args(["load", "--quiet", "--signature-policy"])
            .arg(config::policy_path(dir))
            .arg("--input")
            .arg(archive);
        process::check_with(&mut podman, b"", DEADLINE)
            .with_context(|| format!("the end of CRI-O's log:\n{}", self.log_tail()))
            .map(drop)
    }

    /// The mount points below its state folder: what runs or was left behind there.
    pub fn mounts(&self) -> Result<Vec<PathBuf>> {
        self.enclosure.mounts(Path::new(RUN_DIR))
    }
}

impl Deref for Crio {
    type Target = Enclosure;

    fn deref(&self) -> &Enclosure {
        &self.enclosure
    }
}

impl DerefMut for Crio {
    fn deref_mut(&mut self) -> &mut Enclosure {
        &mut self.enclosure
    }
}
