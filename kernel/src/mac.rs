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
    let (separator, digits) = match text.as_bytes().get(2)? {
        b':' => (':', 2),
        b'-' => ('-', 2),
        _ => ('.', 4),
    };
    let mut bytes = [0; 6];
    let mut at = 0;
    for group in text.split(separator) {
        if group.len() != digits || !group.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        for pair in group.as_bytes().chunks(2) {
            let pair = std::str::from_utf8(pair).ok()?;
            *bytes.get_mut(at)? = u8::from_str_radix(pair, 16).ok()?;
            at += 1;
        }
    }
    (at == 6).then_some(Mac(bytes))
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
