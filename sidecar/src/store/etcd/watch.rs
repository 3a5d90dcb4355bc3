//! Following the leases: a list, then a watch from its revision on, resumed where it broke, and a
//! new list only where etcd cannot tell any more what happened in between.
//!
//! No error is ever an event: while etcd cannot be read the receiver hears nothing, and peers stay.

use prost::bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tonic::Streaming;
use tracing::{debug, info, warn};

use super::client::{Client, Repeat, pauses};
use super::error::CallError;
use super::keys::Keys;
use super::listing::{Landmark, Listing, Position, RANGE, record};
use super::proto::{
    Event, RangeRequest, RangeResponse, WatchCreateRequest, WatchRequest, WatchResponse,
};
use crate::store::LeaseEvent;

pub(super) const WATCH: &str = "/etcdserverpb.Watch/Watch";
const DELETED: i32 = 1;

/// Why following came to an end for now.
enum Stop {
    /// The receiver is gone.
    Receiver,
    /// What we know does not connect to what etcd has: list again.
    Relist(String),
    /// To be resumed.
    Failed(CallError),
}

impl From<CallError> for Stop {
    fn from(error: CallError) -> Self {
        if error.is_compacted() {
            return Self::Relist(error.to_string());
        }
        Self::Failed(error)
    }
}

/// Sends events until the receiver is gone. `first` is a list that was made a moment ago.
pub(super) async fn run(
    client: &Client,
    keys: &Keys,
    first: Option<Listing>,
    events: &mpsc::Sender<LeaseEvent>,
) {
    let mut follower = Follower {
        client,
        keys,
        events,
        position: None,
        landmark: None,
        trouble: false,
    };
    let mut pauses = pauses();
    let mut listing = first;
    loop {
        let before = follower.position;
        let stop = tokio::select! {
            () = events.closed() => return,
            stop = follower.follow(listing.take()) => stop,
        };
        match stop {
            Stop::Receiver => return,
            Stop::Relist(reason) => {
                info!(reason, "listing the leases in etcd again");
                follower.position = None;
            }
            Stop::Failed(error) => {
                follower.report(&error);
                client.forget_connection();
            }
        }
        if follower.position != before && follower.position.is_some() {
            pauses.reset();
        }
        tokio::select! {
            () = events.closed() => return,
            () = sleep(pauses.next()) => {}
        }
    }
}

struct Follower<'a> {
    client: &'a Client,
    keys: &'a Keys,
    events: &'a mpsc::Sender<LeaseEvent>,
    /// Up to where the receiver knows everything; `None`: list first.
    position: Option<Position>,
    landmark: Option<Landmark>,
    trouble: bool,
}

