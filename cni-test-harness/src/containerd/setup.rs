//! What a node gives its containerd, and what pid 1 of it does with that before containerd starts.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::Programs;

/// What a node gives its container runtime.
#[derive(Debug, Clone)]
pub struct Setup<'a> {
    /// The node's network namespace, by its name under /run/netns.
    pub netns: &'a str,
    /// The node's folder; `<dir>/containerd` is made in it and removed again.
    pub dir: &'a Path,
    /// Where plugins are looked for, by the CRI and by `ctr run --cni`.
    pub cni_bin_dir: &'a Path,
    /// Where the conflist is, or will be put while containerd runs.
    pub cni_conf_dir: &'a Path,
    /// More of the node's own folders to put over the machine's, as (folder, over what):
    /// `/run/flannel` for plugins that look for subnet.env there.
    pub binds: Vec<(PathBuf, PathBuf)>,
}

/// What is put over the machine's folders: paths that programs have built in, so that nodes do not
/// share them and the machine's own runtime is left alone. What is missing there is made, and stays
/// as an empty folder: a bind needs one.
pub(super) fn binds(dir: &Path, setup: &Setup<'_>) -> Result<Vec<(PathBuf, PathBuf)>> {
    let over = |own: PathBuf, path: &str| (own, PathBuf::from(path));
    let mut binds = vec![
        over(dir.join("run"), "/run/containerd"), // shim sockets, FIFOs, runc's state
        over(dir.join("cni"), "/var/lib/cni"),    // libcni's results, host-local's reservations
        over(setup.cni_conf_dir.to_owned(), "/etc/cni/net.d"), // ctr run --cni
        over(setup.cni_bin_dir.to_owned(), "/opt/cni/bin"), // ctr run --cni
    ];
    binds.extend(setup.binds.iter().cloned());
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

/// What pid 1 does: the binds, containerd, and reaping what is left to it until containerd ends.
pub(super) fn init_script(
    programs: &Programs,
    binds: &[(PathBuf, PathBuf)],
    config_path: &Path,
) -> String {
    let mount = |(own, path): &(PathBuf, PathBuf)| {
        format!("mount --bind '{}' '{}'\n", own.display(), path.display())
    };
    let mounts: String = binds.iter().map(mount).collect();
    format!(
        "{mounts}{}'{}' --config '{}' &\nwait $!\n",
        programs.path_assignment(),
        programs.containerd.display(),
        config_path.display()
    )
}
