//! When a node that is configured for both families holds its IPv6 back, for the sake of nodes
//! beside it that run flanneld with IPv4 alone.
//!
//! Such a flanneld follows its peers no more, for good, once it has seen a key with an IPv6 part.
//! So while some node has IPv4 alone and nobody has written such a key, ours has IPv4 alone, too;
//! the node takes its IPv6 subnet when that is over. The other way round there is nothing to do: a
//! flanneld with both families goes on beside keys with one.
//!
//! A node that holds back says so by its lease's value, which has what is published for IPv6 all
//! the same: flanneld does not look at it under such a key, and never writes it there. Nodes that
//! hold back do not wait for each other; the last one goes first.

use tokio::sync::{mpsc, oneshot};

use crate::family::Family;
use crate::lease::Lease;
use crate::lease_table::LeaseTable;
use crate::store::LeaseEvent;
use crate::subnets::Subnets;

/// How many of the leases on whose account a node holds back are named.
const NAMED: usize = 5;

/// On whose account to hold back, of all other nodes' leases; empty: on nobody's.
pub(crate) fn on_account_of<'a>(
    others: impl Iterator<Item = (&'a Subnets, &'a Lease)>,
) -> Vec<(&'a Subnets, &'a Lease)> {
    let mut all = Vec::new();
    for (subnets, lease) in others {
        if subnets.get(Family::V6).is_some() {
            // Whom one of them hurts has been hurt already.
            return Vec::new();
        }
        if !says_both(lease) {
            all.push((subnets, lease));
        }
    }
    all
}

/// Which leases these are, in words; of many the first few.
pub(crate) fn named(leases: &[Subnets]) -> String {
    let names: Vec<String> = leases.iter().take(NAMED).map(Subnets::to_string).collect();
    let names = names.join(", ");
    match leases.len().saturating_sub(NAMED) {
        0 => names,
        more => format!("{names} and {more} more"),
    }
}

fn says_both(lease: &Lease) -> bool {
    lease.public_ips.get(Family::V6).is_some() || lease.backend_data.get(Family::V6).is_some()
}

/// Passes events on, tells whenever it changes on whose account the node that holds `own` holds
/// back, and says on `over` when nobody of them is left.
pub(crate) async fn pass_on(
    mut from: mpsc::Receiver<LeaseEvent>,
    to: mpsc::Sender<LeaseEvent>,
    own: Subnets,
    tell: impl Fn(&[Subnets]),
    over: oneshot::Sender<()>,
) {
    let (mut table, mut over) = (LeaseTable::default(), Some(over));
    let mut told = Vec::new();
    while let Some(event) = from.recv().await {
        table.fold(event.clone());
        if to.send(event).await.is_err() {
            return;
        }
        if !table.is_complete() {
            continue;
        }
        let others = table.leases().filter(|(subnets, _)| **subnets != own);
        let others = on_account_of(others);
        let now: Vec<Subnets> = others.into_iter().map(|(subnets, _)| *subnets).collect();
        if now != told && !now.is_empty() {
            tell(&now);
        }
        told = now;
        if told.is_empty()
            && let Some(over) = over.take()
        {
            // Nobody listens any more when the node ends meanwhile.
            let _ = over.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_account(leases: &[(&str, &str)]) -> String {
        let leases: Vec<(Subnets, Lease)> = leases
            .iter()
            .map(|(key, value)| {
                (
                    key.parse().unwrap(),
                    Lease::parse(value.as_bytes()).unwrap(),
                )
            })
            .collect();
        let others = on_account_of(leases.iter().map(|(subnets, lease)| (subnets, lease)));
        named(
            &others
                .iter()
                .map(|(subnets, _)| **subnets)
                .collect::<Vec<_>>(),
        )
    }

    const V4: (&str, &str) = ("10.5.30.0-24", r#"{"PublicIP":"192.168.50.30"}"#);
    const HOLDS_BACK: (&str, &str) = (
        "10.5.31.0-24",
        r#"{"PublicIP":"192.168.50.31","PublicIPv6":"fd00:50::31"}"#,
    );
    const DUAL: (&str, &str) = (
        "10.5.32.0-24&fd00:5:0:32::-64",
        r#"{"PublicIP":"192.168.50.32","PublicIPv6":"fd00:50::32"}"#,
    );

    #[test]
    fn a_node_with_ipv4_alone_is_spared_the_first_dual_stack_key() {
        assert_eq!(on_account(&[V4]), "10.5.30.0-24");
        assert_eq!(on_account(&[HOLDS_BACK, V4]), "10.5.30.0-24");
        assert_eq!(
            on_account(&[V4, ("10.5.33.0-24", V4.1)]),
            "10.5.30.0-24, 10.5.33.0-24"
        );
        assert_eq!(
            on_account(&[V4; 7]),
            "10.5.30.0-24, 10.5.30.0-24, 10.5.30.0-24, 10.5.30.0-24, 10.5.30.0-24 and 2 more"
        );
    }

    #[test]
    fn nobody_holds_back_alone_behind_others_that_do_or_after_a_first_key() {
        for leases in [&[][..], &[HOLDS_BACK], &[V4, DUAL], &[DUAL, V4]] {
            assert_eq!(on_account(leases), "");
        }
    }
}
