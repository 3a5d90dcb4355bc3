//! The start, in order: configuration, underlay, memory, lease; then the tasks that go on.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::apply::Kernel;
use crate::backend::Identity;
use crate::config::{self, Config};
use crate::family::Family;
use crate::flags::{Flags, OnLeaseLoss, StoreChoice};
use crate::health::{self, Readiness};
use crate::keeper::Keeper;
use crate::masquerade::Masquerade;
use crate::net_conf::NetConf;
use crate::peers::Node;
use crate::persist::{Remembered, StateFile};
use crate::prepare;
use crate::reconcile::{Reconciler, Settings};
use crate::restraint;
use crate::store::backoff::Backoff;
use crate::store::etcd::EtcdStore;
use crate::store::file::FileStore;
use crate::store::kube::KubeStore;
use crate::store::{Held, Hurt, NodeFacts, Store, StoreError, doubt};
use crate::subnet::Claim;
use crate::subnet_file::SubnetFile;
use crate::subnets::Subnets;
use crate::sweep;
use crate::tables::Facts;
use crate::underlay::{self, Underlay, Wish};

/// The waits between attempts at a store that fails.
const STORE_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Between looks at a store that waits for something, as flanneld does.
const STORE_WAITS: Duration = Duration::from_secs(3);
/// At least so long from one lease to the next.
const RENUMBER: Duration = Duration::from_secs(1);
/// Events on their way from the store to the loop.
const EVENTS: usize = 1024;

/// Runs until `shutdown` is over. The data path is left standing, so that nothing is torn down
/// here. Must run on a tokio `LocalSet`.
pub async fn run(flags: Flags, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    tokio::select! {
        biased;
        () = shutdown => {
            info!("ending; the data path is left standing");
            Ok(())
        }
        ended = serve(flags) => ended,
    }
}

async fn serve(flags: Flags) -> anyhow::Result<()> {
    let ready = Readiness::default();
    let start = |address| health::start(address, ready.clone());
    let health = flags.healthz.map(start).transpose();
    let _served_until_the_end = health.context("start a thread that answers probes")?;
    spawn_local(sweep::serve(flags.subnet_file.clone()));
    let subnet_file = SubnetFile::new(flags.subnet_file.clone(), ready.clone());
    match &flags.store {
        StoreChoice::Folder => {
            let store = FileStore::new(&flags.store_dir, flags.lease_ttl, flags.store_resync);
            serve_from(store, &flags, subnet_file).await
        }
        StoreChoice::Etcd(options) => {
            let store = EtcdStore::new(options.clone());
            serve_from(store, &flags, subnet_file).await
        }
        StoreChoice::Kubernetes(kubernetes) => {
            let store = KubeStore::new(kubernetes.options.clone());
            let store = store.context("flag --kube-annotation-prefix")?;
            if kubernetes.announce {
                let store = store.clone();
                spawn_local(async move {
                    ready.wait().await;
                    store.announce().await;
                });
            }
            serve_from(store, &flags, subnet_file).await
        }
    }
}

/// Serves until a lease is lost that must not be, as often as another one is to be taken.
async fn serve_from(
    store: impl Store,
    flags: &Flags,
    subnet_file: SubnetFile,
) -> anyhow::Result<()> {
    info!(
        store = store.describe(),
        version = env!("CARGO_PKG_VERSION"),
        "starting"
    );
    if let Some(network) = flags.network {
        config::init(&store, &network).await;
    }
    let mut config = None;
    loop {
        let taken = Instant::now();
        let now = match config.take() {
            Some(config) => config,
            None => config::wait_for(&store).await?,
        };
        match serve_lease(&store, flags, now, &subnet_file).await? {
            Ended::Lost(holder) if flags.on_lease_loss != OnLeaseLoss::Renumber => bail!(
                "our lease is somebody else's now ({holder}), which --on-lease-loss makes the end"
            ),
            Ended::Lost(holder) => {
                warn!(
                    holder,
                    "taking another subnet: pods that run have no network until they are made anew"
                );
                subnet_file.withdraw();
            }
            Ended::Again(with) => config = Some(*with),
        }
        // A store that changes its mind all the time is not followed faster than this.
        sleep(RENUMBER.saturating_sub(taken.elapsed())).await;
    }
}

/// Why a lease is not served any more.
enum Ended {
    /// Somebody else has it.
    Lost(String),
    /// Another one is to be taken, or more of it, by this configuration.
    Again(Box<Config>),
}

