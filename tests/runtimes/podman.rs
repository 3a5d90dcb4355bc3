//! podman with its CNI backend: its containers are attached by twill, reach each other, publish
//! ports, and leave nothing. Store, state and config are in the node's folder, and podman runs in
//! the node's namespace.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cni_test_harness::node::Node;
use cni_test_harness::process::{self, Output};
use cni_test_harness::{skip, skip_unless, tools, wait};
use serde_json::json;

use crate::seen::{SERVE, answers, wait_until_nothing_is_left};

const DEADLINE: Duration = Duration::from_secs(60);
const NETWORK: &str = "twillnet";
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 244, 9, 1);

struct Podman {
    program: PathBuf,
    node: Node,
}

impl Podman {
    /// Configured for the node alone.
    fn on_a_node(program: PathBuf) -> Result<Self> {
        let node = Node::new("podman")?;
        let dir = node.dir().to_owned();
        let bin_dir = tools::built("twill")?;
        let bin_dir = bin_dir.parent().context("the folder of twill")?.to_owned();
        let subnet_file = dir.join("subnet.env");
        std::fs::write(
            &subnet_file,
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.9.1/24\n\
             FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
        )?;
        let list = json!({"name": NETWORK, "cniVersion": "1.0.0", "plugins": [{
            "type": "twill", "subnetFile": subnet_file,
            "dataDir": node.make_dir("scratch")?,
            "ipam": {"dataDir": node.make_dir("networks")?},
            "capabilities": {"portMappings": true}}]});
        let conf_dir = node.make_dir("net.d")?;
        std::fs::write(conf_dir.join("10-twill.conflist"), list.to_string())?;
        std::fs::write(
            dir.join("containers.conf"),
            format!(
                "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n\
                 [network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [{bin_dir:?}]\n\
                 network_config_dir = {conf_dir:?}\n\
                 [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nruntime = \"runc\"\n"
            ),
        )?;
        let (graph, run) = (dir.join("graph"), dir.join("run"));
        std::fs::write(
            dir.join("storage.conf"),
            format!("[storage]\ndriver = \"vfs\"\ngraphroot = {graph:?}\nrunroot = {run:?}\n"),
        )?;
        Ok(Self { program, node })
    }

    fn try_run(&self, args: &[&str]) -> Result<Output> {
        let dir = self.node.dir();
        let mut command = self.node.command(&self.program)?;
        command
            .env("CONTAINERS_CONF", dir.join("containers.conf"))
            .env("CONTAINERS_STORAGE_CONF", dir.join("storage.conf"))
            .arg("--tmpdir")
            .arg(dir.join("tmp"))
            .args(args);
        process::run(&mut command, b"", DEADLINE)
    }

    fn run(&self, args: &[&str]) -> Result<String> {
        let output = self.try_run(args)?;
        ensure!(
            output.status.success(),
            "podman {}: {}",
            args.join(" "),
            output.stderr_text()
        );
        Ok(output.stdout_text().trim().to_owned())
    }

    /// A container that runs `command` in a shell, of busybox alone.
    fn container(&self, name: &str, more: &[&str], command: &str) -> Result<()> {
        let rootfs = root_file_system(&self.node.make_dir(&format!("rootfs-{name}"))?)?;
        let rootfs = rootfs.display().to_string();
        let mut args = vec!["run", "-d", "--name", name, "--network", NETWORK];
        args.extend(more);
        args.extend(["--rootfs", &rootfs, "/bin/sh", "-c", command]);
        self.run(&args).map(drop)
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.try_run(&["rm", "-f", "-t", "0", "--all"]);
    }
}

fn root_file_system(dir: &Path) -> Result<PathBuf> {
    for folder in ["bin", "etc", "proc", "sys", "dev", "tmp", "run"] {
        std::fs::create_dir_all(dir.join(folder))?;
    }
    std::fs::copy("/bin/busybox", dir.join("bin/busybox")).context("Debian's busybox-static")?;
    for applet in ["sh", "sleep", "ping", "mkdir", "httpd"] {
        std::os::unix::fs::symlink("busybox", dir.join("bin").join(applet))?;
    }
    Ok(dir.to_owned())
}

#[test]
fn containers_of_podman_reach_each_other_and_leave_nothing() -> Result<()> {
    let podman = Podman::on_a_node(skip_unless!(tools::program("podman")))?;
    let backend = podman.run(&["info", "--format", "{{.Host.NetworkBackend}}"]);
    // podman 5 (Debian 13) has no CNI backend, and refuses the config that asks for it.
    match backend {
        Ok(backend) if backend == "cni" => {}
        Ok(backend) => bail!("podman took {backend} for its network backend"),
        // Not a thing to install: what this podman is cannot be had.
        Err(error) if error.to_string().contains("cni") => {
            return skip::not_tried(&format!("podman without CNI: {error:#}"), file!());
        }
        Err(error) => return Err(error),
    }
    podman.container("a", &[], "exec sleep 600")?;
    podman.container("b", &["-p", "8080:80"], SERVE)?;
    let ip = "{{.NetworkSettings.Networks.twillnet.IPAddress}}";
    let [a, b] = ["a", "b"].map(|name| podman.run(&["inspect", name, "--format", ip]));
    let (a, b) = (a?, b?);
    assert!(a.starts_with("10.244.9.") && b.starts_with("10.244.9.") && a != b);
    podman.run(&["exec", "b", "/bin/ping", "-c", "2", "-W", "2", &a])?;
    podman.run(&["exec", "a", "/bin/ping", "-c", "2", "-W", "2", &b])?;
    for ip in [GATEWAY, Ipv4Addr::LOCALHOST] {
        let address = SocketAddr::from((ip, 8080));
        wait::until_true(&format!("an answer at {address}"), DEADLINE, || {
            answers(&podman.node, address)
        })?;
    }

    podman.run(&["rm", "-f", "-t", "0", "a", "b"])?;
    assert!(!answers(&podman.node, SocketAddr::from((GATEWAY, 8080)))?);
    assert_eq!(podman.node.view().link_names()?, ["cni0"]);
    let reservations = podman.node.dir().join("networks").join(NETWORK);
    wait_until_nothing_is_left(podman.node.view(), &reservations, &[a, b])
}
