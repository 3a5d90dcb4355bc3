//! List and watch: all Nodes in pages, then every change of them, for as long as somebody listens.
//!
//! A watch that ends goes on where it was; a position that the API server no longer has, or that
//! it has not reached yet (its data was replaced by older), begins with a new list. While nothing
//! can be read nothing is sent: what the receiver knows stays. Whether a list is believed that
//! lacks what was there is not decided here, but in [`crate::store::doubt`].

use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use super::client::{ApiError, Status, query_escaped};
use super::node::{Depth, Meaning, decode};
use super::nodes::Nodes;
use super::pages::Pages;
use super::{Inner, NODES};
use crate::store::LeaseEvent;
use crate::store::backoff::Backoff;

/// Nodes per page.
const PAGE: usize = 500;
/// A restart in the middle of the pages is not an error, but must not go on for ever.
const LISTS: usize = 5;
/// The longest event: an object of 3 MiB and its wrapping.
const LONGEST_EVENT: usize = 4 << 20;
/// A buffer grown by one great object is given back.
const USUAL_EVENT: usize = 64 << 10;

/// A watch that ends so soon might as well not have begun.
const SHORT_LIVED: Duration = Duration::from_secs(1);

/// The receiver is gone.
struct Unheard;

/// Where a list ended, and where a watch is.
type Version = String;

/// One run of the store's stream.
pub(super) struct Follower<'a> {
    inner: &'a Inner,
    events: &'a mpsc::Sender<LeaseEvent>,
    nodes: Nodes,
    /// Why nothing can be read now, as it was said last.
    trouble: Option<String>,
    backoff: Backoff,
}

/// How a watch ended without an error.
enum Ended {
    /// In the usual way: watch on from here.
    Closed(Version),
    /// Its position is not to be had: list anew.
    Gone(String),
}

#[derive(Deserialize)]
struct Event<'a> {
    r#type: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct Versioned {
    metadata: VersionedMetadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct VersionedMetadata {
    resource_version: Version,
}

impl<'a> Follower<'a> {
    pub(super) fn new(inner: &'a Inner, events: &'a mpsc::Sender<LeaseEvent>) -> Self {
        Self {
            inner,
            events,
            nodes: Nodes::default(),
            trouble: None,
            backoff: super::backoff(),
        }
    }

    /// Sends until the receiver is gone.
    pub(super) async fn run(mut self) {
        let events = self.events;
        tokio::select! {
            () = events.closed() => {}
            _ = self.follow() => {}
        }
    }

    async fn follow(&mut self) -> Result<(), Unheard> {
        loop {
            let (nodes, version) = match self.list().await {
                Ok(listed) => listed,
                Err(error) => {
                    self.failed(format!("list nodes: {error}")).await;
                    continue;
                }
            };
            self.nodes = nodes;
            self.recovered();
            self.send(LeaseEvent::Snapshot(self.nodes.snapshot()))
                .await?;
            self.watch_on(version).await?;
        }
    }

    /// Watches from a list on, until that is not possible any more.
    async fn watch_on(&mut self, mut version: Version) -> Result<(), Unheard> {
        loop {
            let began = Instant::now();
            let asked = Duration::from_secs(300 + u64::from(getrandom::u32().unwrap_or(0) % 300));
            match self.watch(&mut version, asked).await? {
                Ok(Ended::Closed(at)) => {
                    version = at;
                    // Each node has asked for an end of its own.
                    if began.elapsed() >= asked {
                        continue;
                    }
                    // A server that ends watches early ends those of all nodes, at once. One that
                    // does so again and again is as bad as an error.
                    if began.elapsed() > SHORT_LIVED {
                        self.backoff.reset();
                    }
                    sleep(self.backoff.next()).await;
                }
                Ok(Ended::Gone(why)) => {
                    info!(why, "listing all nodes again");
                    sleep(self.backoff.next()).await;
                    return Ok(());
                }
                Err(error) => {
                    self.failed(format!("watch nodes: {error}")).await;
                    // Whoever answers now may know less than we do: an older copy of the data.
                    match self.current_version().await {
                        Ok(now) if is_before(&now, &version) => {
                            info!(
                                now,
                                version,
                                "the API server went back in time: listing all nodes again"
                            );
                            return Ok(());
                        }
                        Ok(_) => {}
                        Err(error) => debug!(%error, "the API server is still not to be asked"),
                    }
                }
            }
        }
    }

    async fn current_version(&self) -> Result<Version, ApiError> {
        let json = self.inner.client.get(&format!("{NODES}?limit=1")).await?;
        let list: Versioned =
            serde_json::from_slice(&json).map_err(|error| ApiError::Nonsense(error.to_string()))?;
        Ok(list.metadata.resource_version)
    }

    /// All Nodes as of one moment. Without `resourceVersion=0`: that would take any age.
    pub(super) async fn list(&self) -> Result<(Nodes, Version), ApiError> {
        let mut tries = 0;
        loop {
            match self.list_pages().await {
                // The moment that the first page was about is forgotten: another one.
                Err(error) if error.is_gone() && tries < LISTS => tries += 1,
                listed => return listed,
            }
        }
    }

