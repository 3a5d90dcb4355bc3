//! The environment of one run: what is asked, for which attachment. Pure: variables are given.
//!
//! Rules and texts are those of libcni's plugins (CNI 1.1.0 "Parameters"), with one difference:
//! CNI_PATH may be absent where the specification calls it optional.

use std::ffi::OsString;

use crate::error::{Code, Error};

/// A verb, with the variables that it needs, validated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Invocation {
    /// No CNI_COMMAND: a person, who gets the "about" text.
    About,
    /// VERSION: reads no config.
    Version,
    /// Every other verb. A verb that is none is found out after the config was read, as libcni's
    /// plugins do.
    Verb(Verb),
}

/// What the runtime wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Make the attachment.
    Add(Sandboxed),
    /// Take it away.
    Del(Container),
    /// Say what differs from what ADD made.
    Check(Sandboxed),
    /// Say whether an ADD could be served.
    Status,
    /// Take away everything that is not listed as valid.
    Gc,
    /// Not a verb.
    Unknown(String),
}

/// An attachment whose sandbox exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sandboxed {
    /// CNI_CONTAINERID, valid.
    pub(crate) container_id: String,
    /// CNI_IFNAME, valid.
    pub(crate) ifname: String,
    /// CNI_NETNS, not empty. The path as given: results repeat it.
    pub(crate) netns: String,
    /// CNI_ARGS as given.
    pub(crate) args: String,
    /// CNI_NETNS_OVERRIDE: work in the node's own namespace all the same.
    pub(crate) netns_override: bool,
}

/// An attachment whose sandbox may be gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Container {
    /// CNI_CONTAINERID, valid.
    pub(crate) container_id: String,
    /// CNI_IFNAME, valid.
    pub(crate) ifname: String,
    /// CNI_NETNS, if it is set and not empty.
    pub(crate) netns: Option<String>,
    /// CNI_NETNS_OVERRIDE.
    pub(crate) netns_override: bool,
}

impl Invocation {
    /// Reads the CNI_ variables that the verb needs. A variable that is present and invalid is
    /// reported before those that are missing, and those all together.
    pub(crate) fn from_env(env: &dyn Fn(&str) -> Option<OsString>) -> Result<Invocation, Error> {
        let mut vars = Variables {
            env,
            missing: vec![],
        };
        let command = vars.text("CNI_COMMAND")?;
        let verb = match command.as_str() {
            "" => return Ok(Invocation::About),
            "VERSION" => return Ok(Invocation::Version),
            "ADD" | "CHECK" => {
                let sandboxed = Sandboxed {
                    container_id: vars.container_id()?,
                    netns: vars.required("CNI_NETNS")?,
                    ifname: vars.ifname()?,
                    args: vars.text("CNI_ARGS")?,
                    netns_override: vars.flag("CNI_NETNS_OVERRIDE")?,
                };
                match command.as_str() {
                    "ADD" => Verb::Add(sandboxed),
                    _ => Verb::Check(sandboxed),
                }
            }
            "DEL" => Verb::Del(Container {
                container_id: vars.container_id()?,
                ifname: vars.ifname()?,
                netns: Some(vars.text("CNI_NETNS")?).filter(|path| !path.is_empty()),
                netns_override: vars.flag("CNI_NETNS_OVERRIDE")?,
            }),
            "STATUS" => Verb::Status,
            "GC" => Verb::Gc,
            _ => Verb::Unknown(command),
        };
        if verb == Verb::Gc {
            vars.required("CNI_PATH")?;
        }
        match vars.missing.as_slice() {
            [] => Ok(Invocation::Verb(verb)),
            missing => Err(invalid(format!(
                "required env variables [{}] missing",
                missing.join(",")
            ))),
        }
    }
}

struct Variables<'a> {
    env: &'a dyn Fn(&str) -> Option<OsString>,
    missing: Vec<&'static str>,
}

impl Variables<'_> {
    fn text(&self, name: &str) -> Result<String, Error> {
        (self.env)(name)
            .unwrap_or_default()
            .into_string()
            .map_err(|value| {
                invalid(format!("{name} is not UTF-8")).details(value.to_string_lossy())
            })
    }

    fn flag(&self, name: &str) -> Result<bool, Error> {
        let value = self.text(name)?;
        Ok(value == "1" || value.eq_ignore_ascii_case("true"))
    }

    fn required(&mut self, name: &'static str) -> Result<String, Error> {
        let value = self.text(name)?;
        if value.is_empty() {
            self.missing.push(name);
        }
        Ok(value)
    }

    fn container_id(&mut self) -> Result<String, Error> {
        let id = self.required("CNI_CONTAINERID")?;
        match id.is_empty() || is_name(&id) {
            true => Ok(id),
            false => Err(invalid("invalid characters in containerID").details(id)),
        }
    }

    fn ifname(&mut self) -> Result<String, Error> {
        let name = self.required("CNI_IFNAME")?;
        match ifname_fault(&name) {
            Some(TOO_LONG) => {
                Err(invalid(TOO_LONG).details("interface name should be less than 16 characters"))
            }
            Some(fault) if !name.is_empty() => Err(invalid(fault)),
            _ => Ok(name),
        }
    }
}

