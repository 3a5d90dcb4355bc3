//! vxlan on demand: the kernel's questions are answered, and who is not in use any more is given up.
//!
//! Neither holds the loop up: so much at a time, so much a second, and no more than half the time.
//! What is left out is asked again. Who is in use is decided in [`crate::demand`].

use kernel::miss::Misses;

use super::*;
use crate::demand::{Allowance, Asked, MOST};

/// Questions about peers that are answered in a second.
pub(super) const ANSWERS: usize = 512;
/// Questions about nobody's addresses that are refused in a second.
pub(super) const REFUSALS: usize = 4096;
/// How often in a second it is looked for those that make room for others.
pub(super) const ROOMS: usize = 4;
/// Questions that are read at a time.
const AT_A_TIME: usize = 512;
/// How often in its time a peer is looked at, whether it is in use.
const LOOKS: u32 = 4;

/// Waits for a question, unless some are known already.
pub(super) async fn asked(misses: &Option<Misses>, known: Option<Instant>) -> kernel::Result<()> {
    match misses {
        Some(misses) if known.is_none() => misses.asked().await,
        _ => std::future::pending().await,
    }
}

impl Reconciler {
    /// A subscription to the kernel's questions, where there are any.
    pub(super) fn hear_misses(&mut self) -> Option<Misses> {
        self.wanted.demand()?;
        match self.kernel.misses() {
            Ok(misses) => {
                self.due.misses = Some(Instant::now());
                Some(misses)
            }
            Err(error) => {
                warn!(%error, "new peers cannot be reached until the next start");
                None
            }
        }
    }

    /// There is something to read, or never again.
    pub(super) fn hear_asked(&mut self, heard: kernel::Result<()>, misses: &mut Option<Misses>) {
        match heard {
            Ok(()) => self.due.misses = Some(Instant::now()),
            Err(error) => {
                warn!(%error, "the kernel's questions ended");
                *misses = self.hear_misses();
            }
        }
    }

    /// Answers and ages, if it is time to.
    pub(super) fn answer_when_due(
        &mut self,
        misses: &mut Option<Misses>,
        monitor: &mut Option<Monitor>,
    ) {
        let now = Instant::now();
        if self.due.misses_are_due(now)
            && let Some(open) = misses
        {
            self.due.misses = None;
            let mut heard = Vec::new();
            match open.drain(AT_A_TIME, |miss| heard.push(miss)) {
                Ok(more) => self.due.misses = more.then_some(now),
                Err(error) => self.hear_asked(Err(error), misses),
            }
            let name = |ifindex: &u32| self.devices.get(ifindex).cloned();
            let asked = heard.iter();
            let asked: Asked = asked
                .filter_map(|miss| Some((name(&miss.ifindex)?, miss.of)))
                .collect();
            if !asked.is_empty() {
                self.answer(&asked, now, monitor);
            }
            let ended = Instant::now();
            self.due.misses_not_before = ended + (ended - now);
        }
        if self.due.ageing.is_some_and(|due| due <= now) {
            self.age(monitor);
        }
    }

    fn answer(&mut self, asked: &Asked, now: Instant, monitor: &mut Option<Monitor>) {
        let mut allowed = Allowance {
            answers: self.answers.left(now),
            refusals: self.refusals.left(now),
        };
        let answer = |wanted: &mut Wanted, allowed| {
            wanted.change_demand(|demand, all| demand.answer(all, asked, allowed))
        };
        let mut answered = answer(&mut self.wanted, allowed);
        if answered.crowded && self.rooms.left(now) > 0 && self.make_room(monitor) {
            allowed.answers -= answered.answers;
            allowed.refusals = 0;
            let again = answer(&mut self.wanted, allowed);
            answered.plan.extend(again.plan);
            answered.answers += again.answers;
            answered.crowded = again.crowded;
        }
        self.answers.spend(answered.answers);
        self.refusals.spend(answered.refusals);
        if answered.crowded {
            let reason = "as many as there may be were in use within the last second".to_owned();
            self.crowded.update([(MOST.to_string(), reason)].into());
        }
        debug!(
            asked = asked.len(),
            answers = answered.answers,
            refusals = answered.refusals,
            "misses"
        );
        self.change(&answered.plan, monitor);
        self.see_to_ageing();
    }

    /// Whether somebody made room for others.
    fn make_room(&mut self, monitor: &mut Option<Monitor>) -> bool {
        self.rooms.spend(1);
        let idle = match self.kernel.idle(&self.devices) {
            Ok(idle) => idle,
            Err(error) => {
                debug!(%error, "see which peers make room");
                return false;
            }
        };
        let plan = self
            .wanted
            .change_demand(|demand, all| demand.make_room(all, &idle));
        self.change(&plan, monitor);
        !plan.is_empty()
    }

    /// Gives up who is not in use any more.
    fn age(&mut self, monitor: &mut Option<Monitor>) {
        self.due.ageing = None;
        let Some(timeout) = self.settings.net_conf.backend.on_demand() else {
            return;
        };
        match self.kernel.idle(&self.devices) {
            Ok(idle) => {
                let plan = self
                    .wanted
                    .change_demand(|demand, all| demand.age(all, &idle, timeout));
                if !plan.is_empty() {
                    let in_use = self.wanted.demand().map(|demand| demand.count());
                    debug!(
                        changes = plan.len(),
                        in_use, "peers are not in use any more"
                    );
                }
                self.change(&plan, monitor);
            }
            Err(error) => debug!(%error, "see which peers are in use"),
        }
        if !self.wanted.demand().is_some_and(|demand| demand.is_full()) {
            self.crowded.update(BTreeMap::new());
        }
        self.see_to_ageing();
    }

    fn change(&mut self, plan: &Plan, monitor: &mut Option<Monitor>) {
        if plan.is_empty() {
            return;
        }
        let failures = self.make(plan, monitor);
        if !failures.is_empty() {
            self.failures.add(failures);
            self.out_of_sync();
            self.due.round = self.due.round.min(Instant::now() + self.retry);
        }
    }

    /// Before the first tables are made: who was in use until now.
    pub(super) fn begin_demand(
        &mut self,
        facts: &Facts,
        networks: &[ipnet::IpNet],
    ) -> Result<(), String> {
        let Some(timeout) = self.settings.net_conf.backend.on_demand() else {
            return Ok(());
        };
        if self.wanted.demand().is_none_or(|demand| demand.has_begun()) {
            return Ok(());
        }
        let names = self.device_names();
        let ours = |name: &str| names.iter().find(|ours| ***ours == *name).cloned();
        let devices = facts.links.iter().filter(|link| link.vxlan.is_some());
        let devices = devices
            .filter_map(|link| Some((link.ifindex, ours(&link.name)?)))
            .collect();
        let idle = self
            .kernel
            .idle(&devices)
            .map_err(|error| error.to_string())?;
        self.wanted.change_demand(|demand, all| {
            demand.begin(all, &observe(facts, all, networks), &idle, timeout)
        });
        Ok(())
    }

    /// Looks again in time, while anybody is in use.
    pub(super) fn see_to_ageing(&mut self) {
        let timeout = self.settings.net_conf.backend.on_demand();
        let in_use = self
            .wanted
            .demand()
            .is_some_and(|demand| demand.count() > 0);
        if let Some(timeout) = timeout.filter(|_| in_use) {
            let next = Instant::now() + timeout / LOOKS;
            self.due.ageing = Some(self.due.ageing.map_or(next, |due| due.min(next)));
        }
    }
}
