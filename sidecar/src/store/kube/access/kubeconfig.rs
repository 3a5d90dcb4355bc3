//! A kubeconfig file: the cluster and the user of its current context.
//!
//! Credential programs (`exec`) and other plugins are not run: a node's daemon has a token or a
//! certificate. What cannot be used is an error that says so, not a connection without it.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{Access, AccessError, Material, Server, content, read, read_token};

#[derive(Deserialize)]
#[serde(default, rename_all = "kebab-case")]
#[derive(Default)]
struct Kubeconfig {
    current_context: String,
    clusters: Vec<Named<Cluster>>,
    contexts: Vec<Named<Context>>,
    users: Vec<Named<User>>,
}

#[derive(Deserialize)]
struct Named<T> {
    name: String,
    #[serde(alias = "cluster", alias = "context", alias = "user")]
    value: Option<T>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    tls_server_name: Option<String>,
    insecure_skip_tls_verify: bool,
    proxy_url: Option<String>,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    user: String,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "kebab-case")]
struct User {
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    username: Option<String>,
    exec: Option<IgnoredAny>,
    auth_provider: Option<IgnoredAny>,
}

/// Whether the bytes are a kubeconfig, as far as that can be said without what it names.
#[cfg(feature = "fuzz")]
pub(in crate::store::kube) fn is_read(bytes: &[u8]) -> bool {
    let file: Result<Kubeconfig, _> = serde_norway::from_slice(bytes);
    file.is_ok_and(|file| pick(file.contexts, &file.current_context, "context").is_ok())
}

/// Reads a kubeconfig and what it names; `url` goes before the file's.
pub(super) fn load(path: &Path, url: Option<&str>) -> Result<Access, AccessError> {
    let place = path.display().to_string();
    let wrong = |problem: String| content(place.clone(), problem);
    let file: Kubeconfig =
        serde_norway::from_slice(&read(path)?).map_err(|error| wrong(error.to_string()))?;
    let context = pick(file.contexts, &file.current_context, "context").map_err(wrong)?;
    let cluster = pick(file.clusters, &context.cluster, "cluster").map_err(wrong)?;
    let user = pick(file.users, &context.user, "user").map_err(wrong)?;
    if let Some(problem) = unusable(&cluster, &user) {
        return Err(wrong(problem.to_owned()));
    }
    // Paths in it are from where it lies.
    let dir = path.parent().unwrap_or(Path::new(""));
    let pem = |data: &Option<String>, file: &Option<PathBuf>| match (data, file) {
        (Some(data), _) => STANDARD
            .decode(data)
            .map(Some)
            .map_err(|error| wrong(format!("base64: {error}"))),
        (None, Some(file)) => read(&dir.join(file)).map(Some),
        (None, None) => Ok(None),
    };
    let certificate = pem(&user.client_certificate_data, &user.client_certificate)?;
    let key = pem(&user.client_key_data, &user.client_key)?;
    let material = Material {
        roots: pem(
            &cluster.certificate_authority_data,
            &cluster.certificate_authority,
        )?,
        client: match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => {
                return Err(wrong(
                    "a client certificate and its key belong together".to_owned(),
                ));
            }
        },
        server_name: cluster.tls_server_name,
    };
    let token = match (&user.token_file, user.token) {
        (Some(file), _) => Some(read_token(&dir.join(file))?),
        (None, token) => token,
    };
    Access::new(
        Server::parse(url.unwrap_or(&cluster.server))?,
        token,
        &material,
    )
}

fn pick<T>(of: Vec<Named<T>>, name: &str, kind: &str) -> Result<T, String> {
    of.into_iter()
        .find(|named| named.name == name)
        .and_then(|named| named.value)
        .ok_or_else(|| format!("it has no {kind} named {name:?}"))
}

fn unusable(cluster: &Cluster, user: &User) -> Option<&'static str> {
    let found = [
        (
            cluster.insecure_skip_tls_verify,
            "insecure-skip-tls-verify is not done: name the certificate authority",
        ),
        (cluster.proxy_url.is_some(), "proxy-url is not supported"),
        (
            user.exec.is_some(),
            "credential programs (exec) are not run: give a token, tokenFile or client certificate",
        ),
        (
            user.auth_provider.is_some(),
            "auth-provider is not supported: give a token, tokenFile or client certificate",
        ),
        (
            user.username.is_some(),
            "Kubernetes has no passwords any more: give a token, tokenFile or client certificate",
        ),
    ];
    found
        .into_iter()
        .find_map(|(is, problem)| is.then_some(problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "
apiVersion: v1
kind: Config
current-context: here
clusters:
- name: other
  cluster: {server: 'https://10.0.0.9'}
- name: c
  cluster:
    server: http://10.0.0.1:8080
contexts:
- context: {cluster: c, user: u, namespace: x}
  name: here
users:
- name: u
  user:
    tokenFile: token
";

    fn loaded(text: &str) -> Result<Access, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        std::fs::write(&path, text).unwrap();
        std::fs::write(dir.path().join("token"), "secret\n").unwrap();
        load(&path, None).map_err(|error| error.to_string())
    }

    #[test]
    fn the_current_context_is_taken() {
        let access = loaded(FILE).unwrap();
        assert_eq!(
            (&*access.server.host, access.server.port),
            ("10.0.0.1", 8080)
        );
        assert_eq!(access.token.as_deref(), Some("secret"));
    }

    #[test]
    fn what_cannot_be_used_is_said() {
        for (old, new, word) in [
            (
                "current-context: here",
                "current-context: there",
                "no context named \"there\"",
            ),
            ("cluster: c,", "cluster: d,", "no cluster named"),
            ("tokenFile: token", "exec: {command: x}", "exec"),
            ("tokenFile: token", "tokenFile: gone", "gone"),
            ("tokenFile: token", "client-certificate-data: '!'", "base64"),
            (
                "server: http://10.0.0.1:8080",
                "insecure-skip-tls-verify: true",
                "insecure",
            ),
            ("clusters:", "clusters: [", "config: "),
        ] {
            let error = loaded(&FILE.replace(old, new)).err().unwrap();
            assert!(error.contains(word), "{new}: {error}");
            assert!(!error.contains("secret"));
        }
    }
}
