//! The real etcd, from Debian's packages: one member or more, plain or with TLS, with or without
//! users, on loopback or inside a namespace; killed, paused, restarted and wiped as a test wants.
//!
//! Its data lies in a folder of its own and goes with it. What tests look at goes through etcdctl.

mod ctl;
mod setup;
mod shared;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::Signal;

pub use self::ctl::Entry;
pub use self::setup::{ClientCertificates, Setup};

use crate::certificates::{Authority, Identity};
use crate::netns::Netns;
use crate::process::{self, Daemon};
use crate::tools::{self, Missing};
use crate::wait::{self, Look};

/// How long a cluster may take to answer.
const START: Duration = Duration::from_secs(30);

/// A running cluster; ended and removed when dropped.
pub struct Etcd {
    dir: PathBuf,
    members: Vec<Member>,
    address: IpAddr,
    inside: Option<Netns>,
    tls: Option<(ClientCertificates, Authority, Identity)>,
    flags: Vec<String>,
    root_password: Option<String>,
    kept: bool,
}

struct Member {
    client_port: u16,
    peer_port: u16,
    daemon: Option<Daemon>,
}

/// Whether etcd and etcdctl are on this machine.
pub fn installed() -> Result<(), Missing> {
    tools::program("etcd")
        .and_then(|_| tools::program("etcdctl"))
        .map(|_| ())
}

impl Etcd {
    /// One member on loopback without TLS or users.
    pub fn start() -> Result<Self> {
        Setup::default().start()
    }

    /// The endpoints of all members, with commas, as flags take them.
    pub fn endpoints(&self) -> String {
        let urls: Vec<String> = (0..self.members.len())
            .map(|n| self.client_url(n))
            .collect();
        urls.join(",")
    }

    /// The endpoint of one member.
    pub fn client_url(&self, member: usize) -> String {
        self.url(self.members[member].client_port)
    }

    fn url(&self, port: u16) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        match self.address {
            IpAddr::V4(v4) => format!("{scheme}://{v4}:{port}"),
            IpAddr::V6(v6) => format!("{scheme}://[{v6}]:{port}"),
        }
    }

    /// The authority of an etcd with TLS.
    pub fn authority(&self) -> Option<&Authority> {
        self.tls.as_ref().map(|(_, authority, _)| authority)
    }

    /// Kills a member as a crash would.
    pub fn kill(&mut self, member: usize) {
        if let Some(daemon) = self.members[member].daemon.take() {
            daemon.kill();
        }
    }

    /// Kills all members.
    pub fn kill_all(&mut self) {
        (0..self.members.len()).for_each(|member| self.kill(member));
    }

    /// Starts the members that are not running, with what they had, and waits until all answer.
    pub fn start_all(&mut self) -> Result<()> {
        for member in 0..self.members.len() {
            if self.members[member].daemon.is_none() {
                self.members[member].daemon = Some(self.spawn(member)?);
            }
        }
        (0..self.members.len()).try_for_each(|member| self.wait_for(member))
    }

    /// Leaves everything running and lying about when this is dropped.
    pub fn keep(&mut self) {
        self.kept = true;
        let daemons = self
            .members
            .iter_mut()
            .filter_map(|member| member.daemon.take());
        daemons.for_each(Daemon::detach);
    }

    /// Stops a member's process where it stands: it holds its connections and answers nothing.
    pub fn pause(&self, member: usize) -> Result<()> {
        self.signal(member, Signal::SIGSTOP)
    }

    /// Lets a paused member go on.
    pub fn resume(&self, member: usize) -> Result<()> {
        self.signal(member, Signal::SIGCONT)
    }

    fn signal(&self, member: usize, signal: Signal) -> Result<()> {
        let daemon = self.members[member].daemon.as_ref();
        daemon
            .ok_or_else(|| anyhow!("member {member} is not running"))?
            .signal(signal)
    }

    /// Kills all members, deletes what they had, and starts them anew at the same endpoints.
    pub fn wipe(&mut self) -> Result<()> {
        self.kill_all();
        for member in 0..self.members.len() {
            let data_dir = self.data_dir(member);
            std::fs::remove_dir_all(&data_dir)
                .with_context(|| format!("delete {}", data_dir.display()))?;
        }
        self.root_password = None;
        self.start_all()
    }

    /// The folder in which a member keeps everything.
    pub(crate) fn data_dir(&self, member: usize) -> PathBuf {
        self.dir.join(format!("data-{member}"))
    }

    fn spawn(&self, member: usize) -> Result<Daemon> {
        let name = format!("etcd-{member}");
        let ports = &self.members[member];
        let (client_url, peer_url) = (self.url(ports.client_port), self.url(ports.peer_port));
        let cluster: Vec<String> = self
            .members
            .iter()
            .enumerate()
            .map(|(n, member)| format!("etcd-{n}={}", self.url(member.peer_port)))
            .collect();
        let mut command = self.program("etcd")?;
        command
            .args(["--name", &name, "--data-dir"])
            .arg(self.data_dir(member))
            .args([
                "--listen-client-urls",
                &client_url,
                "--advertise-client-urls",
                &client_url,
            ])
            .args([
                "--listen-peer-urls",
                &peer_url,
                "--initial-advertise-peer-urls",
                &peer_url,
            ])
            .args([
                "--initial-cluster",
                &cluster.join(","),
                "--initial-cluster-state",
                "new",
            ])
            .args(["--initial-cluster-token", &self.dir.display().to_string()])
            // Elections take half a second, and a lease may be as short as a second.
            .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
            .args(["--log-level", "warn"])
            .args(&self.flags);
        if let Some((client_certificates, authority, identity)) = &self.tls {
            for kind in ["", "peer-"] {
                command
                    .arg(format!("--{kind}cert-file"))
                    .arg(&identity.cert_path);
                command
                    .arg(format!("--{kind}key-file"))
                    .arg(&identity.key_path);
            }
            command
                .arg("--peer-trusted-ca-file")
                .arg(authority.ca_path());
            // Given an authority for clients, etcd wants to see their certificates.
            if *client_certificates == ClientCertificates::Wanted {
                command
                    .arg("--client-cert-auth")
                    .arg("--trusted-ca-file")
                    .arg(authority.ca_path());
            }
        }
        Daemon::spawn(&name, &mut command, &self.dir.join(format!("{name}.log")))
    }

    fn wait_for(&mut self, member: usize) -> Result<()> {
        let endpoint = self.client_url(member);
        let mut health = self.command(&["--endpoints", &endpoint, "endpoint", "health"])?;
        let look = || {
            let output = process::run(&mut health, b"", process::DEADLINE)?;
            Ok(match output.status.success() {
                true => Look::Done(()),
                false => Look::NotYet(output.stderr_text()),
            })
        };
        match &mut self.members[member].daemon {
            Some(daemon) => daemon.wait_until("etcd answers", START, look),
            None => wait::until("etcd answers", START, look),
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        self.kill_all();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
