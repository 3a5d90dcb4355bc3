//! The keys that tuning is asked for with, checked as a whole. Pure.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kernel::Mac;
use serde::Deserialize;
use serde_json::Value;

use crate::cni_args::CniArgs;
use crate::error::{Code, Error};
use crate::file_path;

/// Where backups are kept.
const DATA_DIR: &str = "/run/cni/tuning";
/// Stands for the interface's name in a setting's.
const IFNAME: &str = "IFNAME";

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Raw {
    data_dir: String,
    runtime_config: RawRuntime,
    args: RawArgs,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawRuntime {
    mac: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawArgs {
    cni: RawKeys,
}

/// The keys that stand both in the config and in its `args.cni`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawKeys {
    sysctl: BTreeMap<String, String>,
    mac: String,
    promisc: Option<bool>,
    mtu: Option<i64>,
    allmulti: Option<bool>,
    tx_q_len: Option<i64>,
}

/// A setting of the sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sysctl {
    /// As configured, by which it is allowed or not.
    pub(super) key: String,
    /// Below `/proc/sys`.
    pub(super) path: String,
    pub(super) value: String,
}

/// What is to be tuned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tuning {
    pub(super) sysctls: Vec<Sysctl>,
    /// The hardware address; it is in the result as well.
    pub(crate) mac: Option<Mac>,
    pub(super) promiscuous: bool,
    pub(super) mtu: Option<u32>,
    pub(super) all_multicast: Option<bool>,
    pub(super) txqlen: Option<u32>,
    pub(super) data_dir: PathBuf,
}

impl Tuning {
    /// Reads a config. What `args.cni` says comes before the config; the hardware address has two
    /// sources more, CNI_ARGS behind the config's and the runtime's behind that.
    pub(crate) fn parse(config: &Value, args: &CniArgs, ifname: &str) -> Result<Tuning, Error> {
        let undecodable = |error: go_json::Error| {
            Error::new(Code::Decode, format!("failed to load netconf: {error}"))
        };
        let raw: Raw = go_json::from_value(config).map_err(undecodable)?;
        let own: RawKeys = go_json::from_value(config).map_err(undecodable)?;
        if !raw.data_dir.is_empty() {
            file_path::parse("dataDir", &raw.data_dir).map_err(invalid)?;
        }
        let asked = raw.args.cni;
        let macs = [
            &asked.mac,
            &raw.runtime_config.mac,
            args.mac.as_ref().unwrap_or(&own.mac),
            &own.mac,
        ];
        let mac = macs.into_iter().find(|mac| !mac.is_empty());
        let mac = mac.map(|text| {
            text.parse::<Mac>().map_err(|error| {
                // What is enormous would hide what it was meant for.
                let text: String = text.chars().take(64).collect();
                invalid(format!("invalid args {text} for MAC addr: {error}"))
            })
        });
        let mut sysctl = own.sysctl;
        sysctl.extend(asked.sysctl);
        Ok(Tuning {
            sysctls: sysctls(&sysctl, ifname)?,
            mac: mac.transpose()?,
            promiscuous: asked.promisc.or(own.promisc).unwrap_or_default(),
            mtu: number("mtu", asked.mtu.or(own.mtu), 68, 65_535)?.filter(|mtu| *mtu != 0),
            all_multicast: asked.allmulti.or(own.allmulti),
            txqlen: number(
                "txQLen",
                asked.tx_q_len.or(own.tx_q_len),
                0,
                i64::from(i32::MAX),
            )?,
            data_dir: data_dir(config),
        })
    }

    /// Whether the interface itself is to be changed.
    pub(super) fn changes_link(&self) -> bool {
        self.mac.is_some()
            || self.promiscuous
            || self.mtu.is_some()
            || self.all_multicast.is_some()
            || self.txqlen.is_some()
    }
}

/// Where backups are, by a config of which the rest need not be right.
pub(crate) fn data_dir(config: &Value) -> PathBuf {
    let given = go_json::field(config, "dataDir").and_then(Value::as_str);
    let given = given.and_then(|path| file_path::parse("dataDir", path).ok());
    given.unwrap_or_else(|| PathBuf::from(DATA_DIR))
}

/// 0 stands for "leave it" where it is below the least.
fn number(key: &str, given: Option<i64>, least: i64, most: i64) -> Result<Option<u32>, Error> {
    match given {
        None | Some(0) if least > 0 => Ok(None),
        None => Ok(None),
        Some(number) if (least..=most).contains(&number) => Ok(u32::try_from(number).ok()),
        Some(number) => Err(invalid(format!(
            "{key} {number} is not between {least} and {most}"
        ))),
    }
}

