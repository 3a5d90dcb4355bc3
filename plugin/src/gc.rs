//! GC: takes away what belongs to no attachment that the runtime still knows.
//!
//! Only this network's things, and only those that say whose they are: pairs by their alias,
//! reservations by their content. The bridge is everybody's and stays.

use std::io::Write;
use std::time::Duration;

use kernel::link;
use serde::Deserialize;
use serde_json::Value;

use crate::attachment::Attachment;
use crate::builtin;
use crate::cni_args::CniArgs;
use crate::config::Header;
use crate::config::bridge::Ipam;
use crate::config::flannel::{Dialect, ipam_data_dir, scratch_dir};
use crate::delegate::{self, Delegates};
use crate::error::{Code, Error};
use crate::invocation::is_name;
use crate::ipam::{Held, Store};
use crate::legacy_masquerade;
use crate::masquerade::{mark, network_mark};
use crate::network::{Maker, Network};
use crate::node::{Node, collect_spoof_checks, delete_masquerade, delete_spoof_check};
use crate::scratch::Scratch;
use crate::version::Version;

/// An attachment that the runtime knows.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Valid {
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
}

/// Collects, and reports what failed at the end.
pub(crate) fn gc(
    header: &Header,
    dialect: Dialect,
    delegates: Delegates<'_>,
    stderr: &mut dyn Write,
) -> Result<(), Error> {
    let Some(valid) = valid(header, stderr)? else {
        return Ok(());
    };
    let mut errors = vec![];
    errors.extend(collect_pairs(&header.name, &valid).err());
    let keep = |id: &str, ifname: &str| is_valid(&valid, id, ifname);
    errors.extend(builtin::gc(&header.name, &keep).err());
    let known: Vec<Attachment> = (valid.iter())
        .map(|v| Attachment {
            network: header.name.clone(),
            container_id: v.container_id.clone(),
            ifname: v.ifname.clone(),
        })
        .collect();
    errors.extend(collect_spoof_checks(&header.name, &known).err());
    let marks: Vec<String> = known.iter().map(mark).collect();
    let kept = |comment: &str| marks.iter().any(|mark| comment.starts_with(mark));
    errors.extend(delete_masquerade(&network_mark(&header.name), kept).err());
    let kept = |id: &str| valid.iter().any(|v| v.container_id == id);
    errors.extend(legacy_masquerade::gc(&header.name, &kept).err());
    match release(header, &valid) {
        Ok(released) => {
            let dir = scratch_dir(&header.config);
            for held in released {
                if let Held::By(container_id, ifname) = &held {
                    // The Go plugin's rules against spoofing do not say which network's they are.
                    errors.extend(
                        delete_spoof_check(&Attachment {
                            network: header.name.clone(),
                            container_id: container_id.clone(),
                            ifname: ifname.clone(),
                        })
                        .err(),
                    );
                }
                let (Held::By(id, _) | Held::ByContainer(id)) = held;
                let known = valid.iter().any(|v| v.container_id == id);
                if !known && is_name(&id) {
                    errors.extend(Scratch::new(&dir, &id).remove(&header.name).err());
                }
            }
        }
        Err(error) => errors.push(error),
    }
    errors.extend(hand_on(header, dialect, delegates).err());
    Error::join(errors)
}

/// Tells other plugins that the config delegates to.
fn hand_on(header: &Header, dialect: Dialect, delegates: Delegates<'_>) -> Result<(), Error> {
    let named = |config| delegate::main::named(config).or_else(|| delegate::ipam::kind_of(config));
    if named(&header.config).is_none() {
        return Ok(());
    }
    let version = Version::of_config(&header.version)?;
    let args = CniArgs::default();
    let network = Network::load(header, version, dialect, &args, Duration::ZERO)?;
    let config = &network.rendered;
    match &network.maker {
        Maker::Delegate(kind) => delegates.plugin(kind, config).gc(header),
        Maker::Here(bridge) => match &bridge.ipam {
            Some(Ipam::Other(kind)) => delegates.plugin(kind, config).gc(header),
            _ => Ok(()),
        },
    }
}

/// Releases the reservations of all others, and says whose they were.
pub(crate) fn release(header: &Header, valid: &[Valid]) -> Result<Vec<Held>, Error> {
    let store = Store::new(&ipam_data_dir(&header.config), &header.name);
    let kept = |held: &Held| match held {
        Held::By(id, ifname) => is_valid(valid, id, ifname),
        Held::ByContainer(id) => valid.iter().any(|v| v.container_id == *id),
    };
    store.release_others(kept).map_err(Error::from)
}

fn collect_pairs(network: &str, valid: &[Valid]) -> Result<(), Error> {
    let mut node = Node::open()?;
    let refused = |error: kernel::Error| Error::new(Code::Kernel, error.to_string());
    let stale: Vec<_> = link::dump(&mut node.socket)
        .map_err(refused)?
        .into_iter()
        .filter(|link| {
            let alias = link.alias.as_deref().unwrap_or_default();
            Attachment::from_alias(alias).is_some_and(|owner| {
                let known = is_valid(valid, &owner.container_id, &owner.ifname);
                link.kind == "veth" && owner.network == network && !known
            })
        })
        .map(|link| link::delete_index(link.ifindex))
        .collect();
    match stale.as_slice() {
        [] => Ok(()),
        stale => node.socket.apply_all(stale).map_err(refused),
    }
}

fn is_valid(valid: &[Valid], container_id: &str, ifname: &str) -> bool {
    let is = |v: &Valid| v.container_id == container_id && v.ifname == ifname;
    valid.iter().any(is)
}

/// What the runtime lists as valid; None, with a word to stderr, if it lists nothing at all.
pub(crate) fn valid(header: &Header, stderr: &mut dyn Write) -> Result<Option<Vec<Valid>>, Error> {
    Version::of_config_since(&header.version, "GC", Version::V1_1_0)?;
    let list = listed(&header.config)?;
    if list.is_none() {
        let _ = writeln!(
            stderr,
            "twill: no list of valid attachments: nothing is collected"
        );
    }
    Ok(list)
}

/// The list: None if there is none, which is not the same as that nothing is valid (`null` and
/// `[]`). The specification changed the key's name once, and runtimes send both.
fn listed(config: &Value) -> Result<Option<Vec<Valid>>, Error> {
    let keys = ["cni.dev/valid-attachments", "cni.dev/attachments"];
    let Some((key, list)) = (keys.iter()).find_map(|key| Some((key, go_json::field(config, key)?)))
    else {
        return Ok(None);
    };
    let list: Option<Vec<Valid>> = go_json::from_value(list)
        .map_err(|error| Error::new(Code::Decode, format!("{key}: {error}")))?;
    Ok(Some(list.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn null_and_empty_mean_none_and_absent_means_nothing_is_known() {
        let count = |config: Value| listed(&config).unwrap().map(|list| list.len());
        assert_eq!(count(json!({})), None);
        assert_eq!(count(json!({"cni.dev/valid-attachments": null})), Some(0));
        assert_eq!(count(json!({"cni.dev/attachments": []})), Some(0));
        let one = json!([{"containerID":"a","ifname":"eth0"}]);
        assert_eq!(
            count(json!({"cni.dev/attachments": one, "cni.dev/valid-attachments": one})),
            Some(1)
        );
        assert!(listed(&json!({"cni.dev/attachments": [{"containerID":"a"}]})).is_err());
        assert!(listed(&json!({"cni.dev/attachments": {}})).is_err());
    }
}
