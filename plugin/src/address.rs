//! Addresses as they stand in configs and results: Go's text forms, once, at the edge. Pure.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de};

/// An address; `IPv4-mapped` IPv6 forms are the IPv4 address, as Go takes them.
pub(crate) fn parse_ip(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

/// An address that may have a prefix length behind it, which is checked and dropped.
pub(crate) fn parse_ip_of(text: &str) -> Result<IpAddr, String> {
    let ip = match text.contains('/') {
        true => parse_cidr(text).map(|cidr| cidr.addr()),
        false => parse_ip(text),
    };
    ip.ok_or_else(|| format!("invalid IP address {text}"))
}

/// `address/length`; host bits are kept.
pub(crate) fn parse_cidr(text: &str) -> Option<IpNet> {
    text.parse().ok()
}

/// An address in JSON: a string, of which the empty one is no address.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ip(pub(crate) Option<IpAddr>);

impl<'de> Deserialize<'de> for Ip {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Ip, D::Error> {
        let text = String::deserialize(deserializer)?;
        match (text.as_str(), parse_ip(&text)) {
            ("", _) => Ok(Ip(None)),
            (_, None) => Err(de::Error::custom(format!("invalid IP address: {text}"))),
            (_, ip) => Ok(Ip(ip)),
        }
    }
}

/// An address in JSON that may have a prefix length, which is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IpOf(pub(crate) IpAddr);

impl<'de> Deserialize<'de> for IpOf {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<IpOf, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_ip_of(&text).map(IpOf).map_err(de::Error::custom)
    }
}

/// An address with its prefix length in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cidr(pub(crate) IpNet);

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Cidr, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_cidr(&text)
            .map(Cidr)
            .ok_or_else(|| de::Error::custom(format!("invalid CIDR address: {text}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_are_ipv4_and_leading_zeros_are_none() {
        assert_eq!(parse_ip("::ffff:10.1.2.80"), parse_ip("10.1.2.80"));
        assert_eq!(parse_ip("10.1.2.08"), None);
        assert_eq!(parse_cidr("10.1.2/24"), None);
    }
}
