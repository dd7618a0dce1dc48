//! Seeded streams, equal to torch's CPU generator.
