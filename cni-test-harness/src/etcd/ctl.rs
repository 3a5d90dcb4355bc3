//! What tests do to etcd's content and what they look at, all of it through etcdctl.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use serde_json::Value;

use super::Etcd;
use crate::{process, tools};

/// What the user of [`Etcd::enable_users`] may read and write.
const PREFIX: &str = "/coreos.com/network";

/// One key as etcd has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
    /// The time to live, in seconds, that its lease was granted; none: it has no lease.
    pub granted_ttl: Option<u64>,
}

impl Etcd {
    /// Which member leads.
    pub fn leader(&self) -> Result<usize> {
        for member in 0..self.members.len() {
            let endpoint = self.client_url(member);
            let Ok(text) =
                self.ctl(&["--endpoints", &endpoint, "endpoint", "status", "-w", "json"])
            else {
                continue;
            };
            let all: Value = serde_json::from_str(&text).context("read etcdctl's status")?;
            let status = &all[0]["Status"];
            if status["leader"] == status["header"]["member_id"] {
                return Ok(member);
            }
        }
        Err(anyhow!("no member of {} leads", self.endpoints()))
    }

    /// Turns users on: `root`, and `user`, who may read and write flannel's prefix alone.
    pub fn enable_users(&mut self, user: &str, password: &str) -> Result<()> {
        let root = "test-root";
        self.ctl(&["user", "add", &format!("root:{root}")])?;
        self.ctl(&["user", "grant-role", "root", "root"])?;
        self.ctl(&["role", "add", "flannel"])?;
        self.ctl(&[
            "role",
            "grant-permission",
            "--prefix=true",
            "flannel",
            "readwrite",
            PREFIX,
        ])?;
        self.ctl(&["user", "add", &format!("{user}:{password}")])?;
        self.ctl(&["user", "grant-role", user, "flannel"])?;
        self.ctl(&["auth", "enable"])?;
        self.root_password = Some(root.to_owned());
        Ok(())
    }

    /// Forgets all history up to now.
    pub fn compact(&self) -> Result<i64> {
        let text = self.ctl(&["get", "no-such-key", "-w", "json"])?;
        let answer: Value = serde_json::from_str(&text).context("read etcdctl's answer")?;
        let revision = answer["header"]["revision"]
            .as_i64()
            .context("it has no revision")?;
        self.ctl(&["compact", &revision.to_string()])?;
        Ok(revision)
    }

    /// Puts keys and values, 100 in one transaction; `ttl` in seconds, none without a lease.
    pub fn put_all(&self, entries: &[(String, String)], ttl: Option<u64>) -> Result<()> {
        let lease = ttl.map(|ttl| self.grant(ttl)).transpose()?;
        let lease = lease.map(|id| format!("--lease={id} ")).unwrap_or_default();
        let put = |(key, value): &(String, String)| {
            format!("put {lease}-- {} {}\n", quoted(key), quoted(value))
        };
        self.transact(entries, put)
    }

    /// Deletes keys, 100 in one transaction.
    pub fn delete_all(&self, keys: &[String]) -> Result<()> {
        self.transact(keys, |key| format!("del -- {}\n", quoted(key)))
    }

    fn transact<T>(&self, all: &[T], line: impl Fn(&T) -> String) -> Result<()> {
        for chunk in all.chunks(100) {
            // The parts of a transaction, divided by empty lines: compares, success, failure.
            let lines: String = chunk.iter().map(&line).collect();
            let script = format!("\n{lines}\n\n");
            let mut ctl = self.command(&["txn"])?;
            process::check_with(&mut ctl, script.as_bytes(), process::DEADLINE)?;
        }
        Ok(())
    }

    /// Puts one key; `ttl` in seconds, none without a lease.
    pub fn put(&self, key: &str, value: &str, ttl: Option<u64>) -> Result<()> {
        self.put_all(&[(key.to_owned(), value.to_owned())], ttl)
    }

    /// Puts one key for a day, however large its value is: etcdctl takes it from stdin.
    pub fn put_large(&self, key: &str, value: &str) -> Result<()> {
        let lease = self.grant(24 * 60 * 60)?;
        let mut ctl = self.command(&["put", &format!("--lease={lease}"), "--", key])?;
        process::check_with(&mut ctl, value.as_bytes(), process::DEADLINE)?;
        Ok(())
    }

