//! The certificates, tokens and kubeconfigs of an API server.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::certificates::{Authority, Identity};

/// The admin's token. It opens a server on loopback that lives as long as one test.
const ADMIN_TOKEN: &str = "admin";
/// Whom the client certificate is made out to.
pub(super) const CERTIFIED_USER: &str = "certified";

pub(super) struct Credentials {
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
    /// Makes everything in `dir`, for a server at `url`.
    pub(super) fn make(dir: &Path, url: &str) -> Result<Self> {
        let authority = Authority::new(dir)?;
        let credentials = Self {
            ca: authority.ca_path(),
            server: authority.issue("server", &["127.0.0.1", "localhost"])?,
            client: authority.issue(CERTIFIED_USER, &[])?,
            tokens: dir.join("tokens.csv"),
            admin: dir.join("admin.kubeconfig"),
            certified: dir.join("certified.kubeconfig"),
        };
        let tokens = format!("{ADMIN_TOKEN},admin,1,system:masters\n");
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
