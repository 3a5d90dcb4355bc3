//! From the host's packets to datagrams: checksums that the kernel left open are completed, and
//! packets larger than the MTU are cut as a network card would cut them.
//!
//! Payload is never copied: a segment is a header of its own in a scratch buffer and a range of the
//! packet.

use std::ops::Range;

use kernel::tun::{Segments, VnetHeader};

use super::checksum;
use super::packet::{self, Ipv4, TCP, UDP};

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// One datagram: `header` in the scratch buffer, then `body` of the packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Datagram {
    pub(crate) header: Range<usize>,
    pub(crate) body: Range<usize>,
}

impl Datagram {
    pub(crate) fn len(&self) -> usize {
        self.header.len() + self.body.len()
    }
}

/// Makes `packet` ready for the wire and names its datagrams in order. None if the two headers do
/// not fit each other, or the packet is of a kind that was not asked for.
pub(crate) fn cut(
    packet: &mut [u8],
    vnet: &VnetHeader,
    ip: &Ipv4,
    scratch: &mut Vec<u8>,
    datagrams: &mut Vec<Datagram>,
) -> Option<()> {
    let packet = &mut packet[..ip.total_length];
    if vnet.segments == Segments::None {
        if vnet.needs_checksum {
            complete_checksum(packet, vnet, ip)?;
        }
        datagrams.push(Datagram {
            header: 0..0,
            body: 0..ip.total_length,
        });
        return Some(());
    }
    let size = usize::from(vnet.segment_size);
    let transport = Transport::of(packet, vnet, ip)?;
    let header_length = ip.header_length + transport.length;
    if size == 0 || header_length > packet.len() {
        return None;
    }
    let template = scratch.len();
    let mut at = header_length;
    while at < packet.len() {
        let end = packet.len().min(at + size);
        let header = scratch.len()..scratch.len() + header_length;
        scratch.extend_from_slice(&packet[..header_length]);
        let place = Place {
            number: (at - header_length) / size,
            offset: at - header_length,
            last: end == packet.len(),
        };
        let body = &packet[at..end];
        transport.fill_in(&mut scratch[header.clone()], body, ip, &place);
        datagrams.push(Datagram {
            header,
            body: at..end,
        });
        at = end;
    }
    (scratch.len() > template).then_some(())
}

/// Where a segment stands among its packet's.
struct Place {
    number: usize,
    /// Bytes of payload before it.
    offset: usize,
    last: bool,
}

/// The transport header of a packet that is to be cut.
struct Transport {
    protocol: u8,
    length: usize,
}

impl Transport {
    fn of(packet: &[u8], vnet: &VnetHeader, ip: &Ipv4) -> Option<Self> {
        let header = &packet[ip.header_length..];
        let length = match (vnet.segments, ip.protocol) {
            _ if ip.fragment => return None,
            (Segments::Tcp4, TCP) => usize::from(header.get(12)? >> 4) * 4,
            (Segments::Udp, UDP) => 8,
            _ => return None,
        };
        let least = if ip.protocol == TCP { 20 } else { 8 };
        (length >= least && length <= header.len()).then_some(Self {
            protocol: ip.protocol,
            length,
        })
    }

