//! Tests of rng.
