//! A cluster whose daemons keep their leases in an etcd, which is where their default gateway is.

use anyhow::Result;

use super::{Etcd, Setup};
use crate::cluster::{Cluster, Spec};
use crate::netns;

impl Etcd {
    /// One member and a cluster that is told of it; no daemon runs yet, and the configuration is
    /// only in the cluster's folder, which stays unused.
    pub fn with_cluster(label: &str, spec: &Spec, prefix: &str) -> Result<(Self, Cluster)> {
        let name = netns::unique_name(label);
        let mut cluster = Cluster::lay_out(spec, &name, &std::env::temp_dir().join(&name))?;
        let address = cluster.member(0).place().v4_gateway.into();
        let etcd = Setup::default()
            .inside(cluster.underlay().middle(), address)
            .start()?;
        let flags = etcd.flags(prefix);
        for index in 0..cluster.members().len() {
            cluster.member_mut(index).add_twilld_args(&flags);
        }
        Ok((etcd, cluster))
    }

    /// The flags that twilld and flanneld find it by.
    pub fn flags(&self, prefix: &str) -> Vec<String> {
        vec![
            format!("--etcd-endpoints={}", self.endpoints()),
            format!("--etcd-prefix={prefix}"),
        ]
    }
}
