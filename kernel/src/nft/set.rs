//! Sets and maps: what rules look up instead of being one rule for each.

use std::net::IpAddr;

use super::lookup::Field;

/// A set, or, with data, a map. Its elements are exact values, found by hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Its name within the table.
    pub name: String,
    /// What its keys are made of.
    pub key: Vec<Field>,
    /// What a map's values are made of; empty for a set.
    pub data: Vec<Field>,
}

/// An element of a set, or an entry of a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// The key.
    pub key: Value,
    /// The value; empty in a set.
    pub data: Value,
    /// What `nft list` shows behind `comment`: who owns the element. At most 252 bytes.
    pub comment: String,
}

/// A concatenation of fields, as the kernel's registers hold it: each padded to four bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Value(pub(super) Vec<u8>);

impl Value {
    /// Nothing, to which fields are appended.
    pub fn new() -> Value {
        Value::default()
    }

    /// … and then an address.
    pub fn ip(self, ip: IpAddr) -> Value {
        match ip {
            IpAddr::V4(ip) => self.field(&ip.octets()),
            IpAddr::V6(ip) => self.field(&ip.octets()),
        }
    }

    /// … and then a transport protocol's number (`IPPROTO_…`).
    pub fn protocol(self, number: u8) -> Value {
        self.field(&[number])
    }

    /// … and then a port.
    pub fn port(self, port: u16) -> Value {
        self.field(&port.to_be_bytes())
    }

    /// … and then a device's name, cut to the kernel's 16 bytes.
    pub fn ifname(self, name: &str) -> Value {
        let mut bytes = [0; 16];
        for (to, from) in bytes.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        self.field(&bytes)
    }

    fn field(mut self, bytes: &[u8]) -> Value {
        self.0.extend(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }
}

/// What a value is made of is read in order, as the set's fields say.
impl Value {
    /// The address at the beginning, of four or of sixteen bytes, and what is behind it.
    pub fn split_ip(&self, v6: bool) -> Option<(IpAddr, Value)> {
        let (ip, rest): (IpAddr, _) = match v6 {
            false => {
                let (bytes, rest) = self.0.split_first_chunk::<4>()?;
                ((*bytes).into(), rest)
            }
            true => {
                let (bytes, rest) = self.0.split_first_chunk::<16>()?;
                ((*bytes).into(), rest)
            }
        };
        Some((ip, Value(rest.to_vec())))
    }

    /// The protocol's number at the beginning, and what is behind it.
    pub fn split_protocol(&self) -> Option<(u8, Value)> {
        let ([number, ..], rest) = self.0.split_first_chunk::<4>()?;
        Some((*number, Value(rest.to_vec())))
    }

    /// The port at the beginning, and what is behind it.
    pub fn split_port(&self) -> Option<(u16, Value)> {
        let ([high, low, ..], rest) = self.0.split_first_chunk::<4>()?;
        Some((u16::from_be_bytes([*high, *low]), Value(rest.to_vec())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_together_is_taken_apart_again() {
        for (text, v6) in [("10.1.2.3", false), ("fd00::1", true)] {
            let ip: IpAddr = text.parse().unwrap();
            let value = Value::new().ip(ip).protocol(6).port(8080);
            let (got, rest) = value.split_ip(v6).unwrap();
            assert_eq!(got, ip);
            let (protocol, rest) = rest.split_protocol().unwrap();
            let (port, rest) = rest.split_port().unwrap();
            assert_eq!((protocol, port, rest), (6, 8080, Value::new()));
        }
        assert_eq!(Value::new().split_port(), None);
    }
}
