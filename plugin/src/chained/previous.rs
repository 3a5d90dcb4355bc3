//! The result of the plugins before this one in the chain: read, added to, passed on. Pure.
//!
//! What twill does not know of it stays in it: the next plugin may.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use crate::address::parse_cidr;
use crate::config::Header;
use crate::error::{Code, Error};
use crate::result::{AddResult, Interface};
use crate::version::Version;

/// Keys of results before 0.3.0, in libcni's order.
const OLD_KEYS: [&str; 4] = ["cniVersion", "ip4", "ip6", "dns"];

/// `prevResult`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Previous {
    version: Version,
    document: Value,
    result: AddResult,
}

impl Previous {
    /// Reads it; None if there is none.
    pub(super) fn of(header: &Header, version: Version) -> Result<Option<Previous>, Error> {
        let found = go_json::field(&header.config, "prevResult").filter(|v| !v.is_null());
        let Some(document) = found else {
            return Ok(None);
        };
        // Checks the version too.
        let result = header.previous_result(version)?;
        Ok(Some(Previous {
            version,
            document: document.clone(),
            result,
        }))
    }

    /// Reads it, or fails with the words that the plugin has for its absence.
    pub(super) fn required(
        header: &Header,
        version: Version,
        msg: &str,
    ) -> Result<Previous, Error> {
        Previous::of(header, version)?.ok_or_else(|| Error::new(Code::InvalidConfig, msg))
    }

    pub(super) fn result(&self) -> &AddResult {
        &self.result
    }

    /// The addresses of the container's interface: those that name none, or name it.
    pub(super) fn addresses_of(&self, ifname: &str) -> Vec<IpAddr> {
        if self.version < Version::V0_3_0 {
            let of = |key| {
                let ip = go_json::field(go_json::field(&self.document, key)?, "ip")?;
                Some(parse_cidr(ip.as_str()?)?.addr())
            };
            return ["ip4", "ip6"].into_iter().filter_map(of).collect();
        }
        let interfaces = &self.result.interfaces;
        let is_the_containers = |index: usize| {
            let named = |i: &Interface| i.name == ifname && !i.sandbox.is_empty();
            interfaces.get(index).is_none_or(named)
        };
        (self.result.ips.iter())
            .filter(|ip| ip.interface.is_none_or(is_the_containers))
            .filter_map(|ip| Some(ip.address?.0.addr()))
            .collect()
    }

    /// Adds an interface of the node's at the end.
    pub(super) fn push(&mut self, interface: Interface) {
        let mut entry = Map::new();
        entry.insert("name".into(), json!(interface.name));
        if !interface.mac.is_empty() {
            entry.insert("mac".into(), json!(interface.mac));
        }
        if let Some(Value::Array(list)) = self.entry("interfaces", || json!([])) {
            list.push(Value::Object(entry));
        }
        self.result.interfaces.push(interface);
    }

    /// Changes the hardware address of the sandbox's interfaces of a name.
    pub(super) fn set_mac(&mut self, ifname: &str, mac: &str) {
        for (at, interface) in self.result.interfaces.iter_mut().enumerate() {
            if interface.name != ifname || interface.sandbox.is_empty() {
                continue;
            }
            mac.clone_into(&mut interface.mac);
            let list = key_of(&self.document, "interfaces").map(|key| &mut self.document[key]);
            let entry = list.and_then(|list| list.get_mut(at));
            if let Some(Value::Object(entry)) = entry {
                entry.retain(|key, _| !key.eq_ignore_ascii_case("mac"));
                entry.insert("mac".into(), json!(mac));
            }
        }
    }

    fn entry(&mut self, name: &str, empty: impl FnOnce() -> Value) -> Option<&mut Value> {
        let key = key_of(&self.document, name).unwrap_or_else(|| name.to_owned());
        let object = self.document.as_object_mut()?;
        let value = object.entry(key).or_insert(Value::Null);
        if value.is_null() {
            *value = empty();
        }
        Some(value)
    }

    /// The document for stdout, with the config's version in it.
    pub(super) fn render(mut self) -> Result<String, Error> {
        if (Version::V0_3_0..Version::V1_0_0).contains(&self.version) {
            // These have no key that a result of ours has not, and libcni's order of them.
            return self.result.render(self.version);
        }
        let version = json!(self.version.as_str());
        if let Some(entry) = self.entry("cniVersion", || json!("")) {
            *entry = version;
        }
        match self.version < Version::V0_3_0 {
            false => self.document.sort_all_objects(),
            true => {
                let mut ordered = Map::new();
                for key in OLD_KEYS {
                    let value = go_json::field(&self.document, key).filter(|v| !v.is_null());
                    let value = value.cloned().or((key == "dns").then(|| json!({})));
                    ordered.extend(value.map(|value| (key.to_owned(), value)));
                }
                self.document = Value::Object(ordered);
            }
        }
        Ok(go_json::to_indented(&self.document).expect("a value is always JSON"))
    }
}

