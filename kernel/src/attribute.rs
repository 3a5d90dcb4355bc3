//! Attributes by their bytes: those that the message crates have no types for, and those of tables
//! with very many entries, of which the crates' types cost more than the kernel's dump.

use std::net::IpAddr;

use netlink_packet_core::{DefaultNla, Emitable, NLA_F_NESTED};

/// An attribute that holds others.
pub(crate) fn nest(kind: u16, inside: &[DefaultNla]) -> DefaultNla {
    let mut bytes = vec![0; inside.buffer_len()];
    inside.emit(&mut bytes);
    DefaultNla::new(kind | NLA_F_NESTED, bytes)
}

/// A number in network order, as netfilter's attributes have them.
pub(crate) fn be32(kind: u16, number: u32) -> DefaultNla {
    DefaultNla::new(kind, number.to_be_bytes().to_vec())
}

/// The attributes in a buffer of them, by kind, up to the first that is not whole.
pub(crate) fn all(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const FLAGS: u16 = 0xc000;
    std::iter::from_fn(move || {
        let header = bytes.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & !FLAGS;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of the first attribute of a kind in a buffer of them.
pub(crate) fn find(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut found = all(bytes).filter(|(kind, _)| *kind == wanted);
    found.next().map(|(_, value)| value)
}

/// A number in the machine's order, as routing attributes have them.
pub(crate) fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_ne_bytes)
}

/// An address: only its length tells its family.
pub(crate) fn ip(value: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(value).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_is_found_behind_others_of_odd_length() {
        let outer = nest(
            7,
            &[DefaultNla::new(1, vec![1, 2, 3]), be32(2, 0x0102_0304)],
        );
        let mut bytes = vec![0; [outer.clone()].as_slice().buffer_len()];
        [outer].as_slice().emit(&mut bytes);
        let inside = find(&bytes, 7).unwrap();
        assert_eq!(find(inside, 2).unwrap(), [1, 2, 3, 4]);
        assert_eq!(find(inside, 3), None);
        assert_eq!(find(&[8, 0], 1), None);
        assert_eq!(find(&[3, 0, 1, 0], 1), None, "a length below the header's");
    }
}
