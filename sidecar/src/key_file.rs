//! The file with WireGuard's private key, so that peers know the node again after a reboot.
//!
//! Flannel keeps it where a reboot empties it; a key that lies there is taken over, so that a node
//! that changes over from flannel keeps its name among its peers.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use tracing::info;

use crate::backend::wireguard::PrivateKey;

/// Flannel's variable for the file.
const VARIABLE: &str = "WIREGUARD_KEY_FILE";
/// Where flannel keeps it without.
const FLANNELS: &str = "/run/flannel/wgkey";

/// The key in the file that the environment names or else in the state folder; a new one if there
/// is none yet.
pub(crate) fn load_or_draw(state_dir: &Path) -> anyhow::Result<PrivateKey> {
    let named = std::env::var_os(VARIABLE).filter(|path| !path.is_empty());
    let path = named.map_or_else(|| state_dir.join("wgkey"), PathBuf::from);
    if let Some(key) = load(&path)? {
        return Ok(key);
    }
    let key = match load(Path::new(FLANNELS)) {
        Ok(Some(key)) => {
            info!(from = FLANNELS, to = %path.display(), "taking over flannel's WireGuard key");
            key
        }
        _ => {
            let mut bytes = [0; 32];
            getrandom::fill(&mut bytes).map_err(|error| anyhow!("draw a key: {error}"))?;
            PrivateKey::new(bytes)
        }
    };
    save(&path, &key).with_context(|| format!("keep the WireGuard key in {}", path.display()))?;
    Ok(key)
}

fn load(path: &Path) -> anyhow::Result<Option<PrivateKey>> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.with_context(|| format!("read the WireGuard key in {}", path.display()))?,
    };
    match PrivateKey::parse(&text) {
        Ok(key) => Ok(Some(key)),
        Err(reason) => Err(anyhow!(
            "{} holds no WireGuard key ({reason}): write one there (wg genkey), or remove it to get a new one",
            path.display()
        )),
    }
}

/// Readable by us alone from its first moment on.
fn save(path: &Path, key: &PrivateKey) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir)?;
    let hidden = dir.join(".wgkey.new");
    let _ = fs::remove_file(&hidden);
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o400)
        .open(&hidden)?;
    file.write_all(key.render().as_bytes())?;
    file.sync_all()?;
    fs::rename(&hidden, path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_drawn_once_kept_to_ourselves_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/wgkey");
        let key = PrivateKey::new([9; 32]);
        assert_eq!(load(&path).unwrap(), None);
        save(&path, &key).unwrap();
        assert_eq!(load(&path).unwrap(), Some(key));
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o400);
    }

    #[test]
    fn a_file_that_holds_no_key_is_named_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wgkey");
        fs::write(&path, "not a key").unwrap();
        let error = load(&path).unwrap_err().to_string();
        assert!(
            error.contains("wgkey") && error.contains("wg genkey"),
            "{error}"
        );
        assert!(!error.contains("not a key"), "{error}");
    }
}
