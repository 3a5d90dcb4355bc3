//! What net-conf says about WireGuard.

use std::fmt;

use kernel::wireguard::Key;
use serde::Deserialize;
use serde_json::Value;

use super::super::options::{decode, in_range};
use super::key;
use crate::family::Family;
use crate::net_conf::NetConfError;

/// The options in net-conf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The UDP port; with one device, of both families.
    pub listen_port: u16,
    /// The UDP port of the second device.
    pub listen_port_v6: u16,
    /// The MTU of the underlay, in bytes; `None` takes the underlay device's.
    pub mtu: Option<u32>,
    /// The pre-shared key of the whole cluster.
    pub psk: Option<Psk>,
    /// Seconds between keepalives; 0 is never.
    pub keepalive: u16,
    /// Which devices, and over which family.
    pub mode: Mode,
}

/// How the two families share tunnels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// A device per family, each over its own.
    Separate,
    /// One device; over which family is chosen per peer.
    Auto,
    /// One device, over this family.
    Only(Family),
}

/// A pre-shared key. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Psk(pub(super) Key);

impl fmt::Debug for Psk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Psk(…)")
    }
}

#[derive(Deserialize)]
#[serde(default)]
struct Keys {
    #[serde(rename = "ListenPort")]
    listen_port: i64,
    #[serde(rename = "ListenPortV6")]
    listen_port_v6: i64,
    #[serde(rename = "MTU")]
    mtu: i64,
    #[serde(rename = "PSK")]
    psk: String,
    #[serde(rename = "PersistentKeepaliveInterval")]
    keepalive: i64,
    #[serde(rename = "Mode")]
    mode: String,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            listen_port: 51820,
            listen_port_v6: 51821,
            mtu: 0,
            psk: String::new(),
            keepalive: 0,
            mode: "separate".to_owned(),
        }
    }
}

impl Options {
    pub(in crate::backend) fn parse(backend: &Value) -> Result<Self, NetConfError> {
        let keys: Keys = decode(backend)?;
        let psk = match keys.psk.as_str() {
            "" => None,
            text => Some(Psk(key::parse(text).map_err(|reason| {
                let want = "write what `wg genpsk` prints";
                NetConfError::fatal("Backend.PSK", format!("{reason}: {want}"))
            })?)),
        };
        let mode = match keys.mode.as_str() {
            "separate" => Mode::Separate,
            "auto" => Mode::Auto,
            "ipv4" => Mode::Only(Family::V4),
            "ipv6" => Mode::Only(Family::V6),
            other => {
                let problem = format!("{other:?} is none of separate, auto, ipv4, ipv6");
                return Err(NetConfError::fatal("Backend.Mode", problem));
            }
        };
        Ok(Self {
            listen_port: in_range("ListenPort", keys.listen_port, 1..=65_535)?,
            listen_port_v6: in_range("ListenPortV6", keys.listen_port_v6, 1..=65_535)?,
            mtu: Some(in_range("MTU", keys.mtu, 0..=65_535)?).filter(|mtu| *mtu != 0),
            psk,
            keepalive: in_range("PersistentKeepaliveInterval", keys.keepalive, 0..=65_535)?,
            mode,
        })
    }
}
