//! The virtual machine boots the distribution's kernel, which has what the kernel at hand may lack.
//!
//! It takes half a minute of emulation, so it runs by `./dev test-vm`, which also gets the kernel.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use cni_test_harness::skip_unless;
use cni_test_harness::vm::{File, Vm};

/// Two namespaces, `left` and `right`, joined by a veth pair with 192.168.50.1 and .2.
const TWO_NAMESPACES: &str = "#!/bin/sh
set -eux
ip netns add left
ip netns add right
ip link add eth0 netns left type veth peer name eth0 netns right
ip -n left addr add 192.168.50.1/24 dev eth0
ip -n right addr add 192.168.50.2/24 dev eth0
ip -n left link set eth0 up
ip -n right link set eth0 up
ip netns exec left ping -c 1 -W 5 192.168.50.2
";

#[test]
#[ignore = "boots a virtual machine: ./dev test-vm"]
fn it_boots_the_distributions_kernel_and_tells_how_the_script_ended() -> Result<()> {
    let vm = skip_unless!(Vm::find());
    let note = std::env::temp_dir().join(format!("twh-{}-note", std::process::id()));
    std::fs::write(&note, "taken along\n")?;
    let script = "#!/bin/sh\nuname -r\ncat /srv/note\nexit 7\n";
    let output = vm.run(script, &[File::new(&note, "/srv/note")]);
    std::fs::remove_file(&note)?;
    let output = output?;
    assert_eq!(output.code, 7);
    let lines: Vec<&str> = output
        .text
        .lines()
        .filter(|line| !line.is_empty())
        .collect();
    assert_eq!(lines, [vm.kernel.release.as_str(), "taken along"]);
    Ok(())
}

#[test]
#[ignore = "boots a virtual machine: ./dev test-vm"]
fn a_machine_that_does_not_end_is_ended() -> Result<()> {
    let mut vm = skip_unless!(Vm::find());
    vm.deadline = Duration::from_secs(2);
    let error = vm.run("#!/bin/sh\nsleep 600\n", &[]).unwrap_err();
    assert!(error.to_string().contains("not done within 2s"), "{error}");
    Ok(())
}

#[test]
#[ignore = "boots a virtual machine: ./dev test-vm"]
fn a_wireguard_tunnel_made_by_hand_carries_a_ping() -> Result<()> {
    let vm = skip_unless!(Vm::find());
    let script = format!(
        "{TWO_NAMESPACES}
umask 077
for side in left right; do
    wg genkey >/tmp/$side
    wg pubkey </tmp/$side >/tmp/$side.pub
    ip -n $side link add flannel-wg type wireguard
    ip netns exec $side wg set flannel-wg private-key /tmp/$side listen-port 51820
    ip -n $side link set flannel-wg mtu 1420 up
done
ip netns exec left wg set flannel-wg peer $(cat /tmp/right.pub) \
    endpoint 192.168.50.2:51820 allowed-ips 10.5.20.0/24
ip netns exec right wg set flannel-wg peer $(cat /tmp/left.pub) \
    endpoint 192.168.50.1:51820 allowed-ips 10.5.10.0/24
ip -n left addr add 10.5.10.0/32 dev flannel-wg
ip -n right addr add 10.5.20.0/32 dev flannel-wg
ip -n left route add 10.5.0.0/16 dev flannel-wg
ip -n right route add 10.5.0.0/16 dev flannel-wg
ip netns exec left ping -c 3 -i 0.2 -W 5 10.5.20.0
ip netns exec left wg show
"
    );
    let output = vm.run(&script, &[])?.success()?;
    assert!(output.text.contains("3 received"), "{}", output.text);
    assert!(output.text.contains("latest handshake"), "{}", output.text);
    Ok(())
}

#[test]
#[ignore = "boots a virtual machine: ./dev test-vm"]
fn an_ipip_tunnel_made_by_hand_carries_a_ping() -> Result<()> {
    let vm = skip_unless!(Vm::find());
    let script = format!(
        "{TWO_NAMESPACES}
ip -n left link add flannel.ipip type ipip local 192.168.50.1
ip -n right link add flannel.ipip type ipip local 192.168.50.2
ip -n left addr add 10.5.10.0/32 dev flannel.ipip
ip -n right addr add 10.5.20.0/32 dev flannel.ipip
ip -n left link set flannel.ipip up
ip -n right link set flannel.ipip up
ip -n left route add 10.5.20.0/24 via 192.168.50.2 dev flannel.ipip onlink
ip -n right route add 10.5.10.0/24 via 192.168.50.1 dev flannel.ipip onlink
ip netns exec left ping -c 3 -i 0.2 -W 5 10.5.20.0
"
    );
    let output = vm.run(&script, &[])?.success()?;
    assert!(output.text.contains("3 received"), "{}", output.text);
    Ok(())
}

#[test]
#[ignore = "boots a virtual machine: ./dev test-vm"]
fn its_kernel_has_what_the_one_at_hand_may_lack() -> Result<()> {
    let vm = skip_unless!(Vm::find());
    let script = "#!/bin/sh
set -eux
ip link add br0 type bridge vlan_filtering 1
ip link add d0 type dummy
ip link set d0 master br0
bridge vlan add dev d0 vid 100 pvid untagged
bridge vlan show dev d0
ip link add vx type vxlan id 7 dstport 4789 dev d0
ip link add ifb0 type ifb || ip link show ifb0
ip link set ifb0 up
tc qdisc add dev ifb0 root tbf rate 1mbit burst 32kb latency 25ms
tc qdisc add dev d0 ingress
tc filter add dev d0 parent ffff: u32 match u32 0 0 action mirred egress redirect dev ifb0
modprobe br_netfilter
test -e /proc/sys/net/bridge/bridge-nf-call-iptables
nft add table inet t
nft add chain inet t nat '{ type nat hook postrouting priority srcnat; }'
nft add rule inet t nat ip saddr 10.5.0.0/16 masquerade fully-random
nft add chain inet t pre '{ type nat hook prerouting priority dstnat; }'
nft add rule inet t pre fib daddr type local tcp dport 80 dnat ip to 10.5.1.2:8080
nft list ruleset
";
    let output = vm.run(script, &[])?.success()?;
    assert!(
        output.text.contains("100 PVID Egress Untagged"),
        "{}",
        output.text
    );
    assert!(output.text.contains("fully-random"), "{}", output.text);
    Ok(())
}

/// Programs built here run there, with the libraries that they are linked to.
#[test]
#[ignore = "boots a virtual machine: ./dev test-vm"]
fn a_test_program_built_here_runs_there() -> Result<()> {
    let vm = skip_unless!(Vm::find());
    let this: PathBuf = std::env::current_exe()?;
    let script = "#!/bin/sh\nexec /srv/tests --list\n";
    let output = vm
        .run(script, &[File::new(this, "/srv/tests")])?
        .success()?;
    assert!(output.text.contains("a_test_program_built_here_runs_there"));
    Ok(())
}
