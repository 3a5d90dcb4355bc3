//! Paths that a config gives. What makes something there refuses a path that cannot be meant;
//! what takes away passes it over, for nothing was made there. Pure.

use std::path::{Component, Path, PathBuf};

/// The kernel takes no longer one (`PATH_MAX`, with its NUL).
const LONGEST: usize = 4095;

/// The path, or what is wrong with it: words that begin with the key.
///
/// A relative one would mean another place with every runtime, and `..` leads out of the folder
/// that the operator sees in front of it.
pub(crate) fn parse(key: &str, text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    let fault = if text.contains(char::is_control) {
        "has a control character in it"
    } else if !path.is_absolute() {
        "is not absolute"
    } else if path.components().any(|part| part == Component::ParentDir) {
        "has .. in it"
    } else if text.len() > LONGEST {
        "is longer than a path can be"
    } else {
        return Ok(path.to_owned());
    };
    Err(format!("{key} {fault}: {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_meant_is_refused_with_its_key() {
        let right = "/var/lib/cni/..networks/a b";
        assert_eq!(parse("dataDir", right), Ok(PathBuf::from(right)));
        let long = "/x".repeat(3000);
        for (text, fault) in [
            ("x/y", "is not absolute"),
            ("../x", "is not absolute"),
            ("/x/../y", "has .. in it"),
            ("/x\0", "control"),
            ("/x\n", "control"),
            (&long, "longer"),
        ] {
            let said = parse("dataDir", text).unwrap_err();
            assert!(
                said.starts_with("dataDir ") && said.contains(fault),
                "{said}"
            );
        }
    }
}
