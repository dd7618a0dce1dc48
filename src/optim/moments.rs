//! Moments of a variable: running averages of its gradient and of the gradient's square, as numbers of the variable's own
//! type, or in 8 bits by blocks ([`super::dynamic_map`]).

use candle_core::{DType, Device, Result, Tensor, Var, bail};
use rayon::prelude::*;

use super::config::Name;
use super::dynamic_map::{BLOCK, DynamicMap};
use super::in_place::{self, CHUNK};
use super::update::Update;

/// Form that moments are kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MomentForm {
    /// The variable's own type.
    Dense,
    /// 8 bits by blocks.
    Blockwise,
}

/// Numbers from which on a variable's moments take 8 bits: bitsandbytes' `min_8bit_size`.
const LEAST_FOR_8_BITS: usize = 4096;

impl MomentForm {
    /// Form that an optimiser keeps the moments of a variable of so many numbers in.
    pub fn of(optimizer: Name, count: usize) -> Self {
        match optimizer {
            Name::Adamw8bit if count >= LEAST_FOR_8_BITS => Self::Blockwise,
            _ => Self::Dense,
        }
    }

    /// Returns the bytes of both moments of a variable of so many numbers in f32.
    pub fn bytes(self, count: usize) -> u64 {
        let of_one = match self {
            Self::Dense => count * size_of::<f32>(),
            Self::Blockwise => count + count.div_ceil(BLOCK) * size_of::<f32>(),
        };
        2 * of_one as u64
    }
}

/// Moments in a checkpoint.
#[derive(Debug, Clone)]
pub enum Moments {
    /// Named as in torch's `state_dict`.
    Dense {
        /// Running average of the gradient, in the variable's shape.
        exp_avg: Tensor,
        /// Running average of the squared gradient, in the variable's shape.
        exp_avg_sq: Tensor,
    },
    /// Named as in bitsandbytes' `state_dict`.
    Blockwise {
        /// Codes of the running average of the gradient, u8 in the variable's shape.
        state1: Tensor,
        /// Largest magnitude of each of its blocks.
        absmax1: Tensor,
        /// Codes of the running average of the squared gradient, u8 in the variable's shape.
        state2: Tensor,
        /// Largest number of each of its blocks.
        absmax2: Tensor,
    },
}

