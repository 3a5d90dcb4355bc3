//! The daemon of this node, as far as DEL needs it: somebody who deletes the pairs that are
//! [`leaving`]. Where nobody is, DEL deletes its pair itself.

use std::os::unix::net::UnixDatagram;
use std::path::Path;

use kernel::leaving;

/// Whoever listens beside `subnet.env`.
#[derive(Debug)]
pub(crate) struct Sweeper {
    socket: UnixDatagram,
}

impl Sweeper {
    /// Somebody, if somebody is there. A socket file that a killed daemon left refuses.
    pub(crate) fn beside(subnet_file: &Path) -> Option<Sweeper> {
        let socket = UnixDatagram::unbound().ok()?;
        socket
            .connect(subnet_file.with_file_name(leaving::SOCKET))
            .ok()?;
        socket.set_nonblocking(true).ok()?;
        Some(Sweeper { socket })
    }

    /// Whether it will look for pairs that are leaving.
    pub(crate) fn call(&self) -> bool {
        match self.socket.send(b"") {
            Ok(_) => true,
            // It has not got round to the calls before this one.
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_a_killed_daemon_left_is_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let subnet_file = dir.path().join("subnet.env");
        assert!(Sweeper::beside(&subnet_file).is_none());
        let path = dir.path().join(leaving::SOCKET);
        let daemon = UnixDatagram::bind(&path).unwrap();
        let sweeper = Sweeper::beside(&subnet_file).unwrap();
        while sweeper.call() && sweeper.socket.send(b"").is_ok() {}
        assert!(sweeper.call(), "one that is busy is there");
        drop(daemon);
        assert!(path.exists());
        assert!(!sweeper.call());
        assert!(Sweeper::beside(&subnet_file).is_none());
    }
}
