//! Deletes the pods' pairs that DEL has left to us: see [`leaving`]. Those of a moment go together.
//!
//! Nothing depends on it: a pair that is leaving carries nothing, and goes with its pod's namespace
//! if we do not get round to it.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kernel::{Socket, leaving};
use tokio::net::UnixDatagram;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tracing::{debug, warn};

/// How long calls gather. The pairs are gone some 20 ms later, in which other DELs wait.
const GATHER: Duration = Duration::from_millis(40);
/// Before the socket is opened again.
const RETRY: Duration = Duration::from_secs(30);

/// Serves DEL for ever, at a socket beside this `subnet.env`.
pub(crate) async fn serve(subnet_file: PathBuf) {
    let path = subnet_file.with_file_name(leaving::SOCKET);
    loop {
        let Err(error) = serve_at(&path).await;
        warn!(path = %path.display(), %error, "pods' interfaces are deleted by DEL itself, which takes longer");
        sleep(RETRY).await;
    }
}

async fn serve_at(path: &Path) -> io::Result<std::convert::Infallible> {
    let socket = listen(path)?;
    loop {
        // Those that were left while nobody listened are the first.
        delete_all().await;
        socket.recv(&mut []).await?;
        sleep(GATHER).await;
        while socket.try_recv(&mut []).is_ok() {}
    }
}

fn listen(path: &Path) -> io::Result<UnixDatagram> {
    fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = UnixDatagram::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(socket)
}

/// On a thread of its own: the kernel takes its time.
async fn delete_all() {
    let delete = || Socket::open()?.apply_all(&[leaving::delete_all()]);
    match spawn_blocking(delete).await {
        Ok(Ok(())) => debug!("pods' interfaces that were leaving are gone"),
        Ok(Err(error)) => warn!(%error, "cannot delete pods' interfaces that are leaving"),
        Err(error) => warn!(%error, "deleting pods' interfaces ended early"),
    }
}
