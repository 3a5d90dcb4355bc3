//! What should be there: a table with its chains and rules, as a plain value.

use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::{Hook as HookAttribute, HookNumber, InetHookNumber};

use super::expression::Rule;

/// The packets a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4 and IPv6 (`inet`). NAT in it needs Linux 5.2.
    Inet,
    /// IPv4 only (`ip`).
    Ipv4,
    /// IPv6 only (`ip6`).
    Ipv6,
    /// Ethernet frames on bridges (`bridge`).
    Bridge,
}

impl Family {
    pub(crate) fn protocol(self) -> NetfilterProtoFamily {
        match self {
            Family::Inet => NetfilterProtoFamily::Inet,
            Family::Ipv4 => NetfilterProtoFamily::IPv4,
            Family::Ipv6 => NetfilterProtoFamily::IPv6,
            Family::Bridge => NetfilterProtoFamily::Bridge,
        }
    }

    /// As `nft` names it.
    pub fn name(self) -> &'static str {
        match self {
            Family::Inet => "inet",
            Family::Ipv4 => "ip",
            Family::Ipv6 => "ip6",
            Family::Bridge => "bridge",
        }
    }
}

/// A table and all that is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its family.
    pub family: Family,
    /// Its name; with the family it is the owner's mark: everything in it is ours.
    pub name: String,
    /// Its chains; one that others jump to stands before them.
    pub chains: Vec<Chain>,
}

/// A chain of rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its name within the table.
    pub name: String,
    /// Where packets enter it; None if only other chains lead to it.
    pub hook: Option<Hook>,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

/// What a base chain is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookType {
    /// Accept and drop.
    Filter,
    /// Rewrite the first packet's addresses of a connection.
    Nat,
}

/// Where in a packet's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookPoint {
    /// Before routing.
    Prerouting,
    /// To this host.
    Input,
    /// Through this host.
    Forward,
    /// From this host.
    Output,
    /// After routing.
    Postrouting,
}

/// Where a base chain hangs. Its policy is always accept: a table of ours refuses nothing by
/// default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    /// Its type.
    pub kind: HookType,
    /// Its place.
    pub point: HookPoint,
    /// Its order among the chains at that place; −100 is `dstnat`, 0 `filter`, 100 `srcnat`.
    pub priority: i32,
}

impl Hook {
    pub(super) fn type_name(self) -> &'static str {
        match self.kind {
            HookType::Filter => "filter",
            HookType::Nat => "nat",
        }
    }

    pub(super) fn attributes(self) -> Vec<HookAttribute> {
        let number = match self.point {
            HookPoint::Prerouting => InetHookNumber::PreRouting,
            HookPoint::Input => InetHookNumber::LocalIn,
            HookPoint::Forward => InetHookNumber::Forward,
            HookPoint::Output => InetHookNumber::LocalOut,
            HookPoint::Postrouting => InetHookNumber::PostRouting,
        };
        vec![
            HookAttribute::Number(HookNumber::Inet(number)),
            // Signed on the wire, whatever the crate's type says.
            HookAttribute::Priority(self.priority as u32),
        ]
    }
}
