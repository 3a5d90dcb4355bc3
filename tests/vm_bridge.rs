//! VLANs on the bridge, which the kernel at hand may not filter: in the virtual machine, with the
//! distribution's kernel. What the Go plugin was seen to make is replayed under its name, and
//! looked at with `bridge`.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use cni_test_harness::vm::{File, Vm};
use cni_test_harness::{skip_unless, tools};
use serde_json::Value;

/// The recorded runs; `vlans` is `bridge -j vlan` behind each.
const RECORDED: &str = include_str!("../plugin/tests/golden/vlan/bridge-vlan.jsonl");

const PLUGIN: &str = "/opt/cni/bin/bridge";

/// `cni VERB CONTAINER CONF` runs the plugin for the sandbox of the container's name.
const PRELUDE: &str = r#"#!/bin/sh
set -u
cni() {
    printf '%s' "$3" | CNI_COMMAND=$1 CNI_CONTAINERID=$2 CNI_NETNS=/run/netns/$2 CNI_IFNAME=eth0 \
        CNI_ARGS= CNI_PATH=/opt/cni/bin /opt/cni/bin/bridge
}
must() { "$@" || { echo "failed: $*"; exit 1; }; }
must_not() { ! "$@" || { echo "succeeded: $*"; exit 1; }; }
"#;

fn script_of(steps: &[Value]) -> Result<String> {
    let mut script = PRELUDE.to_owned();
    script.push_str("ip netns add gb-pod\n");
    for step in steps {
        let name = step["step"].as_str().context("a step has a name")?;
        let env: BTreeMap<String, String> = serde_json::from_value(step["env"].clone())?;
        if env["CNI_COMMAND"] == "ADD" {
            script.push_str("ip link del cni0 2>/dev/null; ip link del cni0.100 2>/dev/null\n");
        }
        let env: Vec<String> = env.iter().map(|(k, v)| format!("{k}='{v}'")).collect();
        let stdin = step["stdin"].as_str().context("a step has a config")?;
        script.push_str(&format!(
            "echo '@ {name}'\nprintf '%s' '{stdin}' | env {} {PLUGIN} | tr -d '\\n'\necho\n\
             bridge -j vlan show | tr -d '\\n'\necho\n",
            env.join(" ")
        ));
    }
    Ok(script)
}

/// Names of interfaces as far as they are not at random.
fn blotted(name: &Value) -> String {
    let name = name.as_str().unwrap_or_default();
    match name.starts_with("veth") && name.len() == 12 {
        true => "VETH".to_owned(),
        false => name.to_owned(),
    }
}

/// Each port with its VLANs, in an order of its own.
fn vlans(shown: &Value) -> Vec<String> {
    let ports = shown.as_array().map_or(&[][..], Vec::as_slice).iter();
    let mut ports: Vec<String> = ports
        .map(|port| format!("{} {}", blotted(&port["ifname"]), port["vlans"]))
        .collect();
    ports.sort();
    ports
}

fn interfaces(result: &Value) -> Vec<String> {
    let all = result["interfaces"].as_array();
    let all = all.map_or(&[][..], Vec::as_slice).iter();
    all.map(|interface| blotted(&interface["name"])).collect()
}

#[test]
#[ignore = "boots a virtual machine: ./dev test-vm"]
fn ports_are_in_the_vlans_that_the_go_plugin_put_them_in() -> Result<()> {
    let vm = skip_unless!(Vm::find());
    let twill = tools::built("twill")?;
    let steps: Vec<Value> = RECORDED
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let output = vm.run(&script_of(&steps)?, &[File::new(twill, PLUGIN)])?;
    let text = output.success()?.text;
    for step in &steps {
        let name = step["step"].as_str().context("a step has a name")?;
        let mut lines = text.lines().skip_while(|line| *line != format!("@ {name}"));
        let (answer, shown) = (lines.nth(1), lines.next());
        let answer = answer.with_context(|| format!("{name}: no answer in\n{text}"))?;
        let shown: Value = serde_json::from_str(shown.unwrap_or_default())
            .with_context(|| format!("{name}: {text}"))?;
        let recorded = step["stdout"].as_str().unwrap_or_default();
        let parse = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_default();
        let (answer, recorded) = (parse(answer), parse(recorded));
        assert_eq!(answer["ips"], recorded["ips"], "{name}: {answer}");
        assert_eq!(
            interfaces(&answer),
            interfaces(&recorded),
            "{name}: {answer}"
        );
        // A recorded DEL comes behind an ADD whose bridge stays here as there.
        assert_eq!(vlans(&shown), vlans(&step["vlans"]), "{name}");
    }
    Ok(())
}

