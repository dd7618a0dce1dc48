//! Checks a single rank of NCCL: its sums and exchanges must return its own input.

use std::time::Duration;

use anyhow::ensure;
use candle_core::{DType, Device, Tensor};

use super::row::Row;
use crate::distributed::nccl::Nccl;
use crate::distributed::{Communicator, RankInfo};
use crate::rng::Rng;

/// Length of a vector, not a multiple of any block size.
const COUNT: usize = 100_003;

pub fn compare(device: &Device, rng: &mut Rng) -> anyhow::Result<Vec<Row>> {
    if !device.is_cuda() {
        return Ok(Vec::new());
    }
    let ranks = Nccl::open(&RankInfo::ALONE, Duration::from_secs(60))?;
    let numbers = Tensor::from_vec(rng.randn(COUNT), COUNT, device)?; // (n)
    let sum = ranks.all_reduce(&numbers)?;
    let mut rows = vec![row("NCCL, the sum of one rank", &sum, &numbers)?];
    if let Some(sharing) = ranks.sharing() {
        for dtype in [DType::F32, DType::BF16] {
            let part = numbers.to_dtype(dtype)?;
            let whole = sharing.begin(&part)?.end()?;
            rows.push(row(&format!("NCCL, weights of one rank {dtype:?}"), &whole, &part)?);
        }
    }
    let message = b"to myself".to_vec();
    ensure!(
        ranks.all_gather(&message)? == [message.clone()] && ranks.broadcast(message.clone())? == message,
        "NCCL returned other bytes than were sent"
    );
    ranks.finish();
    Ok(rows)
}

/// Row that requires bitwise equality.
fn row(what: &str, found: &Tensor, wanted: &Tensor) -> anyhow::Result<Row> {
    let wide = |tensor: &Tensor| tensor.to_dtype(DType::F32);
    let error = (wide(found)? - wide(wanted)?)?.abs()?.max_all()?.to_scalar::<f32>()?;
    Ok(Row {
        what: what.into(),
        error: f64::from(error),
        most: 0.0,
        attention: Vec::new(),
    })
}
