//! Rules: matches and verdicts as `nft` would compile them.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{DefaultNla, Emitable};
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, ExpressionAttribute, Expressions, Immediate, ListAttribute, Meta,
    MetaKey, Operator, Payload, Register, Verdict, VerdictAttribute,
};

const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
const NFTA_MASQ_FLAGS: u16 = 1;
const NF_NAT_RANGE_PROTO_RANDOM_FULLY: u32 = 16;
/// The kernel's limit on userdata is 256 bytes (`NFT_USERDATA_MAXLEN`), with two of header and
/// the NUL behind the text.
const COMMENT_BYTES: usize = 253;

/// One rule of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub(super) expressions: Vec<ListAttribute<ExpressionAttribute>>,
    /// What `nft list` shows behind `comment`, and how the rule is recognised.
    pub(super) comment: String,
}

impl Rule {
    /// Begins a rule. `why` is for those who read `nft list ruleset`.
    pub fn because(why: &str) -> RuleBuilder {
        RuleBuilder {
            why: why.to_owned(),
            expressions: Vec::new(),
        }
    }

    /// The comment: what was said at the beginning, and a digest of the expressions.
    pub fn comment(&self) -> &str {
        &self.comment
    }
}

/// A rule under construction: matches first, a verdict ends it.
#[derive(Debug, Clone)]
pub struct RuleBuilder {
    why: String,
    expressions: Vec<ListAttribute<ExpressionAttribute>>,
}

#[derive(Clone, Copy)]
enum Side {
    Source,
    Destination,
}

impl RuleBuilder {
    /// `ip saddr NET` (`ip6 …`), or `!=` it.
    pub fn source(self, is: bool, net: IpNet) -> RuleBuilder {
        self.address(Side::Source, is, net)
    }

    /// `ip daddr NET`, or `!=` it.
    pub fn destination(self, is: bool, net: IpNet) -> RuleBuilder {
        self.address(Side::Destination, is, net)
    }

    /// `meta nfproto ipv4|ipv6`.
    pub fn family_of(self, ip: IpAddr) -> RuleBuilder {
        let number = if ip.is_ipv4() {
            NFPROTO_IPV4
        } else {
            NFPROTO_IPV6
        };
        self.load(MetaKey::Nfproto).compare(true, vec![number])
    }

    /// `meta mark & MASK == MASK`.
    pub fn mark_has(self, mask: u32) -> RuleBuilder {
        self.load(MetaKey::Mark)
            .mask(mask.to_ne_bytes().to_vec())
            .compare(true, mask.to_ne_bytes().to_vec())
    }

    /// `accept`: no later rule of this chain; chains behind it may still drop.
    pub fn accept(self) -> Rule {
        self.verdict(Verdict::Other(NF_ACCEPT), None)
    }

    /// `drop`.
    pub fn drop(self) -> Rule {
        self.verdict(Verdict::Other(NF_DROP), None)
    }

    /// `return`: to the calling chain, or to a base chain's policy.
    pub fn back(self) -> Rule {
        self.verdict(Verdict::Return, None)
    }

    /// `jump CHAIN`.
    pub fn jump(self, chain: &str) -> Rule {
        self.verdict(Verdict::Jump, Some(chain))
    }

    /// `goto CHAIN`.
    pub fn go_to(self, chain: &str) -> Rule {
        self.verdict(Verdict::Goto, Some(chain))
    }

    /// `masquerade`, with `fully-random` source ports or the kernel's choice.
    pub fn masquerade(mut self, fully_random: bool) -> Rule {
        let mut attributes = Vec::new();
        if fully_random {
            attributes.push(DefaultNla::new(
                NFTA_MASQ_FLAGS,
                NF_NAT_RANGE_PROTO_RANDOM_FULLY.to_be_bytes().to_vec(),
            ));
        }
        self.push(Expressions::Other {
            expression_type: "masq".to_owned(),
            attributes,
        });
        self.finish()
    }

