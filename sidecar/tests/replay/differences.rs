//! Where twilld differs from flanneld on purpose, line by line.

/// Which side has a line that the other has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Only {
    Flanneld,
    Twilld,
}

/// Where twilld differs on purpose: case, side, part of the line, reason.
pub(crate) const DIFFERENCES: &[(&str, Only, &str, &str)] = &[
    (
        "bad-leases",
        Only::Flanneld,
        "10.5.46.0",
        "the key is beside the folder of leases, not in it",
    ),
    ("bad-leases", Only::Flanneld, ":46 dev", "the same"),
    (
        "bad-leases",
        Only::Flanneld,
        "10.5.48.0",
        "a lease without a public address leads nowhere",
    ),
    ("bad-leases", Only::Flanneld, ":48 dev", "the same"),
    (
        "bad-leases",
        Only::Flanneld,
        "10.9.45.0",
        "a subnet outside the network is not the cluster's",
    ),
    ("bad-leases", Only::Flanneld, ":45 dev", "the same"),
    (
        "bad-leases",
        Only::Flanneld,
        "10.5.35.0",
        "a value without a VNI is not flanneld's: it is named, and left out but among Nodes",
    ),
    ("bad-leases", Only::Flanneld, ":35 dev", "the same"),
    (
        "bad-leases",
        Only::Flanneld,
        "10.5.36.0",
        "a peer with another VNI drops what is sent to it",
    ),
    ("bad-leases", Only::Flanneld, ":36 dev", "the same"),
    ("config-key-case", Only::Flanneld, "10.5.30.0", "the same"),
    ("config-key-case", Only::Flanneld, ":30 dev", "the same"),
    (
        "bad-lease-dual-on-v4-node",
        Only::Twilld,
        "10.5.33.0",
        "flanneld's event loop died of the dual-stack key before this peer came",
    ),
    (
        "bad-lease-dual-on-v4-node",
        Only::Twilld,
        ":33 dev",
        "the same",
    ),
    (
        "bad-lease-live",
        Only::Twilld,
        "10.5.30.0",
        "one bad value takes no peer away: tests/flanneld_live.rs replays the steps",
    ),
    ("bad-lease-live", Only::Twilld, ":30 dev", "the same"),
    ("bad-lease-live", Only::Twilld, "10.5.31.0", "the same"),
    ("bad-lease-live", Only::Twilld, ":31 dev", "the same"),
    (
        "bad-lease-dual-without-v6-data",
        Only::Twilld,
        "10.5.29.0",
        "one half without data does not cost the other",
    ),
    (
        "bad-lease-dual-without-v6-data",
        Only::Twilld,
        ":29 dev",
        "the same",
    ),
    (
        "peer-changed-live",
        Only::Flanneld,
        "02:00:00:00:00:30",
        "flanneld leaves a changed peer's old forwarding entry behind",
    ),
    (
        "restart-stale-peer",
        Only::Flanneld,
        "10.5.30.0",
        "flanneld leaves what went while it was down",
    ),
    ("restart-stale-peer", Only::Flanneld, ":30 dev", "the same"),
    (
        "vxlan-directrouting",
        Only::Flanneld,
        "via 192.168.50.30 dev eth0 proto 3",
        "a direct route carries our number, by which a restart recognises it",
    ),
    (
        "vxlan-directrouting",
        Only::Twilld,
        "via 192.168.50.30 dev eth0 proto 116",
        "the same",
    ),
    (
        "vxlan-directrouting-dual",
        Only::Flanneld,
        "dev eth0 proto 3",
        "the same",
    ),
    (
        "vxlan-directrouting-dual",
        Only::Twilld,
        "dev eth0 proto 116",
        "the same",
    ),
    ("host-gw", Only::Flanneld, "dev eth0 proto 3", "the same"),
    ("host-gw", Only::Twilld, "dev eth0 proto 116", "the same"),
    (
        "host-gw-dual",
        Only::Flanneld,
        "dev eth0 proto 3",
        "the same",
    ),
    (
        "host-gw-dual",
        Only::Twilld,
        "dev eth0 proto 116",
        "the same",
    ),
    (
        "vxlan-public-ip-flag",
        Only::Flanneld,
        "local 203.0.113.9",
        "a tunnel starts from the interface's own address, also behind NAT",
    ),
    (
        "vxlan-public-ip-flag",
        Only::Twilld,
        "local 192.168.50.1",
        "the same",
    ),
    (
        "vxlan-dual",
        Only::Flanneld,
        "FLANNEL_MTU=1450",
        "an IPv6 tunnel takes 70 bytes",
    ),
    ("vxlan-dual", Only::Twilld, "FLANNEL_MTU=1430", "the same"),
    (
        "vxlan-directrouting-dual",
        Only::Flanneld,
        "FLANNEL_MTU=1450",
        "the same",
    ),
    (
        "vxlan-directrouting-dual",
        Only::Twilld,
        "FLANNEL_MTU=1430",
        "the same",
    ),
    (
        "vxlan-ipv6-only",
        Only::Flanneld,
        "FLANNEL_MTU=1450",
        "the same",
    ),
    (
        "vxlan-ipv6-only",
        Only::Twilld,
        "FLANNEL_MTU=1430",
        "the same",
    ),
    (
        "bad-lease-dual-without-v6-data",
        Only::Flanneld,
        "FLANNEL_MTU=1450",
        "the same",
    ),
    (
        "bad-lease-dual-without-v6-data",
        Only::Twilld,
        "FLANNEL_MTU=1430",
        "the same",
    ),
];
