//! Summary of a folder written anew: by form, bytes before and after, and the error.

use std::collections::BTreeMap;
use std::fmt;

use candle_core::{DType, Result, Tensor};
use indicatif::BinaryBytes;

use crate::ops::stored::StoredMatrix;

/// Numbers of a matrix that are decoded at a time.
const STRIP: usize = 1 << 20;

/// Bytes and errors by form.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    /// Tensors of each form, by its name.
    pub rows: BTreeMap<String, SummaryRow>,
}

/// The tensors of one form.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SummaryRow {
    /// Their number.
    pub tensors: usize,
    /// Bytes that they had.
    pub before: u64,
    /// Bytes that they have now.
    pub after: u64,
    /// Sum of their relative errors; None for forms without any.
    errors: Option<f64>,
}

impl SummaryRow {
    /// Returns the mean over matrices of |W - W'| / |W|, by Frobenius norms.
    pub fn error(&self) -> Option<f64> {
        self.errors.map(|errors| errors / self.tensors.max(1) as f64)
    }
}

impl Summary {
    pub(super) fn add(&mut self, form: String, before: u64, after: u64, error: Option<f64>) {
        let row = self.rows.entry(form).or_default();
        row.tensors += 1;
        row.before += before;
        row.after += after;
        row.errors = error.map(|error| row.errors.unwrap_or(0.0) + error).or(row.errors);
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, tensors: &str, before: &str, after: &str, error: &str| {
            writeln!(f, "{name:<24} {tensors:>7} {before:>12} {after:>12}  {error}")
        };
        line("form", "tensors", "before", "after", "mean relative error")?;
        let mut total = SummaryRow::default();
        for (name, row) in &self.rows {
            total.tensors += row.tensors;
            total.before += row.before;
            total.after += row.after;
            let [before, after] = [row.before, row.after].map(|bytes| BinaryBytes(bytes).to_string());
            let error = row.error().map_or(String::new(), |error| format!("{error:.4}"));
            line(name, &row.tensors.to_string(), &before, &after, &error)?;
        }
        let [before, after] = [total.before, total.after].map(|bytes| BinaryBytes(bytes).to_string());
        let share = total.after as f64 / total.before.max(1) as f64;
        let share = format!("{share:.2}x");
        line("total", &total.tensors.to_string(), &before, &after, &share)
    }
}

/// Returns |dense - stored| / |dense|, by Frobenius norms; 0 for zeros.
pub(super) fn relative_error(dense: &Tensor, stored: &dyn StoredMatrix) -> Result<f64> {
    let (out_features, features) = stored.shape();
    let rows = (STRIP / features.max(1)).clamp(1, out_features.max(1));
    let (mut off, mut norm) = (0.0, 0.0);
    for first in (0..out_features).step_by(rows) {
        let end = (first + rows).min(out_features);
        let numbers = |x: Tensor| x.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
        let expected = numbers(dense.narrow(0, first, end - first)?)?;
        let found = numbers(stored.rows(first..end, DType::F32)?)?;
        for (x, y) in expected.iter().zip(&found) {
            off += f64::from(x - y).powi(2);
            norm += f64::from(*x).powi(2);
        }
    }
    Ok(if norm > 0.0 { (off / norm).sqrt() } else { 0.0 })
}
