//! Targets for texts: the environment, CNI_ARGS, `subnet.env`, `resolv.conf`, JSON as such.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use serde::Deserialize;
use serde_json::Value;

use super::is_reported;
use crate::cni_args::CniArgs;
use crate::invocation::{Invocation, Verb, ifname_fault, is_name};
use crate::ipam::resolv_conf as resolv;
use crate::subnet_env::SubnetEnv;

/// Lines of `NAME=value`; a value may be any bytes but a line's end.
pub(super) fn environment(bytes: &[u8]) {
    let vars: BTreeMap<&[u8], &[u8]> = (bytes.split(|byte| *byte == b'\n'))
        .filter_map(|line| Some(line.split_at(line.iter().position(|byte| *byte == b'=')?)))
        .map(|(name, value)| (name, &value[1..]))
        .collect();
    let env = |name: &str| {
        let value = vars.get(name.as_bytes())?;
        Some(OsStr::from_bytes(value).to_owned())
    };
    let (container_id, ifname) = match Invocation::from_env(&env) {
        Err(error) => return is_reported(&error),
        Ok(Invocation::Verb(Verb::Add(it) | Verb::Check(it))) => {
            assert!(!it.netns.is_empty());
            cni_args(it.args.as_bytes());
            (it.container_id, it.ifname)
        }
        Ok(Invocation::Verb(Verb::Del(it))) => (it.container_id, it.ifname),
        Ok(_) => return,
    };
    assert!(is_name(&container_id), "{container_id:?}");
    assert_eq!(ifname_fault(&ifname), None);
}

pub(super) fn cni_args(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match CniArgs::parse(text) {
        Ok(args) => assert!(args.ip.is_none() || text.contains("IP=")),
        Err(error) => is_reported(&error),
    }
}

pub(super) fn subnet_env(bytes: &[u8]) {
    match SubnetEnv::parse(&String::from_utf8_lossy(bytes)) {
        Ok(env) => {
            assert!(!env.networks.is_empty() && (1..=2).contains(&env.subnets.len()));
            for net in env.networks.iter().chain(&env.subnets) {
                assert_eq!(*net, net.trunc());
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

pub(super) fn resolv_conf(bytes: &[u8]) {
    let dns = resolv::parse(&String::from_utf8_lossy(bytes));
    let words = dns
        .nameservers
        .iter()
        .chain(&dns.search)
        .chain(&dns.options);
    for word in words.chain((!dns.domain.is_empty()).then_some(&dns.domain)) {
        assert!(
            !word.is_empty() && !word.contains(char::is_whitespace),
            "{word:?}"
        );
    }
}

/// Every kind of field that a config has.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Document {
    name: String,
    flag: Option<bool>,
    number: i64,
    small: u8,
    list: Vec<Document>,
    map: BTreeMap<String, Value>,
}

pub(super) fn go_json(bytes: &[u8]) {
    let decoded = go_json::from_slice::<Document>(bytes);
    let Ok(value) = serde_json::from_slice::<Value>(bytes) else {
        assert!(decoded.is_err(), "what is no JSON is no document");
        return;
    };
    assert!(
        decoded.is_err() || value.is_object() || value.is_null(),
        "a document is an object: {decoded:?}"
    );
    for text in [go_json::to_compact(&value), go_json::to_indented(&value)] {
        let text = text.expect("a value is always JSON");
        assert!(!text.contains(['<', '>', '&']), "Go escapes these: {text}");
        let back: Value = serde_json::from_str(&text).expect("what is written can be read");
        // Reading a fraction is exact to a bit only.
        assert!(back == value || has_fraction(&value), "{back}, not {value}");
    }
}

fn has_fraction(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.is_f64(),
        Value::Array(list) => list.iter().any(has_fraction),
        Value::Object(object) => object.values().any(has_fraction),
        _ => false,
    }
}
