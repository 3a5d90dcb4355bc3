//! What this node writes on its Node object: its lease as annotations, and the word that the
//! network is there. Both are strategic-merge patches of the Node's status, byte for byte as
//! flannel sends them.
//!
//! Pure: the texts only.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::annotations::Annotations;
use super::node::Condition;

const CONDITION: &str = "NetworkUnavailable";

#[derive(Serialize)]
struct AnnotationPatch<'a> {
    metadata: Metadata<'a>,
}

#[derive(Serialize)]
struct Metadata<'a> {
    annotations: BTreeMap<&'a str, &'a str>,
}

/// The patch that makes the annotations `wanted`, of those that differ; `None` if none does.
pub(super) fn annotation_patch(wanted: &Annotations, present: &Annotations) -> Option<String> {
    let differ = wanted
        .iter()
        .filter(|(name, value)| present.get(*name) != Some(value));
    let annotations: BTreeMap<&str, &str> = differ.map(|(n, v)| (&**n, &**v)).collect();
    let patch = AnnotationPatch {
        metadata: Metadata { annotations },
    };
    let text = || go_json::to_compact(&patch).expect("texts always encode");
    (!patch.metadata.annotations.is_empty()).then(text)
}

#[derive(Serialize)]
struct ConditionPatch<'a> {
    status: Status<'a>,
}

#[derive(Serialize)]
struct Status<'a> {
    conditions: [Written<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a> {
    r#type: &'a str,
    status: &'a str,
    last_heartbeat_time: &'a str,
    last_transition_time: &'a str,
    reason: &'a str,
    message: &'a str,
}

/// Whether the Node says that its network is there.
pub(super) fn is_available(condition: Option<&Condition>) -> bool {
    condition.is_some_and(|condition| condition.status == "False")
}

/// The patch that says so. The transition is only now if it said something else before.
pub(super) fn available_patch(present: Option<&Condition>, now: SystemTime) -> String {
    let now = rfc3339(now);
    let since = present
        .filter(|condition| is_available(Some(condition)))
        .and_then(|condition| condition.last_transition_time.as_deref());
    let patch = ConditionPatch {
        status: Status {
            conditions: [Written {
                r#type: CONDITION,
                status: "False",
                last_heartbeat_time: &now,
                last_transition_time: since.unwrap_or(&now),
                // flannel's words: dashboards and scripts look for them.
                reason: "FlannelIsUp",
                message: "Flannel is running on this node",
            }],
        },
    };
    go_json::to_compact(&patch).expect("texts always encode")
}

/// A time as the Kubernetes API writes it: UTC, whole seconds.
fn rfc3339(time: SystemTime) -> String {
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // From days to a date with years that begin in March, so that the leap day is their last
    // (Howard Hinnant, "chrono-compatible low-level date algorithms", civil_from_days).
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = 400 * era + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn annotations(of: &[(&str, &str)]) -> Annotations {
        of.iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn only_what_differs_is_sent_and_nothing_if_all_agrees() {
        let wanted = annotations(&[("a/x", "1"), ("a/y", r#"{"VNI":1}"#)]);
        let present = annotations(&[("a/x", "1"), ("a/y", "null"), ("b", "c")]);
        assert_eq!(
            annotation_patch(&wanted, &present).unwrap(),
            r#"{"metadata":{"annotations":{"a/y":"{\"VNI\":1}"}}}"#
        );
        assert_eq!(annotation_patch(&wanted, &wanted), None);
    }

    #[test]
    fn times_are_written_as_other_programs_write_them() {
        // `date -u -d @N +%FT%TZ`
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_795_258_500, "2026-11-21T10:55:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn the_transition_is_when_it_changed_and_not_when_it_was_said_again() {
        let now = UNIX_EPOCH + Duration::from_secs(1_795_258_500);
        let condition = |status: &str| Condition {
            status: status.to_owned(),
            last_transition_time: Some("2026-01-01T00:00:00Z".to_owned()),
            ..Condition::default()
        };
        let patch = r#"{"status":{"conditions":[{"type":"NetworkUnavailable","status":"False","lastHeartbeatTime":"2026-11-21T10:55:00Z","lastTransitionTime":"SINCE","reason":"FlannelIsUp","message":"Flannel is running on this node"}]}}"#;
        for (present, since) in [
            (None, "2026-11-21T10:55:00Z"),
            (Some(condition("True")), "2026-11-21T10:55:00Z"),
            (Some(condition("Unknown")), "2026-11-21T10:55:00Z"),
            (Some(condition("False")), "2026-01-01T00:00:00Z"),
        ] {
            assert_eq!(
                available_patch(present.as_ref(), now),
                patch.replace("SINCE", since)
            );
        }
    }
}
