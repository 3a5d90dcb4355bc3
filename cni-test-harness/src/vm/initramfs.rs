//! What a virtual machine starts with: programs with their libraries, modules, and an init that
//! runs one script and turns the machine off.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::cpio::Archive;
use super::kernel::Kernel;
use crate::process;
use crate::tools;

/// What tests look and build with. Busybox does the rest (mount, nc, sleep, …).
const PROGRAMS: [&str; 8] = ["ip", "bridge", "tc", "ss", "nft", "ping", "wg", "modprobe"];
/// Programs that some tests use; left out where the machine lacks them.
const EXTRAS: [&str; 12] = [
    "socat",
    "iperf3",
    "ethtool",
    "conntrack",
    "tcpdump",
    "bash",
    "iptables",
    "ip6tables",
    "iptables-save",
    "ip6tables-save",
    "iptables-restore",
    "ip6tables-restore",
];
/// Names of protocols and tables for `ip`, and what iptables loads to understand its words.
const DIRS: [&str; 3] = [
    "/etc/iproute2",
    "/usr/share/iproute2",
    "/usr/lib/x86_64-linux-gnu/xtables",
];

/// Written behind the script's exit code, on a line of its own.
pub(super) const RESULT: &str = "@@ exit";
/// Written when the script starts, so that what the kernel said before is told apart.
pub(super) const BEGIN: &str = "@@ begin";

/// A file to take along.
#[derive(Debug, Clone)]
pub struct File {
    /// Here. Programs bring the libraries that they are linked to.
    pub source: PathBuf,
    /// There, absolute.
    pub target: String,
}

impl File {
    /// Takes `source` along as `target`.
    pub fn new(source: impl Into<PathBuf>, target: impl Into<String>) -> Self {
        Self {
            source: source.into(),
            target: target.into(),
        }
    }
}

/// Builds the archive.
pub(super) fn build(kernel: &Kernel, script: &str, files: &[File]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for path in [
        "/proc",
        "/sys",
        "/dev",
        "/run/netns",
        "/tmp",
        "/var",
        "/root",
        "/etc",
    ] {
        archive.directory(path);
    }
    // The kernel opens it before devtmpfs is there.
    archive.device("/dev/console", 5, 1);
    add_program(&mut archive, &tools::program("busybox")?, "/bin/busybox")?;
    // Busybox' shell runs its own applets (ip, tc) before it looks for programs.
    add_program(&mut archive, &tools::program("dash")?, "/bin/sh")?;
    archive.file("/init", 0o755, init().as_bytes());
    archive.file("/script", 0o755, script.as_bytes());
    archive.file("/etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n");
    archive.file("/etc/group", 0o644, b"root:x:0:\n");
    archive.file("/etc/hostname", 0o644, b"machine\n");
    archive.file("/etc/hosts", 0o644, b"127.0.0.1 localhost\n");
    for name in PROGRAMS {
        let path = tools::program(name)?;
        add_program(&mut archive, &path, &format!("/usr/bin/{name}"))?;
    }
    for path in EXTRAS.iter().filter_map(|name| tools::program(name).ok()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        add_program(&mut archive, &path, &format!("/usr/bin/{name}"))?;
    }
    // Where the kernel looks when it wants a module.
    archive.link("/sbin/modprobe", "/usr/bin/modprobe");
    for dir in DIRS {
        add_dir(&mut archive, Path::new(dir))?;
    }
    for (source, target) in kernel.modules()? {
        add_file(&mut archive, &source, &target)?;
    }
    for file in files {
        add_program(&mut archive, &file.source, &file.target)?;
    }
    Ok(archive.finish())
}

/// The first process. It must end by turning the machine off, whatever the script does.
fn init() -> String {
    format!(
        r#"#!/bin/sh
export PATH=/usr/bin:/usr/sbin:/bin:/sbin HOME=/root
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm /dev/net
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mkdir -p /run/netns
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
modprobe tun
cd /root
echo
echo '{BEGIN}'
/script </dev/null 2>&1
code=$?
echo
echo "{RESULT} $code"
poweroff -f
"#
    )
}

fn add_dir(archive: &mut Archive, dir: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => add_dir(archive, &path)?,
            false => add_file(archive, &path, &path.to_string_lossy())?,
        }
    }
    Ok(())
}

fn add_file(archive: &mut Archive, source: &Path, target: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let content = std::fs::read(source).with_context(|| format!("read {}", source.display()))?;
    let mode = std::fs::metadata(source)?.permissions().mode() & 0o777;
    archive.file(target, mode, &content);
    Ok(())
}

/// A file with the libraries that it needs, if it is a program that is not static.
fn add_program(archive: &mut Archive, path: &Path, target: &str) -> Result<()> {
    for library in libraries(path)? {
        add_file(archive, &library, &library.to_string_lossy())?;
    }
    add_file(archive, path, target)
}

fn libraries(path: &Path) -> Result<Vec<PathBuf>> {
    let mut magic = [0; 4];
    let mut file = std::fs::File::open(path).with_context(|| format!("open {}", path.display()))?;
    let read = std::io::Read::read(&mut file, &mut magic)?;
    if magic[..read] != *b"\x7fELF" {
        return Ok(Vec::new());
    }
    // It exits with 1 for a static program.
    let output = process::run(Command::new("ldd").arg(path), b"", process::DEADLINE)?;
    Ok(parse_ldd(&output.stdout_text()))
}

/// The paths in what ldd prints: `libc.so.6 => /lib/…/libc.so.6 (0x…)`, or the loader alone.
fn parse_ldd(said: &str) -> Vec<PathBuf> {
    let path = |line: &str| {
        let found = line.split_whitespace().find(|word| word.starts_with('/'))?;
        Some(PathBuf::from(found))
    };
    said.lines().filter_map(path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libraries_of_a_program_are_those_with_a_path() {
        let said = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                    \tlibbpf.so.1 => /lib/x86_64-linux-gnu/libbpf.so.1 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = [
            "/lib/x86_64-linux-gnu/libbpf.so.1",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(parse_ldd(said), expected.map(PathBuf::from));
        assert!(parse_ldd("\tnot a dynamic executable\n").is_empty());
    }
}
