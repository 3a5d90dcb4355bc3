//! Which Node is ours: told by name, or found through the pod we run in.

/// How our Node's name is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// This is it.
    Node(String),
    /// It is where this pod runs.
    Pod {
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        name: String,
    },
}

/// Nothing says which Node is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "which node is this? set the environment variable NODE_NAME, or POD_NAME and POD_NAMESPACE (the DaemonSet in conf/kube-twill.yaml does)"
)]
pub struct Anonymous;

impl Identity {
    /// From the environment; `env` looks a variable up. Empty ones are not set.
    pub fn from_env(env: impl Fn(&str) -> Option<String>) -> Result<Self, Anonymous> {
        let set = |name| env(name).filter(|value| !value.is_empty());
        if let Some(node) = set("NODE_NAME") {
            return Ok(Self::Node(node));
        }
        match (set("POD_NAMESPACE"), set("POD_NAME")) {
            (Some(namespace), Some(name)) => Ok(Self::Pod { namespace, name }),
            _ => Err(Anonymous),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_given_goes_before_the_pods() {
        let env = |set: &'static [(&str, &str)]| {
            Identity::from_env(move |name| {
                let found = set.iter().find(|(key, _)| *key == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        let pod = Identity::Pod {
            namespace: "ns".into(),
            name: "p".into(),
        };
        let all = &[
            ("NODE_NAME", "k1"),
            ("POD_NAME", "p"),
            ("POD_NAMESPACE", "ns"),
        ];
        assert_eq!(env(all), Ok(Identity::Node("k1".into())));
        assert_eq!(
            env(&[
                ("NODE_NAME", ""),
                ("POD_NAME", "p"),
                ("POD_NAMESPACE", "ns")
            ]),
            Ok(pod)
        );
        assert_eq!(env(&[("POD_NAME", "p")]), Err(Anonymous));
        assert_eq!(env(&[]), Err(Anonymous));
    }
}