    async fn list_pages(&self) -> Result<(Nodes, Version), ApiError> {
        let mut nodes = Nodes::default();
        let mut next = String::new();
        loop {
            let from = match next.is_empty() {
                true => String::new(),
                false => format!("&continue={}", query_escaped(&next)),
            };
            let path = format!("{NODES}?limit={PAGE}{from}");
            let mut body = self
                .inner
                .client
                .stream(&path, self.inner.patience.piece)
                .await?;
            let mut pages = Pages::default();
            while let Some(piece) = body.piece().await? {
                let take = |json: &[u8]| {
                    if let Some((name, meaning)) = self.meaning(json) {
                        nodes.set(&name, meaning);
                    }
                };
                pages.push(&piece, take).map_err(ApiError::Nonsense)?;
            }
            let metadata = pages.finish().map_err(ApiError::Nonsense)?;
            if metadata.next.is_empty() {
                return Ok((nodes, metadata.resource_version));
            }
            next = metadata.next;
        }
    }

    fn meaning(&self, json: &[u8]) -> Option<(Box<str>, Meaning)> {
        match decode(json, &self.inner.names, Depth::Lease) {
            Ok(node) => {
                let meaning = self.inner.meaning(&node);
                Some((node.name, meaning))
            }
            Err((Some(name), reason)) => {
                Some((name, Meaning::Fault(format!("not a Node: {reason}"))))
            }
            Err((None, reason)) => {
                warn!(
                    reason,
                    "the API server sent something without a name, which is skipped"
                );
                None
            }
        }
    }

    async fn watch(
        &mut self,
        version: &mut Version,
        asked: Duration,
    ) -> Result<Result<Ended, ApiError>, Unheard> {
        let seconds = asked.as_secs();
        let path = format!(
            "{NODES}?allowWatchBookmarks=true&resourceVersion={version}&timeoutSeconds={seconds}&watch=true"
        );
        let mut body = match self
            .inner
            .client
            .stream(&path, self.inner.patience.watch)
            .await
        {
            Ok(body) => body,
            Err(error) if error.is_gone() => return Ok(Ok(Ended::Gone(error.to_string()))),
            Err(error) => return Ok(Err(error)),
        };
        let mut line: Vec<u8> = Vec::new();
        loop {
            let piece = match body.piece().await {
                Ok(Some(piece)) => piece,
                Ok(None) if line.is_empty() => return Ok(Ok(Ended::Closed(version.clone()))),
                Ok(None) => {
                    return Ok(Err(ApiError::broken(
                        "read the watch",
                        "it ends within an event",
                    )));
                }
                Err(error) => return Ok(Err(error)),
            };
            let mut rest = &piece[..];
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                line.extend_from_slice(&rest[..end]);
                rest = &rest[end + 1..];
                match self.take(&line, version).await? {
                    Ok(None) => {}
                    Ok(Some(ended)) => return Ok(Ok(ended)),
                    Err(error) => return Ok(Err(error)),
                }
                line.clear();
                line.shrink_to(USUAL_EVENT);
            }
            line.extend_from_slice(rest);
            if line.len() > LONGEST_EVENT {
                let problem = "an event is too long to be a Node's".to_owned();
                return Ok(Err(ApiError::Nonsense(problem)));
            }
        }
    }

    /// One line of a watch.
    async fn take(
        &mut self,
        line: &[u8],
        version: &mut Version,
    ) -> Result<Result<Option<Ended>, ApiError>, Unheard> {
        let event: Event<'_> = match serde_json::from_slice(line) {
            Ok(event) => event,
            Err(error) => return Ok(Err(ApiError::Nonsense(error.to_string()))),
        };
        let object = event.object.get();
        if event.r#type == "ERROR" {
            let Status { code, message } = serde_json::from_str(object).unwrap_or_default();
            return Ok(match code {
                410 => Ok(Some(Ended::Gone(message))),
                _ => Err(ApiError::Refused { code, message }),
            });
        }
        let at: Versioned = match serde_json::from_str(object) {
            Ok(at) => at,
            Err(error) => return Ok(Err(ApiError::Nonsense(error.to_string()))),
        };
        let at = at.metadata.resource_version;
        if is_before(&at, version) {
            let why = format!("the API server is at {at}, before {version}");
            return Ok(Ok(Some(Ended::Gone(why))));
        }
        if event.r#type != "BOOKMARK"
            && let Some((name, meaning)) = self.meaning(object.as_bytes())
        {
            let meaning = match event.r#type {
                "DELETED" => Meaning::Nothing,
                _ => meaning,
            };
            for event in self.nodes.set(&name, meaning) {
                self.send(event).await?;
            }
        }
        *version = at;
        self.recovered();
        Ok(Ok(None))
    }

    async fn send(&self, event: LeaseEvent) -> Result<(), Unheard> {
        self.events.send(event).await.map_err(|_| Unheard)
    }

    /// Says once when trouble begins or changes, and waits a while.
    async fn failed(&mut self, trouble: String) {
        if self.trouble.as_ref() != Some(&trouble) {
            warn!(
                reason = trouble,
                "lease store cannot be read, peers stay as they are"
            );
            self.trouble = Some(trouble);
        }
        sleep(self.backoff.next()).await;
    }

    fn recovered(&mut self) {
        self.backoff.reset();
        if self.trouble.take().is_some() {
            info!(api_server = %self.inner.client.source(), "lease store is read again");
        }
    }
}

/// Whether a version is older than another. They are opaque by their book, and numbers in every
/// API server; what is no number is not older.
fn is_before(version: &str, than: &str) -> bool {
    match (version.parse::<u64>(), than.parse::<u64>()) {
        (Ok(version), Ok(than)) => version < than,
        _ => false,
    }
}
