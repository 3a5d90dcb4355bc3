//! What recorded runs are compared by: files on disk, packet filters' rules, and texts without what
//! is never the same twice.

#![allow(dead_code, reason = "each test program uses a part of it")]

pub(crate) mod rules;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use serde::Deserialize;

const STATE: [&str; 2] = ["/var/lib/cni", "/run/flannel"];

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Entry {
    pub(crate) mode: String,
    #[serde(default)]
    pub(crate) dir: bool,
    #[serde(default)]
    pub(crate) content: String,
}

/// Blots out what is never the same twice.
pub(crate) fn blot(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        let hex =
            |s: &str, n: usize| s.len() >= n && s.as_bytes()[..n].iter().all(u8::is_ascii_hexdigit);
        let mac = rest.len() >= 17
            && rest.is_char_boundary(17)
            && rest[..17].split(':').count() == 6
            && rest[..17]
                .split(':')
                .all(|pair| pair.len() == 2 && hex(pair, 2));
        // The ones asked for in the recorded runs begin with 02:00.
        if mac && !rest.starts_with("02:00:") {
            out.push_str("MAC");
            rest = &rest[17..];
        } else if rest.starts_with("veth") && hex(&rest[4..], 8) {
            out.push_str("VETH");
            rest = &rest[12..];
        } else {
            let next = rest.chars().next().unwrap();
            out.push(next);
            rest = &rest[next.len_utf8()..];
        }
    }
    out
}

/// Everything below the state folders, and what twill adds to host-local's left out.
pub(crate) fn read_state() -> BTreeMap<String, Entry> {
    fn read(path: &Path, into: &mut BTreeMap<String, Entry>) {
        let Ok(entries) = fs::read_dir(path) else {
            return;
        };
        for entry in entries.map(Result::unwrap) {
            let path = entry.path();
            let meta = entry.metadata().unwrap();
            let name = entry.file_name().into_string().unwrap();
            if name == "boot_id" {
                continue;
            }
            let content = fs::read_to_string(&path).unwrap_or_default();
            let mode = format!("0{:o}", meta.mode() & 0o777);
            let dir = meta.is_dir();
            into.insert(path.display().to_string(), Entry { mode, dir, content });
            read(&path, into);
        }
    }
    let mut state = BTreeMap::new();
    for dir in STATE {
        read(Path::new(dir), &mut state);
    }
    state
}

/// Puts the recorded files in the place of ours.
pub(crate) fn write_state(files: &BTreeMap<String, Entry>) {
    for dir in STATE {
        let _ = fs::remove_dir_all(dir);
    }
    for (path, entry) in files {
        let mode = u32::from_str_radix(&entry.mode, 8).unwrap();
        if entry.dir {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(mode)
                .create(path)
                .unwrap();
        } else {
            fs::create_dir_all(Path::new(path).parent().unwrap()).unwrap();
            fs::write(path, &entry.content).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
    }
}
