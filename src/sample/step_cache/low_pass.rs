//! Slow part of pictures: their frequencies (u, v) with u^2 + v^2 <= r^2, where r is a fifth of the shorter side, rounded down.
//!
//! The slow part of a picture X (H, W) is Re sum over those of e(uy/H + vx/W) F(u, v) / HW, with F(u, v) = sum of
//! X(y, x) e(-uy/H - vx/W) and e(a) = exp(2 pi i a). Only 2r + 1 rows and columns of F are needed, so that matrices of cosines and sines do it.

use std::f64::consts::TAU;

use candle_core::{DType, Device, Result, Tensor};

/// Sides of pictures by which r goes into the shorter one.
const SHARE: usize = 5;

/// Cosines and sines of the frequencies -r..=r along a side of n, (2r + 1, n) each.
fn waves(side: usize, radius: i64, device: &Device) -> Result<[Tensor; 2]> {
    let angles = (-radius..=radius).flat_map(|u| (0..side).map(move |y| TAU * u as f64 * y as f64 / side as f64));
    let angles: Vec<f64> = angles.collect();
    let shape = (2 * radius as usize + 1, side);
    let of = |wave: fn(f64) -> f64| {
        let numbers: Vec<f32> = angles.iter().map(|angle| wave(*angle) as f32).collect();
        Tensor::from_vec(numbers, shape, device)
    };
    Ok([of(f64::cos)?, of(f64::sin)?])
}

/// Returns the slow part of pictures (..., H, W), in f32.
pub(super) fn low_pass(pictures: &Tensor) -> Result<Tensor> {
    let dims = pictures.dims();
    let (height, width) = (dims[dims.len() - 2], dims[dims.len() - 1]);
    let device = pictures.device();
    let radius = (height.min(width) / SHARE) as i64;
    let x = pictures.to_dtype(DType::F32)?.reshape(((), height, width))?;
    let [cos_y, sin_y] = waves(height, radius, device)?; // (R, H)
    let [cos_x, sin_x] = waves(width, radius, device)?; // (R, W)
    let [cos_yt, sin_yt, cos_xt, sin_xt] = [cos_y.t()?, sin_y.t()?, cos_x.t()?, sin_x.t()?];
    let (p, q) = (cos_y.broadcast_matmul(&x)?, sin_y.broadcast_matmul(&x)?); // (n, R, W)
    let disc = disc(radius, height, width, device)?; // (R, R)
    let along = |y: &Tensor, wave: &Tensor| y.broadcast_matmul(wave);
    let real = (along(&p, &cos_xt)? - along(&q, &sin_xt)?)?.broadcast_mul(&disc)?; // (n, R, R)
    let imaginary = (along(&p, &sin_xt)? + along(&q, &cos_xt)?)?
        .neg()?
        .broadcast_mul(&disc)?;
    let u = (cos_yt.broadcast_matmul(&real)? - sin_yt.broadcast_matmul(&imaginary)?)?; // (n, H, R)
    let v = (cos_yt.broadcast_matmul(&imaginary)? + sin_yt.broadcast_matmul(&real)?)?;
    (along(&u, &cos_x)? - along(&v, &sin_x)?)?.reshape(dims)
}

/// 1 / HW for the frequencies within the radius, and 0: (2r + 1, 2r + 1)
fn disc(radius: i64, height: usize, width: usize, device: &Device) -> Result<Tensor> {
    let side = -radius..=radius;
    let share = 1.0 / (height * width) as f32;
    let inside = |u: i64, v: i64| if u * u + v * v <= radius * radius { share } else { 0.0 };
    let numbers: Vec<f32> = side
        .clone()
        .flat_map(|u| side.clone().map(move |v| inside(u, v)))
        .collect();
    let count = 2 * radius as usize + 1;
    Tensor::from_vec(numbers, (count, count), device)
}
