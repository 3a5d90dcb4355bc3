//! What containerd is told: a configuration file with every path of its own.
//!
//! It is in version 2 of the format, which containerd 1.6 (Debian 12) and 1.7 (Debian 13) read as
//! it is and 2.x migrates. Pure but for [`write`].

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::RUNTIME;
use crate::cri::{self, Setup, image, quote, socket_path};

/// Copies each layer: slower than overlayfs, but works on every file system and kernel.
pub const SNAPSHOTTER: &str = "native";

/// Writes `<dir>/config.toml`.
pub(super) fn write(dir: &Path, setup: &Setup<'_>) -> Result<PathBuf> {
    let text = render(dir, setup, cri::may_lower_oom_scores()?);
    let path = dir.join("config.toml");
    std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

fn render(dir: &Path, setup: &Setup<'_>, may_lower_oom_score: bool) -> String {
    let below = |name: &str| quote(&dir.join(name));
    let socket = quote(&socket_path(dir, RUNTIME));
    let ttrpc = quote(&PathBuf::from(format!(
        "{}.ttrpc",
        socket_path(dir, RUNTIME).display()
    )));
    let (root, state, opt) = (below("root"), below("state"), below("opt"));
    let (bin_dir, conf_dir) = (quote(setup.cni_bin_dir), quote(setup.cni_conf_dir));
    let image = image::REFERENCE;
    let restrict = !may_lower_oom_score;
    format!(
        r#"version = 2
root = {root}
state = {state}
# Snapshotters that other file systems need, and a plugin with a socket outside the node's folder.
disabled_plugins = [
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.nri.v1.nri",
]

[grpc]
address = {socket}

[ttrpc]
address = {ttrpc}

[plugins."io.containerd.internal.v1.opt"]
path = {opt}

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{image}"
disable_apparmor = true
restrict_oom_score_adj = {restrict}
netns_mounts_under_state_dir = true

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "{SNAPSHOTTER}"
default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = {bin_dir}
conf_dir = {conf_dir}
max_conf_num = 1
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup() -> Setup<'static> {
        Setup {
            netns: "n",
            dir: Path::new("/n"),
            cni_bin_dir: Path::new("/n/\"bin\""),
            cni_conf_dir: Path::new("/n/net.d"),
            binds: Vec::new(),
        }
    }

    #[test]
    fn every_path_is_in_the_nodes_folder_and_quoted() {
        let text = render(Path::new("/n/containerd"), &setup(), true);
        assert!(text.contains("state = \"/n/containerd/state\"\n"), "{text}");
        assert!(text.contains(r#"bin_dir = "/n/\"bin\"""#), "{text}");
        assert!(text.contains("restrict_oom_score_adj = false\n"), "{text}");
    }
}
