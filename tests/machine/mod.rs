//! Two nodes in a virtual machine with the distribution's kernel: namespaces with a wire between them,
//! and the words for what is done there (`start left`, `until_true …`).

use anyhow::Result;
use cni_test_harness::vm::{File, Vm};
use cni_test_harness::{skip_unless, tools};

/// Both families are on the wire. A node keeps its files below `/srv/NAME`.
const TWO_NODES: &str = r#"#!/bin/sh
set -eu
ip netns add left
ip netns add right
ip link add eth0 netns left type veth peer name eth0 netns right
n=1
for side in left right; do
    ip -n $side link set lo up
    ip -n $side addr add 192.168.50.$n/24 dev eth0
    ip -n $side addr add fd00:50::$n/64 dev eth0 nodad
    ip -n $side link set eth0 up
    ip -n $side route add default via 192.168.50.254
    ip -n $side -6 route add default via fd00:50::fe dev eth0
    n=$((n + 1))
done
mkdir -p /srv/store
net_conf() {
    echo "{\"Network\":\"10.5.0.0/16\",\"EnableIPv6\":$1,\"IPv6Network\":\"fd00:5::/48\",\"Backend\":$2}" >/srv/store/config
}
start() {
    mkdir -p /srv/$1
    ip netns exec $1 /srv/twilld --store-dir=/srv/store --state-dir=/srv/$1/state \
        --subnet-file=/srv/$1/subnet.env 2>/srv/$1/log &
    echo $! >/srv/$1/pid
}
stop() {
    kill $(cat /srv/$1/pid)
    wait $(cat /srv/$1/pid) || true
}
until_true() {
    tries=0
    until eval "$2" >/tmp/said 2>&1; do
        tries=$((tries + 1))
        if [ $tries -gt 60 ]; then
            echo "in vain: $1: $2"
            cat /tmp/said
            tail -n 30 /srv/*/log
            exit 1
        fi
        sleep 0.5
    done
    echo "seen: $1"
}
# The subnet's first address: that of the backend's device.
address() {
    sed -n "s/^$2=\(.*\)\/.*/\1/p" /srv/$1/subnet.env | sed 's/\.1$/.0/; s/::1$/::/'
}
# ping_from SIDE OTHER VARIABLE
ping_from() {
    until_true "ping from $1 to $2 by $3" "ip netns exec $1 ping -c 1 -W 2 -I $(address $1 $3) $(address $2 $3)"
}
"#;

/// Runs a script on them, with both programs in place; skipped where there is no machine.
pub(crate) fn run(script: &str) -> Result<()> {
    let vm = skip_unless!(Vm::find());
    let script = format!("{TWO_NODES}{script}");
    let files = [
        File::new(tools::built("twilld")?, "/srv/twilld"),
        File::new(tools::built("twill")?, "/opt/cni/bin/twill"),
    ];
    vm.run(&script, &files)?.success()?;
    Ok(())
}
