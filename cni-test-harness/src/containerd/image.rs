//! The image that every test container and sandbox runs: busybox and links to it, in one layer.
//!
//! Made on the spot from Debian's busybox-static, in Docker's archive format (`docker save`), so
//! that no registry is needed. The same bytes for the same busybox.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

use crate::process;
use crate::tools::Missing;

/// The image's name, as containers and `sandbox_image` give it.
pub const REFERENCE: &str = "localhost/twill-test:1";

/// The folders of the root file system; runc and the CRI mount over some of them.
const DIRS: [&str; 8] = [
    "bin/", "dev/", "etc/", "proc/", "root/", "sys/", "tmp/", "var/",
];

/// What a container runs when it is told nothing, so also a pod's sandbox: nothing, for ever.
const IDLE: [&str; 2] = ["/bin/sleep", "infinity"];

/// Debian's static busybox.
pub(super) fn busybox() -> Result<PathBuf, Missing> {
    let path = PathBuf::from("/bin/busybox");
    let remedy = "install Debian's busybox-static (`./dev install`)";
    if path.is_file() {
        Ok(path)
    } else {
        Err(Missing::new("/bin/busybox", remedy))
    }
}

/// Writes the archive `<dir>/image.tar`.
pub fn write(dir: &Path) -> Result<PathBuf> {
    let layer = layer()?;
    let config = config(&layer);
    let manifest = json!([
        {"Config": "config.json", "RepoTags": [REFERENCE], "Layers": ["layer.tar"]}
    ]);
    let path = dir.join("image.tar");
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    let mut archive = tar::Builder::new(file);
    for (name, bytes) in [
        ("layer.tar", &layer[..]),
        ("config.json", config.to_string().as_bytes()),
        ("manifest.json", manifest.to_string().as_bytes()),
    ] {
        append_file(&mut archive, name, 0o644, bytes)?;
    }
    archive
        .finish()
        .with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// The root file system as an uncompressed tar.
fn layer() -> Result<Vec<u8>> {
    let busybox = busybox()?;
    let bytes = std::fs::read(&busybox).with_context(|| format!("read {}", busybox.display()))?;
    let applets = process::check(Command::new(&busybox).arg("--list"))?.stdout_text();
    let mut tar = tar::Builder::new(Vec::new());
    for dir in DIRS {
        tar.append_data(
            &mut header(EntryType::Directory, 0o755),
            dir,
            std::io::empty(),
        )?;
    }
    append_file(&mut tar, "bin/busybox", 0o755, &bytes)?;
    append_file(
        &mut tar,
        "etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\n",
    )?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        let mut header = header(EntryType::Symlink, 0o777);
        tar.append_link(&mut header, format!("bin/{applet}"), "busybox")?;
    }
    tar.into_inner().context("end the layer")
}

/// The image's configuration (OCI image specification, image configuration).
fn config(layer: &[u8]) -> serde_json::Value {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let digest: String = Sha256::digest(layer)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    json!({
        "architecture": architecture,
        "os": "linux",
        "config": {"Cmd": IDLE, "Env": ["PATH=/bin"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    })
}

fn append_file(
    tar: &mut tar::Builder<impl Write>,
    name: &str,
    mode: u32,
    bytes: &[u8],
) -> Result<()> {
    let mut header = header(EntryType::Regular, mode);
    header.set_size(u64::try_from(bytes.len()).expect("a length in memory fits 64 bits"));
    tar.append_data(&mut header, name, bytes)
        .with_context(|| format!("add {name} to an archive"))
}

fn header(kind: EntryType, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(0);
    header
}
