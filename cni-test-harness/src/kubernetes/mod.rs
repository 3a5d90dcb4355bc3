//! A real Kubernetes API server with a real etcd behind it, for one test: alone on loopback, or
//! inside a namespace where nodes reach it.
//!
//! Alone it has no controller and no kubelet: Nodes are made by hand ([`node`]), and what a test
//! wants to happen it does with `kubectl`, which is built with the server. [`ApiServer`] starts,
//! kills and starts again; who may do what is RBAC's matter, with the ClusterRole that operators
//! apply. [`cluster`] puts all of Kubernetes around it.

mod audit;
pub mod cluster;
mod credentials;
pub mod node;
mod proxy;
mod setup;
mod worker;
pub mod workload;

use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

pub use self::audit::Request;
use self::credentials::{CERTIFIED_USER, Credentials};
pub use self::proxy::Change;
use self::setup::Ports;
pub use self::setup::Setup;
pub use self::worker::Worker;
use crate::etcd::{self, Etcd};
use crate::netns::Netns;
use crate::process::{self, Daemon, Output};
use crate::tools::{self, Missing};
use crate::wait::Look;

/// Until a server answers. On two busy cores it takes ten seconds and more.
const START: Duration = Duration::from_secs(120);
/// How long one `kubectl` may take: thousands of Nodes are a minute's work.
const KUBECTL: Duration = Duration::from_secs(300);

/// Where a copy of etcd's data is kept, in the server's folder.
const BACKUP: &str = "etcd.backup";

/// The programs, as far as an API server alone needs them.
#[derive(Debug, Clone)]
pub struct Programs {
    kubernetes: PathBuf,
}

impl Programs {
    /// Looks for all of them.
    pub fn find() -> Result<Self, Missing> {
        etcd::installed()?;
        Ok(Self { kubernetes: dir()? })
    }

    /// One of Kubernetes' own programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.kubernetes.join(name)
    }
}

/// The version of Kubernetes that is built, with its `v`.
pub fn version() -> &'static str {
    let lines = include_str!("../../go/kubernetes/go.mod").lines();
    let mut versions = lines.filter_map(|line| line.trim().strip_prefix("k8s.io/kubernetes "));
    versions.next().expect("go.mod requires k8s.io/kubernetes")
}

/// Where `./dev install-kube` has put Kubernetes' programs.
fn dir() -> Result<PathBuf, Missing> {
    let dir = tools::cache_dir()
        .join("go")
        .join(format!("kubernetes@{}", version()));
    match dir.join("kube-apiserver").is_file() {
        true => Ok(dir),
        false => Err(Missing::new(
            format!("Kubernetes {} ({})", version(), dir.display()),
            "run `./dev install-kube`",
        )),
    }
}

/// An API server. Killed, and its folder removed, when dropped.
pub struct ApiServer {
    programs: Programs,
    dir: PathBuf,
    address: Ipv4Addr,
    ports: Ports,
    inside: Option<Netns>,
    /// Whether there are controllers and kubelets around it.
    whole: bool,
    kept: bool,
    credentials: Credentials,
    etcd: Etcd,
    server: Option<Daemon>,
    proxy: Option<Daemon>,
}

impl ApiServer {
    /// Starts one on loopback and waits until it is ready.
    pub fn start(programs: &Programs) -> Result<Self> {
        Setup::default().start(programs)
    }

    /// The folder in which everything of it lies.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// `https://ADDRESS:PORT`.
    pub fn url(&self) -> String {
        setup::url(self.address, self.ports)
    }

    /// A command that runs where the server does.
    fn command(&self, program: &str) -> Result<Command> {
        let path = self.programs.program(program);
        match &self.inside {
            Some(netns) => netns.command(path),
            None => Ok(Command::new(path)),
        }
    }

    /// The URL of its etcd.
    pub fn etcd_url(&self) -> String {
        self.etcd.client_url(0)
    }

    /// Kills the API server as a crash would.
    pub fn kill(&mut self) {
        self.server = None;
    }

    /// Kills the API server and its etcd.
    pub fn kill_all(&mut self) {
        self.kill();
        self.etcd.kill_all();
    }

    /// Throws away all that the cluster ever was. The API server is dead afterwards.
    pub fn wipe(&mut self) -> Result<()> {
        self.kill();
        self.etcd.wipe()
    }

    /// Keeps a copy of the data, for [`Self::restore`]. Everything is dead afterwards.
    pub fn back_up(&mut self) -> Result<()> {
        self.kill_all();
        copy_dir(&self.etcd.data_dir(0), &self.dir.join(BACKUP))
    }

