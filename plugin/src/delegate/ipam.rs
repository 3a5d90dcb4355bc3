//! IPAM by another plugin: `ipam.type` is neither empty nor `host-local`.

use serde::Deserialize;
use serde_json::Value;

use super::Delegate;
use crate::address::{Cidr, Ip};
use crate::error::{Code, Error};
use crate::result::{AddResult, Dns, IpConfig, Route};
use crate::version::Version;

/// Types of IPAM that need no other plugin; without a type there is none.
const BUILT_IN: [&str; 2] = ["", "host-local"];

/// The plugin that a config names for IPAM, if it is another one's.
pub(crate) fn kind_of(config: &Value) -> Option<String> {
    let kind = go_json::field(go_json::field(config, "ipam")?, "type")?.as_str()?;
    (!BUILT_IN.contains(&kind)).then(|| kind.to_owned())
}

/// Asks a plugin for addresses. A failure is followed by DEL, as the specification wants it.
pub(crate) fn add(plugin: &Delegate<'_>, version: Version) -> Result<AddResult, Error> {
    let result = plugin.add();
    let result = result.and_then(|stdout| parse(plugin.kind, &stdout, version));
    let result = result.and_then(|result| {
        let has_addresses = result.ips.iter().any(|ip| ip.address.is_some());
        has_addresses.then_some(result).ok_or_else(|| {
            let msg = "IPAM plugin returned missing IP config";
            Error::new(Code::InvalidConfig, msg)
        })
    });
    result.inspect_err(|_| drop(plugin.del()))
}

/// A result of before 0.3.0: one address of each family.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct OldResult {
    ip4: Option<OldIp>,
    ip6: Option<OldIp>,
    dns: Dns,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct OldIp {
    ip: Option<Cidr>,
    gateway: Ip,
    routes: Vec<Route>,
}

fn parse(plugin: &str, stdout: &[u8], version: Version) -> Result<AddResult, Error> {
    let wrong = |reason: String| {
        let msg = format!("the result of IPAM plugin {plugin:?}: {reason}");
        Error::new(Code::Decode, msg)
    };
    let document: Value = go_json::from_slice(stdout).map_err(|error| wrong(error.to_string()))?;
    let said = go_json::field(&document, "cniVersion").and_then(Value::as_str);
    let version = match said {
        None | Some("") => version,
        Some(text) => Version::of_config(text).map_err(|_| wrong(format!("version {text:?}")))?,
    };
    if version >= Version::V0_3_0 {
        return go_json::from_value(&document).map_err(|error| wrong(error.to_string()));
    }
    let old: OldResult =
        go_json::from_value(&document).map_err(|error| wrong(error.to_string()))?;
    let mut result = AddResult {
        dns: old.dns,
        ..AddResult::default()
    };
    for family in [old.ip4, old.ip6].into_iter().flatten() {
        result.ips.push(IpConfig {
            interface: None,
            address: family.ip,
            gateway: family.gateway,
        });
        result.routes.extend(family.routes);
    }
    Ok(result)
}
