//! Rules that look something up, and the matches that a rule about host ports needs.

use netlink_packet_netfilter::nftables::{
    Bitwise, DataAttribute, Expressions, Lookup, Meta, MetaKey, Payload, Register,
};

use super::expression::{Rule, RuleBuilder};
use crate::attribute::be32;
use crate::mac::Mac;

const NFT_PAYLOAD_LINK_HEADER: u32 = 0;
const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;
const NFT_PAYLOAD_TRANSPORT_HEADER: u32 = 2;
const NFT_REG32_00: u32 = 8;
const NFPROTO_IPV4: u32 = 2;
const NFPROTO_IPV6: u32 = 10;
const NFTA_FIB_DREG: u16 = 1;
const NFTA_FIB_RESULT: u16 = 2;
const NFTA_FIB_FLAGS: u16 = 3;
const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
const NFTA_FIB_F_DADDR: u32 = 2;
const RTN_LOCAL: u32 = 2;
const NFTA_CT_DREG: u16 = 1;
const NFTA_CT_KEY: u16 = 2;
const NFT_CT_STATUS: u32 = 2;
const IPS_DST_NAT: u32 = 1 << 5;
const NFTA_NAT_TYPE: u16 = 1;
const NFTA_NAT_FAMILY: u16 = 2;
const NFTA_NAT_REG_ADDR_MIN: u16 = 3;
const NFTA_NAT_REG_PROTO_MIN: u16 = 5;
const NFT_NAT_DNAT: u32 = 1;

/// A part of a packet, and of a set's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// `ip daddr`
    Ipv4,
    /// `ip6 daddr`
    Ipv6,
    /// `meta l4proto`
    Protocol,
    /// `th dport`
    Port,
    /// `iifname`
    Ifname,
}

impl Field {
    /// Bytes in a register.
    pub(super) fn len(self) -> u32 {
        match self {
            Field::Ipv4 | Field::Protocol | Field::Port => 4,
            Field::Ipv6 | Field::Ifname => 16,
        }
    }

    /// nft's number for the type, by which it prints elements (`enum datatypes` of its library).
    pub(super) fn datatype(self) -> u32 {
        match self {
            Field::Ipv4 => 7,
            Field::Ipv6 => 8,
            Field::Protocol => 12,
            Field::Port => 13,
            Field::Ifname => 41,
        }
    }

    /// Puts the part into a register.
    fn load(self, register: Register) -> Expressions {
        let meta =
            |key| Expressions::Meta(vec![Meta::Key(key), Meta::DestinationRegister(register)]);
        let payload = |base, offset, length| {
            Expressions::Payload(vec![
                Payload::DestinationRegister(register),
                Payload::Base(base),
                Payload::Offset(offset),
                Payload::Len(length),
            ])
        };
        match self {
            Field::Ipv4 => payload(NFT_PAYLOAD_NETWORK_HEADER, 16, 4),
            Field::Ipv6 => payload(NFT_PAYLOAD_NETWORK_HEADER, 24, 16),
            Field::Protocol => meta(MetaKey::L4Proto),
            // TCP, UDP and SCTP have it in the same place.
            Field::Port => payload(NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2),
            Field::Ifname => meta(MetaKey::Iifname),
        }
    }
}

impl RuleBuilder {
    /// `iifname NAME`, or `!=` it; a `*` at the end stands for anything.
    pub fn comes_in_by(self, is: bool, name: &str) -> RuleBuilder {
        self.device(MetaKey::Iifname, is, name)
    }

    /// `oifname NAME`, or `!=` it; a `*` at the end stands for anything.
    pub fn goes_out_by(self, is: bool, name: &str) -> RuleBuilder {
        self.device(MetaKey::Oifname, is, name)
    }

    /// `ether saddr MAC`, in a table of bridges' frames (in one of packets nft would ask for the
    /// link's type first).
    pub fn sent_by(mut self, mac: Mac) -> RuleBuilder {
        // IEEE 802.3: six bytes of destination, then the source.
        self.push(Expressions::Payload(vec![
            Payload::DestinationRegister(Register::Reg1),
            Payload::Base(NFT_PAYLOAD_LINK_HEADER),
            Payload::Offset(6),
            Payload::Len(6),
        ]));
        self.compare(true, mac.0.to_vec())
    }

