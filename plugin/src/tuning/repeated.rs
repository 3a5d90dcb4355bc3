//! A setting that stands twice in a config: which of the two is meant nobody can say, and where
//! JSON is parsed the first one is lost. So the text is read once more. Pure.

use std::collections::HashSet;
use std::fmt;

use serde::Deserializer as _;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};

use crate::error::{Code, Error};

/// Refuses a config whose `sysctl` has a key twice. What is no config is refused elsewhere.
pub(crate) fn refuse_repeated_sysctl(text: &[u8]) -> Result<(), Error> {
    let mut repeated = None;
    let mut json = serde_json::Deserializer::from_slice(text);
    let _ = json.deserialize_map(Keys {
        at_top: true,
        repeated: &mut repeated,
    });
    match repeated {
        None => Ok(()),
        Some(key) => Err(Error::new(
            Code::InvalidConfig,
            "duplicated sysctl keys are not allowed",
        )
        .details(key)),
    }
}

/// Visits an object: the config itself, or its `sysctl`.
struct Keys<'a> {
    at_top: bool,
    repeated: &'a mut Option<String>,
}

impl<'de> Visitor<'de> for Keys<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if self.at_top && key.eq_ignore_ascii_case("sysctl") {
                map.next_value_seed(Keys {
                    at_top: false,
                    repeated: self.repeated,
                })?;
                continue;
            }
            map.next_value::<IgnoredAny>()?;
            if !self.at_top && !seen.insert(key.clone()) {
                *self.repeated = Some(key);
            }
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Keys<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_map(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_stands_twice_is_refused_and_named() {
        let of = |text: &str| refuse_repeated_sysctl(text.as_bytes()).map_err(|e| e.details);
        assert_eq!(
            of(r#"{"a":{"x":1,"x":2},"SysCtl":{"x":"1","y":"2","x":"3"}}"#),
            Err("x".to_owned())
        );
        for fine in [
            r#"{"sysctl":{"x":"1","X":"2"},"a":1,"a":2}"#,
            r#"{"sysctl":null}"#,
            r#"{"sysctl":5}"#,
            "[]",
            "",
            r#"{"sysctl":{"x":"#,
        ] {
            assert_eq!(of(fine), Ok(()), "{fine}");
        }
    }
}
