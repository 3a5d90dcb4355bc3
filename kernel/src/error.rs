//! What can go wrong between a request and the kernel's answer.

use nix::errno::Errno;

/// The result of an operation on the kernel.
pub type Result<T> = std::result::Result<T, Error>;

/// A failed operation: what was tried on what, and why it failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a request. `detail` is its extended-ack text, if it gave one.
    #[error("{op}: {}{} ({errno:?})", in_words(*errno), behind_colon(detail))]
    Refused {
        /// Operation and object, e.g. `replace route 10.5.2.0/24 via 10.5.2.0 dev flannel.1`.
        op: String,
        /// The kernel's error number.
        errno: Errno,
        /// The kernel's own explanation, empty if there was none.
        detail: String,
    },
    /// The socket itself failed.
    #[error("{op}: {source}")]
    Io {
        /// What was being done.
        op: String,
        /// The cause.
        source: std::io::Error,
    },
    /// No answer came within the deadline.
    #[error("{op}: no answer from the kernel within {seconds} s")]
    Timeout {
        /// What was being done.
        op: String,
        /// The deadline, in seconds.
        seconds: u64,
    },
    /// An answer could not be decoded.
    #[error("{op}: cannot decode the kernel's answer: {reason}")]
    Decode {
        /// What was being done.
        op: String,
        /// The decoder's complaint.
        reason: String,
    },
    /// A dump was changed by others while it ran, every time it was repeated.
    #[error("{op}: the table kept changing while it was read")]
    Interrupted {
        /// What was being done.
        op: String,
    },
}

impl Error {
    /// The kernel's error number, if it was the kernel that refused.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Error::Refused { errno, .. } => Some(*errno),
            Error::Io { source, .. } => source.raw_os_error().map(Errno::from_raw),
            _ => None,
        }
    }

    pub(crate) fn io(op: impl Into<String>, source: impl Into<std::io::Error>) -> Error {
        Error::Io {
            op: op.into(),
            source: source.into(),
        }
    }
}

/// Treats the answers in `done` as success: the way deletes and creates become idempotent.
pub fn unless<T: Default>(result: Result<T>, done: &[Errno]) -> Result<T> {
    match result {
        Err(error) if error.errno().is_some_and(|e| done.contains(&e)) => Ok(T::default()),
        other => other,
    }
}

fn in_words(errno: Errno) -> String {
    errno.desc().to_lowercase()
}

fn behind_colon(text: &str) -> String {
    match text {
        "" => String::new(),
        text => format!(": {text}"),
    }
}