/// Keys are written with dots or with slashes. A dot is always a separator, except in the
/// interface's name, which is put in behind.
fn sysctls(given: &BTreeMap<String, String>, ifname: &str) -> Result<Vec<Sysctl>, Error> {
    let mut sysctls: Vec<Sysctl> = vec![];
    for (key, value) in given {
        let parts: Vec<String> = key
            .split(['.', '/'])
            .filter(|part| !part.is_empty())
            .map(str::to_owned)
            .collect();
        if parts.first().map(String::as_str) != Some("net") || parts.len() < 2 {
            return Err(invalid(format!(
                "invalid net sysctl key: {:?}",
                parts.join("/")
            )));
        }
        // Some settings are lists, separated by tabs.
        let hostile = |c: char| c.is_control() && c != '\t';
        if key.contains(char::is_control) || value.contains(hostile) {
            return Err(invalid(format!("invalid sysctl {key:?}: {value:?}")));
        }
        let path = parts.join("/").replacen(IFNAME, ifname, 1);
        if sysctls.iter().any(|sysctl| sysctl.path == path) {
            return Err(invalid("duplicated sysctl keys are not allowed".into()));
        }
        sysctls.push(Sysctl {
            key: key.clone(),
            path,
            value: value.clone(),
        });
    }
    Ok(sysctls)
}

fn invalid(msg: String) -> Error {
    Error::new(Code::InvalidConfig, msg)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(config: Value, args: &str) -> Result<Tuning, Error> {
        Tuning::parse(&config, &CniArgs::parse(args).unwrap(), "eth0.5")
    }

    fn paths(config: Value) -> Vec<String> {
        let tuning = parse(config, "").unwrap();
        tuning
            .sysctls
            .into_iter()
            .map(|sysctl| sysctl.path)
            .collect()
    }

    #[test]
    fn keys_are_paths_below_net_with_the_interfaces_name_in_them() {
        assert_eq!(
            paths(
                json!({"sysctl":{"net.core.somaxconn":"5","net/ipv4/conf/IFNAME/arp_filter":"1"}})
            ),
            ["net/core/somaxconn", "net/ipv4/conf/eth0.5/arp_filter"]
        );
        // Nothing leads out: what is between dots and slashes is never "..".
        assert_eq!(
            paths(json!({"sysctl":{"net/../kernel/hostname":"x"}})),
            ["net/kernel/hostname"]
        );
    }

    #[test]
    fn what_the_pod_asks_for_comes_before_what_the_config_says() {
        let tuning = parse(
            json!({"sysctl":{"net.core.somaxconn":"600"},"mtu":1300,
                "args":{"cni":{"sysctl":{"net.core.somaxconn":"700"},"mtu":1310,"allmulti":false}}}),
            "",
        )
        .unwrap();
        assert_eq!(tuning.sysctls[0].value, "700");
        assert_eq!(
            (tuning.mtu, tuning.all_multicast),
            (Some(1310), Some(false))
        );
        assert!(
            parse(
                json!({"args":{"cni":{"sysctl":{"net.core.somaxconn":"7"}}}}),
                ""
            )
            .is_ok()
        );
    }

    #[test]
    fn the_mac_has_four_sources() {
        let mac = |config, args| parse(config, args).unwrap().mac.map(|mac| mac.0[5]);
        let own = "02:00:00:00:00:01";
        let args = "MAC=02:00:00:00:00:02";
        assert_eq!(mac(json!({"mac":own}), ""), Some(1));
        assert_eq!(mac(json!({"mac":own}), args), Some(2));
        let mut config = json!({"mac":own,"runtimeConfig":{"mac":"02:00:00:00:00:03"}});
        assert_eq!(mac(config.clone(), args), Some(3));
        config["args"] = json!({"cni":{"mac":"02:00:00:00:00:04"}});
        assert_eq!(mac(config, args), Some(4));
        assert_eq!(mac(json!({}), ""), None);
    }

    #[test]
    fn what_cannot_be_tuned_is_refused_before_anything_is() {
        for (config, code, word) in [
            (
                json!({"sysctl":{"kernel.hostname":"x"}}),
                Code::InvalidConfig,
                "kernel/hostname",
            ),
            (
                json!({"sysctl":{"net":"x"}}),
                Code::InvalidConfig,
                "invalid net sysctl key",
            ),
            (
                json!({"sysctl":{"net.a.b":"1","net/a/b":"2"}}),
                Code::InvalidConfig,
                "duplicated",
            ),
            (json!({"sysctl":{"net.a":1}}), Code::Decode, "sysctl"),
            (
                json!({"sysctl":{"net.a":"1\n2"}}),
                Code::InvalidConfig,
                "net.a",
            ),
            (
                json!({"mac":"zz"}),
                Code::InvalidConfig,
                "invalid args zz for MAC addr",
            ),
            (json!({"mtu":10}), Code::InvalidConfig, "mtu 10"),
            (json!({"txQLen":-1}), Code::InvalidConfig, "txQLen -1"),
            (json!({"promisc":"yes"}), Code::Decode, "promisc"),
        ] {
            let error = parse(config.clone(), "").unwrap_err();
            assert_eq!(error.code, code, "{config}: {error}");
            assert!(error.msg.contains(word), "{config}: {error}");
        }
        assert!(!parse(json!({"mtu":0}), "").unwrap().changes_link());
    }
}
