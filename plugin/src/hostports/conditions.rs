//! `conditionsV4` and `conditionsV6`: which packets host ports are for, in iptables' words or in
//! nft's. Pure.
//!
//! Both are understood as far as one can say with them what operators do say: addresses and
//! devices. Anything else is refused, because a condition left out would open a port.

use ipnet::IpNet;
use kernel::nft::RuleBuilder;

use super::config::invalid;
use crate::error::{Code, Error};

/// The words a condition is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Syntax {
    /// `! -d 192.0.2.0/24`
    Iptables,
    /// `ip daddr != 192.0.2.0/24`
    Nftables,
}

impl Syntax {
    /// By the first word, as the Go plugin decides.
    pub(super) fn of(token: &str) -> Syntax {
        match token.starts_with(['-', '!']) {
            true => Syntax::Iptables,
            false => Syntax::Nftables,
        }
    }
}

/// One test of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Test {
    what: What,
    is: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Source(IpNet),
    Destination(IpNet),
    /// A name, with a `*` at the end for any ending.
    Input(String),
    Output(String),
}

/// Alternatives, each a list of tests that must all hold. None at all: no condition.
pub(super) type Ways = Vec<Vec<Test>>;

impl Test {
    pub(super) fn add_to(&self, rule: RuleBuilder) -> RuleBuilder {
        match &self.what {
            What::Source(net) => rule.source(self.is, *net),
            What::Destination(net) => rule.destination(self.is, *net),
            What::Input(name) => rule.comes_in_by(self.is, name),
            What::Output(name) => rule.goes_out_by(self.is, name),
        }
    }
}

/// What is compared.
#[derive(Debug, Clone, Copy)]
enum Part {
    Source,
    Destination,
    Input,
    Output,
}

/// Reads the tokens of one family.
pub(super) fn parse(tokens: &[String], syntax: Option<Syntax>, v6: bool) -> Result<Ways, Error> {
    let key = if v6 { "conditionsV6" } else { "conditionsV4" };
    let words: Vec<&str> = tokens
        .iter()
        .flat_map(|token| token.split_whitespace())
        .collect();
    let Some(syntax) = syntax.filter(|_| !words.is_empty()) else {
        return Ok(vec![]);
    };
    let mut rest = words.as_slice();
    let mut ways: Ways = vec![vec![]];
    while !rest.is_empty() {
        let clause = match syntax {
            Syntax::Iptables => iptables(&mut rest),
            Syntax::Nftables => nftables(&mut rest, v6),
        };
        let Some((part, is, values)) = clause else {
            return Err(unsupported(key, &words));
        };
        let tests = values
            .iter()
            .map(|value| test(part, is, value, v6, syntax))
            .collect::<Result<Vec<Test>, String>>()
            .map_err(|reason| invalid(format!("{key} {:?}: {reason}", words.join(" "))))?;
        ways = match is {
            // None of them: every way must pass all.
            false => ways
                .into_iter()
                .map(|way| [way, tests.clone()].concat())
                .collect(),
            // One of them: each makes a way of its own.
            true => ways
                .iter()
                .flat_map(|way| {
                    tests
                        .iter()
                        .map(|test| [way.clone(), vec![test.clone()]].concat())
                })
                .collect(),
        };
    }
    Ok(ways)
}

fn unsupported(key: &str, words: &[&str]) -> Error {
    Error::new(
        Code::UnsupportedField,
        format!(
            "{key} {:?} is not supported: only source and destination addresses and devices can be tested",
            words.join(" ")
        ),
    )
}

type Clause<'a> = (Part, bool, Vec<&'a str>);

/// `[!] -s|-d|-i|-o VALUE[,VALUE…]`, also with the `!` behind the option.
fn iptables<'a>(rest: &mut &[&'a str]) -> Option<Clause<'a>> {
    let mut is = true;
    let next = |rest: &mut &[&'a str]| {
        let (word, behind) = rest.split_first()?;
        *rest = behind;
        Some(*word)
    };
    let mut option = next(rest)?;
    if option == "!" {
        is = false;
        option = next(rest)?;
    }
    let part = match option {
        "-s" | "--source" | "--src" => Part::Source,
        "-d" | "--destination" | "--dst" => Part::Destination,
        "-i" | "--in-interface" => Part::Input,
        "-o" | "--out-interface" => Part::Output,
        _ => return None,
    };
    let mut value = next(rest)?;
    if value == "!" && is {
        is = false;
        value = next(rest)?;
    }
    Some((part, is, value.split(',').collect()))
}

