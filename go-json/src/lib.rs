//! JSON by the rules of Go's `encoding/json`, for formats that Go programs write and read.
//!
//! What twill reads (net-conf, leases, CNI configs, results of other plugins) was defined by Go
//! structs, and other programs rely on how Go decodes: containerd sends `HostPort` where CRI-O
//! sends `hostPort`. What twill writes is compared byte for byte with what the Go programs write.
//!
//! - [`from_slice`], [`from_value`]: object keys match struct fields without regard to case, the
//!   last of several wins, `null` leaves the field's default, unknown keys pass, a wrong type is an
//!   error that names the field.
//! - [`to_compact`], [`to_indented`]: Go's escaping and indentation.
//!
//! This crate decides nothing about any format; the structs stand where the format is owned.

mod read;
mod write;

pub use read::{Error, field, from_slice, from_value};
pub use write::{to_compact, to_indented};
