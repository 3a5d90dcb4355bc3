//! The backends that the kernel at hand may lack, in a virtual machine with the distribution's
//! kernel: the real twilld in two namespaces with a shared store folder, and pings from subnet to
//! subnet.
//!
//! It takes half a minute of emulation each, so it runs by `./dev test-vm`.

mod machine;

use anyhow::Result;
use machine::run;

#[test]
#[ignore = "boots a virtual machine: ./dev test-vm"]
fn ipip_carries_pings_is_kept_over_a_restart_and_repaired() -> Result<()> {
    run(r#"
net_conf false '{"Type":"ipip"}'
start left
start right
until_true "both are ready" "test -e /srv/left/subnet.env -a -e /srv/right/subnet.env"
ping_from left right FLANNEL_SUBNET
ping_from right left FLANNEL_SUBNET
grep FLANNEL_MTU=1480 /srv/left/subnet.env
ip -n left -d link show flannel.ipip | grep 'ipip.* local 192.168.50.1 '
ip -n left route show proto boot | grep "via 192.168.50.2 dev flannel.ipip .*onlink"
index=$(ip netns exec left cat /sys/class/net/flannel.ipip/ifindex)
stop left
start left
until_true "left is back" "grep 'in sync' /srv/left/log"
test $index = $(ip netns exec left cat /sys/class/net/flannel.ipip/ifindex)
ip -n left link del flannel.ipip
ping_from left right FLANNEL_SUBNET
# (A twilld that runs is faster than whoever makes it by hand.)
stop left
ip -n left link del flannel.ipip
ip -n left link add flannel.ipip type ipip local 192.168.50.1 remote 192.168.50.9
start left
until_true "the misfit is made anew" "ip -n left -d link show flannel.ipip | grep 'remote any'"
ping_from left right FLANNEL_SUBNET
"#)
}

#[test]
#[ignore = "boots a virtual machine: ./dev test-vm"]
fn wireguard_carries_both_families_in_every_mode() -> Result<()> {
    run(r#"
for mode in separate auto ipv4 ipv6; do
    psk=$(wg genpsk)
    net_conf true "{\"Type\":\"wireguard\",\"Mode\":\"$mode\",\"PSK\":\"$psk\",\"PersistentKeepaliveInterval\":25}"
    start left
    start right
    until_true "both are ready" "test -e /srv/left/subnet.env -a -e /srv/right/subnet.env"
    for variable in FLANNEL_SUBNET FLANNEL_IPV6_SUBNET; do
        ping_from left right $variable
        ping_from right left $variable
    done
    grep FLANNEL_MTU=1420 /srv/left/subnet.env
    ip netns exec left wg show
    ip netns exec left wg show flannel-wg | grep 'preshared key: (hidden)'
    ip netns exec left wg show flannel-wg | grep 'persistent keepalive: every 25 seconds'
    case $mode in
        separate) ip -n left link show flannel-wg-v6 ;;
        *) ! ip -n left link show flannel-wg-v6 2>/dev/null ;;
    esac
    case $mode in
        ipv6) ip netns exec left wg show flannel-wg endpoints | grep '\[fd00:50::2\]:51820' ;;
        *) ip netns exec left wg show flannel-wg endpoints | grep '192.168.50.2:51820' ;;
    esac
    ! grep -q "$psk" /srv/left/log
    stop left
    stop right
    for side in left right; do
        ip -n $side link del flannel-wg
        ip -n $side link del flannel-wg-v6 2>/dev/null || true
        rm /srv/$side/subnet.env
    done
    rm -r /srv/store/subnets
done
"#)
}

#[test]
#[ignore = "boots a virtual machine: ./dev test-vm"]
fn wireguard_keeps_key_device_and_roamed_endpoint_and_repairs_peers() -> Result<()> {
    run(r#"
net_conf false '{"Type":"wireguard"}'
start left
start right
until_true "both are ready" "test -e /srv/left/subnet.env -a -e /srv/right/subnet.env"
ping_from left right FLANNEL_SUBNET
key=$(ip netns exec left wg show flannel-wg public-key)
index=$(ip netns exec left cat /sys/class/net/flannel-wg/ifindex)
peer=$(ip netns exec right wg show flannel-wg public-key)
grep "$key" /srv/store/subnets/*
test $(stat -c %a /srv/left/state/wgkey) = 400

# It roams: right's packets come from another port, and left has seen them. (A twilld that runs
# would put the port right.)
stop right
ip netns exec right wg set flannel-wg listen-port 40000
until_true "left sees where right is" "ip netns exec right ping -c 1 -W 2 -I $(address right FLANNEL_SUBNET) $(address left FLANNEL_SUBNET) && ip netns exec left wg show flannel-wg endpoints | grep 192.168.50.2:40000"
stop left
start left
until_true "left is back" "grep 'in sync' /srv/left/log"
test $index = $(ip netns exec left cat /sys/class/net/flannel-wg/ifindex)
test "$key" = "$(ip netns exec left wg show flannel-wg public-key)"
ip netns exec left wg show flannel-wg endpoints | grep 192.168.50.2:40000
! grep 'WireGuard peers changed' /srv/left/log

# As after a reboot: no device, the same key.
stop left
ip -n left link del flannel-wg
start left
start right
until_true "left is back with its key" "test '$key' = \"\$(ip netns exec left wg show flannel-wg public-key)\""
ping_from left right FLANNEL_SUBNET

# Somebody's hand in it: a peer gone, one too many.
ip netns exec left wg set flannel-wg peer "$peer" remove
ip netns exec left wg set flannel-wg peer "$(wg genkey | wg pubkey)" allowed-ips 10.5.99.0/24
ip -n left link set flannel-wg down
ping_from left right FLANNEL_SUBNET
test 1 = $(ip netns exec left wg show flannel-wg peers | wc -l)
"#)
}

/// This kernel's TUN device knows TCP segmentation and not UDP's (Linux 6.2): a step that is left
/// out where it is not to be had.
#[test]
#[ignore = "boots a virtual machine: ./dev test-vm"]
fn udp_carries_streams_on_an_older_kernel() -> Result<()> {
    run(r#"
for offload in true false; do
    net_conf false "{\"Type\":\"udp\",\"Offload\":$offload}"
    start left
    start right
    until_true "both are ready" "test -e /srv/left/subnet.env -a -e /srv/right/subnet.env"
    ping_from left right FLANNEL_SUBNET
    ping_from right left FLANNEL_SUBNET
    case $offload in
        true) grep 'device: Tcp, .*gso: true, gro: true' /srv/left/log ;;
        false) grep 'device: Off, .*gso: false, gro: false' /srv/left/log ;;
    esac
    to=$(address right FLANNEL_SUBNET)
    ip netns exec left ping -c 2 -W 2 -s 4000 $to
    ip netns exec right socat -u TCP-LISTEN:7000,bind=$to,reuseaddr OPEN:/tmp/got,creat,trunc &
    receiver=$!
    until_true "somebody listens" "ip netns exec right ss -ltn | grep :7000"
    ip netns exec left socat -u OPEN:/srv/twilld TCP:$to:7000
    wait $receiver
    cmp /srv/twilld /tmp/got
    stop left
    stop right
    rm -r /srv/left/subnet.env /srv/right/subnet.env /srv/store/subnets
done
"#)
}
