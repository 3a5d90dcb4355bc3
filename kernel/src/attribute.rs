//! Attributes that the message crates have no types for, built from their bytes.

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

/// The value of the first attribute of a kind in a buffer of them.
pub(crate) fn find(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    const FLAGS: u16 = 0xc000;
    loop {
        let header = bytes.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & !FLAGS;
        let value = bytes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
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