/// From the configuration to the end of the lease that is taken by it.
async fn serve_lease(
    store: &impl Store,
    flags: &Flags,
    config: Config,
    subnet_file: &SubnetFile,
) -> anyhow::Result<Ended> {
    let mut net_conf = config.net_conf.clone();
    let what = "ask the store about this node";
    let node = keep_trying(what, subnet_file, || store.facts()).await?;
    let wish = wish_of(flags, &node)?;
    let mut kernel = Kernel::open().context("open netlink sockets")?;
    let facts = kernel.dump(&[]).context("read the network's state")?;
    let underlay = choose_underlay(&mut kernel, &facts, &wish, &net_conf)?;
    let backend = &net_conf.backend;
    // Told now, before anything is made.
    backend
        .check(&net_conf.ranges, &underlay)
        .and_then(|()| prepare::probe(&net_conf, &underlay, &facts))
        .map_err(|reason| anyhow!(reason))?;
    let state_file = StateFile::in_dir(&flags.state_dir);
    let mut remembered = recall(&state_file);
    let identity =
        prepare::identity(&net_conf, &facts, &remembered, &node, &flags.state_dir).await?;
    let mut claim = Claim {
        ranges: net_conf.ranges,
        lease: backend.lease(&underlay, &identity),
        // The subnet file comes first: running pods have addresses out of it.
        previous: subnet_file.subnets().or(remembered.subnets),
    };
    let what = "ask the store about other nodes";
    let hurt = keep_trying(what, subnet_file, || store.hurt_by(&claim)).await?;
    if hurt.is_none() {
        subnet_file.readiness().hold_back("");
    }
    if let Some(Hurt {
        holder,
        deletion,
        others,
    }) = &hurt
    {
        warn!(
            holder,
            others,
            deletion,
            "this node holds its IPv6 back: another one has IPv4 alone, and a flanneld there would follow its peers no more if it saw the lease of a node with both; restart what runs there with the present configuration, or delete its lease (`deletion` does) if it is gone"
        );
        net_conf.ranges = net_conf.ranges.only(Family::V4);
        claim.ranges = net_conf.ranges;
    }
    let held = tokio::select! {
        held = keep_trying("take a lease", subnet_file, || store.acquire(&claim)) => held?,
        other = config::another(store, &config) => {
            info!("the configuration is another one now: a lease is asked for by that");
            return Ok(Ended::Again(Box::new(other)));
        }
    };
    subnet_file.hold(held.subnets);
    let reserved = held.expires.is_none();
    info!(subnets = %held.subnets, reserved, "lease taken");
    remembered.subnets = Some(held.subnets);
    prepare::remember(&mut remembered, &net_conf, &identity);
    if let Err(error) = state_file.save(&remembered) {
        let path = state_file.path().display();
        warn!(%path, %error, "cannot remember this node's subnet and addresses over a reboot");
    }
    let networks = net_conf.ranges.iter();
    let as_peers_see_us = Node {
        subnets: held.subnets,
        lease: claim.lease.clone(),
        networks: networks.map(|(f, range)| (f, range.network)).collect(),
    };
    prepare::lease_taken(&net_conf, &as_peers_see_us).await?;
    let start = Start {
        config,
        net_conf,
        holds_back: hurt.is_some(),
        kernel,
        underlay,
        identity,
        wish,
        subnet_file: subnet_file.clone(),
    };
    supervise(flags, store, claim, held, start).await
}

/// What the start has found out.
struct Start {
    config: Config,
    /// What of the configuration this node does.
    net_conf: NetConf,
    holds_back: bool,
    kernel: Kernel,
    underlay: Underlay,
    identity: Identity,
    wish: Wish,
    subnet_file: SubnetFile,
}

async fn supervise(
    flags: &Flags,
    store: &impl Store,
    mut claim: Claim,
    held: Held,
    start: Start,
) -> anyhow::Result<Ended> {
    let keep = doubt::at_start(&held, claim.previous);
    if let Some(time) = keep {
        warn!(
            ?time,
            "our lease was gone from the store, which may have lost others as well: the entries of peers that are not in it are kept for this time"
        );
    }
    claim.previous = Some(held.subnets);
    let lease = claim.lease.clone();
    let wish = start.wish.clone();
    let settings = Settings {
        published: start.config.net_conf.ranges.families().collect(),
        net_conf: start.net_conf,
        identity: start.identity,
        subnets: held.subnets,
        wish: start.wish,
        subnet_file: start.subnet_file.clone(),
        state_dir: flags.state_dir.clone(),
        masquerade: flags.ip_masq.then_some(match flags.fully_random_disable {
            true => Masquerade::KernelsChoice,
            false => Masquerade::FullyRandom,
        }),
        forward: flags.forward_rules,
        keep_until: keep.map(|time| Instant::now() + time),
    };
    let (wishes, for_keeper) = mpsc::channel(1);
    let (to_loop, mut events) = mpsc::channel(EVENTS);
    let own = held.subnets;
    spawn_local(doubt::watch(store.clone(), own, to_loop));
    let (over, mut free) = oneshot::channel();
    if start.holds_back {
        let (to_loop, passed_on) = mpsc::channel(EVENTS);
        let from = std::mem::replace(&mut events, passed_on);
        let told = start.subnet_file.clone();
        let tell = move |leases: &[Subnets]| {
            let leases = restraint::named(leases);
            info!(leases, "on whose account this node holds its IPv6 back");
            told.readiness().hold_back(&leases);
        };
        spawn_local(restraint::pass_on(from, to_loop, own, tell, over));
    }
    let can_do = |net_conf: &NetConf| can_do(&wish, net_conf);
    let other = config::follow(store, &start.config, &own, can_do);
    let keeper = Keeper {
        store: store.clone(),
        claim,
        held,
        margin: flags.renew_margin,
        ttl: flags.lease_ttl,
        until_lost: flags.on_lease_loss != OnLeaseLoss::Keep,
        subnet_file: start.subnet_file,
        told: None,
    };
    let Start {
        kernel, underlay, ..
    } = start;
    let reconciler = Reconciler::new(settings, kernel, underlay, lease, wishes);
    // Dropped together, they end the watch, too.
    let ended = tokio::select! {
        () = reconciler.run(events) => None,
        lost = keeper.run(for_keeper) => lost.map(Ended::Lost),
        other = other => Some(Ended::Again(Box::new(other))),
        Ok(()) = &mut free => {
            info!("every node can live with IPv6 now, taking a subnet of it");
            Some(Ended::Again(Box::new(start.config.clone())))
        }
    };
    ended.context("the stream of leases ended, which is a fault of this program")
}

