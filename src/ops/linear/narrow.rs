//! Linear layers in bf16 on the CPU: both operands of every product in bf16, sums in f32, each output rounded once.
//!
//! ```text
//! l = s f (m x) A^T                 y = [x l] [W B]^T + b
//! e = s dy B                        dx = [dy e] [W; A], or dy W + f m (e A) with dropout
//! dA = f e^T (m x)                  dB = dy^T l
//! ```
//!
//! l and e are rounded to bf16, too. A matrix in few bits is decoded to f32 and rounded.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::{CpuStorage, DType, Layout, Result, bail};
use half::bf16;

use super::{Adapted, Gradients, Layer, Sizes};
use crate::ops::bf16::Isa;
use crate::ops::bf16::output::{Finish, Number, Output};
use crate::ops::bf16::over_rows::{over_rows, over_rows_transposed};
use crate::ops::bf16::pack::Rows;
use crate::ops::bf16::product::{LeftMatrix, Term};
use crate::ops::bf16::right::{Packed, Right};
use crate::ops::f32_view::{bf16_view, numbers_of};
use crate::ops::tape::SavedState;

/// The adapter's part in an output: l (N, R) and B (O, R).
pub(super) type Low<'a> = (&'a [bf16], &'a [bf16]);

/// The adapter's part in the gradient of x: e (N, R) and A (R, I).
pub(super) type Down<'a> = (&'a [bf16], &'a [bf16]);

impl Layer {
    /// Returns what multiplies an input of this type, unless products are in f32.
    pub(super) fn narrow_isa(&self, x: DType) -> Option<Isa> {
        let narrow = x == DType::BF16 && self.frozen.weight.is_narrow();
        self.frozen.isa.filter(|_| narrow)
    }

    /// Computes y = x W^T + l B^T + b for x (N, I).
    pub(super) fn run_narrow(&self, isa: Isa, x: &[bf16], low: Option<Low>) -> Result<Vec<bf16>> {
        let Sizes {
            rows,
            features,
            out_features,
            rank,
        } = self.sizes;
        let bias = self.frozen.bias.as_ref();
        let bias = bias
            .map(|bias| numbers_of([bias], |[bias]| bias.to_vec()))
            .transpose()?;
        let mut y = Output::new(rows, out_features);
        self.frozen.weight.narrow_strips(|first, strip| {
            let mut terms = vec![Term {
                left: LeftMatrix::Rows(Rows::new(x, rows, features)),
                right: Right::Transposed(strip),
            }];
            terms.extend(low.map(|(low, b)| Term {
                left: LeftMatrix::Rows(Rows::new(low, rows, rank)),
                right: Right::Transposed(Rows::new(b, out_features, rank).part(first, strip.rows())),
            }));
            let bias = bias.as_ref().map(|bias| &bias[first..first + strip.rows()]);
            y.compute(isa, &terms, Finish { bias, ..Finish::NONE });
        })?;
        Ok(y.into_numbers())
    }

    /// Computes dx = dy W + e A for dy (N, O), added to `onto` if given.
    pub(super) fn back_narrow(
        &self,
        isa: Isa,
        dy: &[bf16],
        down: Option<Down>,
        onto: Option<&[f32]>,
    ) -> Result<Vec<bf16>> {
        let Sizes {
            rows,
            features,
            out_features,
            rank,
        } = self.sizes;
        let mut dx = Output::new(rows, features);
        let mut compute = |weight: Right| {
            let mut terms = vec![Term {
                left: LeftMatrix::Rows(Rows::new(dy, rows, out_features)),
                right: weight,
            }];
            terms.extend(down.map(|(down, a)| Term {
                left: LeftMatrix::Rows(Rows::new(down, rows, rank)),
                right: Right::Plain(Rows::new(a, rank, features)),
            }));
            dx.compute(isa, &terms, Finish { onto, ..Finish::NONE });
        };
        let weight = &self.frozen.weight;
        if weight.is_in_few_bits() {
            let mut packed = Packed::zeros(features, out_features);
            weight.narrow_strips(|first, strip| packed.put(first, strip))?;
            compute(Right::Packed(&packed));
        } else {
            weight.narrow_strips(|_, all| compute(Right::Plain(all)))?;
        }
        Ok(dx.into_numbers())
    }
}