    /// Turns the copy of the packet's header into the segment's.
    fn fill_in(&self, header: &mut [u8], body: &[u8], ip: &Ipv4, place: &Place) {
        let id = u16::from_be_bytes([header[4], header[5]]).wrapping_add(place.number as u16);
        header[4..6].copy_from_slice(&id.to_be_bytes());
        packet::set_length(header, ip.header_length, header.len() + body.len());
        let transport = &mut header[ip.header_length..];
        let length = transport.len() + body.len();
        let checksum_at = match self.protocol {
            TCP => {
                let sequence = transport.first_chunk_mut::<8>().expect("at least 20 bytes");
                let sequence = &mut sequence[4..];
                let first =
                    u32::from_be_bytes([sequence[0], sequence[1], sequence[2], sequence[3]]);
                let own = first.wrapping_add(place.offset as u32);
                sequence.copy_from_slice(&own.to_be_bytes());
                let flags = &mut transport[13];
                if !place.last {
                    *flags &= !(FIN | PSH);
                }
                if place.number > 0 {
                    *flags &= !CWR;
                }
                16
            }
            _ => {
                transport[4..6].copy_from_slice(&(length as u16).to_be_bytes());
                6
            }
        };
        transport[checksum_at..][..2].fill(0);
        let sum =
            checksum::pseudo_header(ip, length) + checksum::sum(transport) + checksum::sum(body);
        put_checksum(transport, checksum_at, self.protocol, sum);
    }
}

/// What a network card does for `CHECKSUM_PARTIAL`: the field holds the pseudo header's sum.
fn complete_checksum(packet: &mut [u8], vnet: &VnetHeader, ip: &Ipv4) -> Option<()> {
    let start = usize::from(vnet.checksum_start);
    // The IP header's own is right as it came, and nothing else in it is a checksum.
    let covered = packet
        .get_mut(start..)
        .filter(|_| start >= ip.header_length)?;
    let at = usize::from(vnet.checksum_offset);
    covered.get(at..at + 2)?;
    let sum = checksum::sum(covered);
    put_checksum(covered, at, ip.protocol, sum);
    Some(())
}