/// Whether this node can do what a configuration asks of it.
fn can_do(wish: &Wish, net_conf: &NetConf) -> anyhow::Result<()> {
    let mut kernel = Kernel::open().context("open netlink sockets")?;
    let facts = kernel.dump(&[]).context("read the network's state")?;
    let underlay = choose_underlay(&mut kernel, &facts, wish, net_conf)?;
    let checked = net_conf.backend.check(&net_conf.ranges, &underlay);
    checked.map_err(|reason| anyhow!(reason))
}

fn wish_of(flags: &Flags, node: &NodeFacts) -> anyhow::Result<Wish> {
    let patterns = flags.iface_regex.iter().map(|text| {
        regex_lite::Regex::new(text).with_context(|| format!("flag --iface-regex={text}"))
    });
    let public_ips = [
        (Family::V4, flags.public_ip.map(Into::into)),
        (Family::V6, flags.public_ipv6.map(Into::into)),
    ];
    Ok(Wish {
        ifaces: flags.iface.clone(),
        patterns: patterns.collect::<Result<_, _>>()?,
        can_reach: flags.iface_can_reach,
        public_ips: public_ips
            .into_iter()
            .filter_map(|(family, ip)| {
                let ip = node.public_ips.get(family).copied().or(ip);
                Some((family, ip?))
            })
            .collect(),
    })
}

fn choose_underlay(
    kernel: &mut Kernel,
    facts: &Facts,
    wish: &Wish,
    net_conf: &NetConf,
) -> anyhow::Result<Underlay> {
    let families: Vec<Family> = net_conf.ranges.families().collect();
    let towards = match wish.can_reach {
        Some(ip) => kernel.towards(ip).context("flag --iface-can-reach")?,
        None => None,
    };
    let underlay = underlay::select(facts, wish, &families, towards.as_ref())?;
    let ips: Vec<String> = underlay
        .public_ips
        .iter()
        .map(|(_, ip)| ip.to_string())
        .collect();
    info!(interface = underlay.name, mtu = underlay.mtu, public_ips = ?ips, "underlay chosen");
    Ok(underlay)
}

fn recall(state_file: &StateFile) -> Remembered {
    state_file.load().unwrap_or_else(|error| {
        let path = state_file.path().display();
        warn!(%path, %error, "cannot read what this node remembers, starting without");
        Remembered::default()
    })
}

/// Asks a store until it answers; only that there is no subnet left is an answer, too. What is
/// waited for is said once, and while this node is given nothing its subnet file is withdrawn.
async fn keep_trying<T>(
    what: &str,
    subnet_file: &SubnetFile,
    ask: impl AsyncFn() -> Result<T, StoreError>,
) -> anyhow::Result<T> {
    let mut backoff = Backoff::between(STORE_RETRY.0, STORE_RETRY.1);
    let mut told = String::new();
    loop {
        let reason = match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error @ StoreError::OutOfSubnets(_)) => return Err(error.into()),
            Err(StoreError::Waiting(reason)) => reason,
            Err(StoreError::Ungiven(reason)) => {
                subnet_file.withdraw();
                reason
            }
            Err(error) => {
                let wait = backoff.next();
                warn!(%error, ?wait, "cannot {what}, trying again");
                sleep(wait).await;
                continue;
            }
        };
        if reason != told {
            warn!(reason, "cannot {what} yet, waiting");
            told = reason;
        }
        sleep(STORE_WAITS).await;
    }
}
