//! Targets for what comes on stdin: the config under each of the program's names, the result of
//! the plugins before, the list of valid attachments.

use serde_json::Value;

use super::is_reported;
use crate::attachment::Attachment;
use crate::builtin::BuiltIn;
use crate::cni_args::CniArgs;
use crate::config::Header;
use crate::config::bridge::{BridgeNetwork, Ipam};
use crate::config::flannel::{Dialect, FlannelConfig};
use crate::error::{Code, Error};
use crate::hostports::HostPorts;
use crate::invocation::{ifname_fault, is_name};
use crate::ipam::{self, candidates};
use crate::result::{AddResult, IpConfig};
use crate::subnet_env::SubnetEnv;
use crate::tuning::Tuning;
use crate::version::Version;
use crate::{bandwidth, chained, gc, host_local, plan};

const SUBNET_ENV: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n\
    FLANNEL_IPV6_NETWORK=fd00:244::/56\nFLANNEL_IPV6_SUBNET=fd00:244:0:1::1/64\n\
    FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

/// A whole config, as each plugin reads it.
pub(super) fn config(bytes: &[u8]) {
    let header = match Header::parse(bytes) {
        Ok(header) => header,
        Err(error) => return is_reported(&error),
    };
    assert!(is_name(&header.name), "{:?}", header.name);
    let version = match Version::of_config(&header.version) {
        Ok(version) => version,
        Err(error) => return is_reported(&error),
    };
    for (dialect, outcome) in [
        (Dialect::Twill, rendered(&header, version, Dialect::Twill)),
        (
            Dialect::Flannel,
            rendered(&header, version, Dialect::Flannel),
        ),
        (Dialect::Bridge, bridge(&header.config, version)),
    ] {
        let all = outcome.and_then(|network| {
            makes_sense(&network);
            BuiltIn::parse(&header.config, dialect).map(drop)
        });
        told(all);
    }
    told(host_local::config(&header, version, "").map(|config| addresses(&config)));
    told(HostPorts::parse(&header.config).map(drop));
    told(bandwidth::Limits::parse(&header.config).map(drop));
    told(Tuning::parse(&header.config, &CniArgs::default(), "eth0").map(drop));
    told(gc::valid(&header, &mut std::io::sink()).map(drop));
}

fn told(outcome: Result<(), Error>) {
    if let Err(error) = outcome {
        is_reported(&error);
    }
}

fn rendered(header: &Header, version: Version, dialect: Dialect) -> Result<BridgeNetwork, Error> {
    let env = SubnetEnv::parse(SUBNET_ENV).expect("a right subnet.env");
    let config = FlannelConfig::parse(&header.config, dialect)?;
    let rendered = config.render(&header.name, &header.version, &env)?;
    let text = go_json::to_compact(&rendered).expect("a value is always JSON");
    let back: Value = serde_json::from_str(&text).expect("what is kept for DEL can be read again");
    assert_eq!(back["name"], Value::from(header.name.as_str()));
    bridge(&rendered, version)
}

fn bridge(config: &Value, version: Version) -> Result<BridgeNetwork, Error> {
    BridgeNetwork::parse(config, version, &CniArgs::default())
}

/// What the steps of ADD rely on.
fn makes_sense(network: &BridgeNetwork) {
    assert_eq!(ifname_fault(&network.bridge), None);
    let mut ips = vec![];
    if let Some(Ipam::HostLocal(ipam)) = &network.ipam {
        addresses(ipam);
        for set in &ipam.sets {
            ips.extend(candidates(set, None).next().map(|(ip, range)| {
                IpConfig {
                    interface: None,
                    address: ipnet::IpNet::new(ip, range.subnet.prefix_len())
                        .ok()
                        .map(crate::address::Cidr),
                    gateway: crate::address::Ip(Some(range.gateway)),
                }
            }));
        }
    }
    let attachment = Attachment::new("net", "cid", "eth0").expect("short names");
    let found = plan::Found::default();
    told(plan::add(network, &attachment, &ips, &found, "seed").map(drop));
}

fn addresses(config: &ipam::Config) {
    for set in &config.sets {
        for (ip, range) in candidates(set, None).take(4) {
            assert!(
                range.subnet.contains(&ip),
                "{ip} is not in {}",
                range.subnet
            );
            assert_ne!(ip, range.gateway);
        }
    }
}

/// A config with `prevResult`: read in every version, written in every version.
pub(super) fn previous_result(bytes: &[u8]) {
    let Ok(header) = Header::parse(bytes) else {
        return;
    };
    for version in Version::ALL {
        match header.previous_result(version) {
            Ok(result) => Version::ALL.into_iter().for_each(|v| written(&result, v)),
            Err(error) => is_reported(&error),
        }
        match chained::passed_on(&header, version) {
            Ok(text) => {
                let document: Value = serde_json::from_str(&text).expect("a result is a document");
                assert!(document.is_object(), "{document}");
            }
            Err(error) => is_reported(&error),
        }
    }
}

fn written(result: &AddResult, version: Version) {
    let text = match result.render(version) {
        Ok(text) => text,
        Err(error) => return is_reported(&error),
    };
    let document: Value = serde_json::from_str(&text).expect("a result is a document");
    assert_eq!(document["cniVersion"], version.as_str());
    if version < Version::V0_3_0 || result.routes.iter().any(|route| route.dst.is_none()) {
        return;
    }
    if result.ips.iter().any(|ip| ip.address.is_none()) {
        return;
    }
    let back: AddResult = go_json::from_value(&document).expect("the next plugin can read it");
    assert_eq!(&back, result, "{text}");
}

/// A list of valid attachments, under either key.
pub(super) fn attachments(bytes: &[u8]) {
    let Ok(list) = serde_json::from_slice::<Value>(bytes) else {
        return;
    };
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        let header = Header {
            name: "net".into(),
            version: "1.1.0".into(),
            config: serde_json::json!({ key: list }),
        };
        match gc::valid(&header, &mut std::io::sink()) {
            Ok(valid) => assert!(valid.is_some(), "a list that is there is a list"),
            Err(error) => assert_eq!(error.code, Code::Decode),
        }
    }
}