fn put_checksum(transport: &mut [u8], at: usize, protocol: u8, sum: u64) {
    let checksum = match checksum::finish(sum) {
        // RFC 768: zero would say that there is none.
        0 if protocol == UDP => 0xffff,
        checksum => checksum,
    };
    transport[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::packet::tests::{header_is_right, ipv4};
    use super::*;
    use proptest::prelude::*;

    /// A TCP packet without options around `payload`, with a right checksum.
    pub(crate) fn tcp(sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut segment = vec![0x30, 0x39, 0, 80];
        segment.extend(sequence.to_be_bytes());
        segment.extend([0, 0, 0, 9, 0x50, flags, 1, 0, 0, 0, 0, 0]);
        segment.extend(payload);
        sealed(TCP, segment, 16)
    }

    pub(crate) fn udp(payload: &[u8]) -> Vec<u8> {
        let mut datagram = vec![0x30, 0x39, 0, 53];
        datagram.extend((8 + payload.len() as u16).to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend(payload);
        sealed(UDP, datagram, 6)
    }

    fn sealed(protocol: u8, transport: Vec<u8>, checksum_at: usize) -> Vec<u8> {
        let mut packet = ipv4(protocol, &transport);
        let ip = Ipv4::parse(&packet).unwrap();
        let sum = checksum::pseudo_header(&ip, transport.len()) + checksum::sum(&transport);
        put_checksum(&mut packet[20..], checksum_at, protocol, sum);
        packet
    }

    pub(crate) fn transport_is_right(packet: &[u8]) -> bool {
        let ip = Ipv4::parse(packet).unwrap();
        let transport = &packet[ip.header_length..ip.total_length];
        let sum = checksum::pseudo_header(&ip, transport.len()) + checksum::sum(transport);
        checksum::fold(sum) == 0xffff
    }

    fn cut_up(mut packet: Vec<u8>, vnet: VnetHeader) -> Option<Vec<Vec<u8>>> {
        let ip = Ipv4::parse(&packet).unwrap();
        let (mut scratch, mut datagrams) = (Vec::new(), Vec::new());
        cut(&mut packet, &vnet, &ip, &mut scratch, &mut datagrams)?;
        let join = |d: &Datagram| [&scratch[d.header.clone()], &packet[d.body.clone()]].concat();
        Some(datagrams.iter().map(join).collect())
    }

    fn segments(kind: Segments, size: u16) -> VnetHeader {
        VnetHeader {
            needs_checksum: true,
            segments: kind,
            segment_size: size,
            checksum_start: 20,
            checksum_offset: 16,
            header_length: 40,
        }
    }

    #[test]
    fn an_ordinary_packet_goes_as_it_is() {
        let packet = tcp(7, 0x18, b"hello");
        let out = cut_up(packet.clone(), VnetHeader::default()).unwrap();
        assert_eq!(out, [packet]);
    }

    #[test]
    fn a_checksum_left_open_is_completed() {
        for (mut packet, offset) in [(tcp(7, 0x18, b"hello"), 16), (udp(b"hello!"), 6)] {
            let right = packet.clone();
            let ip = Ipv4::parse(&packet).unwrap();
            // What the kernel leaves there: the pseudo header's sum, not complemented.
            let open = checksum::fold(checksum::pseudo_header(&ip, packet.len() - 20));
            packet[20 + offset..][..2].copy_from_slice(&open.to_be_bytes());
            let vnet = VnetHeader {
                checksum_offset: offset as u16,
                segments: Segments::None,
                ..segments(Segments::None, 0)
            };
            assert_eq!(cut_up(packet, vnet).unwrap(), [right]);
        }
    }

    #[test]
    fn only_the_last_segment_ends_the_stream_and_only_the_first_tells_of_congestion() {
        let out = cut_up(
            tcp(u32::MAX - 3, 0x99, &[1; 25]),
            segments(Segments::Tcp4, 10),
        )
        .unwrap();
        let flags: Vec<u8> = out.iter().map(|packet| packet[33]).collect();
        assert_eq!(flags, [0x90, 0x10, 0x19]);
        // Sequence numbers wrap.
        let sequences: Vec<_> = out.iter().map(|packet| packet[24..28].to_vec()).collect();
        assert_eq!(sequences[1], 6u32.to_be_bytes());
        assert_eq!(out[2].len(), 45);
    }

    #[test]
    fn headers_that_do_not_fit_are_refused() {
        let whole = tcp(7, 0x18, &[1; 25]);
        assert!(cut_up(whole.clone(), segments(Segments::Tcp4, 0)).is_none());
        assert!(cut_up(whole.clone(), segments(Segments::Udp, 10)).is_none());
        assert!(cut_up(whole.clone(), segments(Segments::Other, 10)).is_none());
        let mut long_header = whole.clone();
        long_header[32] = 0xf0;
        packet::set_length(&mut long_header, 20, 45);
        assert!(cut_up(long_header, segments(Segments::Tcp4, 10)).is_none());
        let past_the_end = VnetHeader {
            checksum_start: 60,
            ..segments(Segments::None, 0)
        };
        assert!(cut_up(whole, past_the_end).is_none());
    }

    proptest! {
        #[test]
        fn the_segments_are_right_and_together_the_packet(
            payload in proptest::collection::vec(any::<u8>(), 1..4000),
            size in 1u16..1500,
            is_tcp: bool,
        ) {
            let (packet, kind, header) = match is_tcp {
                true => (tcp(5, 0x18, &payload), Segments::Tcp4, 40),
                false => (udp(&payload), Segments::Udp, 28),
            };
            let out = cut_up(packet, segments(kind, size)).unwrap();
            let mut together: Vec<u8> = Vec::new();
            for (number, segment) in out.iter().enumerate() {
                prop_assert!(header_is_right(segment) && transport_is_right(segment));
                prop_assert!(segment.len() <= header + usize::from(size));
                prop_assert_eq!(
                    u16::from_be_bytes([segment[4], segment[5]]),
                    0x1234 + number as u16
                );
                if is_tcp {
                    let sequence = u32::from_be_bytes(*segment[24..].first_chunk().unwrap());
                    prop_assert_eq!(sequence as usize, 5 + together.len());
                }
                together.extend(&segment[header..]);
            }
            prop_assert_eq!(together, payload);
        }
    }
}
