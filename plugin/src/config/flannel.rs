//! The flannel plugin's keys, and the bridge config that comes of them and `subnet.env`. Pure.
//!
//! The rendered config is what flannel's plugin would hand to the bridge plugin, byte for byte: a
//! node that goes back to the Go plugins deletes with it what twill made.
//!
//! A network of type `twill` has the same keys and three differences: bridge options may stand
//! beside them instead of inside `delegate`, `args` are honoured, and what kube-flannel's conflist
//! has to say (`hairpinMode`, `isDefaultGateway`) is the default.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::error::{Code, Error};
use crate::file_path;
use crate::subnet_env::SubnetEnv;

/// Where flannel's plugin keeps what it rendered.
const DATA_DIR: &str = "/var/lib/cni/flannel";
/// Where the daemon writes the node's subnet.
const SUBNET_FILE: &str = "/run/flannel/subnet.env";
/// Keys of the config itself, which are no bridge options.
const OWN_KEYS: [&str; 11] = [
    "name",
    "cniversion",
    "cniversions",
    "type",
    "subnetfile",
    "datadir",
    "ipam",
    "delegate",
    "runtimeconfig",
    "prevresult",
    "capabilities",
];

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Raw {
    // Read elsewhere, if at all; here their types are checked.
    #[serde(rename = "type")]
    _kind: String,
    #[serde(rename = "prevResult")]
    _prev_result: Map<String, Value>,
    subnet_file: String,
    data_dir: String,
    delegate: Map<String, Value>,
    ipam: Map<String, Value>,
    runtime_config: Map<String, Value>,
}

/// Which of the two dialects a config is written in: the plugin's name decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// The type is `flannel`.
    Flannel,
    /// The type is `twill`.
    Twill,
    /// The type is `bridge`: the bridge's own keys, no subnet of a daemon's.
    Bridge,
}

/// A config of type `flannel` or `twill`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct FlannelConfig {
    /// Where `subnet.env` is.
    pub(crate) subnet_file: PathBuf,
    /// Where the rendered config of each container is kept.
    pub(crate) scratch_dir: PathBuf,
    delegate: Map<String, Value>,
    ipam: Map<String, Value>,
    runtime_config: Map<String, Value>,
}

impl FlannelConfig {
    /// Reads the keys.
    pub(crate) fn parse(config: &Value, dialect: Dialect) -> Result<FlannelConfig, Error> {
        let raw: Raw = go_json::from_value(config).map_err(|error| {
            Error::new(Code::Decode, format!("failed to load netconf: {error}"))
        })?;
        let mut delegate = raw.delegate;
        if dialect == Dialect::Twill {
            beside(config, &mut delegate);
        }
        for (key, path) in [("subnetFile", &raw.subnet_file), ("dataDir", &raw.data_dir)] {
            if !path.is_empty() {
                file_path::parse(key, path).map_err(|msg| Error::new(Code::InvalidConfig, msg))?;
            }
        }
        Ok(FlannelConfig {
            subnet_file: subnet_file(config),
            scratch_dir: scratch_dir(config),
            delegate,
            ipam: raw.ipam,
            runtime_config: raw.runtime_config,
        })
    }

    /// The bridge plugin's config for this node, with its keys in alphabetical order at every
    /// level. `version` is `cniVersion` as it was given.
    pub(crate) fn render(
        &self,
        name: &str,
        version: &str,
        env: &SubnetEnv,
    ) -> Result<Value, Error> {
        let invalid = |msg: String| Err(Error::new(Code::InvalidConfig, msg));
        let mut bridge = self.delegate.clone();
        for key in ["name", "ipam"] {
            if get(&bridge, key).is_some() {
                return invalid(format!(
                    "'delegate' dictionary must not have '{key}' field, it'll be set by flannel"
                ));
            }
        }
        match get(&bridge, "type") {
            None | Some(Value::String(_)) => {}
            Some(_) => {
                let msg = "'delegate' dictionary, if present, must have (string) 'type' field";
                return Err(Error::new(Code::Decode, msg));
            }
        }
        default(&mut bridge, "type", json!("bridge"));
        default(&mut bridge, "ipMasq", json!(!env.ip_masq));
        default(&mut bridge, "mtu", json!(env.mtu));
        if get(&bridge, "type").and_then(Value::as_str) == Some("bridge") {
            default(&mut bridge, "isGateway", json!(true));
        }
        bridge.insert("name".into(), json!(name));
        if !version.is_empty() {
            bridge.insert("cniVersion".into(), json!(version));
        }
        if !self.runtime_config.is_empty() {
            bridge.insert("runtimeConfig".into(), json!(self.runtime_config));
        }
        bridge.insert("ipam".into(), self.render_ipam(env)?);
        let mut bridge = Value::Object(bridge);
        bridge.sort_all_objects();
        Ok(bridge)
    }

    fn render_ipam(&self, env: &SubnetEnv) -> Result<Value, Error> {
        let mut ipam = self.ipam.clone();
        default(&mut ipam, "type", json!("host-local"));
        let ranges = env.subnets.iter();
        let ranges: Vec<Value> = ranges.map(|s| json!([{"subnet": s.to_string()}])).collect();
        ipam.retain(|key, _| !key.eq_ignore_ascii_case("ranges"));
        ipam.insert("ranges".into(), ranges.into());
        let mut routes = match get(&ipam, "routes") {
            None | Some(Value::Null) => vec![],
            Some(Value::Array(routes)) => routes.clone(),
            Some(_) => {
                let msg = "failed to load netconf: field ipam.routes: a list is expected";
                return Err(Error::new(Code::Decode, msg));
            }
        };
        routes.extend(env.networks.iter().map(|n| json!({"dst": n.to_string()})));
        ipam.retain(|key, _| !key.eq_ignore_ascii_case("routes"));
        ipam.insert("routes".into(), routes.into());
        Ok(Value::Object(ipam))
    }
}