    fn device(self, key: MetaKey, is: bool, name: &str) -> RuleBuilder {
        let bytes = match name.strip_suffix('*') {
            Some(beginning) => beginning.as_bytes().to_vec(),
            None => super::set::Value::new().ifname(name).0,
        };
        self.load(key).compare(is, bytes)
    }

    /// `fib daddr type local`: to an address of this host.
    pub fn to_this_host(mut self) -> RuleBuilder {
        self.push(Expressions::Other {
            expression_type: "fib".to_owned(),
            attributes: vec![
                be32(NFTA_FIB_DREG, u32::from(Register::Reg1)),
                be32(NFTA_FIB_RESULT, NFT_FIB_RESULT_ADDRTYPE),
                be32(NFTA_FIB_FLAGS, NFTA_FIB_F_DADDR),
            ],
        });
        self.compare(true, RTN_LOCAL.to_ne_bytes().to_vec())
    }

    /// `ct status dnat`: its destination was changed, by this table or another.
    pub fn destination_was_changed(mut self) -> RuleBuilder {
        self.push(Expressions::Other {
            expression_type: "ct".to_owned(),
            attributes: vec![
                be32(NFTA_CT_DREG, u32::from(Register::Reg1)),
                be32(NFTA_CT_KEY, NFT_CT_STATUS),
            ],
        });
        self.mask(IPS_DST_NAT.to_ne_bytes().to_vec())
            .compare(false, 0u32.to_ne_bytes().to_vec())
    }

    /// `FIELD . FIELD … @SET`.
    pub fn in_set(self, key: &[Field], set: &str) -> RuleBuilder {
        self.look_up(key, set, None)
    }

    /// `meta mark set meta mark or MASK`; the packet goes on to the next rule.
    pub fn set_mark(self, mask: u32) -> Rule {
        let mut rule = self.load(MetaKey::Mark);
        rule.push(Expressions::Bitwise(vec![
            Bitwise::SourceRegister(Register::Reg1),
            Bitwise::DestinationRegister(Register::Reg1),
            Bitwise::Length(4),
            Bitwise::Mask(DataAttribute::Value((!mask).to_ne_bytes().to_vec())),
            Bitwise::Xor(DataAttribute::Value(mask.to_ne_bytes().to_vec())),
        ]));
        rule.push(Expressions::Meta(vec![
            Meta::Key(MetaKey::Mark),
            Meta::SourceRegister(Register::Reg1),
        ]));
        rule.finish()
    }

    /// `dnat ip to FIELD . FIELD … map @MAP`, for a map to `ipv4_addr . inet_service`; `dnat ip6`
    /// for one to `ipv6_addr . inet_service`. What the map has not goes on to the next rule.
    pub fn destination_from(self, v6: bool, key: &[Field], map: &str) -> Rule {
        let (family, address) = match v6 {
            false => (NFPROTO_IPV4, Field::Ipv4),
            true => (NFPROTO_IPV6, Field::Ipv6),
        };
        let mut rule = self.look_up(key, map, Some(Register::Reg1));
        rule.push(Expressions::Other {
            expression_type: "nat".to_owned(),
            attributes: vec![
                be32(NFTA_NAT_TYPE, NFT_NAT_DNAT),
                be32(NFTA_NAT_FAMILY, family),
                be32(NFTA_NAT_REG_ADDR_MIN, u32::from(Register::Reg1)),
                be32(NFTA_NAT_REG_PROTO_MIN, NFT_REG32_00 + address.len() / 4),
            ],
        });
        rule.finish()
    }

    fn look_up(mut self, key: &[Field], set: &str, to: Option<Register>) -> RuleBuilder {
        let mut register = NFT_REG32_00;
        for field in key {
            self.push(field.load(Register::from(register)));
            register += field.len() / 4;
        }
        let mut lookup = vec![
            Lookup::Set(set.to_owned()),
            Lookup::SourceRegister(Register::Reg1),
        ];
        lookup.extend(to.map(Lookup::DestinationRegister));
        self.push(Expressions::Lookup(lookup));
        self
    }
}
