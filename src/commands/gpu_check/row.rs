//! Lines of the table: an error, the most that it may be, and whether that holds. Each is printed when it is known.

use candle_core::{DType, Device, Tensor};

use crate::commands::{Exit, Failure, OrExit, print};
use crate::ops::attention::way::{Ran, ways};

/// One line of the table.
pub struct Row {
    pub what: String,
    pub error: f64,
    /// The most that the error may be.
    pub most: f64,
    /// How attention ran on the device that is checked, where there was some.
    pub attention: Vec<Ran>,
}

/// Lines so far.
#[derive(Default)]
pub struct Table {
    lines: usize,
    wrong: usize,
}

impl Row {
    /// A comparison that could not be made.
    pub fn failed(what: &str, error: &anyhow::Error) -> Self {
        let words = format!("{error:#}");
        Self {
            what: format!("{what}: {}", words.lines().next().unwrap_or_default()),
            error: f64::NAN,
            most: 0.0,
            attention: Vec::new(),
        }
    }

    /// What is no number is no success, nor is attention that took a slow way without need.
    pub fn holds(&self) -> bool {
        self.error <= self.most && !self.is_slow()
    }

    fn is_slow(&self) -> bool {
        self.attention.iter().any(Ran::is_needlessly_slow)
    }

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

    /// Prints what was found of something, or that it could not be.
    pub fn tell_all(&mut self, what: &str, found: anyhow::Result<Vec<Row>>) -> Result<(), Failure> {
        match found {
            Ok(rows) => rows.iter().try_for_each(|row| self.tell(row)),
            Err(error) => self.tell(&Row::failed(what, &error)),
        }
    }

    /// The last line; a failure where one does not hold.
    pub fn end(self) -> Result<(), Failure> {
        let Self { lines, wrong } = self;
        print(&format!("{} of {lines} lines hold\n", lines - wrong))?;
        match wrong {
            0 => Ok(()),
            _ => Err(anyhow::anyhow!("{wrong} of {lines} comparisons failed")).or_exit(Exit::Training),
        }
    }
}

/// The most that an error of an op may be in this type.
pub fn most(dtype: DType) -> f64 {
    if dtype == DType::F32 { 1e-4 } else { 1e-2 }
}

/// max |a - b| / max |b|, in f64; not a number where either holds what is none.
pub fn difference(a: &Tensor, b: &Tensor) -> candle_core::Result<f64> {
    let (a, b) = numbers(a, b)?;
    if a.iter().chain(&b).any(|number| !number.is_finite()) {
        return Ok(f64::NAN);
    }
    let furthest = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let largest = b.iter().map(|b| b.abs()).fold(0.0, f64::max);
    Ok(furthest / largest.max(1e-30))
}

/// ||a - b|| / ||b||, likewise.
pub fn distance(a: &Tensor, b: &Tensor) -> candle_core::Result<f64> {
    let (a, b) = numbers(a, b)?;
    let norm = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|number| number * number).sum::<f64>().sqrt();
    let apart = norm(&mut a.iter().zip(&b).map(|(a, b)| a - b));
    Ok(apart / norm(&mut b.iter().copied()).max(1e-30))
}

/// Of two tensors of one size, in f64.
fn numbers(a: &Tensor, b: &Tensor) -> candle_core::Result<(Vec<f64>, Vec<f64>)> {
    let numbers = |tensor: &Tensor| {
        let tensor = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
        tensor.flatten_all()?.to_vec1::<f64>()
    };
    let (a, b) = (numbers(a)?, numbers(b)?);
    if a.len() != b.len() {
        candle_core::bail!("{} numbers beside {}", a.len(), b.len());
    }
    Ok((a, b))
}

/// Fills what the device's pool has free with what is no number, as far as small outputs go.
pub fn poison(device: &Device) -> candle_core::Result<()> {
    let sizes = [1 << 24, 1 << 20, 1 << 20, 1 << 16, 1 << 16, 1 << 12, 1 << 12];
    let poisoned = sizes.map(|size| Tensor::full(f32::NAN, size, device));
    for tensor in poisoned {
        tensor?;
    }
    Ok(())
}
