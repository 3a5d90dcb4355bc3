//! What the API server was asked, from its own audit log.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

pub(super) const POLICY: &str = "audit-policy.json";
pub(super) const LOG: &str = "audit.log";

/// One request, as the API server saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `list`, `watch`, `get`, `patch`, …
    pub verb: String,
    /// Path and query.
    pub uri: String,
    /// The HTTP status of the answer.
    pub code: u64,
    /// The body of a patch, in the order in which it was sent.
    pub body: Option<String>,
}

impl std::fmt::Display for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} -> {}", self.verb, self.uri, self.code)
    }
}

/// Nodes and pods, with what was sent. A watch counts when it begins.
pub(super) fn write_policy(dir: &Path) -> Result<()> {
    let policy = json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "Request", "resources": [{"group": "", "resources": ["nodes", "nodes/status", "pods"]}]},
            {"level": "None"},
        ],
    });
    std::fs::write(dir.join(POLICY), policy.to_string()).context("write the audit policy")
}

pub(super) fn requests(dir: &Path, agent: &str) -> Result<Vec<Request>> {
    let path = dir.join(LOG);
    let log = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    // The last line may be half written.
    let events = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let asked = events.filter(|event| {
        event["userAgent"]
            .as_str()
            .is_some_and(|a| a.starts_with(agent))
    });
    Ok(asked.filter_map(|event| request(&event)).collect())
}

fn request(event: &Value) -> Option<Request> {
    let verb = event["verb"].as_str()?;
    // A watch that was begun is told once more when it ends; one that was refused only then.
    let code = event["responseStatus"]["code"].as_u64()?;
    let began = event["stage"] == "ResponseStarted";
    if (verb == "watch" && code == 200) != began {
        return None;
    }
    Some(Request {
        verb: verb.to_owned(),
        uri: event["requestURI"].as_str()?.to_owned(),
        code,
        body: event
            .get("requestObject")
            .map(Value::to_string)
            .filter(|_| verb == "patch"),
    })
}
