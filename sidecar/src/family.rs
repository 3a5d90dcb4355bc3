//! The two address families, as data: whoever handles addresses loops over [`Family::ALL`], so
//! that IPv6 is one more entry in a table and never a second copy of the code.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, in the order in which everything is planned and printed.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The length of an address in bits.
    pub const fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// `0.0.0.0` or `::`: in leases and configs it stands for "not given".
    pub const fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Self::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }
    }

    /// The multicast range, whose traffic is never masqueraded.
    pub fn multicast(self) -> IpNet {
        let (base, len) = match self {
            Self::V4 => (IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 4),
            Self::V6 => (IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8),
        };
        IpNet::new_assert(base, len)
    }

    /// The address with this number; what does not fit the family's bits is cut off.
    pub(crate) fn address(self, number: u128) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::from_bits(number as u32)),
            Self::V6 => IpAddr::V6(Ipv6Addr::from_bits(number)),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// An address as a number, so that ranges of both families are computed alike.
pub(crate) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The family of a network.
pub(crate) fn family_of(net: IpNet) -> Family {
    Family::of(net.addr())
}

/// The network's first address with the full prefix: `10.5.20.0/24` gives `10.5.20.0/32`.
pub(crate) fn base_host(net: IpNet) -> IpNet {
    IpNet::new_assert(net.network(), family_of(net).bits())
}

/// At most one value per family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByFamily<T> {
    v4: Option<T>,
    v6: Option<T>,
}

impl<T> ByFamily<T> {
    /// The value of a family.
    pub fn get(&self, family: Family) -> Option<&T> {
        self.slot(family).as_ref()
    }

    /// Sets the value of a family.
    pub fn set(&mut self, family: Family, value: T) {
        match family {
            Family::V4 => self.v4 = Some(value),
            Family::V6 => self.v6 = Some(value),
        }
    }

    /// The values that are there, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = (Family, &T)> {
        Family::ALL
            .into_iter()
            .filter_map(|family| Some((family, self.get(family)?)))
    }

    /// The families that have a value.
    pub fn families(&self) -> impl Iterator<Item = Family> + '_ {
        self.iter().map(|(family, _)| family)
    }

    /// The same without the values of other families.
    pub fn only(self, family: Family) -> Self {
        match family {
            Family::V4 => Self { v6: None, ..self },
            Family::V6 => Self { v4: None, ..self },
        }
    }

    /// Whether no family has a value.
    pub fn is_empty(&self) -> bool {
        self.v4.is_none() && self.v6.is_none()
    }

    fn slot(&self, family: Family) -> &Option<T> {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

impl<T> Default for ByFamily<T> {
    fn default() -> Self {
        Self { v4: None, v6: None }
    }
}

impl<T> FromIterator<(Family, T)> for ByFamily<T> {
    fn from_iter<I: IntoIterator<Item = (Family, T)>>(entries: I) -> Self {
        let mut out = Self::default();
        for (family, value) in entries {
            out.set(family, value);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_addresses_convert_both_ways() {
        for text in ["0.0.0.0", "10.5.20.1", "255.255.255.255", "::", "fd00::1"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(Family::of(address).address(number(address)), address);
        }
    }

    #[test]
    fn values_come_in_the_order_of_the_families() {
        let both: ByFamily<u8> = [(Family::V6, 6), (Family::V4, 4)].into_iter().collect();
        assert_eq!(both.iter().map(|(_, v)| *v).collect::<Vec<_>>(), [4, 6]);
    }
}