fn invalid(msg: impl Into<String>) -> Error {
    Error::new(Code::InvalidEnvironment, msg)
}

const TOO_LONG: &str = "interface name is too long";

/// Why a text cannot be an interface's name; None if it can.
pub(crate) fn ifname_fault(name: &str) -> Option<&'static str> {
    let separates = |c: char| c == '/' || c == ':' || c == '\0' || c.is_whitespace();
    match name {
        "" => Some("interface name is empty"),
        "." | ".." => Some("interface name is . or .."),
        _ if name.len() > 15 => Some(TOO_LONG),
        _ if name.contains(separates) => {
            Some("interface name contains / or : or whitespace characters")
        }
        _ if name.contains(char::is_control) => Some("interface name contains control characters"),
        _ => None,
    }
}

/// Whether a container ID or a network name is one by the specification: a letter or digit, then
/// letters, digits, `_`, `.`, `-`. Such a name is also safe as a file name.
pub(crate) fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(vars: &[(&str, &str)]) -> Result<Invocation, Error> {
        Invocation::from_env(&|name| {
            let found = vars.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| OsString::from(value))
        })
    }

    const ADD: [(&str, &str); 4] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "abc"),
        ("CNI_NETNS", "/run/netns/x"),
        ("CNI_IFNAME", "eth0"),
    ];

    fn add_with(name: &str, value: &str) -> Result<Invocation, Error> {
        let mut vars = ADD;
        for var in vars.iter_mut().filter(|var| var.0 == name) {
            var.1 = value;
        }
        // `vars` borrows `value` for the call only.
        parse(&vars)
    }

    #[test]
    fn everything_missing_is_reported_together() {
        let error = parse(&[("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "abc")]).unwrap_err();
        assert_eq!(
            error.msg,
            "required env variables [CNI_NETNS,CNI_IFNAME] missing"
        );
        assert_eq!(error.code, Code::InvalidEnvironment);
    }

    #[test]
    fn an_invalid_variable_is_reported_before_a_missing_one() {
        let error = parse(&[("CNI_COMMAND", "ADD"), ("CNI_IFNAME", "a:b")]).unwrap_err();
        assert_eq!(
            error.msg,
            "interface name contains / or : or whitespace characters"
        );
    }

    #[test]
    fn interface_names_are_at_most_15_bytes_without_separators() {
        for name in ["a23456789012345", "eth0.5", "ü234567890123"] {
            assert!(add_with("CNI_IFNAME", name).is_ok(), "{name}");
        }
        for name in [
            "a234567890123456",
            "ü2345678901234\u{fc}",
            ".",
            "..",
            "a/b",
            "a:b",
            "a b",
            "a\u{2003}b",
        ] {
            let error = add_with("CNI_IFNAME", name).unwrap_err();
            assert_eq!(error.code, Code::InvalidEnvironment, "{name}");
        }
    }

    #[test]
    fn container_ids_that_are_no_file_names_are_refused() {
        for id in ["a/b", "-abc", "a b", "_a", "..", "../x", "a\nb", "é"] {
            let error = add_with("CNI_CONTAINERID", id).unwrap_err();
            assert_eq!(
                (error.msg.as_str(), error.details.as_str()),
                ("invalid characters in containerID", id)
            );
        }
    }

    #[test]
    fn del_needs_no_sandbox_and_nobody_needs_a_path_but_gc() {
        let del = parse(&[
            ("CNI_COMMAND", "DEL"),
            ("CNI_CONTAINERID", "abc"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", ""),
        ]);
        let Ok(Invocation::Verb(Verb::Del(container))) = del else {
            panic!("{del:?}")
        };
        assert_eq!(container.netns, None);
        assert!(parse(&[("CNI_COMMAND", "STATUS")]).is_ok());
        assert_eq!(
            parse(&[("CNI_COMMAND", "GC")]).unwrap_err().msg,
            "required env variables [CNI_PATH] missing"
        );
    }
}