impl Moments {
    /// Returns the moments' tensors, by name.
    pub fn into_tensors(self) -> Vec<(&'static str, Tensor)> {
        match self {
            Self::Dense { exp_avg, exp_avg_sq } => vec![("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq)],
            Self::Blockwise {
                state1,
                absmax1,
                state2,
                absmax2,
            } => vec![
                ("state1", state1),
                ("absmax1", absmax1),
                ("state2", state2),
                ("absmax2", absmax2),
            ],
        }
    }

    /// Takes the tensors of this form, by name.
    ///
    /// # Errors
    /// Those of `take`.
    pub fn take<E>(
        form: MomentForm,
        mut take: impl FnMut(&str) -> std::result::Result<Tensor, E>,
    ) -> std::result::Result<Self, E> {
        Ok(match form {
            MomentForm::Dense => Self::Dense {
                exp_avg: take("exp_avg")?,
                exp_avg_sq: take("exp_avg_sq")?,
            },
            MomentForm::Blockwise => Self::Blockwise {
                state1: take("state1")?,
                absmax1: take("absmax1")?,
                state2: take("state2")?,
                absmax2: take("absmax2")?,
            },
        })
    }

    fn map(&self, each: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(match self {
            Self::Dense { exp_avg, exp_avg_sq } => Self::Dense {
                exp_avg: each(exp_avg)?,
                exp_avg_sq: each(exp_avg_sq)?,
            },
            Self::Blockwise {
                state1,
                absmax1,
                state2,
                absmax2,
            } => Self::Blockwise {
                state1: each(state1)?,
                absmax1: each(absmax1)?,
                state2: each(state2)?,
                absmax2: each(absmax2)?,
            },
        })
    }

    fn form(&self) -> MomentForm {
        match self {
            Self::Dense { .. } => MomentForm::Dense,
            Self::Blockwise { .. } => MomentForm::Blockwise,
        }
    }

    fn zeros(form: MomentForm, var: &Tensor) -> Result<Self> {
        Self::take(form, |name| match name {
            "exp_avg" | "exp_avg_sq" => var.zeros_like(),
            "state1" | "state2" => Tensor::zeros(var.shape(), DType::U8, &Device::Cpu),
            _ => Tensor::zeros(var.elem_count().div_ceil(BLOCK), DType::F32, &Device::Cpu),
        })
    }

    /// Checks that these are the moments of variable `i`.
    fn check(&self, i: usize, var: &Tensor) -> Result<()> {
        let blocks = [var.elem_count().div_ceil(BLOCK)];
        for (name, tensor) in self.clone().into_tensors() {
            let (shape, dtype) = match name {
                "absmax1" | "absmax2" => (&blocks[..], Some(DType::F32)),
                "state1" | "state2" => (var.dims(), Some(DType::U8)),
                _ => (var.dims(), None),
            };
            if tensor.dims() != shape {
                bail!(
                    "{name} {i} is {:?}, its variable {:?}{}",
                    tensor.dims(),
                    var.dims(),
                    if shape == blocks {
                        " of another number of blocks"
                    } else {
                        ""
                    }
                );
            }
            if let Some(dtype) = dtype.filter(|dtype| *dtype != tensor.dtype()) {
                bail!("{name} {i} is in {:?}, and must be in {dtype:?}", tensor.dtype());
            }
        }
        Ok(())
    }
}

/// Storage of the moments: plain numbers or blocks for the single pass over a variable, tensors for what runs on a GPU.
#[derive(Debug)]
pub(super) enum MomentStorage {
    Plain { exp_avg: Vec<f32>, exp_avg_sq: Vec<f32> },
    Blocks { first: Blocks, second: Blocks },
    Tensors(Moments),
}

/// Numbers in 8 bits, in main memory.
#[derive(Debug)]
pub(super) struct Blocks {
    codes: Vec<u8>,
    largest: Vec<f32>,
}

impl Blocks {
    fn new(codes: &Tensor, largest: &Tensor) -> Result<Self> {
        Ok(Self {
            codes: codes.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?,
            largest: largest.to_device(&Device::Cpu)?.to_vec1()?,
        })
    }

    fn copy(&self, var: &Tensor) -> Result<(Tensor, Tensor)> {
        let codes = Tensor::from_slice(&self.codes, var.shape(), &Device::Cpu)?;
        let largest = Tensor::from_slice(&self.largest, self.largest.len(), &Device::Cpu)?;
        Ok((codes, largest))
    }

    fn blocks(&mut self) -> impl IndexedParallelIterator<Item = (&mut [u8], &mut f32)> {
        self.codes.par_chunks_mut(BLOCK).zip(&mut self.largest)
    }
}

impl MomentStorage {
    pub fn zeros(form: MomentForm, var: &Tensor) -> Result<Self> {
        Self::new(var, &Moments::zeros(form, var)?)
    }

    /// Storage of moments from a checkpoint, for variable `i`.
    ///
    /// # Errors
    /// Fails for moments in another form, or of another shape.
    pub fn restored(i: usize, form: MomentForm, var: &Tensor, moments: &Moments) -> Result<Self> {
        if moments.form() != form {
            bail!(
                "the moments of variable {i} are {:?}, and must be {form:?}",
                moments.form()
            );
        }
        moments.check(i, var)?;
        Self::new(var, moments)
    }

    fn new(var: &Tensor, moments: &Moments) -> Result<Self> {
        match moments {
            Moments::Dense { exp_avg, exp_avg_sq } => {
                let here = |moment: &Tensor| moment.to_device(var.device())?.to_dtype(var.dtype());
                let (exp_avg, exp_avg_sq) = (here(exp_avg)?, here(exp_avg_sq)?);
                if !in_place::possible(var) {
                    // Copies, because a GPU's moments are updated in place.
                    return Ok(Self::Tensors(Moments::Dense {
                        exp_avg: exp_avg.copy()?,
                        exp_avg_sq: exp_avg_sq.copy()?,
                    }));
                }
                Ok(Self::Plain {
                    exp_avg: exp_avg.flatten_all()?.to_vec1()?,
                    exp_avg_sq: exp_avg_sq.flatten_all()?.to_vec1()?,
                })
            }
            #[cfg(feature = "cuda")]
            Moments::Blockwise { .. } if in_place::possible_on_gpu(var) => {
                let here = |tensor: &Tensor| tensor.to_device(var.device())?.copy();
                Ok(Self::Tensors(moments.map(here)?))
            }
            Moments::Blockwise {
                state1,
                absmax1,
                state2,
                absmax2,
            } => Ok(Self::Blocks {
                first: Blocks::new(state1, absmax1)?,
                second: Blocks::new(state2, absmax2)?,
            }),
        }
    }

    /// Returns a copy, as checkpoints have it.
    pub fn copy(&self, var: &Tensor) -> Result<Moments> {
        match self {
            Self::Plain { exp_avg, exp_avg_sq } => Ok(Moments::Dense {
                exp_avg: Tensor::from_slice(exp_avg, var.shape(), var.device())?,
                exp_avg_sq: Tensor::from_slice(exp_avg_sq, var.shape(), var.device())?,
            }),
            Self::Blocks { first, second } => {
                let ((state1, absmax1), (state2, absmax2)) = (first.copy(var)?, second.copy(var)?);
                Ok(Moments::Blockwise {
                    state1,
                    absmax1,
                    state2,
                    absmax2,
                })
            }
            Self::Tensors(moments) => moments.map(Tensor::copy),
        }
    }

    /// Updates a variable and its moments by a gradient.
    pub fn apply(&mut self, update: &Update, var: &Var, gradient: &Tensor) -> Result<()> {
        match self {
            Self::Plain { exp_avg, exp_avg_sq } => in_place::in_place(var, &gradient.to_dtype(var.dtype())?, |p, g| {
                let (p, g) = (p.par_chunks_mut(CHUNK), g.par_chunks(CHUNK));
                let (m, v) = (exp_avg.par_chunks_mut(CHUNK), exp_avg_sq.par_chunks_mut(CHUNK));
                p.zip(g)
                    .zip(m.zip(v))
                    .for_each(|((p, g), (m, v))| update.pass(p, g, m, v));
            }),
            Self::Blocks { first, second } if in_place::possible(var) => {
                in_place::in_place(var, &gradient.to_dtype(DType::F32)?, |p, g| {
                    by_blocks(update, p, g, first, second);
                })
            }
            Self::Blocks { first, second } => {
                let here = |tensor: &Tensor| {
                    let numbers = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
                    numbers.flatten_all()?.to_vec1::<f32>()
                };
                let mut p = here(var)?;
                by_blocks(update, &mut p, &here(gradient)?, first, second);
                let moved = Tensor::from_vec(p, var.shape(), &Device::Cpu)?;
                var.set(&moved.to_dtype(var.dtype())?.to_device(var.device())?)
            }
            Self::Tensors(Moments::Dense { exp_avg, exp_avg_sq }) => {
                (*exp_avg, *exp_avg_sq) = update.operations(var, gradient, exp_avg, exp_avg_sq)?;
                Ok(())
            }
            Self::Tensors(Moments::Blockwise { .. }) => bail!("moments in 8 bits on a device without the kernel"),
        }
    }
}

/// Single pass over parameters `p` and gradient `g`, block by block.
fn by_blocks(update: &Update, p: &mut [f32], g: &[f32], first: &mut Blocks, second: &mut Blocks) {
    let (signed, unsigned) = (DynamicMap::signed(), DynamicMap::unsigned());
    let numbers = p.par_chunks_mut(BLOCK).zip(g.par_chunks(BLOCK));
    let blocks = numbers.zip(first.blocks().zip(second.blocks()));
    blocks.for_each(|((p, g), ((codes1, largest1), (codes2, largest2)))| {
        let (mut m, mut v) = ([0.0; BLOCK], [0.0; BLOCK]);
        let (m, v) = (&mut m[..p.len()], &mut v[..p.len()]);
        signed.decode(codes1, *largest1, m);
        unsigned.decode(codes2, *largest2, v);
        update.pass(p, g, m, v);
        *largest1 = signed.encode(m, codes1);
        *largest2 = unsigned.encode(v, codes2);
    });
}
