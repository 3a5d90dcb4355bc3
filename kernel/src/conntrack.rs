//! Tracked connections: those that a changed host port would keep on their old way.
//!
//! NAT looks at the first packet of a flow only. A UDP flow has no end, so that a client that goes
//! on sending from the same port never meets a new mapping unless the old flow is forgotten.

use std::net::IpAddr;

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol, Tuple,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use crate::attribute::nest;
use crate::error::{Result, unless};
use crate::socket::Raw;

const IPCTNL_MSG_CT_GET: u8 = 1;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
/// Which parts of the tuple are compared (`enum ctattr_filter` of the kernel's ctnetlink).
const FILTER_PROTO_NUM: u32 = 1 << 3;
const FILTER_PROTO_DST_PORT: u32 = 1 << 5;
const IPPROTO_UDP: u8 = 17;

/// UDP flows by where their first packet went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UdpTo {
    /// Of IPv6 rather than IPv4.
    pub v6: bool,
    /// To this address only; None: to any.
    pub ip: Option<IpAddr>,
    /// To this port.
    pub port: u16,
}

/// `conntrack -D -p udp --orig-port-dst PORT [--orig-dst IP]` for each, and how many flows were
/// forgotten. The kernel is asked for UDP alone (since Linux 5.8; older ones send everything).
pub fn forget_udp(flows: &[UdpTo]) -> Result<usize> {
    let mut forgotten = 0;
    for v6 in [false, true] {
        let flows: Vec<UdpTo> = flows.iter().copied().filter(|to| to.v6 == v6).collect();
        if flows.is_empty() {
            continue;
        }
        let mut raw = Raw::open(NETLINK_NETFILTER)?;
        for tuple in dump(&mut raw, v6, &flows)? {
            let delete = message(v6, ConntrackMessage::Delete(vec![tuple]));
            let answer = raw.exchange([(&delete, 0)].into_iter()).remove(0);
            let words = || "forget a UDP flow of conntrack".to_owned();
            unless(
                answer.map_err(|failure| failure.into_error(words)),
                &[Errno::ENOENT],
            )?;
            forgotten += 1;
        }
    }
    Ok(forgotten)
}

/// The tuples, as attributes that a delete takes.
pub(crate) fn dump(raw: &mut Raw, v6: bool, flows: &[UdpTo]) -> Result<Vec<ConntrackAttribute>> {
    let mut compared = FILTER_PROTO_NUM;
    let mut protocol = vec![DefaultNla::new(CTA_PROTO_NUM, vec![IPPROTO_UDP])];
    if let [only] = flows {
        compared |= FILTER_PROTO_DST_PORT;
        let port = only.port.to_be_bytes().to_vec();
        protocol.push(DefaultNla::new(CTA_PROTO_DST_PORT, port));
    }
    let attributes = vec![
        nest(CTA_TUPLE_ORIG, &[nest(CTA_TUPLE_PROTO, &protocol)]),
        nest(
            CTA_FILTER,
            // In the machine's order, unlike the rest.
            &[DefaultNla::new(
                CTA_FILTER_ORIG_FLAGS,
                compared.to_ne_bytes().to_vec(),
            )],
        ),
    ];
    let query = message(
        v6,
        ConntrackMessage::Other {
            message_type: IPCTNL_MSG_CT_GET,
            attributes,
        },
    );
    let words = || "dump the UDP flows of conntrack".to_owned();
    raw.dump(&query, words, |answer: NetfilterMessage| {
        let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = answer.inner
        else {
            return None;
        };
        attributes.into_iter().find(|attribute| match attribute {
            ConntrackAttribute::CtaTupleOrig(tuple) => flows.iter().any(|to| goes(tuple, to)),
            _ => false,
        })
    })
}

fn goes(tuple: &[Tuple], to: &UdpTo) -> bool {
    let (mut udp, mut port, mut ip) = (false, None, None);
    for part in tuple {
        match part {
            Tuple::Ip(parts) => {
                ip = parts.iter().find_map(|part| match part {
                    IPTuple::DestinationAddress(ip) => Some(*ip),
                    _ => None,
                });
            }
            Tuple::Proto(parts) => {
                for part in parts {
                    match part {
                        ProtoTuple::Protocol(protocol) => udp = *protocol == Protocol::Udp,
                        ProtoTuple::DestinationPort(number) => port = Some(*number),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    udp && port == Some(to.port)
        && ip.is_some_and(|ip| ip.is_ipv6() == to.v6)
        && (to.ip.is_none() || to.ip == ip)
}

fn message(v6: bool, inner: ConntrackMessage) -> NetfilterMessage {
    let family = match v6 {
        false => NetfilterProtoFamily::IPv4,
        true => NetfilterProtoFamily::IPv6,
    };
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), inner)
}
