//! The README is true: what it promises to run is run.
