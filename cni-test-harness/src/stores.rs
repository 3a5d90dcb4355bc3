//! A cluster on any of the lease stores, and the hand that writes into the store from outside: for
//! tests that run unchanged on all of them.
//!
//! An entry has flannel's name and value (`10.5.20.0-24`, the lease as JSON) everywhere; in
//! Kubernetes it becomes a Node with these podCIDRs and with annotations that say the same.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::cluster::{Cluster, Spec};
use crate::etcd::{self, Etcd};
use crate::kubernetes::{self, ApiServer, Programs, node};
use crate::netns;
use crate::tools::Missing;

const PREFIX: &str = "/coreos.com/network";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// What one command line takes.
const LINE: usize = 10_000;

/// Which store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// twilld's own folder.
    Folder,
    /// etcd.
    Etcd,
    /// Nodes of Kubernetes.
    Kubernetes,
}

impl Kind {
    /// Whether this machine has what it takes.
    pub fn installed(self) -> Result<(), Missing> {
        match self {
            Self::Folder => Ok(()),
            Self::Etcd => etcd::installed(),
            Self::Kubernetes => Programs::find().map(|_| ()),
        }
    }
}

/// What became of an entry that was put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Put {
    /// It is in the store, and what is wrong with it is told with one of these names.
    Entered([String; 2]),
    /// The store itself does not take such a thing, for this reason.
    Refused(String),
}

/// Nodes without daemons that are told of a store, and the store.
pub struct Stored {
    /// The nodes.
    pub cluster: Cluster,
    hand: Hand,
}

enum Hand {
    Folder(PathBuf),
    Etcd(Box<Etcd>),
    Kubernetes(Box<ApiServer>, PathBuf),
}

impl Stored {
    /// The nodes, and the store with the net-conf of `spec`.
    pub fn lay_out(kind: Kind, label: &str, spec: &Spec) -> Result<Self> {
        let name = netns::unique_name(label);
        let dir = std::env::temp_dir().join(&name);
        let stored = match kind {
            Kind::Folder => {
                let cluster = Cluster::lay_out(spec, &name, &dir)?;
                let hand = Hand::Folder(cluster.store_dir());
                fs::create_dir_all(cluster.store_dir().join("subnets"))?;
                Self { cluster, hand }
            }
            Kind::Etcd => {
                let (etcd, cluster) = Etcd::with_cluster(label, spec, PREFIX)?;
                let hand = Hand::Etcd(Box::new(etcd));
                Self { cluster, hand }
            }
            Kind::Kubernetes => {
                let cluster = Cluster::lay_out(spec, &name, &dir)?;
                Self::on_kubernetes(cluster, dir.join("net-conf.json"))?
            }
        };
        stored.write_config(&spec.net_conf.to_string())?;
        Ok(stored)
    }

    /// Node `kN` has the podCIDR 10.244.N.0/24.
    fn on_kubernetes(mut cluster: Cluster, net_conf: PathBuf) -> Result<Self> {
        let programs = Programs::find()?;
        let gateway = cluster.member(0).place().v4_gateway;
        let server = kubernetes::Setup::default()
            .inside(cluster.underlay().middle(), gateway)
            .start(&programs)?;
        let args = [
            "--kube-subnet-mgr".to_owned(),
            format!("--kubeconfig-file={}", server.admin_kubeconfig().display()),
            format!("--net-config-path={}", net_conf.display()),
        ];
        for index in 0..cluster.members().len() {
            let (name, cidr) = (
                format!("k{}", index + 1),
                format!("10.244.{}.0/24", index + 1),
            );
            server.create(&[node::node(&name, &[&cidr], &[])])?;
            let member = cluster.member_mut(index);
            member.add_twilld_args(&args);
            member.set_env("NODE_NAME", &name);
        }
        let hand = Hand::Kubernetes(Box::new(server), net_conf);
        Ok(Self { cluster, hand })
    }

    /// Writes the configuration, over what is there.
    pub fn write_config(&self, text: &str) -> Result<()> {
        match &self.hand {
            Hand::Folder(dir) => replace(&dir.join("config"), text, None),
            Hand::Etcd(etcd) => etcd.put(&format!("{PREFIX}/config"), text, None),
            Hand::Kubernetes(_, path) => replace(path, text, None),
        }
    }

