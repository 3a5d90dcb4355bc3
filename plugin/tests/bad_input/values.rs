//! What can be wrong with a field, by what the field is.

use serde_json::{Value, json};

/// What a field is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    Flag,
    /// Negative numbers are as good as none, as in Go's plugins.
    Number,
    /// No negative ones.
    Count,
    /// Any text.
    Text,
    /// Text that ends up in a file of its own line.
    Line,
    /// One of a few words.
    Word,
    /// A network's name.
    Name,
    /// A place in a list; one behind its end is passed on, as by Go's plugins.
    Place,
    /// A name of an interface.
    Ifname,
    /// A plugin's name.
    Plugin,
    Mac,
    Ip,
    Cidr,
    Path,
    List,
    Object,
}

/// A bad value, and whether it is of a JSON type that the field is not.
pub(crate) struct Bad {
    pub(crate) value: Value,
    pub(crate) is_mistyped: bool,
}

/// Nothing that is a text but any text takes these.
const HOSTILE: [&str; 6] = [
    "../../x",
    "a\0b",
    "a\nb",
    "\u{1b}[2J",
    "\u{202e}x/",
    "%s%n;$(x)/",
];

impl Kind {
    /// Everything that this field must not be.
    pub(crate) fn bad(self) -> Vec<Bad> {
        let one_of_each = [
            json!(true),
            json!(5),
            json!("x"),
            json!(["x"]),
            json!({"x": 1}),
        ];
        let own = self.example();
        let is_alike =
            |value: &Value| std::mem::discriminant(value) == std::mem::discriminant(&own);
        let mistyped = one_of_each.into_iter().filter(|value| !is_alike(value));
        let mut bad: Vec<Bad> = mistyped
            .map(|value| Bad {
                value,
                is_mistyped: true,
            })
            .collect();
        bad.extend(self.out_of_range().into_iter().map(|value| Bad {
            value,
            is_mistyped: false,
        }));
        bad
    }

    fn example(self) -> Value {
        match self {
            Kind::Flag => json!(true),
            Kind::Number | Kind::Count | Kind::Place => json!(1),
            Kind::List => json!([]),
            Kind::Object => json!({}),
            _ => json!(""),
        }
    }

    fn out_of_range(self) -> Vec<Value> {
        let numbers = [
            json!(1.5),
            json!(1e300),
            json!(u64::MAX),
            json!(1_i64 << 53),
        ];
        let hostile = || HOSTILE.map(Value::from).to_vec();
        let long = |letter: &str| json!(letter.repeat(100_000));
        match self {
            Kind::Flag | Kind::List | Kind::Object | Kind::Text => vec![],
            Kind::Number => numbers.to_vec(),
            Kind::Count => [&numbers[..], &[json!(-1), json!(i64::MIN)]].concat(),
            Kind::Place => vec![json!(1.5), json!(-1)],
            Kind::Name => [
                hostile(),
                vec![json!(""), json!("-a"), json!(" "), long("x")],
            ]
            .concat(),
            Kind::Line => vec![json!("a\nb"), json!("a\0b"), json!("\u{1b}[2J")],
            Kind::Word => [hostile(), vec![json!("x"), long("x")]].concat(),
            Kind::Ifname => {
                let more = [
                    json!("a b"),
                    json!(".."),
                    json!("a:b"),
                    json!("a234567890123456"),
                ];
                let hostile = ["../../x", "a\0b", "a\nb", "\u{1b}[2J"].map(Value::from);
                [&hostile[..], &more, &[long("x")]].concat()
            }
            Kind::Plugin => vec![json!("../../x"), json!("a/b"), json!("a\0b"), json!("..")],
            Kind::Mac => {
                let more = [
                    json!("02:00:00:00:00"),
                    json!("02:00:00:00:00:0g"),
                    json!("1"),
                ];
                [hostile(), more.to_vec(), vec![long("02:")]].concat()
            }
            Kind::Ip => {
                let more = ["10.1.2", "10.1.2.3.4", "10.1.2.256", "10.1.2.3\n", "::g"];
                [hostile(), more.map(Value::from).to_vec(), vec![long("1")]].concat()
            }
            Kind::Cidr => {
                let more = [
                    "10.1.2.0",
                    "10.1.2.0/33",
                    "10.1.2.0/-1",
                    "fd00::/129",
                    "/24",
                ];
                [hostile(), more.map(Value::from).to_vec(), vec![long("1")]].concat()
            }
            Kind::Path => {
                let more = ["x", "/x/../../y", "/a\0b", "/a\nb", "/\u{1b}[2J"];
                let long = json!(format!("/{}", "x/".repeat(3000)));
                [more.map(Value::from).to_vec(), vec![json!("../x"), long]].concat()
            }
        }
    }
}
