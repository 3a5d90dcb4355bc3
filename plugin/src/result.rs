//! The result of ADD: read from `prevResult`, written for any version of the specification. Pure.
//!
//! The bytes are libcni's own (indent, key order, what is left out), so that whatever compares or
//! caches results sees no difference. Before 1.0.0 keys stand in the order of libcni's structs and
//! `dns` always; from 1.0.0 on they are sorted and empty `dns` is left out.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::address::{Cidr, Ip};
use crate::error::{Code, Error};
use crate::version::Version;

/// What ADD made.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct AddResult {
    /// Every interface made or used, the node's first.
    pub(crate) interfaces: Vec<Interface>,
    /// The addresses.
    pub(crate) ips: Vec<IpConfig>,
    /// The routes, as configured: a gateway that was filled in does not show.
    pub(crate) routes: Vec<Route>,
    /// The name servers.
    pub(crate) dns: Dns,
}

/// An interface of a result.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Interface {
    /// Its name.
    pub(crate) name: String,
    /// Its hardware address, or empty.
    pub(crate) mac: String,
    /// The path of the network namespace that it is in; empty: the node's.
    pub(crate) sandbox: String,
}

/// An address of a result.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct IpConfig {
    /// Which of the interfaces has it.
    pub(crate) interface: Option<usize>,
    /// The address with the length of its subnet.
    pub(crate) address: Option<Cidr>,
    /// The subnet's gateway.
    pub(crate) gateway: Ip,
}

/// A route, in a config or in a result. All fields but `dst` may be absent.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Route {
    /// Where to; absent in a config that forgot it.
    pub(crate) dst: Option<Cidr>,
    /// The next hop.
    pub(crate) gw: Ip,
    /// Path MTU in bytes; 0: none.
    pub(crate) mtu: u32,
    /// Advertised MSS in bytes; 0: none.
    pub(crate) advmss: u32,
    /// The metric; 0: the kernel's default.
    pub(crate) priority: u32,
    /// The routing table; absent: main.
    pub(crate) table: Option<u32>,
    /// The scope (`include/uapi/linux/rtnetlink.h`, RT_SCOPE_…).
    pub(crate) scope: Option<u8>,
}

/// Name servers of a result.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Dns {
    /// Addresses, by precedence.
    pub(crate) nameservers: Vec<String>,
    /// The local domain.
    pub(crate) domain: String,
    /// Search domains, by precedence.
    pub(crate) search: Vec<String>,
    /// Options of the resolver.
    pub(crate) options: Vec<String>,
}

impl Dns {
    /// Nothing in it.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Dns::default()
    }

    /// The key of a text that is not one line: a runtime writes them into a file of lines.
    pub(crate) fn unprintable(&self) -> Option<&'static str> {
        let is = |text: &String| text.contains(char::is_control);
        let keys = [
            ("nameservers", self.nameservers.iter().any(is)),
            ("domain", is(&self.domain)),
            ("search", self.search.iter().any(is)),
            ("options", self.options.iter().any(is)),
        ];
        keys.into_iter()
            .find_map(|(key, found)| found.then_some(key))
    }
}

impl AddResult {
    /// The JSON document for stdout. Versions before 0.3.0 have one address per family and no
    /// interfaces, and cannot say "no address at all".
    pub(crate) fn render(&self, version: Version) -> Result<String, Error> {
        let mut object = Map::new();
        object.insert("cniVersion".into(), json!(version.as_str()));
        if version < Version::V0_3_0 {
            self.by_family(&mut object)?;
        } else {
            self.lists(version, &mut object);
        }
        if version < Version::V1_0_0 || !self.dns.is_empty() {
            object.insert("dns".into(), self.dns());
        }
        let mut document = Value::Object(object);
        if version >= Version::V1_0_0 {
            document.sort_all_objects();
        }
        Ok(go_json::to_indented(&document).expect("a value is always JSON"))
    }

