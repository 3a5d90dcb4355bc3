//! Many small changes at once: `kubectl proxy` opens the API server to plain HTTP on loopback, and
//! requests go through it side by side. `kubectl` itself takes 50 a second.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Requests under way at once.
const AT_ONCE: usize = 8;
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// One change of the cluster.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Creates an object in a collection such as `/api/v1/nodes`.
    Create(String, Value),
    /// Merges into an object.
    Merge(String, Value),
    /// Deletes an object; it need not be there.
    Delete(String),
}

/// Makes all the changes, in any order.
pub(super) fn change_all(port: u16, changes: &[Change]) -> Result<()> {
    let each = changes.len().div_ceil(AT_ONCE).max(1);
    std::thread::scope(|scope| {
        let parts = changes.chunks(each).map(|part| {
            scope.spawn(move || part.iter().try_for_each(|change| change_one(port, change)))
        });
        let parts: Vec<_> = parts.collect();
        parts
            .into_iter()
            .try_for_each(|part| part.join().expect("a thread of requests does not panic"))
    })
}

fn change_one(port: u16, change: &Change) -> Result<()> {
    let (method, path, kind, body) = match change {
        Change::Create(path, object) => ("POST", path, "application/json", object.to_string()),
        Change::Merge(path, patch) => (
            "PATCH",
            path,
            "application/merge-patch+json",
            patch.to_string(),
        ),
        Change::Delete(path) => ("DELETE", path, "application/json", String::new()),
    };
    let (code, answer) = request(port, method, path, kind, &body)
        .with_context(|| format!("{method} {path} through kubectl proxy"))?;
    match (code, change) {
        (200..300, _) | (404, Change::Delete(_)) => Ok(()),
        _ => bail!("{method} {path}: {code} {answer}"),
    }
}

fn request(port: u16, method: &str, path: &str, kind: &str, body: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body.as_bytes()].concat())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((code.context("an answer without a status")?, answer))
}
