//! What every lease store promises, as one suite that runs unchanged against each of them.
//!
//! A store takes part by a [`Fixture`], which can do to it what the world does: other nodes write,
//! it goes away and comes back, it loses everything. What does not apply to a store is named by
//! [`Fixture::exempt`] with its reason, and printed.
//!
//! ```text
//! conformance::suite!(MyFixture);
//! ```

pub(crate) mod claims;
pub(crate) mod faults;
pub(crate) mod following;
pub(crate) mod watching;

use std::collections::BTreeMap;
use std::future::Future;
use std::io::Write;
use std::time::{Duration, SystemTime};

use cni_test_harness::tools::Missing;
use twilld::family::Family;
use twilld::lease::Lease;
use twilld::net_conf::SubnetRange;
use twilld::store::Store;
use twilld::subnet::Claim;
use twilld::subnets::Subnets;

/// How long the leases of usual nodes live.
pub(crate) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// One store with nothing in it, and the hands that change it from outside.
pub(crate) trait Fixture: Sized {
    /// The store under test.
    type Store: Store;

    /// A new, empty one; an error skips the test.
    fn start() -> Result<Self, Missing>;

    /// The store as one more node sees it; leases that it takes live for `ttl`.
    fn node(&self, ttl: Duration) -> Self::Store;

    /// Writes raw entries, over what is there. They live for a day.
    fn put(&self, entries: &[(String, String)]);

    /// Writes a raw entry that never expires.
    fn reserve(&self, name: &str, value: &str);

    /// Deletes raw entries.
    fn delete(&self, names: &[String]);

    /// Everything that is there, raw.
    fn entries(&self) -> BTreeMap<String, Raw>;

    /// Writes the configuration, over what is there.
    fn write_config(&self, text: &str);

    /// The store cannot be reached any more.
    fn take_away(&mut self);

    /// It can be reached again, with what it had.
    fn bring_back(&mut self);

    /// The store loses everything and is reachable afterwards.
    fn wipe(&mut self);

    /// The nodes' clocks are set, by so many seconds from the true time.
    fn set_clocks(&self, seconds: i64);

    /// What the nodes' clocks show.
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    /// Why a promise does not apply to this store.
    fn exempt(promise: &str) -> Option<&'static str> {
        let _ = promise;
        None
    }
}

/// A raw entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Raw {
    /// Its value.
    pub(crate) value: String,
    /// It never expires.
    pub(crate) reserved: bool,
}

/// Runs a promise on a fresh fixture.
pub(crate) fn check<F: Fixture, R: Future<Output = ()>>(promise: &str, body: impl FnOnce(F) -> R) {
    if let Some(reason) = F::exempt(promise) {
        // Past the runner's capture, as skips are.
        let _ = writeln!(std::io::stderr(), "does not apply: {promise}: {reason}");
        return;
    }
    match F::start() {
        Ok(fixture) => run(body(fixture)),
        Err(missing) => cni_test_harness::skip::skip(&missing, promise),
    }
}

/// Runs a future as twilld runs its own: on one thread.
pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, future)
}

/// Everything that a store is held to, as tests of the module that this is called in.
macro_rules! suite {
    ($fixture:ty) => {
        $crate::conformance::tests_of! { $fixture, claims:
            a_free_subnet_is_taken_and_published_in_flannels_form,
            the_same_node_gets_the_same_subnet_again,
            what_does_not_fit_the_configuration_is_released,
            the_subnet_held_before_is_taken_when_it_is_free,
            of_fifty_nodes_forty_get_the_forty_subnets_and_ten_are_told_why,
            no_two_dual_stack_nodes_share_a_subnet_of_either_family,
            a_renewal_extends_and_publishes_what_has_changed,
            a_lease_that_somebody_took_is_lost_and_left_alone,
            a_lease_that_is_gone_is_taken_back,
            a_lease_that_is_gone_and_overlapped_is_lost,
            a_lease_ends_when_it_is_not_renewed,
            a_renewed_lease_goes_on,
            a_reservation_of_ours_stays_one,
            a_reservation_of_another_is_respected,
            a_configuration_is_read_as_written_and_made_only_where_none_is,
        }
        $crate::conformance::tests_of! { $fixture, watching:
            a_watch_begins_with_everything,
            the_states_of_a_lease_are_seen_in_order,
            of_a_thousand_changes_in_a_second_none_is_lost,
            a_poisoned_lease_is_named_and_the_others_are_not_hurt,
        }
        $crate::conformance::tests_of! { $fixture, faults:
            while_the_store_is_gone_nothing_changes_and_afterwards_nothing_flaps,
            without_the_store_claims_fail_and_work_again_afterwards,
            a_store_that_comes_back_empty_takes_no_peer_away,
            clocks_that_jump_end_no_lease,
            a_changed_configuration_is_noticed_also_after_the_store_was_gone,
        }
    };
}

macro_rules! tests_of {
    ($fixture:ty, $part:ident: $($promise:ident,)*) => {
        $(
            #[test]
            fn $promise() {
                let promise = stringify!($promise);
                $crate::conformance::check::<$fixture, _>(
                    promise,
                    $crate::conformance::$part::$promise,
                );
            }
        )*
    };
}

pub(crate) use {suite, tests_of};

/// The value that node `n` publishes.
pub(crate) fn value(n: u16) -> String {
    let [high, low] = n.to_be_bytes();
    format!(
        r#"{{"PublicIP":"192.168.{high}.{low}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:{high:02x}:{low:02x}"}}}}"#
    )
}

/// The name and value of a lease that node `n` holds: `10.5.<n>.0-24`, beyond 255 `10.6.0.0-24`.
pub(crate) fn entry(n: u16) -> (String, String) {
    let [high, low] = n.to_be_bytes();
    (format!("10.{}.{low}.0-24", 5 + u16::from(high)), value(n))
}

pub(crate) fn lease(n: u16) -> Lease {
    Lease::parse(value(n).as_bytes()).unwrap()
}

pub(crate) fn subnets(text: &str) -> Subnets {
    text.parse().unwrap()
}

/// What node `n` claims: one of the /24 from 10.5.1.0 to 10.5.40.0.
pub(crate) fn claim(n: u16) -> Claim {
    let range = SubnetRange {
        network: "10.5.0.0/16".parse().unwrap(),
        subnet_len: 24,
        min: [10, 5, 1, 0].into(),
        max: [10, 5, 40, 0].into(),
    };
    Claim {
        ranges: [(Family::V4, range)].into_iter().collect(),
        lease: lease(n),
        previous: None,
    }
}

/// The same with one of forty IPv6 subnets.
pub(crate) fn dual_stack_claim(n: u16) -> Claim {
    let range = SubnetRange {
        network: "fd00:5::/48".parse().unwrap(),
        subnet_len: 64,
        min: "fd00:5:0:1::".parse().unwrap(),
        max: "fd00:5:0:28::".parse().unwrap(),
    };
    let mut claim = claim(n);
    claim.ranges.set(Family::V6, range);
    claim
}

/// The same claim for the subnet that is held.
pub(crate) fn holding(mut claim: Claim, held: Subnets) -> Claim {
    claim.previous = Some(held);
    claim
}
