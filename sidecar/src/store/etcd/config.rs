//! Following the configuration: a look, then a watch from that look's revision on, and another look
//! when the watch ends. No error is a change.

use prost::bytes::Bytes;
use tokio::time::sleep;
use tonic::Streaming;
use tracing::debug;

use super::client::{Client, Repeat, pauses};
use super::error::CallError;
use super::listing::RANGE;
use super::proto::{RangeRequest, RangeResponse, WatchCreateRequest, WatchRequest, WatchResponse};
use super::watch::WATCH;

/// What a configuration consists of; `None`: there is none.
type Text = Option<Vec<u8>>;

/// Waits until the configuration under `key` is another than `known`.
pub(super) async fn changed(client: &Client, key: &str, known: Text) -> Text {
    let mut pauses = pauses();
    loop {
        match look_and_watch(client, key, &known).await {
            Ok(Some(now)) => return now,
            // It has changed and changed back, or was written anew.
            Ok(None) => pauses.reset(),
            Err(error) => {
                debug!(%error, "the configuration in etcd cannot be followed");
                sleep(pauses.next()).await;
            }
        }
    }
}

/// Until something has been written there; what it is now, if it is another than `known`.
async fn look_and_watch(
    client: &Client,
    key: &str,
    known: &Text,
) -> Result<Option<Text>, CallError> {
    let key = Bytes::from(key.to_owned());
    let request = RangeRequest {
        key: key.clone(),
        ..RangeRequest::default()
    };
    let answer: RangeResponse = client.call(RANGE, request, Repeat::Yes).await?;
    let now = answer.kvs.into_iter().next().map(|kv| kv.value.to_vec());
    if now != *known {
        return Ok(Some(now));
    }
    let create = WatchCreateRequest {
        key,
        range_end: Bytes::new(),
        start_revision: answer.header.unwrap_or_default().revision + 1,
        progress_notify: false,
        fragment: false,
    };
    let request = WatchRequest {
        create_request: Some(create),
    };
    let mut stream: Streaming<WatchResponse> = client.stream(WATCH, request).await?;
    let broken = |reason: String| CallError::Broken {
        endpoint: client.endpoint(),
        reason,
    };
    loop {
        match stream.message().await {
            Ok(Some(answer)) if answer.canceled => return Err(broken(answer.cancel_reason)),
            Ok(Some(answer)) if answer.events.is_empty() => {}
            // What was written is looked at, as its last state is all that counts.
            Ok(Some(_)) => return Ok(None),
            Ok(None) => return Err(broken("the watch ended".to_owned())),
            Err(status) => return Err(CallError::from_status(client.endpoint(), status)),
        }
    }
}
