//! Takes a list apart while it arrives: every element of `items` as soon as it is whole, and at the
//! end what stood around them. Never more than one element is kept, however long the list is.
//!
//! It knows of JSON only where strings and brackets end; the elements are decoded by others, who
//! find what else is wrong with them.

use serde::Deserialize;

/// The longest element: the API server takes objects of up to 3 MiB.
const LONGEST_ITEM: usize = 4 << 20;
/// The longest rest of a list.
const LONGEST_FRAME: usize = 64 << 10;

/// A list without its elements.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Frame {
    /// Its metadata.
    pub(super) metadata: FrameMetadata,
}

/// What a list says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FrameMetadata {
    /// Where a watch goes on from it.
    pub(super) resource_version: String,
    /// Asks for the next page; empty on the last one.
    #[serde(default, rename = "continue")]
    pub(super) next: String,
}

/// The state between two pieces.
#[derive(Debug, Default)]
pub(super) struct Pages {
    /// The list around its elements.
    frame: Vec<u8>,
    /// The element that has begun.
    item: Vec<u8>,
    /// Open brackets.
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// The last string at depth 1 began here in `frame`: a key when a bracket follows.
    key: usize,
    /// Between the brackets of `items`.
    in_items: bool,
}

impl Pages {
    /// Takes the next piece; hands over the elements that end in it. An error is the list's.
    pub(super) fn push(&mut self, piece: &[u8], mut item: impl FnMut(&[u8])) -> Result<(), String> {
        let mut rest = piece;
        while let Some((&byte, tail)) = rest.split_first() {
            // Most of an element is plain text: taken in runs.
            if self.in_string && self.depth > 2 && self.in_items && !self.escaped {
                let end = rest.iter().position(|byte| matches!(byte, b'"' | b'\\'));
                let (run, after) = rest.split_at(end.unwrap_or(rest.len()));
                if !run.is_empty() {
                    self.item.extend_from_slice(run);
                    self.check_lengths()?;
                    rest = after;
                    continue;
                }
            }
            rest = tail;
            let in_item = self.in_items && (self.depth > 2 || (self.depth == 2 && byte == b'{'));
            self.step(byte)?;
            if in_item {
                self.item.push(byte);
                if self.depth == 2 && !self.in_string {
                    item(&self.item);
                    self.item.clear();
                }
            } else if !self.in_items || byte == b'[' {
                self.frame.push(byte);
            }
            self.check_lengths()?;
        }
        Ok(())
    }

    fn check_lengths(&self) -> Result<(), String> {
        match self.item.len() > LONGEST_ITEM || self.frame.len() > LONGEST_FRAME {
            true => Err("an element of the list is too long to be a Node".to_owned()),
            false => Ok(()),
        }
    }

    fn step(&mut self, byte: u8) -> Result<(), String> {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return Ok(());
        }
        match byte {
            b'"' => {
                self.in_string = true;
                if self.depth == 1 {
                    self.key = self.frame.len();
                }
            }
            b'[' if self.depth == 1 => {
                self.depth = 2;
                self.in_items = self.frame[self.key..].starts_with(b"\"items\"");
            }
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.depth = self.depth.checked_sub(1).ok_or("a bracket too many")?;
                if self.depth == 1 && self.in_items {
                    self.in_items = false;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The list is at its end: what it says about itself.
    pub(super) fn finish(self) -> Result<FrameMetadata, String> {
        if self.depth != 0 || self.frame.is_empty() {
            return Err("the answer ends in the middle of the list".to_owned());
        }
        let frame: Frame = serde_json::from_slice(&self.frame).map_err(|e| e.to_string())?;
        Ok(frame.metadata)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn taken_apart(text: &[u8], piece: usize) -> Result<(Vec<String>, FrameMetadata), String> {
        let mut pages = Pages::default();
        let mut items = Vec::new();
        for piece in text.chunks(piece) {
            pages.push(piece, |item| {
                items.push(String::from_utf8_lossy(item).into_owned())
            })?;
        }
        Ok((items, pages.finish()?))
    }

    fn list(items: &[Value], next: &str) -> String {
        json!({"kind": "NodeList", "apiVersion": "v1",
               "metadata": {"resourceVersion": "17", "continue": next, "items": [{"not": "these"}]},
               "items": items, "other": [{"nor": "these"}]})
        .to_string()
    }

    #[test]
    fn half_a_list_is_no_list() {
        let text = list(&[json!({"a": 1}), json!({})], "");
        for end in 0..text.len() {
            assert!(
                taken_apart(&text.as_bytes()[..end], 7).is_err(),
                "{}",
                &text[..end]
            );
        }
        assert_eq!(
            taken_apart(text.as_bytes(), 7).unwrap().0,
            ["{\"a\":1}", "{}"]
        );
    }

    #[test]
    fn a_list_without_elements_is_whole() {
        for text in [
            r#"{"metadata":{"resourceVersion":"5"},"items":[]}"#,
            r#"{"metadata":{"resourceVersion":"5"},"items":null}"#,
            r#"{"items": [ ], "metadata": {"resourceVersion": "5"}}"#,
        ] {
            let (items, metadata) = taken_apart(text.as_bytes(), 3).unwrap();
            assert_eq!(
                (items.len(), &*metadata.resource_version, &*metadata.next),
                (0, "5", "")
            );
        }
    }

    #[test]
    fn something_else_than_a_list_is_an_error() {
        for text in [
            "",
            "nonsense",
            "{}",
            "[]",
            "]",
            r#"{"metadata":{"resourceVersion":5}}"#,
        ] {
            assert!(taken_apart(text.as_bytes(), 5).is_err(), "{text}");
        }
    }

    #[test]
    fn an_element_without_end_is_refused() {
        let text = format!(r#"{{"items":[{{"a":"{}"#, "x".repeat(LONGEST_ITEM));
        assert!(taken_apart(text.as_bytes(), 4096).is_err());
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            "\\PC{0,8}".prop_map(Value::from)
        ];
        let any = leaf.prop_recursive(3, 12, 3, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                proptest::collection::btree_map("[\\PC\"\\\\{}\\[\\]]{0,5}", inner, 0..3)
                    .prop_map(Value::from_iter),
            ]
        });
        proptest::collection::btree_map("\\PC{0,5}", any, 0..3).prop_map(Value::from_iter)
    }

    proptest! {
        #[test]
        fn elements_come_out_as_they_went_in(
            items in proptest::collection::vec(value(), 0..5), next in "[a-z]{0,3}", piece in 1usize..40
        ) {
            let text = list(&items, &next);
            let (found, metadata) = taken_apart(text.as_bytes(), piece).unwrap();
            let found: Vec<Value> = found.iter().map(|t| serde_json::from_str(t).unwrap()).collect();
            prop_assert_eq!(found, items);
            prop_assert_eq!(metadata, FrameMetadata { resource_version: "17".into(), next });
        }
    }
}
