//! Seeded random numbers, equal to those of torch's CPU generator: `Rng::new(s)` and
//! `torch.Generator("cpu").manual_seed(s)` return the same for the same calls in the same order.
//!
//! The algorithms of torch:
//!
//! * the engine is MT19937 (Matsumoto and Nishimura 1998), seeded with the low 32 bits of the seed;
//! * `rand` keeps 24 bits of one draw: u = (x mod 2^24) / 2^24;
//! * `randint` is low + x mod (high - low), with x of 32 bits, or of 64 where the range reaches 2^28;
//! * `randperm` is Fisher-Yates from the front, each step a draw modulo the remaining count (from n = 2^32 / 20 on, torch
//!   takes another variant, which is not implemented: no data set is that large);
//! * `randn` is Box-Muller. From 16 numbers on: z = sqrt(-2 ln(1-u)) (cos 2 pi v, sin 2 pi v) in f32, u and v being the
//!   halves of a block of 16 uniforms. Below 16: in f64, one number at a time, the sine's half being kept in the
//!   generator for the next short call.
//!
//! Accuracy: every integer and every uniform bit for bit. Normals too, bit for bit, for torch 2.15 on x86-64 with AVX2,
//! whose f32 logarithm, sine and cosine (the polynomials of Cephes by S. Moshier) are reproduced rounding by rounding.
//! On other processors torch calls the C library there and differs from itself by up to 3e-6; this file gives the AVX2
//! numbers everywhere. Short calls depend on the system's f64 `log1p`, `sin`, `cos`: to the last digit of an f32, in
//! practice exact.
//!
//! In older releases of torch `randint` takes 32 bits up to 2^32, which training never reaches.
//!
//! ```
//! use vtrain::rng::Rng;
//!
//! // g = torch.Generator("cpu").manual_seed(0)
//! let mut rng = Rng::new(0);
//! let uniform = rng.rand(3); // torch.rand(3, generator=g): tensor([0.4963, 0.7682, 0.0885])
//! for (drawn, torchs) in uniform.iter().zip([0.4963, 0.7682, 0.0885]) {
//!     assert!((drawn - torchs).abs() < 1e-4);
//! }
//! assert_eq!(rng.randperm(5), [0, 4, 2, 1, 3]); // torch.randperm(5, generator=g)
//! ```

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// A stream of random numbers, which only draws advance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "State", try_from = "State")]
pub struct Rng {
    engine: Engine,
    /// Unused second half of the last scalar Box-Muller pair.
    spare_normal: Option<f64>,
}

impl Rng {
    /// `torch.Generator("cpu").manual_seed(seed)`: only the low 32 bits of the seed count.
    pub fn new(seed: u64) -> Rng {
        Rng {
            engine: Engine::new(seed as u32),
            spare_normal: None,
        }
    }

    /// `torch.randn(n)`: standard normals in f32. Two calls of `randn(8)` differ from one of `randn(16)`.
    pub fn randn(&mut self, n: usize) -> Vec<f32> {
        if n < BLOCK {
            return (0..n).map(|_| self.scalar_normal() as f32).collect();
        }
        let mut values = self.rand(n);
        normals_from_uniforms(&mut values);
        if !n.is_multiple_of(BLOCK) {
            // The last 16 numbers are redrawn, which overwrites a part of the last whole block.
            let mut tail = self.rand(BLOCK);
            normals_from_uniforms(&mut tail);
            values[n - BLOCK..].copy_from_slice(&tail);
        }
        values
    }

    /// `torch.rand(n)`: uniform in [0, 1), multiples of 2^-24.
    pub fn rand(&mut self, n: usize) -> Vec<f32> {
        const MASK: u32 = (1 << 24) - 1;
        const SCALE: f32 = 1.0 / (1 << 24) as f32;
        (0..n).map(|_| (self.engine.next_u32() & MASK) as f32 * SCALE).collect()
    }

    /// `torch.empty(n).uniform_(low, high)`, which rounds once.
    pub fn uniform(&mut self, low: f64, high: f64, n: usize) -> Vec<f32> {
        let (low, high) = (low as f32, high as f32);
        self.rand(n).into_iter().map(|u| u.mul_add(high - low, low)).collect()
    }

    /// `torch.rand(1, dtype=torch.float64).item()`: one uniform in [0, 1), a multiple of 2^-53.
    pub fn rand_one(&mut self) -> f64 {
        const MASK: u64 = (1 << 53) - 1;
        const SCALE: f64 = 1.0 / (1u64 << 53) as f64;
        (self.engine.next_u64() & MASK) as f64 * SCALE
    }

