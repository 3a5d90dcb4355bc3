//! A container runtime as plugins see it: what libcni does, call for call.
//!
//! It decides who is called, in which order and with what: ADD hands prevResult on, DEL goes
//! backwards, prevResult on CHECK and DEL only from 0.4.0 on, GC and STATUS only from 1.1.0 on. It
//! does not look at what the plugins did (`observe` does) and never retries. Results are cached in
//! memory, where libcni has files.

mod call;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};

pub use call::{Added, Attachment, Call, PluginFailure};

use crate::netconf::{NEWEST, NetworkList, at_least};
use crate::netns::Netns;
use crate::process::{self, Output};

type Key = (String, String, String);

/// A runtime on one node.
pub struct Runtime {
    host: Netns,
    cni_path: Vec<PathBuf>,
    newest: String,
    deadline: Duration,
    cache: Mutex<BTreeMap<Key, (Attachment, Value)>>,
}

impl Runtime {
    /// A runtime of today in the namespace `host`, finding plugins in `cni_path`.
    pub fn new(host: &Netns, cni_path: &[PathBuf]) -> Result<Self> {
        Ok(Self {
            host: Netns::open(host.name())?,
            cni_path: cni_path.to_vec(),
            newest: NEWEST.to_owned(),
            deadline: process::DEADLINE,
            cache: Mutex::default(),
        })
    }

    /// The same, knowing the specification only up to `newest` (containerd 1.7: 1.0.0).
    pub fn knowing_up_to(self, newest: &str) -> Self {
        Self {
            newest: newest.to_owned(),
            ..self
        }
    }

    /// The same, killing a plugin that takes longer than `deadline`.
    pub fn with_deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// The version this runtime speaks with `list`.
    pub fn version(&self, list: &NetworkList) -> String {
        list.version(&self.newest)
    }

    /// The binary for a plugin type.
    pub fn find(&self, plugin: &str) -> Result<PathBuf> {
        let candidates = self.cni_path.iter().map(|dir| dir.join(plugin));
        candidates
            .into_iter()
            .find(|path| path.is_file())
            .with_context(|| {
                format!(
                    "failed to find plugin {plugin:?} in path {:?}",
                    self.cni_path
                )
            })
    }

    /// Runs one call to its end, whatever its exit code.
    pub fn call(&self, call: &Call) -> Result<Output> {
        let mut command = self.host.command(&call.program)?;
        command
            .env_clear()
            .envs(call.env.iter().map(|(key, value)| (key, value)));
        process::run(&mut command, &call.stdin, self.deadline)
    }

    /// ADD through the list; the result is remembered for CHECK and DEL.
    pub fn add(&self, list: &NetworkList, attachment: &Attachment) -> Result<Added> {
        let version = self.version(list);
        let mut last: Option<Added> = None;
        for index in 0..list.plugins.len() {
            let mut extra = self.runtime_config(list, index, attachment);
            extra.extend(last.map(|added| ("prevResult", added.result)));
            let output = self.invoke("ADD", list, index, attachment, &extra)?;
            let mut result: Value = serde_json::from_slice(&output.stdout)
                .with_context(|| format!("read the result {:?}", output.stdout_text()))?;
            ensure!(result.is_object(), "the result is not an object: {result}");
            // As libcni does: a result that does not say its version has the list's.
            let object = result.as_object_mut().context("an object")?;
            object
                .entry("cniVersion")
                .or_insert_with(|| version.clone().into());
            last = Some(Added {
                result,
                raw: output.stdout,
            });
        }
        let added = last.context("a list has plugins")?;
        let cached = (attachment.clone(), added.result.clone());
        self.cache().insert(key(list, attachment), cached);
        Ok(added)
    }

    /// CHECK through the list, with the cached result.
    pub fn check(&self, list: &NetworkList, attachment: &Attachment) -> Result<()> {
        let version = self.version(list);
        if !at_least(&version, "0.4.0", false) {
            bail!("configuration version {version:?} does not support CHECK command");
        }
        if list.disable_check {
            return Ok(());
        }
        let extra = self.prev_result(list, attachment);
        (0..list.plugins.len()).try_for_each(|index| {
            let mut all = self.runtime_config(list, index, attachment);
            all.extend(extra.clone());
            let output = self.invoke("CHECK", list, index, attachment, &all)?;
            silent("CHECK", &output)
        })
    }

    /// DEL through the list, backwards; ends at the first failure, as libcni does.
    pub fn del(&self, list: &NetworkList, attachment: &Attachment) -> Result<()> {
        let extra = match at_least(&self.version(list), "0.4.0", false) {
            true => self.prev_result(list, attachment),
            false => None,
        };
        for index in (0..list.plugins.len()).rev() {
            let mut all = self.runtime_config(list, index, attachment);
            all.extend(extra.clone());
            let output = self.invoke("DEL", list, index, attachment, &all)?;
            silent("DEL", &output)?;
        }
        self.cache().remove(&key(list, attachment));
        Ok(())
    }

