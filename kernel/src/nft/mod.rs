//! nftables: tables of our own, written whole in one transaction and compared with what is there.
//!
//! A rule is recognised by its comment, which ends in a digest of its expressions: what the
//! kernel dumps need not be decoded, and a rule that somebody changed has lost its comment.
//!
//! Tables whose content comes and goes pod by pod have sets and maps: their rules stay, and
//! [`Change`] adds and removes elements, each of which says in its comment whose it is.

mod append;
mod elements;
mod expression;
mod foreign;
mod lookup;
mod set;
mod socket;
mod table;

pub use elements::Change;
pub use expression::{Rule, RuleBuilder};
pub use foreign::ForeignRule;
pub use lookup::Field;
pub use set::{Element, Set, Value};
pub use socket::{Present, PresentChain, Socket};
pub use table::{Chain, Family, Hook, HookPoint, HookType, Table};
