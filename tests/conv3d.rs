//! The 3D convolution against its definition, for every instruction set of this machine.

use candle_core::{DType, Device, Tensor};
use vtrain::nn::conv3d::{
    Border, Conv3d, Geometry, Input, Isa, Modulation, Resample, TemporalPadding, group_moments, moments_by_candle,
};

use super::cogvideox_vae::assert_near;

/// Numbers that look random, of about unit size.
fn noise(shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// One case: sizes of the input (B, F, H, W, C), output channels, and the geometry.
#[derive(Debug)]
struct Case {
    input: [usize; 5],
    outputs: usize,
    geometry: Geometry,
}

fn cases() -> Vec<Case> {
    let case = |input, outputs, kernel: [usize; 3], stride, pad_rows, pad_columns| Case {
        input,
        outputs,
        geometry: Geometry {
            kernel,
            stride,
            pad_rows,
            pad_columns,
            border: Border::Zeros,
        },
    };
    let mut cases = vec![
        case([1, 1, 1, 1, 1], 1, [1, 1, 1], 1, [0, 0], [0, 0]),
        case([2, 3, 5, 7, 3], 5, [3, 3, 3], 1, [1, 1], [1, 1]),
        case([1, 4, 6, 13, 17], 70, [3, 3, 3], 1, [1, 1], [1, 1]),
        case([1, 2, 9, 25, 40], 130, [3, 3, 3], 1, [1, 1], [1, 1]),
        case([1, 2, 4, 23, 16], 24, [3, 3, 3], 1, [1, 1], [1, 1]),
        case([2, 3, 5, 7, 20], 64, [1, 1, 1], 1, [0, 0], [0, 0]),
        case([1, 2, 9, 7, 6], 33, [1, 3, 3], 2, [0, 1], [0, 1]),
        case([1, 2, 8, 10, 6], 17, [1, 3, 3], 2, [0, 1], [0, 1]),
        case([1, 3, 7, 11, 200], 20, [2, 1, 3], 3, [0, 0], [1, 1]),
        case([1, 5, 3, 4, 2], 3, [3, 1, 1], 1, [0, 0], [0, 0]),
        // Frames in steps of about 2048 pixels: some frames at a time, and one.
        case([1, 9, 25, 40, 2], 4, [3, 3, 3], 1, [1, 1], [1, 1]),
        case([1, 5, 46, 45, 2], 3, [2, 3, 3], 1, [1, 1], [1, 1]),
        case([2, 3, 5, 7, 3], 5, [3, 3, 3], 1, [1, 1], [1, 1]),
        case([1, 4, 6, 13, 17], 70, [3, 3, 3], 2, [1, 1], [1, 1]),
        case([1, 2, 1, 2, 4], 9, [1, 3, 5], 1, [0, 2], [2, 3]),
    ];
    for case in cases.iter_mut().rev().take(3) {
        case.geometry.border = Border::Edge;
    }
    cases
}

/// The causal convolution by its definition.
fn by_definition(case: &Case, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Tensor {
    let [batch, frames, height, width, channels] = case.input;
    let [kt, kh, kw] = case.geometry.kernel;
    let (out_height, out_width) = case.geometry.output(height, width);
    let x: Vec<f32> = x.flatten_all().unwrap().to_vec1().unwrap();
    let weight: Vec<f32> = weight.flatten_all().unwrap().to_vec1().unwrap();
    let bias: Vec<f32> = bias.to_vec1().unwrap();
    let mut y = Vec::new();
    let inside = |at: usize, pad: usize, size: usize| match case.geometry.border {
        Border::Zeros => at.checked_sub(pad).filter(|&at| at < size),
        Border::Edge => Some(at.saturating_sub(pad).min(size - 1)),
    };
    for (b, f, h) in
        (0..batch * frames * out_height).map(|i| (i / out_height / frames, i / out_height % frames, i % out_height))
    {
        for (w, o) in (0..out_width * case.outputs).map(|i| (i / case.outputs, i % case.outputs)) {
            let mut sum = f64::from(bias[o]);
            for (dt, dy, dx) in (0..kt * kh * kw).map(|i| (i / kw / kh, i / kw % kh, i % kw)) {
                let frame = (f + dt).saturating_sub(kt - 1);
                let row = inside(h * case.geometry.stride + dy, case.geometry.pad_rows[0], height);
                let column = inside(w * case.geometry.stride + dx, case.geometry.pad_columns[0], width);
                let (Some(row), Some(column)) = (row, column) else {
                    continue;
                };
                for c in 0..channels {
                    let at = (((b * frames + frame) * height + row) * width + column) * channels + c;
                    let tap = (((o * channels + c) * kt + dt) * kh + dy) * kw + dx;
                    sum += f64::from(x[at]) * f64::from(weight[tap]);
                }
            }
            y.push(sum as f32);
        }
    }
    Tensor::from_vec(y, (batch, frames, out_height, out_width, case.outputs), &Device::Cpu).unwrap()
}

fn parameters(case: &Case) -> (Tensor, Tensor) {
    let [kt, kh, kw] = case.geometry.kernel;
    let weight = noise(&[case.outputs, case.input[4], kt, kh, kw], 2);
    (weight, noise(&[case.outputs], 3))
}

#[test]
fn a_convolution_is_what_its_definition_says_with_whatever_vectors() {
    for case in cases() {
        let x = noise(&case.input, 1);
        let (weight, bias) = parameters(&case);
        let expected = by_definition(&case, &x, &weight, &bias);
        for isa in Isa::available() {
            let conv = Conv3d::direct(&weight, &bias, case.geometry, isa).unwrap();
            let (y, past) = conv.forward((&x).into()).unwrap();
            assert_near(&y, &expected, 1e-6);
            assert_eq!(past.is_some(), case.geometry.kernel[0] > 1);
            let onto = noise(
                expected
                    .dims()
                    .try_into()
                    .map(|dims: [usize; 5]| dims)
                    .unwrap()
                    .as_slice(),
                4,
            );
            let sum = (&onto + &expected).unwrap();
            assert_near(&conv.forward_onto(onto, (&x).into()).unwrap().0, &sum, 1e-6);
        }
        let conv = Conv3d::by_candle(&weight, &bias, case.geometry).unwrap();
        assert_near(&conv.forward((&x).into()).unwrap().0, &expected, 1e-6);
    }
}

#[test]
fn a_clip_in_pieces_is_convolved_as_the_whole_clip() {
    let case = &cases()[2];
    let x = noise(&case.input, 1);
    let (weight, bias) = parameters(case);
    for conv in [
        Conv3d::direct(&weight, &bias, case.geometry, Isa::detect()).unwrap(),
        Conv3d::by_candle(&weight, &bias, case.geometry).unwrap(),
    ] {
        let whole = conv.forward((&x).into()).unwrap().0;
        let mut past = None;
        let mut pieces = Vec::new();
        for (first, count) in [(0, 1), (1, 2), (3, 1)] {
            let piece = x.narrow(1, first, count).unwrap();
            let input = Input {
                past: past.as_ref().map_or(TemporalPadding::First, TemporalPadding::Frames),
                ..(&piece).into()
            };
            let (y, new_past) = conv.forward(input).unwrap();
            pieces.push(y);
            past = new_past;
        }
        assert_near(&Tensor::cat(&pieces, 1).unwrap(), &whole, 1e-6);
    }
}

#[test]
fn before_the_first_frame_lie_zeros_where_that_is_asked_for() {
    for case in &cases() {
        let x = noise(&case.input, 1);
        let (weight, bias) = parameters(case);
        let [batch, _, height, width, channels] = case.input;
        let reach = case.geometry.kernel[0] - 1;
        let zeros = Tensor::zeros((batch, reach, height, width, channels), DType::F32, &Device::Cpu).unwrap();
        let mut answers = Vec::new();
        for conv in [
            Conv3d::direct(&weight, &bias, case.geometry, Isa::detect()).unwrap(),
            Conv3d::by_candle(&weight, &bias, case.geometry).unwrap(),
        ] {
            for past in [TemporalPadding::Zeros, TemporalPadding::Frames(&zeros)] {
                if reach > 0 || matches!(past, TemporalPadding::Zeros) {
                    let input = Input { past, ..(&x).into() };
                    answers.push(conv.forward(input).unwrap());
                }
            }
        }
        for (y, past) in &answers[1..] {
            assert_near(y, &answers[0].0, 1e-6);
            if let (Some(past), Some(first)) = (past, &answers[0].1) {
                assert_near(past, first, 0.0);
            }
        }
    }
}

/// x with its last frame once more.
fn with_last_again(x: &Tensor) -> Tensor {
    let last = x.narrow(1, x.dim(1).unwrap() - 1, 1).unwrap();
    Tensor::cat(&[x, &last], 1).unwrap()
}

#[test]
fn a_centred_convolution_is_the_causal_one_a_frame_later() {
    for case in cases().iter().filter(|case| case.geometry.kernel[0] == 3) {
        let x = noise(&case.input, 1);
        let (weight, bias) = parameters(case);
        for conv in [
            Conv3d::direct(&weight, &bias, case.geometry, Isa::detect()).unwrap(),
            Conv3d::by_candle(&weight, &bias, case.geometry).unwrap(),
        ] {
            let later = conv.forward((&with_last_again(&x)).into()).unwrap().0;
            let input = Input {
                past: TemporalPadding::Centred,
                ..(&x).into()
            };
            let (y, past) = conv.forward(input).unwrap();
            assert_near(&y, &later.narrow(1, 1, case.input[1]).unwrap(), 1e-6);
            assert!(past.is_none(), "there is no going on from there");
        }
    }
}

#[test]
fn zeros_around_a_clip_are_frames_of_zeros_at_its_ends() {
    for case in cases().iter().filter(|case| case.geometry.kernel[0] == 3) {
        let x = noise(&case.input, 1);
        let (weight, bias) = parameters(case);
        for conv in [
            Conv3d::direct(&weight, &bias, case.geometry, Isa::detect()).unwrap(),
            Conv3d::by_candle(&weight, &bias, case.geometry).unwrap(),
        ] {
            let with_past = |x: &Tensor, past| conv.forward(Input { past, ..x.into() }).unwrap();
            let longer = x.pad_with_zeros(1, 0, 1).unwrap();
            let later = with_past(&longer, TemporalPadding::Zeros).0;
            let (y, past) = with_past(&x, TemporalPadding::ZerosAround);
            assert_near(&y, &later.narrow(1, 1, case.input[1]).unwrap(), 1e-6);
            assert!(past.is_none(), "there is no going on from there");
        }
    }
}

#[test]
fn a_stride_over_frames_leaves_out_what_lies_between() {
    for case in &cases() {
        let x = noise(&case.input, 1);
        let (weight, bias) = parameters(case);
        for conv in [
            Conv3d::direct(&weight, &bias, case.geometry, Isa::detect()).unwrap(),
            Conv3d::by_candle(&weight, &bias, case.geometry).unwrap(),
        ] {
            let (whole, past) = conv.forward((&x).into()).unwrap();
            for stride in [1, 2, 3] {
                let kept: Vec<u32> = (0..case.input[1] as u32).step_by(stride).collect();
                let kept = Tensor::new(kept, &Device::Cpu).unwrap();
                let (y, strided_past) = conv.clone().with_frame_stride(stride).forward((&x).into()).unwrap();
                assert_near(&y, &whole.index_select(&kept, 1).unwrap(), 1e-6);
                if let (Some(strided), Some(past)) = (strided_past, &past) {
                    assert_near(&strided, past, 0.0);
                }
            }
        }
    }
}

#[test]
fn modulation_and_resampling_on_the_way_in_are_what_they_are_in_tensors() {
    for (frames, table_frames) in [(1, 1), (2, 2), (4, 2), (3, 3), (5, 3), (9, 3), (4, 1), (5, 1)] {
        let (height, width) = if table_frames == 1 { (1, 1) } else { (2, 3) };
        let table = |seed| noise(&[2, table_frames, height, width, 5], seed);
        let modulation = Modulation {
            scale: table(5),
            shift: table(6),
            rms_eps: (frames % 2 == 1).then_some(1e-6),
        };
        for (resample, kernel, modulated) in [
            (Resample::None, [3, 3, 3], true),
            (Resample::HalveFrames, [1, 3, 3], false),
            (Resample::DoubleSize, [1, 3, 3], false),
            (Resample::DoubleSizeAndFrames, [1, 3, 3], false),
            (Resample::DoubleSizeAndLaterFrames, [3, 3, 3], false),
        ] {
            let case = Case {
                input: [2, frames, 4, 6, 5],
                outputs: 7,
                geometry: Geometry {
                    kernel,
                    stride: 1,
                    pad_rows: [1, 1],
                    pad_columns: [1, 1],
                    border: Border::Zeros,
                },
            };
            let x = noise(&case.input, 1);
            let (weight, bias) = parameters(&case);
            let input = Input {
                modulation: modulated.then_some(&modulation),
                resample,
                ..(&x).into()
            };
            let direct = Conv3d::direct(&weight, &bias, case.geometry, Isa::detect()).unwrap();
            let by_candle = Conv3d::by_candle(&weight, &bias, case.geometry).unwrap();
            let (a, a_past) = direct.forward(input).unwrap();
            let (b, b_past) = by_candle.forward(input).unwrap();
            assert_near(&a, &b, 1e-6);
            if let (Some(a), Some(b)) = (&a_past, &b_past) {
                assert_near(a, b, 1e-6);
            }
            // A frame at a time, and two.
            for together in [1, 2 * 7 * 8 * 12] {
                let (c, c_past) = by_candle.clone().with_most_together(together).forward(input).unwrap();
                assert_near(&c, &b, 1e-6);
                if let (Some(b), Some(c)) = (&b_past, &c_past) {
                    assert_near(c, b, 0.0);
                }
            }
        }
    }
}

/// Doubled by hand: the first frame stays one, and sees itself before it.
#[test]
fn a_clip_is_doubled_but_for_its_first_frame_before_a_causal_convolution() {
    let case = Case {
        input: [2, 3, 2, 3, 4],
        ..cases().remove(cases().len() - 3)
    };
    let x = noise(&case.input, 1);
    let chosen = |x: &Tensor, dim, places: &[u32]| x.index_select(&Tensor::new(places, &Device::Cpu).unwrap(), dim);
    let rows = chosen(&chosen(&x, 1, &[0, 1, 1, 2, 2]).unwrap(), 2, &[0, 0, 1, 1]).unwrap();
    let doubled = chosen(&rows, 3, &[0, 0, 1, 1, 2, 2]).unwrap();
    let large = Case {
        input: [2, 5, 4, 6, 4],
        ..case
    };
    let (weight, bias) = parameters(&large);
    let expected = by_definition(&large, &doubled, &weight, &bias);
    let input = Input {
        resample: Resample::DoubleSizeAndLaterFrames,
        ..(&x).into()
    };
    let conv = Conv3d::direct(&weight, &bias, large.geometry, Isa::detect()).unwrap();
    assert_near(&conv.forward(input).unwrap().0, &expected, 1e-6);
    let past = Tensor::zeros((2, 2, 4, 6, 4), DType::F32, &Device::Cpu).unwrap();
    let later = Input {
        past: TemporalPadding::Frames(&past),
        ..input
    };
    let said = conv.forward(later).unwrap_err().to_string();
    assert!(said.contains("cannot read"), "a later piece has no first frame: {said}");
}

#[test]
fn some_frames_at_a_time_are_convolved_as_all_at_once_and_added_in_place() {
    for case in &cases() {
        let x = noise(&case.input, 1);
        let (weight, bias) = parameters(case);
        let conv = Conv3d::by_candle(&weight, &bias, case.geometry).unwrap();
        let reach = case.geometry.kernel[0] - 1;
        let [batch, _, height, width, channels] = case.input;
        let before = noise(&[batch, reach.max(1), height, width, channels], 2);
        let centred = [TemporalPadding::Centred, TemporalPadding::ZerosAround];
        let centred = centred.into_iter().filter(|_| reach.is_multiple_of(2));
        let given = (reach > 0).then_some(TemporalPadding::Frames(&before));
        let paddings = [TemporalPadding::First, TemporalPadding::Zeros]
            .into_iter()
            .chain(centred)
            .chain(given);
        for (past, stride) in paddings.flat_map(|past| [(past, 1), (past, 2)]) {
            let conv = conv.clone().with_frame_stride(stride);
            let input = Input { past, ..(&x).into() };
            let (whole, whole_past) = conv.forward(input).unwrap();
            let onto = noise(whole.dims(), 4);
            let sum = (&onto + &whole).unwrap();
            let (y, past) = conv.with_most_together(1).forward_onto(onto, input).unwrap();
            assert_near(&y, &sum, 1e-6);
            assert_eq!(past.is_some(), whole_past.is_some());
            if let (Some(past), Some(whole)) = (past, whole_past) {
                assert_near(&past, &whole, 0.0);
            }
        }
    }
}

#[test]
fn moments_of_all_frames_are_those_of_some_at_a_time() {
    let x = (noise(&[2, 5, 3, 4, 6], 7) * noise(&[2, 5, 1, 1, 1], 8).broadcast_as((2, 5, 3, 4, 6)).unwrap()).unwrap();
    let (mean, variance) = group_moments(&x, 3).unwrap();
    for together in [0, 1, 2, 4, 5, 9] {
        let (some_mean, some_variance) = moments_by_candle(&x, 3, together).unwrap();
        assert_near(&some_mean, &mean, 1e-5);
        assert_near(&some_variance, &variance, 1e-5);
    }
}

/// Sums are taken over 256 pixels at a time, and these over 16 times as many.
#[test]
fn group_moments_hold_far_from_zero() {
    for [batch, frames, height, width] in [
        [2, 2, 7, 9],
        [1, 1, 16, 16],
        [2, 1, 257, 1],
        [1, 2, 46, 47],
        [2, 3, 53, 41],
    ] {
        // Noise around 1000: the squares' sum alone would leave nothing of the variance.
        let x = (noise(&[batch, frames, height, width, 6], 7) + 1000.0).unwrap();
        let (mean, variance) = group_moments(&x, 3).unwrap();
        let wide: Vec<f32> = x.flatten_all().unwrap().to_vec1().unwrap();
        let numbers = frames * height * width * 6;
        for (sample, group) in [(0, 0), (batch - 1, 2)] {
            let of_group: Vec<f64> = (sample * numbers..(sample + 1) * numbers)
                .filter(|i| i % 6 / 2 == group)
                .map(|i| f64::from(wide[i]))
                .collect();
            let count = of_group.len() as f64;
            let expected_mean = of_group.iter().sum::<f64>() / count;
            let expected = of_group.iter().map(|x| (x - expected_mean).powi(2)).sum::<f64>() / count;
            let found = |of: &Tensor| f64::from(of.to_vec2::<f32>().unwrap()[sample][group]);
            assert!((found(&mean) - expected_mean).abs() < 1e-4);
            assert!((found(&variance) / expected - 1.0).abs() < 1e-5);
        }
    }
}

#[test]
fn sums_in_bf16_are_rounded_once() {
    for case in cases() {
        let narrow = |x: Tensor| x.to_dtype(DType::BF16).unwrap();
        let wide = |x: &Tensor| x.to_dtype(DType::F32).unwrap();
        let (weight, bias) = parameters(&case);
        let (x, weight, bias) = (narrow(noise(&case.input, 1)), narrow(weight), narrow(bias));
        let expected = by_definition(&case, &wide(&x), &wide(&weight), &wide(&bias));
        let conv = Conv3d::by_candle(&weight, &bias, case.geometry).unwrap();
        let y = conv.forward((&x).into()).unwrap().0;
        assert_eq!(y.dtype(), DType::BF16);
        let numbers = |x: &Tensor| wide(x).flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let largest = numbers(&expected).iter().fold(0f32, |most, x| most.max(x.abs()));
        for (found, expected) in numbers(&y).iter().zip(numbers(&expected)) {
            // Half of the last place of bf16, and what f32 rounds off.
            let most = expected.abs() / 256.0 + 1e-5 * largest;
            assert!((found - expected).abs() <= most, "{case:?}: {found} {expected}");
        }
    }
}
