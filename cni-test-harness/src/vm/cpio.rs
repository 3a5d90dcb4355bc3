//! A file system for the kernel to start with: a cpio archive of the "new ASCII" format
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`), built in memory.

use std::collections::BTreeSet;
use std::path::{Component, Path};

const DIRECTORY: u32 = 0o040_755;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_777;
const DEVICE: u32 = 0o020_600;

/// An archive that grows. Folders above what is added are made.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    present: BTreeSet<String>,
}

impl Archive {
    /// Adds a folder, and those above it.
    pub(super) fn directory(&mut self, path: &str) {
        self.parents_of(path);
        self.once(path, DIRECTORY, (0, 0), b"");
    }

    /// Adds a file with its permissions, e.g. 0o755. What is there already stays.
    pub(super) fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.parents_of(path);
        self.once(path, REGULAR | mode, (0, 0), content);
    }

    /// Adds a symbolic link.
    pub(super) fn link(&mut self, path: &str, target: &str) {
        self.parents_of(path);
        self.once(path, SYMLINK, (0, 0), target.as_bytes());
    }

    /// Adds a character device.
    pub(super) fn device(&mut self, path: &str, major: u32, minor: u32) {
        self.parents_of(path);
        self.once(path, DEVICE, (major, minor), b"");
    }

    fn parents_of(&mut self, path: &str) {
        let parent = Path::new(path)
            .parent()
            .into_iter()
            .flat_map(Path::components);
        let mut above = String::new();
        for component in parent {
            if let Component::Normal(name) = component {
                above = format!("{above}/{}", name.to_string_lossy());
                self.once(&above.clone(), DIRECTORY, (0, 0), b"");
            }
        }
    }

    fn once(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        let name = path.trim_start_matches('/');
        if !name.is_empty() && self.present.insert(name.to_owned()) {
            self.entry(name, mode, device, content);
        }
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(content.len()).expect("a file of the archive is below 4 GiB");
        let name_size = u32::try_from(name.len() + 1).expect("a name is short");
        // inode, mode, uid, gid, links, mtime, size, device of the file, device it is, name, check
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            device.0,
            device.1,
            name_size,
            0,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// The whole archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), b"");
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process;
    use std::process::Command;

    #[test]
    fn other_peoples_cpio_reads_it() {
        let mut archive = Archive::default();
        archive.file("/sbin/init", 0o755, b"#!/bin/sh\n");
        archive.file("/sbin/init", 0o644, b"a second one is none");
        archive.link("/bin/sh", "busybox");
        archive.device("/dev/console", 5, 1);
        archive.directory("/proc");
        let bytes = archive.finish();
        let mut list = Command::new("busybox");
        let output =
            process::check_with(list.args(["cpio", "-tv"]), &bytes, process::DEADLINE).unwrap();
        let listed = output.stdout_text();
        let columns = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            (
                words[0].to_owned(),
                line.split(' ').next_back().unwrap().to_owned(),
            )
        };
        let found: Vec<(String, String)> = listed.lines().map(columns).collect();
        let expected = [
            ("drwxr-xr-x", "sbin"),
            ("-rwxr-xr-x", "sbin/init"),
            ("drwxr-xr-x", "bin"),
            ("lrwxrwxrwx", "busybox"),
            ("drwxr-xr-x", "dev"),
            ("crw-------", "dev/console"),
            ("drwxr-xr-x", "proc"),
        ];
        let expected = expected.map(|(mode, name)| (mode.to_owned(), name.to_owned()));
        assert_eq!(found, expected);
    }
}
