//! The one error that leaves the program: a code of the CNI specification and a text.
//!
//! Modules have errors of their own; the verbs choose the code, here is only the table.

use std::borrow::Cow;

use serde_json::json;

use crate::version::Version;

/// What a runtime can tell apart. 0–99 are the specification's, 100 and up are twill's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// The config's `cniVersion` is none of ours, or has not the verb.
    IncompatibleVersion,
    /// A key that is known and cannot be honoured; the text has key and value.
    UnsupportedField,
    /// The sandbox does not exist and nothing was done: no DEL is needed.
    UnknownContainer,
    /// An environment variable is missing or invalid.
    InvalidEnvironment,
    /// Reading the config failed.
    Io,
    /// The config is not JSON, or a field has the wrong type.
    Decode,
    /// The config is readable and wrong.
    InvalidConfig,
    /// CNI_NETNS is the node's own namespace (not in the specification; libcni's plugins use 8).
    HostNetns,
    /// Not possible now, perhaps later: no subnet yet, no free address.
    TryAgain,
    /// STATUS: ADD cannot be served.
    CannotServe,
    /// The kernel refused an operation.
    Kernel,
    /// Something that is not ours stands in the way.
    Conflict,
    /// Files of the plugin's state cannot be read or written.
    State,
    /// CHECK found a difference.
    CheckFailed,
    /// What another plugin answered, which this one was asked to run.
    Theirs(u32),
}

impl Code {
    /// As it stands in the document.
    const fn number(self) -> u32 {
        match self {
            Code::IncompatibleVersion => 1,
            Code::UnsupportedField => 2,
            Code::UnknownContainer => 3,
            Code::InvalidEnvironment => 4,
            Code::Io => 5,
            Code::Decode => 6,
            Code::InvalidConfig => 7,
            Code::HostNetns => 8,
            Code::TryAgain => 11,
            Code::CannotServe => 50,
            Code::Kernel => 100,
            Code::Conflict => 101,
            Code::State => 102,
            Code::CheckFailed => 103,
            Code::Theirs(number) => number,
        }
    }
}

/// An error as the runtime gets it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{msg}")]
pub(crate) struct Error {
    /// What kind of failure.
    pub(crate) code: Code,
    /// One line: what was tried, on what, why it failed.
    pub(crate) msg: String,
    /// More, if there is more; else empty.
    pub(crate) details: String,
}

impl Error {
    /// An error without details.
    pub(crate) fn new(code: Code, msg: impl Into<String>) -> Error {
        Error {
            code,
            msg: msg.into(),
            details: String::new(),
        }
    }

    /// The same error with details.
    #[must_use]
    pub(crate) fn details(mut self, details: impl Into<String>) -> Error {
        self.details = details.into();
        self
    }

    /// The same error, with the words of what it was met in before its text.
    #[must_use]
    pub(crate) fn context(mut self, context: &str) -> Error {
        self.msg = format!("{context}: {}", self.msg);
        self
    }

    /// Several failures as one: the first one's code, every text.
    pub(crate) fn join(mut errors: Vec<Error>) -> Result<(), Error> {
        if errors.len() < 2 {
            return errors.pop().map_or(Ok(()), Err);
        }
        let texts: Vec<String> = errors.iter().map(|error| error.msg.clone()).collect();
        Err(Error {
            code: errors[0].code,
            msg: texts.join("; "),
            details: String::new(),
        })
    }

    /// The JSON document for stdout: indented, no newline at the end.
    pub(crate) fn render(&self, version: Version) -> String {
        let mut document = json!({
            "cniVersion": version.as_str(),
            "code": self.code.number(),
            "msg": shortened(&self.msg),
        });
        if !self.details.is_empty() {
            document["details"] = json!(shortened(&self.details));
        }
        go_json::to_indented(&document).expect("strings and a number are always JSON")
    }
}

/// Bytes of a text in a document: enough for the failures of a whole GC.
const LONGEST: usize = 4096;

/// What was met may be enormous; its beginning says what it is, and runtimes log the document.
fn shortened(text: &str) -> Cow<'_, str> {
    let end = text
        .char_indices()
        .map(|(at, _)| at)
        .take_while(|at| *at <= LONGEST)
        .last();
    match end {
        Some(end) if text.len() > LONGEST => {
            Cow::Owned(format!("{}… ({} bytes)", &text[..end], text.len()))
        }
        _ => Cow::Borrowed(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_indented_document_without_empty_details() {
        let error = Error::new(Code::InvalidEnvironment, "bad <id>");
        assert_eq!(
            error.render(Version::V0_3_1),
            "{\n    \"cniVersion\": \"0.3.1\",\n    \"code\": 4,\n    \"msg\": \"bad \\u003cid\\u003e\"\n}"
        );
        assert!(
            error
                .details("a/b")
                .render(Version::V1_0_0)
                .ends_with("\"details\": \"a/b\"\n}")
        );
    }

    #[test]
    fn several_failures_are_reported_as_one() {
        assert_eq!(Error::join(vec![]), Ok(()));
        let joined = Error::join(vec![
            Error::new(Code::Kernel, "a"),
            Error::new(Code::State, "b"),
        ]);
        assert_eq!(joined, Err(Error::new(Code::Kernel, "a; b")));
    }
}
