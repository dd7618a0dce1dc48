//! Singular values of a low-rank product, in f64, and the largest ones of any matrix.
//!
//! `B A` (out, in) of rank r is never computed: with `B = Qb Rb` and `Aᵀ = Qa Ra` its singular values are those of the
//! small `Rb Raᵀ` (r, r), and its singular vectors are theirs, multiplied by Qb and Qa. The small one is decomposed by
//! one-sided Jacobi rotations (Hestenes 1958; Golub and Van Loan, 8.6.3), which are accurate to the last digits also
//! for small values. At r of 128 it takes some 10^8 operations, so no linear algebra library is needed.
//!
//! The largest r of any matrix M are found by randomised subspace iteration (Halko, Martinsson and Tropp 2011,
//! arXiv:0909.4061, algorithm 4.4): Q spans `M (MᵀM)^6 Ω` for r + 16 random columns Ω, and `M ~ Q (QᵀM)`. For noise, the
//! flattest spectrum that there is, that holds about 97 % of what the best r hold.

use candle_core::{DType, Device, Result, Tensor};

use crate::rng::Rng;

/// A matrix by its columns.
pub type Columns = Vec<Vec<f64>>;

/// `B A = U diag(s) Vᵀ`, the largest first.
#[derive(Debug)]
pub struct Svd {
    /// r columns of `out` numbers; a column of zeros for a value of 0.
    pub u: Columns,
    pub s: Vec<f64>,
    /// r columns of `in` numbers; a column of zeros for a value of 0.
    pub v: Columns,
}

/// Random columns besides those that are wanted.
const OVERSAMPLING: usize = 16;

/// Multiplications of the random columns by `M Mᵀ`.
const ITERATIONS: usize = 6;

/// Maximum number of sweeps over every pair of columns. Ten are usual.
const SWEEPS: usize = 60;

/// Decomposes the matrix (out, in), f32, approximately: at most `rank` largest singular values.
pub fn leading(matrix: &Tensor, rank: usize, rng: &mut Rng) -> Result<Svd> {
    let (rows, columns) = matrix.dims2()?;
    let count = (rank + OVERSAMPLING).min(rows).min(columns);
    let transposed = matrix.t()?;
    let random = Tensor::from_vec(rng.randn(columns * count), (columns, count), matrix.device())?;
    let mut q = basis(&matrix.matmul(&random)?)?;
    for _ in 0..ITERATIONS {
        let on = to_device(&q, matrix)?;
        q = basis(&matrix.matmul(&transposed.matmul(&on)?)?)?;
    }
    let a = to_columns(&transposed.matmul(&to_device(&q, matrix)?)?)?; // rows of QᵀM
    let Svd { mut u, mut s, mut v } = of_product(&q, &a);
    u.truncate(rank);
    s.truncate(rank);
    v.truncate(rank);
    Ok(Svd { u, s, v })
}

/// Returns an orthonormal basis of a tensor's columns.
fn basis(tensor: &Tensor) -> Result<Columns> {
    Ok(qr(&to_columns(tensor)?).0)
}

fn to_columns(tensor: &Tensor) -> Result<Columns> {
    tensor.t()?.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec2()
}

/// Returns columns as a tensor in f32, where `like` is.
fn to_device(columns: &[Vec<f64>], like: &Tensor) -> Result<Tensor> {
    let length = columns.first().map_or(0, Vec::len);
    let numbers: Vec<f32> = columns.iter().flatten().map(|x| *x as f32).collect();
    let rows = Tensor::from_vec(numbers, (columns.len(), length), like.device())?;
    rows.t()?.contiguous()
}

