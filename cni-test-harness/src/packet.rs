//! Packets byte by byte, for those that no socket would send.

use std::net::Ipv4Addr;

/// A UDP packet in IPv4, from port 8000 to 9000, without a UDP checksum.
pub fn udp(source: Ipv4Addr, destination: Ipv4Addr, data: &[u8]) -> Vec<u8> {
    let length = |bytes: usize| (bytes as u16).to_be_bytes();
    let mut packet = vec![0x45, 0];
    packet.extend(length(28 + data.len()));
    packet.extend([0, 1, 0, 0, 64, 17, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    let words = packet
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum: u32 = words.sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend([0x1f, 0x40, 0x23, 0x28]);
    packet.extend(length(8 + data.len()));
    packet.extend([0, 0]);
    packet.extend(data);
    packet
}
