//! `twilld migrate`: opens the two stores that the order names, and lets
//! [`store::migrate`](crate::store::migrate) do the rest.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::flags::{Move, Place};
use crate::store::etcd::EtcdStore;
use crate::store::file::FileStore;
use crate::store::kube::KubeStore;
use crate::store::migrate::{Mode, Report, Source, Target, run};

/// Unused: nothing is watched here.
const RESYNC: Duration = Duration::from_secs(30);

/// Does what was ordered. What was left out is in the report, and no error.
pub async fn migrate(order: &Move) -> Result<Report> {
    match &order.from {
        Place::Folder(dir) => from(&FileStore::new(dir, order.ttl, RESYNC), order).await,
        Place::Etcd(options) => from(&EtcdStore::new(options.clone()), order).await,
        Place::Kubernetes(kubernetes) => {
            let store = KubeStore::new(kubernetes.options.clone());
            from(&store.context("flag --kube-annotation-prefix")?, order).await
        }
    }
}

async fn from(source: &impl Source, order: &Move) -> Result<Report> {
    match &order.to {
        Place::Folder(dir) => copy(source, &FileStore::new(dir, order.ttl, RESYNC), order).await,
        Place::Etcd(options) => copy(source, &EtcdStore::new(options.clone()), order).await,
        Place::Kubernetes(_) => bail!("nothing can be copied to Kubernetes"),
    }
}

async fn copy(source: &impl Source, target: &impl Target, order: &Move) -> Result<Report> {
    let mode = match order.dry_run {
        true => Mode::DryRun,
        false => Mode::Copy,
    };
    let (from, to) = (source.describe(), target.describe());
    tracing::debug!(from, to, "migrating");
    let report = run(source, target, mode).await;
    report.with_context(|| format!("migrate from {from} to {to}"))
}
