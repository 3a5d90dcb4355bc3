//! Fuzz targets for what an etcd says: an entry of the lease table, and the messages of its API.

use bytes::Bytes;
use prost::Message;

use super::keys::Keys;
use super::listing::record;
use super::proto::{KeyValue, RangeResponse, TxnResponse, WatchResponse};

/// A key, its end marked by a zero byte, and the value behind it.
pub(crate) fn entry(bytes: &[u8]) {
    let end = bytes.iter().position(|byte| *byte == 0);
    let (key, value) = bytes.split_at(end.unwrap_or(bytes.len()));
    let kv = KeyValue {
        key: Bytes::copy_from_slice(key),
        value: Bytes::copy_from_slice(value.get(1..).unwrap_or_default()),
        ..KeyValue::default()
    };
    match record(&Keys::below("/coreos.com/network"), &kv).content {
        Ok((subnets, lease)) => {
            assert_eq!(subnets.to_string().parse(), Ok(subnets));
            crate::fuzz::lease(lease.render().as_bytes());
        }
        Err(reason) => assert!(!reason.is_empty()),
    }
}

/// An answer as it comes from the wire.
pub(crate) fn answer(bytes: &[u8]) {
    let keys = Keys::below("/coreos.com/network");
    if let Ok(range) = RangeResponse::decode(bytes) {
        range.kvs.iter().for_each(|kv| drop(record(&keys, kv)));
    }
    let _ = TxnResponse::decode(bytes);
    let _ = WatchResponse::decode(bytes);
}
