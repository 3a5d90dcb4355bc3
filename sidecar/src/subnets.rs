//! What a lease is about and known by: the subnets that a node holds, at most one per family.
//!
//! The text form is the lease's key in every store that flannel shares: `10.5.20.0-24`, dual stack
//! `10.5.20.0-24&fd00:5:0:20::-64`, IPv6 alone `0.0.0.0-0&fd00:5:0:20::-64`. It does not know what
//! a store or a lease's value is.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;

use crate::family::{ByFamily, Family, family_of};

/// A node's subnets: at least one, at most one per family, without host bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnets(ByFamily<IpNet>);

/// Why a text is not the key of a lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It does not look like a key at all.
    #[error("not of the form A.B.C.D-LEN or A.B.C.D-LEN&IPV6-LEN")]
    Shape,
    /// The prefix length cannot be a subnet's: flannel reads at most 31 and 127.
    #[error("/{0} is not a subnet's prefix length")]
    Length(u8),
    /// Bits beyond the prefix are set: the kernel refuses such a route.
    #[error("host bits are set: the subnet would be {0}")]
    HostBits(IpNet),
    /// `0.0.0.0-0` with no IPv6 part.
    #[error("it names no subnet")]
    Empty,
    /// Another spelling of a key: two names for one subnet would hide a double claim.
    #[error("not the usual spelling, which is {0}")]
    Spelling(Subnets),
}

impl Subnets {
    /// The subnets of each family; `None` if there are none. Host bits are masked off.
    pub fn new(subnets: impl IntoIterator<Item = IpNet>) -> Option<Self> {
        let subnets: ByFamily<IpNet> = subnets
            .into_iter()
            .map(|net| (family_of(net), net.trunc()))
            .collect();
        (!subnets.is_empty()).then_some(Self(subnets))
    }

    /// The subnet of a family.
    pub fn get(&self, family: Family) -> Option<IpNet> {
        self.0.get(family).copied()
    }

    /// The subnets, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = (Family, IpNet)> + '_ {
        self.0.iter().map(|(family, net)| (family, *net))
    }

    /// Whether the others have each of these as it is; they may have another family, too.
    pub fn is_within(&self, others: &Self) -> bool {
        self.iter()
            .all(|(family, mine)| others.get(family) == Some(mine))
    }

    /// Whether the two claim an address in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.iter().any(|(family, mine)| {
            other
                .get(family)
                .is_some_and(|theirs| mine.contains(&theirs) || theirs.contains(&mine))
        })
    }
}

impl fmt::Display for Subnets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let no_v4 = IpNet::new_assert(Family::V4.unspecified(), 0);
        let v4 = self.get(Family::V4).unwrap_or(no_v4);
        write!(f, "{}-{}", v4.addr(), v4.prefix_len())?;
        match self.get(Family::V6) {
            Some(v6) => write!(f, "&{}-{}", v6.addr(), v6.prefix_len()),
            None => Ok(()),
        }
    }
}

impl FromStr for Subnets {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let (v4, v6) = match text.split_once('&') {
            Some((v4, v6)) => (v4, Some(v6)),
            None => (text, None),
        };
        let mut subnets = ByFamily::default();
        let (base, len) = half::<Ipv4Addr>(v4)?;
        // An IPv6-only node's key begins with an IPv4 part that says nothing.
        if (base, len) != (Ipv4Addr::UNSPECIFIED, 0) {
            subnets.set(Family::V4, subnet(base.into(), len, 31)?);
        }
        if let Some(v6) = v6 {
            let (base, len) = half::<Ipv6Addr>(v6)?;
            subnets.set(Family::V6, subnet(base.into(), len, 127)?);
        }
        if subnets.is_empty() {
            return Err(KeyError::Empty);
        }
        let subnets = Self(subnets);
        if subnets.to_string() != text {
            return Err(KeyError::Spelling(subnets));
        }
        Ok(subnets)
    }
}

fn half<A: FromStr>(text: &str) -> Result<(A, u8), KeyError> {
    let (base, len) = text.rsplit_once('-').ok_or(KeyError::Shape)?;
    let base = base.parse().map_err(|_| KeyError::Shape)?;
    let len = len.parse().map_err(|_| KeyError::Shape)?;
    Ok((base, len))
}

fn subnet(base: IpAddr, len: u8, longest: u8) -> Result<IpNet, KeyError> {
    if len == 0 || len > longest {
        return Err(KeyError::Length(len));
    }
    let net = IpNet::new(base, len).map_err(|_| KeyError::Length(len))?;
    if net.addr() != net.network() {
        return Err(KeyError::HostBits(net.trunc()));
    }
    Ok(net)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_are_read_and_written_in_flannels_form() {
        for key in [
            "10.5.20.0-24",
            "10.12.13.0-24&fd00:12:13::-56",
            "0.0.0.0-0&fd00:5:0:20::-64",
        ] {
            assert_eq!(key.parse::<Subnets>().unwrap().to_string(), key);
        }
    }

    #[test]
    fn what_is_not_a_key_is_refused_with_its_reason() {
        let host_bits = KeyError::HostBits("10.5.29.0/24".parse().unwrap());
        for (key, reason) in [
            ("nonsense", KeyError::Shape),
            ("", KeyError::Shape),
            ("10.5.43.0-24&nonsense-64", KeyError::Shape),
            ("10.5.43.0-24&", KeyError::Shape),
            ("10.5.43-24", KeyError::Shape),
            ("10.5.43.0-24.tmp", KeyError::Shape),
            ("x10.5.43.0-24", KeyError::Shape),
            ("10.5.41.0-32", KeyError::Length(32)),
            ("10.5.41.0-0", KeyError::Length(0)),
            ("10.5.41.0-24&fd00::-128", KeyError::Length(128)),
            ("10.5.29.7-24", host_bits),
            ("0.0.0.0-0", KeyError::Empty),
            (
                "10.5.43.0-024",
                KeyError::Spelling("10.5.43.0-24".parse().unwrap()),
            ),
            (
                "10.5.43.0-24&FD00::-64",
                KeyError::Spelling("10.5.43.0-24&fd00::-64".parse().unwrap()),
            ),
        ] {
            assert_eq!(key.parse::<Subnets>(), Err(reason), "{key}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_key_of_its_own_or_none(text in "\\PC{0,40}") {
            if let Ok(subnets) = text.parse::<Subnets>() {
                prop_assert_eq!(subnets.to_string(), text);
            }
        }

        #[test]
        fn every_subnet_has_a_key(bits: u32, len in 1u8..=31, v6: Option<(u128, u8)>) {
            let v6 = v6.map(|(bits, len)| {
                IpNet::new_assert(Family::V6.address(bits), len % 127 + 1)
            });
            let v4 = IpNet::new_assert(Family::V4.address(bits.into()), len);
            let subnets = Subnets::new([v4].into_iter().chain(v6)).unwrap();
            prop_assert_eq!(subnets.to_string().parse(), Ok(subnets));
        }
    }
}
