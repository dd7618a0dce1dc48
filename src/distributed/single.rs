//! A single process without peers.

use candle_core::Tensor;

use super::{Communicator, RankInfo, Traffic};

/// The only rank.
#[derive(Debug, Clone, Copy)]
pub struct Single;

impl Communicator for Single {
    fn place(&self) -> RankInfo {
        RankInfo::ALONE
    }

    fn all_reduce(&self, numbers: &Tensor) -> anyhow::Result<Tensor> {
        Ok(numbers.clone())
    }

    fn all_gather(&self, bytes: &[u8]) -> anyhow::Result<Vec<Vec<u8>>> {
        Ok(vec![bytes.to_vec()])
    }

    fn broadcast(&self, bytes: Vec<u8>) -> anyhow::Result<Vec<u8>> {
        Ok(bytes)
    }

    fn barrier(&self) -> anyhow::Result<()> {
        Ok(())
    }

    fn traffic(&self) -> Traffic {
        Traffic::default()
    }

    fn finish(&self) {}
}
