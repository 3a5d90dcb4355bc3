//! A node's whole work on an older kernel: in the virtual machine, with the distribution's. The real
//! twilld on two nodes, the real twill with a pod on each that has a host port and limits, every
//! verb, and nothing left behind.

mod machine;

use anyhow::Result;
use machine::run;

/// `cni VERB NODE [MORE]` runs the plugin for the node's pod, with more keys in its config.
const PODS: &str = r#"
conf() {
    echo '{"cniVersion":"1.1.0","name":"cbr0","type":"twill","subnetFile":"/srv/'$1'/subnet.env",
        "dataDir":"/srv/'$1'/flannel","ipam":{"dataDir":"/srv/'$1'/networks"},"runtimeConfig":{
            "portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}],
            "bandwidth":{"ingressRate":80000000,"ingressBurst":800000,
                "egressRate":40000000,"egressBurst":800000}}'"${2-}"'}'
}
cni() {
    conf $2 "${3-}" | ip netns exec $2 env CNI_COMMAND=$1 CNI_CONTAINERID=of-$2 CNI_IFNAME=eth0 \
        CNI_NETNS=/run/netns/pod-$2 CNI_PATH=/opt/cni/bin /opt/cni/bin/twill
}
check() {
    cni CHECK $1 ",\"prevResult\":$(cat /srv/$1/result)"
}
# pod_address NODE PATTERN
pod_address() {
    grep -o '"address": *"[^"]*"' /srv/$1/result | cut -d '"' -f 4 | cut -d / -f 1 | grep "$2"
}
# between NODE OTHER PATTERN
between() {
    until_true "the pod of $1 reaches that of $2 ($3)" \
        "ip netns exec pod-$1 ping -c 1 -W 2 $(pod_address $2 "$3")"
}
# host_port FROM TARGET: what the pod behind right's port says
host_port() {
    until_true "$1 reaches the pod's port by $2" \
        "ip netns exec $1 socat -u TCP:$2:8080,connect-timeout=2 - | grep 'from the pod'"
}
start left
start right
until_true "both are ready" "test -e /srv/left/subnet.env -a -e /srv/right/subnet.env"
for side in left right; do
    ip netns add pod-$side
    cni STATUS $side
    cni ADD $side >/srv/$side/result
    check $side
done
for pattern in $PATTERNS; do
    between left right "$pattern"
    between right left "$pattern"
done

ip netns exec pod-right socat TCP-LISTEN:80,fork,reuseaddr SYSTEM:'echo from the pod' &
host_port left 192.168.50.2
host_port pod-left 192.168.50.2
host_port right 127.0.0.1
host_port pod-right 192.168.50.2
ip netns exec right tc qdisc show | grep 'tbf.*rate 80Mbit'
ip netns exec right tc qdisc show | grep 'tbf.*rate 40Mbit'

# What somebody took away is noticed.
ip netns exec right tc qdisc del dev $(grep -o 'veth[0-9a-f]*' /srv/right/result | head -n 1) root
if check right; then echo "the limit is not missed"; exit 1; fi

# Where the kernel carries the packets pods go on while nobody is there. What is there is taken over.
stop left
test $BACKEND = udp || between left right '\.'
start left
until_true "left is back" "grep 'in sync' /srv/left/log"
between left right '\.'

cni DEL right
cni DEL right
cni GC left ',"cni.dev/valid-attachments":[]'
for side in left right; do
    until_true "no pair is left on $side" "! ip -n $side -o link show type veth | grep -v 'eth0@'"
    if ip netns exec $side nft list ruleset | grep -E '8080|of-'; then echo "rules are left"; exit 1; fi
    if ip netns exec $side tc qdisc show | grep tbf; then echo "limits are left"; exit 1; fi
    if ls /srv/$side/networks/cbr0 | grep -E '^(10\.|fd)'; then echo "addresses are left"; exit 1; fi
    if ls /srv/$side/flannel | grep .; then echo "scratch files are left"; exit 1; fi
    if grep -iE 'panic' /srv/$side/log; then exit 1; fi
done
"#;

/// Both families where the backend has both.
fn nodes(backend: &str, dual: bool) -> Result<()> {
    let patterns = if dual { r"\\. :" } else { r"\\." };
    run(&format!(
        "net_conf {dual} '{{\"Type\":\"{backend}\"}}'\nBACKEND={backend}\nPATTERNS=\"{patterns}\"\n{PODS}"
    ))
}

#[test]
#[ignore = "boots a virtual machine: ./dev test-vm"]
fn vxlan_joins_pods_with_ports_and_limits_and_nothing_stays() -> Result<()> {
    nodes("vxlan", true)
}

#[test]
#[ignore = "boots a virtual machine: ./dev test-vm"]
fn host_gw_joins_pods_with_ports_and_limits_and_nothing_stays() -> Result<()> {
    nodes("host-gw", true)
}

#[test]
#[ignore = "boots a virtual machine: ./dev test-vm"]
fn udp_joins_pods_with_ports_and_limits_and_nothing_stays() -> Result<()> {
    nodes("udp", false)
}
