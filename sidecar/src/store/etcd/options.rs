//! What an operator says about etcd, checked before anything is connected: endpoints, TLS files,
//! user and password. Pure; the files are read when a connection is made.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// The port that an endpoint without one means.
const PORT: u16 = 2379;

/// How to reach etcd, as flanneld's `--etcd-…` flags say it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// `--etcd-endpoints`, in the order in which they are tried.
    pub endpoints: Vec<Endpoint>,
    /// `--etcd-prefix`.
    pub prefix: String,
    /// The files for TLS.
    pub tls: TlsFiles,
    /// `--etcd-username` and `--etcd-password`.
    pub credentials: Option<Credentials>,
    /// How long a lease lives from its last renewal.
    pub ttl: Duration,
}

/// `--etcd-cafile`, `--etcd-certfile`, `--etcd-keyfile`. Read again for every connection, so that
/// renewed certificates need no restart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Who may vouch for etcd; none: the system's authorities.
    pub ca_path: Option<PathBuf>,
    /// Our certificate and its key, for an etcd that asks for one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// A user of etcd's. The password is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The name.
    pub user: String,
    /// The password.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// One member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `https`: TLS; `http`: none; without a scheme: TLS if any file for it is given.
    pub(super) tls: Option<bool>,
    /// A name or an address, without brackets.
    pub(super) host: String,
    pub(super) port: u16,
}

/// What is wrong with an option.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// Not an endpoint; what may be a password is left out of it.
    #[error(
        "etcd endpoint {0:?}: want http://HOST:PORT, https://HOST:PORT or HOST:PORT; user and password are flags of their own"
    )]
    Endpoint(String),
    /// An empty list.
    #[error("no etcd endpoint is given")]
    NoEndpoint,
    /// Half an identity.
    #[error("{given} is given without {missing}: a client certificate needs its key")]
    HalfIdentity {
        /// The one flag.
        given: &'static str,
        /// The other.
        missing: &'static str,
    },
    /// A password for nobody.
    #[error("an etcd password is given without a user")]
    NoUser,
}

impl Endpoint {
    fn parse(text: &str) -> Option<Self> {
        let (tls, rest) = match text.split_once("://") {
            Some(("http", rest)) => (Some(false), rest),
            Some(("https", rest)) => (Some(true), rest),
            Some(_) => return None,
            None => (None, text),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match rest.strip_prefix('[') {
            Some(v6) => {
                let (host, port) = v6.split_once(']')?;
                (host, port.strip_prefix(':'))
            }
            None => match rest.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            },
        };
        let port = match port {
            Some(port) => port.parse().ok()?,
            None => PORT,
        };
        let bad = host.is_empty() || host.contains(['/', '@', '?', '#', ' ']);
        (!bad).then(|| Self {
            tls,
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.tls {
            Some(true) => "https://",
            Some(false) => "http://",
            None => "",
        })?;
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// Parses `--etcd-endpoints`: a list with commas.
pub fn parse_endpoints(list: &str) -> Result<Vec<Endpoint>, OptionsError> {
    let texts = list
        .split(',')
        .map(str::trim)
        .filter(|text| !text.is_empty());
    let endpoints = texts
        .map(|text| Endpoint::parse(text).ok_or_else(|| OptionsError::Endpoint(printable(text))))
        .collect::<Result<Vec<_>, _>>()?;
    match endpoints.is_empty() {
        true => Err(OptionsError::NoEndpoint),
        false => Ok(endpoints),
    }
}

/// An endpoint as it may be printed: what stands before an `@` may be a password.
fn printable(text: &str) -> String {
    let Some((before, after)) = text.rsplit_once('@') else {
        return text.to_owned();
    };
    let scheme = before.split_once("://").map(|(scheme, _)| scheme);
    let scheme = scheme.map(|scheme| format!("{scheme}://"));
    format!("{}…@{after}", scheme.unwrap_or_default())
}

impl TlsFiles {
    /// From the three flags. Unlike flanneld, which ignores it, an authority alone is enough.
    pub fn new(
        ca: Option<PathBuf>,
        cert: Option<PathBuf>,
        key: Option<PathBuf>,
    ) -> Result<Self, OptionsError> {
        let half = |given, missing| Err(OptionsError::HalfIdentity { given, missing });
        let identity = match (cert, key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (Some(_), None) => return half("etcd-certfile", "etcd-keyfile"),
            (None, Some(_)) => return half("etcd-keyfile", "etcd-certfile"),
        };
        Ok(Self {
            ca_path: ca,
            identity,
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ca_path.is_none() && self.identity.is_none()
    }
}

impl Credentials {
    /// From the two flags; an empty user is none.
    pub fn new(user: &str, password: &str) -> Result<Option<Self>, OptionsError> {
        match (user, password) {
            ("", "") => Ok(None),
            ("", _) => Err(OptionsError::NoUser),
            (user, password) => Ok(Some(Self {
                user: user.to_owned(),
                password: password.to_owned(),
            })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_as_etcdctl_reads_them() {
        let list = "http://127.0.0.1:4001,https://etcd.example:2379/, [fd00::1]:2379 ,http://h";
        let shown = parse_endpoints(list).unwrap();
        let shown: Vec<String> = shown.iter().map(Endpoint::to_string).collect();
        assert_eq!(
            shown,
            [
                "http://127.0.0.1:4001",
                "https://etcd.example:2379",
                "[fd00::1]:2379",
                "http://h:2379"
            ]
        );
    }

    #[test]
    fn what_is_no_endpoint_is_refused_by_name() {
        for bad in ["unix:///run/etcd", "http://", "h:port", "[fd00::1"] {
            let error = parse_endpoints(bad).unwrap_err();
            assert_eq!(error, OptionsError::Endpoint(bad.to_owned()));
        }
        assert_eq!(parse_endpoints(" , "), Err(OptionsError::NoEndpoint));
    }

    #[test]
    fn a_user_in_an_endpoint_is_refused_without_printing_the_password() {
        for bad in [
            "http://root:s3cret@h:2379",
            "root:s3cret@h",
            "unix://root:s3cret@h",
            "http://root:s3c@ret@h:2379",
            "http://root:s3cret/@h",
        ] {
            let error = parse_endpoints(bad).unwrap_err();
            let text = format!("{error} {error:?}");
            assert!(text.contains("…@h"), "{text}");
            assert!(!text.contains("s3c") && !text.contains("ret@"), "{text}");
        }
    }

    #[test]
    fn an_authority_alone_is_enough_and_half_an_identity_is_not() {
        let path = || Some(PathBuf::from("x.pem"));
        assert!(!TlsFiles::new(path(), None, None).unwrap().is_empty());
        assert!(TlsFiles::new(None, path(), None).is_err());
        assert!(TlsFiles::new(None, None, path()).is_err());
    }

    #[test]
    fn a_password_is_never_printed() {
        let credentials = Credentials::new("flannel", "s3cret").unwrap().unwrap();
        assert!(!format!("{credentials:?}").contains("s3cret"));
        assert_eq!(Credentials::new("", "x"), Err(OptionsError::NoUser));
    }
}
