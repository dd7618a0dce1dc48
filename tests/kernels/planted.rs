//! Faults injected into the kernels, each of which the checks must find.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::library::{Library, own_library, patched, root};
use super::{CHECKS, check};

/// Returns the error of a check on a library; None if it passes.
fn complaint(name: &str, library: &Library) -> Option<String> {
    let run = catch_unwind(AssertUnwindSafe(|| check(name).try_on(library)));
    let complaint = run.err()?;
    let words = complaint.downcast_ref::<String>().cloned();
    Some(words.unwrap_or_else(|| {
        complaint
            .downcast_ref::<&str>()
            .map_or_else(String::new, |words| words.to_string())
    }))
}

/// A fault in the text of a file.
struct Fault {
    /// Compiled file.
    source: &'static str,
    /// Changed file, with the change.
    file: &'static str,
    before: &'static str,
    after: &'static str,
    /// Check that finds it.
    check: &'static str,
}

const NORM: &str = "src/ops/norm.cu";
const SHARED: &str = "src/ops/cuda/kernel.cuh";
const TILED: &str = "src/ops/attention/tiled.cu";
const UPDATE: &str = "src/optim/update.cu";
const DECODE: &str = "src/nn/storage/decode.cu";

/// Barriers that are not there.
const MISSING: [Fault; 4] = [
    Fault {
        source: NORM,
        file: SHARED,
        before: "__syncthreads(); // readers of the sum before this one are through",
        after: "",
        check: "norms_are_those_of_f64",
    },
    Fault {
        source: NORM,
        file: SHARED,
        before: "of_warps[threadIdx.x / 32] = x;\n    __syncthreads();",
        after: "of_warps[threadIdx.x / 32] = x;",
        check: "gradients_of_normed_rows_are_those_of_f64",
    },
    Fault {
        source: TILED,
        file: TILED,
        before: "weights[row * SIDE + column] = weight;\n        __syncthreads();",
        after: "weights[row * SIDE + column] = weight;",
        check: "attention_is_that_of_f64",
    },
    Fault {
        source: UPDATE,
        file: UPDATE,
        before: "__syncthreads();\n        if (threadIdx.x < half)",
        after: "if (threadIdx.x < half)",
        check: "squares_are_summed_piece_by_piece",
    },
];

/// One too many, or one too few.
const OFF_BY_ONE: [Fault; 7] = [
    Fault {
        source: UPDATE,
        file: UPDATE,
        before: "reach > 0; reach /= 2",
        after: "reach > 1; reach /= 2",
        check: "adamw_of_8_bits_moves_all_tensors_at_once",
    },
    Fault {
        source: UPDATE,
        file: UPDATE,
        before: "map[at + step - 1] + map[at + step]) / 2 < x",
        after: "map[at + step - 1]) < x",
        check: "adamw_of_8_bits_moves_all_tensors_at_once",
    },
    Fault {
        source: NORM,
        file: NORM,
        before: "for (int64 row = sample + first + blockIdx.y; row < sample + parts.ends[part]; row += gridDim.y)",
        after: "for (int64 row = sample + first + blockIdx.y; row <= sample + parts.ends[part]; row += gridDim.y)",
        check: "gradients_of_gains_and_offsets_are_those_of_f64",
    },
    Fault {
        source: NORM,
        file: SHARED,
        before: "row >= ends[part]",
        after: "row > ends[part]",
        check: "norms_are_those_of_f64",
    },
    Fault {
        source: TILED,
        file: TILED,
        before: "token < tokens ?",
        after: "token <= tokens ?",
        check: "attention_is_that_of_f64",
    },
    Fault {
        source: UPDATE,
        file: UPDATE,
        before: "from + PIECE < length ? from + PIECE : length}",
        after: "from + PIECE < length ? from + PIECE : length - 1}",
        check: "adamw_moves_all_tensors_at_once",
    },
    Fault {
        source: UPDATE,
        file: UPDATE,
        before: "half > 0; half /= 2",
        after: "half > 1; half /= 2",
        check: "squares_are_summed_piece_by_piece",
    },
];

/// Codes that are read as others.
const OTHER_CODES: [Fault; 5] = [
    Fault {
        source: DECODE,
        file: DECODE,
        before: "row / rows * (features / columns)",
        after: "row / rows",
        check: "codes_of_a_byte_are_decoded_as_on_the_cpu",
    },
    Fault {
        source: DECODE,
        file: DECODE,
        before: "% 2 ? pair & 0xf : pair >> 4",
        after: "% 2 ? pair >> 4 : pair & 0xf",
        check: "codes_of_four_bits_are_decoded_as_on_the_cpu",
    },
    Fault {
        source: DECODE,
        file: DECODE,
        before: "absmax[index / nested_size]",
        after: "absmax[0]",
        check: "codes_of_four_bits_are_decoded_as_on_the_cpu",
    },
    Fault {
        source: DECODE,
        file: DECODE,
        before: "packed[row - 4] >> 2 & 0x30",
        after: "packed[row - 4] >> 2 & 0x10",
        check: "blocks_of_gguf_are_decoded_as_on_the_cpu",
    },
    Fault {
        source: DECODE,
        file: DECODE,
        before: "exponent == 0 ?",
        after: "exponent == 1 ?",
        check: "blocks_of_gguf_are_decoded_as_on_the_cpu",
    },
];

#[track_caller]
fn assert_found(fault: &Fault) {
    let Fault {
        source,
        file,
        before,
        after,
        check,
    } = *fault;
    let complaint = complaint(check, &patched(source, file, before, after));
    let complaint = complaint.unwrap_or_else(|| panic!("{file}: '{before}' became '{after}', and {check} passes"));
    println!("{file}: '{before}' became '{after}': {complaint}");
}

#[test]
fn a_missing_barrier_is_found() {
    std::thread::scope(|scope| {
        for fault in &MISSING {
            scope.spawn(|| assert_found(fault));
        }
    });
}

#[test]
fn an_index_off_by_one_is_found() {
    std::thread::scope(|scope| {
        for fault in &OFF_BY_ONE {
            scope.spawn(|| assert_found(fault));
        }
    });
}

#[test]
fn a_code_that_is_read_as_another_is_found() {
    std::thread::scope(|scope| {
        for fault in &OTHER_CODES {
            scope.spawn(|| assert_found(fault));
        }
    });
}

/// Without any one of the barriers, the check that first reached it fails: each is needed, and its absence is noticed.
#[test]
fn every_barrier_is_needed() {
    let library = &own_library();
    for check in CHECKS {
        let known = library.barriers().len();
        check.try_on(library);
        for site in &library.barriers()[known..] {
            let complaint = library.without(site, || complaint(check.name, library));
            let file = site.0.trim_start_matches(&root().display().to_string());
            assert!(
                complaint.is_some(),
                "{file}:{}: {} does not miss this barrier",
                site.1,
                check.name
            );
        }
    }
    assert!(library.barriers().len() >= 13, "{:?}", library.barriers());
}
