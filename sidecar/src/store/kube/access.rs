//! Where the API server is and how this node shows who it is: in a pod, by a kubeconfig file, or at
//! a plain URL.
//!
//! Files are read anew for every connection, because tokens and certificates are replaced under a
//! running program. Secrets are never printed: nothing here shows more than paths.

mod kubeconfig;
#[cfg(feature = "fuzz")]
pub(super) use kubeconfig::is_read as kubeconfig_is_read;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

/// Where a pod finds its token and the cluster's certificate authority.
const SERVICE_ACCOUNT_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// How the API server is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// We run in a pod.
    InCluster {
        /// The service's address, as Kubernetes puts it into the environment.
        url: String,
        /// The folder with `token` and `ca.crt`.
        dir: PathBuf,
    },
    /// A kubeconfig file.
    Kubeconfig {
        /// Where it is.
        path: PathBuf,
        /// The API server's URL, if not the file's.
        url: Option<String>,
    },
    /// A URL, and nothing to show there.
    Url(String),
}

/// Why the API server cannot even be asked.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// Nothing says where it is.
    #[error(
        "where is the API server? run in a pod, or give --kubeconfig-file or --kube-api-url (KUBERNETES_SERVICE_HOST is not set)"
    )]
    Nowhere,
    /// A file cannot be read.
    #[error("read {path}: {source}")]
    File {
        /// Which one.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// What a file or a flag says cannot be used.
    #[error("{place}: {problem}")]
    Content {
        /// The file, and the place in it.
        place: String,
        /// What is wrong.
        problem: String,
    },
}

/// Everything needed for one connection.
pub(super) struct Access {
    /// The API server.
    pub(super) server: Server,
    /// For `Authorization: Bearer`.
    pub(super) token: Option<String>,
    /// TLS, unless the URL is plain.
    pub(super) tls: Option<Tls>,
}

/// TLS towards the API server.
pub(super) struct Tls {
    pub(super) config: Arc<ClientConfig>,
    pub(super) name: ServerName<'static>,
}

/// The API server's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
    /// Before `/api/v1`, without a slash at its end.
    pub(super) path: String,
}

/// What TLS is made of, as PEM texts.
#[derive(Default)]
struct Material {
    roots: Option<Vec<u8>>,
    client: Option<(Vec<u8>, Vec<u8>)>,
    server_name: Option<String>,
}

