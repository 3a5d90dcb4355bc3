//! A node: a network namespace with a state folder and the daemons that run in it.
//!
//! It stands for a machine: what a daemon or plugin keeps on disk goes into the node's folder, what
//! it does to the network stays in the node's namespace. How nodes are joined is `underlay`'s.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::netns::{self, Netns};
use crate::observe::View;
use crate::process::{self, Daemon, Output};

/// One machine of the test; removed with its folder when dropped, unless kept.
#[derive(Debug)]
pub struct Node {
    netns: Netns,
    dir: PathBuf,
    kept: bool,
}

impl Node {
    /// A node with a unique name and a folder in the temporary directory.
    pub fn new(label: &str) -> Result<Self> {
        let name = netns::unique_name(label);
        let dir = std::env::temp_dir().join(&name);
        Self::create(&name, &dir)
    }

    /// A node whose namespace is `name` and whose folder is `dir`, which must not exist.
    pub fn create(name: &str, dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        Ok(Self {
            netns: Netns::create(name)?,
            dir: dir.to_owned(),
            kept: false,
        })
    }

    /// The namespace's name, which is the node's.
    pub fn name(&self) -> &str {
        self.netns.name()
    }

    /// The namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The folder for everything that is kept on this node.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A look at the node's network with other people's tools.
    pub fn view(&self) -> View<'_> {
        View::of(&self.netns)
    }

    /// A folder below the node's own, made when missing.
    pub fn make_dir(&self, name: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        std::fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(path)
    }

    /// A command that will run on the node.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        self.netns.command(program)
    }

    /// Runs a program on the node to its end; an exit code other than 0 is an error.
    pub fn exec(&self, program: &str, args: &[&str]) -> Result<Output> {
        self.netns.exec(program, args)
    }

    /// Runs a program on the node to its end, whatever its exit code, within `deadline`.
    pub fn try_exec(&self, program: &str, args: &[&str], deadline: Duration) -> Result<Output> {
        process::run(self.command(program)?.args(args), b"", deadline)
    }

    /// Starts a daemon on the node; its log is `<node>/log/<name>.log`.
    pub fn spawn(&self, name: &str, program: &Path, args: &[String]) -> Result<Daemon> {
        let log_path = self.make_dir("log")?.join(format!("{name}.log"));
        Daemon::spawn(name, self.command(program)?.args(args), &log_path)
            .with_context(|| format!("on node {}", self.name()))
    }

    /// Leaves namespace and folder standing when this is dropped.
    pub fn keep(&mut self) {
        self.kept = true;
        self.netns.keep();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if !self.kept {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}
