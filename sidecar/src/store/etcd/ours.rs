//! Writing this node's own key: create, extend, release. Each is one transaction on what was seen
//! before; when that has changed nothing is written, and the caller looks again.

use std::iter;
use std::time::Duration;

use prost::bytes::Bytes;
use tracing::debug;

use super::client::Repeat;
use super::error::CallError;
use super::proto::{
    Compare, DeleteRangeRequest, Ignored, KeyValue, LeaseGrantRequest, LeaseGrantResponse,
    LeaseRevokeRequest, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, PutRequest, RangeRequest,
    Request, Response, TxnRequest, TxnResponse,
};
use super::{Attempt, EtcdStore, Owner};
use crate::lease::Lease;
use crate::store::Held;
use crate::subnet::Claim;
use crate::subnets::Subnets;

const GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
const REVOKE: &str = "/etcdserverpb.Lease/LeaseRevoke";
pub(super) const TIME_TO_LIVE: &str = "/etcdserverpb.Lease/LeaseTimeToLive";

impl EtcdStore {
    /// Creates our key, if nobody has made one that overlaps it since revision `since`.
    ///
    /// etcd can compare keys, not subnets: `10.5.20.0-24` and `10.5.20.0-24&fd00::-64` are two keys
    /// to it. So the transaction that creates ours also returns what else was created lately, and
    /// the older of two that overlap stays.
    ///
    /// Keys of ours that are `leaving` go in the same transaction, behind the new one: a peer that
    /// sees a node change from one subnet to another that contains it never sees it without.
    pub(super) async fn create(
        &self,
        lease: &Lease,
        subnets: Subnets,
        since: i64,
        leaving: &[KeyValue],
    ) -> Result<Attempt<Held>, CallError> {
        let key = self.keys.lease(&subnets);
        let granted = self.grant(self.options.ttl).await?;
        let (start, range_end) = self.keys.range();
        let put = Request::Put(PutRequest {
            key: key.clone(),
            value: lease.render().into(),
            lease: granted.id,
        });
        let created_since = Request::Range(RangeRequest {
            key: start,
            range_end,
            keys_only: true,
            min_create_revision: since + 1,
            ..RangeRequest::default()
        });
        let unchanged = leaving
            .iter()
            .map(|kv| Compare::unchanged(kv.key.clone(), kv.mod_revision));
        let gone = leaving.iter().map(|kv| {
            Request::DeleteRange(DeleteRangeRequest {
                key: kv.key.clone(),
            })
        });
        let request = TxnRequest::only_if(
            iter::once(Compare::absent(key.clone())).chain(unchanged),
            iter::once(put).chain(gone).chain([created_since]),
        );
        let answer = self.transact(request).await?;
        if !answer.succeeded {
            self.revoke(granted.id).await;
            return Ok(Attempt::Raced);
        }
        let revision = answer.header.unwrap_or_default().revision;
        if self.is_contested(&subnets, &answer, revision) {
            self.delete(key, revision).await?;
            self.revoke(granted.id).await;
            return Ok(Attempt::Raced);
        }
        for present in leaving {
            self.retire(present.lease).await;
        }
        Ok(Attempt::Done(self.held(subnets, &granted)))
    }

    fn is_contested(&self, subnets: &Subnets, answer: &TxnResponse, revision: i64) -> bool {
        let ranges = answer.responses.iter().filter_map(|op| match &op.response {
            Some(Response::Range(range)) => Some(&range.kvs),
            _ => None,
        });
        ranges.flatten().any(|kv| {
            let other = self.keys.name(&kv.key).parse::<Subnets>();
            kv.create_revision < revision && other.is_ok_and(|other| other.overlaps(subnets))
        })
    }

