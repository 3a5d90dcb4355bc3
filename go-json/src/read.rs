//! Decoding: a deserializer over [`Value`] that folds the case of keys where a struct is expected.

use serde::de::value::BorrowedStrDeserializer;
use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, Visitor};
use serde_json::Value;

/// Why a document was refused: the field, as a dotted path, and what is wrong with it.
#[derive(Debug)]
pub struct Error {
    path: String,
    source: serde_json::Error,
}

impl Error {
    /// The path of the field at fault, e.g. `Backend.Port` or `ips[1].address`; empty if the
    /// document as a whole is not JSON.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.path.as_str() {
            "" => write!(f, "{}", self.source),
            path => write!(f, "field {path}: {}", self.source),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Decodes one JSON document. Anything but white space behind it is an error.
///
/// Structs must not use `#[serde(flatten)]`: serde then asks for a map, whose keys are kept as
/// they are.
pub fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    let value = serde_json::from_slice(bytes).map_err(|source| Error {
        path: String::new(),
        source,
    })?;
    from_value(&value)
}

/// Decodes a value that is already parsed, by the same rules as [`from_slice`].
pub fn from_value<T: DeserializeOwned>(value: &Value) -> Result<T, Error> {
    // What is right need not know where it stands, which takes as much code again.
    if let Ok(decoded) = T::deserialize(Folded(value)) {
        return Ok(decoded);
    }
    serde_path_to_error::deserialize(Folded(value)).map_err(|error| {
        let path = match error.path().to_string() {
            root if root == "." => String::new(),
            path => path,
        };
        Error {
            path,
            source: error.into_inner(),
        }
    })
}

/// The value of an object's key, found as Go finds it: case does not matter, the last one wins.
pub fn field<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    let entries = object.as_object()?;
    entries
        .iter()
        .rev()
        .find(|(key, _)| same_key(key, name))
        .map(|(_, value)| value)
}

fn same_key(a: &str, b: &str) -> bool {
    a.eq_ignore_ascii_case(b)
}

struct Folded<'de>(&'de Value);

impl<'de> de::Deserializer<'de> for Folded<'de> {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        match self.0 {
            Value::Array(items) => visitor.visit_seq(Items(items.iter())),
            Value::Object(entries) => visitor.visit_map(Entries {
                entries: entries.iter(),
                value: None,
            }),
            scalar => scalar.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        let entries = match self.0 {
            Value::Object(entries) => entries,
            // A derived struct would take an array as its fields in order; Go does not.
            Value::Array(_) => return Err(de::Error::invalid_type(de::Unexpected::Seq, &visitor)),
            scalar => return scalar.deserialize_any(visitor),
        };
        visitor.visit_map(Fields {
            by_field: fields.iter(),
            entries,
            value: None,
        })
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string
        bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}

struct Items<'de>(std::slice::Iter<'de, Value>);

impl<'de> de::SeqAccess<'de> for Items<'de> {
    type Error = serde_json::Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Self::Error> {
        self.0
            .next()
            .map(|v| seed.deserialize(Folded(v)))
            .transpose()
    }
}

/// A map as it stands: free-form objects keep the spelling of their keys.
struct Entries<'de> {
    entries: serde_json::map::Iter<'de>,
    value: Option<&'de Value>,
}

impl<'de> de::MapAccess<'de> for Entries<'de> {
    type Error = serde_json::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Self::Error> {
        let Some((key, value)) = self.entries.next() else {
            return Ok(None);
        };
        self.value = Some(value);
        seed.deserialize(BorrowedStrDeserializer::new(key))
            .map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(
        &mut self,
        seed: V,
    ) -> Result<V::Value, Self::Error> {
        seed.deserialize(Folded(self.value.take().unwrap_or(&Value::Null)))
    }
}

/// A struct: each field is looked for among the keys; `null` counts as absent.
struct Fields<'de> {
    by_field: std::slice::Iter<'static, &'static str>,
    entries: &'de serde_json::Map<String, Value>,
    value: Option<&'de Value>,
}

impl<'de> de::MapAccess<'de> for Fields<'de> {
    type Error = serde_json::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Self::Error> {
        for name in self.by_field.by_ref() {
            let last = self
                .entries
                .iter()
                .rev()
                .find(|(key, value)| same_key(key, name) && !value.is_null());
            if let Some((_, value)) = last {
                self.value = Some(value);
                return seed.deserialize(name.into_deserializer()).map(Some);
            }
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(
        &mut self,
        seed: V,
    ) -> Result<V::Value, Self::Error> {
        seed.deserialize(Folded(self.value.take().unwrap_or(&Value::Null)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::collections::BTreeMap;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Mapping {
        host_port: u16,
        labels: BTreeMap<String, String>,
        inner: Option<Box<Mapping>>,
        list: Vec<Mapping>,
    }

    #[test]
    fn keys_match_in_any_case_at_any_depth() {
        let got: Mapping = from_slice(
            br#"{"HOSTPORT":1,"Inner":{"hostport":2},"list":[{"HostPort":3}],"labels":{"A":"x"}}"#,
        )
        .unwrap();
        assert_eq!(got.host_port, 1);
        assert_eq!(got.inner.unwrap().host_port, 2);
        assert_eq!(got.list[0].host_port, 3);
        assert_eq!(got.labels["A"], "x");
    }

    #[test]
    fn null_leaves_the_default_and_the_last_spelling_wins() {
        let got: Mapping =
            from_slice(br#"{"hostPort":1,"hostport":2,"HostPort":null,"list":null,"x":[]}"#)
                .unwrap();
        assert_eq!(got.host_port, 2);
        assert_eq!(got.list, vec![]);
    }

    #[test]
    fn a_wrong_type_is_an_error_that_names_the_field() {
        for (text, path) in [
            (r#"{"hostPort":"8472"}"#, "hostPort"),
            (r#"{"list":[{},{"HOSTPORT":-1}]}"#, "list[1].hostPort"),
            (r#"{"inner":{"labels":{"a":1}}}"#, "inner.labels.a"),
            (r#"{"hostPort":1.0}"#, "hostPort"),
        ] {
            let error = from_slice::<Mapping>(text.as_bytes()).unwrap_err();
            assert_eq!(error.path(), path, "{error}");
        }
    }

    #[test]
    fn what_is_not_one_object_is_refused() {
        for text in ["", "[]", "{} x", "{", "\u{feff}{}", "\"\"", "7"] {
            assert!(from_slice::<Mapping>(text.as_bytes()).is_err(), "{text:?}");
        }
    }
}
