//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

/// An Ethernet (MAC) address. Written in lower case with colons, as the kernel and flannel do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Makes six random bytes a unicast, locally administered address (IEEE 802: bit 0 of the
    /// first byte clear, bit 1 set), the pattern flannel gives its VTEPs.
    pub fn local_unicast(mut bytes: [u8; 6]) -> Mac {
        bytes[0] = (bytes[0] & 0xfe) | 0x02;
        Mac(bytes)
    }

    /// Whether the group bit is clear.
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0
    }

    /// The address in a link-layer attribute, if it is an Ethernet one.
    pub(crate) fn from_slice(bytes: &[u8]) -> Option<Mac> {
        bytes.try_into().ok().map(Mac)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not an Ethernet address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid MAC address {0:?}: six hexadecimal bytes are wanted, as in 0a:58:0a:f4:01:02")]
pub struct ParseMacError(String);

impl FromStr for Mac {
    type Err = ParseMacError;

    /// Takes what Go's `net.ParseMAC` takes of six bytes: `aa:bb:cc:dd:ee:ff`,
    /// `aa-bb-cc-dd-ee-ff`, `aabb.ccdd.eeff`.
    fn from_str(text: &str) -> Result<Mac, ParseMacError> {
        parse(text).ok_or_else(|| ParseMacError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Mac> {
    let text = text.as_bytes();
    let (separator, digits) = match text.get(2)? {
        b':' => (b':', 2),
        b'-' => (b'-', 2),
        _ => (b'.', 4),
    };
    let mut bytes = [0; 6];
    let mut at = 0;
    for group in text.split(|byte| *byte == separator) {
        if group.len() != digits {
            return None;
        }
        for digit in group {
            let digit = char::from(*digit).to_digit(16)?;
            let byte: &mut u8 = bytes.get_mut(at / 2)?;
            *byte = *byte << 4 | digit as u8;
            at += 1;
        }
    }
    (at == 12).then_some(Mac(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_that_go_takes_is_read_and_written_with_colons() {
        for text in ["0A:58:0a:f4:01:02", "0a-58-0a-f4-01-02", "0a58.0af4.0102"] {
            assert_eq!(
                text.parse::<Mac>().unwrap().to_string(),
                "0a:58:0a:f4:01:02"
            );
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "0a:58:0a:f4:01",
            "0a:58:0a:f4:01:02:03",
            "0a:58:0a:f4:01:g2",
            "x",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
        assert!("0a58:0af4:0102".parse::<Mac>().is_err());
        assert!("+a:58:0a:f4:01:02".parse::<Mac>().is_err());
    }
}
