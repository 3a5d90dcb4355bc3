//! The configuration while it is missing, and when it is changed under a running daemon.
//!
//! flanneld reads it once. Here a change is acted upon where this node's running pods keep their
//! addresses and their way: every subnet that we hold is still one that is given out, the backend
//! is the same, and the node can do what is asked (a family more needs an address). Anything else
//! is said, with what to do, and what was there before goes on: a change of that kind concerns all
//! nodes at once and is for a person to time. [`objections`] decides.

use std::fmt::Display;
use std::time::Duration;

use anyhow::bail;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::family::Family;
use crate::net_conf::{NetConf, NetConfError};
use crate::store::Store;
use crate::subnets::Subnets;

/// How often a configuration that is missing or wrong is looked for again, as flanneld does.
const RETRY: Duration = Duration::from_secs(1);

/// A configuration and the bytes that it was read from.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) text: Vec<u8>,
    pub(crate) net_conf: NetConf,
}

/// Writes what `--network` asks for, where there is nothing.
pub(crate) async fn init(store: &impl Store, network: &impl Display) {
    let text = format!("{{\"Network\":\"{network}\",\"Backend\":{{\"Type\":\"vxlan\"}}}}\n");
    match store.init_config(text.as_bytes()).await {
        Ok(true) => info!(%network, "wrote the configuration"),
        Ok(false) => {}
        Err(error) => warn!(%error, "cannot write the configuration that --network asks for"),
    }
}

fn parse(store: &impl Store, text: &[u8]) -> Result<NetConf, NetConfError> {
    match store.gives_subnets() {
        true => NetConf::parse_for_given_subnets(text),
        false => NetConf::parse(text),
    }
}

/// Waits for a configuration that can be used, saying once what is wrong with the one there is.
pub(crate) async fn wait_for(store: &impl Store) -> anyhow::Result<Config> {
    let mut told = String::new();
    loop {
        let problem = match store.config().await {
            Ok(Some(text)) => match parse(store, &text) {
                Ok(net_conf) => return Ok(Config { text, net_conf }),
                Err(error) => {
                    let problem = format!("config in {}: {error}", store.describe());
                    if error.fatal {
                        bail!(problem);
                    }
                    problem
                }
            },
            Ok(None) => format!(
                "no config in {}: {}",
                store.describe(),
                store.config_advice()
            ),
            Err(error) => error.to_string(),
        };
        if problem != told {
            warn!(%problem, "waiting for a configuration");
            told = problem;
        }
        sleep(RETRY).await;
    }
}

/// Waits for any other configuration that can be read: while the store does not give what one asks
/// for, nothing is done by it yet.
pub(crate) async fn another(store: &impl Store, before: &Config) -> Config {
    // Nearly always the store answers at once, and nobody needs to look.
    sleep(RETRY).await;
    let mut known = Some(before.text.clone());
    loop {
        known = store.config_changed(known).await;
        if let Some(text) = &known
            && let Ok(net_conf) = parse(store, text)
            && net_conf != before.net_conf
        {
            let text = text.clone();
            return Config { text, net_conf };
        }
    }
}

/// Waits for another configuration that the node which holds `held` can go over to; `fits` says
/// what of it cannot be done here. Of any other one it says why not.
pub(crate) async fn follow(
    store: &impl Store,
    before: &Config,
    held: &Subnets,
    mut fits: impl FnMut(&NetConf) -> anyhow::Result<()>,
) -> Config {
    let mut known = Some(before.text.clone());
    loop {
        known = store.config_changed(known).await;
        let changed = match &known {
            None => Err("it is gone".to_owned()),
            Some(text) => parse(store, text).map_err(|error| error.to_string()),
        };
        let reasons = match changed {
            Ok(net_conf) if net_conf == before.net_conf => continue,
            Ok(net_conf) => {
                let given = store.gives_subnets();
                let mut reasons = objections(&before.net_conf, &net_conf, held, given);
                if reasons.is_empty()
                    && let Err(error) = fits(&net_conf)
                {
                    reasons.push(format!("{error:#}"));
                }
                if reasons.is_empty() {
                    info!(
                        store = store.describe(),
                        "the configuration is another one now, and is acted upon"
                    );
                    let text = known.unwrap_or_default();
                    return Config { text, net_conf };
                }
                reasons.join("; ")
            }
            Err(reason) => reason,
        };
        warn!(
            store = store.describe(),
            reasons,
            "the configuration is another one now, which this node does not act upon while it runs: it goes on with the one that it started with; write that one again, or drain the node and restart twilld, and so on every node"
        );
    }
}