fn content(place: impl Into<String>, problem: impl std::fmt::Display) -> AccessError {
    AccessError::Content {
        place: place.into(),
        problem: problem.to_string(),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, AccessError> {
    fs::read(path).map_err(|source| AccessError::File {
        path: path.display().to_string(),
        source,
    })
}

fn read_token(path: &Path) -> Result<String, AccessError> {
    let text = String::from_utf8_lossy(&read(path)?).trim().to_owned();
    match text.is_empty() || text.contains(char::is_whitespace) {
        true => Err(content(path.display().to_string(), "it holds no token")),
        false => Ok(text),
    }
}

impl Source {
    /// flannel's order: a kubeconfig or URL that is given, else the pod we run in. `env` looks an
    /// environment variable up.
    pub fn choose(
        url: &str,
        kubeconfig: &str,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, AccessError> {
        let url = Some(url).filter(|url| !url.is_empty()).map(str::to_owned);
        if !kubeconfig.is_empty() {
            let path = kubeconfig.into();
            return Ok(Self::Kubeconfig { path, url });
        }
        if let Some(url) = url {
            return Ok(Self::Url(url));
        }
        let set = |name| env(name).filter(|value| !value.is_empty());
        let host = set("KUBERNETES_SERVICE_HOST").ok_or(AccessError::Nowhere)?;
        let port = set("KUBERNETES_SERVICE_PORT").ok_or(AccessError::Nowhere)?;
        let host = match host.parse() {
            Ok(IpAddr::V6(v6)) => format!("[{v6}]"),
            _ => host,
        };
        Ok(Self::InCluster {
            url: format!("https://{host}:{port}"),
            dir: SERVICE_ACCOUNT_DIR.into(),
        })
    }

    /// Reads what is to be read.
    pub(super) fn load(&self) -> Result<Access, AccessError> {
        match self {
            Self::InCluster { url, dir } => {
                let material = Material {
                    roots: Some(read(&dir.join("ca.crt"))?),
                    ..Material::default()
                };
                let token = read_token(&dir.join("token"))?;
                Access::new(Server::parse(url)?, Some(token), &material)
            }
            Self::Kubeconfig { path, url } => kubeconfig::load(path, url.as_deref()),
            Self::Url(url) => Access::new(Server::parse(url)?, None, &Material::default()),
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::InCluster { url, .. } => write!(f, "{url}, as this pod's service account"),
            Self::Kubeconfig { path, url: None } => {
                write!(f, "the server that {} names", path.display())
            }
            Self::Kubeconfig {
                path,
                url: Some(url),
            } => write!(f, "{url}, by {}", path.display()),
            Self::Url(url) => write!(f, "{url}"),
        }
    }
}

impl Server {
    fn parse(url: &str) -> Result<Self, AccessError> {
        let wrong = |problem: &str| content(format!("API server URL {url:?}"), problem);
        // Without a scheme client-go takes http.
        let (tls, rest) = match url.split_once("://") {
            Some(("https", rest)) => (true, rest),
            Some(("http", rest)) => (false, rest),
            Some(_) => return Err(wrong("neither http nor https")),
            None => (false, url),
        };
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        if authority.contains('@') || rest.contains(['?', '#']) {
            return Err(wrong("only scheme, host, port and path may be given"));
        }
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (
                host,
                port.parse().map_err(|_| wrong("its port is no port"))?,
            ),
            _ => (authority, if tls { 443 } else { 80 }),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(wrong("it names no host"));
        }
        Ok(Self {
            tls,
            host: host.to_owned(),
            port,
            path: path.trim_end_matches('/').to_owned(),
        })
    }

    /// For the `Host` header.
    pub(super) fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

impl Access {
    fn new(
        server: Server,
        token: Option<String>,
        material: &Material,
    ) -> Result<Self, AccessError> {
        let tls = match server.tls {
            true => Some(Tls::new(&server, material)?),
            false => None,
        };
        Ok(Self { server, token, tls })
    }
}

impl Tls {
    fn new(server: &Server, material: &Material) -> Result<Self, AccessError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| content("TLS", error))?;
        let mut roots = RootCertStore::empty();
        let certificates = match &material.roots {
            Some(pem) => CertificateDer::pem_slice_iter(pem)
                .collect::<Result<_, _>>()
                .map_err(|error| content("certificate authority", error))?,
            // For API servers with a certificate that everybody trusts.
            None => rustls_native_certs::load_native_certs().certs,
        };
        // Of a bundle, a certificate that cannot be used must not cost the others.
        roots.add_parsable_certificates(certificates);
        if roots.is_empty() {
            return Err(content(
                "certificate authority",
                "it holds no certificate that can be used",
            ));
        }
        let builder = builder.with_root_certificates(roots);
        let config = match &material.client {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain: Result<Vec<_>, _> =
                    CertificateDer::pem_slice_iter(certificate).collect();
                let chain = chain.map_err(|error| content("client certificate", error))?;
                let key = PrivateKeyDer::from_pem_slice(key)
                    .map_err(|error| content("client key", error))?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|error| content("client certificate", error))?
            }
        };
        let name = material.server_name.as_ref().unwrap_or(&server.host);
        let name = ServerName::try_from(name.clone())
            .map_err(|error| content(format!("API server name {name:?}"), error))?;
        Ok(Self {
            config: Arc::new(config),
            name,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_as_client_go_reads_them() {
        for (url, tls, host, port, path) in [
            ("https://10.0.0.1", true, "10.0.0.1", 443, ""),
            ("http://x:8080/", false, "x", 8080, ""),
            (
                "https://[fd00::1]:6443/k8s/c1/",
                true,
                "fd00::1",
                6443,
                "/k8s/c1",
            ),
            ("https://[fd00::1]", true, "fd00::1", 443, ""),
            ("localhost:8080", false, "localhost", 8080, ""),
        ] {
            let server = Server::parse(url).unwrap();
            let found = (server.tls, &*server.host, server.port, &*server.path);
            assert_eq!(found, (tls, host, port, path), "{url}");
        }
        for url in [
            "ftp://x",
            "https://",
            "https://x:port",
            "https://u:p@x",
            "https://x/?a",
        ] {
            assert!(Server::parse(url).is_err(), "{url}");
        }
    }

    #[test]
    fn what_is_given_goes_before_the_pod() {
        let pod = |name: &str| match name {
            "KUBERNETES_SERVICE_HOST" => Some("fd00::1".to_owned()),
            "KUBERNETES_SERVICE_PORT" => Some("443".to_owned()),
            _ => None,
        };
        assert!(matches!(
            Source::choose("", "/k", pod),
            Ok(Source::Kubeconfig { url: None, .. })
        ));
        assert!(matches!(
            Source::choose("http://x", "/k", pod),
            Ok(Source::Kubeconfig { url: Some(_), .. })
        ));
        assert_eq!(
            Source::choose("http://x", "", pod).unwrap(),
            Source::Url("http://x".into())
        );
        let Source::InCluster { url, .. } = Source::choose("", "", pod).unwrap() else {
            panic!("not the pod");
        };
        assert_eq!(url, "https://[fd00::1]:443");
        assert!(matches!(
            Source::choose("", "", |_| None),
            Err(AccessError::Nowhere)
        ));
    }

    #[test]
    fn a_pod_without_its_token_says_which_file_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let source = Source::InCluster {
            url: "https://10.0.0.1:443".to_owned(),
            dir: dir.path().to_owned(),
        };
        let error = source.load().err().unwrap().to_string();
        assert!(error.contains("ca.crt"), "{error}");
        fs::write(dir.path().join("ca.crt"), "no certificate").unwrap();
        let error = source.load().err().unwrap().to_string();
        assert!(error.contains("/token"), "{error}");
        fs::write(dir.path().join("token"), "t\n").unwrap();
        let error = source.load().err().unwrap().to_string();
        assert!(error.contains("certificate authority"), "{error}");
    }
}
