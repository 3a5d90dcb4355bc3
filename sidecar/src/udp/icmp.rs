//! "Network unreachable", for packets that no lease covers.

use super::checksum;
use super::packet::{self, ICMP, Ipv4};

const DESTINATION_UNREACHABLE: u8 = 3;
const NET_UNREACHABLE: u8 = 0;
/// Flannel's; it goes no further than this host and its pods.
const TTL: u8 = 8;

/// The answer to `packet` (RFC 792, RFC 1122 §3.2.2): its IP header and the 8 bytes behind it are
/// quoted. None where none may be given: to ICMP, to a fragment that is not the first, to a sender
/// that is no single host.
///
/// It speaks in the name of the address that cannot be reached. Flannel uses the device's own, and
/// is never heard: the kernel takes what comes in from one of its own addresses for forged
/// (`fib_validate_source`).
pub(crate) fn net_unreachable(packet: &[u8], ip: &Ipv4) -> Option<Vec<u8>> {
    let source = ip.source;
    let no_host = source.is_unspecified() || source.is_multicast() || source.is_broadcast();
    if ip.protocol == ICMP || ip.later_fragment || no_host {
        return None;
    }
    let quoted = &packet[..ip.total_length.min(ip.header_length + 8)];
    let length = 20 + 8 + quoted.len();
    let mut answer = vec![0; length];
    // Version and header length; precedence "internetwork control", as routers answer.
    answer[0] = 0x45;
    answer[1] = 0xc0;
    answer[8] = TTL;
    answer[9] = ICMP;
    answer[12..16].copy_from_slice(&ip.destination.octets());
    answer[16..20].copy_from_slice(&source.octets());
    packet::set_length(&mut answer, 20, length);
    answer[20] = DESTINATION_UNREACHABLE;
    answer[21] = NET_UNREACHABLE;
    answer[28..].copy_from_slice(quoted);
    let sum = checksum::finish(checksum::sum(&answer[20..]));
    answer[22..24].copy_from_slice(&sum.to_be_bytes());
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::super::packet::tests::{DESTINATION, SOURCE, header_is_right, ipv4};
    use super::super::packet::{TCP, UDP};
    use super::*;

    fn answer(packet: &[u8]) -> Option<Vec<u8>> {
        net_unreachable(packet, &Ipv4::parse(packet).unwrap())
    }

    #[test]
    fn the_sender_is_told_with_its_header_and_eight_bytes_of_what_it_sent() {
        let packet = ipv4(TCP, &[9; 100]);
        let answer = answer(&packet).unwrap();
        let ip = Ipv4::parse(&answer).unwrap();
        assert_eq!((ip.source, ip.destination), (DESTINATION, SOURCE));
        assert_eq!((ip.protocol, ip.total_length), (ICMP, 56));
        assert_eq!((answer[8], answer[20], answer[21]), (8, 3, 0));
        assert_eq!(answer[28..], packet[..28]);
        assert!(header_is_right(&answer));
        assert_eq!(checksum::fold(checksum::sum(&answer[20..])), 0xffff);
    }

    #[test]
    fn a_packet_shorter_than_the_quote_is_quoted_whole() {
        let packet = ipv4(UDP, &[9; 3]);
        assert_eq!(answer(&packet).unwrap()[28..], packet[..]);
    }

    #[test]
    fn icmp_later_fragments_and_nobody_are_not_answered() {
        assert_eq!(answer(&ipv4(ICMP, &[8; 8])), None);
        let mut fragment = ipv4(UDP, &[9; 30]);
        fragment[7] = 1;
        assert_eq!(answer(&fragment), None);
        let mut from_nobody = ipv4(UDP, &[9; 30]);
        from_nobody[12..16].fill(0);
        assert_eq!(answer(&from_nobody), None);
    }

    #[test]
    fn a_first_fragment_is_answered() {
        let mut fragment = ipv4(UDP, &[9; 30]);
        fragment[6] = 0x20;
        assert!(answer(&fragment).is_some());
    }
}
