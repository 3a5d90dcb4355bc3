//! From datagrams to the host's packets: segments that follow each other in one stream are handed
//! over together, as a network card would hand them over, and are never copied.
//!
//! A segment joins only if its checksums are right: what is merged is taken as checked by the
//! kernel. Whatever does not fit is handed over as it came, and the order within a stream is kept.

use std::ops::Range;

use kernel::tun::{Offload, Segments, VnetHeader};

use super::checksum;
use super::packet::{self, Ipv4, TCP, UDP};

const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
/// `UDP_MAX_SEGMENTS` of older kernels; newer ones take 128.
const MOST_SEGMENTS: usize = 64;
/// Streams that are followed at a time; the oldest makes room.
const MOST_OPEN: usize = 16;

/// One packet for the host.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Handover {
    /// What to say about it where the device asks for that.
    pub(crate) vnet: VnetHeader,
    /// The first packet, with its header.
    pub(crate) first: Range<usize>,
    /// Payload of the packets that joined it.
    pub(crate) joined: Vec<Range<usize>>,
}

impl Handover {
    pub(crate) fn segments(&self) -> usize {
        1 + self.joined.len()
    }

    pub(crate) fn len(&self) -> usize {
        self.first.len() + self.joined.iter().map(Range::len).sum::<usize>()
    }
}

/// The packets of one batch, in the order in which they are handed over.
#[derive(Debug, Default)]
pub(crate) struct Merge {
    packets: Vec<Stream>,
    /// Places in `packets` that more may join, the oldest first.
    open: Vec<usize>,
    tcp: bool,
    udp: bool,
}

/// Addresses and ports.
type Flow = [u8; 12];

#[derive(Debug)]
struct Stream {
    handover: Handover,
    flow: Flow,
    protocol: u8,
    header_length: usize,
    /// Payload bytes of every segment but the last.
    size: usize,
    next_sequence: u32,
    /// Whether the first packet's checksums were looked at.
    checked: bool,
}

/// A packet that may join others or be joined.
struct Segment {
    protocol: u8,
    header_length: usize,
    payload: Range<usize>,
    sequence: u32,
    /// No other may come behind it.
    pushed: bool,
}

impl Merge {
    /// Merges as far as the device can cut again.
    pub(crate) fn new(offload: Offload) -> Self {
        Self {
            tcp: offload != Offload::Off,
            udp: offload == Offload::TcpAndUdp,
            ..Self::default()
        }
    }

    /// Takes the packet that begins at `start` of `buffer`.
    pub(crate) fn add(&mut self, buffer: &[u8], start: usize, ip: &Ipv4) {
        let packet = &buffer[start..start + ip.total_length];
        let flow = flow(packet, ip);
        let same = |at: &usize| Some(self.packets[*at].flow) == flow;
        let at = self.open.iter().position(same);
        let mergeable = flow.filter(|_| self.merges(ip.protocol));
        let segment = mergeable.and_then(|_| segment(packet, start, ip));
        if let (Some(at), Some(segment)) = (at, &segment) {
            let stream = &mut self.packets[self.open[at]];
            if stream.join(buffer, packet, segment, ip) {
                if segment.pushed || segment.payload.len() < stream.size {
                    self.open.remove(at);
                }
                return;
            }
        }
        if let Some(at) = at {
            self.open.remove(at);
        }
        let alone = Handover {
            vnet: VnetHeader::default(),
            first: start..start + ip.total_length,
            joined: Vec::new(),
        };
        if segment.as_ref().is_some_and(|segment| !segment.pushed) {
            if self.open.len() == MOST_OPEN {
                self.open.remove(0);
            }
            self.open.push(self.packets.len());
        }
        self.packets.push(Stream {
            handover: alone,
            flow: flow.unwrap_or_default(),
            protocol: ip.protocol,
            header_length: segment.as_ref().map_or(0, |s| s.header_length),
            size: segment.as_ref().map_or(0, |s| s.payload.len()),
            next_sequence: segment.as_ref().map_or(0, Segment::next_sequence),
            checked: false,
        });
    }

