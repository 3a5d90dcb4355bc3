//! The lease stores, against what they store in: what all of them promise, and what is one's own.
//!
//! A new store takes part with a module that implements [`conformance::Fixture`] and calls
//! `conformance::suite!`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod conformance;
mod etcd;
mod file;
mod kube;
mod moving;
mod returning;
