//! Reading all leases at one revision, in pages, and single records out of keys and values.
//!
//! The one list of a start serves twice: acquiring decides on it, and the watch begins with it.

use prost::bytes::Bytes;

use super::client::{Client, Repeat};
use super::error::CallError;
use super::keys::Keys;
use super::proto::{KeyValue, RangeRequest, RangeResponse};
use crate::lease::Lease;
use crate::store::Record;
use crate::subnet::Taken;
use crate::subnets::Subnets;

pub(super) const RANGE: &str = "/etcdserverpb.KV/Range";
/// Keys per page: 10,000 leases are 10 answers of a quarter megabyte.
const PAGE: i64 = 1000;
/// A lease is a few hundred bytes; etcd takes a value of more than a megabyte.
const LONGEST: usize = 64 * 1024;

/// A point in etcd's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Position {
    /// The cluster: revisions of another one mean something else.
    pub(super) cluster: u64,
    /// Everything up to here is known.
    pub(super) revision: i64,
}

/// A key that was written last at a known revision: a store in which it was not is another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Landmark {
    pub(super) key: Bytes,
    pub(super) mod_revision: i64,
}

/// Everything that is there.
#[derive(Debug, Clone, Default)]
pub(super) struct Listing {
    pub(super) position: Position,
    /// The youngest of the keys.
    pub(super) landmark: Option<Landmark>,
    /// Every key that claims a subnet.
    pub(super) taken: Vec<Taken>,
    /// What is not a lease.
    unreadable: Vec<Record>,
}

impl Landmark {
    pub(super) fn of(kv: &KeyValue) -> Self {
        Self {
            // A copy: the answer that it is a part of is large.
            key: Bytes::copy_from_slice(&kv.key),
            mod_revision: kv.mod_revision,
        }
    }
}

impl Listing {
    pub(super) async fn read(client: &Client, keys: &Keys) -> Result<Self, CallError> {
        let mut all = Self::default();
        all.position = each(client, keys, |kv| all.add(keys, kv)).await?;
        Ok(all)
    }

    fn add(&mut self, keys: &Keys, kv: &KeyValue) {
        if self
            .landmark
            .as_ref()
            .is_none_or(|mark| mark.mod_revision < kv.mod_revision)
        {
            self.landmark = Some(Landmark::of(kv));
        }
        let Record { name, content } = record(keys, kv);
        let (subnets, lease) = match content {
            Ok((subnets, lease)) => (subnets, Some(lease)),
            Err(reason) => {
                let subnets = name.parse::<Subnets>();
                let content = Err(reason);
                self.unreadable.push(Record { name, content });
                // A torn value still claims its subnet; a foreign name claims nothing.
                match subnets {
                    Ok(subnets) => (subnets, None),
                    Err(_) => return,
                }
            }
        };
        self.taken.push(Taken { subnets, lease });
    }

    /// Takes note of what we ourselves have changed since.
    pub(super) fn replace(&mut self, subnets: &Subnets, lease: Option<&Lease>) {
        self.taken.retain(|taken| taken.subnets != *subnets);
        let name: Box<str> = subnets.to_string().into();
        self.unreadable.retain(|record| record.name != name);
        if let Some(lease) = lease {
            let subnets = *subnets;
            let lease = Some(lease.clone());
            self.taken.push(Taken { subnets, lease });
        }
    }

    pub(super) fn into_records(self) -> Vec<Record> {
        let readable = self.taken.into_iter().filter_map(|taken| {
            let name = taken.subnets.to_string().into();
            let content = Ok((taken.subnets, taken.lease?));
            Some(Record { name, content })
        });
        readable.chain(self.unreadable).collect()
    }
}

/// Reads every key of the range at one revision, page by page.
pub(super) async fn each(
    client: &Client,
    keys: &Keys,
    mut read: impl FnMut(&KeyValue),
) -> Result<Position, CallError> {
    let (mut key, range_end) = keys.range();
    let mut page = PAGE;
    let mut position: Option<Position> = None;
    loop {
        let request = RangeRequest {
            key: key.clone(),
            range_end: range_end.clone(),
            limit: page,
            revision: position.map_or(0, |position| position.revision),
            ..RangeRequest::default()
        };
        let answer: RangeResponse = match client.call(RANGE, request, Repeat::Yes).await {
            // Somebody keeps large values among the leases: fewer of them at once.
            Err(error) if error.is_too_large() && page > 1 => {
                page /= 2;
                continue;
            }
            answer => answer?,
        };
        let header = answer.header.unwrap_or_default();
        let position = *position.get_or_insert(Position {
            cluster: header.cluster_id,
            revision: header.revision,
        });
        answer.kvs.iter().for_each(&mut read);
        match answer.kvs.last() {
            Some(last) if answer.more => key = behind(&last.key),
            _ => return Ok(position),
        }
    }
}

/// The first key behind this one.
fn behind(key: &Bytes) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}

/// A key and its value, as a lease or as the reason for which it is none.
pub(super) fn record(keys: &Keys, kv: &KeyValue) -> Record {
    let name = keys.name(&kv.key);
    let content = decode(&name, &kv.value);
    Record { name, content }
}

fn decode(name: &str, value: &[u8]) -> Result<(Subnets, Lease), String> {
    let subnets = name.parse().map_err(|error| format!("its key: {error}"))?;
    if value.len() > LONGEST {
        return Err(format!("its value: more than {LONGEST} bytes are no lease"));
    }
    let lease = Lease::parse(value).map_err(|error| format!("its value: {error}"))?;
    Ok((subnets, lease))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(name: &str, value: &[u8]) -> KeyValue {
        KeyValue {
            key: format!("/n/subnets/{name}").into(),
            value: value.to_vec().into(),
            mod_revision: 7,
            ..KeyValue::default()
        }
    }

    #[test]
    fn what_is_no_lease_is_named_and_a_torn_value_still_claims_its_subnet() {
        let keys = Keys::below("/n");
        let mut listing = Listing::default();
        listing.add(
            &keys,
            &kv("10.5.30.0-24", br#"{"PublicIP":"192.168.50.30"}"#),
        );
        listing.add(&keys, &kv("10.5.32.0-24", b"{not json"));
        listing.add(&keys, &kv("nonsense", b"{}"));
        listing.add(&keys, &kv("10.5.33.0-24", &vec![b' '; 1_000_000]));
        assert_eq!(listing.taken.len(), 3);
        let bad: Vec<Record> = listing
            .into_records()
            .into_iter()
            .filter(|record| record.content.is_err())
            .collect();
        let names: Vec<&str> = bad.iter().map(|record| &*record.name).collect();
        assert_eq!(names, ["10.5.32.0-24", "nonsense", "10.5.33.0-24"]);
    }

    #[test]
    fn what_we_wrote_is_in_the_listing_that_the_watch_begins_with() {
        let keys = Keys::below("/n");
        let mut listing = Listing::default();
        listing.add(&keys, &kv("10.5.30.0-24", b"{torn"));
        listing.add(&keys, &kv("10.5.31.0-24", b"{}"));
        let (ours, released) = (
            "10.5.30.0-24".parse().unwrap(),
            "10.5.31.0-24".parse().unwrap(),
        );
        listing.replace(&ours, Some(&Lease::default()));
        listing.replace(&released, None);
        let records = listing.into_records();
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].content, Ok((ours, Lease::default())));
    }

    #[test]
    fn nothing_lies_between_a_key_and_the_one_behind_it() {
        let key = Bytes::from_static(b"/n/subnets/10.5.30.0-24");
        assert_eq!(behind(&key), &b"/n/subnets/10.5.30.0-24\0"[..]);
    }
}