    /// Goes back to the copy that was kept. Everything is dead afterwards.
    pub fn restore(&mut self) -> Result<()> {
        self.kill_all();
        let data_dir = self.etcd.data_dir(0);
        std::fs::remove_dir_all(&data_dir)
            .with_context(|| format!("delete {}", data_dir.display()))?;
        copy_dir(&self.dir.join(BACKUP), &data_dir)
    }

    /// Starts what is not running, and waits until it is ready.
    pub fn restart(&mut self) -> Result<()> {
        self.etcd.start_all()?;
        if self.server.is_none() {
            self.server = Some(self.start_server()?);
        }
        Ok(())
    }

    fn start_server(&self) -> Result<Daemon> {
        let mut command = self.command("kube-apiserver")?;
        let file = |name: &str| self.dir.join(name).display().to_string();
        command
            .args(["--etcd-servers", &self.etcd_url()])
            .args(["--bind-address", setup::bind_address(self.inside.is_some())])
            .args(["--secure-port", &self.ports.api.to_string()])
            .arg("--tls-cert-file")
            .arg(&self.credentials.server.cert_path)
            .arg("--tls-private-key-file")
            .arg(&self.credentials.server.key_path)
            .arg("--client-ca-file")
            .arg(&self.credentials.ca)
            .arg("--token-auth-file")
            .arg(&self.credentials.tokens)
            .args(["--authorization-mode", "Node,RBAC"])
            .args(["--service-account-issuer", "https://kubernetes.default.svc"])
            .arg("--service-account-key-file")
            .arg(&self.credentials.server.cert_path)
            .arg("--service-account-signing-key-file")
            .arg(&self.credentials.server.key_path)
            .args(["--service-cluster-ip-range", setup::SERVICES])
            .args(["--endpoint-reconciler-type", "none"])
            .args(["--audit-policy-file", &file(audit::POLICY)])
            .args(["--audit-log-path", &file(audit::LOG)]);
        if self.inside.is_some() {
            command.args(["--advertise-address", &self.address.to_string()]);
        }
        match self.whole {
            true => command
                .args(["--enable-admission-plugins", "NodeRestriction"])
                // The nodes' names mean nothing to a resolver.
                .args(["--kubelet-preferred-address-types", "InternalIP"]),
            // Nobody makes service accounts.
            false => command.args(["--disable-admission-plugins", "ServiceAccount"]),
        };
        let mut server = Daemon::spawn("kube-apiserver", &mut command, &self.dir.join("api.log"))?;
        server.wait_until("it is ready", START, || {
            // Not before the rules of its own roles are there.
            let ready = self.kubectl(&["get", "--raw", "/readyz"], b"");
            Ok(match ready {
                Ok(_) => Look::Done(()),
                Err(error) => Look::NotYet(error.to_string()),
            })
        })?;
        Ok(server)
    }

    /// Runs `kubectl` as the cluster's admin with `stdin`; what it printed.
    pub fn kubectl(&self, args: &[&str], stdin: &[u8]) -> Result<Output> {
        let mut command = self.command("kubectl")?;
        command
            .args(["--kubeconfig".as_ref(), self.credentials.admin.as_os_str()])
            .args(args)
            // Discovery is kept between runs, per test.
            .env("KUBECACHEDIR", self.dir.join("kubectl"));
        process::check_with(&mut command, stdin, KUBECTL)
    }

    /// What a person types before a subcommand of `kubectl`, as the cluster's admin.
    pub fn kubectl_line(&self) -> String {
        let enter = self.inside.as_ref();
        let enter = enter.map(|netns| format!("ip netns exec {} ", netns.name()));
        format!(
            "{}{} --kubeconfig {}",
            enter.unwrap_or_default(),
            self.programs.program("kubectl").display(),
            self.credentials.admin.display()
        )
    }

    /// Makes many changes side by side, as fast as the server takes them.
    pub fn change(&mut self, changes: &[Change]) -> Result<()> {
        self.plain_url()?;
        proxy::change_all(self.ports.proxy, changes)
    }

    /// A URL without TLS at which everybody is the cluster's admin.
    pub fn plain_url(&mut self) -> Result<String> {
        if self.proxy.is_none() {
            self.proxy = Some(self.start_proxy()?);
        }
        Ok(format!("http://127.0.0.1:{}", self.ports.proxy))
    }

