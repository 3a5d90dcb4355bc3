//! The start, in order: configuration, underlay, memory, lease; then the tasks that go on.

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use tokio::sync::mpsc;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::apply::Kernel;
use crate::backend::Identity;
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
use crate::store::etcd::EtcdStore;
use crate::store::file::FileStore;
use crate::store::kube::KubeStore;
use crate::store::{Held, NodeFacts, Store, StoreError, doubt};
use crate::subnet::Claim;
use crate::subnet_file::SubnetFile;
use crate::sweep;
use crate::tables::Facts;
use crate::underlay::{self, Underlay, Wish};

/// How often a configuration that is missing or wrong is looked for again, as flanneld does.
const CONFIG_RETRY: Duration = Duration::from_secs(1);
/// The waits between attempts at a store that fails double from the first to the last.
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
    if let Some(address) = flags.healthz {
        spawn_local(health::serve(address, ready.clone()));
    }
    spawn_local(sweep::serve(flags.subnet_file.clone()));
    let subnet_file = SubnetFile::new(flags.subnet_file.clone());
    match &flags.store {
        StoreChoice::Folder => {
            let store = FileStore::new(&flags.store_dir, flags.lease_ttl, flags.store_resync);
            serve_from(store, &flags, subnet_file, ready).await
        }
        StoreChoice::Etcd(options) => {
            let store = EtcdStore::new(options.clone());
            serve_from(store, &flags, subnet_file, ready).await
        }
        StoreChoice::Kubernetes(kubernetes) => {
            let store = KubeStore::new(kubernetes.options.clone());
            let store = store.context("flag --kube-annotation-prefix")?;
            if kubernetes.announce {
                let (store, ready) = (store.clone(), ready.clone());
                spawn_local(async move {
                    ready.wait().await;
                    store.announce().await;
                });
            }
            serve_from(store, &flags, subnet_file, ready).await
        }
    }
}

/// Serves until a lease is lost that must not be, as often as another one is to be taken.
async fn serve_from(
    store: impl Store,
    flags: &Flags,
    subnet_file: SubnetFile,
    ready: Readiness,
) -> anyhow::Result<()> {
    info!(
        store = store.describe(),
        version = env!("CARGO_PKG_VERSION"),
        "starting"
    );
    if let Some(network) = flags.network {
        init_config(&store, &network).await;
    }
    loop {
        let taken = Instant::now();
        let holder = serve_lease(&store, flags, &subnet_file, ready.clone()).await?;
        if flags.on_lease_loss != OnLeaseLoss::Renumber {
            bail!(
                "our lease is somebody else's now ({holder}), which --on-lease-loss makes the end"
            );
        }
        warn!(
            holder,
            "taking another subnet: pods that run have no network until they are made anew"
        );
        subnet_file.withdraw();
        // A store that changes its mind all the time is not followed faster than this.
        sleep(RENUMBER.saturating_sub(taken.elapsed())).await;
    }
}

/// From the configuration to the loss of the lease; says who has it then.
async fn serve_lease(
    store: &impl Store,
    flags: &Flags,
    subnet_file: &SubnetFile,
    ready: Readiness,
) -> anyhow::Result<String> {
    let net_conf = wait_for_config(store).await?;
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
    let claim = Claim {
        ranges: net_conf.ranges,
        lease: backend.lease(&underlay, &identity),
        // The subnet file comes first: running pods have addresses out of it.
        previous: subnet_file.subnets().or(remembered.subnets),
    };
    let held = keep_trying("take a lease", subnet_file, || store.acquire(&claim)).await?;
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
        kernel,
        underlay,
        identity,
        wish,
        subnet_file: subnet_file.clone(),
        ready,
    };
    supervise(flags, store, net_conf, claim, held, start).await
}

/// What the start has found out.
struct Start {
    kernel: Kernel,
    underlay: Underlay,
    identity: Identity,
    wish: Wish,
    subnet_file: SubnetFile,
    ready: Readiness,
}

async fn supervise(
    flags: &Flags,
    store: &impl Store,
    net_conf: NetConf,
    mut claim: Claim,
    held: Held,
    start: Start,
) -> anyhow::Result<String> {
    let keep = doubt::at_start(&held, claim.previous);
    if let Some(time) = keep {
        warn!(
            ?time,
            "our lease was gone from the store, which may have lost others as well: the entries of peers that are not in it are kept for this time"
        );
    }
    claim.previous = Some(held.subnets);
    let lease = claim.lease.clone();
    let settings = Settings {
        net_conf,
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
    let (to_loop, events) = mpsc::channel(EVENTS);
    spawn_local(doubt::watch(store.clone(), held.subnets, to_loop));
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
        kernel,
        underlay,
        ready,
        ..
    } = start;
    let reconciler = Reconciler::new(settings, kernel, underlay, lease, wishes, ready);
    // Dropped together, they end the watch, too.
    let lost = tokio::select! {
        () = reconciler.run(events) => None,
        lost = keeper.run(for_keeper) => lost,
    };
    lost.context("the stream of leases ended, which is a fault of this program")
}

async fn init_config(store: &impl Store, network: &impl Display) {
    let text = format!("{{\"Network\":\"{network}\",\"Backend\":{{\"Type\":\"vxlan\"}}}}\n");
    match store.init_config(text.as_bytes()).await {
        Ok(true) => info!(%network, "wrote the configuration"),
        Ok(false) => {}
        Err(error) => warn!(%error, "cannot write the configuration that --network asks for"),
    }
}

/// Waits for a configuration that can be used, saying once what is wrong with the one there is.
async fn wait_for_config(store: &impl Store) -> anyhow::Result<NetConf> {
    let parse = match store.gives_subnets() {
        true => NetConf::parse_for_given_subnets,
        false => NetConf::parse,
    };
    let mut told = String::new();
    loop {
        let problem = match store.config().await {
            Ok(Some(text)) => match parse(&text) {
                Ok(net_conf) => return Ok(net_conf),
                Err(error) => {
                    let problem = format!("config in {}: {error}", store.describe());
                    if error.fatal {
                        bail!(problem);
                    }
                    problem
                }
            },
            Ok(None) => format!(
                "no config in {}: {}",
                store.describe(),
                store.config_advice()
            ),
            Err(error) => error.to_string(),
        };
        if problem != told {
            warn!(%problem, "waiting for a configuration");
            told = problem;
        }
        sleep(CONFIG_RETRY).await;
    }
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
    let (mut wait, longest) = STORE_RETRY;
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
                warn!(%error, ?wait, "cannot {what}, trying again");
                sleep(wait).await;
                wait = (wait * 2).min(longest);
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
