//! What a node gives its container runtime, and what the machine lets that do.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// A unix socket's path is at most 107 bytes; containerd adds `.ttrpc` to its own.
const SOCKET_PATH_MAX: usize = 100;

/// What a node gives its container runtime.
#[derive(Debug, Clone)]
pub struct Setup<'a> {
    /// The node's network namespace, by its name under /run/netns.
    pub netns: &'a str,
    /// The node's folder; one named after the runtime is made in it and removed again.
    pub dir: &'a Path,
    /// Where plugins are looked for, by the CRI and by `ctr run --cni`.
    pub cni_bin_dir: &'a Path,
    /// Where the conflist is, or will be put while the runtime runs.
    pub cni_conf_dir: &'a Path,
    /// More of the node's own folders to put over the machine's, as (folder, over what):
    /// `/run/flannel` for plugins that look for subnet.env there.
    pub binds: Vec<(PathBuf, PathBuf)>,
}

impl Setup<'_> {
    /// `<dir>/<runtime>`, made, with the folders that the runtime is told of.
    pub(crate) fn make_dir(&self, runtime: &str) -> Result<PathBuf> {
        let dir = self.dir.join(runtime);
        for path in [&dir, self.cni_bin_dir, self.cni_conf_dir] {
            std::fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))?;
        }
        let socket_path = socket_path(&dir, runtime);
        if socket_path.as_os_str().len() > SOCKET_PATH_MAX {
            bail!(
                "{} is too long for a unix socket: choose a shorter folder",
                socket_path.display()
            );
        }
        Ok(dir)
    }
}

/// Where the runtime whose folder is `dir` listens.
pub(crate) fn socket_path(dir: &Path, runtime: &str) -> PathBuf {
    dir.join(format!("{runtime}.sock"))
}

/// A path in a runtime's configuration: a TOML basic string, whose escapes are JSON's.
pub(crate) fn quote(path: &Path) -> String {
    serde_json::Value::from(path.to_string_lossy()).to_string()
}

/// Whether this process, and so a runtime that it starts, may give a process a lower oom_score_adj
/// than its own. Without it a sandbox's -998 cannot be set, and runc dies of it.
pub(crate) fn may_lower_oom_scores() -> Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    Ok(has_cap_sys_resource(&status))
}

/// Whether the process of this /proc/PID/status may lower an oom_score_adj.
fn has_cap_sys_resource(status: &str) -> bool {
    const CAP_SYS_RESOURCE: u32 = 24; // linux/capability.h
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    set.is_some_and(|set| set & (1 << CAP_SYS_RESOURCE) != 0)
}

#[cfg(test)]
mod tests {
    use super::has_cap_sys_resource;

    #[test]
    fn the_capability_is_read_from_the_effective_set() {
        assert!(has_cap_sys_resource(
            "CapPrm:\t0\nCapEff:\t0000000001000000\n"
        ));
        assert!(!has_cap_sys_resource(
            "CapPrm:\tffffffff\nCapEff:\t000001fffeffffff\n"
        ));
    }
}
