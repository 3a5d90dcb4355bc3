//! What the runtime sends on stdin, in three depths: the [`Header`] that every verb needs, the
//! flannel plugin's keys ([`flannel`]), and the bridge that comes of them ([`bridge`], with its
//! VLANs in [`vlan`]) unless pods are routed without one ([`mode`]). Pure.

pub(crate) mod bridge;
pub(crate) mod flannel;
pub(crate) mod mode;
pub(crate) mod vlan;

use serde_json::Value;

use crate::error::{Code, Error};
use crate::invocation::is_name;
use crate::result::AddResult;
use crate::version::Version;

/// Bytes: it is a folder's name (`NAME_MAX`).
const LONGEST_NAME: usize = 255;

/// The part of a config that every verb needs, and the whole of it as JSON.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Header {
    /// The network's name, valid; safe as a file name.
    pub(crate) name: String,
    /// `cniVersion` as it stands there, perhaps empty, perhaps none of ours.
    pub(crate) version: String,
    /// The config.
    pub(crate) config: Value,
}

impl Header {
    /// Reads a config as far as it must be right for any verb.
    pub(crate) fn parse(stdin: &[u8]) -> Result<Header, Error> {
        let undecodable = |reason: String| {
            Error::new(
                Code::Decode,
                format!("error unmarshall network config: {reason}"),
            )
        };
        let config: Value =
            serde_json::from_slice(stdin).map_err(|error| undecodable(error.to_string()))?;
        if !config.is_object() && !config.is_null() {
            return Err(undecodable("an object is expected".into()));
        }
        let text = |key: &str| match go_json::field(&config, key) {
            None | Some(Value::Null) => Ok(String::new()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(_) => Err(format!("field {key}: a string is expected")),
        };
        let name = text("name").map_err(undecodable)?;
        if name.is_empty() {
            return Err(Error::new(Code::InvalidConfig, "missing network name"));
        }
        if !is_name(&name) {
            let msg = "invalid characters found in network name";
            return Err(Error::new(Code::InvalidConfig, msg).details(name));
        }
        if name.len() > LONGEST_NAME {
            let msg = format!("network name is longer than {LONGEST_NAME} bytes");
            return Err(Error::new(Code::InvalidConfig, msg).details(name));
        }
        let version = text("cniVersion").map_err(|reason| {
            let msg = format!("decoding version from network config: {reason}");
            Error::new(Code::Decode, msg)
        })?;
        Ok(Header {
            name,
            version,
            config,
        })
    }

    /// The result of ADD that the runtime hands to CHECK. Its version must be of the config's
    /// generation: they cannot be told apart by their keys.
    pub(crate) fn previous_result(&self, version: Version) -> Result<AddResult, Error> {
        let Some(value) = go_json::field(&self.config, "prevResult").filter(|v| !v.is_null())
        else {
            return Err(Error::new(
                Code::InvalidConfig,
                "Required prevResult missing",
            ));
        };
        let unparsable = |reason: String| {
            Error::new(
                Code::Decode,
                format!("could not parse prevResult: {reason}"),
            )
        };
        let text = match go_json::field(value, "cniVersion") {
            None | Some(Value::Null) => version.as_str(),
            Some(Value::String(text)) if text.is_empty() => version.as_str(),
            Some(Value::String(text)) => text,
            Some(_) => return Err(unparsable("field cniVersion: a string is expected".into())),
        };
        let theirs = Version::of_config(text).ok();
        if theirs.map(generation) != Some(generation(version)) {
            let supported: Vec<&str> = (Version::ALL.into_iter())
                .filter(|v| generation(*v) == generation(version))
                .map(Version::as_str)
                .collect();
            return Err(unparsable(format!(
                "result type supports [{}] but unmarshalled CNIVersion is {text:?}",
                supported.join(" ")
            )));
        }
        go_json::from_value(value).map_err(|error| unparsable(error.to_string()))
    }
}

/// Results of one generation have the same keys.
fn generation(version: Version) -> u8 {
    match version {
        Version::V0_1_0 | Version::V0_2_0 => 0,
        Version::V0_3_0 | Version::V0_3_1 | Version::V0_4_0 => 1,
        Version::V1_0_0 | Version::V1_1_0 => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_the_header_match_in_any_case() {
        let header = Header::parse(br#"{"Name":"cbr0","CNIVERSION":"0.3.1"}"#).unwrap();
        assert_eq!(
            (header.name.as_str(), header.version.as_str()),
            ("cbr0", "0.3.1")
        );
    }

    #[test]
    fn what_is_no_config_has_the_code_for_it() {
        for (text, code) in [
            ("", Code::Decode),
            ("[]", Code::Decode),
            ("{} x", Code::Decode),
            ("null", Code::InvalidConfig),
            (r#"{"name":5}"#, Code::Decode),
            (r#"{"name":"a/b"}"#, Code::InvalidConfig),
            (r#"{"name":"..","cniVersion":"1.0.0"}"#, Code::InvalidConfig),
            (r#"{"name":"a","cniVersion":1}"#, Code::Decode),
        ] {
            assert_eq!(
                Header::parse(text.as_bytes()).unwrap_err().code,
                code,
                "{text}"
            );
        }
    }

    #[test]
    fn a_previous_result_of_another_generation_is_refused() {
        let of = |text: &str| {
            let header = Header::parse(text.as_bytes()).unwrap();
            header
                .previous_result(Version::V1_1_0)
                .map_err(|error| error.msg)
        };
        assert!(of(r#"{"name":"a","prevResult":{"cniVersion":"1.0.0","ips":[]}}"#).is_ok());
        assert_eq!(
            of(r#"{"name":"a","prevResult":null}"#),
            Err("Required prevResult missing".into())
        );
        assert_eq!(
            of(r#"{"name":"a","prevResult":{"cniVersion":"0.4.0"}}"#),
            Err("could not parse prevResult: result type supports [1.0.0 1.1.0] but unmarshalled CNIVersion is \"0.4.0\"".into())
        );
    }
}
