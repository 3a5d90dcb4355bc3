//! What is said to a plugin and what it answers.

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::process::Output;

/// What is attached: one interface of one container.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_NETNS; may be empty on DEL.
    pub netns: String,
    /// CNI_IFNAME.
    pub ifname: String,
    /// CNI_ARGS, in this order.
    pub args: Vec<(String, String)>,
    /// What the runtime offers as `runtimeConfig`.
    pub capability_args: Map<String, Value>,
}

impl Attachment {
    /// The attachment `eth0` of a container.
    pub fn eth0(container_id: &str, netns: &Path) -> Self {
        Self {
            container_id: container_id.to_owned(),
            netns: netns.to_string_lossy().into_owned(),
            ifname: "eth0".to_owned(),
            args: Vec::new(),
            capability_args: Map::new(),
        }
    }

    pub(super) fn env(&self) -> [(&'static str, String); 4] {
        let args: Vec<String> = self
            .args
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        [
            ("CNI_CONTAINERID", self.container_id.clone()),
            ("CNI_NETNS", self.netns.clone()),
            ("CNI_ARGS", args.join(";")),
            ("CNI_IFNAME", self.ifname.clone()),
        ]
    }
}

/// One start of one plugin, nothing added: only these variables, these bytes.
#[derive(Debug, Clone, Default)]
pub struct Call {
    /// The binary.
    pub program: PathBuf,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Standard input.
    pub stdin: Vec<u8>,
}

/// A successful ADD.
#[derive(Debug, Clone)]
pub struct Added {
    /// The last plugin's result.
    pub result: Value,
    /// The same as it was printed.
    pub raw: Vec<u8>,
}

impl Added {
    /// The addresses without prefix lengths, in the order of the result (0.3.0 and newer).
    pub fn ips(&self) -> Vec<std::net::IpAddr> {
        let ips = self.result["ips"].as_array().into_iter().flatten();
        let host = |ip: &Value| ip["address"].as_str()?.split('/').next()?.parse().ok();
        ips.filter_map(host).collect()
    }
}

/// A plugin that said no.
#[derive(Debug, Clone)]
pub struct PluginFailure {
    /// The verb and the plugin, such as `ADD bridge`.
    pub call: String,
    /// The process's exit code.
    pub exit: i32,
    /// `code` of the error object; none when stdout held no error object.
    pub code: Option<i64>,
    /// `msg` of the error object, else what was on stdout.
    pub msg: String,
    /// `details` of the error object.
    pub details: String,
    /// Standard error.
    pub stderr: String,
}

impl PluginFailure {
    /// The plugin's failure behind an error of this module, if that is what it was.
    pub fn of(error: &anyhow::Error) -> Option<&Self> {
        error.downcast_ref()
    }

    pub(super) fn new(call: String, output: &Output) -> Self {
        let object: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let text = |key: &str| object[key].as_str().map(str::to_owned);
        Self {
            call,
            exit: output.code(),
            code: object["code"].as_i64(),
            msg: text("msg").unwrap_or_else(|| output.stdout_text()),
            details: text("details").unwrap_or_default(),
            stderr: output.stderr_text(),
        }
    }
}

impl fmt::Display for PluginFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            call,
            exit,
            code,
            msg,
            details,
            stderr,
        } = self;
        let code = code.map_or("none".to_owned(), |code| code.to_string());
        write!(
            f,
            "{call}: exit {exit}, code {code}: {msg} {details} {}",
            stderr.trim()
        )
    }
}

impl std::error::Error for PluginFailure {}