    fn merges(&self, protocol: u8) -> bool {
        match protocol {
            TCP => self.tcp,
            UDP => self.udp,
            _ => false,
        }
    }

    /// Ends the batch: headers of merged packets are completed in `buffer`.
    pub(crate) fn finish<'a>(
        &'a mut self,
        buffer: &'a mut [u8],
    ) -> impl Iterator<Item = Handover> + 'a {
        self.open.clear();
        self.packets.drain(..).map(|stream| stream.seal(buffer))
    }
}

/// Addresses and ports of what has ports at all.
fn flow(packet: &[u8], ip: &Ipv4) -> Option<Flow> {
    if ip.fragment || !matches!(ip.protocol, TCP | UDP) {
        return None;
    }
    let ports = packet.get(ip.header_length..ip.header_length + 4)?;
    let mut flow = [0; 12];
    flow[..8].copy_from_slice(&packet[12..20]);
    flow[8..].copy_from_slice(ports);
    Some(flow)
}

fn segment(packet: &[u8], start: usize, ip: &Ipv4) -> Option<Segment> {
    if ip.header_length != 20 {
        return None;
    }
    let transport = &packet[20..];
    let (length, sequence, pushed) = match ip.protocol {
        TCP => {
            let header: &[u8; 20] = transport.first_chunk()?;
            let flags = header[13];
            if flags & !PSH != ACK {
                return None;
            }
            let sequence = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
            (usize::from(header[12] >> 4) * 4, sequence, flags & PSH != 0)
        }
        _ => {
            let header: &[u8; 8] = transport.first_chunk()?;
            let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
            if length != transport.len() || header[6..8] == [0, 0] {
                return None;
            }
            (8, 0, false)
        }
    };
    let least = if ip.protocol == TCP { 20 } else { 8 };
    (length >= least && length < transport.len()).then(|| Segment {
        protocol: ip.protocol,
        header_length: 20 + length,
        payload: start + 20 + length..start + ip.total_length,
        sequence,
        pushed,
    })
}

impl Segment {
    /// What the one behind it has to say; UDP counts nothing.
    fn next_sequence(&self) -> u32 {
        match self.protocol {
            TCP => self.sequence.wrapping_add(self.payload.len() as u32),
            _ => 0,
        }
    }
}

impl Stream {
    /// Takes the segment in if it is the next one. False leaves everything as it was.
    fn join(&mut self, buffer: &[u8], packet: &[u8], segment: &Segment, ip: &Ipv4) -> bool {
        let first = &buffer[self.handover.first.clone()];
        let fits = self.protocol == segment.protocol
            && self.header_length == segment.header_length
            && self.next_sequence == segment.sequence
            && segment.payload.len() <= self.size
            && self.handover.segments() < MOST_SEGMENTS
            && self.handover.len() + segment.payload.len() <= usize::from(u16::MAX)
            && same_header(first, packet, self.protocol, self.header_length);
        if !fits || !is_right(packet, ip) {
            return false;
        }
        if !self.checked {
            let first_ip = Ipv4::parse(first).expect("it was read when it came");
            if !is_right(first, &first_ip) {
                return false;
            }
            self.checked = true;
        }
        self.handover.joined.push(segment.payload.clone());
        self.next_sequence = segment.next_sequence();
        true
    }

    fn seal(self, buffer: &mut [u8]) -> Handover {
        let mut handover = self.handover;
        if handover.joined.is_empty() {
            return handover;
        }
        let total = handover.len();
        let psh = match (self.protocol, handover.joined.last()) {
            // The flags of the last one, found from its payload.
            (TCP, Some(last)) => buffer[last.start - (self.header_length - 20) + 13] & PSH,
            _ => 0,
        };
        let packet = &mut buffer[handover.first.clone()];
        let ip = Ipv4::parse(packet).expect("it was read when it came");
        packet::set_length(packet, 20, total);
        let checksum_at = match self.protocol {
            TCP => {
                packet[20 + 13] |= psh;
                16
            }
            _ => {
                packet[24..26].copy_from_slice(&((total - 20) as u16).to_be_bytes());
                6
            }
        };
        let open = checksum::fold(checksum::pseudo_header(&ip, total - 20));
        packet[20 + checksum_at..][..2].copy_from_slice(&open.to_be_bytes());
        handover.vnet = VnetHeader {
            needs_checksum: true,
            segments: if self.protocol == TCP {
                Segments::Tcp4
            } else {
                Segments::Udp
            },
            header_length: self.header_length as u16,
            segment_size: self.size as u16,
            checksum_start: 20,
            checksum_offset: checksum_at as u16,
        };
        handover
    }
}

