//! A Node object, of which only what is used is decoded: of some 13 kB a few hundred bytes.

use std::borrow::Cow;
use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::annotations::{Annotations, Names};
use crate::family::Family;
use crate::lease::Lease;
use crate::subnets::Subnets;

/// What is read of a Node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    /// Its name.
    pub(super) name: Box<str>,
    /// Its annotations under our prefix.
    pub(super) annotations: Annotations,
    /// `spec.podCIDRs`, or `spec.podCIDR` where that is all there is.
    pub(super) pod_cidrs: Vec<String>,
    /// The condition `NetworkUnavailable`.
    pub(super) network_unavailable: Option<Condition>,
}

/// A condition of a Node.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[derive(Default)]
pub(super) struct Condition {
    /// Its kind.
    pub(super) r#type: String,
    /// `True`, `False` or `Unknown`.
    pub(super) status: String,
    /// Since when, in RFC 3339.
    pub(super) last_transition_time: Option<String>,
    /// Why, in one word.
    pub(super) reason: String,
}

/// What a Node means to this store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Nobody who speaks flannel's language runs there.
    Nothing,
    /// A lease.
    Lease(Subnets, Lease),
    /// It should be a lease, and is none for this reason.
    Fault(String),
}

#[derive(Deserialize)]
struct Object<'a> {
    #[serde(borrow)]
    metadata: Metadata<'a>,
    #[serde(borrow, default)]
    spec: Spec<'a>,
    // Only decoded when asked for: the greater part of a Node.
    #[serde(borrow)]
    status: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Metadata<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow, default)]
    annotations: Option<BTreeMap<Cow<'a, str>, Cow<'a, str>>>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Spec<'a> {
    #[serde(borrow, rename = "podCIDR")]
    pod_cidr: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "podCIDRs")]
    pod_cidrs: Option<Vec<Cow<'a, str>>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Status {
    conditions: Option<Vec<Condition>>,
}

/// Only to name an object that does not decode.
#[derive(Deserialize)]
struct Named {
    metadata: NamedMetadata,
}

#[derive(Deserialize)]
struct NamedMetadata {
    name: Box<str>,
}

/// The `status` of a Node is decoded for our own alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    Lease,
    Conditions,
}

