//! The nftables rules wanted: masquerading of pod traffic that leaves the cluster's network, and
//! acceptance of forwarded pod traffic. One table of our own for both families.
//!
//! The rules say what flannel's iptables rules say; flannel's own nftables form of them differs
//! from those by oversight (the mark compared as a whole, one rule dead).

use ipnet::IpNet;
use kernel::nft::{Chain, Family as NftFamily, Hook, HookPoint, HookType, Rule, Table};

use crate::family::{ByFamily, family_of};
use crate::subnets::Subnets;

/// Our table: `inet twilld`.
pub const TABLE: &str = "twilld";
/// Packets that another program (kube-proxy) will masquerade already.
const MASQUERADED_ELSEWHERE: u32 = 0x4000;
const SRCNAT: i32 = 100;
const FILTER: i32 = 0;

/// What to install.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// The cluster's network per enabled family.
    pub networks: ByFamily<IpNet>,
    /// This node's subnets.
    pub subnets: Subnets,
    /// Whether to masquerade, and if so, whether with fully random source ports.
    pub masquerade: Option<Masquerade>,
    /// Whether to accept forwarded traffic.
    pub forward: bool,
}

/// How source ports are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Masquerade {
    /// At random, so that two connections seldom race for one port.
    FullyRandom,
    /// As the kernel likes.
    KernelsChoice,
}

impl Rules {
    /// The table; without a chain if nothing is to be installed.
    pub fn table(&self) -> Table {
        let mut chains = Vec::new();
        if let Some(how) = self.masquerade {
            let mut rules = vec![
                Rule::because("masqueraded elsewhere")
                    .mark_has(MASQUERADED_ELSEWHERE)
                    .back(),
            ];
            for (_, network) in self.networks.iter() {
                rules.extend(self.masquerading(*network, how));
            }
            chains.push(chain("postrouting", HookType::Nat, SRCNAT, rules));
        }
        if self.forward {
            let networks = self.networks.iter();
            let rules = networks.flat_map(|(_, network)| {
                [
                    Rule::because("from pods").source(true, *network).accept(),
                    Rule::because("to pods")
                        .destination(true, *network)
                        .accept(),
                ]
            });
            chains.push(chain("forward", HookType::Filter, FILTER, rules.collect()));
        }
        Table {
            family: NftFamily::Inet,
            name: TABLE.to_owned(),
            chains,
        }
    }

    fn masquerading(&self, network: IpNet, how: Masquerade) -> Vec<Rule> {
        let family = family_of(network);
        let fully_random = how == Masquerade::FullyRandom;
        let mut rules = vec![
            Rule::because("pod to pod")
                .source(true, network)
                .destination(true, network)
                .back(),
        ];
        if let Some(own) = self.subnets.get(family) {
            let rule = Rule::because("from outside to pods of this node");
            rules.push(rule.source(false, network).destination(true, own).back());
        }
        rules.extend([
            Rule::because("pod to outside")
                .source(true, network)
                .destination(false, family.multicast())
                .masquerade(fully_random),
            Rule::because("from outside to pods of other nodes")
                .source(false, network)
                .destination(true, network)
                .masquerade(fully_random),
        ]);
        rules
    }
}

fn chain(name: &str, kind: HookType, priority: i32, rules: Vec<Rule>) -> Chain {
    let point = match kind {
        HookType::Nat => HookPoint::Postrouting,
        HookType::Filter => HookPoint::Forward,
    };
    Chain {
        name: name.to_owned(),
        hook: Some(Hook {
            kind,
            point,
            priority,
        }),
        rules,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::Family;

    fn rules(masquerade: Option<Masquerade>, forward: bool) -> Rules {
        let networks = ["10.5.0.0/16", "fd00:5::/48"].map(|text| text.parse().unwrap());
        Rules {
            networks: Family::ALL.into_iter().zip(networks).collect(),
            subnets: "10.5.20.0-24&fd00:5:0:20::-64".parse().unwrap(),
            masquerade,
            forward,
        }
    }

    #[test]
    fn only_what_was_asked_for_is_there() {
        let names = |rules: Rules| -> Vec<String> {
            let table = rules.table();
            table
                .chains
                .iter()
                .map(|chain| chain.name.clone())
                .collect()
        };
        assert_eq!(names(rules(None, false)), [""; 0]);
        assert_eq!(names(rules(None, true)), ["forward"]);
        let both = rules(Some(Masquerade::FullyRandom), true);
        assert_eq!(names(both), ["postrouting", "forward"]);
    }

    #[test]
    fn every_family_has_the_same_rules() {
        let table = rules(Some(Masquerade::KernelsChoice), true).table();
        assert_eq!(table.chains[0].rules.len(), 1 + 2 * 4);
        assert_eq!(table.chains[1].rules.len(), 2 * 2);
    }

    #[test]
    fn what_differs_is_recognised_by_its_comments() {
        let comments = |how| -> Vec<String> {
            let table = rules(Some(how), false).table();
            let rules = table.chains[0].rules.iter();
            rules.map(|rule| rule.comment().to_owned()).collect()
        };
        let random = comments(Masquerade::FullyRandom);
        assert_eq!(random, comments(Masquerade::FullyRandom));
        assert_ne!(random, comments(Masquerade::KernelsChoice));
    }
}