/// Whether the headers say the same but for length, place in the stream, and checksums.
fn same_header(first: &[u8], next: &[u8], protocol: u8, header_length: usize) -> bool {
    let same = |range: Range<usize>| first[range.clone()] == next[range];
    // Type of service; Don't Fragment; TTL.
    if !(same(1..2) && same(6..9)) {
        return false;
    }
    // Acknowledgement; data offset and, without PSH, flags; window; urgent pointer and options.
    protocol != TCP || same(28..33) && same(34..36) && same(38..header_length)
}

fn is_right(packet: &[u8], ip: &Ipv4) -> bool {
    let (header, transport) = packet.split_at(ip.header_length);
    let sum = checksum::pseudo_header(ip, transport.len()) + checksum::sum(transport);
    checksum::fold(checksum::sum(header)) == 0xffff && checksum::fold(sum) == 0xffff
}

#[cfg(test)]
mod tests {
    use super::super::cut;
    use super::super::cut::tests::{tcp, transport_is_right, udp};
    use super::super::packet::tests::header_is_right;
    use super::*;
    use proptest::prelude::*;

    /// Hands a batch over, and cuts it up again as the host's kernel would.
    fn through(packets: &[Vec<u8>]) -> (Vec<usize>, Vec<Vec<u8>>) {
        let mut buffer = packets.concat();
        let mut merge = Merge::new(Offload::TcpAndUdp);
        let mut start = 0;
        for packet in packets {
            merge.add(&buffer, start, &Ipv4::parse(packet).unwrap());
            start += packet.len();
        }
        let handovers: Vec<Handover> = merge.finish(&mut buffer).collect();
        let (mut counts, mut out) = (Vec::new(), Vec::new());
        for handover in handovers {
            counts.push(handover.segments());
            let ranges = std::iter::once(&handover.first).chain(&handover.joined);
            let mut packet = ranges
                .flat_map(|r| buffer[r.clone()].to_vec())
                .collect::<Vec<u8>>();
            let ip = Ipv4::parse(&packet).unwrap();
            assert_eq!(ip.total_length, packet.len());
            assert!(header_is_right(&packet));
            let (mut scratch, mut datagrams) = (Vec::new(), Vec::new());
            cut::cut(
                &mut packet,
                &handover.vnet,
                &ip,
                &mut scratch,
                &mut datagrams,
            )
            .unwrap();
            for d in datagrams {
                out.push([&scratch[d.header], &packet[d.body]].concat());
            }
        }
        (counts, out)
    }

    /// IDs are given anew when a merged packet is cut.
    fn numbered(mut packets: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        for (number, packet) in packets.iter_mut().enumerate() {
            packet[4..6].copy_from_slice(&(number as u16).to_be_bytes());
            packet::seal(&mut packet[..20]);
        }
        packets
    }

    #[test]
    fn a_stream_is_handed_over_in_one_piece_and_comes_apart_as_it_was() {
        let stream = numbered(vec![
            tcp(0, 0x10, &[1; 100]),
            tcp(100, 0x10, &[2; 100]),
            tcp(200, 0x18, &[3; 50]),
        ]);
        assert_eq!(through(&stream), (vec![3], stream));
        let datagrams = numbered(vec![udp(&[1; 64]), udp(&[2; 64]), udp(&[3; 9])]);
        assert_eq!(through(&datagrams), (vec![3], datagrams));
    }

