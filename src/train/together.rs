//! What ranks tell each other while they train: of a step the sum of their gradients, and what each micro-batch was and
//! lost; and the validation videos that they have made.
//!
//! Gradients go in one flat f32 bucket, once a step, behind all micro-batches and before the clip. Losses go as they are
//! and are put into the order of the micro-batches' global indices, so that their mean is the mean on one rank.
//!
//! Shapes: N numbers in all adapters.

use std::path::PathBuf;

use anyhow::anyhow;
use candle_core::{DType, Result, Tensor, Var};
use serde::{Deserialize, Serialize};

use super::step::Seen;
use super::validate::Shown;
use crate::dist::Communicator;

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

/// A micro-batch, as it travels. JSON has no NaN: the loss goes by its bits.
#[derive(Serialize, Deserialize)]
struct Told {
    loss: u64,
    samples: Vec<usize>,
    timesteps: Vec<f64>,
}

/// All ranks' micro-batches of a step, by global index: the first of each rank, the second of each, and so on.
pub fn exchange(ranks: &dyn Communicator, seen: Vec<Seen>) -> anyhow::Result<Vec<Seen>> {
    if !ranks.talks() {
        return Ok(seen);
    }
    let told = seen.into_iter().map(|seen| Told {
        loss: seen.loss.to_bits(),
        samples: seen.samples,
        timesteps: seen.timesteps,
    });
    let told = serde_json::to_vec(&told.collect::<Vec<_>>())?;
    let mut each = Vec::new();
    for bytes in ranks.all_gather(&told)? {
        each.push(serde_json::from_slice::<Vec<Told>>(&bytes)?.into_iter());
    }
    let mut all = Vec::new();
    loop {
        let before = all.len();
        all.extend(each.iter_mut().filter_map(Iterator::next).map(|told| Seen {
            loss: f64::from_bits(told.loss),
            samples: told.samples,
            timesteps: told.timesteps,
        }));
        if all.len() == before {
            return Ok(all);
        }
    }
}

/// A validation video, as news of it travels; the frame goes beside it.
#[derive(Serialize, Deserialize)]
enum News {
    None,
    Shown {
        name: String,
        path: PathBuf,
        height: usize,
        width: usize,
    },
    Failed(String),
}

/// The videos that ranks have made, by rank; none of those that had none to make.
pub fn gather_shown(
    ranks: &dyn Communicator,
    shown: Option<anyhow::Result<Shown>>,
) -> anyhow::Result<Vec<Option<anyhow::Result<Shown>>>> {
    if ranks.world_size() == 1 {
        return Ok(vec![shown]);
    }
    let (news, frame) = match shown {
        None => (News::None, Vec::new()),
        Some(Err(error)) => (News::Failed(format!("{error:#}")), Vec::new()),
        Some(Ok(shown)) => {
            let Shown {
                name,
                path,
                frame,
                height,
                width,
            } = shown;
            (
                News::Shown {
                    name,
                    path,
                    height,
                    width,
                },
                frame,
            )
        }
    };
    let news = ranks.all_gather(&serde_json::to_vec(&news)?)?;
    let frames = ranks.all_gather(&frame)?;
    let read = |(news, frame): (Vec<u8>, Vec<u8>)| {
        Ok(match serde_json::from_slice(&news)? {
            News::None => None,
            News::Failed(error) => Some(Err(anyhow!(error))),
            News::Shown {
                name,
                path,
                height,
                width,
            } => Some(Ok(Shown {
                name,
                path,
                frame,
                height,
                width,
            })),
        })
    };
    news.into_iter().zip(frames).map(read).collect()
}
