//! The real flanneld: which one, and the flags that put it in twilld's place on a node.
//!
//! It decides nothing about what flanneld does. Starting and ending it is the cluster's
//! ([`crate::cluster::Member::start_instead`]).

use std::path::PathBuf;

use crate::tools::{self, Missing};

/// The variable that names another flanneld by its path, such as a newer one.
const PATH: &str = "FLANNELD";

/// The program: `FLANNELD`, else the one of the list.
pub fn path() -> Result<PathBuf, Missing> {
    match std::env::var_os(PATH).filter(|path| !path.is_empty()) {
        None => tools::go_tool("flanneld"),
        Some(path) => {
            let path = PathBuf::from(path);
            let what = || format!("{} (from {PATH})", path.display());
            match path.is_file() {
                true => Ok(path),
                false => Err(Missing::new(what(), "name a flanneld, or nothing")),
            }
        }
    }
}

/// flanneld needs the iptables programs, even to find out that it need not.
pub fn installed() -> Result<PathBuf, Missing> {
    tools::program("iptables")?;
    path()
}