    fn by_family(&self, object: &mut Map<String, Value>) -> Result<(), Error> {
        for (key, v6) in [("ip4", false), ("ip6", true)] {
            let first = self.ips.iter().find_map(|ip| {
                let address = ip.address?.0;
                (is_v6(address.addr()) == v6).then_some((address, ip.gateway))
            });
            let Some((address, gateway)) = first else {
                continue;
            };
            let mut family = Map::new();
            family.insert("ip".into(), json!(address.to_string()));
            insert_ip(&mut family, "gateway", gateway);
            let routes: Vec<Value> = (self.routes.iter())
                .filter_map(|route| {
                    let dst = route.dst.filter(|dst| is_v6(dst.0.addr()) == v6)?;
                    let mut entry = Map::new();
                    entry.insert("dst".into(), json!(dst.0.to_string()));
                    insert_ip(&mut entry, "gw", route.gw);
                    Some(Value::Object(entry))
                })
                .collect();
            insert_list(&mut family, "routes", routes);
            object.insert(key.into(), Value::Object(family));
        }
        match object.len() {
            1 => Err(Error::new(
                Code::IncompatibleVersion,
                "cannot convert: no valid IP addresses",
            )),
            _ => Ok(()),
        }
    }

    fn lists(&self, version: Version, object: &mut Map<String, Value>) {
        let interfaces = self.interfaces.iter().map(|interface| {
            let mut entry = Map::new();
            entry.insert("name".into(), json!(interface.name));
            insert_text(&mut entry, "mac", &interface.mac);
            insert_text(&mut entry, "sandbox", &interface.sandbox);
            Value::Object(entry)
        });
        insert_list(object, "interfaces", interfaces.collect());
        let ips = self.ips.iter().filter_map(|ip| {
            let address = ip.address?.0;
            let mut entry = Map::new();
            if version < Version::V1_0_0 {
                let family = if is_v6(address.addr()) { "6" } else { "4" };
                entry.insert("version".into(), json!(family));
            }
            if let Some(index) = ip.interface {
                entry.insert("interface".into(), json!(index));
            }
            entry.insert("address".into(), json!(address.to_string()));
            insert_ip(&mut entry, "gateway", ip.gateway);
            Some(Value::Object(entry))
        });
        insert_list(object, "ips", ips.collect());
        let routes = self.routes.iter().map(Route::entry).collect();
        insert_list(object, "routes", routes);
    }

    fn dns(&self) -> Value {
        let mut dns = Map::new();
        insert_list(&mut dns, "nameservers", texts(&self.dns.nameservers));
        insert_text(&mut dns, "domain", &self.dns.domain);
        insert_list(&mut dns, "search", texts(&self.dns.search));
        insert_list(&mut dns, "options", texts(&self.dns.options));
        Value::Object(dns)
    }
}

impl Route {
    /// A route to a network, with nothing else said.
    pub(crate) fn to(dst: IpNet) -> Route {
        Route {
            dst: Some(Cidr(dst)),
            ..Route::default()
        }
    }

    fn entry(&self) -> Value {
        let mut entry = Map::new();
        // What Go prints for a network that was never set; whoever forgot `dst` sees it here.
        let dst = self.dst.map_or("<nil>".to_owned(), |dst| dst.0.to_string());
        entry.insert("dst".into(), json!(dst));
        insert_ip(&mut entry, "gw", self.gw);
        for (key, number) in [
            ("mtu", self.mtu),
            ("advmss", self.advmss),
            ("priority", self.priority),
        ] {
            if number != 0 {
                entry.insert(key.into(), json!(number));
            }
        }
        if let Some(table) = self.table {
            entry.insert("table".into(), json!(table));
        }
        if let Some(scope) = self.scope {
            entry.insert("scope".into(), json!(scope));
        }
        Value::Object(entry)
    }
}

