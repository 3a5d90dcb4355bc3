//! All leases with their time, for a move to another store or from one. Unlike a daemon's start
//! this asks etcd for the time of every lease.

use std::collections::BTreeMap;
use std::time::Duration;

use super::client::Repeat;
use super::error::CallError;
use super::listing::{each, record};
use super::ours::TIME_TO_LIVE;
use super::proto::{
    Compare, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, PutRequest, Request, TxnRequest,
};
use super::{EtcdStore, StoreError};
use crate::store::migrate::{Cargo, Life, Parcel, Source, Target};

impl EtcdStore {
    async fn life(&self, etcd_lease: i64) -> Result<Life, CallError> {
        if etcd_lease == 0 {
            return Ok(Life::Reserved);
        }
        let request = LeaseTimeToLiveRequest {
            id: etcd_lease,
            keys: false,
        };
        let asked = self.client.call(TIME_TO_LIVE, request, Repeat::Yes).await;
        let answer: LeaseTimeToLiveResponse = asked?;
        let seconds = answer.ttl.max(1).try_into().unwrap_or(1);
        Ok(Life::Left(Duration::from_secs(seconds)))
    }
}

impl Source for EtcdStore {
    async fn unload(&self) -> Result<Cargo, StoreError> {
        let failed = |error: CallError| error.during(self.at("list", self.keys.subnets()));
        let mut found = Vec::new();
        let read = each(&self.client, &self.keys, |kv| {
            found.push((record(&self.keys, kv), kv.lease));
        });
        read.await.map_err(failed)?;
        let mut lives: BTreeMap<i64, Life> = BTreeMap::new();
        let mut cargo = Cargo::default();
        for (record, etcd_lease) in found {
            let (subnets, lease) = match record.content {
                Ok(content) => content,
                Err(reason) => {
                    cargo.unreadable.push((record.name, reason));
                    continue;
                }
            };
            let life = match lives.get(&etcd_lease) {
                Some(life) => *life,
                None => self.life(etcd_lease).await.map_err(failed)?,
            };
            lives.insert(etcd_lease, life);
            cargo.parcels.push(Parcel {
                subnets,
                lease,
                life,
            });
        }
        Ok(cargo)
    }
}

impl Target for EtcdStore {
    async fn load(&self, parcel: &Parcel) -> Result<bool, StoreError> {
        let key = self.keys.lease(&parcel.subnets);
        let failed = |error: CallError| error.during(self.at("write", &parcel.subnets.to_string()));
        let granted = match parcel.life {
            Life::Reserved => None,
            Life::Left(left) => Some(self.grant(left).await.map_err(failed)?),
            Life::Whole => Some(self.grant(self.options.ttl).await.map_err(failed)?),
        };
        let put = Request::Put(PutRequest {
            key: key.clone(),
            value: parcel.lease.render().into(),
            lease: granted.as_ref().map_or(0, |granted| granted.id),
        });
        let answer = self
            .transact(TxnRequest::only_if([Compare::absent(key)], [put]))
            .await
            .map_err(failed)?;
        if let (false, Some(granted)) = (answer.succeeded, granted) {
            self.revoke(granted.id).await;
        }
        Ok(answer.succeeded)
    }
}