    fn address(self, side: Side, is: bool, net: IpNet) -> RuleBuilder {
        // Offsets of the addresses: RFC 791 §3.1, RFC 8200 §3.
        let offset = match (net, side) {
            (IpNet::V4(_), Side::Source) => 12,
            (IpNet::V4(_), Side::Destination) => 16,
            (IpNet::V6(_), Side::Source) => 8,
            (IpNet::V6(_), Side::Destination) => 24,
        };
        let (value, mask) = (octets(net.network()), octets(net.netmask()));
        let mut rule = self.family_of(net.addr());
        rule.push(Expressions::Payload(vec![
            Payload::DestinationRegister(Register::Reg1),
            Payload::Base(NFT_PAYLOAD_NETWORK_HEADER),
            Payload::Offset(offset),
            Payload::Len(value.len() as u32),
        ]));
        if net.prefix_len() < net.max_prefix_len() {
            rule = rule.mask(mask);
        }
        rule.compare(is, value)
    }

    pub(super) fn load(mut self, key: MetaKey) -> RuleBuilder {
        self.push(Expressions::Meta(vec![
            Meta::Key(key),
            Meta::DestinationRegister(Register::Reg1),
        ]));
        self
    }

    pub(super) fn mask(mut self, mask: Vec<u8>) -> RuleBuilder {
        let zero = vec![0; mask.len()];
        self.push(Expressions::Bitwise(vec![
            Bitwise::SourceRegister(Register::Reg1),
            Bitwise::DestinationRegister(Register::Reg1),
            Bitwise::Length(mask.len() as u32),
            Bitwise::Mask(DataAttribute::Value(mask)),
            Bitwise::Xor(DataAttribute::Value(zero)),
        ]));
        self
    }

    pub(super) fn compare(mut self, equal: bool, value: Vec<u8>) -> RuleBuilder {
        let operator = if equal {
            Operator::Equal
        } else {
            Operator::NotEqual
        };
        self.push(Expressions::Cmp(vec![
            Cmp::SourceRegister(Register::Reg1),
            Cmp::Op(operator),
            Cmp::Data(DataAttribute::Value(value)),
        ]));
        self
    }

    fn verdict(mut self, verdict: Verdict, chain: Option<&str>) -> Rule {
        let mut attributes = vec![VerdictAttribute::Code(verdict)];
        attributes.extend(chain.map(|name| VerdictAttribute::Chain(name.to_owned())));
        self.push(Expressions::Immediate(vec![
            Immediate::DestinationRegister(Register::Verdict),
            Immediate::Data(DataAttribute::Verdict(attributes)),
        ]));
        self.finish()
    }

    pub(super) fn push(&mut self, expression: Expressions) {
        self.expressions.push(expression.into());
    }

    pub(super) fn finish(self) -> Rule {
        let mut bytes = vec![0; self.expressions.as_slice().buffer_len()];
        self.expressions.as_slice().emit(&mut bytes);
        // Only ever compared with what the same build wrote; another build rewrites its table.
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        let digest = format!(" #{:08x}", hasher.finish() as u32);
        let mut why = self.why;
        while why.len() + digest.len() > COMMENT_BYTES {
            why.pop();
        }
        Rule {
            expressions: self.expressions,
            comment: why + &digest,
        }
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_differ_have_comments_that_differ() {
        let net: IpNet = "10.244.0.0/16".parse().unwrap();
        let other: IpNet = "10.245.0.0/16".parse().unwrap();
        let rule = |net| Rule::because("pods out").source(true, net).masquerade(true);
        assert_eq!(rule(net), rule(net));
        assert_ne!(rule(net).comment(), rule(other).comment());
        assert!(rule(net).comment().starts_with("pods out #"));
    }

    #[test]
    fn a_comment_fits_into_the_kernels_userdata() {
        let rule = Rule::because(&"é".repeat(300)).accept();
        assert!(rule.comment().len() <= COMMENT_BYTES);
        assert!(rule.comment().contains(" #"));
    }
}
