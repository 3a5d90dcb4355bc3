//! The CNI versions that twill speaks, and which of them a config asks for. Pure.

use crate::error::{Code, Error};

/// A version of the CNI specification that twill can speak; ordered by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    /// 0.1.0
    V0_1_0,
    /// 0.2.0
    V0_2_0,
    /// 0.3.0
    V0_3_0,
    /// 0.3.1
    V0_3_1,
    /// 0.4.0, the first with CHECK
    V0_4_0,
    /// 1.0.0
    V1_0_0,
    /// 1.1.0, the first with GC and STATUS
    V1_1_0,
}

impl Version {
    /// Every version, oldest first.
    pub(crate) const ALL: [Version; 7] = [
        Version::V0_1_0,
        Version::V0_2_0,
        Version::V0_3_0,
        Version::V0_3_1,
        Version::V0_4_0,
        Version::V1_0_0,
        Version::V1_1_0,
    ];

    /// What VERSION announces as the protocol's own version.
    pub(crate) const LATEST: Version = Version::V1_1_0;

    /// As it stands in `cniVersion`.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Version::V0_1_0 => "0.1.0",
            Version::V0_2_0 => "0.2.0",
            Version::V0_3_0 => "0.3.0",
            Version::V0_3_1 => "0.3.1",
            Version::V0_4_0 => "0.4.0",
            Version::V1_0_0 => "1.0.0",
            Version::V1_1_0 => "1.1.0",
        }
    }

    /// The version that a config's `cniVersion` names: letter for letter (`1.0` is none), and
    /// 0.1.0 where it is absent or empty, as the first specification had no such key.
    pub(crate) fn of_config(text: &str) -> Result<Version, Error> {
        if text.is_empty() {
            return Ok(Version::V0_1_0);
        }
        Self::ALL
            .into_iter()
            .find(|version| version.as_str() == text)
            .ok_or_else(|| {
                Error::new(Code::IncompatibleVersion, "incompatible CNI versions").details(format!(
                    "config is {text:?}, plugin supports [{}]",
                    quoted()
                ))
            })
    }

    /// The version of a config for a verb that older versions do not have. Unlike the other verbs
    /// these look at the number first: what is not one cannot be decoded, and one that is newer
    /// than all of ours is refused as such.
    pub(crate) fn of_config_since(
        text: &str,
        verb: &str,
        since: Version,
    ) -> Result<Version, Error> {
        let asked = number(if text.is_empty() { "0.1.0" } else { text })
            .map_err(|msg| Error::new(Code::Decode, msg))?;
        let number_of = |version: Version| number(version.as_str()).unwrap_or_default();
        let refuse = |who| {
            Error::new(
                Code::IncompatibleVersion,
                format!("{who} version does not allow {verb}"),
            )
        };
        if asked < number_of(since) {
            return Err(refuse("config"));
        }
        if asked > number_of(Self::LATEST) {
            return Err(refuse("plugin"));
        }
        Self::of_config(text)
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The answer to VERSION, with its newline.
pub(crate) fn announcement() -> String {
    let versions: Vec<String> = Version::ALL.map(|v| format!("{:?}", v.as_str())).into();
    format!(
        "{{\"cniVersion\":\"{}\",\"supportedVersions\":[{}]}}\n",
        Version::LATEST,
        versions.join(",")
    )
}

/// What a person sees who starts the program without CNI_COMMAND. Runtimes parse the first line
/// (`CNI <name> plugin <version>`). The program speaks every version since `oldest`.
pub(crate) fn about(program: &str, oldest: Version) -> String {
    let spoken = Version::ALL.into_iter().filter(|v| *v >= oldest);
    let versions = spoken.map(Version::as_str).collect::<Vec<_>>().join(", ");
    format!(
        "CNI {program} plugin v{} (twill)\nCNI protocol versions supported: {versions}\n",
        env!("CARGO_PKG_VERSION")
    )
}

fn quoted() -> String {
    Version::ALL.map(|v| format!("{:?}", v.as_str())).join(" ")
}

/// `major.minor.micro`, of which the last may be left out.
fn number(text: &str) -> Result<(u32, u32, u32), String> {
    let mut parts = text.split('.');
    let mut part = |name: &str| match parts.next() {
        None if name == "micro" => Ok(0),
        None => Err(format!(
            "invalid version {text:?}: the {name} part is missing"
        )),
        Some(digits) => digits
            .parse()
            .map_err(|_| format!("failed to convert {name} version part {digits:?} of {text:?}")),
    };
    let number = (part("major")?, part("minor")?, part("micro")?);
    match parts.next() {
        None => Ok(number),
        Some(_) => Err(format!("invalid version {text:?}: too many parts")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_version_is_the_first_one() {
        assert_eq!(Version::of_config("").unwrap(), Version::V0_1_0);
    }

    #[test]
    fn versions_match_letter_for_letter() {
        for text in ["1.0", "1.1", "v1.0.0", "9.9.9", "asdf", "1.0.0 "] {
            let error = Version::of_config(text).unwrap_err();
            assert_eq!(error.code, Code::IncompatibleVersion, "{text}");
        }
        for version in Version::ALL {
            assert_eq!(Version::of_config(version.as_str()).unwrap(), version);
        }
    }

    #[test]
    fn younger_verbs_refuse_older_configs() {
        let check = |text| Version::of_config_since(text, "CHECK", Version::V0_4_0);
        assert_eq!(check("0.4.0").unwrap(), Version::V0_4_0);
        for (text, code, msg) in [
            (
                "0.3.1",
                Code::IncompatibleVersion,
                "config version does not allow CHECK",
            ),
            (
                "",
                Code::IncompatibleVersion,
                "config version does not allow CHECK",
            ),
            (
                "9.9.9",
                Code::IncompatibleVersion,
                "plugin version does not allow CHECK",
            ),
            (
                "0.5.0",
                Code::IncompatibleVersion,
                "incompatible CNI versions",
            ),
            (
                "asdf",
                Code::Decode,
                "failed to convert major version part \"asdf\" of \"asdf\"",
            ),
        ] {
            let error = check(text).unwrap_err();
            assert_eq!((error.code, error.msg.as_str()), (code, msg), "{text}");
        }
    }
}
