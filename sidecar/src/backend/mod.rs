//! The backends: what carries traffic between nodes. Each one turns accepted leases into wanted
//! kernel tables, says what it publishes in this node's own lease, and reads what peers published.
//!
//! All of it is pure. A new backend is a file here, a variant of [`Backend`], and a line in each
//! `match`; nothing else in the program asks which one it is.

pub mod vxlan;

use serde_json::Value;

use crate::net_conf::NetConfError;

/// The configured backend with its options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// Kernel VXLAN.
    Vxlan(vxlan::Options),
}

/// Names that flannel knows, for an error that can tell "not yet" from "never heard of".
const FLANNELS: [&str; 8] = [
    "host-gw",
    "udp",
    "ipip",
    "wireguard",
    "ipsec",
    "extension",
    "alloc",
    "tencent-vpc",
];

/// Chooses the backend by `Backend.Type`, in any case. An absent `Backend` is flannel's `udp`.
pub(crate) fn parse(backend: Option<&Value>) -> Result<Backend, NetConfError> {
    let wrong = |problem: String| {
        let want = r#"write "Backend": {"Type": "vxlan"}, the one that is built"#;
        NetConfError::fatal("Backend.Type", format!("{problem}; {want}"))
    };
    let Some(backend) = backend else {
        return Err(wrong(
            "no Backend given, which means flannel's udp, and that is not built yet".into(),
        ));
    };
    let kind = match go_json::field(backend, "Type") {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(kind)) => kind.to_lowercase(),
        Some(other) => return Err(wrong(format!("{other} is not a string"))),
    };
    match kind.as_str() {
        "vxlan" => vxlan::Options::parse(backend).map(Backend::Vxlan),
        "" => Err(wrong("Backend is given, but without a Type".into())),
        known if FLANNELS.contains(&known) => {
            Err(wrong(format!("flannel's {known} is not built yet")))
        }
        unknown => Err(wrong(format!("unknown backend {unknown:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_type_is_found_in_any_case() {
        let backend = json!({"type": "VXLAN", "vni": 3, "VNI": 5});
        let Backend::Vxlan(options) = parse(Some(&backend)).unwrap();
        assert_eq!(options.vni, 5);
    }

    #[test]
    fn what_is_not_built_is_told_apart_from_what_is_unknown() {
        for (backend, words) in [
            (None, "udp"),
            (Some(json!(null)), "without a Type"),
            (Some(json!({"VNI": 1})), "without a Type"),
            (Some(json!({"Type": "host-gw"})), "not built yet"),
            (Some(json!({"Type": "aws-vpc"})), "unknown backend"),
            (Some(json!({"Type": 1})), "not a string"),
            (Some(json!([])), "without a Type"),
        ] {
            let error = parse(backend.as_ref()).unwrap_err();
            assert!(error.fatal);
            assert_eq!(error.field, "Backend.Type");
            assert!(error.problem.contains(words), "{error}");
        }
    }
}
