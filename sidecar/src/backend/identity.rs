//! What a node publishes of its own beside its addresses: drawn once, remembered, and the same
//! after a reboot, so that peers need not learn it anew.

use kernel::Mac;

use super::wireguard::PrivateKey;
use crate::family::ByFamily;

/// Each backend reads its own part and leaves the rest empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    /// The addresses of the VTEPs.
    pub macs: ByFamily<Mac>,
    /// WireGuard's key.
    pub key: Option<PrivateKey>,
    /// What the operator's program said at the start.
    pub said: Option<String>,
}
