//! The certificates, tokens and kubeconfigs of an API server.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::certificates::{Authority, Identity};

/// The admin's token. It opens a server on loopback that lives as long as one test.
const ADMIN_TOKEN: &str = "admin";
/// Whom the client certificate is made out to.
pub(super) const CERTIFIED_USER: &str = "certified";

/// How many nodes' kubelets have tokens of their own: `node1` and so on.
const KUBELETS: u8 = 9;

pub(super) struct Credentials {
    dir: PathBuf,
    /// The authority's certificate, for server and clients alike.
    pub(super) ca: PathBuf,
    /// The server's certificate. Its key signs the tokens of service accounts, too.
    pub(super) server: Identity,
    client: Identity,
    /// A file with the admin's token, as the server reads it.
    pub(super) tokens: PathBuf,
    /// A kubeconfig of the admin, by token.
    pub(super) admin: PathBuf,
    /// A kubeconfig of [`CERTIFIED_USER`], by client certificate.
    pub(super) certified: PathBuf,
}

impl Credentials {
    /// Makes everything in `dir`, for a server at `url` that is also reached at `hosts`.
    pub(super) fn make(dir: &Path, url: &str, hosts: &[String]) -> Result<Self> {
        let authority = Authority::new(dir)?;
        let hosts = hosts.iter().map(String::as_str);
        let hosts: Vec<&str> = ["127.0.0.1", "localhost"]
            .into_iter()
            .chain(hosts)
            .collect();
        let credentials = Self {
            dir: dir.to_owned(),
            ca: authority.ca_path(),
            server: authority.issue("server", &hosts)?,
            client: authority.issue(CERTIFIED_USER, &[])?,
            tokens: dir.join("tokens.csv"),
            admin: dir.join("admin.kubeconfig"),
            certified: dir.join("certified.kubeconfig"),
        };
        let mut tokens = format!("{ADMIN_TOKEN},admin,1,system:masters\n");
        for node in (1..=KUBELETS).map(|number| format!("node{number}")) {
            tokens += &format!("{node},system:node:{node},{node},system:nodes\n");
        }
        std::fs::write(&credentials.tokens, tokens).context("write the tokens")?;
        let by_token = format!("token: {ADMIN_TOKEN}");
        let by_certificate = format!(
            "client-certificate: {}\n    client-key: {}",
            credentials.client.cert_path.display(),
            credentials.client.key_path.display()
        );
        credentials.write_kubeconfig(&credentials.admin, url, &by_token)?;
        credentials.write_kubeconfig(&credentials.certified, url, &by_certificate)?;
        Ok(credentials)
    }

    /// A kubeconfig for who has this token.
    pub(super) fn by_token(&self, name: &str, token: &str, url: &str) -> Result<PathBuf> {
        let path = self.dir.join(format!("{name}.kubeconfig"));
        self.write_kubeconfig(&path, url, &format!("token: {token}"))?;
        Ok(path)
    }

    /// A kubeconfig for a node's kubelet, whose token is the node's name.
    pub(super) fn of_kubelet(&self, node: &str, url: &str) -> Result<PathBuf> {
        self.by_token(node, node, url)
    }

    fn write_kubeconfig(&self, path: &Path, url: &str, user: &str) -> Result<()> {
        let ca = self.ca.display();
        let text = format!(
            "apiVersion: v1
kind: Config
current-context: test
clusters:
- name: test
  cluster:
    server: {url}
    certificate-authority: {ca}
contexts:
- name: test
  context: {{cluster: test, user: test}}
users:
- name: test
  user:
    {user}
"
        );
        std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
    }
}
