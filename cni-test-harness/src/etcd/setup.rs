//! What kind of etcd a test wants, and its first start.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Etcd, Member};
use crate::certificates::Authority;
use crate::netns::{self, Netns};

/// What kind of cluster to start.
#[derive(Debug)]
pub struct Setup<'a> {
    members: usize,
    tls: Option<ClientCertificates>,
    inside: Option<(&'a Netns, IpAddr)>,
    dir: Option<PathBuf>,
    flags: Vec<String>,
}

/// Whether an etcd with TLS wants to see a certificate of its clients'.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertificates {
    /// It does.
    Wanted,
    /// It does not.
    NotWanted,
}

impl Default for Setup<'_> {
    fn default() -> Self {
        Self {
            members: 1,
            tls: None,
            inside: None,
            dir: None,
            flags: Vec::new(),
        }
    }
}

impl<'a> Setup<'a> {
    /// So many members.
    pub fn members(self, members: usize) -> Self {
        Self { members, ..self }
    }

    /// Clients and members speak TLS.
    pub fn tls(self, client_certificates: ClientCertificates) -> Self {
        let tls = Some(client_certificates);
        Self { tls, ..self }
    }

    /// With further flags of etcd's own.
    pub fn flags(mut self, flags: &[&str]) -> Self {
        self.flags.extend(flags.iter().map(ToString::to_string));
        self
    }

    /// In a namespace, where it listens at `address`.
    pub fn inside(self, netns: &'a Netns, address: IpAddr) -> Self {
        let inside = Some((netns, address));
        Self { inside, ..self }
    }

    /// With everything that it keeps in this folder, which is made.
    pub fn dir(self, dir: PathBuf) -> Self {
        let dir = Some(dir);
        Self { dir, ..self }
    }

    /// Watches are told every few seconds how far it is, as an API server wants it: it has nothing
    /// else to tell in its bookmarks.
    pub fn with_progress(self) -> Self {
        self.flags(&["--experimental-watch-progress-notify-interval=5s"])
    }

    /// Starts it and waits until it answers.
    pub fn start(self) -> Result<Etcd> {
        let unique = || scratch_dir().join(netns::unique_name("etcd"));
        let dir = self.dir.clone().unwrap_or_else(unique);
        std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let address = self
            .inside
            .map_or(Ipv4Addr::LOCALHOST.into(), |(_, address)| address);
        let tls = match self.tls {
            None => None,
            Some(wanted) => {
                let authority = Authority::new(&dir)?;
                let identity = authority.issue("member", &[&address.to_string(), "localhost"])?;
                Some((wanted, authority, identity))
            }
        };
        let ports = free_ports(self.members * 2)?;
        let member = |ports: &[u16]| Member {
            client_port: ports[0],
            peer_port: ports[1],
            daemon: None,
        };
        let mut etcd = Etcd {
            dir,
            members: ports.chunks(2).map(member).collect(),
            address,
            inside: self
                .inside
                .map(|(netns, _)| Netns::open(netns.name()))
                .transpose()?,
            tls,
            flags: self.flags,
            root_password: None,
            kept: false,
        };
        etcd.start_all()?;
        Ok(etcd)
    }
}

/// Memory where there is some: an etcd syncs its log to disk for every write.
fn scratch_dir() -> PathBuf {
    let memory = Path::new("/dev/shm");
    match memory.is_dir() {
        true => memory.to_owned(),
        false => std::env::temp_dir(),
    }
}

/// Ports that nobody has, as far as one can know before taking them.
fn free_ports(count: usize) -> Result<Vec<u16>> {
    let bind = |_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    // All held until all are known, so that they differ.
    let held = (0..count).map(bind).collect::<std::io::Result<Vec<_>>>()?;
    let ports = held.iter().map(|socket| Ok(socket.local_addr()?.port()));
    ports.collect()
}
