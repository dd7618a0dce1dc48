//! Gradients segment by segment, of a network whose blocks change both streams of their state.

use candle_core::{Device, Result, Tensor, Var};
use std::sync::Arc;
use vtrain::models::denoiser::{Denoiser, Input, State, StaticContext};
use vtrain::ops::activation::silu;
use vtrain::train::offload::{HostMemory, OffloadTo};
use vtrain::train::segments::{ActivationBudget, ActivationPolicy, FreeMemory, SavedActivations, forward_backward};

/// Two streams that read each other: x += tanh(c) w_i, c += tanh(x) w_i.
struct TwoStreams(Vec<Var>);

impl Denoiser for TwoStreams {
    fn embed(&self, input: &Input) -> Result<State> {
        Ok(State {
            hidden: input.latents.clone(),
            time: input.timestep.clone(),
            modulation: None,
            context: Some(input.text.hidden.clone()),
            image: None,
            fixed: Arc::new(StaticContext {
                grid: [1; 3],
                parts: vec![2],
                rotary: None,
                text_mask: None,
            }),
        })
    }

    fn num_blocks(&self) -> usize {
        self.0.len()
    }

    fn block(&self, index: usize, state: &State) -> Result<State> {
        let (x, c) = (&state.hidden, state.context.as_ref().unwrap());
        let weight = self.0[index].as_tensor();
        let hidden = (x + c.tanh()?.broadcast_mul(weight)?)?;
        let context = (c + hidden.tanh()?.broadcast_mul(weight)?)?;
        Ok(State {
            hidden,
            context: Some(context),
            ..state.clone()
        })
    }

    fn head(&self, state: &State) -> Result<Tensor> {
        &state.hidden * state.context.as_ref().unwrap()
    }
}

#[test]
fn blocks_that_change_the_text_as_well_learn_the_same_segment_by_segment() {
    let vars: Vec<Var> = [0.7f32, -1.3, 0.4]
        .map(|weight| Var::new(weight, &Device::Cpu).unwrap())
        .into();
    let network = TwoStreams(vars.clone());
    let of = |values: [f32; 4]| Tensor::new(&values, &Device::Cpu).unwrap().reshape((1, 2, 2)).unwrap();
    let time = Tensor::new(&[0f32], &Device::Cpu).unwrap();
    let input = Input::new(of([0.3, -0.8, 1.1, 0.2]), time, of([0.5, 0.9, -0.4, 1.6]));
    let loss = |prediction: &Tensor| prediction.sqr()?.sum_all();
    let gradients = |saved| {
        let passed = forward_backward(&network, &input, &loss, &vars, saved).unwrap();
        let of_each = passed.gradients.into_iter();
        of_each
            .map(|gradient| gradient.unwrap().to_scalar::<f32>().unwrap())
            .collect::<Vec<_>>()
    };
    // import torch
    // x = torch.tensor([.3, -.8, 1.1, .2]); c = torch.tensor([.5, .9, -.4, 1.6])
    // ws = [torch.tensor(w, requires_grad=True) for w in (.7, -1.3, .4)]
    // for w in ws: x = x + c.tanh() * w; c = c + x.tanh() * w
    // (x * c).square().sum().backward(); print([w.grad.item() for w in ws])
    let theirs = [-2.454_247, -3.392_929_6, -3.867_524_1];
    let folder = tempfile::tempdir().unwrap();
    for saved in [
        SavedActivations::All,
        SavedActivations::Within(ActivationBudget::default()),
        SavedActivations::Within(ActivationBudget {
            attention: usize::MAX,
            blocks: usize::MAX,
            spare_blocks: 0,
        }),
        SavedActivations::Offloaded(OffloadTo::HostMemory(HostMemory::default())),
        SavedActivations::Offloaded(OffloadTo::FileIn(folder.path().into())),
    ] {
        for (ours, theirs) in gradients(saved.clone()).iter().zip(theirs) {
            assert!(
                (ours - theirs).abs() <= 1e-5 * theirs.abs(),
                "{saved:?}: {ours} {theirs}"
            );
        }
    }
}

/// One stream: x = silu(x w_i).
struct OneStream(Vec<Var>);

impl Denoiser for OneStream {
    fn embed(&self, input: &Input) -> Result<State> {
        TwoStreams(Vec::new()).embed(input)
    }

    fn num_blocks(&self) -> usize {
        self.0.len()
    }

    fn block(&self, index: usize, state: &State) -> Result<State> {
        Ok(State {
            hidden: silu(&state.hidden.broadcast_mul(&self.0[index])?)?,
            ..state.clone()
        })
    }

    fn head(&self, state: &State) -> Result<Tensor> {
        Ok(state.hidden.clone())
    }
}

#[test]
fn blocks_are_kept_whole_as_long_as_there_is_room_for_some_more() {
    let vars: Vec<Var> = (0..7).map(|_| Var::new(0.5f32, &Device::Cpu).unwrap()).collect();
    let network = OneStream(vars.clone());
    let ones = || Tensor::ones((1, 2, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
    let input = Input::new(ones(), Tensor::new(&[0f32], &Device::Cpu).unwrap(), ones());
    let loss = |prediction: &Tensor| prediction.sqr()?.sum_all();
    let kept = |blocks, spare_blocks| {
        let budget = ActivationBudget {
            attention: 0,
            blocks,
            spare_blocks,
        };
        let saved = SavedActivations::Within(budget);
        forward_backward(&network, &input, &loss, &vars, saved)
            .unwrap()
            .kept_bytes
    };
    let inputs = kept(0, 0);
    // The last block is kept whole in any case.
    let block = (kept(usize::MAX, 0) - inputs) / 6;
    assert!(block > 0);
    for (room, spare, whole) in [(4, 0, 4), (4, 2, 2), (3, 2, 1), (2, 2, 0), (8, 2, 6), (7, 2, 5)] {
        assert_eq!(kept(room * block, spare) - inputs, whole * block, "{room} {spare}");
    }
}

#[test]
fn a_gpu_keeps_activations_in_most_of_its_free_memory_and_the_cpu_in_little() {
    let room = |free| match ActivationPolicy::Auto.saved_activations(free) {
        SavedActivations::Within(budget) => budget,
        other => panic!("{other:?}"),
    };
    const FREE: u64 = 64 << 30;
    let gpu = room(FreeMemory::Gpu(FREE));
    assert_eq!((gpu.blocks, gpu.attention, gpu.spare_blocks), (40 << 30, 8 << 30, 2));
    let main = room(FreeMemory::Main(FREE));
    assert_eq!(
        (main.blocks, main.attention, main.spare_blocks),
        (512 << 20, 8 << 30, 0)
    );
    let unknown = room(FreeMemory::Unknown);
    assert_eq!((unknown.blocks, unknown.attention), (0, usize::MAX));
    assert_eq!(FreeMemory::of(&Device::Cpu, Some(FREE)), FreeMemory::Main(FREE));
    assert_eq!(FreeMemory::of(&Device::Cpu, None), FreeMemory::Unknown);
}
