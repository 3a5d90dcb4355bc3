//! Keys as text: 32 bytes in base64, as `wg` writes them.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use kernel::wireguard::Key;
use x25519_dalek::{X25519_BASEPOINT_BYTES, x25519};

/// A node's private key. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey(Key);

impl PrivateKey {
    /// The key made of 32 random bytes, in the form that the kernel keeps (RFC 7748 §5).
    pub fn new(mut bytes: Key) -> Self {
        bytes[0] &= 248;
        bytes[31] = bytes[31] & 127 | 64;
        Self(bytes)
    }

    /// Reads what [`PrivateKey::render`] or flanneld wrote.
    pub fn parse(text: &str) -> Result<Self, String> {
        parse(text.trim()).map(Self::new)
    }

    /// One line, without its end.
    pub fn render(&self) -> String {
        BASE64.encode(self.0)
    }

    /// What peers know it by.
    pub fn public(&self) -> Key {
        x25519(self.0, X25519_BASEPOINT_BYTES)
    }

    pub(crate) fn bytes(&self) -> Key {
        self.0
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(…)")
    }
}

/// A key of any kind. The error does not repeat it.
pub(super) fn parse(text: &str) -> Result<Key, String> {
    let bytes = BASE64.decode(text);
    let bytes = bytes.map_err(|_| "not base64".to_owned())?;
    let length = bytes.len();
    bytes
        .try_into()
        .map_err(|_| format!("{length} bytes, a key has 32"))
}
