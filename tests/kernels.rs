//! The kernels of the `.cu` files, run on the CPU as they are written, against references in f64.
//!
//! `kernels/emulator.cpp` runs a block's threads in turns. Launches come from the same functions as on a GPU, so that
//! arguments and grids are tested as well. Every check runs in several orders of threads, with buffers between pages
//! that may not be touched, aligned and not; results do not depend on the order to the bit.
//!
//! A new kernel: its `.cu` file in `src/ops/kernel/sources.rs`, a launch beside the op, a check here.

mod activation; // GELU and SiLU
mod add; // residuals without a gate
mod attention; // by tiles
mod card; // running launches
mod decode; // matrices in few bits, bit for bit
mod dropout; // masks, bit for bit
mod exact; // tolerances
mod library; // compiling and loading
mod linear; // the bias
mod memory; // buffers
mod modulate; // what precedes an autoencoder's convolution
mod norm; // layer and RMS norm by parts
mod planted; // faults that the checks must find
mod residual; // gated residuals by parts
mod rotary; // pairs that turn
mod rows; // shapes of samples by parts
mod swiglu; // gated products
mod update; // AdamW and sums of squares

use std::collections::BTreeSet;

use card::Card;
use library::{Library, library};

/// A check, and the kernels that it launches.
struct Check {
    name: &'static str,
    kernels: &'static [&'static str],
    run: fn(&Card),
}

/// Makes a test of each check, and a list of all. A kernel without a type in its name stands for both types'.
macro_rules! checks {
    ($($name:ident: $run:path, $kernels:expr;)*) => {
        const CHECKS: &[Check] = &[$(Check { name: stringify!($name), kernels: &$kernels, run: $run }),*];
        $(
            #[test]
            fn $name() {
                check(stringify!($name)).try_on(library());
            }
        )*
    };
}

checks! {
    activations_are_those_of_f64: activation::forward, ["activation"];
    gradients_of_activations_are_those_of_f64: activation::back, ["activation"];
    activations_need_no_block_for_each_number: activation::in_few_blocks, ["activation"];
    attention_is_that_of_f64: attention::forward, ["attention_forward"];
    gradients_of_attention_are_those_of_f64: attention::back,
        ["attention_along", "attention_back_queries", "attention_back_keys"];
    queries_without_keys_are_put_right_behind_cudnn: attention::blind, ["attention_blind"];
    codes_of_a_byte_are_decoded_as_on_the_cpu: decode::bytes, ["decode_bytes"];
    codes_of_four_bits_are_decoded_as_on_the_cpu: decode::four_bit, ["decode_four_bit"];
    blocks_of_gguf_are_decoded_as_on_the_cpu: decode::ggml, [
        "decode_f32", "decode_f16", "decode_bf16", "decode_q8_0", "decode_q4_0", "decode_q4_1", "decode_q5_0", "decode_q5_1",
        "decode_q2_k", "decode_q3_k", "decode_q4_k", "decode_q5_k", "decode_q6_k",
    ];
    dropout_keeps_what_it_keeps_on_the_cpu: dropout::masked, ["dropout"];
    dropout_may_write_where_it_reads: dropout::in_place, ["dropout"];
    modulated_silu_is_that_of_f64: modulate::modulated, ["modulated_silu"];
    sums_are_those_of_f64: add::forward, ["add"];
    a_bias_is_added: linear::bias, ["linear_bias"];
    norms_are_those_of_f64: norm::forward, ["norm_forward", "norm_narrow_forward"];
    gradients_of_normed_rows_are_those_of_f64: norm::back, ["norm_back", "norm_narrow_back"];
    gradients_of_gains_and_offsets_are_those_of_f64: norm::tables, ["norm_moments", "norm_tables"];
    gated_residuals_are_those_of_f64: residual::forward, ["residual_forward"];
    gradients_of_gated_updates_are_those_of_f64: residual::back, ["residual_back"];
    gradients_of_gates_are_those_of_f64: residual::gate, ["residual_gate"];
    pairs_turn_as_in_f64: rotary::turn, ["rotary", "rotary_wide"];
    adamw_moves_all_tensors_at_once: update::adamw, ["adamw"];
    adamw_of_8_bits_moves_all_tensors_at_once: update::adamw8bit, ["adamw8bit"];
    gated_products_are_those_of_f64: swiglu::forward, ["swiglu"];
    gradients_of_gated_products_are_those_of_f64: swiglu::back, ["swiglu"];
    squares_are_summed_piece_by_piece: update::square_sums, ["square_sums"];
}

fn check(name: &str) -> &'static Check {
    CHECKS
        .iter()
        .find(|check| check.name == name)
        .expect("a check of this name")
}

/// A kernel's names in the `.cu` files.
fn names(kernel: &str, library: &Library) -> Vec<String> {
    match library.kernels.contains_key(kernel) {
        true => vec![kernel.to_string()],
        false => ["f32", "bf16"].map(|dtype| format!("{kernel}_{dtype}")).to_vec(),
    }
}

impl Check {
    /// Runs the check; fails, too, where it launches other kernels than it says.
    fn try_on(&self, library: &Library) {
        let card = Card::new(library);
        (self.run)(&card);
        let listed = self.kernels.iter().flat_map(|kernel| names(kernel, library));
        assert_eq!(
            card.launched(),
            listed.collect::<BTreeSet<_>>(),
            "kernels of {}",
            self.name
        );
    }
}

#[test]
fn every_kernel_of_every_file_is_launched_by_a_check() {
    let library = library();
    let checked: BTreeSet<String> = CHECKS
        .iter()
        .flat_map(|check| check.kernels.iter().flat_map(|kernel| names(kernel, library)))
        .collect();
    let there: BTreeSet<String> = library.kernels.keys().cloned().collect();
    assert!(there.len() >= 30, "{there:?}");
    let missing: Vec<&String> = there.difference(&checked).collect();
    assert!(missing.is_empty(), "no check in tests/kernels.rs launches {missing:?}");
    let gone: Vec<&String> = checked.difference(&there).collect();
    assert!(gone.is_empty(), "checks name kernels that no .cu file has: {gone:?}");
}
