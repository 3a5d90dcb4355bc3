//! What a node must remember over restarts and reboots: its lease's subnets and the MAC addresses
//! of its VTEPs, in one small JSON file of the state folder.
//!
//! With them a reboot changes nothing for peers. Without them everything still works: an unreadable
//! file is reported and replaced.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use kernel::Mac;
use serde::{Deserialize, Serialize};

use crate::atomic_file;
use crate::subnets::Subnets;

/// What is remembered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remembered {
    /// The subnets held last.
    pub subnets: Option<Subnets>,
    /// The MAC address of each VTEP device, by its name.
    pub macs: BTreeMap<String, Mac>,
}

/// The file.
#[derive(Debug, Clone)]
pub struct StateFile {
    path: PathBuf,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Stored {
    subnets: Option<String>,
    macs: BTreeMap<String, String>,
}

impl StateFile {
    /// The file `node.json` of a state folder.
    pub fn in_dir(dir: &Path) -> Self {
        Self {
            path: dir.join("node.json"),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads it; nothing is remembered if there is no file.
    pub fn load(&self) -> io::Result<Remembered> {
        let text = match fs::read(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Remembered::default());
            }
            text => text?,
        };
        parse(&text).map_err(|reason| io::Error::new(io::ErrorKind::InvalidData, reason))
    }

    /// Writes it, unless it says so already.
    pub fn save(&self, remembered: &Remembered) -> io::Result<()> {
        if self.load().is_ok_and(|present| present == *remembered) {
            return Ok(());
        }
        let stored = Stored {
            subnets: remembered.subnets.map(|subnets| subnets.to_string()),
            macs: remembered
                .macs
                .iter()
                .map(|(device, mac)| (device.clone(), mac.to_string()))
                .collect(),
        };
        let mut text = serde_json::to_vec_pretty(&stored).map_err(io::Error::other)?;
        text.push(b'\n');
        atomic_file::write(&self.path, &text)
    }
}

fn parse(text: &[u8]) -> Result<Remembered, String> {
    let stored: Stored = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    let subnets = stored
        .subnets
        .map(|key| key.parse().map_err(|e| format!("subnets {key:?}: {e}")))
        .transpose()?;
    let macs = stored
        .macs
        .into_iter()
        .map(|(device, mac)| match mac.parse::<Mac>() {
            Ok(mac) if mac.is_unicast() => Ok((device, mac)),
            Ok(mac) => Err(format!("macs.{device}: {mac} is no device's own address")),
            Err(error) => Err(format!("macs.{device}: {error}")),
        })
        .collect::<Result<_, _>>()?;
    Ok(Remembered { subnets, macs })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::in_dir(&dir.path().join("new"));
        assert_eq!(file.load().unwrap(), Remembered::default());
        let remembered = Remembered {
            subnets: "10.5.20.0-24".parse().ok(),
            macs: [("flannel.1".to_owned(), Mac([2, 0, 0, 0, 0, 1]))].into(),
        };
        file.save(&remembered).unwrap();
        assert_eq!(file.load().unwrap(), remembered);
    }

    #[test]
    fn a_torn_file_is_an_error_that_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::in_dir(dir.path());
        for (text, words) in [
            ("{", "EOF"),
            (r#"{"subnets":"x"}"#, "subnets"),
            (r#"{"macs":{"flannel.1":"x"}}"#, "macs.flannel.1"),
            (
                r#"{"macs":{"flannel.1":"ff:ff:ff:ff:ff:ff"}}"#,
                "no device's own",
            ),
        ] {
            fs::write(file.path(), text).unwrap();
            let error = file.load().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