    /// Puts an entry for a day, as another node would; it must not be there.
    pub fn put(&self, name: &str, value: &str) -> Result<Put> {
        let entered = Put::Entered([name.to_owned(), format!("node {}", node_name(name))]);
        match &self.hand {
            Hand::Folder(dir) => {
                let path = dir.join("subnets").join(name);
                replace(&path, value, Some(SystemTime::now() + DAY))?;
            }
            Hand::Etcd(etcd) => {
                let key = format!("{PREFIX}/subnets/{name}");
                match value.len() {
                    0..LINE => etcd.put(&key, value, Some(DAY.as_secs()))?,
                    _ => etcd.put_large(&key, value)?,
                }
            }
            Hand::Kubernetes(server, _) => {
                if let Err(refusal) = server.create(&[peer(name, value)]) {
                    let reason = format!("{refusal:#}");
                    ensure!(reason.contains("nvalid"), "put {name}: {reason}");
                    return Ok(Put::Refused(reason));
                }
            }
        }
        Ok(entered)
    }

    /// The entries of a store in which nodes take subnets for themselves: values by name.
    pub fn entries(&self) -> Result<BTreeMap<String, String>> {
        match &self.hand {
            Hand::Folder(dir) => {
                let mut entries = BTreeMap::new();
                for entry in fs::read_dir(dir.join("subnets"))? {
                    let path = entry?.path();
                    let name = path.file_name().unwrap_or_default().to_string_lossy();
                    // What begins with a dot is still being written.
                    if !name.starts_with('.') {
                        entries.insert(name.into_owned(), fs::read_to_string(&path)?);
                    }
                }
                Ok(entries)
            }
            Hand::Etcd(etcd) => etcd.values(&format!("{PREFIX}/subnets/")),
            Hand::Kubernetes(..) => bail!("Nodes are given their subnets"),
        }
    }

    /// Deletes an entry that was put.
    pub fn delete(&self, name: &str) -> Result<()> {
        match &self.hand {
            Hand::Folder(dir) => Ok(fs::remove_file(dir.join("subnets").join(name))?),
            Hand::Etcd(etcd) => etcd.delete_all(&[format!("{PREFIX}/subnets/{name}")]),
            Hand::Kubernetes(server, _) => {
                let delete = ["delete", "node", &node_name(name)];
                server.kubectl(&delete, b"").map(drop)
            }
        }
    }

    /// The store cannot be reached, or read, any more.
    pub fn take_away(&mut self) -> Result<()> {
        match &mut self.hand {
            Hand::Folder(dir) => {
                fs::rename(dir.join("subnets"), dir.join("aside"))?;
                fs::write(dir.join("subnets"), "")?;
            }
            Hand::Etcd(etcd) => etcd.kill_all(),
            Hand::Kubernetes(server, _) => server.kill_all(),
        }
        Ok(())
    }

    /// It can be reached again, with what it had.
    pub fn bring_back(&mut self) -> Result<()> {
        match &mut self.hand {
            Hand::Folder(dir) => {
                fs::remove_file(dir.join("subnets"))?;
                Ok(fs::rename(dir.join("aside"), dir.join("subnets"))?)
            }
            Hand::Etcd(etcd) => etcd.start_all(),
            Hand::Kubernetes(server, _) => server.restart(),
        }
    }
}

/// Writes a file whole, so that nobody reads a part; `expires` becomes its mtime.
fn replace(path: &std::path::Path, text: &str, expires: Option<SystemTime>) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.new"));
    fs::write(&temporary, text).with_context(|| format!("write {}", temporary.display()))?;
    if let Some(expires) = expires {
        let file = File::options().write(true).open(&temporary)?;
        file.set_modified(expires)?;
    }
    fs::rename(&temporary, path).with_context(|| format!("write {}", path.display()))
}

fn node_name(entry: &str) -> String {
    format!("peer-{}", entry.replace(['.', '&', ':'], "-"))
}

/// A Node that says what the entry says, as far as a Node can.
fn peer(entry: &str, value: &str) -> Value {
    let cidrs: Vec<String> = entry
        .split('&')
        .map(|cidr| cidr.replace('-', "/"))
        .collect();
    let cidrs: Vec<&str> = cidrs.iter().map(String::as_str).collect();
    let lease: Option<Value> = serde_json::from_str(value).ok();
    let text = |key: &str| lease.as_ref().and_then(|lease| lease[key].as_str());
    let data = |key: &str| lease.as_ref().map(|lease| lease[key].to_string());
    let (data, data_v6) = (data("BackendData"), data("BackendV6Data"));
    // What cannot be taken apart stands where the backend's words do.
    let data = data.as_deref().unwrap_or(value);
    let data_v6 = data_v6.as_deref().filter(|data| *data != "null");
    let annotations = [
        ("kube-subnet-manager", Some("true")),
        ("backend-type", text("BackendType").or(Some("vxlan"))),
        ("backend-data", Some(data)),
        ("backend-v6-data", data_v6),
        ("public-ip", text("PublicIP")),
        ("public-ipv6", text("PublicIPv6")),
    ];
    let annotations = annotations
        .into_iter()
        .filter_map(|(suffix, value)| Some((suffix, value?)));
    node::node(&node_name(entry), &cidrs, &annotations.collect::<Vec<_>>())
}
