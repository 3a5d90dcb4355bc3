//! The store that Kubernetes clusters have anyway: a lease is what flannel's annotations on a Node
//! say, together with the podCIDRs that the cluster gave to that Node.
//!
//! ```text
//!  access ─▶ client ─▶ follow: list (pages) and watch ─▶ node ─▶ nodes ─▶ LeaseEvent
//!               └────▶ mod: acquire, renew, announce ─▶ annotations, publish ─▶ PATCH nodes/NAME/status
//! ```
//!
//! Nothing is allocated, nothing expires and nobody races here: the cluster gives the podCIDRs, and
//! each node writes on its own Node only. The configuration is a file, usually a ConfigMap.
//! What is asked of the API server is what flannel's ClusterRole grants, and no more.

mod access;
mod annotations;
mod client;
mod follow;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod identity;
mod migrate;
mod node;
mod nodes;
mod pages;
mod publish;

use std::cell::RefCell;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, OnceCell, mpsc};
use tokio::time::sleep;
use tracing::{info, warn};

pub use self::access::{AccessError, Source};
pub use self::annotations::PrefixError;
pub use self::identity::{Anonymous, Identity};

use self::annotations::Names;
use self::client::{Client, query_escaped};
use self::follow::Follower;
use self::node::{Depth, Meaning, Node, decode};
use crate::lease::Lease;
use crate::store::backoff::Backoff;
use crate::store::{Held, LeaseEvent, NodeFacts, Renewal, Store, StoreError};
use crate::subnet::Claim;
use crate::subnets::Subnets;

/// flannel's default for `--kube-annotation-prefix`.
pub const DEFAULT_PREFIX: &str = "flannel.alpha.coreos.com";

const NODES: &str = "/api/v1/nodes";
/// The waits between attempts at an API server that fails.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// Where the store is and who we are in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The API server.
    pub source: Source,
    /// Our Node.
    pub identity: Identity,
    /// What the annotations' names begin with.
    pub annotation_prefix: String,
    /// The file with the configuration.
    pub net_conf_path: PathBuf,
    /// How long to wait for what.
    pub patience: Patience,
}

/// How long to wait for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Between two pieces of an answer.
    pub piece: Duration,
    /// Until something must have come on a watch: the API server sends bookmarks every minute.
    pub watch: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            piece: Duration::from_secs(30),
            watch: Duration::from_secs(180),
        }
    }
}

/// The store.
#[derive(Debug, Clone)]
pub struct KubeStore {
    inner: Rc<Inner>,
}

#[derive(Debug)]
struct Inner {
    client: Client,
    names: Names,
    identity: Identity,
    own_name: OnceCell<Box<str>>,
    net_conf_path: PathBuf,
    patience: Patience,
    /// What we said last on our Node, so that it is known again when it is read.
    published: RefCell<Option<(Subnets, Lease)>>,
    /// Whether the cluster was told that the network is there.
    announced: RefCell<bool>,
    /// Rings when our Node is seen to have other podCIDRs than those of `published`.
    given_another: Notify,
}

fn backoff() -> Backoff {
    Backoff::between(RETRY.0, RETRY.1)
}

fn failed(op: String, error: impl std::fmt::Display) -> StoreError {
    let source = io::Error::other(error.to_string());
    StoreError::Io { op, source }
}

impl KubeStore {
    /// The store; nothing is asked of the API server yet.
    pub fn new(options: Options) -> Result<Self, PrefixError> {
        let own_name = match &options.identity {
            Identity::Node(name) => OnceCell::new_with(Some(name.as_str().into())),
            Identity::Pod { .. } => OnceCell::new(),
        };
        let inner = Inner {
            client: Client::new(options.source),
            names: Names::new(&options.annotation_prefix)?,
            identity: options.identity,
            own_name,
            net_conf_path: options.net_conf_path,
            patience: options.patience,
            published: RefCell::default(),
            announced: RefCell::default(),
            given_another: Notify::new(),
        };
        let inner = Rc::new(inner);
        Ok(Self { inner })
    }
}

impl Inner {
    /// Our Node's name, if it is known by now.
    fn own_name(&self) -> Option<Box<str>> {
        self.own_name.get().cloned()
    }

    /// What a Node means; our own means exactly what we published, if it says that.
    fn meaning(&self, node: &Node) -> Meaning {
        let own = self.own_name.get() == Some(&node.name);
        let published = self.published.borrow();
        if let (true, Some((subnets, lease))) = (own, &*published)
            && let Ok(given) = node.subnets()
        {
            if !subnets.is_within(&given) {
                self.given_another.notify_one();
                return node.meaning(&self.names);
            }
            let wanted = self.names.of_lease(lease, &self.overwrites(node));
            if publish::annotation_patch(&wanted, &node.annotations).is_none() {
                return Meaning::Lease(*subnets, lease.clone());
            }
        }
        node.meaning(&self.names)
    }

