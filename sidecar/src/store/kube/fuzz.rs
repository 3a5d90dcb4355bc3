//! Fuzz targets for what the Kubernetes API and its operators say: a Node, a kubeconfig.

use super::access;
use super::annotations::Names;
use super::node::{Depth, Meaning, decode};

/// A Node in JSON.
pub(crate) fn node(bytes: &[u8]) {
    let names = Names::new("flannel.alpha.coreos.com").expect("flannel's own prefix");
    for depth in [Depth::Lease, Depth::Conditions] {
        match decode(bytes, &names, depth) {
            Err((_, reason)) => assert!(!reason.is_empty()),
            Ok(node) => {
                let _ = names.node_public_ips(&node.annotations);
                let _ = names.overwrites(&node.annotations);
                match node.meaning(&names) {
                    Meaning::Lease(subnets, lease) => {
                        assert_eq!(subnets.to_string().parse(), Ok(subnets));
                        crate::fuzz::lease(lease.render().as_bytes());
                    }
                    Meaning::Fault(reason) => assert!(!reason.is_empty()),
                    Meaning::Nothing => {}
                }
            }
        }
    }
}

/// A kubeconfig; the files that it names are not read.
pub(crate) fn kubeconfig(bytes: &[u8]) {
    let _ = access::kubeconfig_is_read(bytes);
}
