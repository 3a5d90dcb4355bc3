//! TLS to etcd: rustls with ring, at least TLS 1.2, HTTP/2 by ALPN.

use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

use super::options::TlsFiles;

/// Makes `stream` a TLS connection to a server that can prove that it is `host`.
pub(super) async fn handshake(
    stream: TcpStream,
    host: &str,
    files: &TlsFiles,
) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config(files)?));
    connector.connect(name, stream).await
}

fn config(files: &TlsFiles) -> io::Result<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(authorities(files.ca_path.as_deref())?);
    let mut config = match &files.identity {
        None => builder.with_no_client_auth(),
        Some((cert_path, key_path)) => {
            let key = PrivateKeyDer::from_pem_file(key_path).map_err(unread(key_path))?;
            builder
                .with_client_auth_cert(certificates(cert_path)?, key)
                .map_err(|error| unusable(cert_path, &error))?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn authorities(ca_path: Option<&Path>) -> io::Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    let Some(ca_path) = ca_path else {
        let system = rustls_native_certs::load_native_certs();
        let (usable, _) = store.add_parsable_certificates(system.certs);
        return match usable {
            0 => Err(io::Error::other(
                "this system has no certificate authorities: give etcd's with --etcd-cafile",
            )),
            _ => Ok(store),
        };
    };
    for certificate in certificates(ca_path)? {
        store
            .add(certificate)
            .map_err(|error| unusable(ca_path, &error))?;
    }
    Ok(store)
}

fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(unread(path))?;
    match all.is_empty() {
        true => Err(unread(path)(pem::Error::NoItemsFound)),
        false => Ok(all),
    }
}

fn unread(path: &Path) -> impl FnOnce(pem::Error) -> io::Error {
    move |error| io::Error::other(format!("read {}: {error}", path.display()))
}

fn unusable(path: &Path, error: &rustls::Error) -> io::Error {
    io::Error::other(format!("use {}: {error}", path.display()))
}
