//! Network configurations as libcni reads and composes them.
//!
//! Pure: a list is parsed, and the bytes that one plugin gets on stdin are composed. Who is called
//! when is `runtime`'s. What libcni leaves alone (`capabilities`, unknown keys) passes through.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

/// The newest specification version that libcni of today (v1.2 and newer) speaks.
pub const NEWEST: &str = "1.1.0";

/// A conflist, or a single conf taken as a list of one.
#[derive(Debug, Clone)]
pub struct NetworkList {
    /// The network's name.
    pub name: String,
    /// The versions offered: `cniVersion` and `cniVersions`, as written.
    pub versions: Vec<String>,
    /// The plugins' own objects, in the order of ADD.
    pub plugins: Vec<Map<String, Value>>,
    /// `disableCheck`.
    pub disable_check: bool,
    /// `disableGC`.
    pub disable_gc: bool,
}

impl NetworkList {
    /// Reads a conflist or conf file.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        let value = serde_json::from_slice(&text);
        let value = value.with_context(|| format!("parse {}", path.display()))?;
        Self::parse(value).with_context(|| format!("in {}", path.display()))
    }

    /// Takes a conflist (it has `plugins`) or a conf (it has `type`).
    pub fn parse(value: Value) -> Result<Self> {
        let Value::Object(mut top) = value else {
            bail!("a network configuration is an object")
        };
        let name = top
            .get("name")
            .and_then(Value::as_str)
            .context("no name")?
            .to_owned();
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let mut versions: Vec<String> = top.get("cniVersion").and_then(text).into_iter().collect();
        let offered = top
            .get("cniVersions")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        versions.extend(offered.filter_map(text));
        let yes = |key: &str| matches!(top.get(key), Some(Value::Bool(true)));
        let (disable_check, disable_gc) = (yes("disableCheck"), yes("disableGC"));
        let plugins = match top.remove("plugins") {
            Some(Value::Array(plugins)) => plugins,
            Some(_) => bail!("plugins is not a list"),
            None => vec![Value::Object(top)],
        };
        ensure!(!plugins.is_empty(), "no plugins in list {name}");
        let object = |plugin| match plugin {
            Value::Object(map) if map.get("type").is_some_and(Value::is_string) => Ok(map),
            other => bail!("a plugin without type in list {name}: {other}"),
        };
        let plugins = plugins.into_iter().map(object).collect::<Result<_>>()?;
        Ok(Self {
            name,
            versions,
            plugins,
            disable_check,
            disable_gc,
        })
    }

    /// The version that a runtime whose newest is `newest` speaks with this list: the highest one
    /// offered that it knows; 0.1.0 when none is offered. An unknown single version is tried as is.
    pub fn version(&self, newest: &str) -> String {
        let offered = self
            .versions
            .iter()
            .filter(|version| !at_least(version, newest, true));
        let best = offered.max_by_key(|version| numbers(version));
        let first = || {
            self.versions
                .first()
                .cloned()
                .unwrap_or_else(|| "0.1.0".to_owned())
        };
        best.cloned().unwrap_or_else(first)
    }

    /// What plugin number `index` gets on stdin: its own object with `extra` put in, keys in
    /// alphabetical order at every level, as Go marshals a map. `prevResult` keeps the order of
    /// its keys, as Go marshals a struct.
    pub fn stdin(&self, index: usize, version: &str, extra: &[(&str, Value)]) -> Result<Vec<u8>> {
        let mut conf = self.plugins[index].clone();
        conf.insert("name".to_owned(), self.name.clone().into());
        conf.insert("cniVersion".to_owned(), version.into());
        for (key, value) in extra {
            conf.insert((*key).to_owned(), value.clone());
        }
        let prev_result = conf.remove("prevResult");
        let mut conf = sorted(Value::Object(conf));
        if let (Some(prev_result), Value::Object(map)) = (prev_result, &mut conf) {
            map.insert("prevResult".to_owned(), prev_result);
            map.sort_keys();
        }
        Ok(go_json::to_compact(&conf)?.into_bytes())
    }

    /// `runtimeConfig` for plugin number `index`: those of `given` that it declares in
    /// `capabilities`; none when that is nothing.
    pub fn runtime_config(&self, index: usize, given: &Map<String, Value>) -> Option<Value> {
        let declared = self.plugins[index].get("capabilities")?;
        let wanted = given
            .iter()
            .filter(|(name, _)| declared[name.as_str()] == true);
        let wanted: Map<_, _> = wanted
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        (!wanted.is_empty()).then_some(Value::Object(wanted))
    }
}

fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut map: Map<_, _> = map.into_iter().map(|(key, v)| (key, sorted(v))).collect();
            map.sort_keys();
            Value::Object(map)
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        other => other,
    }
}

fn numbers(version: &str) -> Vec<u32> {
    version
        .split('.')
        .filter_map(|part| part.parse().ok())
        .collect()
}

/// Whether `version` is `than` or newer (`strictly`: newer).
pub fn at_least(version: &str, than: &str, strictly: bool) -> bool {
    if strictly {
        numbers(version) > numbers(than)
    } else {
        numbers(version) >= numbers(than)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn list(value: Value) -> NetworkList {
        NetworkList::parse(value).unwrap()
    }

    #[test]
    fn stdin_has_sorted_keys_and_what_the_runtime_adds() {
        let net = list(json!({"name": "n", "cniVersion": "1.0.0", "plugins": [
            {"type": "t", "zeta": {"b": 1, "a": "<"}, "alpha": true}]}));
        let extra = [("prevResult", json!({"z": 1, "cniVersion": "1.0.0"}))];
        let stdin = String::from_utf8(net.stdin(0, "1.0.0", &extra).unwrap()).unwrap();
        assert_eq!(
            stdin,
            r#"{"alpha":true,"cniVersion":"1.0.0","name":"n","prevResult":{"z":1,"cniVersion":"1.0.0"},"type":"t","zeta":{"a":"\u003c","b":1}}"#
        );
    }

    #[test]
    fn only_declared_capabilities_are_passed() {
        let net =
            list(json!({"name": "n", "type": "t", "capabilities": {"mac": true, "ips": false}}));
        let given = json!({"mac": "02::", "ips": [], "dns": {}});
        let config = net.runtime_config(0, given.as_object().unwrap());
        assert_eq!(config, Some(json!({"mac": "02::"})));
        assert_eq!(net.runtime_config(0, &Map::new()), None);
    }

    #[test]
    fn the_highest_version_both_sides_know_is_spoken() {
        let net = list(json!({"name": "n", "cniVersion": "0.3.1", "type": "t",
            "cniVersions": ["1.0.0", "1.1.0"]}));
        assert_eq!(net.version(NEWEST), "1.1.0");
        assert_eq!(net.version("1.0.0"), "1.0.0");
        assert_eq!(
            list(json!({"name": "n", "type": "t"})).version(NEWEST),
            "0.1.0"
        );
        assert_eq!(
            list(json!({"name": "n", "cniVersion": "9.0.0", "type": "t"})).version(NEWEST),
            "9.0.0"
        );
    }

    #[test]
    fn a_list_without_name_or_type_is_refused() {
        assert!(NetworkList::parse(json!({"plugins": [{"type": "t"}]})).is_err());
        assert!(NetworkList::parse(json!({"name": "n", "plugins": [{}]})).is_err());
        assert!(NetworkList::parse(json!({"name": "n", "plugins": []})).is_err());
    }
}
