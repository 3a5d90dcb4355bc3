//! Which CRI-O, and what it runs.

use std::path::PathBuf;

use crate::cri;
use crate::tools::{self, Missing};

/// The variable that names CRI-O by its path.
const PATH: &str = "CRIO";

/// A CRI-O with the programs that it starts, and podman to feed it.
#[derive(Debug, Clone)]
pub struct Programs {
    pub(super) crio: PathBuf,
    /// Comes with CRI-O, and is where that is.
    pub(super) pinns: PathBuf,
    pub(super) conmon: PathBuf,
    pub(super) runc: PathBuf,
    pub(super) podman: PathBuf,
}

impl Programs {
    /// The one that `CRIO` names; without that there is none, on CI's machine neither.
    pub fn named() -> Result<Self, Missing> {
        let named = std::env::var_os(PATH).filter(|path| !path.is_empty());
        let remedy = "set CRIO to the path of a crio that has its pinns beside it";
        let crio = PathBuf::from(named.ok_or_else(|| Missing::new("CRI-O", remedy))?);
        let pinns = crio.with_file_name("pinns");
        for path in [&crio, &pinns] {
            if !path.is_file() {
                let what = format!("{} (from {PATH})", path.display());
                return Err(Missing::new(what, remedy));
            }
        }
        cri::available()?;
        Ok(Self {
            crio,
            pinns,
            conmon: tools::program("conmon")?,
            runc: tools::program("runc")?,
            podman: tools::program("podman")?,
        })
    }
}