/// Two pods in a VLAN, one in another, one with a trunk; then gateways.
const TRAFFIC: &str = r#"
for pod in a b c d e f; do ip netns add $pod; ip -n $pod link set lo up; done
vlan() { echo '{"cniVersion":"1.0.0","name":"l2","type":"bridge","bridge":"br0",'"$1"'}'; }

# A bridge that is there and has no port yet is made to filter.
ip link add br0 type bridge
ip link set br0 up
must cni ADD a "$(vlan '"vlan":100')"
must cni ADD b "$(vlan '"vlan":100')"
must cni ADD c "$(vlan '"vlan":200')"
must cni ADD d "$(vlan '"vlanTrunk":[{"id":200},{"minID":4000,"maxID":4094}]')"
n=1
for pod in a b c; do ip -n $pod addr add 192.168.7.$n/24 dev eth0; n=$((n + 1)); done
ip -n d link add link eth0 name eth0.200 type vlan id 200
ip -n d link set eth0.200 up
ip -n d addr add 192.168.7.4/24 dev eth0.200
must ip netns exec a ping -c 1 -W 5 192.168.7.2
must_not ip netns exec a ping -c 1 -W 2 192.168.7.3
must_not ip netns exec a ping -c 1 -W 2 192.168.7.4
must ip netns exec d ping -c 1 -W 5 192.168.7.3

# The gateway of a VLAN is reached from it, and a half-made one is finished.
l3='"vlan":300,"isDefaultGateway":true,"mtu":1400,"ipam":{"type":"host-local","ranges":[[{"subnet":"10.9.3.0/24"}]]}'
must cni ADD e "$(vlan "$l3")"
must ip netns exec e ping -c 1 -W 5 10.9.3.1
port=$(ip -o link show br0.300 | sed 's/.*br0.300@\([^:]*\):.*/\1/')
ip link set br0.300 down
bridge vlan del dev $port vid 300
bridge vlan add dev $port vid 1 pvid untagged
must cni ADD f "$(vlan "$l3")"
must ip netns exec f ping -c 1 -W 5 10.9.3.1
must ip netns exec f ping -c 1 -W 5 10.9.3.2
ip -n a addr add 10.9.3.9/24 dev eth0
must_not ip netns exec a ping -c 1 -W 2 10.9.3.1
for pod in a b c d; do must cni DEL $pod "$(vlan '"vlan":1')"; done
for pod in e f; do must cni DEL $pod "$(vlan "$l3")"; done

# With pods that nothing keeps apart it is left as it is.
ip netns add g; ip netns add h
must cni ADD g '{"cniVersion":"1.0.0","name":"plain","type":"bridge","bridge":"br1"}'
must_not cni ADD h '{"cniVersion":"1.0.0","name":"plain","type":"bridge","bridge":"br1","vlan":5}'
must_not ip -n h link show eth0
echo '@ all of it'
"#;

/// Runs a script that says so when it came to its end.
fn on_a_bridge(script: &str) -> Result<()> {
    let vm = skip_unless!(Vm::find());
    let twill = tools::built("twill")?;
    let script = format!("{PRELUDE}{script}");
    let output = vm.run(&script, &[File::new(twill, PLUGIN)])?;
    let text = output.success()?.text;
    ensure!(text.contains("@ all of it"), "the script stopped:\n{text}");
    Ok(())
}