    fn overwrites(&self, node: &Node) -> crate::family::ByFamily<std::net::IpAddr> {
        self.names.overwrites(&node.annotations).unwrap_or_default()
    }

    async fn find_own_name(&self) -> Result<&str, StoreError> {
        let find = || async {
            let Identity::Pod { namespace, name } = &self.identity else {
                unreachable!("a name that is given is set from the start");
            };
            let path = format!(
                "/api/v1/namespaces/{}/pods/{}",
                query_escaped(namespace),
                query_escaped(name)
            );
            let op = || format!("find our node: get pod {namespace}/{name}");
            let json = self
                .client
                .get(&path)
                .await
                .map_err(|error| failed(op(), error))?;
            let pod: Pod = serde_json::from_slice(&json).map_err(|error| failed(op(), error))?;
            match pod.spec.node_name {
                Some(node) if !node.is_empty() => Ok(node),
                _ => Err(StoreError::Waiting(format!(
                    "pod {namespace}/{name} has no node yet"
                ))),
            }
        };
        self.own_name
            .get_or_try_init(find)
            .await
            .map(|name| &**name)
    }

    fn path(own_name: &str) -> String {
        format!("{NODES}/{}", query_escaped(own_name))
    }

    async fn own_node(&self) -> Result<Node, StoreError> {
        let name = self.find_own_name().await?;
        let op = || format!("get node {name} from {}", self.client.source());
        let json = match self.client.get(&Self::path(name)).await {
            Err(error) if error.is_not_found() => {
                return Err(StoreError::Ungiven(format!(
                    "there is no node {name} in the cluster yet: is its kubelet running, and is that its name there?"
                )));
            }
            json => json.map_err(|error| failed(op(), error))?,
        };
        decode(&json, &self.names, Depth::Conditions).map_err(|(_, reason)| failed(op(), reason))
    }

    async fn patch(&self, name: &str, patch: String) -> Result<Node, StoreError> {
        let op = || format!("patch the status of node {name}");
        let path = format!("{}/status", Self::path(name));
        let json = self
            .client
            .patch(&path, patch)
            .await
            .map_err(|error| failed(op(), error))?;
        decode(&json, &self.names, Depth::Conditions).map_err(|(_, reason)| failed(op(), reason))
    }

    /// The subnets that the claim gets on this Node.
    fn granted(&self, node: &Node, claim: &Claim) -> Result<Subnets, StoreError> {
        let name = &node.name;
        let given = node.subnets().map_err(|reason| {
            StoreError::Ungiven(format!(
                "node {name}: {reason}; kube-controller-manager gives podCIDRs with --allocate-node-cidrs and --cluster-cidr"
            ))
        })?;
        // A configuration that does not fit takes nothing away that the cluster has given.
        let previous = claim.previous;
        let still_ours = previous.is_some_and(|previous| previous.is_within(&given));
        let refused = match still_ours {
            true => StoreError::Waiting,
            false => StoreError::Ungiven,
        };
        let mut granted = Vec::new();
        for family in claim.ranges.families() {
            let network = claim.ranges.get(family).map(|range| range.network);
            let network = network.expect("a family of the ranges has a range");
            let Some(subnet) = given.get(family) else {
                return Err(refused(format!(
                    "node {name} has no {family} podCIDR (it has {}), and the net-conf wants one",
                    node.pod_cidrs.join(", ")
                )));
            };
            if !network.contains(&subnet) {
                return Err(refused(format!(
                    "podCIDR {subnet} of node {name} is outside the net-conf's network {network}: make Network what kube-controller-manager has as --cluster-cidr"
                )));
            }
            granted.push(subnet);
        }
        Subnets::new(granted)
            .ok_or_else(|| StoreError::Waiting("the net-conf enables no address family".to_owned()))
    }

    /// Makes the Node say what is claimed. Whether it said so already.
    async fn publish(
        &self,
        node: &Node,
        subnets: Subnets,
        lease: &Lease,
    ) -> Result<bool, StoreError> {
        let overwrites = self.names.overwrites(&node.annotations);
        if let Err(reason) = &overwrites {
            warn!(node = %node.name, reason, "an overwriting annotation cannot be used, our own address is published");
        }
        let wanted = self.names.of_lease(lease, &overwrites.unwrap_or_default());
        // Before the patch: the watch may tell of it sooner than the answer comes.
        *self.published.borrow_mut() = Some((subnets, lease.clone()));
        let Some(patch) = publish::annotation_patch(&wanted, &node.annotations) else {
            return Ok(true);
        };
        self.patch(&node.name, patch).await?;
        Ok(false)
    }

