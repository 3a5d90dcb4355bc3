//! `twilld migrate --from PLACE --to PLACE`: which stores, said so that both can be of one kind.
//!
//! A place is `file:DIR`, `etcd`, `etcd:URL,URL/PREFIX` or `kubernetes`; what it leaves out (TLS
//! files, a user, where the API server is) the stores' own flags say, for both sides alike.

use std::path::PathBuf;
use std::time::Duration;

use super::stores::{Kubernetes, Wished};
use super::{FlagError, boolean};
use crate::store::etcd;

/// The command.
pub(super) const VERB: &str = "migrate";
const FROM: &str = "from";
const TO: &str = "to";
const DRY_RUN: &str = "dry-run";
/// What applies beside the stores' own flags.
const ALSO: [&str; 2] = ["lease-ttl", "v"];

/// What to copy where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// Where the leases are.
    pub from: Place,
    /// Where they shall be.
    pub to: Place,
    /// Only say what would be done.
    pub dry_run: bool,
    /// How long a lease lives that has no end where it comes from.
    pub ttl: Duration,
    /// As [`super::Flags::verbosity`].
    pub verbosity: u32,
}

/// A store by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A folder.
    Folder(PathBuf),
    /// A prefix in etcd.
    Etcd(etcd::Options),
    /// The cluster's Nodes.
    Kubernetes(Kubernetes),
}

/// The values as they are given.
#[derive(Debug, Default)]
pub(super) struct Given {
    from: String,
    to: String,
    dry_run: bool,
}

impl Given {
    /// Whether a flag of this command alone takes a value; none: it is not one.
    pub(super) fn takes_value(name: &str) -> Option<bool> {
        match name {
            FROM | TO => Some(true),
            DRY_RUN => Some(false),
            _ => None,
        }
    }

    /// Takes a value for a flag of this command. Whether it is one.
    pub(super) fn set(&mut self, name: &str, value: &str) -> Result<bool, FlagError> {
        match name {
            FROM => value.clone_into(&mut self.from),
            TO => value.clone_into(&mut self.to),
            DRY_RUN => self.dry_run = boolean(name, value)?,
            name if super::stores::is_flag(name) || ALSO.contains(&name) => return Ok(false),
            other => {
                return Err(FlagError::Store(format!(
                    "flag --{other} has nothing to do with twilld {VERB}"
                )));
            }
        }
        Ok(true)
    }

    /// The order that these flags give.
    pub(super) fn finish(
        self,
        stores: &Wished,
        ttl: Duration,
        verbosity: u32,
        env: &impl Fn(&str) -> Option<String>,
    ) -> Result<Move, FlagError> {
        let place = |name, text: &str| {
            let place = place(stores.clone(), text, ttl, env);
            place.map_err(|reason| FlagError::Store(format!("twilld {VERB} --{name}: {reason}")))
        };
        let order = Move {
            from: place(FROM, &self.from)?,
            to: place(TO, &self.to)?,
            dry_run: self.dry_run,
            ttl,
            verbosity,
        };
        if matches!(order.to, Place::Kubernetes(_)) {
            let reason = "nothing can be copied to Kubernetes: its nodes have the podCIDRs that \
                          kube-controller-manager gives them, and each writes its own annotations; \
                          give them the net-conf (conf/kube-twill.yaml) and start twilld there \
                          with --kube-subnet-mgr";
            return Err(FlagError::Store(format!(
                "twilld {VERB} --{TO}=kubernetes: {reason}"
            )));
        }
        if order.from == order.to {
            return Err(FlagError::Store(format!(
                "twilld {VERB}: --{FROM} and --{TO} are the same place"
            )));
        }
        Ok(order)
    }
}

fn place(
    mut stores: Wished,
    text: &str,
    ttl: Duration,
    env: &impl Fn(&str) -> Option<String>,
) -> Result<Place, String> {
    let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
    match (kind, rest) {
        ("file", dir) if !dir.is_empty() => Ok(Place::Folder(dir.into())),
        ("etcd", place) => {
            if !place.is_empty() {
                stores.locate_etcd(place);
            }
            let options = stores.etcd(ttl).map_err(|error| error.to_string())?;
            Ok(Place::Etcd(options))
        }
        ("kubernetes", "") => {
            let kubernetes = stores.kubernetes_for_nobody(env);
            Ok(Place::Kubernetes(
                kubernetes.map_err(|error| error.to_string())?,
            ))
        }
        // Not the text: it may hold a password.
        _ => Err(
            "want file:DIR, etcd, etcd:URL,URL/PREFIX or kubernetes, the latter two with their \
             --etcd-... or --kube-... flags"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Command, parse};
    use super::*;

    fn order(args: &[&str]) -> Result<Move, String> {
        let args = [VERB].iter().chain(args).map(|arg| (*arg).to_owned());
        match parse(&args.collect::<Vec<_>>(), |_| None) {
            Ok(Command::Migrate(order)) => Ok(*order),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn both_sides_may_be_of_one_kind() {
        let got = order(&[
            "--from=etcd",
            "--to",
            "etcd:https://10.0.0.1:2379,https://10.0.0.2:2379/other/network",
            "--etcd-prefix=/coreos.com/network",
            "--etcd-cafile=ca.pem",
            "--dry-run",
        ])
        .unwrap();
        let (Place::Etcd(from), Place::Etcd(to)) = (&got.from, &got.to) else {
            panic!("{got:?}");
        };
        assert!(got.dry_run);
        assert_eq!(
            (from.endpoints.len(), &*from.prefix),
            (2, "/coreos.com/network")
        );
        assert_eq!((to.endpoints.len(), &*to.prefix), (2, "/other/network"));
        assert_eq!(from.tls, to.tls);
        assert_ne!(from.endpoints, to.endpoints);
    }

    #[test]
    fn a_cluster_leaves_kubernetes_without_being_one_of_its_nodes() {
        let got = order(&[
            "--from=kubernetes",
            "--to=file:/var/lib/twill/store",
            "--kubeconfig-file=/k",
        ]);
        let got = got.unwrap();
        assert!(matches!(got.from, Place::Kubernetes(_)));
        assert_eq!(got.to, Place::Folder("/var/lib/twill/store".into()));
    }

    #[test]
    fn what_cannot_be_copied_is_refused_with_the_reason() {
        for (args, words) in [
            (
                &["--from=etcd", "--to=kubernetes", "--kube-api-url=http://x"][..],
                "podCIDRs",
            ),
            (&["--from=etcd", "--to=etcd"], "the same place"),
            (&["--to=etcd"], "--from: want file:DIR"),
            (&["--from=file:", "--to=etcd"], "--from: want file:DIR"),
            (&["--from=etcd", "--to=nfs:/x"], "--to: want file:DIR"),
            (
                &["--from=etcd", "--to=file:/x", "--ip-masq"],
                "nothing to do with",
            ),
            (&["--from=etcd:http://u:s3cret@h", "--to=file:/x"], "…@h"),
        ] {
            let error = order(args).unwrap_err();
            assert!(error.contains(words), "{args:?}: {error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }
}
