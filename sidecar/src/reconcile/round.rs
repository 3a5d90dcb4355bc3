//! A round: everything is looked at, and what differs is changed.
//!
//! In order: the underlay, what the tables build upon, the tables, the rules, and when all of it is
//! as it should be, `subnet.env`.

use super::*;

impl Reconciler {
    /// Looks, compares, changes. Whether everything is as it should be, and how many changes that
    /// took.
    pub(super) fn round(&mut self, monitor: &mut Option<Monitor>) -> (bool, usize) {
        let names = self.device_names();
        let mut facts = match self.kernel.dump(&names) {
            Ok(facts) => facts,
            Err(error) => {
                let faults = [("dump".to_owned(), error.to_string())];
                self.failures.update(faults.into());
                return (false, 0);
            }
        };
        let mut faults: BTreeMap<String, String> = BTreeMap::new();
        let followed = self.follow_underlay(&facts);
        self.adrift = followed.is_err();
        if let Err(reason) = followed {
            faults.insert("underlay".to_owned(), reason);
        }
        let node = self.node();
        match self.ensure_carrier(&node, &names, &facts) {
            Ok(Some(now)) => facts = now,
            Ok(None) => {}
            Err(reason) => {
                faults.insert("carrier".to_owned(), reason);
            }
        }
        let Self {
            wanted,
            settings,
            underlay,
            ..
        } = self;
        wanted.decide_all(|table| decide(settings, &node, underlay, table, &facts));
        let networks: Vec<_> = node.networks.iter().map(|(_, net)| *net).collect();
        if let Err(reason) = self.begin_demand(&facts, &networks) {
            // Nobody would seem to be in use.
            self.failures.update([("dump".to_owned(), reason)].into());
            return (false, 0);
        }
        let Self {
            wanted, settings, ..
        } = self;
        let nothing = Tables::default();
        let want = wanted.tables().unwrap_or(&nothing);
        let mut plan = diff(want, &observe(&facts, want, &networks));
        if settings
            .keep_until
            .is_some_and(|until| Instant::now() < until)
        {
            plan = without_departures(plan);
        }
        self.know(facts, &names);
        self.see_to_ageing();
        let peers = self.told_of_skipped();
        faults.extend(self.make(&plan, monitor));
        faults.extend(self.tell_carrier(&node));
        self.look_at_offload();
        for device in &names {
            if let Err(error) = apply::refuse_router_advertisements(device) {
                debug!(%device, %error, "refuse router advertisements");
            }
        }
        faults.extend(self.ensure_rules(&node));
        if faults.is_empty()
            && let Err(reason) = self.publish(&node)
        {
            faults.insert("subnet.env".to_owned(), reason);
        }
        let fine = faults.is_empty();
        self.failures.update(faults);
        match fine {
            true => self.tell_in_sync(peers),
            false => self.out_of_sync(),
        }
        self.know_made(&plan);
        (fine, plan.len())
    }

    /// What was seen was before these changes: of a device that was made the kernel asks at once.
    fn know_made(&mut self, plan: &Plan) {
        for op in plan {
            if let Op::CreateDevice(name, _) = op
                && let Some(ifindex) = self.kernel.number_of(name)
            {
                self.devices.insert(ifindex, name.clone());
            }
        }
    }

    /// The nftables rules alone, which others change far more often than routes of ours.
    pub(super) fn look_at_rules(&mut self) {
        let began = Instant::now();
        let faults = self.ensure_rules(&self.node());
        let ended = Instant::now();
        self.due.rules = None;
        self.due.rules_not_before = ended + (ended - began);
        if !faults.is_empty() {
            self.failures.add(faults);
            self.due.round = self.due.round.min(ended + self.retry);
        }
    }

    fn ensure_rules(&mut self, node: &Node) -> BTreeMap<String, String> {
        let written = self.kernel.ensure_nftables(&self.rules(node));
        self.look_for_drops();
        match written {
            Ok(true) => info!(table = crate::masquerade::TABLE, "nftables rules written"),
            Ok(false) => {}
            Err(error) => return [("nftables".to_owned(), error.to_string())].into(),
        }
        BTreeMap::new()
    }