/// How an object spells a key, of which case does not matter.
fn key_of(object: &Value, name: &str) -> Option<String> {
    let mut keys = object.as_object()?.keys().rev();
    keys.find(|key| key.eq_ignore_ascii_case(name)).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn previous(version: Version, document: Value) -> Previous {
        let config = json!({"name":"n","cniVersion":version.as_str(),"prevResult":document});
        let header = Header::parse(config.to_string().as_bytes()).unwrap();
        Previous::of(&header, version).unwrap().unwrap()
    }

    fn chain() -> Value {
        json!({"cniVersion":"1.0.0","interfaces":[{"name":"cni0","mtu":1450},
            {"name":"eth0","mac":"02:00:00:00:00:01","sandbox":"/run/netns/x"},
            {"name":"eth0"}],
            "ips":[{"address":"10.1.2.3/24","interface":1},{"address":"10.9.9.9/24","interface":0},
                {"address":"fd00::3/64"},{"address":"10.8.8.8/24","interface":7}]})
    }

    #[test]
    fn what_is_not_known_is_passed_on_in_the_configs_version() {
        let text = previous(Version::V1_1_0, chain()).render().unwrap();
        let passed: Value = serde_json::from_str(&text).unwrap();
        let mut wanted = chain();
        wanted["cniVersion"] = json!("1.1.0");
        assert_eq!(passed, wanted);
        let document = json!({"ip4":{"ip":"10.1.2.3/24"},"cniVersion":"0.2.0"});
        let text = previous(Version::V0_1_0, document).render().unwrap();
        assert_eq!(
            serde_json::from_str::<Value>(&text).unwrap(),
            json!({"cniVersion":"0.1.0","ip4":{"ip":"10.1.2.3/24"},"dns":{}})
        );
    }

    #[test]
    fn the_containers_addresses_are_those_of_its_interface_or_of_none() {
        let ips = |previous: Previous| {
            let ips = previous.addresses_of("eth0");
            ips.iter().map(IpAddr::to_string).collect::<Vec<_>>()
        };
        assert_eq!(
            ips(previous(Version::V1_0_0, chain())),
            ["10.1.2.3", "fd00::3", "10.8.8.8"]
        );
        let document = json!({"ip4":{"ip":"10.1.2.3/24"},"IP6":{"ip":"fd00::3/64"}});
        assert_eq!(
            ips(previous(Version::V0_2_0, document)),
            ["10.1.2.3", "fd00::3"]
        );
    }

    #[test]
    fn additions_show_in_the_document() {
        let mut it = previous(Version::V1_0_0, chain());
        it.set_mac("eth0", "02:00:00:00:00:09");
        it.push(Interface {
            name: "bwp0".into(),
            mac: "02:00:00:00:00:08".into(),
            sandbox: String::new(),
        });
        let passed: Value = serde_json::from_str(&it.render().unwrap()).unwrap();
        assert_eq!(passed["interfaces"][1]["mac"], "02:00:00:00:00:09");
        assert_eq!(passed["interfaces"][2], json!({"name":"eth0"}));
        assert_eq!(
            passed["interfaces"][3],
            json!({"name":"bwp0","mac":"02:00:00:00:00:08"})
        );
        let mut it = previous(Version::V0_4_0, json!({"cniVersion":"0.4.0"}));
        it.push(Interface {
            name: "bwp0".into(),
            ..Interface::default()
        });
        let passed: Value = serde_json::from_str(&it.render().unwrap()).unwrap();
        assert_eq!(
            passed,
            json!({"cniVersion":"0.4.0","interfaces":[{"name":"bwp0"}],"dns":{}})
        );
    }

    #[test]
    fn none_is_none_and_what_is_no_result_is_refused() {
        let of = |document: &str| {
            let config = format!(r#"{{"name":"n","cniVersion":"1.0.0","prevResult":{document}}}"#);
            let header = Header::parse(config.as_bytes()).unwrap();
            Previous::of(&header, Version::V1_0_0)
        };
        assert_eq!(of("null").unwrap(), None);
        for text in [r#"{"cniVersion":"0.4.0"}"#, "[]", r#"{"ips":5}"#] {
            assert_eq!(of(text).unwrap_err().code, Code::Decode, "{text}");
        }
    }
}
