//! Which containerd: the distribution's, or a later one.

use std::path::{Path, PathBuf};

use crate::tools::{self, Missing};

const SHIM: &str = "containerd-shim-runc-v2";

/// A containerd and its shim.
#[derive(Debug, Clone)]
pub struct Programs {
    pub(super) containerd: PathBuf,
    /// Where its shim is, unless that is beside it.
    shim_dir: Option<PathBuf>,
}

impl Programs {
    /// Debian's.
    pub fn of_the_distribution() -> Result<Self, Missing> {
        tools::program(SHIM)?;
        Ok(Self {
            containerd: tools::program("containerd")?,
            shim_dir: None,
        })
    }

    /// containerd 2.x from Go's source: the versions in go-tools.txt.
    pub fn second_generation() -> Result<Self, Missing> {
        let shim = tools::go_tool(SHIM)?;
        Ok(Self {
            containerd: tools::go_tool("containerd")?,
            shim_dir: shim.parent().map(PathBuf::from),
        })
    }

    /// What a shell starts it by; containerd looks for its shim in PATH.
    pub(super) fn line(&self, config_path: &Path) -> String {
        let path = match &self.shim_dir {
            Some(dir) => format!("PATH='{}':\"$PATH\" ", dir.display()),
            None => String::new(),
        };
        let (program, config) = (self.containerd.display(), config_path.display());
        format!("{path}'{program}' --config '{config}'")
    }
}
