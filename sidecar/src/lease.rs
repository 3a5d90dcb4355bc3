//! A lease: a node's claim on its subnets, and how peers reach it. Reads and writes flannel's JSON
//! value byte for byte.
//!
//! What a backend keeps in a lease stays text here; the backend decodes its own. Expiry is no part
//! of the value: each store carries it in its own way.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::family::{ByFamily, Family};

/// The value of a lease.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lease {
    /// Where peers send this node's traffic. An unset or unspecified address is absent.
    pub public_ips: ByFamily<IpAddr>,
    /// The backend that published it; empty for backends that publish nothing.
    pub backend_type: Box<str>,
    /// The backend's own words per family, as compact JSON.
    pub backend_data: ByFamily<Box<str>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Read {
    #[serde(rename = "PublicIP")]
    public_ip: Option<Ipv4Addr>,
    #[serde(rename = "PublicIPv6")]
    public_ipv6: Option<Ipv6Addr>,
    #[serde(rename = "BackendType")]
    backend_type: Box<str>,
    #[serde(rename = "BackendData")]
    backend_data: Option<Value>,
    #[serde(rename = "BackendV6Data")]
    backend_v6_data: Option<Value>,
}

#[derive(Serialize)]
struct Written<'a> {
    #[serde(rename = "PublicIP")]
    public_ip: IpAddr,
    #[serde(rename = "PublicIPv6")]
    public_ipv6: Option<IpAddr>,
    #[serde(rename = "BackendType", skip_serializing_if = "str::is_empty")]
    backend_type: &'a str,
    #[serde(rename = "BackendData", skip_serializing_if = "Option::is_none")]
    backend_data: Option<Value>,
    #[serde(rename = "BackendV6Data", skip_serializing_if = "Option::is_none")]
    backend_v6_data: Option<Value>,
}

impl Lease {
    /// Decodes a lease's value by Go's rules; the error names the field.
    pub fn parse(value: &[u8]) -> Result<Self, go_json::Error> {
        let read: Read = go_json::from_slice(value)?;
        let public_ips = [
            (Family::V4, read.public_ip.map(IpAddr::V4)),
            (Family::V6, read.public_ipv6.map(IpAddr::V6)),
        ];
        let backend_data = [
            (Family::V4, read.backend_data),
            (Family::V6, read.backend_v6_data),
        ];
        Ok(Self {
            public_ips: public_ips
                .into_iter()
                .filter_map(|(family, ip)| Some((family, ip.filter(|ip| !ip.is_unspecified())?)))
                .collect(),
            backend_type: read.backend_type,
            backend_data: backend_data
                .into_iter()
                .filter_map(|(family, data)| Some((family, data?.to_string().into())))
                .collect(),
        })
    }

    /// Encodes the value with flannel's fields in flannel's order.
    pub fn render(&self) -> String {
        let data = |family| {
            let text = self.backend_data.get(family)?;
            Some(serde_json::from_str(text).expect("a lease's backend data is JSON"))
        };
        let written = Written {
            public_ip: *self
                .public_ips
                .get(Family::V4)
                .unwrap_or(&Family::V4.unspecified()),
            public_ipv6: self.public_ips.get(Family::V6).copied(),
            backend_type: &self.backend_type,
            backend_data: data(Family::V4),
            backend_v6_data: data(Family::V6),
        };
        go_json::to_compact(&written).expect("texts and addresses always encode")
    }

    /// Whether the two are one node's by an address that only one node can have.
    pub fn shares_public_ip(&self, other: &Self) -> bool {
        self.public_ips
            .iter()
            .any(|(family, ip)| other.public_ips.get(family) == Some(ip))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUAL: &str = r#"{"PublicIP":"192.168.50.1","PublicIPv6":"fd00:50::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"4a:83:19:a6:f0:ee"},"BackendV6Data":{"VNI":1,"VtepMAC":"06:0c:7d:5b:e3:e8"}}"#;

    #[test]
    fn values_of_flanneld_are_written_back_byte_for_byte() {
        for value in [
            DUAL,
            r#"{"PublicIP":"192.168.50.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"9a:b3:51:e0:31:a9"}}"#,
            r#"{"PublicIP":"0.0.0.0","PublicIPv6":"fd00:50::1","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"be:72:dc:fb:29:77"}}"#,
            r#"{"PublicIP":"192.168.50.1","PublicIPv6":null}"#,
            r#"{"PublicIP":"192.168.50.1","PublicIPv6":null,"BackendType":"host-gw"}"#,
        ] {
            assert_eq!(Lease::parse(value.as_bytes()).unwrap().render(), value);
        }
    }

    #[test]
    fn keys_in_any_case_and_order_are_read() {
        let odd = br#"{"BackendV6Data":null,"x":1,"backendtype":"vxlan","PUBLICIP":"192.168.50.36","backenddata":{"VtepMAC":"02:00:00:00:00:36","VNI":9}}"#;
        let lease = Lease::parse(odd).unwrap();
        assert_eq!(&*lease.backend_type, "vxlan");
        assert_eq!(
            lease.public_ips.families().collect::<Vec<_>>(),
            [Family::V4]
        );
        assert_eq!(
            lease.backend_data.get(Family::V4).map(|data| &**data),
            Some(r#"{"VtepMAC":"02:00:00:00:00:36","VNI":9}"#)
        );
    }

    #[test]
    fn an_unspecified_public_ip_is_none() {
        for value in [
            r#"{}"#,
            r#"{"PublicIP":null}"#,
            r#"{"PublicIP":"0.0.0.0","PublicIPv6":"::"}"#,
        ] {
            assert!(
                Lease::parse(value.as_bytes())
                    .unwrap()
                    .public_ips
                    .is_empty()
            );
        }
    }

    #[test]
    fn a_wrong_field_is_named() {
        for (value, field) in [
            (r#"{"PublicIP":"bad"}"#, "PublicIP"),
            (r#"{"PublicIP":"fd00::1"}"#, "PublicIP"),
            (r#"{"PublicIPv6":"10.0.0.1"}"#, "PublicIPv6"),
            (r#"{"BackendType":7}"#, "BackendType"),
            (r#"{not json"#, ""),
            ("", ""),
        ] {
            let error = Lease::parse(value.as_bytes()).unwrap_err();
            assert_eq!(error.path(), field, "{value}: {error}");
        }
    }

    #[test]
    fn one_common_public_ip_makes_one_node() {
        let dual = Lease::parse(DUAL.as_bytes()).unwrap();
        let v4 = Lease::parse(br#"{"PublicIP":"192.168.50.1"}"#).unwrap();
        let none = Lease::default();
        assert!(dual.shares_public_ip(&v4));
        assert!(!none.shares_public_ip(&none));
    }
}