    /// Writes our lease over what is `present` under our key, and gives it its full time again.
    /// A reservation stays one; if it says already what we publish, nothing is written.
    pub(super) async fn extend(
        &self,
        lease: &Lease,
        subnets: Subnets,
        present: &KeyValue,
    ) -> Result<Attempt<Held>, CallError> {
        let reserved = present.lease == 0;
        let value = lease.render();
        let held = Held {
            subnets,
            expires: None,
            found: true,
        };
        if reserved && present.value == value.as_bytes() {
            return Ok(Attempt::Done(held));
        }
        let granted = match reserved {
            true => LeaseGrantResponse::default(),
            false => self.grant(self.options.ttl).await?,
        };
        let put = Request::Put(PutRequest {
            key: present.key.clone(),
            value: value.into(),
            lease: granted.id,
        });
        let unchanged = Compare::unchanged(present.key.clone(), present.mod_revision);
        let answer = self
            .transact(TxnRequest::only_if([unchanged], [put]))
            .await?;
        if !answer.succeeded {
            if !reserved {
                self.revoke(granted.id).await;
            }
            return Ok(Attempt::Raced);
        }
        if reserved {
            return Ok(Attempt::Done(held));
        }
        self.retire(present.lease).await;
        Ok(Attempt::Done(Held {
            found: true,
            ..self.held(subnets, &granted)
        }))
    }

    /// What is under a key that was ours when it was listed, if it is ours still.
    pub(super) async fn still_ours(
        &self,
        claim: &Claim,
        subnets: &Subnets,
    ) -> Result<Option<KeyValue>, CallError> {
        let present = self.get(self.keys.lease(subnets)).await?;
        Ok(present.filter(|kv| matches!(self.owner(claim, subnets, kv), Owner::Us)))
    }

    /// Deletes a key of ours that does not fit the configuration any more.
    pub(super) async fn release(&self, present: &KeyValue) -> Result<(), CallError> {
        self.delete(present.key.clone(), present.mod_revision)
            .await?;
        self.retire(present.lease).await;
        Ok(())
    }

    /// Deletes a key unless somebody has written it since.
    async fn delete(&self, key: Bytes, mod_revision: i64) -> Result<(), CallError> {
        let unchanged = Compare::unchanged(key.clone(), mod_revision);
        let delete = Request::DeleteRange(DeleteRangeRequest { key });
        self.transact(TxnRequest::only_if([unchanged], [delete]))
            .await?;
        Ok(())
    }

    pub(super) async fn grant(&self, ttl: Duration) -> Result<LeaseGrantResponse, CallError> {
        let ttl = i64::try_from(ttl.as_secs().max(1)).unwrap_or(i64::MAX);
        let request = LeaseGrantRequest { ttl };
        // Granted twice, one of them expires unused.
        self.client.call(GRANT, request, Repeat::Yes).await
    }

    fn held(&self, subnets: Subnets, granted: &LeaseGrantResponse) -> Held {
        let ttl = Duration::from_secs(granted.ttl.try_into().unwrap_or_default());
        Held {
            subnets,
            expires: Some((self.clock)() + ttl),
            found: false,
        }
    }

    /// Ends an etcd lease that our key has left, unless somebody's key hangs on it still. Left
    /// alone it would live on for a day; a daemon that restarts often would leave thousands.
    async fn retire(&self, etcd_lease: i64) {
        if etcd_lease == 0 {
            return;
        }
        let request = LeaseTimeToLiveRequest {
            id: etcd_lease,
            keys: true,
        };
        let asked = self.client.call(TIME_TO_LIVE, request, Repeat::No).await;
        let unused = |answer: LeaseTimeToLiveResponse| answer.ttl > 0 && answer.keys.is_empty();
        if asked.is_ok_and(unused) {
            self.revoke(etcd_lease).await;
        }
    }

    pub(super) async fn revoke(&self, etcd_lease: i64) {
        let request = LeaseRevokeRequest { id: etcd_lease };
        let revoked: Result<Ignored, CallError> =
            self.client.call(REVOKE, request, Repeat::No).await;
        if let Err(error) = revoked {
            debug!(%error, "an unused etcd lease could not be revoked and will expire");
        }
    }
}
