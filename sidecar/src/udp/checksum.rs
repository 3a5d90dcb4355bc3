//! The Internet checksum (RFC 1071), and its update in place (RFC 1624).
//!
//! Sums are kept unfolded, so that those of parts can be added up: a part must then begin at an
//! even byte of the whole.

use super::packet::Ipv4;

/// The sum of `bytes` as 16-bit words in network order, an odd last byte padded with zero.
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    let mut total = 0u64;
    // The sum is the same in any word size (RFC 1071 §2): in 32-bit words the compiler makes
    // vector instructions of it. A u64 takes 2^32 of them.
    let (words, rest) = bytes.as_chunks::<4>();
    for word in words {
        total += u64::from(u32::from_ne_bytes(*word));
    }
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    total += u64::from(u32::from_ne_bytes(last));
    // Each word was read in the machine's order: the folded sum comes out swapped, or not.
    u64::from(u16::from_be(fold(total)))
}

/// Adds the carries back in until 16 bits are left.
pub(crate) fn fold(mut total: u64) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// What goes into a header: the complement of the sum.
pub(crate) fn finish(total: u64) -> u16 {
    !fold(total)
}

/// The sum of the pseudo header (RFC 9293 §3.1) of `length` bytes of transport header and data.
pub(crate) fn pseudo_header(ip: &Ipv4, length: usize) -> u64 {
    let address = |bytes: [u8; 4]| u64::from(u32::from_be_bytes(bytes));
    address(ip.source.octets())
        + address(ip.destination.octets())
        + u64::from(ip.protocol)
        + length as u64
}

/// The checksum after one of the words that it covers has changed: RFC 1624's equation 3,
/// `HC' = ~(~HC + ~m + m')`.
pub(crate) fn update(checksum: u16, old: u16, new: u16) -> u16 {
    finish(u64::from(!checksum) + u64::from(!old) + u64::from(new))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071's definition, word by word.
    fn slow(bytes: &[u8]) -> u16 {
        let words = bytes.chunks(2).map(|pair| {
            let low = pair.get(1).copied().unwrap_or(0);
            u64::from(u16::from_be_bytes([pair[0], low]))
        });
        fold(words.sum())
    }

    #[test]
    fn the_example_of_rfc_1071_comes_out() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(&bytes)), 0xddf2);
    }

    #[test]
    fn the_example_of_rfc_1624_comes_out() {
        assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    proptest! {
        #[test]
        fn the_sum_is_that_of_the_definition(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(fold(sum(&bytes)), slow(&bytes));
        }

        #[test]
        fn sums_of_parts_add_up(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 0usize..150) {
            let (head, tail) = bytes.split_at((cut * 2).min(bytes.len() & !1));
            prop_assert_eq!(fold(sum(head) + sum(tail)), slow(&bytes));
        }
    }
}
