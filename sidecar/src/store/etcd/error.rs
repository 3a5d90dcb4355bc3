//! Why a call to etcd failed, and what that means for whoever made it.

use std::error::Error as _;
use std::io;

use tonic::{Code, Status};

use crate::store::StoreError;

/// A failed call.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// Nobody answered: nothing was sent.
    #[error("no member answers: {}", .0.join("; "))]
    Unreachable(Vec<String>),
    /// The connection broke or went silent: the call may have been carried out or not.
    #[error("{endpoint}: {reason}")]
    Broken {
        /// Who was asked.
        endpoint: String,
        /// What happened.
        reason: String,
    },
    /// etcd said no.
    #[error("{endpoint}: {}{}", .status.message(), advice(.status))]
    Refused {
        /// Who was asked.
        endpoint: String,
        /// Its words.
        status: Box<Status>,
    },
}

/// What etcd says when a list or a watch asks for a revision that is gone.
const COMPACTED: &str = "required revision has been compacted";
/// … that is not there yet: it is another store than the one we knew.
const FUTURE: &str = "required revision is a future revision";
/// What tonic says of a message beyond its limit.
const TOO_LARGE: &str = "message length too large";
/// A token that etcd no longer takes: expired, or older than the last change of users and roles.
const STALE_TOKEN: [&str; 3] = [
    "invalid auth token",
    "revision of auth store is old",
    "auth store revision is old",
];

impl CallError {
    /// A gRPC status, which may as well be the connection's as etcd's.
    pub(super) fn from_status(endpoint: String, status: Status) -> Self {
        let broken = match status.code() {
            // A member that has lost its leader, its quorum or its patience.
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Aborted => true,
            Code::Unknown | Code::Internal => status.source().is_some(),
            _ => false,
        };
        if !broken {
            let status = Box::new(status);
            return Self::Refused { endpoint, status };
        }
        let cause = status.source().map(chain);
        let reason = cause.unwrap_or_else(|| status.message().to_owned());
        Self::Broken { endpoint, reason }
    }

    /// What was asked for is compacted away: the list or watch must begin anew.
    pub(super) fn is_compacted(&self) -> bool {
        self.is_out_of_range(COMPACTED)
    }

    /// What was asked for has never been there.
    pub(super) fn is_future(&self) -> bool {
        self.is_out_of_range(FUTURE)
    }

    /// The answer was larger than what is read at once.
    pub(super) fn is_too_large(&self) -> bool {
        self.is_out_of_range(TOO_LARGE)
    }

    fn is_out_of_range(&self, words: &str) -> bool {
        matches!(self, Self::Refused { status, .. }
            if status.code() == Code::OutOfRange && status.message().contains(words))
    }

    /// The user must authenticate again.
    pub(super) fn is_stale_token(&self) -> bool {
        matches!(self, Self::Refused { status, .. }
            if status.code() == Code::Unauthenticated
                || STALE_TOKEN.iter().any(|words| status.message().contains(words)))
    }

    /// As the store's error; `op` says what was tried on what.
    pub(super) fn during(self, op: impl Into<String>) -> StoreError {
        StoreError::Io {
            op: op.into(),
            source: io::Error::other(self),
        }
    }
}

/// What an operator can do about a refusal.
fn advice(status: &Status) -> &'static str {
    match (status.code(), status.message()) {
        (Code::PermissionDenied, _) => {
            " (give the user a role that may read and write all keys below the prefix)"
        }
        (Code::InvalidArgument, words) if words.contains("user name is empty") => {
            " (etcd wants a user: give --etcd-username and --etcd-password)"
        }
        (Code::InvalidArgument, words) if words.contains("authentication failed") => {
            " (see --etcd-username and --etcd-password)"
        }
        (Code::ResourceExhausted, words) if words.contains("space") => {
            " (compact and defragment etcd, then `etcdctl alarm disarm`)"
        }
        _ => "",
    }
}

/// An error and its causes; hyper and rustls say the interesting part last.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: Code, words: &str) -> CallError {
        CallError::from_status("http://h:1".to_owned(), Status::new(code, words))
    }

    #[test]
    fn what_etcd_says_is_told_apart() {
        let stale = refused(
            Code::InvalidArgument,
            "etcdserver: revision of auth store is old",
        );
        assert!(stale.is_stale_token());
        assert!(refused(Code::Unauthenticated, "etcdserver: invalid auth token").is_stale_token());
        let compacted = refused(
            Code::OutOfRange,
            "etcdserver: mvcc: required revision has been compacted",
        );
        assert!(compacted.is_compacted() && !compacted.is_too_large());
        let large = refused(Code::OutOfRange, "Error, decoded message length too large");
        assert!(large.is_too_large());
        let changed = refused(Code::Unavailable, "etcdserver: leader changed");
        assert!(matches!(changed, CallError::Broken { .. }));
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        let error = refused(Code::PermissionDenied, "etcdserver: permission denied");
        assert!(
            error.to_string().contains("give the user a role"),
            "{error}"
        );
    }
}