/// Decodes a Node. An error has its name, if that much can be read.
pub(super) fn decode(
    json: &[u8],
    names: &Names,
    depth: Depth,
) -> Result<Node, (Option<Box<str>>, String)> {
    let whole = || -> serde_json::Result<Node> {
        let object: Object<'_> = serde_json::from_slice(json)?;
        let annotations = object.metadata.annotations.unwrap_or_default().into_iter();
        let pod_cidrs = object.spec.pod_cidrs.unwrap_or_default();
        let pod_cidr = object.spec.pod_cidr.filter(|cidr| !cidr.is_empty());
        let pod_cidrs = match pod_cidrs.is_empty() {
            true => pod_cidr.into_iter().collect(),
            false => pod_cidrs,
        };
        let status: Status = match (object.status, depth) {
            (Some(status), Depth::Conditions) => serde_json::from_str(status.get())?,
            _ => Status::default(),
        };
        let mut conditions = status.conditions.unwrap_or_default().into_iter();
        Ok(Node {
            name: object.metadata.name.into(),
            annotations: annotations
                .filter(|(name, _)| names.is_ours(name))
                .map(|(name, value)| (name.into_owned(), value.into_owned()))
                .collect(),
            pod_cidrs: pod_cidrs.into_iter().map(Cow::into_owned).collect(),
            network_unavailable: conditions.find(|c| c.r#type == "NetworkUnavailable"),
        })
    };
    whole().map_err(|error| {
        let named: Option<Named> = serde_json::from_slice(json).ok();
        (named.map(|named| named.metadata.name), error.to_string())
    })
}

impl Node {
    /// The subnets that the cluster has given to this node; an error says what is in the way.
    pub(super) fn subnets(&self) -> Result<Subnets, String> {
        if self.pod_cidrs.is_empty() {
            return Err("it has no podCIDR yet".to_owned());
        }
        let nets = self.pod_cidrs.iter().map(|text| {
            let net: Result<IpNet, _> = text.parse();
            net.map_err(|_| format!("its podCIDR {text:?} is not a network"))
        });
        let nets = nets.collect::<Result<Vec<_>, _>>()?;
        let of = |family| {
            nets.iter()
                .filter(|net| Family::of(net.addr()) == family)
                .count()
        };
        if Family::ALL.into_iter().any(|family| of(family) > 1) {
            let all = self.pod_cidrs.join(", ");
            return Err(format!("it has more than one podCIDR of a family: {all}"));
        }
        let subnets = Subnets::new(nets).ok_or("it has no podCIDR yet")?;
        let key: Result<Subnets, _> = subnets.to_string().parse();
        key.map_err(|error| format!("its podCIDR {}: {error}", self.pod_cidrs.join(", ")))
    }

    /// What the Node means. A lease is about the families for which the node has both a podCIDR
    /// and a public address: a v4-only daemon may run where podCIDRs of both are given.
    pub(super) fn meaning(&self, names: &Names) -> Meaning {
        if !names.is_managed(&self.annotations) {
            return Meaning::Nothing;
        }
        let lease = || -> Result<(Subnets, Lease), String> {
            let lease = names.lease(&self.annotations)?;
            let given = self.subnets()?;
            let usable = given
                .iter()
                .filter(|(family, _)| lease.public_ips.get(*family).is_some());
            let usable = Subnets::new(usable.map(|(_, net)| net));
            let without = || format!("it has no public address for {}", self.pod_cidrs.join(", "));
            Ok((usable.ok_or_else(without)?, lease))
        };
        match lease() {
            Ok((subnets, lease)) => Meaning::Lease(subnets, lease),
            Err(reason) => Meaning::Fault(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn names() -> Names {
        Names::new("flannel.alpha.coreos.com").unwrap()
    }

    fn object(spec: Value, annotations: &[(&str, &str)]) -> Value {
        let annotations: BTreeMap<String, &str> = annotations
            .iter()
            .map(|(suffix, value)| (format!("flannel.alpha.coreos.com/{suffix}"), *value))
            .collect();
        json!({"metadata": {"name": "k2", "annotations": annotations}, "spec": spec})
    }

    fn meaning(spec: Value, annotations: &[(&str, &str)]) -> Meaning {
        let json = object(spec, annotations).to_string();
        decode(json.as_bytes(), &names(), Depth::Lease)
            .unwrap()
            .meaning(&names())
    }

    const MANAGED: (&str, &str) = ("kube-subnet-manager", "true");

    #[test]
    fn a_lease_is_about_the_families_with_a_subnet_and_an_address() {
        let dual = json!({"podCIDR": "10.1.2.0/24", "podCIDRs": ["10.1.2.0/24", "fd00:2::/64"]});
        let v4 = ("public-ip", "192.168.50.2");
        let v6 = ("public-ipv6", "fd00:50::2");
        for (spec, annotations, key) in [
            (dual.clone(), vec![v4, v6], "10.1.2.0-24&fd00:2::-64"),
            (dual.clone(), vec![v4], "10.1.2.0-24"),
            (
                dual,
                vec![("public-ip", "0.0.0.0"), v6],
                "0.0.0.0-0&fd00:2::-64",
            ),
            (
                json!({"podCIDR": "10.1.2.0/24"}),
                vec![v4, v6],
                "10.1.2.0-24",
            ),
            (
                json!({"podCIDR": "10.1.2.9/24", "podCIDRs": null}),
                vec![v4],
                "10.1.2.0-24",
            ),
        ] {
            let annotations: Vec<_> = annotations.into_iter().chain([MANAGED]).collect();
            let Meaning::Lease(subnets, _) = meaning(spec, &annotations) else {
                panic!("{key} is no lease");
            };
            assert_eq!(subnets.to_string(), key);
        }
    }

    #[test]
    fn a_node_that_cannot_be_a_peer_says_why() {
        let ip = ("public-ip", "192.168.50.2");
        let one = json!({"podCIDR": "10.1.2.0/24"});
        for (spec, annotations, word) in [
            (json!({}), vec![MANAGED, ip], "no podCIDR yet"),
            (json!({"podCIDR": ""}), vec![MANAGED, ip], "no podCIDR yet"),
            (
                json!({"podCIDRs": ["10.1.2.0/24", "10.1.3.0/24"]}),
                vec![MANAGED, ip],
                "more than one",
            ),
            (
                json!({"podCIDRs": ["10.1.2.0/24", "fd00::/64", "fd01::/64"]}),
                vec![MANAGED, ip],
                "more than one",
            ),
            (
                json!({"podCIDR": "ten"}),
                vec![MANAGED, ip],
                "not a network",
            ),
            (
                json!({"podCIDR": "10.1.2.3/32"}),
                vec![MANAGED, ip],
                "prefix length",
            ),
            (
                one.clone(),
                vec![MANAGED, ("public-ip", "")],
                "no public address",
            ),
            (one.clone(), vec![MANAGED], "no public address"),
            (
                one.clone(),
                vec![MANAGED, ip, ("backend-data", "{")],
                "backend-data",
            ),
        ] {
            let Meaning::Fault(reason) = meaning(spec.clone(), &annotations) else {
                panic!("{spec} {annotations:?} is no fault");
            };
            assert!(reason.contains(word), "{reason}");
        }
        assert_eq!(meaning(one.clone(), &[ip]), Meaning::Nothing);
        assert_eq!(
            meaning(one, &[ip, ("kube-subnet-manager", "false")]),
            Meaning::Nothing
        );
    }

    #[test]
    fn an_object_of_the_wrong_shape_is_named_if_it_has_a_name() {
        let bad = json!({"metadata": {"name": "k9", "annotations": {"a": 1}}}).to_string();
        let (name, reason) = decode(bad.as_bytes(), &names(), Depth::Lease).unwrap_err();
        assert_eq!(name.as_deref(), Some("k9"));
        assert!(reason.contains("string"), "{reason}");
        let (name, _) = decode(b"{\"metadata\":7}", &names(), Depth::Lease).unwrap_err();
        assert_eq!(name, None);
    }

    #[test]
    fn conditions_are_read_when_they_are_asked_for() {
        let json = json!({"metadata": {"name": "k1"}, "status": {"conditions": [
            {"type": "Ready", "status": "True"},
            {"type": "NetworkUnavailable", "status": "True", "reason": "NodeInitialization",
             "lastTransitionTime": "2026-01-01T00:00:00Z"},
        ]}})
        .to_string();
        let read = |depth| {
            decode(json.as_bytes(), &names(), depth)
                .unwrap()
                .network_unavailable
        };
        assert_eq!(read(Depth::Lease), None);
        assert_eq!(read(Depth::Conditions).unwrap().status, "True");
    }
}