/// `ip|ip6 saddr|daddr [!=|==] VALUE`, `[meta] iifname|oifname …`; VALUE may be `{ A, B }`.
fn nftables<'a>(rest: &mut &[&'a str], v6: bool) -> Option<Clause<'a>> {
    let family = if v6 { "ip6" } else { "ip" };
    let (part, behind) = match rest {
        [f, "saddr", behind @ ..] if *f == family => (Part::Source, behind),
        [f, "daddr", behind @ ..] if *f == family => (Part::Destination, behind),
        ["meta", "iifname", behind @ ..] | ["iifname", behind @ ..] => (Part::Input, behind),
        ["meta", "oifname", behind @ ..] | ["oifname", behind @ ..] => (Part::Output, behind),
        _ => return None,
    };
    let (is, behind) = match behind {
        ["!=", behind @ ..] => (false, behind),
        ["==" | "eq", behind @ ..] => (true, behind),
        behind => (true, behind),
    };
    let first = behind.first()?;
    let length = match first.starts_with('{') {
        true => behind.iter().position(|word| word.ends_with('}'))? + 1,
        false => 1,
    };
    let (values, behind) = behind.split_at(length);
    let clean = |word: &&'a str| -> Vec<&'a str> {
        let inner = word.trim_matches(['{', '}', '"']);
        inner.split(',').map(|v| v.trim_matches('"')).collect()
    };
    let values: Vec<&str> = values
        .iter()
        .flat_map(clean)
        .filter(|value| !value.is_empty())
        .collect();
    *rest = behind;
    (!values.is_empty()).then_some((part, is, values))
}

fn test(part: Part, is: bool, value: &str, v6: bool, syntax: Syntax) -> Result<Test, String> {
    let what = match part {
        Part::Source => What::Source(network(value, v6)?),
        Part::Destination => What::Destination(network(value, v6)?),
        Part::Input => What::Input(device(value, syntax)?),
        Part::Output => What::Output(device(value, syntax)?),
    };
    Ok(Test { what, is })
}

fn network(text: &str, v6: bool) -> Result<IpNet, String> {
    let net = match text.contains('/') {
        true => text.parse::<IpNet>().ok(),
        false => text.parse::<std::net::IpAddr>().map(IpNet::from).ok(),
    };
    net.filter(|net| net.addr().is_ipv6() == v6)
        .ok_or_else(|| format!("{text:?} is no network of this family"))
}

/// A device's name; iptables writes any ending as `+`, nft as `*`.
fn device(text: &str, syntax: Syntax) -> Result<String, String> {
    let wildcard = if syntax == Syntax::Iptables { '+' } else { '*' };
    let (name, star) = match text.strip_suffix(wildcard) {
        Some(name) => (name, "*"),
        None => (text, ""),
    };
    let fits = !name.is_empty() && name.len() <= 15 && !name.contains(['*', '/', '+']);
    match fits {
        true => Ok(format!("{name}{star}")),
        false => Err(format!("{text:?} is no device's name")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ways(text: &str, v6: bool) -> Result<Ways, Error> {
        let tokens: Vec<String> = text.split(' ').map(str::to_owned).collect();
        let syntax = Syntax::of(&tokens[0]);
        parse(&tokens, Some(syntax), v6)
    }

    #[test]
    fn both_syntaxes_say_the_same() {
        for (iptables, nft, v6) in [
            ("! -d 192.0.2.0/24", "ip daddr != 192.0.2.0/24", false),
            ("-d ! 192.0.2.0/24", "ip daddr != 192.0.2.0/24", false),
            (
                "-s 10.0.0.1,10.0.0.2 -i eth+",
                "ip saddr { 10.0.0.1, 10.0.0.2 } iifname \"eth*\"",
                false,
            ),
            ("! --dst fc00::/7", "ip6 daddr != fc00::/7", true),
            ("! -i lo", "meta iifname != \"lo\"", true),
        ] {
            assert_eq!(
                ways(iptables, v6).unwrap(),
                ways(nft, v6).unwrap(),
                "{iptables}"
            );
        }
    }

    #[test]
    fn alternatives_are_ways_and_exceptions_are_not() {
        assert_eq!(
            ways("ip saddr {10.0.0.1,10.0.0.2}", false).unwrap().len(),
            2
        );
        let one = ways("ip saddr != {10.0.0.1,10.0.0.2}", false).unwrap();
        assert_eq!((one.len(), one[0].len()), (1, 2));
        assert_eq!(parse(&[], None, false).unwrap(), Ways::new());
    }

    #[test]
    fn what_cannot_be_tested_is_refused_and_never_left_out() {
        for (text, v6) in [
            ("-m conntrack --ctstate NEW", false),
            ("-p tcp", false),
            ("-d", false),
            ("ip daddr", false),
            ("ip daddr != @set", false),
            ("tcp dport 80", false),
            ("ip daddr != 192.0.2.0/24 accept", false),
            ("ip6 daddr ::1", false),
            ("! -d ::1", false),
            ("! -d 192.0.2.1", true),
            ("ip daddr { 192.0.2.1", false),
            ("-i averyveryverylongname", false),
        ] {
            let error = ways(text, v6).unwrap_err();
            assert!(
                [Code::UnsupportedField, Code::InvalidConfig].contains(&error.code),
                "{text}: {error}"
            );
            assert!(error.msg.contains("conditionsV"), "{text}: {error}");
        }
    }
}
