//! A real Kubernetes API server with a real etcd behind it, on loopback, for one test.
//!
//! There is no controller and no kubelet: Nodes are made by hand ([`node`]), and what a test wants
//! to happen it does with `kubectl`, which is built with the server. [`ApiServer`] starts, kills and
//! starts again; who may do what is RBAC's matter, with the ClusterRole that operators apply.

mod audit;
mod credentials;
pub mod node;
mod proxy;

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

pub use self::audit::Request;
use self::credentials::{CERTIFIED_USER, Credentials};
pub use self::proxy::Change;
use crate::etcd::{self, Etcd};
use crate::netns::unique_name;
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

/// Ports of one server, all on loopback.
#[derive(Debug, Clone, Copy)]
struct Ports {
    api: u16,
    proxy: u16,
}

impl Ports {
    /// Ports that nobody has now.
    fn choose() -> Result<Self> {
        let any = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port");
        let port = |listener: &TcpListener| Ok::<_, anyhow::Error>(listener.local_addr()?.port());
        // All are held until the last is known, so that they differ.
        let (api, proxy) = (any()?, any()?);
        Ok(Self {
            api: port(&api)?,
            proxy: port(&proxy)?,
        })
    }
}

/// An API server. Killed, and its folder removed, when dropped.
pub struct ApiServer {
    programs: Programs,
    dir: PathBuf,
    ports: Ports,
    credentials: Credentials,
    etcd: Etcd,
    server: Option<Daemon>,
    proxy: Option<Daemon>,
}

impl ApiServer {
    /// Starts one and waits until it is ready.
    pub fn start(programs: &Programs) -> Result<Self> {
        let dir = std::env::temp_dir().join(unique_name("api"));
        std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let ports = Ports::choose()?;
        let mut server = Self {
            credentials: Credentials::make(&dir, &url(ports))?,
            programs: programs.clone(),
            ports,
            dir,
            etcd: Etcd::start()?,
            server: None,
            proxy: None,
        };
        audit::write_policy(&server.dir)?;
        server.restart()?;
        Ok(server)
    }

    /// The folder in which everything of it lies.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// `https://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        url(self.ports)
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
        let mut command = Command::new(self.programs.program("kube-apiserver"));
        let file = |name: &str| self.dir.join(name).display().to_string();
        command
            .args(["--etcd-servers", &self.etcd_url()])
            .args(["--bind-address", "127.0.0.1"])
            .args(["--secure-port", &self.ports.api.to_string()])
            .arg("--tls-cert-file")
            .arg(&self.credentials.server.cert_path)
            .arg("--tls-private-key-file")
            .arg(&self.credentials.server.key_path)
            .arg("--client-ca-file")
            .arg(&self.credentials.ca)
            .arg("--token-auth-file")
            .arg(&self.credentials.tokens)
            .args(["--authorization-mode", "RBAC"])
            .args(["--service-account-issuer", "https://kubernetes.default.svc"])
            .arg("--service-account-key-file")
            .arg(&self.credentials.server.cert_path)
            .arg("--service-account-signing-key-file")
            .arg(&self.credentials.server.key_path)
            .args(["--service-cluster-ip-range", "10.96.0.0/16"])
            // Nobody makes service accounts, and there is no endpoint to keep.
            .args(["--disable-admission-plugins", "ServiceAccount"])
            .args(["--endpoint-reconciler-type", "none"])
            .args(["--audit-policy-file", &file(audit::POLICY)])
            .args(["--audit-log-path", &file(audit::LOG)]);
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
        let mut command = Command::new(self.programs.program("kubectl"));
        command
            .args(["--kubeconfig".as_ref(), self.credentials.admin.as_os_str()])
            .args(args)
            // Discovery is kept between runs, per test.
            .env("KUBECACHEDIR", self.dir.join("kubectl"));
        process::check_with(&mut command, stdin, KUBECTL)
    }

    /// Makes many changes side by side, as fast as the server takes them.
    pub fn change(&mut self, changes: &[Change]) -> Result<()> {
        if self.proxy.is_none() {
            self.proxy = Some(self.start_proxy()?);
        }
        proxy::change_all(self.ports.proxy, changes)
    }

    fn start_proxy(&self) -> Result<Daemon> {
        let mut command = Command::new(self.programs.program("kubectl"));
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

    /// Makes etcd forget all versions but the present one.
    pub fn compact(&self) -> Result<()> {
        self.etcd.compact().map(drop)
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
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

fn url(ports: Ports) -> String {
    format!("https://127.0.0.1:{}", ports.api)
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
