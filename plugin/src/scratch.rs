//! The rendered bridge config of each container, where flannel's plugin keeps it.
//!
//! twill itself needs none of it but one hint for DEL; it is written so that a node that goes back
//! to the Go plugins can delete what twill made, and read to delete what they made.

use std::fs;
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use kernel::file;
use nix::fcntl::OFlag;
use serde_json::Value;

use crate::error::{Code, Error};

/// The file of one container.
#[derive(Debug, Clone)]
pub(crate) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// The file's place; nothing is read or made yet. The ID is valid, and so a file name.
    pub(crate) fn new(dir: &Path, container_id: &str) -> Scratch {
        Scratch {
            path: dir.join(container_id),
        }
    }

    /// Writes the rendered config. The place of one that is there is taken by rename: without it
    /// the Go plugins' DEL would leave everything behind.
    pub(crate) fn write(&self, rendered: &Value) -> Result<(), Error> {
        let text = go_json::to_compact(rendered).expect("a value is always JSON");
        let write = || match write_to(&self.path, &text, OFlag::O_EXCL) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let temporary = self.temporary();
                write_to(&temporary, &text, OFlag::O_TRUNC)?;
                fs::rename(&temporary, &self.path)
            }
            other => other,
        };
        write().map_err(|error| self.error("write", &error))
    }

    /// Hidden, and no container's: an ID begins with a letter or digit.
    fn temporary(&self) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        self.path.with_file_name(format!(".{name}"))
    }

    /// Whether there is one, of whatever network.
    pub(crate) fn exists(&self) -> bool {
        let there = |path: &Path| fs::symlink_metadata(path).is_ok();
        there(&self.path) || there(&self.temporary())
    }

    /// What was rendered for this network, if it can still be read. The file is shared by all
    /// attachments of the container, so it may be another network's.
    pub(crate) fn read(&self, network: &str) -> Option<Value> {
        let rendered: Value = serde_json::from_slice(&file::read(&self.path).ok()?).ok()?;
        let name = go_json::field(&rendered, "name").and_then(Value::as_str);
        (name == Some(network)).then_some(rendered)
    }

    /// Removes the file, unless it is another network's. One that cannot be read is nobody's.
    pub(crate) fn remove(&self, network: &str) -> Result<(), Error> {
        let others = file::read(&self.path).ok().and_then(|bytes| {
            let rendered: Value = serde_json::from_slice(&bytes).ok()?;
            let name = go_json::field(&rendered, "name")?.as_str()?;
            Some(name != network)
        });
        if others == Some(true) {
            return Ok(());
        }
        for path in [self.temporary(), self.path.clone()] {
            match fs::remove_file(&path) {
                Err(error) if !is_absent(&error) => return Err(self.error("remove", &error)),
                _ => {}
            }
        }
        Ok(())
    }

    fn error(&self, op: &str, error: &io::Error) -> Error {
        let path = self.path.display();
        Error::new(Code::State, format!("{op} {path}: {error}"))
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// Writes to a file, which is made or, as `how` says, emptied; makes the folder where it is missing.
fn write_to(path: &Path, text: &str, how: OFlag) -> io::Result<()> {
    let open = || file::open(path, OFlag::O_WRONLY | OFlag::O_CREAT | how, 0o600);
    let mut file = match open() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let dir = path.parent().unwrap_or(Path::new("/"));
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)?;
            open()?
        }
        other => other?,
    };
    file.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_file_of_another_network_stays() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(&dir.path().join("new"), "abc");
        scratch.write(&json!({"name":"a"})).unwrap();
        assert_eq!(scratch.read("b"), None);
        scratch.remove("b").unwrap();
        assert_eq!(scratch.read("a"), Some(json!({"name":"a"})));
        scratch.remove("a").unwrap();
        assert_eq!(scratch.read("a"), None);
        scratch.remove("a").unwrap();
    }

    #[test]
    fn a_torn_file_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(dir.path(), "abc");
        for torn in ["", "{\"name\":"] {
            fs::write(dir.path().join("abc"), torn).unwrap();
            scratch.remove("a").unwrap();
            assert!(!dir.path().join("abc").exists());
        }
    }
}