/// Where a config says that `subnet.env` is, whatever else may be wrong with it.
pub(crate) fn subnet_file(config: &Value) -> PathBuf {
    dir(go_json::field(config, "subnetFile"), SUBNET_FILE)
}

/// Where a config's rendered ones are kept, whatever else may be wrong with it.
pub(crate) fn scratch_dir(config: &Value) -> PathBuf {
    dir(go_json::field(config, "dataDir"), DATA_DIR)
}

/// `ipam.dataDir` of a config, whatever else may be wrong with it: DEL needs no more of IPAM.
pub(crate) fn ipam_data_dir(config: &Value) -> PathBuf {
    let ipam = go_json::field(config, "ipam");
    dir(
        ipam.and_then(|ipam| go_json::field(ipam, "dataDir")),
        crate::ipam::DATA_DIR,
    )
}

fn dir(value: Option<&Value>, default: &str) -> PathBuf {
    let given = value.and_then(Value::as_str);
    let given = given.and_then(|path| file_path::parse("", path).ok());
    given.unwrap_or_else(|| default.into())
}

/// Adds the bridge options that stand beside the config's own keys, and twill's defaults.
fn beside(config: &Value, delegate: &mut Map<String, Value>) {
    let own = |key: &str| {
        OWN_KEYS.contains(&key.to_ascii_lowercase().as_str()) || key.starts_with("cni.dev/")
    };
    for (key, value) in config.as_object().into_iter().flatten() {
        if !own(key) {
            default(delegate, key, value.clone());
        }
    }
    default(delegate, "hairpinMode", json!(true));
    default(delegate, "isDefaultGateway", json!(true));
}

fn get<'a>(object: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    let mut entries = object.iter();
    let found = entries.find(|(name, _)| name.eq_ignore_ascii_case(key))?;
    Some(found.1)
}

fn default(object: &mut Map<String, Value>, key: &str, value: Value) {
    if get(object, key).is_none() {
        object.insert(key.to_owned(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env() -> SubnetEnv {
        SubnetEnv::parse(include_str!("../../../conf/subnet.env")).unwrap()
    }

    fn render(config: Value, dialect: Dialect) -> Result<String, Error> {
        let rendered = FlannelConfig::parse(&config, dialect)?.render("cbr0", "0.3.1", &env())?;
        Ok(go_json::to_compact(&rendered).unwrap())
    }

    /// golden/flannel-stock-031
    const STOCK: &str = r#"{"cniVersion":"0.3.1","hairpinMode":true,"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.244.1.0/24"}]],"routes":[{"dst":"10.244.0.0/16"}],"type":"host-local"},"isDefaultGateway":true,"isGateway":true,"mtu":1450,"name":"cbr0","type":"bridge"}"#;

    #[test]
    fn the_stock_config_renders_byte_for_byte() {
        let config = json!({"delegate":{"hairpinMode":true,"isDefaultGateway":true}});
        assert_eq!(render(config, Dialect::Flannel).unwrap(), STOCK);
        let config = json!({"type":"twill","name":"cbr0","cniVersion":"0.3.1","capabilities":{}});
        assert_eq!(render(config, Dialect::Twill).unwrap(), STOCK);
    }

    #[test]
    fn what_delegate_and_ipam_say_wins() {
        let config = json!({"delegate":{"mtu":1400,"ipMasq":true,"isGateway":false},
            "ipam":{"dataDir":"/x","ranges":[[{"subnet":"9.9.9.0/24"}]],"routes":[{"dst":"1.0.0.0/8"}]},
            "runtimeConfig":{"ips":["10.244.1.9"]}});
        assert_eq!(
            render(config, Dialect::Flannel).unwrap(),
            r#"{"cniVersion":"0.3.1","ipMasq":true,"ipam":{"dataDir":"/x","ranges":[[{"subnet":"10.244.1.0/24"}]],"routes":[{"dst":"1.0.0.0/8"},{"dst":"10.244.0.0/16"}],"type":"host-local"},"isGateway":false,"mtu":1400,"name":"cbr0","runtimeConfig":{"ips":["10.244.1.9"]},"type":"bridge"}"#
        );
    }

    #[test]
    fn bridge_options_beside_are_twills_alone() {
        let config = json!({"bridge":"br9","hairpinMode":false});
        let got = render(config.clone(), Dialect::Twill).unwrap();
        assert!(
            got.contains(r#""bridge":"br9""#) && got.contains(r#""hairpinMode":false"#),
            "{got}"
        );
        let got = render(config, Dialect::Flannel).unwrap();
        assert!(
            !got.contains("br9") && !got.contains("hairpinMode"),
            "{got}"
        );
    }

    #[test]
    fn what_a_delegate_must_not_say_is_refused() {
        for (delegate, code) in [
            (json!({"name":"x"}), Code::InvalidConfig),
            (json!({"ipam":{}}), Code::InvalidConfig),
            (json!({"type":3}), Code::Decode),
            (json!("x"), Code::Decode),
        ] {
            let error = render(json!({"delegate": delegate}), Dialect::Flannel).unwrap_err();
            assert_eq!(error.code, code, "{error}");
        }
    }
}