    /// GC: DEL for every cached attachment of the network that is not in `valid` (container ID,
    /// interface), then GC to every plugin. None is what a Go program with no list sends: `null`.
    /// Goes on after failures and reports them together.
    pub fn gc(&self, list: &NetworkList, valid: Option<&[(String, String)]>) -> Result<()> {
        if list.disable_gc {
            return Ok(());
        }
        let keep = |a: &Attachment| {
            valid.is_some_and(|all| all.contains(&(a.container_id.clone(), a.ifname.clone())))
        };
        let cached: Vec<Attachment> = self
            .cache()
            .iter()
            .filter(|((network, ..), (attachment, _))| *network == list.name && !keep(attachment))
            .map(|(_, (attachment, _))| attachment.clone())
            .collect();
        let mut errors: Vec<String> = Vec::new();
        let mut note =
            |done: Result<()>| errors.extend(done.err().map(|error| format!("{error:#}")));
        cached
            .iter()
            .for_each(|attachment| note(self.del(list, attachment)));
        let valid: Value = valid.map_or(Value::Null, |all| {
            let one =
                |(id, ifname): &(String, String)| json!({"containerID": id, "ifname": ifname});
            all.iter().map(one).collect()
        });
        let both = [
            ("cni.dev/attachments", valid.clone()),
            ("cni.dev/valid-attachments", valid),
        ];
        self.each_without_container("GC", list, &both)
            .for_each(&mut note);
        ensure!(
            errors.is_empty(),
            "GC of {}: {}",
            list.name,
            errors.join("; ")
        );
        Ok(())
    }

    /// STATUS of every plugin, up to the first failure.
    pub fn status(&self, list: &NetworkList) -> Result<()> {
        self.each_without_container("STATUS", list, &[]).collect()
    }

    /// The versions a plugin says it supports, asked as libcni asks.
    pub fn supported_versions(&self, plugin: &str) -> Result<Vec<String>> {
        let dummy = |key: &str| (key.to_owned(), "dummy".to_owned());
        let env = vec![
            ("CNI_COMMAND".to_owned(), "VERSION".to_owned()),
            ("CNI_CONTAINERID".to_owned(), String::new()),
            dummy("CNI_NETNS"),
            dummy("CNI_IFNAME"),
            dummy("CNI_PATH"),
        ];
        let stdin = format!(r#"{{"cniVersion":"{NEWEST}"}}"#).into_bytes();
        let output = self.call(&Call {
            program: self.find(plugin)?,
            env,
            stdin,
        })?;
        let said: Value = serde_json::from_slice(&output.stdout)
            .map_err(|_| anyhow!(PluginFailure::new(format!("VERSION {plugin}"), &output)))?;
        let versions = said["supportedVersions"].as_array().into_iter().flatten();
        Ok(versions
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect())
    }

    /// Forgets the cached result, as a runtime does that lost its disk.
    pub fn forget(&self, list: &NetworkList, attachment: &Attachment) {
        self.cache().remove(&key(list, attachment));
    }

    /// What is called for plugin number `index` of `list`: for raw calls that change one thing.
    pub fn compose(
        &self,
        verb: &str,
        list: &NetworkList,
        index: usize,
        attachment: &Attachment,
        extra: &[(&str, Value)],
    ) -> Result<Call> {
        let kind = list.plugins[index]["type"]
            .as_str()
            .context("a plugin has a type")?;
        let path: Vec<String> = self
            .cni_path
            .iter()
            .map(|dir| dir.to_string_lossy().into_owned())
            .collect();
        let mut env: Vec<(String, String)> = std::env::vars()
            .filter(|(name, _)| !name.starts_with("CNI_"))
            .collect();
        env.push(("CNI_COMMAND".to_owned(), verb.to_owned()));
        env.extend(
            attachment
                .env()
                .map(|(name, value)| (name.to_owned(), value)),
        );
        env.push(("CNI_PATH".to_owned(), path.join(":")));
        let stdin = list.stdin(index, &self.version(list), extra)?;
        Ok(Call {
            program: self.find(kind)?,
            env,
            stdin,
        })
    }

    fn invoke(
        &self,
        verb: &str,
        list: &NetworkList,
        index: usize,
        attachment: &Attachment,
        extra: &[(&str, Value)],
    ) -> Result<Output> {
        let call = self.compose(verb, list, index, attachment, extra)?;
        let output = self.call(&call)?;
        if output.status.success() {
            return Ok(output);
        }
        let plugin = call
            .program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy();
        Err(PluginFailure::new(format!("{verb} {plugin}"), &output).into())
    }

    /// Calls every plugin of the list without a container, one per step of the iterator; nobody
    /// below 1.1.0, which knows no such verbs.
    fn each_without_container(
        &self,
        verb: &str,
        list: &NetworkList,
        extra: &[(&str, Value)],
    ) -> impl Iterator<Item = Result<()>> {
        let known = at_least(&self.version(list), "1.1.0", false);
        let nobody = Attachment {
            ifname: String::new(),
            ..Attachment::eth0("", Path::new(""))
        };
        (0..list.plugins.len())
            .filter(move |_| known)
            .map(move |index| {
                let output = self.invoke(verb, list, index, &nobody, extra)?;
                silent(verb, &output)
            })
    }

    fn runtime_config(
        &self,
        list: &NetworkList,
        index: usize,
        attachment: &Attachment,
    ) -> Vec<(&'static str, Value)> {
        let config = list.runtime_config(index, &attachment.capability_args);
        config
            .map(|config| ("runtimeConfig", config))
            .into_iter()
            .collect()
    }

    fn prev_result(
        &self,
        list: &NetworkList,
        attachment: &Attachment,
    ) -> Option<(&'static str, Value)> {
        let cache = self.cache();
        let (_, result) = cache.get(&key(list, attachment))?;
        Some(("prevResult", result.clone()))
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, BTreeMap<Key, (Attachment, Value)>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(list: &NetworkList, attachment: &Attachment) -> Key {
    (
        list.name.clone(),
        attachment.container_id.clone(),
        attachment.ifname.clone(),
    )
}

/// CNI 1.1.0: a successful CHECK, DEL, GC or STATUS prints nothing on stdout.
fn silent(verb: &str, output: &Output) -> Result<()> {
    ensure!(
        output.stdout.is_empty(),
        "{verb} printed on stdout: {}",
        output.stdout_text()
    );
    Ok(())
}
