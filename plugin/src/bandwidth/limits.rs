//! The keys that limits are asked for with, checked as a whole. Pure.

use kernel::tc::TokenBucket;
use serde::Deserialize;
use serde_json::Value;

use crate::error::{Code, Error};

/// How long a packet may wait in a queue, as the Go plugin has it.
const LATENCY_MS: u32 = 25;

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Raw {
    ingress_rate: Option<u64>,
    ingress_burst: Option<u64>,
    egress_rate: Option<u64>,
    egress_burst: Option<u64>,
    runtime_config: RawRuntime,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawRuntime {
    bandwidth: RawLimits,
}

/// Rates in bits per second, bursts in bits; 0: none.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawLimits {
    ingress_rate: u64,
    ingress_burst: u64,
    egress_rate: u64,
    egress_burst: u64,
}

/// Limits that can be set; at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Limits {
    /// On what the pod receives.
    pub(super) ingress: Option<TokenBucket>,
    /// On what it sends.
    pub(super) egress: Option<TokenBucket>,
}

impl Limits {
    /// Reads a config; None if it asks for no limit. What the config itself says comes before what
    /// the runtime asks for, and not key by key.
    pub(crate) fn parse(config: &Value) -> Result<Option<Limits>, Error> {
        let raw: Raw = go_json::from_value(config).map_err(|error| {
            let msg = format!("failed to parse network configuration: {error}");
            Error::new(Code::Decode, msg)
        })?;
        let own = [
            raw.ingress_rate,
            raw.ingress_burst,
            raw.egress_rate,
            raw.egress_burst,
        ];
        let limits = match own.iter().any(Option::is_some) {
            true => {
                let [ingress_rate, ingress_burst, egress_rate, egress_burst] =
                    own.map(Option::unwrap_or_default);
                RawLimits {
                    ingress_rate,
                    ingress_burst,
                    egress_rate,
                    egress_burst,
                }
            }
            false => raw.runtime_config.bandwidth,
        };
        let ingress = bucket("ingress", limits.ingress_rate, limits.ingress_burst)?;
        let egress = bucket("egress", limits.egress_rate, limits.egress_burst)?;
        Ok((ingress.is_some() || egress.is_some()).then_some(Limits { ingress, egress }))
    }
}

fn bucket(direction: &str, rate: u64, burst: u64) -> Result<Option<TokenBucket>, Error> {
    let invalid = |msg: String| Err(Error::new(Code::InvalidConfig, msg));
    match (rate, burst) {
        (0, 0) => return Ok(None),
        (0, _) => return invalid("if burst is set, rate must also be set".into()),
        (_, 0) => return invalid("if rate is set, burst must also be set".into()),
        (1..8, _) => {
            return invalid(format!(
                "{direction}Rate {rate} is less than one byte (8 bits) per second"
            ));
        }
        (_, 1..8) => {
            return invalid(format!(
                "{direction}Burst {burst} is less than one byte (8 bits)"
            ));
        }
        _ => {}
    }
    let bytes = match u32::try_from(burst / 8) {
        Ok(bytes) if bytes < u32::MAX => bytes,
        _ => return invalid("burst cannot be more than 4GB".into()),
    };
    let bucket = TokenBucket::new(rate / 8, bytes, LATENCY_MS);
    match bucket.buffer {
        0 => invalid(format!(
            "{direction}Rate {rate} is too much for {direction}Burst {burst}: the bucket would be full in no time"
        )),
        _ => Ok(Some(bucket)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(config: Value) -> Result<Option<Limits>, Error> {
        Limits::parse(&config)
    }

    #[test]
    fn bits_are_made_bytes() {
        let limits = parse(json!({"ingressRate":8_000_000,"ingressBurst":800_000}));
        let limits = limits.unwrap().unwrap();
        assert_eq!(
            limits.ingress,
            Some(TokenBucket::new(1_000_000, 100_000, 25))
        );
        assert_eq!(limits.egress, None);
    }

    #[test]
    fn runtimes_values_are_understood_and_the_configs_own_come_first() {
        let runtime = json!({"bandwidth":{"EgressRate":1_000_000,"EgressBurst":4_294_967_295u64,
            "IngressRate":1_000_000,"IngressBurst":34_359_738_359u64}});
        let limits = parse(json!({"runtimeConfig":runtime})).unwrap().unwrap();
        assert_eq!(
            limits.egress,
            Some(TokenBucket::new(125_000, 536_870_911, 25))
        );
        assert_eq!(
            limits.ingress,
            Some(TokenBucket::new(125_000, 4_294_967_294, 25))
        );
        let both = json!({"runtimeConfig":runtime,"ingressRate":80,"ingressBurst":80});
        assert_eq!(parse(both).unwrap().unwrap().egress, None);
        for none in [
            json!({}),
            json!({"runtimeConfig":{"bandwidth":null}}),
            json!({"egressRate":0}),
        ] {
            assert_eq!(parse(none).unwrap(), None);
        }
    }

    #[test]
    fn what_cannot_be_a_limit_is_refused() {
        for (config, code, word) in [
            (
                json!({"ingressRate":100}),
                Code::InvalidConfig,
                "burst must also be set",
            ),
            (
                json!({"egressBurst":100}),
                Code::InvalidConfig,
                "rate must also be set",
            ),
            (
                json!({"egressRate":7,"egressBurst":100}),
                Code::InvalidConfig,
                "egressRate 7",
            ),
            (
                json!({"egressRate":8,"egressBurst":1}),
                Code::InvalidConfig,
                "egressBurst 1",
            ),
            (
                json!({"egressRate":8,"egressBurst":34_359_738_360u64}),
                Code::InvalidConfig,
                "4GB",
            ),
            (
                json!({"ingressRate":-8,"ingressBurst":8}),
                Code::Decode,
                "ingressRate",
            ),
            (
                json!({"runtimeConfig":{"bandwidth":[]}}),
                Code::Decode,
                "bandwidth",
            ),
        ] {
            let error = parse(config.clone()).unwrap_err();
            assert_eq!(error.code, code, "{config}: {error}");
            assert!(error.msg.contains(word), "{config}: {error}");
        }
    }
}