/// Decomposes the product of B, given by its columns, and A, given by its rows.
pub fn of_product(b: &[Vec<f64>], a: &[Vec<f64>]) -> Svd {
    let (qb, rb) = qr(b);
    let (qa, ra) = qr(a);
    let rank = b.len();
    // Column j of Rb Raᵀ is the sum of the columns k of Rb, each times Ra[j][k]; both are upper triangular.
    let mut u: Columns = (0..rank)
        .map(|j| {
            (0..rank)
                .map(|i| (i.max(j)..rank).map(|k| rb[k][i] * ra[k][j]).sum())
                .collect()
        })
        .collect();
    let mut v: Columns = (0..rank)
        .map(|j| (0..rank).map(|i| f64::from(i == j)).collect())
        .collect();
    jacobi(&mut u, &mut v);
    let mut order: Vec<(f64, usize)> = u.iter().map(|column| dot(column, column).sqrt()).zip(0..).collect();
    order.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    let unit = |column: &[f64], s: f64| {
        column
            .iter()
            .map(|x| if s > 0.0 { x / s } else { 0.0 })
            .collect::<Vec<_>>()
    };
    Svd {
        u: order.iter().map(|(s, j)| turn(&qb, &unit(&u[*j], *s))).collect(),
        v: order
            .iter()
            .map(|(s, j)| turn(&qa, &unit(&v[*j], f64::from(*s > 0.0))))
            .collect(),
        s: order.iter().map(|(s, _)| *s).collect(),
    }
}

/// Rotates the columns of `u` until every two are orthogonal, and those of `v` along: `u vᵀ` is invariant.
fn jacobi(u: &mut Columns, v: &mut Columns) {
    for _ in 0..SWEEPS {
        let mut still = true;
        for p in 0..u.len() {
            for q in p + 1..u.len() {
                let (alpha, beta, gamma) = (dot(&u[p], &u[p]), dot(&u[q], &u[q]), dot(&u[p], &u[q]));
                if gamma.abs() <= f64::EPSILON * (alpha * beta).sqrt() || gamma.abs() < f64::MIN_POSITIVE {
                    continue;
                }
                still = false;
                let zeta = (beta - alpha) / (2.0 * gamma);
                let t = zeta.signum() / (zeta.abs() + zeta.hypot(1.0));
                let c = 1.0 / t.hypot(1.0);
                rotate(u, p, q, c, c * t);
                rotate(v, p, q, c, c * t);
            }
        }
        if still {
            return;
        }
    }
}

fn rotate(columns: &mut Columns, p: usize, q: usize, c: f64, s: f64) {
    let (before, after) = columns.split_at_mut(q); // p < q
    for (x, y) in before[p].iter_mut().zip(&mut after[0]) {
        (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
    }
}

/// Decomposes columns as `Q R`: orthonormal ones, or zeros for a column that depends on previous ones, and the columns
/// of the upper triangular R. Gram-Schmidt, done twice, which is enough.
fn qr(columns: &[Vec<f64>]) -> (Columns, Columns) {
    let rank = columns.len();
    let (mut q, mut r) = (Columns::new(), Columns::new());
    for column in columns {
        let (mut rest, mut entries) = (column.clone(), vec![0.0; rank]);
        let length = dot(column, column).sqrt();
        for _ in 0..2 {
            for (i, unit) in q.iter().enumerate() {
                let part = dot(unit, &rest);
                entries[i] += part;
                rest.iter_mut().zip(unit).for_each(|(x, y)| *x -= part * y);
            }
        }
        let left = dot(&rest, &rest).sqrt();
        let depends = left <= 1e-14 * length || left == 0.0;
        entries[q.len()] = if depends { 0.0 } else { left };
        q.push(rest.iter().map(|x| if depends { 0.0 } else { x / left }).collect());
        r.push(entries);
    }
    (q, r)
}

/// Returns Q times a vector.
fn turn(q: &[Vec<f64>], x: &[f64]) -> Vec<f64> {
    let mut y = vec![0.0; q.first().map_or(0, Vec::len)];
    for (column, x) in q.iter().zip(x) {
        y.iter_mut().zip(column).for_each(|(y, q)| *y += x * q);
    }
    y
}

/// Dot product in eight independent sums, which the compiler vectorises.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sums = [0.0; 8];
    for (a, b) in a.iter().zip(b) {
        for ((sum, x), y) in sums.iter_mut().zip(a).zip(b) {
            *sum += x * y;
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    sums.iter().sum::<f64>() + rest
}
