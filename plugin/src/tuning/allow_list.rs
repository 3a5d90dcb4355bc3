//! The operator's list of settings that pods may have: one regular expression per line.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use regex_lite::Regex;

use crate::error::{Code, Error};

/// The list; without a file everything is allowed.
#[derive(Debug)]
pub(crate) struct AllowList {
    patterns: Option<Vec<Regex>>,
}

impl AllowList {
    /// Reads the file. A list that cannot be read or understood allows nothing: the error says so.
    pub(crate) fn read(path: &Path) -> Result<AllowList, Error> {
        match fs::read_to_string(path) {
            Ok(text) => AllowList::parse(&text, path),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(AllowList { patterns: None }),
            Err(error) => {
                let msg = format!("tuning: read {}: {error}", path.display());
                Err(Error::new(Code::State, msg))
            }
        }
    }

    fn parse(text: &str, path: &Path) -> Result<AllowList, Error> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let patterns = lines
            .map(|line| {
                Regex::new(line).map_err(|error| {
                    let msg = format!("tuning: {}: {line:?}: {error}", path.display());
                    Error::new(Code::InvalidConfig, msg)
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(AllowList {
            patterns: Some(patterns),
        })
    }

    /// Fails for the first key, as it is written in the config, that no line matches.
    pub(crate) fn permit<'a>(&self, keys: impl IntoIterator<Item = &'a str>) -> Result<(), Error> {
        let Some(patterns) = &self.patterns else {
            return Ok(());
        };
        let allowed = |key: &str| patterns.iter().any(|pattern| pattern.is_match(key));
        match keys.into_iter().find(|key| !allowed(key)) {
            None => Ok(()),
            Some(key) => {
                let list: Vec<&str> = patterns.iter().map(Regex::as_str).collect();
                let list = list.join(" ");
                Err(Error::new(
                    Code::InvalidConfig,
                    format!(
                        "Sysctl {key} is not allowed. Only the following sysctls are allowed: [{list}]"
                    ),
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_line_matches_is_refused() {
        let list =
            AllowList::parse("^net\\.core\\..*$\n\n ^net/ipv4/tcp \n", Path::new("x")).unwrap();
        assert!(
            list.permit(["net.core.somaxconn", "net/ipv4/tcp_rmem"])
                .is_ok()
        );
        let error = list
            .permit(["net.core.x", "net.ipv4.ip_forward"])
            .unwrap_err();
        assert_eq!(
            error.msg,
            "Sysctl net.ipv4.ip_forward is not allowed. Only the following sysctls are allowed: [^net\\.core\\..*$ ^net/ipv4/tcp]"
        );
        assert!(list.permit([]).is_ok());
        assert!(
            AllowList::parse("", Path::new("x"))
                .unwrap()
                .permit(["net.a"])
                .is_err()
        );
    }

    #[test]
    fn without_a_file_everything_is_allowed_and_a_broken_one_allows_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("allowlist.conf");
        assert!(AllowList::read(&path).unwrap().permit(["net.a"]).is_ok());
        fs::write(&path, "(").unwrap();
        assert_eq!(
            AllowList::read(&path).unwrap_err().code,
            Code::InvalidConfig
        );
        assert_eq!(AllowList::read(dir.path()).unwrap_err().code, Code::State);
    }
}