    async fn announce_once(&self) -> Result<(), StoreError> {
        let node = self.own_node().await?;
        let patch = publish::available_patch(node.network_unavailable.as_ref(), SystemTime::now());
        let patched = self.patch(&node.name, patch).await?;
        match publish::is_available(patched.network_unavailable.as_ref()) {
            true => Ok(()),
            false => Err(StoreError::Waiting(format!(
                "node {} still says NetworkUnavailable after it was told otherwise",
                node.name
            ))),
        }
    }
}

#[derive(serde::Deserialize)]
struct Pod {
    spec: PodSpec,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    node_name: Option<Box<str>>,
}

impl Store for KubeStore {
    fn describe(&self) -> String {
        format!("Kubernetes at {}", self.inner.client.source())
    }

    fn gives_subnets(&self) -> bool {
        true
    }

    fn config_advice(&self) -> String {
        format!(
            "write {} with, for example, {} (in a cluster: the ConfigMap kube-twill-cfg)",
            self.inner.net_conf_path.display(),
            r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#
        )
    }

    async fn config(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let path = &self.inner.net_conf_path;
        match std::fs::read(path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::Io {
                op: format!("read {}", path.display()),
                source,
            }),
        }
    }

    /// Never writes: the file is the cluster's.
    async fn init_config(&self, _config: &[u8]) -> Result<bool, StoreError> {
        Ok(false)
    }

    /// Publishes the lease for the podCIDRs that the Node has. While they are missing, or outside
    /// the network, the error says what is waited for, and nothing is published.
    async fn acquire(&self, claim: &Claim) -> Result<Held, StoreError> {
        let inner = &self.inner;
        let node = inner.own_node().await?;
        let subnets = inner.granted(&node, claim)?;
        inner.publish(&node, subnets, &claim.lease).await?;
        // Another lease after a first one: the Node was made anew and has forgotten that, too.
        let announced = *inner.announced.borrow();
        if announced && !publish::is_available(node.network_unavailable.as_ref()) {
            inner.announce_once().await?;
        }
        Ok(Held {
            subnets,
            expires: None,
            found: inner.names.is_managed(&node.annotations),
        })
    }

    async fn renew(&self, claim: &Claim) -> Result<Renewal, StoreError> {
        let inner = &self.inner;
        let node = inner.own_node().await?;
        let subnets = inner.granted(&node, claim)?;
        if let Some(previous) = claim.previous
            && previous != subnets
        {
            let holder = format!(
                "the cluster, which has given {subnets} to node {} instead",
                node.name
            );
            return Ok(Renewal::Lost { holder });
        }
        let same = inner.publish(&node, subnets, &claim.lease).await?;
        let announced = *inner.announced.borrow();
        // A Node that was deleted and made anew has forgotten that, too.
        if announced && !publish::is_available(node.network_unavailable.as_ref()) {
            inner.announce_once().await?;
        }
        let held = Held {
            subnets,
            expires: None,
            found: same,
        };
        Ok(match same {
            true => Renewal::Renewed(held),
            false => Renewal::TakenBack(held),
        })
    }

    async fn given_another(&self) {
        self.inner.given_another.notified().await;
    }

    async fn watch(self, events: mpsc::Sender<LeaseEvent>) {
        let mut backoff = backoff();
        // Our own Node is only known again by its name.
        while let Err(error) = self.inner.find_own_name().await {
            warn!(%error, "cannot read the lease store yet");
            tokio::select! {
                () = events.closed() => return,
                () = sleep(backoff.next()) => {}
            }
        }
        Follower::new(&self.inner, &events).run().await;
    }

    async fn facts(&self) -> Result<NodeFacts, StoreError> {
        let node = self.inner.own_node().await?;
        let names = &self.inner.names;
        let public_ips = names.node_public_ips(&node.annotations).map_err(|reason| {
            failed(
                format!("read the annotations of node {}", node.name),
                reason,
            )
        })?;
        let published = names
            .is_managed(&node.annotations)
            .then(|| names.lease(&node.annotations).ok())
            .flatten();
        Ok(NodeFacts {
            public_ips,
            published,
        })
    }

    /// Clears the Node's condition NetworkUnavailable, however long that takes.
    async fn announce(&self) {
        let mut backoff = backoff();
        let mut told = None;
        loop {
            match self.inner.announce_once().await {
                Ok(()) => break,
                Err(error) => {
                    let reason = error.to_string();
                    if told.as_ref() != Some(&reason) {
                        warn!(
                            reason,
                            "pods are kept off this node until the cluster knows that its network is there"
                        );
                        told = Some(reason);
                    }
                }
            }
            sleep(backoff.next()).await;
        }
        *self.inner.announced.borrow_mut() = true;
        info!(
            node = self.inner.own_name().as_deref(),
            "the cluster knows that this node's network is there"
        );
    }
}
