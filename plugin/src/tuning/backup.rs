//! What an interface was before it was tuned: a file per attachment, in the Go plugin's format, so
//! that either puts back what the other changed.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use kernel::link::Link;
use serde::{Deserialize, Serialize};
use serde_json::ser::{PrettyFormatter, Serializer};

use super::config::Tuning;
use crate::error::{Code, Error};

/// The attributes that were changed, as they were.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Backup {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mac: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) promisc: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mtu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) allmulti: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tx_q_len: Option<u32>,
}

/// The file of an attachment. Both names are valid, and safe as file names.
pub(super) fn path(data_dir: &Path, container_id: &str, ifname: &str) -> PathBuf {
    data_dir.join(format!("{container_id}_{ifname}.json"))
}

impl Backup {
    /// Those attributes of the interface that are about to be changed.
    pub(super) fn of(link: &Link, tuning: &Tuning) -> Backup {
        let mac = link.mac.map(|mac| mac.to_string());
        Backup {
            mac: tuning.mac.and(mac),
            promisc: tuning.promiscuous.then_some(link.promiscuous),
            mtu: tuning.mtu.map(|_| link.mtu),
            allmulti: tuning.all_multicast.map(|_| link.all_multicast),
            tx_q_len: tuning.txqlen.map(|_| link.txqlen),
        }
    }

    /// Writes the file whole or not at all.
    pub(crate) fn write(&self, path: &Path) -> Result<(), Error> {
        let io = |error: std::io::Error| {
            let msg = format!("tuning: write {}: {error}", path.display());
            Error::new(Code::State, msg)
        };
        let dir = path.parent().unwrap_or(Path::new("/"));
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(io)?;
        let mut bytes = vec![];
        self.serialize(&mut Serializer::with_formatter(
            &mut bytes,
            PrettyFormatter::with_indent(b" "),
        ))
        .map_err(|error| io(error.into()))?;
        // No other program writes a file of this attachment, so one temporary name will do.
        let temporary = path.with_extension("tmp");
        let written = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut file| file.write_all(&bytes))
            .and_then(|()| fs::rename(&temporary, path));
        written.map_err(|error| {
            let _ = fs::remove_file(&temporary);
            io(error)
        })
    }

    /// Reads the file; None if there is none, or one that cannot be understood.
    pub(crate) fn read(path: &Path) -> Option<Backup> {
        go_json::from_slice(&fs::read(path).ok()?).ok()
    }
}

/// Removes the file. One that is not there is removed.
pub(super) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if [ErrorKind::NotFound, ErrorKind::NotADirectory].contains(&error.kind()) => {
            Ok(())
        }
        Err(error) => {
            let msg = format!("tuning: remove {}: {error}", path.display());
            Err(Error::new(Code::State, msg))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_the_go_plugins_byte_for_byte() {
        let dir = tempfile::tempdir().unwrap();
        let file = path(&dir.path().join("a/b"), "abc", "eth0");
        let backup = Backup {
            mac: Some("62:3d:c3:bb:8e:5d".into()),
            promisc: Some(false),
            mtu: Some(1500),
            allmulti: Some(false),
            tx_q_len: Some(1000),
        };
        backup.write(&file).unwrap();
        assert!(file.ends_with("abc_eth0.json"));
        assert_eq!(
            fs::read_to_string(&file).unwrap(),
            "{\n \"mac\": \"62:3d:c3:bb:8e:5d\",\n \"promisc\": false,\n \"mtu\": 1500,\n \"allmulti\": false,\n \"txQLen\": 1000\n}"
        );
        assert_eq!(Backup::read(&file), Some(backup));
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1);
        remove(&file).unwrap();
        remove(&file).unwrap();
        assert_eq!(Backup::read(&file), None);
    }

    #[test]
    fn a_torn_file_is_no_backup() {
        let dir = tempfile::tempdir().unwrap();
        let file = path(dir.path(), "abc", "eth0");
        for text in ["", "{", "[]", "{\"mtu\":\"x\"}"] {
            fs::write(&file, text).unwrap();
            assert_eq!(Backup::read(&file), None, "{text}");
        }
    }
}