impl Adapted {
    /// Computes y for x (N, I), A (R, I) and B (O, R).
    pub(super) fn run_narrow(&self, isa: Isa, inputs: [(&CpuStorage, &Layout); 3]) -> Result<Vec<bf16>> {
        let [x, a, b] = inputs.map(|(storage, layout)| bf16_view(storage, layout));
        let (x, a, b) = (x?, a?, b?);
        let low = self.low_narrow(isa, &x, &a);
        let y = self.layer.run_narrow(isa, &x, Some((&low, &b)))?;
        self.low.get_or_init(|| SavedState::HostNarrow(Arc::new(low)));
        Ok(y)
    }

    /// Returns l.
    fn low_narrow(&self, isa: Isa, x: &[bf16], a: &[bf16]) -> Vec<bf16> {
        let Sizes {
            rows, features, rank, ..
        } = self.layer.sizes;
        let masked = self.masked_narrow(x);
        let x = Rows::new(&masked, rows, features);
        product(
            isa,
            self.scale * self.factor(),
            x,
            Right::Transposed(Rows::new(a, rank, features)),
        )
    }

    /// Returns m x, or x without dropout.
    fn masked_narrow<'a>(&self, x: &'a [bf16]) -> Cow<'a, [bf16]> {
        match &self.dropped {
            None => Cow::Borrowed(x),
            Some(mask) => {
                let mut masked = x.to_vec();
                mask.apply_narrow(&mut masked);
                Cow::Owned(masked)
            }
        }
    }

    /// Returns the needed gradients of x, A and B.
    pub(super) fn back_narrow(
        &self,
        isa: Isa,
        [wants_x, wants_a, wants_b]: [bool; 3],
        [x, a, b, dy]: [&[bf16]; 4],
    ) -> Result<Gradients<bf16>> {
        let Sizes {
            rows,
            features,
            out_features,
            rank,
        } = self.layer.sizes;
        let mut gradients = Gradients::default();
        let dy_rows = Rows::new(dy, rows, out_features);
        if wants_b {
            // The forward pass did not run if its output was not read.
            let low = self
                .low
                .get_or_init(|| SavedState::HostNarrow(Arc::new(self.low_narrow(isa, x, a))));
            let SavedState::HostNarrow(low) = low else {
                bail!("a linear layer: its forward pass ran in another type than its backward pass");
            };
            gradients.b = Some(over_rows_transposed(isa, 1.0, Rows::new(low, rows, rank), dy_rows));
        }
        if !wants_x && !wants_a {
            return Ok(gradients);
        }
        let down: Vec<bf16> = product(isa, self.scale, dy_rows, Right::Plain(Rows::new(b, out_features, rank)));
        let down_rows = Rows::new(&down, rows, rank);
        if wants_a {
            let masked = self.masked_narrow(x);
            let d = Rows::new(&masked, rows, features);
            gradients.a = Some(over_rows(isa, self.factor(), down_rows, d));
        }
        if wants_x {
            gradients.x = Some(match &self.dropped {
                None => self.layer.back_narrow(isa, dy, Some((&down, a)), None)?,
                Some(mask) => {
                    let a = Right::Plain(Rows::new(a, rank, features));
                    let mut onto: Vec<f32> = product(isa, self.factor(), down_rows, a);
                    mask.apply(&mut onto);
                    self.layer.back_narrow(isa, dy, None, Some(&onto))?
                }
            });
        }
        Ok(gradients)
    }
}

/// Returns `factor a b`.
fn product<T: Number>(isa: Isa, factor: f32, a: Rows, b: Right) -> Vec<T> {
    let mut product = Output::new(a.rows(), b.cols());
    let term = Term {
        left: LeftMatrix::Rows(a),
        right: b,
    };
    product.compute(isa, &[term], Finish { factor, ..Finish::NONE });
    product.into_numbers()
}
