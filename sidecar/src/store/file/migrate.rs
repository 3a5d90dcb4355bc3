//! All leases with their time, for a move to another store or from one.

use std::time::{Duration, SystemTime};

use super::entry::{self, State};
use super::{FileStore, set_expiry};
use crate::store::StoreError;
use crate::store::migrate::{Cargo, Life, Parcel, Source, Target};

/// Far enough to be a reservation, and not beyond what file systems can write (2038 for some).
const RESERVED_FOR: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

impl Source for FileStore {
    async fn unload(&self) -> Result<Cargo, StoreError> {
        let now = SystemTime::now();
        let mut cargo = Cargo::default();
        // As long as no lease was taken in it.
        if !self.subnets_dir().exists() {
            return Ok(cargo);
        }
        for (name, entry) in entry::read_all(&self.subnets_dir())? {
            if entry.state(now) == State::Expired {
                continue;
            }
            let (subnets, lease) = match entry.content {
                Ok(content) => content,
                Err(reason) => {
                    cargo.unreadable.push((name, reason));
                    continue;
                }
            };
            let life = match self.held(subnets)?.expires {
                None => Life::Reserved,
                Some(expires) => Life::Left(expires.duration_since(now).unwrap_or_default()),
            };
            cargo.parcels.push(Parcel {
                subnets,
                lease,
                life,
            });
        }
        Ok(cargo)
    }
}

impl Target for FileStore {
    async fn load(&self, parcel: &Parcel) -> Result<bool, StoreError> {
        let _lock = self.lock().await?;
        if !self.put(&parcel.subnets, &parcel.lease, true)? {
            return Ok(false);
        }
        let expires = match parcel.life {
            Life::Reserved => SystemTime::now() + RESERVED_FOR,
            Life::Left(left) => SystemTime::now() + left,
            Life::Whole => SystemTime::now() + self.ttl,
        };
        set_expiry(&self.lease_path(&parcel.subnets), expires)?;
        Ok(true)
    }
}
