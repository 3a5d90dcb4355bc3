//! Fuzz targets for the udp backend's data path: packets of any bytes, from either side.

use kernel::tun::{Offload, Segments, VnetHeader};

use super::checksum;
use super::cut;
use super::icmp;
use super::merge::{Handover, Merge};
use super::packet::{self, Ipv4, TCP, UDP};

/// One packet from another node.
pub(crate) fn packet(bytes: &[u8]) {
    let Some(ip) = Ipv4::parse(bytes) else {
        return;
    };
    let mut bytes = bytes.to_vec();
    let was_right = is_sealed(&bytes, &ip);
    if packet::hop(&mut bytes) {
        assert_eq!(is_sealed(&bytes, &ip), was_right);
    }
    if let Some(answer) = icmp::net_unreachable(&bytes, &ip) {
        let own = Ipv4::parse(&answer).expect("an answer is a packet");
        assert!(is_sealed(&answer, &own) && own.total_length == answer.len());
    }
}

fn is_sealed(bytes: &[u8], ip: &Ipv4) -> bool {
    checksum::fold(checksum::sum(&bytes[..ip.header_length])) == 0xffff
}

/// A packet of the host's behind its header.
pub(crate) fn cut(bytes: &[u8]) {
    let Some(vnet) = VnetHeader::parse(bytes) else {
        return;
    };
    let mut packet = bytes[VnetHeader::LENGTH..].to_vec();
    let Some(ip) = Ipv4::parse(&packet) else {
        return;
    };
    let (mut scratch, mut datagrams) = (Vec::new(), Vec::new());
    if cut::cut(&mut packet, &vnet, &ip, &mut scratch, &mut datagrams).is_none() {
        return;
    }
    let whole = vnet.segments == Segments::None;
    for datagram in &datagrams {
        let header = &scratch[datagram.header.clone()];
        let bytes = [header, &packet[datagram.body.clone()]].concat();
        let own = Ipv4::parse(&bytes).expect("a datagram is a packet");
        assert_eq!(own.total_length, bytes.len());
        assert!(whole || is_sealed(&bytes, &own));
        assert!(whole || datagram.body.len() <= usize::from(vnet.segment_size));
    }
}

/// Packets from other nodes, one behind the other. The first byte says whether their checksums are
/// made right: bytes by chance never have right ones, and would never be merged.
pub(crate) fn merge(bytes: &[u8]) {
    let Some((right, rest)) = bytes.split_first() else {
        return;
    };
    let mut buffer = rest.to_vec();
    let mut merge = Merge::new(Offload::TcpAndUdp);
    let mut came = Vec::new();
    let mut start = 0;
    while let Some(ip) = Ipv4::parse(&buffer[start..]) {
        let packet = start..start + ip.total_length;
        if right & 1 == 1 {
            make_right(&mut buffer[packet.clone()], &ip);
        }
        came.push(buffer[packet.clone()].to_vec());
        merge.add(&buffer, start, &ip);
        start = packet.end;
    }
    let handovers: Vec<Handover> = merge.finish(&mut buffer).collect();
    let mut went = Vec::new();
    for handover in &handovers {
        let ranges = std::iter::once(&handover.first).chain(&handover.joined);
        let mut whole: Vec<u8> = ranges.flat_map(|r| buffer[r.clone()].to_vec()).collect();
        assert_eq!(whole.len(), handover.len());
        let ip = Ipv4::parse(&whole).expect("what is handed over is a packet");
        let (mut scratch, mut datagrams) = (Vec::new(), Vec::new());
        // As the host's kernel cuts it up again.
        cut::cut(
            &mut whole,
            &handover.vnet,
            &ip,
            &mut scratch,
            &mut datagrams,
        )
        .expect("what is merged can be cut");
        went.extend(
            datagrams
                .into_iter()
                .map(|datagram| [&scratch[datagram.header], &whole[datagram.body]].concat()),
        );
    }
    assert_eq!(comparable(went), comparable(came));
}

/// In any order, without what a merge may change: the identification, and the sum over it.
fn comparable(mut packets: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    for packet in &mut packets {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packets.sort();
    packets
}

fn make_right(packet: &mut [u8], ip: &Ipv4) {
    packet::seal(&mut packet[..ip.header_length]);
    let transport = &mut packet[ip.header_length..];
    let at = match ip.protocol {
        TCP => 16,
        UDP => 6,
        _ => return,
    };
    if transport.len() < at + 2 {
        return;
    }
    transport[at..at + 2].fill(0);
    let sum = checksum::pseudo_header(ip, transport.len()) + checksum::sum(transport);
    let sum = match checksum::finish(sum) {
        0 if ip.protocol == UDP => 0xffff,
        sum => sum,
    };
    transport[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}
