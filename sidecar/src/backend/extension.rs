//! The `extension` backend: the operator's own programs carry the traffic, told of this node and of
//! every peer.
//!
//! A command is a list of arguments and never goes through a shell. What a peer wrote reaches a
//! program only as parsed addresses in its environment and as text on its stdin; the arguments come
//! from net-conf alone, with `$NAME` replaced inside an argument that stays one argument whatever
//! the value.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::options::decode;
use crate::family::{ByFamily, Family};
use crate::lease::Lease;
use crate::net_conf::NetConfError;
use crate::peers::{Node, Skipped};
use crate::subnets::Subnets;
use crate::underlay::Underlay;

/// `BackendType` in leases.
pub(super) const TYPE: &str = "extension";

/// What `fmt.Sprint` of Go says to an address that is not there, and what flannel's programs expect.
const NO_ADDRESS: &str = "<nil>";

/// The options in net-conf; an absent command is not run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    /// Before the lease: its output becomes our `BackendData`.
    pub pre_startup: Option<CommandLine>,
    /// Once the lease is taken.
    pub post_startup: Option<CommandLine>,
    /// For every peer that comes or changes.
    pub subnet_add: Option<CommandLine>,
    /// For every peer that goes.
    pub subnet_remove: Option<CommandLine>,
}

#[derive(Debug, Deserialize, Default)]
#[serde(default)]
struct Keys {
    #[serde(rename = "PreStartupCommand")]
    pre_startup: Value,
    #[serde(rename = "PostStartupCommand")]
    post_startup: Value,
    #[serde(rename = "SubnetAddCommand")]
    subnet_add: Value,
    #[serde(rename = "SubnetRemoveCommand")]
    subnet_remove: Value,
}

/// A program with its arguments, `$NAME` still in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine(Vec<String>);

impl Options {
    pub(super) fn parse(backend: &Value) -> Result<Self, NetConfError> {
        let keys: Keys = decode(backend)?;
        Ok(Self {
            pre_startup: CommandLine::parse("PreStartupCommand", &keys.pre_startup)?,
            post_startup: CommandLine::parse("PostStartupCommand", &keys.post_startup)?,
            subnet_add: CommandLine::parse("SubnetAddCommand", &keys.subnet_add)?,
            subnet_remove: CommandLine::parse("SubnetRemoveCommand", &keys.subnet_remove)?,
        })
    }

    /// What this node publishes: `said` is what the first program printed. The addresses are the
    /// device's, as flannel's are.
    pub(super) fn lease(&self, underlay: &Underlay, said: Option<&str>) -> Lease {
        let data = said.map(|text| Value::from(text).to_string().into());
        Lease {
            public_ips: underlay.addresses,
            backend_type: TYPE.into(),
            backend_data: data.map(|data| (Family::V4, data)).into_iter().collect(),
        }
    }
}

impl CommandLine {
    /// A text is split at white space, as flannel does; a list is taken as it is.
    fn parse(field: &str, value: &Value) -> Result<Option<Self>, NetConfError> {
        let wrong = |problem: String| {
            let want = r#"write a command such as "/opt/hook add $SUBNET", or a list of its words"#;
            NetConfError::fatal(&format!("Backend.{field}"), format!("{problem}; {want}"))
        };
        let words: Vec<String> = match value {
            Value::Null => Vec::new(),
            Value::String(text) => text.split_whitespace().map(str::to_owned).collect(),
            Value::Array(items) => {
                let words = items.iter().map(|item| item.as_str().map(str::to_owned));
                let words: Option<_> = words.collect();
                words.ok_or_else(|| wrong("a word of the list is no string".to_owned()))?
            }
            other => return Err(wrong(format!("{other} is neither a string nor a list"))),
        };
        if words.iter().any(|word| word.contains('\0')) {
            return Err(wrong("it holds a NUL byte".to_owned()));
        }
        if words.first().is_some_and(String::is_empty) {
            return Err(wrong("it names no program".to_owned()));
        }
        Ok(Some(Self(words)).filter(|command| !command.0.is_empty()))
    }

    /// The program and its arguments, with `$NAME` and `${NAME}` replaced by what `lookup` knows,
    /// and by nothing where it knows nothing.
    pub(crate) fn expanded(&self, lookup: impl Fn(&str) -> Option<String>) -> Vec<String> {
        self.0.iter().map(|word| expand(word, &lookup)).collect()
    }
}

