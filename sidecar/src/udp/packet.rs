//! IPv4 packets as bytes: what is read of their headers, and the one change that forwarding makes.
//!
//! Everything here is pure, and takes any bytes: they come from other hosts.

use std::net::Ipv4Addr;

use super::checksum;

/// `IPPROTO_ICMP`
pub(crate) const ICMP: u8 = 1;
/// `IPPROTO_TCP`
pub(crate) const TCP: u8 = 6;
/// `IPPROTO_UDP`
pub(crate) const UDP: u8 = 17;

const TTL_AT: usize = 8;
const CHECKSUM_AT: usize = 10;

/// The fields of an IPv4 header that forwarding looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ipv4 {
    /// Bytes of the header, options included: 20 to 60.
    pub(crate) header_length: usize,
    /// Bytes of the whole packet; no more than there are.
    pub(crate) total_length: usize,
    /// Don't Fragment is set.
    pub(crate) unfragmentable: bool,
    /// A fragment of any kind, the first included.
    pub(crate) fragment: bool,
    /// A fragment that is not the first: it has no transport header.
    pub(crate) later_fragment: bool,
    /// The protocol inside.
    pub(crate) protocol: u8,
    /// From whom.
    pub(crate) source: Ipv4Addr,
    /// To whom.
    pub(crate) destination: Ipv4Addr,
}

impl Ipv4 {
    /// Reads the header of a packet. None for anything that is no IPv4 packet or has less bytes
    /// than it says. The checksum is not looked at.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let header: &[u8; 20] = bytes.first_chunk()?;
        let header_length = usize::from(header[0] & 0xf) * 4;
        let total_length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let sound = header[0] >> 4 == 4
            && header_length >= 20
            && header_length <= total_length
            && total_length <= bytes.len();
        let fragment = u16::from_be_bytes([header[6], header[7]]);
        let address =
            |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
        sound.then(|| Self {
            header_length,
            total_length,
            unfragmentable: fragment & 0x4000 != 0,
            fragment: fragment & 0x3fff != 0,
            later_fragment: fragment & 0x1fff != 0,
            protocol: header[9],
            source: address(12),
            destination: address(16),
        })
    }
}

/// One hop less: TTL and header checksum change. False if the packet's time is over, which is then
/// unchanged; it is to be dropped without a word, as flannel does.
///
/// # Panics
/// For less than 20 bytes.
#[must_use]
pub(crate) fn hop(packet: &mut [u8]) -> bool {
    let ttl = packet[TTL_AT];
    if ttl <= 1 {
        return false;
    }
    let word = |ttl| u16::from_be_bytes([ttl, packet[TTL_AT + 1]]);
    let old = u16::from_be_bytes([packet[CHECKSUM_AT], packet[CHECKSUM_AT + 1]]);
    let new = checksum::update(old, word(ttl), word(ttl - 1));
    packet[TTL_AT] = ttl - 1;
    packet[CHECKSUM_AT..][..2].copy_from_slice(&new.to_be_bytes());
    true
}

/// Writes the length of a packet and its header's checksum.
pub(crate) fn set_length(packet: &mut [u8], header_length: usize, total_length: usize) {
    let length = u16::try_from(total_length).expect("a packet is at most 65535 bytes long");
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    seal(&mut packet[..header_length]);
}

/// Writes the checksum of a complete IPv4 header.
pub(crate) fn seal(header: &mut [u8]) {
    header[CHECKSUM_AT..][..2].fill(0);
    let sum = checksum::finish(checksum::sum(header));
    header[CHECKSUM_AT..][..2].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) const SOURCE: Ipv4Addr = Ipv4Addr::new(10, 5, 20, 2);
    pub(crate) const DESTINATION: Ipv4Addr = Ipv4Addr::new(10, 5, 30, 3);

    /// A packet with a right header around `payload`.
    pub(crate) fn ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0x12, 0x34, 0x40, 0, 64, protocol, 0, 0];
        packet.extend(SOURCE.octets());
        packet.extend(DESTINATION.octets());
        packet.extend(payload);
        let length = packet.len();
        set_length(&mut packet, 20, length);
        packet
    }

    pub(crate) fn header_is_right(packet: &[u8]) -> bool {
        let ip = Ipv4::parse(packet).unwrap();
        checksum::fold(checksum::sum(&packet[..ip.header_length])) == 0xffff
    }

    #[test]
    fn a_header_is_read() {
        let packet = ipv4(UDP, &[7; 12]);
        let ip = Ipv4::parse(&packet).unwrap();
        assert_eq!((ip.header_length, ip.total_length), (20, 32));
        assert_eq!((ip.source, ip.destination), (SOURCE, DESTINATION));
        assert_eq!((ip.protocol, ip.unfragmentable), (UDP, true));
        assert!(!ip.fragment && header_is_right(&packet));
    }

    #[test]
    fn bytes_behind_the_packet_are_no_part_of_it() {
        let mut packet = ipv4(UDP, &[7; 12]);
        packet.extend([0; 8]);
        assert_eq!(Ipv4::parse(&packet).unwrap().total_length, 32);
    }

    #[test]
    fn what_is_no_whole_ipv4_packet_is_none() {
        let good = ipv4(UDP, &[7; 12]);
        let mut v6 = good.clone();
        v6[0] = 0x65;
        let mut short_header = good.clone();
        short_header[0] = 0x44;
        let mut header_past_the_end = ipv4(UDP, &[]);
        header_past_the_end[0] = 0x4f;
        for bad in [
            &v6,
            &short_header,
            &header_past_the_end,
            &good[..31].to_vec(),
            &vec![],
        ] {
            assert_eq!(Ipv4::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn the_first_fragment_has_a_transport_header_and_later_ones_do_not() {
        let mut packet = ipv4(UDP, &[7; 12]);
        packet[6..8].copy_from_slice(&0x2000u16.to_be_bytes());
        let ip = Ipv4::parse(&packet).unwrap();
        assert!(ip.fragment && !ip.later_fragment);
        packet[6..8].copy_from_slice(&0x0001u16.to_be_bytes());
        let ip = Ipv4::parse(&packet).unwrap();
        assert!(ip.fragment && ip.later_fragment);
    }

    #[test]
    fn a_packet_whose_time_is_over_goes_no_further() {
        for ttl in [0, 1] {
            let mut packet = ipv4(UDP, &[]);
            packet[TTL_AT] = ttl;
            assert!(!hop(&mut packet));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Some(ip) = Ipv4::parse(&bytes) {
                prop_assert!(ip.header_length <= ip.total_length && ip.total_length <= bytes.len());
            }
        }

        #[test]
        fn a_hop_keeps_the_checksum_right(ttl in 2u8..=255, id: u16, protocol: u8, source: [u8; 4]) {
            let mut packet = ipv4(protocol, &[]);
            packet[4..6].copy_from_slice(&id.to_be_bytes());
            packet[TTL_AT] = ttl;
            packet[12..16].copy_from_slice(&source);
            seal(&mut packet);
            prop_assert!(hop(&mut packet));
            prop_assert_eq!(packet[TTL_AT], ttl - 1);
            prop_assert!(header_is_right(&packet));
        }
    }
}