    #[test]
    fn whatever_does_not_follow_stands_alone() {
        let first = || tcp(0, 0x10, &[1; 100]);
        let altered = |at: usize, value: u8| {
            let mut packet = tcp(100, 0x10, &[2; 100]);
            packet[at] = value;
            packet::seal(&mut packet[..20]);
            packet[36..38].fill(0);
            let ip = Ipv4::parse(&packet).unwrap();
            let sum =
                checksum::pseudo_header(&ip, packet.len() - 20) + checksum::sum(&packet[20..]);
            packet[36..38].copy_from_slice(&checksum::finish(sum).to_be_bytes());
            packet
        };
        for (what, second) in [
            ("a gap", tcp(101, 0x10, &[2; 100])),
            ("a larger one", tcp(100, 0x10, &[2; 101])),
            ("its end", tcp(100, 0x11, &[2; 100])),
            ("a reset", tcp(100, 0x14, &[2; 100])),
            ("congestion", tcp(100, 0x50, &[2; 100])),
            ("a bare acknowledgement", tcp(100, 0x10, &[])),
            ("another type of service", altered(1, 4)),
            ("another TTL", altered(8, 9)),
            ("another acknowledgement", altered(31, 8)),
            ("another window", altered(34, 2)),
        ] {
            let (counts, out) = through(&[first(), second.clone()]);
            assert_eq!(counts, [1, 1], "{what}");
            assert_eq!(out, [first(), second], "{what}");
        }
    }

    #[test]
    fn a_packet_that_was_damaged_on_its_way_is_never_merged() {
        let good = numbered(vec![tcp(0, 0x10, &[1; 100]), tcp(100, 0x10, &[2; 100])]);
        for damaged in [0, 1] {
            let mut packets = good.clone();
            packets[damaged][90] ^= 1;
            let (counts, out) = through(&packets);
            assert_eq!(counts, [1, 1]);
            assert_eq!(out, packets);
            assert!(!transport_is_right(&out[damaged]));
        }
    }

    #[test]
    fn streams_that_take_turns_are_merged_each() {
        let mut other = [tcp(0, 0x10, &[5; 100]), tcp(100, 0x10, &[6; 100])];
        for packet in &mut other {
            // Another port, and the checksum's share of it.
            packet[20..22].copy_from_slice(&0x3038u16.to_be_bytes());
            let sum = u16::from_be_bytes([packet[36], packet[37]]);
            packet[36..38].copy_from_slice(&checksum::update(sum, 0x3039, 0x3038).to_be_bytes());
        }
        let [a, b] = [tcp(0, 0x10, &[1; 100]), tcp(100, 0x10, &[2; 100])];
        let [c, d] = other;
        assert_eq!(through(&[a, c, b, d]).0, [2, 2]);
    }

    #[test]
    fn a_merged_packet_stays_below_what_ip_can_say() {
        let stream: Vec<_> = (0..60).map(|n| tcp(n * 1400, 0x10, &[7; 1400])).collect();
        let (counts, out) = through(&stream);
        assert_eq!(counts, [46, 14]);
        assert_eq!(out.len(), 60);
        let small: Vec<_> = (0..100).map(|n| tcp(n, 0x10, &[7])).collect();
        assert_eq!(through(&small).0, [64, 36]);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_doubled_or_reordered(
            sizes in proptest::collection::vec((0usize..300, any::<bool>(), any::<bool>()), 1..80)
        ) {
            let mut sequence = 0;
            let packets: Vec<_> = sizes.iter().map(|(size, pushed, gap)| {
                sequence += u32::from(*gap && *size > 200);
                let packet = tcp(sequence, 0x10 | u8::from(*pushed) << 3, &vec![*size as u8; *size]);
                sequence += *size as u32;
                packet
            }).collect();
            let packets = numbered(packets);
            let (counts, out) = through(&packets);
            prop_assert_eq!(counts.iter().sum::<usize>(), packets.len());
            // PSH may be on the last of a piece only; it was there.
            prop_assert_eq!(out, packets);
        }
    }
}
