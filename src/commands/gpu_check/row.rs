//! Rows of the table: an error, its bound, and the verdict. Each is printed as soon as it is known.

use candle_core::{DType, Device, Tensor};

use crate::commands::{Exit, Failure, OrExit, print};
use crate::ops::attention::way::{Ran, ways};

/// One line of the table.
pub struct Row {
    /// Name of the comparison.
    pub what: String,
    /// Error found, in the unit of the bound.
    pub error: f64,
    /// Bound of the error.
    pub most: f64,
    /// Calls of attention on the device under test.
    pub attention: Vec<Ran>,
}

/// Lines so far.
#[derive(Default)]
pub struct Table {
    lines: usize,
    wrong: usize,
}

impl Row {
    /// Row of a comparison that could not be made.
    pub fn failed(what: &str, error: &anyhow::Error) -> Self {
        let words = format!("{error:#}");
        Self {
            what: format!("{what}: {}", words.lines().next().unwrap_or_default()),
            error: f64::NAN,
            most: 0.0,
            attention: Vec::new(),
        }
    }

    /// Returns true if the error is within its bound, which NaN is not, and attention was not needlessly slow.
    pub fn holds(&self) -> bool {
        self.error <= self.most && !self.is_slow()
    }

    fn is_slow(&self) -> bool {
        self.attention.iter().any(Ran::is_needlessly_slow)
    }

    /// Formats the row.
    pub fn line(&self) -> String {
        let verdict = if self.holds() { "ok  " } else { "FAIL" };
        let ways: Vec<String> = ways(&self.attention).iter().map(ToString::to_string).collect();
        let attention = match (ways.is_empty(), self.is_slow()) {
            (true, _) => String::new(),
            (false, false) => format!("  [{}]", ways.join(", ")),
            (false, true) => format!("  [{}, where cuDNN should]", ways.join(", ")),
        };
        format!(
            "{verdict} {:9.2e} of {:7.0e}  {}{attention}\n",
            self.error, self.most, self.what
        )
    }
}

impl Table {
    /// Prints a line.
    pub fn tell(&mut self, row: &Row) -> Result<(), Failure> {
        self.lines += 1;
        self.wrong += usize::from(!row.holds());
        print(&row.line())
    }

    /// Prints the rows of a comparison, or that it failed.
    pub fn tell_all(&mut self, what: &str, found: anyhow::Result<Vec<Row>>) -> Result<(), Failure> {
        match found {
            Ok(rows) => rows.iter().try_for_each(|row| self.tell(row)),
            Err(error) => self.tell(&Row::failed(what, &error)),
        }
    }

    /// Prints the last line; fails if any row failed.
    pub fn end(self) -> Result<(), Failure> {
        let Self { lines, wrong } = self;
        print(&format!("{} of {lines} lines hold\n", lines - wrong))?;
        match wrong {
            0 => Ok(()),
            _ => Err(anyhow::anyhow!("{wrong} of {lines} comparisons failed")).or_exit(Exit::Training),
        }
    }
}

/// Returns the bound for the error of an op in this type.
pub fn most(dtype: DType) -> f64 {
    if dtype == DType::F32 { 1e-4 } else { 1e-2 }
}

/// Returns max |a - b| / max |b|, in f64; NaN if either has NaN or infinities.
pub fn difference(a: &Tensor, b: &Tensor) -> candle_core::Result<f64> {
    let (a, b) = numbers(a, b)?;
    if a.iter().chain(&b).any(|number| !number.is_finite()) {
        return Ok(f64::NAN);
    }
    let furthest = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let largest = b.iter().map(|b| b.abs()).fold(0.0, f64::max);
    Ok(furthest / largest.max(1e-30))
}

/// Returns ||a - b|| / ||b||, likewise.
pub fn distance(a: &Tensor, b: &Tensor) -> candle_core::Result<f64> {
    let (a, b) = numbers(a, b)?;
    let norm = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|number| number * number).sum::<f64>().sqrt();
    let apart = norm(&mut a.iter().zip(&b).map(|(a, b)| a - b));
    Ok(apart / norm(&mut b.iter().copied()).max(1e-30))
}

/// Returns the numbers of two tensors of equal size, in f64.
fn numbers(a: &Tensor, b: &Tensor) -> candle_core::Result<(Vec<f64>, Vec<f64>)> {
    let numbers = |tensor: &Tensor| {
        let tensor = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
        tensor.flatten_all()?.to_vec1::<f64>()
    };
    let (a, b) = (numbers(a)?, numbers(b)?);
    if a.len() != b.len() {
        candle_core::bail!("{} numbers and {}", a.len(), b.len());
    }
    Ok((a, b))
}

/// Fills the free memory of the device's pool with NaN, enough for small outputs.
pub fn poison(device: &Device) -> candle_core::Result<()> {
    let sizes = [1 << 24, 1 << 20, 1 << 20, 1 << 16, 1 << 16, 1 << 12, 1 << 12];
    let poisoned = sizes.map(|size| Tensor::full(f32::NAN, size, device));
    for tensor in poisoned {
        tensor?;
    }
    Ok(())
}
