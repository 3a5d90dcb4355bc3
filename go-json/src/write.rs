//! Encoding: Go's escaping of `<`, `>`, `&`, U+2028 and U+2029, compact or with an indent.

use std::io;

use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter, Serializer};

/// Encodes as `json.Marshal` does: no white space, no newline at the end. Maps must be given in
/// the order wanted (Go sorts the keys of its maps).
pub fn to_compact<T: Serialize + ?Sized>(value: &T) -> serde_json::Result<String> {
    write(value, CompactFormatter)
}

/// Encodes as `json.MarshalIndent(v, "", "    ")` does: four spaces, no newline at the end.
pub fn to_indented<T: Serialize + ?Sized>(value: &T) -> serde_json::Result<String> {
    write(value, PrettyFormatter::with_indent(b"    "))
}

fn write<T: Serialize + ?Sized>(value: &T, layout: impl Formatter) -> serde_json::Result<String> {
    let mut out = Vec::with_capacity(512);
    value.serialize(&mut Serializer::with_formatter(&mut out, Escaped(layout)))?;
    Ok(String::from_utf8(out).expect("serde_json writes UTF-8 only"))
}

struct Escaped<F>(F);

macro_rules! as_inner {
    ($($method:ident($($arg:ident: $type:ty),*)),* $(,)?) => {$(
        fn $method<W: ?Sized + io::Write>(&mut self, out: &mut W $(, $arg: $type)*) -> io::Result<()> {
            self.0.$method(out $(, $arg)*)
        }
    )*};
}

impl<F: Formatter> Formatter for Escaped<F> {
    as_inner! {
        begin_array(), end_array(), begin_array_value(first: bool), end_array_value(),
        begin_object(), end_object(), begin_object_key(first: bool), end_object_key(),
        begin_object_value(), end_object_value(),
    }

    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let special = ['<', '>', '&', '\u{2028}', '\u{2029}'];
        // Hardly ever there, and looked for by their first bytes at a fraction of the price.
        let may_be = |byte| matches!(byte, b'<' | b'>' | b'&' | 0xe2);
        if !fragment.bytes().any(may_be) {
            return out.write_all(fragment.as_bytes());
        }
        let mut rest = fragment;
        while let Some(at) = rest.find(special) {
            out.write_all(&rest.as_bytes()[..at])?;
            let c = rest[at..].chars().next().unwrap_or_default();
            write!(out, "\\u{:04x}", u32::from(c))?;
            rest = &rest[at + c.len_utf8()..];
        }
        out.write_all(rest.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn text_is_escaped_as_go_escapes_it() {
        let text = super::to_compact(&json!({"a": "<b> & \"c\" \u{2028}é"})).unwrap();
        assert_eq!(text, r#"{"a":"\u003cb\u003e \u0026 \"c\" \u2028é"}"#);
    }

    #[test]
    fn the_indent_is_four_spaces_and_empty_stays_on_its_line() {
        let text = super::to_indented(&json!({"a": [1], "dns": {}, "ips": []})).unwrap();
        assert_eq!(
            text,
            "{\n    \"a\": [\n        1\n    ],\n    \"dns\": {},\n    \"ips\": []\n}"
        );
    }
}
