//! Bad input, by every name of the plugin: each field of each config, each variable, each file of
//! state, of the wrong type, out of range, contradictory, torn, enormous or hostile. The answer is
//! one document with a code that says what kind of fault, and names what is at fault; the node and
//! the pods on it stay as they are.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../calls/mod.rs"]
mod calls;
mod contradictions;
mod fields;
mod files;
#[path = "../namespaces/mod.rs"]
mod namespaces;
mod scene;
mod stricter;
mod values;
mod variables;
