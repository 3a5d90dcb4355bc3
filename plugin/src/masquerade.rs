//! Masquerading of one pod's traffic by the bridge plugin's nftables rules, for nodes whose daemon
//! does not masquerade. Names and rules are those of libcni's plugins, so that either program
//! deletes what the other made. Pure.

use ipnet::IpNet;
use kernel::nft::{Chain, Family, Hook, HookPoint, HookType, Rule, Table};

use crate::attachment::Attachment;
use crate::sha512;

/// The table, of family `inet`; all of a node's networks share it.
pub(crate) const TABLE: &str = "cni_plugins_masquerade";
/// The chain that pods' rules are appended to.
pub(crate) const CHECKS: &str = "masq_checks";
/// The length that comments are cut at, in bytes.
const COMMENT_MAX: usize = 128;

/// The table as it should be, apart from the pods' rules.
pub(crate) fn table() -> Table {
    let multicast = |net: &str| {
        let net = net.parse().expect("a literal network");
        Rule::because("")
            .destination(true, net)
            .back()
            .commented("")
    };
    Table {
        family: Family::Inet,
        name: TABLE.to_owned(),
        chains: vec![
            Chain {
                name: CHECKS.to_owned(),
                hook: None,
                rules: vec![],
            },
            Chain {
                name: "postrouting".to_owned(),
                hook: Some(Hook {
                    kind: HookType::Nat,
                    point: HookPoint::Postrouting,
                    priority: 100,
                }),
                rules: vec![
                    multicast("224.0.0.0/4"),
                    multicast("ff00::/8"),
                    Rule::because("").go_to(CHECKS).commented(""),
                ],
            },
        ],
    }
}

/// `ip saddr IP ip daddr != SUBNET masquerade comment "…"` for each of a pod's addresses.
pub(crate) fn rules(attachment: &Attachment, addresses: &[IpNet]) -> Vec<Rule> {
    let comment = comment(attachment);
    let rules = addresses.iter().map(|address| {
        Rule::because("")
            .source(true, IpNet::from(address.addr()))
            .destination(false, address.trunc())
            .masquerade(false)
            .commented(&comment)
    });
    rules.collect()
}

/// How the comments of an attachment's rules begin.
pub(crate) fn mark(attachment: &Attachment) -> String {
    let pod = format!("{}:{}", attachment.ifname, attachment.container_id);
    format!("{}{}", network_mark(&attachment.network), hash(&pod))
}

/// How the comments of all of a network's rules begin.
pub(crate) fn network_mark(network: &str) -> String {
    format!("{}-", hash(network))
}

fn comment(attachment: &Attachment) -> String {
    let Attachment {
        network,
        container_id,
        ifname,
    } = attachment;
    let mark = mark(attachment);
    let mut comment = format!("{mark}, net: {network}, if: {ifname}, id: {container_id}");
    comment.retain(|c| c != '"');
    while comment.len() > COMMENT_MAX {
        comment.pop();
    }
    comment
}

fn hash(text: &str) -> String {
    let mut digest = sha512::hex(&[text]);
    digest.truncate(16);
    digest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_those_of_the_go_plugins() {
        let attachment = Attachment::new("gbnet", "def", "eth0").unwrap();
        assert_eq!(
            comment(&attachment),
            "9e5af0fae889b4c4-0c367c7c160914f7, net: gbnet, if: eth0, id: def"
        );
        let attachment = Attachment::new("cbr0", "abc", "eth0").unwrap();
        assert_eq!(mark(&attachment), "cb6e746fae1a4d6c-e65086f8a75535c6");
        let attachment = Attachment::new("cbr0", &"a".repeat(100), "eth0").unwrap();
        assert_eq!(comment(&attachment).len(), COMMENT_MAX);
    }
}
