//! flannel's annotations on Node objects: their names, what this node writes, what a peer's say.
//!
//! Pure. Which of them are sent, and how, is [`super::publish`]'s matter.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::IpAddr;

use crate::family::{ByFamily, Family};
use crate::lease::Lease;

/// The annotations of a Node, as far as anybody here reads them.
pub(super) type Annotations = BTreeMap<String, String>;

/// The names, all under one prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    prefix: String,
}

/// Why a text is no prefix of annotations.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{prefix:?} is no annotation prefix: {problem}, as in flannel.alpha.coreos.com or example.org/net"
)]
pub struct PrefixError {
    prefix: String,
    problem: &'static str,
}

impl Names {
    /// flannel's rule: a domain name, then `/`, then nothing or a word that ends in `-`; what is
    /// missing at the end is added.
    pub(super) fn new(prefix: &str) -> Result<Self, PrefixError> {
        let wrong = |problem| PrefixError {
            prefix: prefix.to_owned(),
            problem,
        };
        let mut parts = prefix.split('/');
        let (domain, word) = (parts.next().unwrap_or_default(), parts.next());
        if parts.next().is_some() {
            return Err(wrong("more than one slash"));
        }
        let labels: Vec<&str> = domain.split('.').collect();
        let is_word = |text: &str, also: &str| {
            let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || also.contains(c);
            !text.is_empty() && text.chars().all(fits)
        };
        let is_label =
            |label: &&str| is_word(label, "-") && !label.starts_with('-') && !label.ends_with('-');
        if labels.len() < 2 || !labels.iter().all(is_label) {
            return Err(wrong("it does not begin with a domain name"));
        }
        let prefix = match word {
            None | Some("") => format!("{domain}/"),
            Some(word) if !is_word(word, "-_") => {
                return Err(wrong("after the slash only a-z, 0-9, - and _ may stand"));
            }
            Some(word) if word.ends_with('-') => format!("{domain}/{word}"),
            Some(word) => format!("{domain}/{word}-"),
        };
        Ok(Self { prefix })
    }

    /// Whether an annotation is one of these.
    pub(super) fn is_ours(&self, name: &str) -> bool {
        name.starts_with(&self.prefix)
    }

    fn name(&self, suffix: &str) -> String {
        format!("{}{suffix}", self.prefix)
    }

    fn value<'a>(&self, of: &'a Annotations, suffix: &str) -> Option<&'a str> {
        of.get(&self.name(suffix)).map(String::as_str)
    }

    /// Whether flanneld, twilld, or a program that plays one, speaks for this Node.
    pub(super) fn is_managed(&self, of: &Annotations) -> bool {
        self.value(of, "kube-subnet-manager") == Some("true")
    }

    /// Addresses that an operator has written down for this node itself.
    pub(super) fn node_public_ips(&self, of: &Annotations) -> Result<ByFamily<IpAddr>, String> {
        self.addresses(of, |family| match family {
            Family::V4 => "node-public-ip",
            Family::V6 => "node-public-ipv6",
        })
    }

    /// Addresses that peers are told instead of our own, such as a NAT's.
    pub(super) fn overwrites(&self, of: &Annotations) -> Result<ByFamily<IpAddr>, String> {
        self.addresses(of, |family| match family {
            Family::V4 => "public-ip-overwrite",
            Family::V6 => "public-ipv6-overwrite",
        })
    }

    fn addresses(
        &self,
        of: &Annotations,
        suffix: impl Fn(Family) -> &'static str,
    ) -> Result<ByFamily<IpAddr>, String> {
        let mut addresses = ByFamily::default();
        for family in Family::ALL {
            let text = self.value(of, suffix(family)).unwrap_or_default();
            if text.is_empty() {
                continue;
            }
            let address = text.parse().ok().filter(|ip| Family::of(*ip) == family);
            let name = self.name(suffix(family));
            let address =
                address.ok_or_else(|| format!("{name} is {text:?}, not an {family} address"))?;
            if !address.is_unspecified() {
                addresses.set(family, address);
            }
        }
        Ok(addresses)
    }

    /// The lease that a Node's annotations say; an error names the annotation.
    pub(super) fn lease(&self, of: &Annotations) -> Result<Lease, String> {
        let public_ips = self.addresses(of, |family| match family {
            Family::V4 => "public-ip",
            Family::V6 => "public-ipv6",
        })?;
        let mut backend_data = ByFamily::default();
        for family in Family::ALL {
            let text = self.value(of, data_suffix(family)).unwrap_or_default();
            if text.is_empty() {
                continue;
            }
            let wrong =
                |error: &dyn Display| format!("{}: {error}", self.name(data_suffix(family)));
            if text.len() > LONGEST_DATA {
                return Err(wrong(&format!("{} bytes are no backend's", text.len())));
            }
            let data: serde_json::Value = serde_json::from_str(text).map_err(|e| wrong(&e))?;
            if !data.is_null() {
                backend_data.set(family, data.to_string().into());
            }
        }
        Ok(Lease {
            public_ips,
            backend_type: self.value(of, "backend-type").unwrap_or_default().into(),
            backend_data,
        })
    }

    /// Everything that this node publishes for a lease, given the Node's annotations now.
    pub(super) fn of_lease(&self, lease: &Lease, overwrites: &ByFamily<IpAddr>) -> Annotations {
        let mut wanted = Annotations::new();
        let mut set = |suffix: &str, value: &str| {
            wanted.insert(self.name(suffix), value.to_owned());
        };
        set("kube-subnet-manager", "true");
        set("backend-type", &lease.backend_type);
        for family in Family::ALL.into_iter().filter(|f| publishes(lease, *f)) {
            let data = lease.backend_data.get(family);
            set(data_suffix(family), data.map_or("null", |data| data));
            let own = lease.public_ips.get(family).copied();
            let public_ip = overwrites.get(family).copied().or(own);
            let public_ip = public_ip.unwrap_or(family.unspecified()).to_string();
            match family {
                Family::V4 => set("public-ip", &public_ip),
                Family::V6 => set("public-ipv6", &public_ip),
            }
        }
        wanted
    }
}

