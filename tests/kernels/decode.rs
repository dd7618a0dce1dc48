//! decode.cu against the decoders of the CPU, bit for bit.

use candle_core::{DType, Device, Tensor};
use half::bf16;
use safetensors::tensor::{Dtype, SafeTensors, View};
use vtrain::nn::storage::bitsandbytes_4bit::{self, FourBitCode};
use vtrain::nn::storage::ggml::{self, GgmlType};
use vtrain::nn::storage::{Decode, Stored, bitsandbytes_int8, float8, torchao};
use vtrain::ops::kernel::Address;
use vtrain::ops::stored::StoredMatrix;
use vtrain::rng::Rng;

use super::card::{Card, Lent};
use super::exact::BOTH;

/// Matrix of normal numbers.
fn drawn(shape: (usize, usize), seed: u64) -> Tensor {
    let numbers = Rng::new(seed).randn(shape.0 * shape.1);
    Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
}

/// Decodes all rows, and ranges of numbers that begin and end anywhere or at packs, for blocks that allow it.
fn check<F: Decode + 'static>(card: &Card, stored: Stored<F>, block: usize) {
    let (rows, columns) = stored.shape();
    let all = rows * columns;
    let format = stored.format();
    let form = format.kernel_form();
    let mut ranges = vec![[0, all]];
    if block == 1 {
        ranges.extend([[3.min(all), all - 3.min(all)], [8.min(all), (all - 8.min(all)) / 8 * 8]]);
    } else {
        ranges.push([block, all - block]);
    }
    for dtype in BOTH {
        for [first, count] in ranges.iter().copied().filter(|[_, count]| *count > 0) {
            let what = format!("{} {:?} from {first} on, {dtype:?}", format.name(), (rows, columns));
            let mut expected = vec![0.0; count];
            format.decode(first, &mut expected);
            let rounded = |number: f32| match dtype {
                DType::BF16 => bf16::from_f32(number).to_f32(),
                _ => number,
            };
            let expected: Vec<u64> = expected
                .into_iter()
                .map(|number| f64::from(rounded(number)).to_bits())
                .collect();
            card.each_way(
                &what,
                |run| {
                    let part = |bytes: &Vec<u8>| {
                        let numbers: Vec<f64> = bytes.iter().map(|byte| f64::from(*byte)).collect();
                        run.own(&numbers, DType::U8)
                    };
                    let parts: Vec<Option<Lent>> = form.parts.iter().map(|bytes| bytes.as_ref().map(part)).collect();
                    let addresses: Vec<Address> = parts.iter().map(|part| part.as_ref().map_or(0, Lent::at)).collect();
                    let y = run.room(count, dtype);
                    run.launch(form.launch(&addresses, y.at(), [first, count], dtype));
                    [y.numbers()]
                },
                |[y]| {
                    let found: Vec<u64> = y.iter().map(|number| number.to_bits()).collect();
                    let at = found
                        .iter()
                        .zip(&expected)
                        .position(|(found, expected)| found != expected);
                    assert_eq!(
                        at,
                        None,
                        "{what}: {} where {:?}",
                        y[at.unwrap_or(0)],
                        expected[at.unwrap_or(0)]
                    );
                },
            );
        }
    }
}

/// Shapes whose rows are whole packs, and others.
const SHAPES: [(usize, usize); 3] = [(5, 64), (3, 7), (4, 12)];

pub fn bytes(card: &Card) {
    for (seed, shape) in (0..).zip(SHAPES) {
        let dense = drawn(shape, seed);
        check(card, float8::quantize(&dense, &Device::Cpu).unwrap(), 1);
        check(card, torchao::quantize_float8(&dense, &Device::Cpu).unwrap(), 1);
        check(card, torchao::quantize_int8(&dense, &Device::Cpu).unwrap(), 1);
        check(card, bitsandbytes_int8::quantize(&dense, &Device::Cpu).unwrap(), 1);
    }
    // Scales for parts of rows, with codes of 0.
    let shape = (4, 32);
    let codes: Vec<u8> = (0..128).map(|i| (i * 37 % 256) as u8).collect();
    let scales: Vec<u8> = (1..=16).flat_map(|i| (i as f32 * 0.3).to_le_bytes()).collect();
    let zeros: Vec<u8> = (0..16).map(|i| (i * 29) as u8).collect();
    let file = safetensors::serialize(
        [
            ("_weight_qdata", part(Dtype::I8, vec![4, 32], codes)),
            ("_weight_scale", part(Dtype::F32, vec![4, 4], scales)),
            ("_weight_zero_point", part(Dtype::I8, vec![4, 4], zeros)),
        ],
        None,
    );
    let file = file.unwrap();
    let parts = SafeTensors::deserialize(&file).unwrap();
    check(
        card,
        torchao::read_int8(&parts, "weight", shape, &Device::Cpu).unwrap(),
        1,
    );
}

fn part(dtype: Dtype, shape: Vec<usize>, bytes: Vec<u8>) -> impl View {
    let bytes: &'static [u8] = bytes.leak();
    safetensors::tensor::TensorView::new(dtype, shape, bytes).unwrap()
}

pub fn four_bit(card: &Card) {
    for (seed, shape) in (0..).zip([(5, 64), (3, 7), (40, 512)]) {
        let dense = drawn(shape, seed);
        for code in [FourBitCode::Nf4, FourBitCode::Fp4] {
            for nested in [false, true] {
                let stored = bitsandbytes_4bit::quantize(&dense, code, nested, &Device::Cpu);
                check(card, stored.unwrap(), 1);
            }
        }
    }
}

pub fn ggml(card: &Card) {
    for (seed, kind) in (0..).zip(GgmlType::ALL) {
        let dense = drawn((3, 512), seed);
        check(card, ggml::quantize(&dense, kind, &Device::Cpu).unwrap(), kind.block());
        // Any bytes are codes: scales that rows of normal numbers do not have, f16 below its smallest normal number.
        if kind.block() > 1 {
            let mut random = Rng::new(seed + 100);
            let bytes = random
                .randn(kind.bytes(1024).unwrap())
                .into_iter()
                .map(|x| (x * 1e4) as i32 as u8);
            let bytes: Vec<u8> = bytes.map(|byte| if byte & 0x7c == 0x7c { 3 } else { byte }).collect();
            check(
                card,
                ggml::matrix("any", kind, bytes, (2, 512), &Device::Cpu).unwrap(),
                kind.block(),
            );
        }
    }
    let odd = drawn((3, 7), 9);
    for kind in [GgmlType::F32, GgmlType::F16, GgmlType::BF16] {
        check(card, ggml::quantize(&odd, kind, &Device::Cpu).unwrap(), 1);
    }
}
