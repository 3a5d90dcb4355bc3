//! What CRI-O is told: a configuration file with every path of its own, the policy that lets any
//! image in, and runc, or a wrapper of it where the machine asks for one.
//!
//! Pure but for `write`.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Programs, RUNTIME};
use crate::cri::{self, Setup, image, quote, socket_path};

/// Copies each layer: slower than overlayfs, but works on every file system and kernel.
pub(super) const STORAGE_DRIVER: &str = "vfs";

/// Where images and containers are kept.
pub(super) fn storage_dir(dir: &Path) -> PathBuf {
    dir.join("storage")
}

/// What of them a reboot would forget.
pub(super) fn storage_run_dir(dir: &Path) -> PathBuf {
    dir.join("run/storage")
}

/// Which images may be used.
pub(super) fn policy_path(dir: &Path) -> PathBuf {
    dir.join("policy.json")
}

/// Writes `<dir>/config.toml` and what it names.
pub(super) fn write(dir: &Path, programs: &Programs, setup: &Setup<'_>) -> Result<PathBuf> {
    let mut runtime = programs.runc.clone();
    if !cri::may_lower_oom_scores()? {
        runtime = dir.join("runc");
        write_file(&runtime, &runc_without_oom_scores(&programs.runc))?;
        std::fs::set_permissions(&runtime, PermissionsExt::from_mode(0o755))
            .with_context(|| format!("make {} a program", runtime.display()))?;
    }
    let policy = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;
    write_file(&policy_path(dir), policy)?;
    let path = dir.join("config.toml");
    write_file(&path, &render(dir, programs, &runtime, setup))?;
    Ok(path)
}

fn write_file(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

/// runc that is not asked for an oom_score_adj: CRI-O, unlike containerd, cannot be told to leave it.
/// `create` has its bundle after `--bundle` or `-b`.
fn runc_without_oom_scores(runc: &Path) -> String {
    format!(
        r#"#!/bin/sh
previous=
for argument; do
    case $previous in
    --bundle | -b) sed -i 's/,"oomScoreAdj":-\{{0,1\}}[0-9]*//' "$argument/config.json" ;;
    esac
    previous=$argument
done
exec '{}' "$@"
"#,
        runc.display()
    )
}

fn render(dir: &Path, programs: &Programs, runtime: &Path, setup: &Setup<'_>) -> String {
    let below = |name: &str| quote(&dir.join(name));
    let socket = quote(&socket_path(dir, RUNTIME));
    let (root, runroot) = (quote(&storage_dir(dir)), quote(&storage_run_dir(dir)));
    let (logs, version, namespaces) = (below("log"), below("run/version"), below("run/ns"));
    let (runtime, runtime_root) = (quote(runtime), below("run/runc"));
    let (conmon, pinns) = (quote(&programs.conmon), quote(&programs.pinns));
    let policy = quote(&policy_path(dir));
    let policies = below("policies");
    let (bin_dir, conf_dir) = (quote(setup.cni_bin_dir), quote(setup.cni_conf_dir));
    let image = image::REFERENCE;
    format!(
        r#"[crio]
root = {root}
runroot = {runroot}
storage_driver = "{STORAGE_DRIVER}"
log_dir = {logs}
# What tells it of a reboot and of an upgrade; neither happens to it.
version_file = {version}
version_file_persist = ""
clean_shutdown_file = ""

[crio.api]
listen = {socket}
stream_port = "0"

[crio.runtime]
cgroup_manager = "cgroupfs"
namespaces_dir = {namespaces}
pinns_path = {pinns}
hooks_dir = []
default_mounts_file = ""
apparmor_profile = "unconfined"
# Its own list is without NET_RAW, which ping wants.
default_capabilities = ["CHOWN", "DAC_OVERRIDE", "KILL", "NET_BIND_SERVICE", "NET_RAW"]
default_runtime = "runc"

[crio.runtime.runtimes.runc]
runtime_path = {runtime}
runtime_root = {runtime_root}
monitor_path = {conmon}
monitor_cgroup = "pod"

[crio.image]
pause_image = "{image}"
# Empty: what the image says that it runs.
pause_command = ""
signature_policy = {policy}
signature_policy_dir = {policies}

[crio.network]
network_dir = {conf_dir}
plugin_dirs = [{bin_dir}]

[crio.nri]
enable_nri = false
"#
    )
}
