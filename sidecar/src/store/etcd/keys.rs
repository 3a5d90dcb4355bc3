//! Where things are in etcd: flannel's layout below a prefix, composed as flannel composes it.
//!
//! ```text
//! <prefix>/config                 the net-conf
//! <prefix>/subnets/10.5.20.0-24   a lease
//! ```
//!
//! Flannel lists and watches `<prefix>/subnets` without the last slash and so takes a sibling such
//! as `<prefix>/subnets-x/…` for its own; here the slash is part of it.

use prost::bytes::Bytes;

use crate::subnets::Subnets;

/// The keys below one prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Keys {
    config: String,
    subnets: String,
}

impl Keys {
    pub(super) fn below(prefix: &str) -> Self {
        Self {
            config: join(prefix, "config"),
            subnets: join(prefix, "subnets") + "/",
        }
    }

    /// The configuration's key.
    pub(super) fn config(&self) -> &str {
        &self.config
    }

    /// What every lease's key begins with.
    pub(super) fn subnets(&self) -> &str {
        &self.subnets
    }

    pub(super) fn lease(&self, subnets: &Subnets) -> Bytes {
        format!("{}{subnets}", self.subnets).into()
    }

    /// The first key and the one behind the last that a lease may have.
    pub(super) fn range(&self) -> (Bytes, Bytes) {
        let start = self.subnets.clone().into_bytes();
        let mut end = start.clone();
        // The last byte is the slash; the byte behind it ends the range.
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        (start.into(), end.into())
    }

    /// A lease's name in the store: what its key has behind the prefix.
    pub(super) fn name(&self, key: &[u8]) -> Box<str> {
        let name = key.strip_prefix(self.subnets.as_bytes()).unwrap_or(key);
        String::from_utf8_lossy(name).into()
    }
}

/// Go's `path.Join` for two parts.
fn join(prefix: &str, name: &str) -> String {
    let rooted = prefix.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in prefix.split('/').chain([name]) {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    let path = parts.join("/");
    if rooted { format!("/{path}") } else { path }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_where_flannel_has_them() {
        for (prefix, config) in [
            ("/coreos.com/network", "/coreos.com/network/config"),
            ("/coreos.com/network/", "/coreos.com/network/config"),
            ("coreos.com/network", "coreos.com/network/config"),
            ("//a/./b//../c", "/a/c/config"),
            ("/../a", "/a/config"),
            ("../a", "../a/config"),
            ("/", "/config"),
            ("", "config"),
        ] {
            assert_eq!(Keys::below(prefix).config(), config, "{prefix}");
        }
        let keys = Keys::below("/coreos.com/network");
        let subnets = "10.5.20.0-24&fd00:5:0:20::-64".parse().unwrap();
        let key = keys.lease(&subnets);
        assert_eq!(
            key,
            "/coreos.com/network/subnets/10.5.20.0-24&fd00:5:0:20::-64"
        );
        assert_eq!(&*keys.name(&key), "10.5.20.0-24&fd00:5:0:20::-64");
    }

    #[test]
    fn a_sibling_of_the_leases_is_outside_their_range() {
        let (start, end) = Keys::below("/n").range();
        for inside in [
            "/n/subnets/",
            "/n/subnets/10.5.20.0-24",
            "/n/subnets/\u{ff}",
        ] {
            assert!(
                (&start[..]..&end[..]).contains(&inside.as_bytes()),
                "{inside}"
            );
        }
        for outside in ["/n/subnets", "/n/subnets-x/10.5.46.0-24", "/n/subnets0"] {
            assert!(
                !(&start[..]..&end[..]).contains(&outside.as_bytes()),
                "{outside}"
            );
        }
    }
}
