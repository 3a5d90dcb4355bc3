//! CNI_ARGS: `K=V;K=V`, what a runtime asks for one pod. Pure.
//!
//! libcni's plugins each know only their own keys and refuse the others, so a chain of two cannot
//! be given one key each. twill is the whole chain and knows them all.

use std::net::IpAddr;

use crate::address;
use crate::error::{Code, Error};

/// What CNI_ARGS can ask for.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct CniArgs {
    /// `IP`: an address to reserve; a prefix length behind it is ignored.
    pub(crate) ip: Option<IpAddr>,
    /// `MAC`: of the container's interface, not validated yet.
    pub(crate) mac: Option<String>,
}

impl CniArgs {
    /// Reads the variable. Keys that Kubernetes runtimes always send (`K8S_…`) are known;
    /// others are an error unless `IgnoreUnknown` is true.
    pub(crate) fn parse(text: &str) -> Result<CniArgs, Error> {
        let mut args = CniArgs::default();
        let mut ignore_unknown = false;
        let mut unknown = vec![];
        if text.is_empty() {
            return Ok(args);
        }
        for pair in text.split(';') {
            let (key, value) = match pair.split_once('=') {
                Some((key, value)) if !value.contains('=') => (key, value),
                _ => return Err(invalid(format!("invalid pair {pair:?}"))),
            };
            let bad =
                |reason: String| invalid(format!("error parsing value of pair {pair:?}: {reason}"));
            match key {
                "IgnoreUnknown" => ignore_unknown = flag(value).map_err(bad)?,
                "IP" => args.ip = Some(address::parse_ip_of(value).map_err(bad)?),
                "MAC" => args.mac = Some(value.to_owned()),
                _ if key.starts_with("K8S_") => {}
                _ => unknown.push(format!("{pair:?}")),
            }
        }
        match unknown.is_empty() || ignore_unknown {
            true => Ok(args),
            false => Err(invalid(format!("unknown args [{}]", unknown.join(" ")))),
        }
    }
}

fn flag(value: &str) -> Result<bool, String> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(format!("boolean unmarshal error: invalid input {value}")),
    }
}

fn invalid(reason: impl std::fmt::Display) -> Error {
    Error::new(Code::InvalidEnvironment, format!("ARGS: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kubernetes_runtimes_send_is_understood() {
        let text = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=p;K8S_POD_UID=u;X=y";
        assert_eq!(CniArgs::parse(text).unwrap(), CniArgs::default());
        assert_eq!(CniArgs::parse("").unwrap(), CniArgs::default());
    }

    #[test]
    fn address_and_mac_need_no_ignore_unknown() {
        let args = CniArgs::parse("IP=10.1.2.3/24;MAC=02:00:00:00:00:07").unwrap();
        assert_eq!(args.ip, Some("10.1.2.3".parse().unwrap()));
        assert_eq!(args.mac.as_deref(), Some("02:00:00:00:00:07"));
    }

    #[test]
    fn what_is_no_pair_or_not_known_is_refused() {
        for (text, msg) in [
            ("IgnoreUnknown=1;", "ARGS: invalid pair \"\""),
            ("A=b=c", "ARGS: invalid pair \"A=b=c\""),
            ("A", "ARGS: invalid pair \"A\""),
            ("ip=10.1.2.3", "ARGS: unknown args [\"ip=10.1.2.3\"]"),
            (
                "IP=x;IgnoreUnknown=1",
                "ARGS: error parsing value of pair \"IP=x\": invalid IP address x",
            ),
            (
                "IgnoreUnknown=yes",
                "ARGS: error parsing value of pair \"IgnoreUnknown=yes\": boolean unmarshal error: invalid input yes",
            ),
        ] {
            assert_eq!(CniArgs::parse(text).unwrap_err().msg, msg);
        }
    }
}
