//! The harness's containerd holds up on its own: with Debian's bridge and host-local, pods come,
//! answer, and go without a trace. What twill promises under containerd is tested elsewhere; this
//! is the floor that those tests stand on.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Result;
use cni_test_harness::containerd::{self, Containerd};
use cni_test_harness::cri::{Process, Setup};
use cni_test_harness::node::Node;
use cni_test_harness::{skip_unless, tools};
use serde_json::json;

const NETWORK: &str = "debian";
const GATEWAY: &str = "10.88.7.1";

/// A node with a containerd whose conflist names Debian's plugins. Fields go in this order: the
/// runtime before the node that it runs on.
struct Machine {
    containerd: Containerd,
    node: Node,
}

impl Machine {
    fn start() -> Result<Self> {
        let node = Node::new("ctd")?;
        let conf_dir = node.make_dir("net.d")?;
        let conflist = json!({
            "cniVersion": "0.4.0",
            "name": NETWORK,
            "plugins": [{
                "type": "bridge",
                "bridge": "cni0",
                "isDefaultGateway": true,
                "ipam": {"type": "host-local", "subnet": "10.88.7.0/24"},
            }],
        });
        std::fs::write(conf_dir.join("10-debian.conflist"), conflist.to_string())?;
        let containerd = Containerd::start(&Setup {
            netns: node.name(),
            dir: node.dir(),
            cni_bin_dir: Path::new(tools::DEBIAN_PLUGIN_DIR),
            cni_conf_dir: &conf_dir,
            binds: Vec::new(),
        })?;
        Ok(Self { containerd, node })
    }

    /// The reservations of host-local: files named after addresses.
    fn reservations(&self) -> Vec<String> {
        let dir = self
            .containerd
            .cni_state_dir()
            .join("networks")
            .join(NETWORK);
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names
            .filter(|name| name.parse::<IpAddr>().is_ok())
            .collect()
    }

    fn veths(&self) -> Result<String> {
        Ok(self
            .node
            .exec("ip", &["-o", "link", "show", "type", "veth"])?
            .stdout_text())
    }

    fn shims(&self) -> Result<Vec<Process>> {
        let mut processes = self.containerd.processes()?;
        processes.retain(|process| process.name.starts_with("containerd-shim"));
        Ok(processes)
    }

    fn assert_nothing_left(&self) -> Result<()> {
        assert_eq!(self.veths()?, "");
        assert_eq!(self.reservations(), Vec::<String>::new());
        assert_eq!(self.shims()?, []);
        assert_eq!(self.containerd.mounts()?, Vec::<PathBuf>::new());
        Ok(())
    }
}

#[test]
fn a_container_of_ctr_run_reaches_its_gateway_and_leaves_nothing() -> Result<()> {
    skip_unless!(containerd::available());
    skip_unless!(tools::debian_plugin("bridge"));
    let machine = Machine::start()?;
    let script = format!("ip -4 -o addr show dev eth0 && ping -c 1 -W 2 {GATEWAY}");
    let output = machine
        .containerd
        .run_with_cni("one", &["sh", "-c", &script])?
        .stdout_text();
    assert!(output.contains("10.88.7.2/24"), "{output}");
    assert!(output.contains("1 packets received"), "{output}");
    machine.assert_nothing_left()
}

#[test]
fn a_pod_of_the_cri_has_an_address_answers_and_leaves_nothing() -> Result<()> {
    skip_unless!(containerd::available());
    skip_unless!(tools::debian_plugin("bridge"));
    let machine = Machine::start()?;
    let cri = machine.containerd.cri()?;
    assert!(cri.version()?.starts_with("containerd "));
    assert_eq!(cri.network_ready()?, Ok(()));

    let pod = machine.containerd.pod("web").label("app", "web");
    let id = cri.run_pod(&pod)?;
    let status = cri.pod_status(&id)?;
    assert!(status.ready);
    assert_eq!(status.ips, ["10.88.7.2".parse::<IpAddr>()?]);
    assert_eq!(cri.pods()?, std::slice::from_ref(&id));
    let container = cri.run_container(&id, &pod, "main", &[])?;
    let ping = cri.exec(&container, &["ping", "-c", "1", "-W", "2", GATEWAY])?;
    assert_eq!(ping.code, 0, "{ping:?}");
    let failed = cri.exec(&container, &["sh", "-c", "hostname; echo no >&2; exit 3"])?;
    assert_eq!(
        (failed.code, &failed.stdout[..], &failed.stderr[..]),
        (3, "web\n", "no\n")
    );
    assert_eq!(
        (machine.reservations().len(), machine.shims()?.len()),
        (1, 1)
    );

    cri.stop_pod(&id)?;
    cri.stop_pod(&id)?;
    assert!(!cri.pod_status(&id)?.ready);
    cri.remove_pod(&id)?;
    assert_eq!(cri.pods()?, Vec::<String>::new());
    machine.assert_nothing_left()
}

#[test]
fn dropping_containerd_with_a_pod_running_leaves_no_process_and_no_folder() -> Result<()> {
    skip_unless!(containerd::available());
    skip_unless!(tools::debian_plugin("bridge"));
    let Machine { node, containerd } = Machine::start()?;
    containerd.cri()?.run_pod(&containerd.pod("left"))?;
    let processes = containerd.processes()?;
    assert!(
        processes.len() >= 4,
        "pid 1, containerd, a shim, a pause: {processes:?}"
    );
    let cgroups = cgroups_of(&processes);
    assert!(cgroups.iter().any(|path| path.is_dir()), "{cgroups:?}");
    drop(containerd);
    let alive = |process: &&Process| Path::new(&format!("/proc/{}", process.pid)).exists();
    assert_eq!(
        processes.iter().filter(alive).collect::<Vec<_>>(),
        Vec::<&_>::new()
    );
    assert_eq!(
        cgroups.iter().filter(|path| path.exists()).count(),
        0,
        "{cgroups:?}"
    );
    assert!(!node.dir().join("containerd").exists());
    Ok(())
}

/// The folders of the containers' cgroups, in the unified hierarchy or, in version 1, each of them.
fn cgroups_of(processes: &[Process]) -> Vec<PathBuf> {
    let of = |process: &Process| {
        std::fs::read_to_string(format!("/proc/{}/cgroup", process.pid)).unwrap_or_default()
    };
    let lines: Vec<String> = processes.iter().map(of).collect();
    let ours = lines
        .iter()
        .flat_map(|text| text.lines())
        .filter(|line| line.contains("/twill-"));
    let folder = |line: &str| {
        let (hierarchy, path) = line.split_once(':')?.1.split_once(":/")?;
        Some(
            Path::new("/sys/fs/cgroup")
                .join(hierarchy.trim_start_matches("name="))
                .join(path),
        )
    };
    ours.filter_map(folder).collect()
}
