//! An attachment: one interface of one container in one network. Pure.
//!
//! Everything that twill makes for an attachment can be found again from these three names alone,
//! because the runtime may kill ADD at any instruction and DEL may get nothing else: the node's
//! end of the veth pair has a name computed from them and an alias that spells them out.

use kernel::Mac;

use crate::error::{Code, Error};

/// The longest alias the kernel keeps (`IFALIASZ` less its terminator).
const ALIAS_MAX: usize = 255;

/// How many names are tried for the node's end before giving up: each is taken by chance once in
/// four thousand million.
pub(crate) const CANDIDATES: u32 = 3;

/// The names that an attachment is known by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Attachment {
    /// The network's name in its config.
    pub(crate) network: String,
    /// CNI_CONTAINERID.
    pub(crate) container_id: String,
    /// CNI_IFNAME.
    pub(crate) ifname: String,
}

impl Attachment {
    /// Refuses names so long that the alias could not spell them out.
    pub(crate) fn new(
        network: &str,
        container_id: &str,
        ifname: &str,
    ) -> Result<Attachment, Error> {
        let attachment = Attachment {
            network: network.to_owned(),
            container_id: container_id.to_owned(),
            ifname: ifname.to_owned(),
        };
        let length = attachment.alias().len();
        match length <= ALIAS_MAX {
            true => Ok(attachment),
            false => Err(Error::new(
                Code::InvalidConfig,
                format!(
                    "network name and container ID are too long together: the interface alias that names them would have {length} bytes, the kernel keeps {ALIAS_MAX}"
                ),
            )),
        }
    }

    /// The alias of the node's end: who owns it.
    pub(crate) fn alias(&self) -> String {
        let Attachment {
            network,
            container_id,
            ifname,
        } = self;
        format!("twill:{network}/{container_id}/{ifname}")
    }

    /// The attachment that an alias names; `None` for an alias that is not ours.
    pub(crate) fn from_alias(alias: &str) -> Option<Attachment> {
        let mut names = alias.strip_prefix("twill:")?.splitn(3, '/');
        Some(Attachment {
            network: names.next()?.to_owned(),
            container_id: names.next()?.to_owned(),
            ifname: names.next().filter(|name| !name.contains('/'))?.to_owned(),
        })
    }

    /// The name of the node's end: `veth` and eight digits, as upstream's, but computed.
    /// `candidate` counts from 0; the next one is tried where a name is taken by someone else.
    pub(crate) fn host_ifname(&self, candidate: u32) -> String {
        let hash = self.hash(&candidate.to_be_bytes());
        format!("veth{:08x}", (hash >> 32) as u32 ^ hash as u32)
    }

    /// The hardware address of the node's end. It names the attachment until the alias does.
    pub(crate) fn host_mac(&self) -> Mac {
        let [_, _, _, bytes @ ..] = self.hash(b"mac").to_be_bytes();
        let [a, b, c, d, e] = bytes;
        // High, because a bridge without an address of its own takes the lowest of its ports'.
        Mac([0xfe, a, b, c, d, e])
    }

    fn hash(&self, salt: &[u8]) -> u64 {
        let Attachment {
            network,
            container_id,
            ifname,
        } = self;
        hash(&[
            network.as_bytes(),
            container_id.as_bytes(),
            ifname.as_bytes(),
            salt,
        ])
    }
}

impl std::fmt::Display for Attachment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of container {}", self.ifname, self.container_id)
    }
}

/// FNV-1a, 64 bits (RFC 9923): stable over releases, which `DefaultHasher` is not.
pub(crate) fn hash(parts: &[&[u8]]) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for part in parts {
        // A byte that no name has ends each, so that ("a", "bc") and ("ab", "c") differ.
        for byte in part.iter().chain(&[0]) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(network: &str, container_id: &str, ifname: &str) -> Attachment {
        Attachment::new(network, container_id, ifname).unwrap()
    }

    #[test]
    fn the_alias_names_the_attachment() {
        let it = attachment("cbr0", "abc", "eth0");
        assert_eq!(it.alias(), "twill:cbr0/abc/eth0");
        assert_eq!(Attachment::from_alias(&it.alias()), Some(it));
        for foreign in ["", "x", "twill:", "twill:a/b", "twill:a/b/c/d"] {
            assert_eq!(Attachment::from_alias(foreign), None, "{foreign}");
        }
    }

    /// A later release must find what an earlier one made.
    #[test]
    fn the_host_name_is_the_same_in_every_release() {
        let it = attachment("cbr0", "abc", "eth0");
        assert_eq!(it.host_ifname(0), "veth904ffb32");
        assert_ne!(it.host_ifname(1), it.host_ifname(0));
        assert_ne!(
            attachment("cbr0", "ab", "ceth0").host_ifname(0),
            it.host_ifname(0)
        );
    }

    #[test]
    fn names_that_no_alias_can_hold_are_refused() {
        let error = Attachment::new("cbr0", &"a".repeat(250), "eth0").unwrap_err();
        assert_eq!(error.code, Code::InvalidConfig);
        assert!(Attachment::new("cbr0", &"a".repeat(239), "eth0").is_ok());
    }
}
