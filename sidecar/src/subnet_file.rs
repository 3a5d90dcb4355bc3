//! When `subnet.env` is there: while this node holds the subnets that it names.
//!
//! The CNI plugin gives pods addresses out of whatever the file says. So it is taken away while the
//! store says that those subnets are not this node's any more (a Kubernetes Node that was deleted:
//! its podCIDR is given to the next one), and before another subnet is moved to. Without it STATUS
//! is code 50 and an ADD is refused, to be tried again; DEL goes on, and pods that run keep their
//! network. A store that cannot be asked takes nothing away.
//!
//! Whether a subnet is held is said by [`crate::keeper`] and [`crate::run`]; what the file is to
//! say, when the node can carry traffic, by the round.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;

use tracing::{error, info, warn};

use crate::atomic_file;
use crate::health::Readiness;
use crate::subnet_env::{SubnetEnv, previous_subnets};
use crate::subnets::Subnets;

/// The file, known to everybody in this program who has a say in it.
#[derive(Debug, Clone)]
pub(crate) struct SubnetFile {
    inner: Rc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    ready: Readiness,
    state: RefCell<State>,
}

#[derive(Debug, Default)]
struct State {
    held: Option<Subnets>,
    /// What the last round would have it say.
    wanted: Option<SubnetEnv>,
}

impl SubnetFile {
    /// The file at this path, as an earlier run has left it.
    pub(crate) fn new(path: PathBuf, ready: Readiness) -> Self {
        let inner = Inner {
            path,
            ready,
            state: RefCell::default(),
        };
        let inner = Rc::new(inner);
        Self { inner }
    }

    /// What `/readyz` says.
    pub(crate) fn readiness(&self) -> &Readiness {
        &self.inner.ready
    }

    /// The subnets that it names now.
    pub(crate) fn subnets(&self) -> Option<Subnets> {
        let text = fs::read_to_string(&self.inner.path).ok();
        text.and_then(|text| previous_subnets(&text))
    }

    /// These are ours from now on: a file that names others goes, and one that named these comes
    /// back. Idempotent.
    pub(crate) fn hold(&self, subnets: Subnets) {
        if self.inner.state.borrow().held == Some(subnets) {
            return;
        }
        self.inner.state.borrow_mut().held = Some(subnets);
        let named = self.subnets();
        if named.is_some_and(|named| !named.is_within(&subnets)) {
            self.remove();
        }
        let wanted = self.inner.state.borrow().wanted;
        if let Some(env) = wanted.filter(|env| env.subnets == subnets)
            && let Err(error) = self.publish(&env)
        {
            // The next round tries again.
            warn!(error, "cannot bring the subnet file back");
        }
    }

    /// Nothing is ours until the next [`Self::hold`]. Idempotent.
    pub(crate) fn withdraw(&self) {
        self.inner.state.borrow_mut().held = None;
        self.remove();
    }

    /// Has it say this, unless these subnets are not ours. When it does the node is ready.
    pub(crate) fn publish(&self, env: &SubnetEnv) -> Result<(), String> {
        let mut state = self.inner.state.borrow_mut();
        state.wanted = Some(*env);
        if state.held != Some(env.subnets) {
            return Ok(());
        }
        let (path, text) = (&self.inner.path, env.render());
        if !fs::read(path).is_ok_and(|present| present == text.as_bytes()) {
            atomic_file::write(path, text.as_bytes())
                .map_err(|error| format!("write {}: {error}", path.display()))?;
            info!(path = %path.display(), subnets = %env.subnets, mtu = env.mtu, "subnet file written");
        }
        if !self.inner.ready.get() {
            self.inner.ready.set(true);
            if let Err(error) = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]) {
                error!(%error, "tell systemd that we are ready");
            }
        }
        Ok(())
    }

    fn remove(&self) {
        self.inner.ready.set(false);
        let path = self.inner.path.display();
        match fs::remove_file(&self.inner.path) {
            Ok(()) => info!(
                %path,
                "subnet file withdrawn: running pods keep their network, new ones wait"
            ),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => error!(
                %path, %error,
                "cannot withdraw the subnet file: new pods may get addresses that are not this node's"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::Family;

    const OLD: &str = "10.5.1.0-24";
    const NEW: &str = "10.5.2.0-24";

    fn env(subnets: &str) -> SubnetEnv {
        SubnetEnv {
            networks: [(Family::V4, "10.5.0.0/16".parse().unwrap())]
                .into_iter()
                .collect(),
            subnets: subnets.parse().unwrap(),
            mtu: 1450,
            ip_masq: true,
        }
    }

    fn held(dir: &tempfile::TempDir, subnets: &str) -> SubnetFile {
        let file = SubnetFile::new(dir.path().join("subnet.env"), Readiness::default());
        file.hold(subnets.parse().unwrap());
        file
    }

    #[test]
    fn it_is_there_only_while_its_subnets_are_held() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("subnet.env");
        let file = held(&dir, OLD);
        let publish = |subnets| file.publish(&env(subnets)).unwrap();
        let stands = || {
            assert_eq!(file.inner.ready.get(), path.exists(), "/readyz");
            path.exists()
        };
        publish(OLD);
        assert!(stands());
        let text = fs::read_to_string(&path).unwrap();
        file.withdraw();
        file.withdraw();
        assert!(!stands());
        // Rounds go on meanwhile.
        publish(OLD);
        assert!(!stands());
        file.hold(OLD.parse().unwrap());
        assert!(stands());
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
        // Moved: nothing until a round has made the new network.
        file.hold(NEW.parse().unwrap());
        assert!(!stands());
        publish(OLD);
        assert!(!stands());
        publish(NEW);
        assert!(stands());
        assert_eq!(file.subnets(), NEW.parse().ok());
    }

    #[test]
    fn what_an_earlier_run_left_stays_if_it_is_ours_and_goes_if_it_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("subnet.env");
        for (left, stays) in [
            (env(OLD).render(), true),
            // Nobody's word that it is not ours.
            ("FLANNEL_MTU=1450\n".to_owned(), true),
            (env(NEW).render(), false),
        ] {
            fs::write(&path, &left).unwrap();
            held(&dir, OLD);
            assert_eq!(path.exists(), stays, "{left}");
        }
        fs::write(&path, env(OLD).render()).unwrap();
        held(&dir, "10.5.1.0-24&fd00:5:0:1::-64");
        assert!(path.exists(), "another family has come");
    }
}
