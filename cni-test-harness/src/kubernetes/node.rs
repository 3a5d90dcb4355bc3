//! Node objects as a kubelet and its cloud would have made them, small or life-size.

use std::net::Ipv4Addr;

use serde_json::{Map, Value, json};

/// A Node with these podCIDRs, and annotations under flannel's prefix.
pub fn node(name: &str, pod_cidrs: &[&str], annotations: &[(&str, &str)]) -> Value {
    let annotations = annotations
        .iter()
        .map(|(suffix, value)| (format!("flannel.alpha.coreos.com/{suffix}"), json!(value)));
    // A kubelet always sets this one.
    let usual = "volumes.kubernetes.io/controller-managed-attach-detach".to_owned();
    let annotations: Map<String, Value> = annotations.chain([(usual, json!("true"))]).collect();
    let mut spec = json!({});
    if let Some(first) = pod_cidrs.first() {
        spec = json!({"podCIDR": first, "podCIDRs": pod_cidrs});
    }
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "annotations": annotations},
        "spec": spec,
    })
}

/// A Node on which somebody speaks flannel's language: peer number `n` of up to 65,000, with vxlan.
pub fn peer(n: u16) -> Value {
    let [high, low] = n.to_be_bytes();
    let data = format!(r#"{{"VNI":1,"VtepMAC":"02:00:00:00:{high:02x}:{low:02x}"}}"#);
    let ip = Ipv4Addr::new(172, 30, high, low).to_string();
    node(
        &format!("peer-{n:05}"),
        &[&format!("10.{high}.{low}.0/24")],
        &[
            ("backend-data", &data),
            ("backend-type", "vxlan"),
            ("kube-subnet-manager", "true"),
            ("public-ip", &ip),
        ],
    )
}

/// The same Node, life-size: with the labels, images and conditions of a busy node in a cloud it
/// has about 13 kB.
pub fn life_size(mut node: Value) -> Value {
    let name = node["metadata"]["name"]
        .as_str()
        .unwrap_or("node")
        .to_owned();
    let labels: Map<String, Value> = (0..20)
        .map(|n| {
            (
                format!("topology.example.org/label-{n:02}"),
                json!(format!("value-of-{name}-{n}")),
            )
        })
        .collect();
    node["metadata"]["labels"] = Value::Object(labels);
    let images: Vec<Value> = (0..50)
        .map(|n| {
            let repository = format!("registry.example.org/team-{n:02}/service-{n:02}");
            let digest = format!("{:064x}", u128::from(n as u16) * 0x9e37_79b9_7f4a_7c15);
            json!({
                "names": [format!("{repository}@sha256:{digest}"), format!("{repository}:v1.{n}.0")],
                "sizeBytes": 10_000_000 + n,
            })
        })
        .collect();
    let condition = |kind: &str, status: &str, reason: &str| {
        json!({
            "type": kind, "status": status, "reason": reason,
            "message": format!("kubelet of {name} has nothing to complain about"),
            "lastHeartbeatTime": "2026-11-21T10:00:00Z",
            "lastTransitionTime": "2026-11-01T10:00:00Z",
        })
    };
    node["status"] = json!({
        "addresses": [
            {"type": "InternalIP", "address": "172.30.0.1"},
            {"type": "Hostname", "address": name},
        ],
        "allocatable": {"cpu": "16", "memory": "64Gi", "pods": "110", "ephemeral-storage": "100Gi"},
        "capacity": {"cpu": "16", "memory": "64Gi", "pods": "110", "ephemeral-storage": "100Gi"},
        "conditions": [
            condition("MemoryPressure", "False", "KubeletHasSufficientMemory"),
            condition("DiskPressure", "False", "KubeletHasNoDiskPressure"),
            condition("PIDPressure", "False", "KubeletHasSufficientPID"),
            condition("Ready", "True", "KubeletReady"),
        ],
        "images": images,
        "nodeInfo": {
            "architecture": "amd64", "bootID": "b", "containerRuntimeVersion": "containerd://2.1.0",
            "kernelVersion": "6.1.0", "kubeProxyVersion": "", "kubeletVersion": "v1.34.4",
            "machineID": "m", "operatingSystem": "linux", "osImage": "Debian", "systemUUID": "u",
        },
    });
    node
}
