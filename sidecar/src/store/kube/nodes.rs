//! What each Node was last seen to mean, and what a change of one Node changes for the receiver.
//!
//! The receiver knows leases by their subnets, the API server knows Nodes by their names, and
//! nothing keeps two Nodes from claiming one podCIDR: the first by name has it, the others are
//! faults until it is gone. A Node that says the same as before (the kubelet writes its status
//! every few minutes) changes nothing.

use std::collections::BTreeMap;

use super::node::Meaning;
use crate::store::{LeaseEvent, Record};
use crate::subnets::Subnets;

/// The Nodes that mean anything.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    by_name: BTreeMap<Box<str>, Meaning>,
}

/// Records by name.
type Told = BTreeMap<Box<str>, Record>;

impl Nodes {
    /// Takes in what a Node means now; the difference that makes.
    pub(super) fn set(&mut self, name: &str, meaning: Meaning) -> Vec<LeaseEvent> {
        let present = self.by_name.get(name);
        if present.unwrap_or(&Meaning::Nothing) == &meaning {
            return Vec::new();
        }
        let subnets = |meaning: &Meaning| match meaning {
            Meaning::Lease(subnets, _) => Some(*subnets),
            _ => None,
        };
        let mut touched: Vec<Subnets> = present.and_then(subnets).into_iter().collect();
        touched.extend(subnets(&meaning));
        let before = self.told(|node, meaning| {
            node == name || subnets(meaning).is_some_and(|key| touched.contains(&key))
        });
        match meaning {
            Meaning::Nothing => self.by_name.remove(name),
            meaning => self.by_name.insert(name.into(), meaning),
        };
        let after = self.told(|node, meaning| {
            node == name || subnets(meaning).is_some_and(|key| touched.contains(&key))
        });
        difference(before, after)
    }

    /// Everything, as the receiver gets it first.
    pub(super) fn snapshot(&self) -> Vec<Record> {
        self.told(|_, _| true).into_values().collect()
    }

    fn told(&self, of: impl Fn(&str, &Meaning) -> bool) -> Told {
        let mut holders: BTreeMap<Subnets, &str> = BTreeMap::new();
        let mut told = Told::new();
        for (node, meaning) in self
            .by_name
            .iter()
            .filter(|(node, meaning)| of(node, meaning))
        {
            let fault = match meaning {
                Meaning::Nothing => continue,
                Meaning::Fault(reason) => reason.clone(),
                Meaning::Lease(subnets, lease) => {
                    let holder = *holders.entry(*subnets).or_insert(node);
                    if holder == &**node {
                        let name: Box<str> = subnets.to_string().into();
                        let content = Ok((*subnets, lease.clone()));
                        told.insert(name.clone(), Record { name, content });
                        continue;
                    }
                    format!("it has the podCIDRs of node {holder}, {subnets}")
                }
            };
            // No Node's name has a space, so this is no lease's key.
            let name: Box<str> = format!("node {node}").into();
            let content = Err(fault);
            told.insert(name.clone(), Record { name, content });
        }
        told
    }
}

fn difference(before: Told, mut after: Told) -> Vec<LeaseEvent> {
    let mut events = Vec::new();
    for (name, record) in before {
        match after.get(&name) {
            None => events.push(LeaseEvent::Removed(name)),
            Some(now) if *now == record => {
                after.remove(&name);
            }
            Some(_) => {}
        }
    }
    events.extend(after.into_values().map(LeaseEvent::Put));
    events
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::lease::Lease;

    fn lease(subnet: u8, ip: u8) -> Meaning {
        let value = format!(r#"{{"PublicIP":"192.168.50.{ip}"}}"#);
        let key = format!("10.5.{subnet}.0-24").parse().unwrap();
        Meaning::Lease(key, Lease::parse(value.as_bytes()).unwrap())
    }

    fn names(events: &[LeaseEvent]) -> Vec<String> {
        let name = |event: &LeaseEvent| match event {
            LeaseEvent::Put(record) => format!("+{}", record.name),
            LeaseEvent::Removed(name) => format!("-{name}"),
            LeaseEvent::Snapshot(_) => "snapshot".to_owned(),
        };
        events.iter().map(name).collect()
    }

    #[test]
    fn a_node_that_says_the_same_again_is_no_event() {
        let mut nodes = Nodes::default();
        assert_eq!(names(&nodes.set("k2", lease(2, 2))), ["+10.5.2.0-24"]);
        assert_eq!(nodes.set("k2", lease(2, 2)), []);
        assert_eq!(nodes.set("k9", Meaning::Nothing), []);
    }

    #[test]
    fn another_subnet_takes_the_old_one_away() {
        let mut nodes = Nodes::default();
        nodes.set("k2", lease(2, 2));
        assert_eq!(
            names(&nodes.set("k2", lease(3, 2))),
            ["-10.5.2.0-24", "+10.5.3.0-24"]
        );
        let fault = Meaning::Fault("no podCIDR".to_owned());
        assert_eq!(names(&nodes.set("k2", fault)), ["-10.5.3.0-24", "+node k2"]);
        assert_eq!(names(&nodes.set("k2", Meaning::Nothing)), ["-node k2"]);
    }

    #[test]
    fn of_two_nodes_with_one_subnet_the_first_has_it_and_the_second_gets_it_after() {
        let mut nodes = Nodes::default();
        nodes.set("k3", lease(2, 3));
        assert_eq!(
            names(&nodes.set("k2", lease(2, 2))),
            ["+10.5.2.0-24", "+node k3"]
        );
        assert_eq!(
            names(&nodes.set("k2", Meaning::Nothing)),
            ["-node k3", "+10.5.2.0-24"]
        );
    }

    proptest! {
        #[test]
        fn events_add_up_to_the_snapshot(
            changes in proptest::collection::vec((0u8..4, 0u8..5, 0u8..3), 0..40)
        ) {
            let mut nodes = Nodes::default();
            let mut receiver: BTreeMap<Box<str>, Record> = BTreeMap::new();
            for (node, subnet, ip) in changes {
                let meaning = match subnet {
                    0 => Meaning::Nothing,
                    1 => Meaning::Fault(format!("fault {ip}")),
                    n => lease(n, ip),
                };
                for event in nodes.set(&format!("k{node}"), meaning) {
                    match event {
                        LeaseEvent::Put(record) => {
                            receiver.insert(record.name.clone(), record);
                        }
                        LeaseEvent::Removed(name) => {
                            prop_assert!(receiver.remove(&name).is_some());
                        }
                        LeaseEvent::Snapshot(_) => unreachable!(),
                    }
                }
                let all: Vec<Record> = receiver.values().cloned().collect();
                prop_assert_eq!(all, nodes.snapshot());
            }
        }
    }
}