fn expand(word: &str, lookup: &impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::new();
    let mut rest = word;
    while let Some((before, behind)) = rest.split_once('$') {
        out.push_str(before);
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let (name, after) = match behind.strip_prefix('{').and_then(|b| b.split_once('}')) {
            Some(braced) => braced,
            None => behind.split_at(behind.find(|c| !is_name(c)).unwrap_or(behind.len())),
        };
        match name {
            "" => out.push('$'),
            name => out.push_str(&lookup(name).unwrap_or_default()),
        }
        rest = after;
    }
    out + rest
}

/// What a program is told in its environment, beside the daemon's own.
pub(crate) type Environment = BTreeMap<&'static str, String>;

/// For the program that runs once the lease is taken: always all of them.
pub(crate) fn about_us(node: &Node) -> Environment {
    let ip = |family| node.lease.public_ips.get(family).map(|ip| ip.to_string());
    let net = |subnets: &ByFamily<ipnet::IpNet>, family: Family| match subnets.get(family) {
        Some(net) => net.to_string(),
        None => format!("{}/0", family.unspecified()),
    };
    let own: ByFamily<_> = node.subnets.iter().collect();
    [
        ("NETWORK", net(&node.networks, Family::V4)),
        ("SUBNET", net(&own, Family::V4)),
        ("IPV6SUBNET", net(&own, Family::V6)),
        ("PUBLIC_IP", ip(Family::V4).unwrap_or(NO_ADDRESS.into())),
        ("PUBLIC_IPV6", ip(Family::V6).unwrap_or(NO_ADDRESS.into())),
    ]
    .into()
}

/// A peer as programs are told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    /// Its addresses.
    pub(crate) environment: Environment,
    /// Its `BackendData`, for stdin.
    pub(crate) data: String,
}

/// Every peer, and those whose data are no text.
pub(crate) fn told(peers: &[(&Subnets, &Lease)]) -> (BTreeMap<Subnets, Told>, Skipped) {
    let mut all = BTreeMap::new();
    let mut skipped = Skipped::new();
    for (subnets, lease) in peers {
        match Told::of(subnets, lease) {
            Ok(told) => drop(all.insert(**subnets, told)),
            Err(reason) => drop(skipped.insert(subnets.to_string(), reason)),
        }
    }
    (all, skipped)
}

/// What a program is told of a peer in one family: its subnet and its address.
const NAMES: [(Family, &str, &str); 2] = [
    (Family::V4, "SUBNET", "PUBLIC_IP"),
    (Family::V6, "IPV6SUBNET", "PUBLIC_IPV6"),
];

impl Told {
    /// As it is kept on disk.
    pub(crate) fn render(&self) -> String {
        json!({"environment": self.environment, "data": self.data}).to_string()
    }

    /// Reads what [`Told::render`] wrote.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Kept {
            environment: BTreeMap<String, String>,
            data: String,
        }
        let kept: Kept = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let names = NAMES.into_iter().flat_map(|(_, subnet, ip)| [subnet, ip]);
        let known = names.filter_map(|name| Some((name, kept.environment.get(name)?.clone())));
        Ok(Self {
            environment: known.collect(),
            data: kept.data,
        })
    }

    fn of(subnets: &Subnets, lease: &Lease) -> Result<Self, String> {
        let data = lease.backend_data.get(Family::V4);
        let data: String = match data {
            None => String::new(),
            Some(text) => serde_json::from_str(text)
                .map_err(|_| format!("its value: field BackendData: {text} is not a string"))?,
        };
        let mut environment = Environment::new();
        for (family, subnet, public_ip) in NAMES {
            if let Some(net) = subnets.get(family) {
                environment.insert(subnet, net.to_string());
            }
            if let Some(ip) = lease.public_ips.get(family) {
                environment.insert(public_ip, ip.to_string());
            }
        }
        Ok(Self { environment, data })
    }
}

/// One thing to tell a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// `SubnetRemoveCommand`, with what was told last.
    Remove(Subnets, Told),
    /// `SubnetAddCommand`.
    Add(Subnets, Told),
}