/// A backend writes some hundred bytes.
const LONGEST_DATA: usize = 64 * 1024;

const fn data_suffix(family: Family) -> &'static str {
    match family {
        Family::V4 => "backend-data",
        Family::V6 => "backend-v6-data",
    }
}

/// Whether flannel writes a family's annotations for a backend: IPv4's even without IPv4, except
/// for vxlan; IPv6's only for backends that know IPv6, and only with what they need.
fn publishes(lease: &Lease, family: Family) -> bool {
    let has_data = lease.backend_data.get(family).is_some();
    let has_ip = lease.public_ips.get(family).is_some();
    match (family, &*lease.backend_type) {
        (_, "vxlan") => has_data,
        (Family::V4, _) => true,
        (Family::V6, "wireguard") => has_data && has_ip,
        (Family::V6, "host-gw" | "extension") => has_ip,
        (Family::V6, _) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_is_completed_as_flannel_completes_it() {
        for (given, prefix) in [
            ("flannel.alpha.coreos.com", "flannel.alpha.coreos.com/"),
            ("foo.io/", "foo.io/"),
            ("foo.io/net", "foo.io/net-"),
            ("foo.io/net-", "foo.io/net-"),
            ("foo.io/a_b", "foo.io/a_b-"),
        ] {
            assert_eq!(Names::new(given).unwrap().prefix, prefix);
        }
        for (given, word) in [
            ("foo.io/a/b", "more than one slash"),
            ("foo/x", "domain name"),
            ("", "domain name"),
            ("foo..io", "domain name"),
            ("Foo.io", "domain name"),
            ("foo.io/A", "after the slash"),
        ] {
            let error = Names::new(given).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    fn names() -> Names {
        Names::new("flannel.alpha.coreos.com").unwrap()
    }

    fn annotations(of: &[(&str, &str)]) -> Annotations {
        of.iter()
            .map(|(suffix, value)| (names().name(suffix), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn what_is_published_is_read_back() {
        for value in [
            r#"{"PublicIP":"192.168.50.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"9a:b3:51:e0:31:a9"}}"#,
            r#"{"PublicIP":"0.0.0.0","PublicIPv6":"fd00:50::1","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"be:72:dc:fb:29:77"}}"#,
            r#"{"PublicIP":"192.168.50.1","PublicIPv6":"fd00:50::1","BackendType":"host-gw"}"#,
            r#"{"PublicIP":"192.168.50.1","PublicIPv6":null}"#,
        ] {
            let lease = Lease::parse(value.as_bytes()).unwrap();
            let written = names().of_lease(&lease, &ByFamily::default());
            assert!(names().is_managed(&written));
            assert_eq!(names().lease(&written).unwrap(), lease);
        }
    }

    #[test]
    fn an_overwrite_is_told_to_peers_and_a_broken_one_is_not() {
        let lease = Lease::parse(br#"{"PublicIP":"192.168.50.1"}"#).unwrap();
        let now = annotations(&[("public-ip-overwrite", "203.0.113.7")]);
        let overwrites = names().overwrites(&now).unwrap();
        let written = names().of_lease(&lease, &overwrites);
        assert_eq!(written["flannel.alpha.coreos.com/public-ip"], "203.0.113.7");
        for (suffix, value) in [
            ("public-ip-overwrite", "nat"),
            ("public-ipv6-overwrite", "10.0.0.1"),
        ] {
            let error = names()
                .overwrites(&annotations(&[(suffix, value)]))
                .unwrap_err();
            assert!(error.contains(suffix), "{error}");
        }
    }

    #[test]
    fn the_annotation_that_is_wrong_is_named() {
        for (suffix, value) in [
            ("public-ip", "x"),
            ("public-ip", "fd00::1"),
            ("backend-data", "{"),
            ("backend-v6-data", "nil"),
        ] {
            let error = names().lease(&annotations(&[(suffix, value)])).unwrap_err();
            assert!(error.contains(suffix), "{error}");
        }
        let megabyte = format!("\"{}\"", "x".repeat(1 << 20));
        let error = names()
            .lease(&annotations(&[("backend-data", &megabyte)]))
            .unwrap_err();
        assert!(error.contains("1048578 bytes"), "{error}");
    }
}
