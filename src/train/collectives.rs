//! Messages between ranks while they train: of a step the sum of their gradients, and what each micro-batch was and
//! lost; and the validation videos that they have made.
//!
//! Gradients go in one flat f32 bucket, once a step, behind all micro-batches and before the clip. Losses go as they are
//! and are put into the order of the micro-batches' global indices, so that their mean is the mean on one rank.
//!
//! Shapes: N numbers in all adapters.

use candle_core::{DType, Result, Tensor, Var};

use super::micro_batch::MicroBatchStats;
use super::validate::ValidationVideo;
use crate::distributed::Communicator;

/// The sums over all ranks. A variable that no loss of this rank depends on adds zeros.
pub fn sum(ranks: &dyn Communicator, gradients: Vec<Option<Tensor>>, vars: &[Var]) -> anyhow::Result<Vec<Tensor>> {
    let flat = |(gradient, var): (Option<Tensor>, &Var)| match gradient {
        Some(gradient) => gradient.flatten_all()?.to_dtype(DType::F32),
        None => Tensor::zeros(var.elem_count(), DType::F32, var.device()),
    };
    let flat = gradients.into_iter().zip(vars).map(flat).collect::<Result<Vec<_>>>()?;
    let bucket = ranks.all_reduce(&Tensor::cat(&flat, 0)?)?; // (N)
    drop(flat);
    let mut start = 0;
    let mut sums = Vec::with_capacity(vars.len());
    for var in vars {
        let part = bucket.narrow(0, start, var.elem_count())?;
        sums.push(part.reshape(var.shape())?.to_dtype(var.dtype())?);
        start += var.elem_count();
    }
    Ok(sums)
}

/// A micro-batch, as it travels: loss, samples and timesteps. JSON has no NaN: the loss goes by its bits.
type MicroBatchMessage = (u64, Vec<usize>, Vec<f64>);

/// All ranks' micro-batches of a step, by global index: the first of each rank, the second of each, and so on.
pub fn exchange(ranks: &dyn Communicator, seen: Vec<MicroBatchStats>) -> anyhow::Result<Vec<MicroBatchStats>> {
    if !ranks.is_distributed() {
        return Ok(seen);
    }
    let own = seen
        .into_iter()
        .map(|seen| (seen.loss.to_bits(), seen.samples, seen.timesteps));
    let own = serde_json::to_vec(&own.collect::<Vec<MicroBatchMessage>>())?;
    let mut each = Vec::new();
    for bytes in ranks.all_gather(&own)? {
        each.push(serde_json::from_slice::<Vec<MicroBatchMessage>>(&bytes)?.into_iter());
    }
    let mut all = Vec::new();
    loop {
        let before = all.len();
        let next = each.iter_mut().filter_map(Iterator::next);
        all.extend(next.map(|(loss, samples, timesteps)| MicroBatchStats {
            loss: f64::from_bits(loss),
            samples,
            timesteps,
        }));
        if all.len() == before {
            return Ok(all);
        }
    }
}

/// Ranks whose variables are not, bit for bit, those of rank 0.
pub fn diverged(ranks: &dyn Communicator, vars: &[Var]) -> anyhow::Result<Vec<usize>> {
    if ranks.world_size() == 1 {
        return Ok(Vec::new());
    }
    let mut hasher = blake3::Hasher::new();
    for var in vars {
        let numbers = var.as_tensor().to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        for number in numbers {
            hasher.update(&number.to_le_bytes());
        }
    }
    let each = ranks.all_gather(hasher.finalize().as_bytes())?;
    Ok((0..each.len()).filter(|&rank| each[rank] != each[0]).collect())
}

/// The videos that ranks have rendered, by rank; none of those that had none to render. Frames travel beside them.
pub fn gather_videos(
    ranks: &dyn Communicator,
    video: Option<anyhow::Result<ValidationVideo>>,
) -> anyhow::Result<Vec<Option<anyhow::Result<ValidationVideo>>>> {
    if ranks.world_size() == 1 {
        return Ok(vec![video]);
    }
    let mut own = video.map(|video| video.map_err(|error| format!("{error:#}")));
    let frame = match &mut own {
        Some(Ok(video)) => std::mem::take(&mut video.frame),
        _ => Vec::new(),
    };
    let videos = ranks.all_gather(&serde_json::to_vec(&own)?)?;
    let frames = ranks.all_gather(&frame)?;
    let read = |(video, frame): (Vec<u8>, Vec<u8>)| {
        let video: Option<std::result::Result<ValidationVideo, String>> = serde_json::from_slice(&video)?;
        let whole = |video| ValidationVideo { frame, ..video };
        Ok(video.map(|video| video.map(whole).map_err(anyhow::Error::msg)))
    };
    videos.into_iter().zip(frames).map(read).collect()
}
