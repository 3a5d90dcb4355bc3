//! The names of all flags: those that exist, those of flanneld's that are not built yet, and those
//! that change nothing any more.

/// One flag: its name, what value it takes (none: a bool), and a line of help.
pub(super) struct Spec {
    pub(super) name: &'static str,
    pub(super) takes: Option<&'static str>,
    pub(super) help: &'static str,
}

const fn flag(name: &'static str, takes: Option<&'static str>, help: &'static str) -> Spec {
    Spec { name, takes, help }
}

pub(super) const FLAGS: &[Spec] = &[
    flag(
        "iface",
        Some("NAME|IP"),
        "the interface to reach other nodes by; repeatable, the first that is there is taken",
    ),
    flag(
        "iface-regex",
        Some("REGEX"),
        "the same by a pattern for its addresses, then its name; repeatable",
    ),
    flag(
        "iface-can-reach",
        Some("IP"),
        "the same by the route to this address",
    ),
    flag(
        "public-ip",
        Some("IP"),
        "the IPv4 address that other nodes are told",
    ),
    flag(
        "public-ipv6",
        Some("IP"),
        "the IPv6 address that other nodes are told",
    ),
    flag(
        "subnet-file",
        Some("PATH"),
        "where to write subnet.env (default /run/flannel/subnet.env)",
    ),
    flag(
        "subnet-lease-renew-margin",
        Some("MINUTES"),
        "how long before its end the lease is renewed, 1 to 1439 (default 60)",
    ),
    flag(
        "ip-masq",
        None,
        "masquerade traffic from pods to outside the network",
    ),
    flag(
        "ip-masq-fully-random-disable",
        None,
        "let the kernel choose source ports when masquerading",
    ),
    flag(
        "iptables-forward-rules",
        None,
        "accept forwarded traffic of pods (default true)",
    ),
    flag(
        "iptables-resync",
        Some("SECONDS"),
        "accepted for flanneld's sake: rules are repaired when they change",
    ),
    flag(
        "healthz-ip",
        Some("IP"),
        "where to serve /healthz and /readyz (default 0.0.0.0)",
    ),
    flag(
        "healthz-port",
        Some("PORT"),
        "the port for them (default 0: not served)",
    ),
    flag(
        "v",
        Some("LEVEL"),
        "how much to log: 0 changes of state, 2 every operation (default 0)",
    ),
    flag("version", None, "print the version and exit"),
    flag(
        "kube-subnet-mgr",
        None,
        "keep the leases in Kubernetes: podCIDRs and annotations of its Nodes",
    ),
    flag(
        "kube-api-url",
        Some("URL"),
        "the API server, instead of the kubeconfig's or the pod's own",
    ),
    flag(
        "kube-annotation-prefix",
        Some("PREFIX"),
        "what the annotations' names begin with (default flannel.alpha.coreos.com)",
    ),
    flag(
        "kubeconfig-file",
        Some("PATH"),
        "how to reach the API server from outside the cluster",
    ),
    flag(
        "net-config-path",
        Some("PATH"),
        "the configuration, with Kubernetes (default /etc/kube-flannel/net-conf.json)",
    ),
    flag(
        "set-node-network-unavailable",
        None,
        "tell Kubernetes when the node's network is there (default true)",
    ),
    flag(
        "etcd-endpoints",
        Some("URL,URL"),
        "keep the leases in etcd (default http://127.0.0.1:4001,http://127.0.0.1:2379)",
    ),
    flag(
        "etcd-prefix",
        Some("PREFIX"),
        "what the keys in etcd begin with (default /coreos.com/network)",
    ),
    flag("etcd-keyfile", Some("PATH"), "the key of --etcd-certfile"),
    flag(
        "etcd-certfile",
        Some("PATH"),
        "our certificate, for an etcd that asks for one",
    ),
    flag(
        "etcd-cafile",
        Some("PATH"),
        "who vouches for etcd (default: the system's authorities)",
    ),
    flag("etcd-username", Some("NAME"), "our user in etcd"),
    flag(
        "etcd-password",
        Some("PASSWORD"),
        "its password; in FLANNELD_ETCD_PASSWORD other users of the machine cannot see it",
    ),
    flag(
        "store-dir",
        Some("DIR"),
        "the folder that holds the cluster's leases (default /var/lib/twill/store)",
    ),
    flag(
        "store-resync",
        Some("DURATION"),
        "how often it is looked for what other machines changed in that folder (default 30s)",
    ),
    flag(
        "state-dir",
        Some("DIR"),
        "what this node remembers: its subnets and MAC addresses (default /var/lib/twill)",
    ),
    flag(
        "network",
        Some("CIDR"),
        "write a net-conf with this network and backend vxlan if there is none",
    ),
    flag(
        "lease-ttl",
        Some("DURATION"),
        "how long a lease lives from its last renewal (default 24h)",
    ),
    flag(
        "on-lease-loss",
        Some("keep|exit|renumber"),
        "when somebody else takes our lease: keep the pods' network and say so, end with code 1, or take another subnet (default keep; in Kubernetes, where the cluster gives the subnets, renumber)",
    ),
];

/// flanneld's flags that mean something and are not built: ignoring them would run another network
/// than the one that was asked for.
pub(super) const NOT_BUILT: &[&str] = &["ip-blackhole-route"];

/// Flags of old manifests and of flanneld's logging, which change nothing here.
pub(super) const IGNORED: &[(&str, bool)] = &[
    ("vmodule", true),
    ("log_backtrace_at", true),
    ("auto-detect-ipv4", false),
    ("auto-detect-ipv6", false),
    ("use-multi-cluster-cidr", false),
    ("charon-executable-path", true),
    ("charon-vici-uri", true),
    ("subnet-dir", true),
];
