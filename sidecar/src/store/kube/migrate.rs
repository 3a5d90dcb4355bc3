//! All leases, for a move to another store. There is no move to here: podCIDRs are given by the
//! cluster, and every node writes its own annotations.

use tokio::sync::mpsc;

use super::follow::Follower;
use super::{KubeStore, failed};
use crate::store::StoreError;
use crate::store::migrate::{Cargo, Life, Parcel, Source};

impl Source for KubeStore {
    async fn unload(&self) -> Result<Cargo, StoreError> {
        let (nobody, _) = mpsc::channel(1);
        let listed = Follower::new(&self.inner, &nobody).list().await;
        let (nodes, _) = listed.map_err(|error| {
            failed(
                format!("list nodes of {}", self.inner.client.source()),
                error,
            )
        })?;
        let mut cargo = Cargo::default();
        for record in nodes.snapshot() {
            match record.content {
                Ok((subnets, lease)) => cargo.parcels.push(Parcel {
                    subnets,
                    lease,
                    life: Life::Whole,
                }),
                Err(reason) => cargo.unreadable.push((record.name, reason)),
            }
        }
        Ok(cargo)
    }
}