/// Why this node must not go over to another configuration while its pods run. `given`: its subnets
/// were given to it, so that they only have to be inside the network.
fn objections(before: &NetConf, after: &NetConf, held: &Subnets, given: bool) -> Vec<String> {
    let mut reasons = Vec::new();
    let (was, is) = (before.backend.kind(), after.backend.kind());
    if was != is {
        reasons.push(format!("field Backend.Type is {is}, and was {was}"));
    } else if before.backend != after.backend {
        reasons.push("field Backend is another one".to_owned());
    }
    for (family, subnet) in held.iter() {
        let Some(range) = after.ranges.get(family) else {
            reasons.push(format!("{family} is not enabled any more"));
            continue;
        };
        let network = range.network;
        let before = before.ranges.get(family).map(|before| before.network);
        if let Some(before) = before.filter(|before| !network.contains(before)) {
            reasons.push(format!(
                "nodes of the network {before} may be outside {network}"
            ));
        }
        if given && !network.contains(&subnet) {
            reasons.push(format!(
                "the subnet {subnet} that this node was given is outside {network}"
            ));
        }
        if !(given || range.gives_out(subnet)) {
            reasons.push(format!("our subnet {subnet} is none that it gives out"));
        }
    }
    let not_held = |family: &Family| held.get(*family).is_none();
    if given && let Some(family) = after.ranges.families().find(not_held) {
        reasons.push(format!("this node was given no {family} subnet"));
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objected(after: &str, held: &str) -> String {
        let before =
            br#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.40.0","Backend":{"Type":"vxlan"}}"#;
        let parse = |text: &[u8]| NetConf::parse(text).unwrap();
        objections(
            &parse(before),
            &parse(after.as_bytes()),
            &held.parse().unwrap(),
            false,
        )
        .join("; ")
    }

    #[test]
    fn a_change_that_leaves_our_subnet_what_it_is_is_acted_upon() {
        for after in [
            r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#,
            r#"{"Network":"10.4.0.0/15","Backend":{"Type":"VXLAN","VNI":1}}"#,
            r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#,
        ] {
            assert_eq!(objected(after, "10.5.20.0-24"), "", "{after}");
        }
    }

    #[test]
    fn a_node_that_was_given_its_subnet_keeps_it_wherever_the_network_has_it() {
        let parse = |text: &str| NetConf::parse_for_given_subnets(text.as_bytes()).unwrap();
        let before = parse(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#);
        let held = "10.5.20.0-24".parse().unwrap();
        let wider = parse(r#"{"Network":"10.4.0.0/15","Backend":{"Type":"vxlan"}}"#);
        assert!(objections(&before, &wider, &held, true).is_empty());
        let dual = parse(
            r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#,
        );
        assert_eq!(
            objections(&before, &dual, &held, true),
            ["this node was given no IPv6 subnet"]
        );
        let elsewhere = parse(r#"{"Network":"10.9.0.0/16","Backend":{"Type":"vxlan"}}"#);
        let reasons = objections(&before, &elsewhere, &held, true);
        assert_eq!(
            reasons[1],
            "the subnet 10.5.20.0/24 that this node was given is outside 10.9.0.0/16"
        );
    }

    #[test]
    fn a_change_that_would_cut_our_pods_off_is_not() {
        const DUAL: &str = "10.5.20.0-24&fd00:5:0:20::-64";
        for (after, held, words) in [
            (
                r#"{"Network":"10.9.0.0/16","Backend":{"Type":"vxlan"}}"#,
                "10.5.20.0-24",
                "may be outside 10.9.0.0/16",
            ),
            (
                r#"{"Network":"10.5.0.0/16","SubnetLen":25,"Backend":{"Type":"vxlan"}}"#,
                "10.5.20.0-24",
                "10.5.20.0/24 is none that it gives out",
            ),
            (
                r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.21.0","Backend":{"Type":"vxlan"}}"#,
                "10.5.20.0-24",
                "10.5.20.0/24 is none that it gives out",
            ),
            (
                r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":7}}"#,
                "10.5.20.0-24",
                "field Backend",
            ),
            (
                r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#,
                "10.5.20.0-24",
                "field Backend.Type is host-gw, and was vxlan",
            ),
            (
                r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#,
                DUAL,
                "IPv6 is not enabled",
            ),
        ] {
            let said = objected(after, held);
            assert!(said.contains(words), "{after}: {said}");
        }
    }
}
