//! How pods are joined to their node: by a bridge, or each by a route of its own. Pure.
//!
//! `mode` stands beside the bridge's keys, in a config of type `twill` or inside `delegate`. What a
//! bridge alone can do is refused where there is none.

use serde::Deserialize;
use serde_json::Value;

use crate::error::{Code, Error};

/// How pods are joined to their node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// All pods are ports of one bridge.
    Bridge,
    /// Each pod is alone on its link with the node, which routes.
    Routed,
}

/// The keys that decide, and those that only a bridge can honour.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Raw {
    mode: String,
    bridge: String,
    is_gateway: Option<bool>,
    promisc_mode: bool,
    port_isolation: bool,
    macspoofchk: bool,
    vlan: i64,
    vlan_trunk: Vec<Value>,
    disable_container_interface: bool,
}

impl Mode {
    /// The mode that a rendered config asks for.
    pub(crate) fn of(config: &Value) -> Result<Mode, Error> {
        let raw: Raw = go_json::from_value(config).map_err(|error| {
            Error::new(Code::Decode, format!("failed to load netconf: {error}"))
        })?;
        let invalid = |msg: String| Err(Error::new(Code::InvalidConfig, msg));
        match raw.mode.as_str() {
            "" | "bridge" => return Ok(Mode::Bridge),
            "routed" => {}
            mode => return invalid(format!("mode {mode:?} is neither bridge nor routed")),
        }
        match raw.needs_a_bridge() {
            Some(key) => invalid(format!("mode routed has no bridge: it cannot do {key}")),
            None => Ok(Mode::Routed),
        }
    }
}

impl Raw {
    fn needs_a_bridge(&self) -> Option<&'static str> {
        let asked = [
            (!self.bridge.is_empty(), "bridge"),
            (self.is_gateway == Some(false), "isGateway false"),
            (self.promisc_mode, "promiscMode"),
            (self.port_isolation, "portIsolation"),
            (self.macspoofchk, "macspoofchk"),
            (self.vlan != 0, "vlan"),
            (!self.vlan_trunk.is_empty(), "vlanTrunk"),
            (
                self.disable_container_interface,
                "disableContainerInterface",
            ),
        ];
        let first = asked.into_iter().find(|(asked, _)| *asked);
        first.map(|(_, key)| key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_bridge_is_the_default() {
        assert_eq!(Mode::of(&json!({})).unwrap(), Mode::Bridge);
        let config = json!({"mode":"bridge","vlan":5,"bridge":"br0"});
        assert_eq!(Mode::of(&config).unwrap(), Mode::Bridge);
    }

    #[test]
    fn what_needs_no_bridge_is_as_good_without() {
        let config = json!({"MODE":"routed","isGateway":true,"hairpinMode":true,
            "isDefaultGateway":true,"ipMasq":true,"mtu":1450,"portIsolation":false});
        assert_eq!(Mode::of(&config).unwrap(), Mode::Routed);
    }

    #[test]
    fn what_contradicts_the_mode_is_refused_by_name() {
        for (config, word) in [
            (json!({"mode":"ipvlan"}), "\"ipvlan\""),
            (json!({"mode":"routed","bridge":"br0"}), "bridge"),
            (json!({"mode":"routed","isGateway":false}), "isGateway"),
            (json!({"mode":"routed","promiscMode":true}), "promiscMode"),
            (
                json!({"mode":"routed","portIsolation":true}),
                "portIsolation",
            ),
            (json!({"mode":"routed","macspoofchk":true}), "macspoofchk"),
            (json!({"mode":"routed","vlan":5}), "vlan"),
            (json!({"mode":"routed","vlanTrunk":[{"id":5}]}), "vlanTrunk"),
            (
                json!({"mode":"routed","disableContainerInterface":true}),
                "disableContainerInterface",
            ),
        ] {
            let error = Mode::of(&config).unwrap_err();
            assert_eq!(error.code, Code::InvalidConfig, "{config}: {error}");
            assert!(error.msg.contains(word), "{config}: {error}");
        }
        let error = Mode::of(&json!({"mode":5})).unwrap_err();
        assert_eq!(error.code, Code::Decode);
    }
}
