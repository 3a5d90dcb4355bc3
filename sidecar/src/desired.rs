//! What should be in the kernel: the leases, this node and the underlay's facts go in, our tables
//! come out. Pure and total: what cannot be had is left out and named.

use crate::backend::{Backend, Identity};
use crate::lease_table::LeaseTable;
use crate::peers::{self, Node, Skipped};
use crate::tables::{Facts, Tables};
use crate::underlay::Underlay;

/// The tables wanted, what was left out with the reason, and how many peers there are.
pub fn desired(
    backend: &Backend,
    identity: &Identity,
    node: &Node,
    underlay: &Underlay,
    table: &LeaseTable,
    facts: &Facts,
) -> (Tables, Skipped, usize) {
    let (peers, mut skipped) = peers::accept(table, node);
    let (tables, unplaced) = backend.tables(node, identity, underlay, &peers, facts);
    let count = peers.len() - unplaced.len();
    skipped.extend(unplaced);
    (tables, skipped, count)
}
