//! Which store the flags choose, and what they say about it: Kubernetes if it is asked for, etcd if
//! anything is said about etcd, else the folder. flanneld takes etcd on this machine when nothing is
//! said; a folder needs nothing that may not be there.

use std::path::PathBuf;
use std::time::Duration;

use super::{FlagError, boolean};
use crate::store::{etcd, kube};

/// The flag that chooses Kubernetes.
pub(super) const KUBERNETES: &str = "kube-subnet-mgr";
const OF_KUBERNETES: [&str; 5] = [
    "kube-api-url",
    "kube-annotation-prefix",
    "kubeconfig-file",
    "net-config-path",
    "set-node-network-unavailable",
];
const OF_ETCD: &str = "etcd-";

/// Where the leases are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum StoreChoice {
    /// In the folder `--store-dir`.
    #[default]
    Folder,
    /// In etcd.
    Etcd(etcd::Options),
    /// In the cluster's Nodes.
    Kubernetes(Kubernetes),
}

/// What the flags say about Kubernetes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kubernetes {
    /// The store's options.
    pub options: kube::Options,
    /// `--set-node-network-unavailable`.
    pub announce: bool,
}

/// The values as they are given.
#[derive(Clone)]
pub(super) struct Wished {
    kubernetes: bool,
    api_url: String,
    annotation_prefix: String,
    kubeconfig: String,
    net_conf_path: PathBuf,
    announce: bool,
    endpoints: String,
    prefix: String,
    key: String,
    certificate: String,
    authority: String,
    user: String,
    password: String,
}

impl Default for Wished {
    fn default() -> Self {
        Self {
            kubernetes: false,
            api_url: String::new(),
            annotation_prefix: kube::DEFAULT_PREFIX.to_owned(),
            kubeconfig: String::new(),
            net_conf_path: "/etc/kube-flannel/net-conf.json".into(),
            announce: true,
            endpoints: "http://127.0.0.1:4001,http://127.0.0.1:2379".to_owned(),
            prefix: "/coreos.com/network".to_owned(),
            key: String::new(),
            certificate: String::new(),
            authority: String::new(),
            user: String::new(),
            password: String::new(),
        }
    }
}

/// Whether a flag is about one store alone.
pub(super) fn is_flag(name: &str) -> bool {
    name == KUBERNETES || OF_KUBERNETES.contains(&name) || name.starts_with(OF_ETCD)
}

impl Wished {
    /// Takes a value for a flag of ours.
    pub(super) fn set(&mut self, name: &str, value: &str) -> Result<(), FlagError> {
        let text = match name {
            KUBERNETES => {
                self.kubernetes = boolean(name, value)?;
                return Ok(());
            }
            "set-node-network-unavailable" => {
                self.announce = boolean(name, value)?;
                return Ok(());
            }
            "net-config-path" => {
                self.net_conf_path = value.into();
                return Ok(());
            }
            "kube-api-url" => &mut self.api_url,
            "kube-annotation-prefix" => &mut self.annotation_prefix,
            "kubeconfig-file" => &mut self.kubeconfig,
            "etcd-endpoints" => &mut self.endpoints,
            "etcd-prefix" => &mut self.prefix,
            "etcd-keyfile" => &mut self.key,
            "etcd-certfile" => &mut self.certificate,
            "etcd-cafile" => &mut self.authority,
            "etcd-username" => &mut self.user,
            "etcd-password" => &mut self.password,
            other => return Err(FlagError::Unknown(other.to_owned())),
        };
        value.clone_into(text);
        Ok(())
    }

    /// The store, and a warning for each flag that is about another one.
    pub(super) fn choose(
        self,
        given: &[String],
        ttl: Duration,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<(StoreChoice, Vec<String>), FlagError> {
        let of_etcd = |name: &str| name.starts_with(OF_ETCD);
        let kubernetes = self.kubernetes;
        let choice = match kubernetes {
            true => StoreChoice::Kubernetes(self.kubernetes(env)?),
            false if given.iter().any(|name| of_etcd(name)) => {
                let options = self.etcd(ttl);
                StoreChoice::Etcd(options.map_err(|error| FlagError::Store(error.to_string()))?)
            }
            false => StoreChoice::Folder,
        };
        let of_another = |name: &str| match kubernetes {
            true => of_etcd(name),
            false => OF_KUBERNETES.contains(&name),
        };
        let unused = given.iter().filter(|name| of_another(name));
        let why = match kubernetes {
            true => "the leases are in Kubernetes",
            false => "--kube-subnet-mgr is not given",
        };
        let warning = |name: &String| format!("flag --{name} has no effect: {why}");
        Ok((choice, unused.map(warning).collect()))
    }

    /// Says where etcd is, and with a path below which prefix: `URL,URL/PREFIX`.
    pub(super) fn locate_etcd(&mut self, place: &str) {
        let authority = place.rfind("://").map_or(0, |at| at + 3);
        let path = place[authority..].find('/').map(|at| authority + at);
        let (endpoints, prefix) = place.split_at(path.unwrap_or(place.len()));
        endpoints.clone_into(&mut self.endpoints);
        if prefix.len() > 1 {
            prefix.clone_into(&mut self.prefix);
        }
    }

    pub(super) fn etcd(self, ttl: Duration) -> Result<etcd::Options, etcd::OptionsError> {
        let path = |text: String| {
            Some(text)
                .filter(|text| !text.is_empty())
                .map(PathBuf::from)
        };
        Ok(etcd::Options {
            endpoints: etcd::parse_endpoints(&self.endpoints)?,
            prefix: self.prefix,
            tls: etcd::TlsFiles::new(path(self.authority), path(self.certificate), path(self.key))?,
            credentials: etcd::Credentials::new(&self.user, &self.password)?,
            ttl,
        })
    }

    fn kubernetes(self, env: impl Fn(&str) -> Option<String>) -> Result<Kubernetes, FlagError> {
        self.kubernetes_of(kube::Identity::from_env(&env), env)
    }

    /// For who only reads, and is no node of the cluster.
    pub(super) fn kubernetes_for_nobody(
        self,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Kubernetes, FlagError> {
        self.kubernetes_of(Ok(kube::Identity::Node(String::new())), env)
    }

    fn kubernetes_of(
        self,
        identity: Result<kube::Identity, kube::Anonymous>,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Kubernetes, FlagError> {
        let source = kube::Source::choose(&self.api_url, &self.kubeconfig, &env);
        let options = kube::Options {
            source: source.map_err(|error| FlagError::Store(error.to_string()))?,
            identity: identity.map_err(|error| FlagError::Store(error.to_string()))?,
            annotation_prefix: self.annotation_prefix,
            net_conf_path: self.net_conf_path,
            patience: kube::Patience::default(),
        };
        Ok(Kubernetes {
            options,
            announce: self.announce,
        })
    }
}
