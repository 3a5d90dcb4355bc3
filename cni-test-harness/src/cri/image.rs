//! Images, made on the spot and without a registry: the one that every test container and sandbox
//! runs, and the one of twill that the Kubernetes manifest names.
//!
//! One layer with Debian's busybox-static and links to it, in Docker's archive format
//! (`docker save`), which `ctr images import` and others read. The same bytes for the same programs.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

use crate::process;
use crate::tools::{self, Missing};

/// The image's name, as containers and `sandbox_image` give it.
pub const REFERENCE: &str = "localhost/twill-test:1";

/// A program for perl in the test image: answers on the address and at the UDP port of its
/// arguments with the text `POD_NAME`. (socat can do that as well, but its parent now and then
/// waits for ever for a child that has ended.)
pub const ANSWER_UDP: &str = "bin/answer-udp.pl";

/// AF_INET is 2, AF_INET6 10, SOCK_DGRAM 2, IPPROTO_UDP 17: perl's modules are not in the image.
const ANSWER_UDP_TEXT: &[u8] = br#"my ($ip, $port) = @ARGV;
my ($head, $tail) = map { [split /:/] } split(/::/, $ip, 2), "";
my @zeros = (0) x (8 - @$head - @$tail);
my $address = $ip =~ /:/
    ? pack("S n N n8 N", 10, $port, 0, (map { hex } @$head, @zeros, @$tail), 0)
    : pack("S n C4 x8", 2, $port, split(/\./, $ip));
socket(S, $ip =~ /:/ ? 10 : 2, 2, 17) or die "socket: $!";
bind(S, $address) or die "bind $ip: $!";
while (1) {
    my $from = recv(S, my $question, 64, 0);
    send(S, "$ENV{POD_NAME}\n", 0, $from) if defined $from;
}
"#;

/// The folders of the root file system; runc and the CRI mount over some of them.
const DIRS: [&str; 9] = [
    "bin/", "dev/", "etc/", "opt/", "proc/", "root/", "sys/", "tmp/", "var/",
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

/// An image of one layer, about to be written.
pub struct Image {
    reference: String,
    layer: tar::Builder<Vec<u8>>,
    /// The libraries that are in it: podman refuses a layer that has a path twice.
    libraries: BTreeSet<String>,
    command: Vec<String>,
}

impl Image {
    /// An image called `reference` that holds busybox with all its links and runs `command`.
    pub fn with_busybox(reference: &str, command: &[&str]) -> Result<Self> {
        let mut image = Self {
            reference: reference.to_owned(),
            layer: tar::Builder::new(Vec::new()),
            libraries: BTreeSet::new(),
            command: command.iter().map(|&word| word.to_owned()).collect(),
        };
        for dir in DIRS {
            let mut header = header(EntryType::Directory, 0o755);
            image
                .layer
                .append_data(&mut header, dir, std::io::empty())?;
        }
        let busybox = busybox()?;
        image.program("bin/busybox", &busybox)?;
        let applets = process::check(Command::new(&busybox).arg("--list"))?.stdout_text();
        for applet in applets.lines().filter(|applet| *applet != "busybox") {
            let mut header = header(EntryType::Symlink, 0o777);
            let link = format!("bin/{applet}");
            image.layer.append_link(&mut header, link, "busybox")?;
        }
        let passwd = b"root:x:0:0:root:/root:/bin/sh\n";
        append_file(&mut image.layer, "etc/passwd", 0o644, passwd)?;
        Ok(image)
    }

    /// Adds the program at `path` as `name`.
    pub fn program(&mut self, name: &str, path: &Path) -> Result<()> {
        let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        append_file(&mut self.layer, name, 0o755, &bytes)
    }

    /// Adds a program of the distribution, with the libraries that it is linked to in their places.
    fn linked_program(&mut self, name: &str, path: &Path) -> Result<()> {
        self.program(name, path)?;
        let linked = process::check(Command::new("ldd").arg(path))?.stdout_text();
        for library in linked
            .split_whitespace()
            .filter(|word| word.starts_with('/'))
        {
            if self.libraries.insert(library.to_owned()) {
                self.program(library.trim_start_matches('/'), Path::new(library))?;
            }
        }
        Ok(())
    }

    /// Writes the archive.
    pub fn write(self, path: &Path) -> Result<()> {
        let layer = self.layer.into_inner().context("end the layer")?;
        let config = config(&layer, &self.command);
        let manifest = json!([
            {"Config": "config.json", "RepoTags": [self.reference], "Layers": ["layer.tar"]}
        ]);
        let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
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
            .with_context(|| format!("write {}", path.display()))
    }
}

/// Writes the archive `<dir>/image.tar` of the image that tests run.
pub(crate) fn write(dir: &Path) -> Result<PathBuf> {
    let mut image = Image::with_busybox(REFERENCE, &IDLE)?;
    // busybox speaks TCP, and no UDP.
    for name in ["socat", "perl"] {
        image.linked_program(&format!("bin/{name}"), &tools::program(name)?)?;
    }
    append_file(&mut image.layer, ANSWER_UDP, 0o644, ANSWER_UDP_TEXT)?;
    let path = dir.join("image.tar");
    image.write(&path)?;
    Ok(path)
}

/// The image that conf/kube-twill.yaml names.
pub const TWILL: &str = concat!("docker.io/library/twill:", env!("CARGO_PKG_VERSION"));

/// Writes the archive of the image that the manifest names: both programs as they were built for
/// tests, and a shell to copy them with.
pub fn write_twill(path: &Path) -> Result<()> {
    let mut image = Image::with_busybox(TWILL, &["/opt/bin/twilld"])?;
    for name in ["twill", "twilld"] {
        image.program(&format!("opt/bin/{name}"), &tools::built(name)?)?;
    }
    image.write(path)
}

/// The image's configuration (OCI image specification, image configuration).
fn config(layer: &[u8], command: &[String]) -> serde_json::Value {
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
        "config": {"Cmd": command, "Env": ["PATH=/bin"], "WorkingDir": "/"},
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