    /// `torch.randint(low, high, (n,))`: integers in low..high.
    ///
    /// # Panics
    /// When the range is empty.
    pub fn randint(&mut self, low: i64, high: i64, n: usize) -> Vec<i64> {
        assert!(low < high, "randint: the range {low}..{high} is empty");
        let range = high.wrapping_sub(low) as u64; // wraps to the right distance even over i64's width
        let wide = range >= WIDE_RANGE;
        (0..n)
            .map(|_| {
                let draw = self.engine.draw(wide);
                low.wrapping_add((draw % range) as i64)
            })
            .collect()
    }

    /// `torch.randperm(n)`: the numbers 0..n in random order. From 2^32 / 20 on, torch draws differently.
    pub fn randperm(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in 0..n.saturating_sub(1) {
            let left = (n - i) as u64;
            order.swap(i, i + (self.engine.draw(false) % left) as usize);
        }
        order
    }

    /// Returns the state of the stream for a checkpoint. `Rng` itself serialises as this.
    pub fn state(&self) -> State {
        State {
            words: self.engine.words.to_vec(),
            next: self.engine.next,
            spare_normal_bits: self.spare_normal.map(f64::to_bits),
        }
    }

    /// Stream with this state; fails for an impossible state.
    pub fn from_state(state: State) -> Result<Rng, BadState> {
        let found = state.words.len();
        let words = state.words.try_into().map_err(|_| BadState::Words(found))?;
        if state.next > N {
            return Err(BadState::Position(state.next));
        }
        let engine = Engine {
            words,
            next: state.next,
        };
        Ok(Rng {
            engine,
            spare_normal: state.spare_normal_bits.map(f64::from_bits),
        })
    }

    /// Draws one normal by Box-Muller in f64: the cosine's now, the sine's at the next call.
    fn scalar_normal(&mut self) -> f64 {
        if let Some(spare) = self.spare_normal.take() {
            return spare;
        }
        let turn = self.rand_one();
        let radius = (-2.0 * (-self.rand_one()).ln_1p()).sqrt();
        let theta = 2.0 * PI * turn;
        self.spare_normal = Some(radius * theta.sin());
        radius * theta.cos()
    }
}

/// State of a stream as plain numbers. The pending normal is stored as its bits, because decimal text would not restore
/// it exactly.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    words: Vec<u32>,
    next: usize,
    spare_normal_bits: Option<u64>,
}

/// Problems of a [`State`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BadState {
    /// The engine has another number of words than MT19937's 624.
    Words(usize),
    /// The index of the next word is beyond the last.
    Position(usize),
}

impl std::fmt::Display for BadState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BadState::Words(found) => {
                write!(f, "a random generator's state needs {N} words, found {found}")
            }
            BadState::Position(found) => {
                write!(f, "a random generator's position is at most {N}, found {found}")
            }
        }
    }
}

impl std::error::Error for BadState {}

impl From<Rng> for State {
    fn from(rng: Rng) -> State {
        rng.state()
    }
}

impl TryFrom<State> for Rng {
    type Error = BadState;
    fn try_from(state: State) -> Result<Rng, BadState> {
        Rng::from_state(state)
    }
}

/// Ranges from here on take 64 bits per draw.
const WIDE_RANGE: u64 = 1 << 28;

/// Number of words in MT19937's state, and the offset of the recurrence.
const N: usize = 624;
const M: usize = 397;

/// MT19937: x[k+N] = x[k+M] ^ twist(x[k], x[k+1]), returned after tempering.
#[derive(Clone, Debug, PartialEq)]
struct Engine {
    words: [u32; N],
    /// Index of the next word; N once all are used.
    next: usize,
}