#[test]
#[ignore = "boots a virtual machine: ./dev test-vm"]
fn frames_stay_in_their_vlan_and_reach_its_gateway() -> Result<()> {
    on_a_bridge(TRAFFIC)
}

/// `check CONTAINER CONF` asks whether all is as its ADD, which `made` ran, said.
const CHECKS: &str = r#"
set -e
conf() { echo '{"cniVersion":"1.0.0","name":"l2","type":"bridge","bridge":"br0",'"$1"'}'; }
made() { cni ADD $1 "$(conf "$2")" >/tmp/$1 || { cat /tmp/$1; exit 1; }; }
check() { cni CHECK $1 "$(conf "$2"',"prevResult":'"$(cat /tmp/$1)")"; }
port() { grep -o 'veth[0-9a-f]*' /tmp/$1 | head -n 1; }
# differs CONTAINER CONF WORDS
differs() {
    said=$(check $1 "$2") && { echo "CHECK of $1 misses: $3"; exit 1; }
    case $said in
        *'"code": 103'*"$3"*) ;;
        *) echo "no word of $3: $said"; exit 1 ;;
    esac
}
for pod in a b c d; do ip netns add $pod; ip -n $pod link set lo up; done

both='"vlan":100,"vlanTrunk":[{"minID":200,"maxID":203},{"id":7}]'
made a "$both"
must check a "$both"
a=$(port a)
bridge vlan del dev $a vid 100
differs a "$both" 'VLAN 100'
bridge vlan add dev $a vid 100
differs a "$both" 'VLAN 100'
bridge vlan add dev $a vid 100 pvid untagged
must check a "$both"
bridge vlan del dev $a vid 202
differs a "$both" 'not in VLAN 202'
bridge vlan add dev $a vid 202
must check a "$both"
bridge vlan add dev $a vid 1
differs a "$both" "in VLAN 1, which is not the pod's"
bridge vlan del dev $a vid 1
must check a "$both"
ip link set br0 type bridge vlan_filtering 0
differs a "$both" 'does not filter VLANs'
ip link set br0 type bridge vlan_filtering 1
must check a "$both"

kept='"vlan":100,"preserveDefaultVlan":true'
made b "$kept"
must check b "$kept"
bridge vlan show dev $(port b) | grep '1 Egress Untagged'
bridge vlan del dev $(port b) vid 100
differs b "$kept" 'VLAN 100'

trunk='"vlanTrunk":[{"minID":2,"maxID":4094}]'
made c "$trunk"
must check c "$trunk"
bridge vlan del dev $(port c) vid 4094
differs c "$trunk" 'not in VLAN 4094'

routed='"vlan":300,"isGateway":true,"ipam":{"type":"host-local","ranges":[[{"subnet":"10.9.3.0/24"}]]}'
made d "$routed"
must check d "$routed"
ip link set br0.300 down
differs d "$routed" 'br0.300, the gateway of VLAN 300, is down'
ip link set br0.300 up
must check d "$routed"
end=$(ip -o link show br0.300 | sed 's/.*br0.300@\([^:]*\):.*/\1/')
bridge vlan del dev $end vid 300
differs d "$routed" 'VLAN 300'
bridge vlan add dev $end vid 300 pvid untagged
must check d "$routed"
ip link del br0.300
differs d "$routed" 'br0.300, the gateway of VLAN 300, was not found'
for pod in a b c d; do must cni DEL $pod "$(conf "$both")"; done
echo '@ all of it'
"#;

#[test]
#[ignore = "boots a virtual machine: ./dev test-vm"]
fn check_misses_every_vlan_that_was_taken_away_and_sees_what_was_added() -> Result<()> {
    on_a_bridge(CHECKS)
}

/// The same keys inside flannel's `delegate`, looked at with `bridge`.
const DELEGATED: &str = r#"
set -e
ln -s bridge /opt/cni/bin/flannel
mkdir -p /run/flannel
printf 'FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n' \
    >/run/flannel/subnet.env