    fn start_proxy(&self) -> Result<Daemon> {
        ensure!(
            self.inside.is_none(),
            "many changes at once go to a server on loopback"
        );
        let mut command = self.command("kubectl")?;
        command
            .args(["--kubeconfig".as_ref(), self.credentials.admin.as_os_str()])
            .args(["proxy", "--port", &self.ports.proxy.to_string()]);
        let mut proxy = Daemon::spawn("kubectl proxy", &mut command, &self.dir.join("proxy.log"))?;
        listening(&mut proxy, self.ports.proxy)?;
        Ok(proxy)
    }

    /// An object as JSON, such as `get_json(&["node", "k1"])`.
    pub fn get_json(&self, what: &[&str]) -> Result<Value> {
        let args = [&["get", "-o", "json"], what].concat();
        let output = self.kubectl(&args, b"")?;
        serde_json::from_slice(&output.stdout).with_context(|| format!("decode {what:?}"))
    }

    /// Creates objects as they are, their status included where the API server takes it.
    pub fn create(&self, objects: &[Value]) -> Result<()> {
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.kubectl(
            &["create", "--validate=false", "-f", "-"],
            list.to_string().as_bytes(),
        )?;
        Ok(())
    }

    /// Sets or, with `-` after the name, removes annotations of a Node.
    pub fn annotate(&self, node: &str, annotations: &[&str]) -> Result<()> {
        let args = [&["annotate", "--overwrite", "node", node], annotations].concat();
        self.kubectl(&args, b"").map(drop)
    }

    /// A kubeconfig with the admin's token.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.credentials.admin.clone()
    }

    /// A kubeconfig of a node's kubelet.
    pub fn kubelet_kubeconfig(&self, node: &str) -> Result<PathBuf> {
        self.credentials.of_kubelet(node, &self.url())
    }

    /// A kubeconfig with the token of a service account, as an operator would make one for a
    /// program outside of pods.
    pub fn service_account_kubeconfig(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        let token = self.kubectl(
            &["-n", namespace, "create", "token", name, "--duration=24h"],
            b"",
        )?;
        let token = token.stdout_text();
        self.credentials
            .by_token(&format!("{namespace}-{name}"), token.trim(), &self.url())
    }

    /// A kubeconfig with a client certificate, whose user may do everything.
    pub fn certificate_kubeconfig(&self) -> Result<PathBuf> {
        let user = format!("--user={CERTIFIED_USER}");
        let args = [
            "create",
            "clusterrolebinding",
            CERTIFIED_USER,
            "--clusterrole=cluster-admin",
            &user,
        ];
        self.kubectl(&args, b"")?;
        Ok(self.credentials.certified.clone())
    }

    /// What a pod of this service account has: a folder with `token` and `ca.crt`.
    pub fn service_account_dir(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        let made = self.kubectl(&["-n", namespace, "create", "token", name], b"")?;
        let dir = self.dir.join(format!("serviceaccount-{namespace}-{name}"));
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join("token"), made.stdout)?;
        std::fs::copy(&self.credentials.ca, dir.join("ca.crt"))?;
        Ok(dir)
    }

    /// Every request about Nodes and pods by programs whose name (the User-Agent's first word)
    /// begins with `agent`, in the order in which they were answered.
    pub fn requests(&self, agent: &str) -> Result<Vec<Request>> {
        audit::requests(&self.dir, agent)
    }

    /// Leaves everything running and lying about when this is dropped.
    pub fn keep(&mut self) {
        self.kept = true;
        self.etcd.keep();
        let daemons = [self.server.take(), self.proxy.take()];
        daemons.into_iter().flatten().for_each(Daemon::detach);
    }

    /// Makes etcd forget all versions but the present one.
    pub fn compact(&self) -> Result<()> {
        self.etcd.compact().map(drop)
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        self.kill_all();
        if std::thread::panicking() {
            eprintln!("the API server's files are left in {}", self.dir.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

fn listening(daemon: &mut Daemon, port: u16) -> Result<()> {
    daemon.wait_until("it listens", START, || {
        Ok(match TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
            Ok(_) => Look::Done(()),
            Err(error) => Look::NotYet(error.to_string()),
        })
    })
}

fn copy_dir(from: &Path, to: &Path) -> Result<()> {
    let mut command = Command::new("cp");
    command.arg("-a").arg(from).arg(to);
    process::check(&mut command).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_modules() {
        assert!(version().starts_with("v1."), "{}", version());
    }
}
