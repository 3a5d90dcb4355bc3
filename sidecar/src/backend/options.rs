//! Reading a backend's options: Go's JSON rules, and ranges that name their field.

use std::ops::RangeInclusive;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::net_conf::NetConfError;

/// Decodes `Backend`. A wrong type ends the daemon, as it ends flanneld.
pub(super) fn decode<T: DeserializeOwned>(backend: &Value) -> Result<T, NetConfError> {
    go_json::from_value(backend).map_err(|error| NetConfError {
        fatal: true,
        ..NetConfError::json("Backend.", &error)
    })
}

/// The number of an option, if it is within bounds.
pub(super) fn in_range<T: TryFrom<i64>>(
    field: &str,
    value: i64,
    range: RangeInclusive<i64>,
) -> Result<T, NetConfError> {
    let fits = range.contains(&value).then(|| T::try_from(value).ok());
    fits.flatten().ok_or_else(|| {
        let (least, most) = (range.start(), range.end());
        NetConfError::fatal(
            &format!("Backend.{field}"),
            format!("{value} is not within {least} to {most}"),
        )
    })
}