/// Whether the address is of the sixth version's family.
pub(crate) fn is_v6(ip: IpAddr) -> bool {
    ip.is_ipv6()
}

fn texts(list: &[String]) -> Vec<Value> {
    list.iter().map(|text| json!(text)).collect()
}

fn insert_text(object: &mut Map<String, Value>, key: &str, text: &str) {
    if !text.is_empty() {
        object.insert(key.into(), json!(text));
    }
}

fn insert_ip(object: &mut Map<String, Value>, key: &str, ip: Ip) {
    if let Some(ip) = ip.0 {
        object.insert(key.into(), json!(ip.to_string()));
    }
}

fn insert_list(object: &mut Map<String, Value>, key: &str, list: Vec<Value>) {
    if !list.is_empty() {
        object.insert(key.into(), Value::Array(list));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> AddResult {
        go_json::from_slice(text.as_bytes()).unwrap()
    }

    fn dual() -> AddResult {
        parse(
            r#"{"interfaces":[{"name":"cni0","mac":"02:00:00:00:00:01"},
                {"name":"eth0","sandbox":"/run/netns/x"}],
              "ips":[{"interface":0,"address":"10.1.2.3/24","gateway":"10.1.2.1"},
                {"address":"fd00::3/64"},{"address":"10.9.0.2/24"}],
              "routes":[{"dst":"0.0.0.0/0","gw":"10.1.2.1"},{"dst":"fd00:1::/48","mtu":1400,"table":0}]}"#,
        )
    }

    #[test]
    fn from_1_0_keys_are_sorted_and_empty_dns_is_left_out() {
        let text = dual().render(Version::V1_1_0).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        let keys: Vec<_> = value.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["cniVersion", "interfaces", "ips", "routes"]);
        let keys: Vec<_> = value["ips"][0].as_object().unwrap().keys().collect();
        assert_eq!(keys, ["address", "gateway", "interface"]);
        assert_eq!(value["ips"][0]["interface"], 0, "index 0 is an index");
        assert_eq!(value["routes"][1]["table"], 0, "table 0 was asked for");
    }

    #[test]
    fn from_0_3_to_0_4_addresses_have_a_version_and_dns_is_always_there() {
        let text = dual().render(Version::V0_3_1).unwrap();
        assert!(text.ends_with("\"dns\": {}\n}"), "{text}");
        let value: Value = serde_json::from_str(&text).unwrap();
        let keys: Vec<_> = value["ips"][0].as_object().unwrap().keys().collect();
        assert_eq!(keys, ["version", "interface", "address", "gateway"]);
        assert_eq!(value["ips"][1]["version"], "6");
    }

    #[test]
    fn before_0_3_the_first_address_of_each_family_is_kept() {
        let value: Value = serde_json::from_str(&dual().render(Version::V0_2_0).unwrap()).unwrap();
        assert_eq!(
            value,
            json!({"cniVersion":"0.2.0",
                "ip4":{"ip":"10.1.2.3/24","gateway":"10.1.2.1","routes":[{"dst":"0.0.0.0/0","gw":"10.1.2.1"}]},
                "ip6":{"ip":"fd00::3/64","routes":[{"dst":"fd00:1::/48"}]},"dns":{}})
        );
    }

    #[test]
    fn before_0_3_a_result_without_addresses_cannot_be_said() {
        let error = AddResult::default().render(Version::V0_1_0).unwrap_err();
        assert_eq!(error.msg, "cannot convert: no valid IP addresses");
    }

    #[test]
    fn host_bits_and_a_missing_destination_are_echoed() {
        let text = parse(r#"{"routes":[{"dst":"10.53.1.1/16"},{"gw":"10.1.2.1"}]}"#)
            .render(Version::V1_0_0)
            .unwrap();
        assert!(text.contains("\"dst\": \"10.53.1.1/16\""), "{text}");
        assert!(text.contains(r#""dst": "\u003cnil\u003e""#), "{text}");
    }
}