impl Engine {
    fn new(seed: u32) -> Engine {
        let mut words = [seed; N];
        for i in 1..N {
            let before = words[i - 1] ^ (words[i - 1] >> 30);
            words[i] = before.wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        Engine { words, next: N }
    }

    fn next_u32(&mut self) -> u32 {
        if self.next == N {
            self.refill();
        }
        let mut y = self.words[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// Joins two draws, the first in the high bits.
    fn next_u64(&mut self) -> u64 {
        let high = self.next_u32();
        u64::from(high) << 32 | u64::from(self.next_u32())
    }

    fn draw(&mut self, wide: bool) -> u64 {
        if wide { self.next_u64() } else { self.next_u32().into() }
    }

    fn refill(&mut self) {
        let twist = |upper: u32, lower: u32| {
            let joined = (upper & 0x8000_0000) | (lower & 0x7fff_ffff);
            (joined >> 1) ^ ((lower & 1) * 0x9908_b0df)
        };
        let x = &mut self.words;
        for k in 0..N - M {
            x[k] = x[k + M] ^ twist(x[k], x[k + 1]);
        }
        for k in N - M..N - 1 {
            x[k] = x[k + M - N] ^ twist(x[k], x[k + 1]);
        }
        x[N - 1] = x[M - 1] ^ twist(x[N - 1], x[0]);
        self.next = 0;
    }
}

/// Numbers that Box-Muller converts together: 8 radii, then their 8 angles.
const BLOCK: usize = 16;

/// Converts each whole block of uniforms to normals in place; a shorter rest is left unchanged.
fn normals_from_uniforms(values: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: both features were just detected.
        return unsafe { normals_from_uniforms_avx2(values) };
    }
    normals_from_uniforms_plain(values);
}

/// Same function, compiled for wide registers: the fused steps of `ln` and `sin_cos` become instructions, eight at a
/// time, where `mul_add` otherwise calls the C library.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn normals_from_uniforms_avx2(values: &mut [f32]) {
    normals_from_uniforms_plain(values);
}

#[inline(always)]
fn normals_from_uniforms_plain(values: &mut [f32]) {
    for block in values.as_chunks_mut::<BLOCK>().0 {
        for i in 0..BLOCK / 2 {
            let radius = (-2.0 * ln(1.0 - block[i])).sqrt(); // 1 - u is never 0
            let (sin, cos) = sin_cos(2.0 * std::f32::consts::PI * block[i + BLOCK / 2]);
            block[i] = radius * cos;
            block[i + BLOCK / 2] = radius * sin;
        }
    }
}

// Coefficients of the three polynomials from Cephes (logf.c and sinf.c), as written there. The choice of fused products
// is that of torch's compiler.

/// Returns ln x for normal x > 0: x = 2^e m with m in [sqrt(1/2), sqrt(2)), then ln m = t - t^2/2 + t^3 p(t) with
/// t = m - 1, and e ln 2 added in two parts, small then large.
#[inline(always)]
#[allow(clippy::excessive_precision)]
fn ln(x: f32) -> f32 {
    const P: [f32; 8] = [
        -1.1514610310e-1,
        1.1676998740e-1,
        -1.2420140846e-1,
        1.4249322787e-1,
        -1.6668057665e-1,
        2.0000714765e-1,
        -2.4999993993e-1,
        3.3333331174e-1,
    ];
    let bits = x.to_bits();
    let half = f32::from_bits((bits & 0x007f_ffff) | 0x3f00_0000); // the mantissa, in [1/2, 1)
    let low = half < std::f32::consts::FRAC_1_SQRT_2;
    let e = (bits >> 23) as i32 - 126 - i32::from(low);
    let e = e as f32;
    let t = (half - 1.0) + if low { half } else { 0.0 };
    let z = t * t;
    let p = P.iter().fold(7.0376836292e-2f32, |p, &c| p.mul_add(t, c)) * t;
    let y = p.mul_add(z, e * -2.12194440e-4);
    let y = (-0.5f32).mul_add(z, y);
    e.mul_add(0.693359375, t + y)
}

/// Returns (sin x, cos x) for x >= 0: subtracts the multiple of pi/2 nearest to x in three parts, evaluates both
/// polynomials on the rest, and selects them and their signs by the octant.
#[inline(always)]
#[allow(clippy::excessive_precision)]
fn sin_cos(x: f32) -> (f32, f32) {
    let octant = ((x * (4.0 / std::f32::consts::PI)) as i32 + 1) & !1;
    let turns = octant as f32;
    let r = turns.mul_add(-0.78515625, x);
    let r = turns.mul_add(-2.4187564849853515625e-4, r);
    let r = turns.mul_add(-3.77489497744594108e-8, r);
    let z = r * r;

    let c = 2.443315711809948e-5f32.mul_add(z, -1.388731625493765e-3);
    let c = c.mul_add(z, 4.166664568298827e-2) * z;
    let cos = c.mul_add(z, -(0.5 * z)) + 1.0;

    let s = (-1.9515295891e-4f32).mul_add(z, 8.3321608736e-3);
    let s = s.mul_add(z, -1.6666654611e-1) * z;
    let sin = s.mul_add(r, r);

    let (sin, cos) = if octant & 2 == 0 { (sin, cos) } else { (cos, sin) };
    let sin_negative = octant & 4 != 0;
    let cos_negative = (octant + 2) & 4 != 0;
    (
        if sin_negative { -sin } else { sin },
        if cos_negative { -cos } else { cos },
    )
}
