//! The peers that the extension's programs have been told of, in a folder, a file each: who leaves
//! while the daemon is down is told to `SubnetRemoveCommand` at the next start. flanneld forgets
//! such peers, and what its programs made for them stays.
//!
//! A file is there before the program is told to add, and until it has been told to remove: a
//! program may hear of a peer twice, and is never left with one that we forgot.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tracing::warn;

use crate::atomic_file;
use crate::backend::extension::Told;
use crate::subnets::Subnets;

/// The folder, below the daemon's state.
const DIR: &str = "extension";

/// What must not be forgotten.
#[derive(Debug)]
pub(super) struct Memory {
    dir: PathBuf,
}

impl Memory {
    pub(super) fn below(state_dir: &Path) -> Self {
        Self {
            dir: state_dir.join(DIR),
        }
    }

    /// Those that an earlier daemon told of. What cannot be read is named and left alone.
    pub(super) fn recall(&self) -> BTreeMap<Subnets, Told> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return BTreeMap::new(),
            Err(error) => {
                let path = self.dir.display();
                warn!(%path, %error, "cannot read which peers the extension's programs know");
                return BTreeMap::new();
            }
        };
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        paths.filter_map(|path| recall_one(&path)).collect()
    }

    /// Before a program is told of this peer.
    pub(super) fn keep(&self, subnets: &Subnets, told: &Told) {
        let path = self.path(subnets);
        if let Err(error) = atomic_file::write(&path, told.render().as_bytes()) {
            let path = path.display();
            warn!(%path, %error, "cannot remember a peer: should it leave while this daemon is down, no program is told");
        }
    }

    /// Behind a program that was told that this peer is gone.
    pub(super) fn forget(&self, subnets: &Subnets) {
        let path = self.path(subnets);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(path = %path.display(), %error, "cannot forget a peer");
            }
            _ => {}
        }
    }

    fn path(&self, subnets: &Subnets) -> PathBuf {
        self.dir.join(subnets.to_string())
    }
}

fn recall_one(path: &Path) -> Option<(Subnets, Told)> {
    // What a crash left of a write has a name that is no subnet.
    let subnets: Subnets = path.file_name()?.to_str()?.parse().ok()?;
    let text = fs::read_to_string(path).map_err(|error| error.to_string());
    match text.and_then(|text| Told::parse(&text)) {
        Ok(told) => Some((subnets, told)),
        Err(error) => {
            warn!(path = %path.display(), %error, "cannot read which peer the extension's programs know");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_remembered_until_they_are_forgotten_and_other_files_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let memory = Memory::below(dir.path());
        assert_eq!(memory.recall(), BTreeMap::new());
        let both: Subnets = "10.5.30.0-24&fd00:5:0:30::-64".parse().unwrap();
        let one: Subnets = "10.5.31.0-24".parse().unwrap();
        let told = Told {
            environment: [("SUBNET", "10.5.30.0/24".to_owned())].into(),
            data: "two\nlines \"quoted\"".to_owned(),
        };
        memory.keep(&both, &told);
        memory.keep(&one, &told);
        fs::write(dir.path().join("extension/10.5.32.0-24"), "{torn").unwrap();
        fs::write(dir.path().join("extension/README"), "{}").unwrap();
        assert_eq!(memory.recall(), [(both, told.clone()), (one, told)].into());
        memory.forget(&both);
        memory.forget(&both);
        assert_eq!(memory.recall().len(), 1);
    }
}