    /// Starts what the tables build upon. What the kernel has now, if that changed it.
    fn ensure_carrier(
        &mut self,
        node: &Node,
        names: &[DeviceName],
        facts: &Facts,
    ) -> Result<Option<Facts>, String> {
        let (kernel, underlay) = (&mut self.kernel, &self.underlay);
        let changed = self.carrier.ensure(kernel, node, underlay, facts)?;
        let dump = || kernel.dump(names).map_err(|error| error.to_string());
        changed.then(dump).transpose()
    }

    /// Tells what is not in the tables of all peers. What failed.
    pub(super) fn tell_carrier(&mut self, node: &Node) -> BTreeMap<String, String> {
        if !self.carrier.follows() {
            return BTreeMap::new();
        }
        let (peers, _) = peers::accept(self.wanted.table(), node);
        let failed = self.carrier.follow(node, &peers).err();
        let failed = failed.map(|reason| ("peers".to_owned(), reason));
        failed.into_iter().collect()
    }

    /// Our accepting forwarded traffic does not help where another table drops it, and that is
    /// for the operator to change: we say which one it is.
    fn look_for_drops(&mut self) {
        if !self.settings.forward {
            return;
        }
        match self.kernel.forward_drops() {
            Ok(chains) => {
                let advice = "its policy is drop: let it accept this network's addresses";
                let chains = chains.into_iter().map(|chain| (chain, advice.to_owned()));
                self.drops.update(chains.collect());
            }
            Err(error) => debug!(%error, "look for chains that drop forwarded traffic"),
        }
    }

    pub(super) fn device_names(&self) -> Vec<DeviceName> {
        let NetConf { backend, ranges } = &self.settings.net_conf;
        backend.devices(ranges.families())
    }

    pub(super) fn node(&self) -> Node {
        let ranges = self.settings.net_conf.ranges.iter();
        Node {
            subnets: self.settings.subnets,
            lease: self.lease.clone(),
            networks: ranges
                .map(|(family, range)| (family, range.network))
                .collect(),
        }
    }

    fn rules(&self, node: &Node) -> Rules {
        Rules {
            networks: node.networks,
            subnets: node.subnets,
            masquerade: self.settings.masquerade,
            forward: self.settings.forward,
        }
    }

    /// Keeps to the chosen device while it has its addresses, else chooses anew and tells peers.
    fn follow_underlay(&mut self, facts: &Facts) -> Result<(), String> {
        let now = match self.underlay.refreshed(facts) {
            Some(now) => now,
            None => self.choose_underlay(facts)?,
        };
        if now == self.underlay {
            return Ok(());
        }
        info!(
            interface = now.name, mtu = now.mtu, addresses = ?shown(&now.addresses),
            "the underlay has changed"
        );
        self.underlay = now;
        let backend = &self.settings.net_conf.backend;
        let lease = backend.lease(&self.underlay, &self.settings.identity);
        if lease != self.lease {
            self.lease = lease.clone();
            if self.keeper.try_send(KeeperWish::Publish(lease)).is_err() {
                return Err("the lease cannot be published yet".to_owned());
            }
        }
        Ok(())
    }

    fn choose_underlay(&mut self, facts: &Facts) -> Result<Underlay, String> {
        let wish = &self.settings.wish;
        let towards = match wish.can_reach {
            Some(ip) => self.kernel.towards(ip).map_err(|e| e.to_string())?,
            None => None,
        };
        underlay::select(facts, wish, &self.settings.published, towards.as_ref())
            .map_err(|e| e.to_string())
    }

    /// Remembers what steps are decided from, and which devices are ours.
    fn know(&mut self, facts: Facts, names: &[DeviceName]) {
        let ours = |name: &str| names.iter().find(|ours| ***ours == *name).cloned();
        let links = facts.links.iter();
        self.devices = links
            .filter_map(|link| Some((link.ifindex, ours(&link.name)?)))
            .collect();
        self.facts = underlay::without_ours(facts);
    }

    /// The node can carry traffic: `subnet.env` says so, unless the subnet is not ours now.
    fn publish(&self, node: &Node) -> Result<(), String> {
        let backend = &self.settings.net_conf.backend;
        let env = SubnetEnv {
            networks: node.networks,
            subnets: node.subnets,
            mtu: backend.pod_mtu(node.networks.families(), &self.underlay)?,
            ip_masq: self.settings.masquerade.is_some(),
        };
        self.settings.subnet_file.publish(&env)
    }
}

fn shown(addresses: &ByFamily<std::net::IpAddr>) -> Vec<String> {
    addresses.iter().map(|(_, ip)| ip.to_string()).collect()
}
