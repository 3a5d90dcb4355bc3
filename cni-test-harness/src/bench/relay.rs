//! A way out of a namespace to a server on this machine's loopback, which counts what the server
//! sends: the bytes on the wire, TLS and all.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, anyhow};

use crate::netns::Netns;

/// A listener inside; its threads end with its connections.
pub(super) struct Relay {
    port: u16,
    received: Arc<AtomicU64>,
}

impl Relay {
    /// Listens on the namespace's loopback and carries every connection to `server`.
    pub(super) fn start(inside: &Netns, server: SocketAddr) -> Result<Self> {
        // A socket stays in the namespace in which it was made, whoever uses it afterwards.
        let bound = std::thread::scope(|scope| {
            let bind = scope.spawn(|| -> Result<TcpListener> {
                inside.enter()?;
                TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen in the namespace")
            });
            bind.join()
        });
        let listener = bound.map_err(|_| anyhow!("the listening thread panicked"))??;
        let port = listener.local_addr()?.port();
        let received = Arc::<AtomicU64>::default();
        let count = Arc::clone(&received);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if let Ok(upstream) = TcpStream::connect(server) {
                    let _ = carry(client, upstream, Arc::clone(&count));
                }
            }
        });
        Ok(Self { port, received })
    }

    /// Where it listens, on the namespace's loopback.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// How many bytes the server has sent since the last call.
    pub(super) fn take_received(&self) -> u64 {
        self.received.swap(0, Ordering::Relaxed)
    }
}

fn carry(client: TcpStream, server: TcpStream, count: Arc<AtomicU64>) -> io::Result<()> {
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    std::thread::spawn(move || {
        let _ = io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Write);
    });
    let (mut from_server, mut to_client) = (server, client);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from_server.read(&mut buffer) {
            count.fetch_add(length as u64, Ordering::Relaxed);
            if to_client.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        let _ = to_client.shutdown(Shutdown::Both);
        let _ = from_server.shutdown(Shutdown::Both);
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_sends_arrives_inside_and_is_counted() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = server.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            let mut question = [0; 4];
            stream.read_exact(&mut question).unwrap();
            stream.write_all(&vec![7; 100_000]).unwrap();
        });
        let inside = Netns::new("relay").unwrap();
        let relay = Relay::start(&inside, address).unwrap();
        let port = relay.port();
        let answer = std::thread::scope(|scope| {
            let client = scope.spawn(|| {
                inside.enter().unwrap();
                let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
                stream.write_all(b"ping").unwrap();
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer).unwrap();
                answer
            });
            client.join().unwrap()
        });
        assert_eq!((answer.len(), relay.take_received()), (100_000, 100_000));
        assert_eq!(relay.take_received(), 0);
    }
}