impl Follower<'_> {
    async fn follow(&mut self, listing: Option<Listing>) -> Stop {
        match self.try_follow(listing).await {
            Err(stop) => stop,
            Ok(never) => match never {},
        }
    }

    async fn try_follow(
        &mut self,
        listing: Option<Listing>,
    ) -> Result<std::convert::Infallible, Stop> {
        let mut position = match (self.position, listing) {
            (Some(position), _) => {
                self.recognise(position).await?;
                position
            }
            (None, Some(listing)) => self.begin(listing).await?,
            (None, None) => {
                let listing = Listing::read(self.client, self.keys).await?;
                self.begin(listing).await?
            }
        };
        let mut stream = self.open(position).await?;
        self.recovered();
        loop {
            let answer = self.next(&mut stream).await?;
            self.check(&answer, position)?;
            let header = answer.header.unwrap_or_default();
            let known = match answer.events.last().and_then(|event| event.kv.as_ref()) {
                // Of a revision that comes in pieces only the last one makes it known.
                Some(last) => last.mod_revision - i64::from(answer.fragment),
                None if answer.created => position.revision,
                // Nothing has happened up to here: a resumed watch need not begin further back.
                None => header.revision,
            };
            for event in answer.events {
                self.tell(event).await?;
            }
            position.revision = position.revision.max(known);
            self.position = Some(position);
        }
    }

    async fn begin(&mut self, listing: Listing) -> Result<Position, Stop> {
        let position = listing.position;
        self.landmark.clone_from(&listing.landmark);
        self.send(LeaseEvent::Snapshot(listing.into_records()))
            .await?;
        self.position = Some(position);
        Ok(position)
    }

    /// Before a watch is resumed: a store that was lost and made anew counts its revisions from 1,
    /// and may have passed ours already when we come back.
    async fn recognise(&self, position: Position) -> Result<(), Stop> {
        let Some(landmark) = &self.landmark else {
            return Err(Stop::Relist(
                "no key is known to recognise the store by".to_owned(),
            ));
        };
        let request = RangeRequest {
            key: landmark.key.clone(),
            revision: position.revision,
            ..RangeRequest::default()
        };
        let asked = self.client.call(RANGE, request, Repeat::Yes).await;
        let answer: RangeResponse = match asked {
            Err(error) if error.is_future() => return Err(Stop::Relist(error.to_string())),
            answer => answer?,
        };
        let found = answer.kvs.first().map(|kv| kv.mod_revision);
        if found != Some(landmark.mod_revision) {
            let reason = "it is another store: it does not remember what we saw there";
            return Err(Stop::Relist(reason.to_owned()));
        }
        Ok(())
    }

    async fn open(&self, position: Position) -> Result<Streaming<WatchResponse>, CallError> {
        let (key, range_end): (Bytes, Bytes) = self.keys.range();
        let create = WatchCreateRequest {
            key,
            range_end,
            start_revision: position.revision + 1,
            progress_notify: true,
            fragment: true,
        };
        let request = WatchRequest {
            create_request: Some(create),
        };
        self.client.stream(WATCH, request).await
    }

    async fn next(&self, stream: &mut Streaming<WatchResponse>) -> Result<WatchResponse, Stop> {
        let endpoint = self.client.endpoint();
        match stream.message().await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => {
                let reason = "the watch ended".to_owned();
                Err(Stop::Failed(CallError::Broken { endpoint, reason }))
            }
            Err(status) => {
                let error = CallError::from_status(endpoint, status);
                match error.is_too_large() {
                    // A piece that can never be read must not be asked for without end.
                    true => Err(Stop::Relist(error.to_string())),
                    false => Err(error.into()),
                }
            }
        }
    }

    fn check(&self, answer: &WatchResponse, position: Position) -> Result<(), Stop> {
        let header = answer.header.unwrap_or_default();
        if answer.compact_revision != 0 {
            let reason = format!(
                "etcd has forgotten what happened between revisions {} and {}",
                position.revision, answer.compact_revision
            );
            return Err(Stop::Relist(reason));
        }
        if answer.canceled {
            return Err(Stop::Failed(CallError::Broken {
                endpoint: self.client.endpoint(),
                reason: format!("the watch was cancelled: {}", answer.cancel_reason),
            }));
        }
        // A store that was restored or made anew would keep silent until it reaches our revision.
        if header.cluster_id != position.cluster || header.revision < position.revision {
            let reason = format!(
                "it is another store: cluster {:x} at revision {}, we knew cluster {:x} at {}",
                header.cluster_id, header.revision, position.cluster, position.revision
            );
            return Err(Stop::Relist(reason));
        }
        Ok(())
    }

    async fn tell(&mut self, event: Event) -> Result<(), Stop> {
        let Some(kv) = event.kv else {
            return Ok(());
        };
        let event = if event.r#type == DELETED {
            self.landmark.take_if(|landmark| landmark.key == kv.key);
            LeaseEvent::Removed(self.keys.name(&kv.key))
        } else {
            self.landmark = Some(Landmark::of(&kv));
            LeaseEvent::Put(record(self.keys, &kv))
        };
        self.send(event).await
    }

    async fn send(&self, event: LeaseEvent) -> Result<(), Stop> {
        self.events.send(event).await.map_err(|_| Stop::Receiver)
    }

    /// Says once when trouble begins; each further failure is a detail.
    fn report(&mut self, error: &CallError) {
        if self.trouble {
            debug!(%error, "etcd still cannot be watched");
        } else {
            warn!(%error, "the leases in etcd cannot be watched, peers stay as they are");
        }
        self.trouble = true;
    }

    fn recovered(&mut self) {
        if std::mem::take(&mut self.trouble) {
            info!(
                endpoint = self.client.endpoint(),
                "the leases in etcd are watched again"
            );
        }
    }
}