flannel() {
    printf '%s' "$3" | CNI_COMMAND=$1 CNI_CONTAINERID=$2 CNI_NETNS=/run/netns/$2 CNI_IFNAME=eth0 \
        CNI_ARGS= CNI_PATH=/opt/cni/bin /opt/cni/bin/flannel
}
conf() { echo '{"cniVersion":"1.0.0","name":"cbr0","type":"flannel","delegate":{'"$1"'}'"${2-}"'}'; }
made() { flannel ADD $1 "$(conf "$2")" >/tmp/$1 || { cat /tmp/$1; exit 1; }; }
check() { flannel CHECK $1 "$(conf "$2" ',"prevResult":'"$(cat /tmp/$1)")"; }
port() { grep -o 'veth[0-9a-f]*' /tmp/$1 | head -n 1; }
vlans() { bridge -o vlan show dev $(port $1) | tr -s ' \t\n' '   '; }
for pod in a b c; do ip netns add $pod; ip -n $pod link set lo up; done
own='"isDefaultGateway":true,"vlan":100'
made a "$own"
must check a "$own"
must ip netns exec a ping -c 1 -W 5 10.5.3.1
ip -o addr show dev cni0.100 | grep 10.5.3.1/24
vlans a | grep ' 100 PVID Egress Untagged'
must_not sh -c "bridge vlan show dev $(port a) | grep -w 1"
trunk='"isGateway":false,"vlanTrunk":[{"id":200}]'
made b "$trunk"
must check b "$trunk"
vlans b | grep ' 200'
vlans b | grep ' 1 PVID Egress Untagged'
kept='"isGateway":false,"vlan":100,"preserveDefaultVlan":true'
made c "$kept"
must check c "$kept"
vlans c | grep ' 1 Egress Untagged'
vlans c | grep ' 100 PVID Egress Untagged'
must ip netns exec a ping -c 1 -W 5 $(ip -n c -4 -o addr show dev eth0 | sed 's/.*inet \([^/]*\).*/\1/')
must_not ip netns exec b ping -c 1 -W 2 10.5.3.1
bridge vlan del dev $(port c) vid 100
must_not check c "$kept"
for pod in a b c; do must flannel DEL $pod "$(conf "$own")"; done
must_not sh -c "ls /var/lib/cni/networks/cbr0 | grep '^10'"
echo '@ all of it'
"#;

#[test]
#[ignore = "boots a virtual machine: ./dev test-vm"]
fn flannels_delegate_takes_the_same_vlans() -> Result<()> {
    on_a_bridge(DELEGATED)
}

/// The kernel looks for a module by the name of a device that is not there, when it is asked in a way
/// that names it, and waits for `modprobe` to end.
const MODULES: &str = r#"
real=$(cat /proc/sys/kernel/modprobe)
printf '#!/bin/sh\necho "$*" >>/tmp/asked\nexec %s "$@"\n' "$real" >/tmp/modprobe
chmod 755 /tmp/modprobe
: >/tmp/asked
echo /tmp/modprobe >/proc/sys/kernel/modprobe
ip link add zz0 type dummy
[ -s /tmp/asked ] || { echo 'what is asked for is not seen'; exit 1; }
conf='{"cniVersion":"1.0.0","name":"l3","type":"bridge","bridge":"br0","isGateway":true,"ipam":{"type":"host-local","ranges":[[{"subnet":"10.9.4.0/24"}]]}}'
for pod in a b; do
    ip netns add $pod
    must cni ADD $pod "$conf"
done
for pod in a b a; do must cni DEL $pod "$conf"; done
! grep netdev- /tmp/asked || exit 1
echo '@ all of it'
"#;

#[test]
#[ignore = "boots a virtual machine: ./dev test-vm"]
fn no_module_is_looked_for_by_the_name_of_a_device() -> Result<()> {
    on_a_bridge(MODULES)
}
