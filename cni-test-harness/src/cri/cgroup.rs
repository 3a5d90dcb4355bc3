//! The cgroups of a runtime's containers: one parent per runtime, removed with it.
//!
//! In both cgroup versions a cgroup is a folder that goes only by rmdir and only when it is empty.
//! The parent's name carries the process that made it, so that what a killed run left is known.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use crate::wait;

const ROOT: &str = "/sys/fs/cgroup";
const PREFIX: &str = "twill-pods-";

/// `twill-pods-<pid>-<n>`.
pub(super) fn unique_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    static SWEEP: Once = Once::new();
    SWEEP.call_once(sweep);
    format!(
        "{PREFIX}{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// Removes the cgroup `name` from every hierarchy, with those below it. Its processes are dead; the
/// kernel takes a moment to notice.
pub(super) fn remove(name: &str) -> Result<()> {
    let what = format!("cgroup {name} to be empty");
    wait::until(&what, std::time::Duration::from_secs(10), || {
        let found = hierarchies()
            .into_iter()
            .map(|hierarchy| hierarchy.join(name));
        for path in found.filter(|path| path.is_dir()) {
            match remove_tree(&path) {
                Err(error) if error.kind() == ErrorKind::ResourceBusy => {
                    return Ok(wait::Look::NotYet(format!("{}: {error}", path.display())));
                }
                other => other.with_context(|| format!("remove cgroup {}", path.display()))?,
            }
        }
        Ok(wait::Look::Done(()))
    })
}

/// Version 2 is mounted on the root itself, version 1 a hierarchy on each folder in it.
fn hierarchies() -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from(ROOT)];
    let entries = std::fs::read_dir(ROOT).into_iter().flatten().flatten();
    found.extend(
        entries
            .map(|entry| entry.path())
            .filter(|path| path.is_dir()),
    );
    found
}

/// rmdir from the leaves up; the files in a cgroup are the kernel's and need no removal.
fn remove_tree(path: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    std::fs::remove_dir(path)
}

/// Removes what runs whose process is dead have left; one that cannot be removed stays.
fn sweep() {
    for hierarchy in hierarchies() {
        for entry in std::fs::read_dir(hierarchy).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let maker = name
                .strip_prefix(PREFIX)
                .and_then(|rest| rest.split('-').next());
            if maker.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                let _ = remove_tree(&entry.path());
            }
        }
    }
}
