//! Where an API server is to run, and its first start.

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::credentials::Credentials;
use super::{ApiServer, Programs, audit};
use crate::etcd;
use crate::netns::{Netns, unique_name};

/// The services' network; its first address is the API server's own.
pub(super) const SERVICES: &str = "10.96.0.0/16";
/// Where pods are told that the API server is.
pub(super) const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// Where it runs and what is around it.
#[derive(Debug, Default)]
pub struct Setup<'a> {
    inside: Option<(&'a Netns, Ipv4Addr)>,
    dir: Option<PathBuf>,
    whole: bool,
}

/// Ports of one server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ports {
    pub(super) api: u16,
    pub(super) proxy: u16,
}

impl Ports {
    /// Ports that nobody has now on loopback.
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

/// `https://ADDRESS:PORT`.
pub(super) fn url(address: Ipv4Addr, ports: Ports) -> String {
    format!("https://{address}:{}", ports.api)
}

/// Of a namespace all addresses, for the service's is one of them.
pub(super) fn bind_address(inside: bool) -> &'static str {
    match inside {
        true => "0.0.0.0",
        false => "127.0.0.1",
    }
}

impl<'a> Setup<'a> {
    /// In a namespace of which `address` is one; it listens at the service's port.
    pub fn inside(self, netns: &'a Netns, address: Ipv4Addr) -> Self {
        let inside = Some((netns, address));
        Self { inside, ..self }
    }

    /// With everything that it keeps in this folder, which is made.
    pub fn dir(self, dir: PathBuf) -> Self {
        let dir = Some(dir);
        Self { dir, ..self }
    }

    /// For controllers and kubelets around it.
    pub(super) fn whole(self) -> Self {
        let whole = true;
        Self { whole, ..self }
    }

    /// Starts it and waits until it is ready.
    pub fn start(self, programs: &Programs) -> Result<ApiServer> {
        let dir = self.dir.clone();
        let dir = dir.unwrap_or_else(|| std::env::temp_dir().join(unique_name("api")));
        std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let mut ports = Ports::choose()?;
        let mut etcd = etcd::Setup::default().with_progress();
        let mut address = Ipv4Addr::LOCALHOST;
        if let Some((netns, inside)) = self.inside {
            address = inside;
            ports.api = 443;
            etcd = etcd.inside(netns, Ipv4Addr::LOCALHOST.into());
            // Who is told of the service finds the server itself, without kube-proxy.
            netns.ip(&["addr", "replace", &format!("{SERVICE}/32"), "dev", "lo"])?;
        }
        if let Some(dir) = &self.dir {
            etcd = etcd.dir(dir.join("etcd"));
        }
        let hosts = [address, SERVICE].map(|address| address.to_string());
        let mut server = ApiServer {
            credentials: Credentials::make(&dir, &url(address, ports), &hosts)?,
            programs: programs.clone(),
            address,
            ports,
            dir,
            inside: self
                .inside
                .map(|(netns, _)| Netns::open(netns.name()))
                .transpose()?,
            whole: self.whole,
            kept: false,
            etcd: etcd.start()?,
            server: None,
            proxy: None,
        };
        audit::write_policy(&server.dir)?;
        server.restart()?;
        Ok(server)
    }
}
