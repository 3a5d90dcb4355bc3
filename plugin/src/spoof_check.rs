//! `macspoofchk`: what a pod sends with another hardware address than its own is dropped where it
//! comes into the bridge. Names and rules are those of the bridge plugin, so that either program
//! deletes what the other made. Pure.
//!
//! The rule in the pod's own chain also names the network, which the Go plugin's does not: GC is
//! about one network, and there it is the only thing that says whose the chains are.

use kernel::Mac;
use kernel::nft::{Chain, Family, ForeignRule, Hook, HookPoint, HookType, Rule, Table};

use crate::attachment::Attachment;
use crate::error::{Code, Error};

/// The family and the name of the table, which others may use too.
pub(crate) const FAMILY: Family = Family::Bridge;
/// See [`FAMILY`].
pub(crate) const TABLE: &str = "nat";
/// Where every frame comes by.
pub(crate) const ENTRY: &str = "PREROUTING";
/// The longest comment that a rule has room for, in bytes.
const COMMENT_MAX: usize = 253;

/// The names of an attachment's chains and comments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Names {
    /// The chain that the entry leads to, and the one that this leads to.
    pub(crate) chains: [String; 2],
    /// The comment of every rule.
    comment: String,
    /// The comment of the rule that names the network.
    owner: String,
}

impl Names {
    /// Of an attachment; any has them, and what is too long to be made is not there either.
    pub(crate) fn of(attachment: &Attachment) -> Names {
        let Attachment {
            network,
            container_id,
            ifname,
        } = attachment;
        let chain = format!("cni-br-iface-{container_id}-{ifname}");
        let comment = format!("macspoofchk-{container_id}-{ifname}");
        Names {
            chains: [chain.clone(), format!("{chain}-mac")],
            owner: format!("{comment}{}", network_mark(network)),
            comment,
        }
    }

    /// Refuses names that the kernel has no room for.
    pub(crate) fn checked(attachment: &Attachment) -> Result<Names, Error> {
        let names = Names::of(attachment);
        let length = names.owner.len();
        match length <= COMMENT_MAX {
            true => Ok(names),
            false => Err(Error::new(
                Code::InvalidConfig,
                format!(
                    "macspoofchk: network name and container ID are too long together: the comment that names them would have {length} bytes, a rule has room for {COMMENT_MAX}"
                ),
            )),
        }
    }

    /// The attachment's chains with their rules, and the entry's chain without.
    pub(crate) fn table(&self, mac: Mac) -> Table {
        let [chain, mac_chain] = &self.chains;
        let entry = Hook {
            kind: HookType::Filter,
            point: HookPoint::Prerouting,
            priority: -300,
        };
        let of_pod = |name: &String, rules| Chain {
            name: name.clone(),
            hook: None,
            rules,
        };
        Table {
            family: FAMILY,
            name: TABLE.to_owned(),
            chains: vec![
                Chain {
                    name: ENTRY.to_owned(),
                    hook: Some(entry),
                    rules: vec![],
                },
                of_pod(
                    mac_chain,
                    vec![
                        Rule::because("")
                            .sent_by(mac)
                            .back()
                            .commented(&self.comment),
                        Rule::because("").drop().commented(&self.comment),
                    ],
                ),
                of_pod(
                    chain,
                    vec![Rule::because("").jump(mac_chain).commented(&self.owner)],
                ),
            ],
        }
    }

    /// The rule for the entry's chain.
    pub(crate) fn entry(&self, host_ifname: &str) -> Rule {
        Rule::because("")
            .comes_in_by(true, host_ifname)
            .jump(&self.chains[0])
            .commented(&self.comment)
    }

    /// Whether a rule of the entry's chain leads to the attachment's.
    pub(crate) fn is_entry(&self, rule: &ForeignRule) -> bool {
        rule.chain == ENTRY && rule.target.as_ref() == Some(&self.chains[0])
    }

    /// Whether all of the rules are among a table's.
    pub(crate) fn are_all_in(&self, rules: &[ForeignRule]) -> bool {
        let [chain, mac_chain] = &self.chains;
        let count = |name: &str| rules.iter().filter(|rule| rule.chain == name).count();
        rules.iter().any(|rule| self.is_entry(rule)) && count(chain) == 1 && count(mac_chain) == 2
    }
}

/// How the comment that names the network ends.
fn network_mark(network: &str) -> String {
    format!(", net: {network}")
}

/// The chains among a table's rules that belong to an attachment of the network, but to none of
/// these.
pub(crate) fn stale_chains(
    rules: &[ForeignRule],
    network: &str,
    valid: &[Attachment],
) -> Vec<[String; 2]> {
    let mark = network_mark(network);
    let of_network = |rule: &&ForeignRule| {
        rule.comment.starts_with("macspoofchk-") && rule.comment.ends_with(&mark)
    };
    let is_valid = |rule: &ForeignRule| {
        let mut owners = valid.iter().map(|attachment| Names::of(attachment).owner);
        owners.any(|owner| owner == rule.comment)
    };
    rules
        .iter()
        .filter(of_network)
        .filter(|rule| !is_valid(rule))
        .map(|rule| [rule.chain.clone(), format!("{}-mac", rule.chain)])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(container_id: &str) -> Attachment {
        Attachment {
            network: "gbnet".into(),
            container_id: container_id.into(),
            ifname: "eth0".into(),
        }
    }

    fn rule(chain: &str, comment: &str) -> ForeignRule {
        ForeignRule {
            chain: chain.into(),
            handle: 1,
            comment: comment.into(),
            target: None,
        }
    }

    #[test]
    fn names_are_those_of_the_bridge_plugin() {
        let names = Names::of(&attachment("abc"));
        assert_eq!(
            names.chains,
            ["cni-br-iface-abc-eth0", "cni-br-iface-abc-eth0-mac"]
        );
        assert_eq!(names.comment, "macspoofchk-abc-eth0");
    }

    #[test]
    fn names_that_no_comment_can_hold_are_refused() {
        assert!(Names::checked(&attachment(&"a".repeat(224))).is_ok());
        let error = Names::checked(&attachment(&"a".repeat(225))).unwrap_err();
        assert_eq!(error.code, Code::InvalidConfig);
    }

    #[test]
    fn stale_are_the_chains_of_the_network_whose_owner_is_not_valid() {
        let rules = [
            rule("PREROUTING", "macspoofchk-gone-eth0"),
            rule(
                "cni-br-iface-gone-eth0",
                "macspoofchk-gone-eth0, net: gbnet",
            ),
            rule("cni-br-iface-abc-eth0", "macspoofchk-abc-eth0, net: gbnet"),
            rule("cni-br-iface-x-eth0", "macspoofchk-x-eth0, net: other"),
            rule("cni-br-iface-go-eth0", "macspoofchk-go-eth0"),
            rule("mine", "something else, net: gbnet"),
        ];
        assert_eq!(
            stale_chains(&rules, "gbnet", &[attachment("abc")]),
            [["cni-br-iface-gone-eth0", "cni-br-iface-gone-eth0-mac"]]
        );
    }
}