    /// A new etcd lease.
    pub fn grant(&self, ttl: u64) -> Result<String> {
        // lease 1eeea1fe1829ec1a granted with TTL(1s)
        let text = self.ctl(&["lease", "grant", &ttl.to_string()])?;
        let id = text.split_whitespace().nth(1);
        id.map(str::to_owned)
            .with_context(|| format!("etcdctl lease grant said {text:?}"))
    }

    /// Everything below `prefix`, by key.
    pub fn entries(&self, prefix: &str) -> Result<Vec<Entry>> {
        let text = self.ctl(&["get", "--prefix", prefix, "-w", "fields"])?;
        let mut entries = Vec::new();
        for block in text.split("\"Key\" : ").skip(1) {
            let field = |name: &str| {
                let line = block
                    .lines()
                    .find(|line| line.starts_with(&format!("{name:?} : ")));
                line.and_then(|line| line.split_once(" : "))
                    .map(|(_, value)| value)
            };
            let lease: i64 = field("Lease").unwrap_or("0").parse()?;
            let granted_ttl = match lease {
                0 => None,
                id => Some(self.granted_ttl(&format!("{id:x}"))?),
            };
            entries.push(Entry {
                key: unquoted(block.lines().next().unwrap_or_default())?,
                value: unquoted(field("Value").unwrap_or("\"\""))?,
                granted_ttl,
            });
        }
        Ok(entries)
    }

    /// The values below `prefix`, by what their keys have behind it.
    pub fn values(&self, prefix: &str) -> Result<BTreeMap<String, String>> {
        let text = self.ctl(&["get", "--prefix", prefix])?;
        // A key and its value on a line each.
        let lines: Vec<&str> = text.lines().collect();
        let pairs = lines.chunks_exact(2).map(|pair| {
            let name = pair[0].strip_prefix(prefix);
            let name = name.with_context(|| format!("etcdctl printed {text}"))?;
            Ok((name.to_owned(), pair[1].to_owned()))
        });
        pairs.collect()
    }

    /// The etcd lease that a key hangs on, as etcdctl names it.
    pub fn lease_of(&self, key: &str) -> Result<Option<String>> {
        let text = self.ctl(&["get", key, "-w", "json"])?;
        let answer: Value = serde_json::from_str(&text).context("read etcdctl's answer")?;
        let id = answer["kvs"][0]["lease"].as_i64();
        Ok(id.map(|id| format!("{id:x}")))
    }

    fn granted_ttl(&self, id: &str) -> Result<u64> {
        let text = self.ctl(&["lease", "timetolive", id, "-w", "json"])?;
        let answer: Value = serde_json::from_str(&text).context("read etcdctl's answer")?;
        let granted = answer["granted-ttl"].as_u64();
        granted.with_context(|| format!("lease {id}: etcdctl said {text}"))
    }

    /// Runs etcdctl, as root when there are users; its output.
    pub fn ctl(&self, args: &[&str]) -> Result<String> {
        Ok(process::check(&mut self.command(args)?)?.stdout_text())
    }

    pub(super) fn command(&self, args: &[&str]) -> Result<Command> {
        let mut command = self.program("etcdctl")?;
        command.env("ETCDCTL_API", "3");
        if !args.contains(&"--endpoints") {
            command.env("ETCDCTL_ENDPOINTS", self.endpoints());
        }
        if let Some((_, authority, identity)) = &self.tls {
            command.env("ETCDCTL_CACERT", authority.ca_path());
            command.env("ETCDCTL_CERT", &identity.cert_path);
            command.env("ETCDCTL_KEY", &identity.key_path);
        }
        if let Some(password) = &self.root_password {
            command.env("ETCDCTL_USER", format!("root:{password}"));
        }
        command.args(args);
        Ok(command)
    }

    pub(super) fn program(&self, name: &str) -> Result<Command> {
        self.command_beside(&tools::program(name)?)
    }

    /// A command that will run where etcd does, and so reaches it.
    pub fn command_beside(&self, path: &Path) -> Result<Command> {
        match &self.inside {
            Some(netns) => netns.command(path),
            None => Ok(Command::new(path)),
        }
    }
}

/// A string as etcdctl's transactions and Go read it.
fn quoted(text: &str) -> String {
    format!("{text:?}")
}

fn unquoted(text: &str) -> Result<String> {
    serde_json::from_str(text).with_context(|| format!("etcdctl printed {text}"))
}