/// What has to be told so that the programs know what is: who goes first, then who comes or
/// changes, each subnet at most once.
pub(crate) fn steps(want: &BTreeMap<Subnets, Told>, known: &BTreeMap<Subnets, Told>) -> Vec<Step> {
    let gone = known
        .iter()
        .filter(|(subnets, _)| !want.contains_key(subnets));
    let new = want
        .iter()
        .filter(|(subnets, told)| known.get(subnets) != Some(told));
    let gone = gone.map(|(subnets, told)| Step::Remove(*subnets, told.clone()));
    gone.chain(new.map(|(subnets, told)| Step::Add(*subnets, told.clone())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(value: Value) -> Option<Vec<String>> {
        let command = CommandLine::parse("SubnetAddCommand", &value).unwrap()?;
        let lookup = |name: &str| match name {
            "SUBNET" => Some("10.5.30.0/24".to_owned()),
            "EVIL" => Some("; rm -rf / `id` $SUBNET".to_owned()),
            _ => None,
        };
        Some(command.expanded(lookup))
    }

    #[test]
    fn a_command_is_a_list_of_arguments_and_knows_no_quotes() {
        for (value, want) in [
            (
                json!("/hook pre 'a  b' x"),
                vec!["/hook", "pre", "'a", "b'", "x"],
            ),
            (
                json!("/hook ${SUBNET} && echo"),
                vec!["/hook", "10.5.30.0/24", "&&", "echo"],
            ),
            (
                json!(["/my hook", "a  b", ""]),
                vec!["/my hook", "a  b", ""],
            ),
            (
                json!("/hook x$SUBNET.y $NONE $ 5$"),
                vec!["/hook", "x10.5.30.0/24.y", "", "$", "5$"],
            ),
            (
                json!("/hook $EVIL"),
                vec!["/hook", "; rm -rf / `id` $SUBNET"],
            ),
            (json!("/hook ${open"), vec!["/hook", "${open"]),
        ] {
            assert_eq!(
                words(value.clone()),
                Some(want.into_iter().map(str::to_owned).collect()),
                "{value}"
            );
        }
        for none in [json!(null), json!(""), json!("  "), json!([])] {
            assert_eq!(words(none), None);
        }
    }

    #[test]
    fn a_wrong_command_is_fatal_and_named() {
        for bad in [json!(1), json!([1]), json!([""]), json!({}), json!("a\0b")] {
            let error = Options::parse(&json!({"SubnetAddCommand": bad})).unwrap_err();
            assert!(
                error.fatal && error.field == "Backend.SubnetAddCommand",
                "{error}"
            );
        }
    }

    #[test]
    fn what_was_told_follows_from_what_is() {
        let peer = |n: u8, data: &str| -> (Subnets, Told) {
            let subnets: Subnets = format!("10.5.{n}.0-24").parse().unwrap();
            let value = format!(r#"{{"PublicIP":"192.168.50.{n}","BackendData":{data}}}"#);
            let lease = Lease::parse(value.as_bytes()).unwrap();
            (subnets, Told::of(&subnets, &lease).unwrap())
        };
        let known: BTreeMap<_, _> = [peer(1, "\"a\""), peer(2, "\"a\""), peer(3, "null")].into();
        let want: BTreeMap<_, _> = [peer(2, "\"b\""), peer(3, "null"), peer(4, "\"a\"")].into();
        let (gone, changed, new) = (peer(1, "\"a\""), peer(2, "\"b\""), peer(4, "\"a\""));
        let expected = [
            Step::Remove(gone.0, gone.1),
            Step::Add(changed.0, changed.1),
            Step::Add(new.0, new.1),
        ];
        assert_eq!(steps(&want, &known), expected);
        assert_eq!(steps(&want, &want), []);
    }

    #[test]
    fn data_that_is_no_text_leaves_the_peer_out() {
        let subnets: Subnets = "10.5.30.0-24".parse().unwrap();
        let lease = Lease::parse(br#"{"PublicIP":"192.168.50.30","BackendData":{"a":1}}"#).unwrap();
        let (all, skipped) = told(&[(&subnets, &lease)]);
        assert!(all.is_empty());
        assert!(
            skipped["10.5.30.0-24"].contains("BackendData"),
            "{skipped:?}"
        );
    }
}
