//! The same clips, noise and steps on any number of ranks.

use std::fs;
use std::path::Path;

use super::{Run, assert_same, stderr};

const STEPS: usize = 6;

fn straight(ranks: usize, accumulation: usize) -> Run {
    let run = Run::training(STEPS, 3);
    run.train(ranks, accumulation, &[]);
    run
}

#[test]
#[cfg_attr(not(feature = "mpi"), ignore = "needs mpi: built without the feature")]
fn two_ranks_are_one_that_accumulates_two_and_four_are_two_that_do() {
    let (one, two) = (straight(1, 2), straight(2, 1));
    assert_same("2 ranks for 1 with accumulation 2", &two, &one);
    assert_eq!(two.column("samples_seen"), one.column("samples_seen"));
    assert_eq!(two.column("lr"), one.column("lr"));
    let (two, four, alone) = (straight(2, 2), straight(4, 1), straight(1, 4));
    assert_same("4 ranks for 2 with accumulation 2", &four, &two);
    assert_same("4 ranks for 1 with accumulation 4", &four, &alone);

    // The same files, regardless of who wrote them.
    let files = |run: &Run| {
        let mut names = Vec::new();
        list(&run.path("out"), &mut names);
        let mut names: Vec<String> = names
            .iter()
            .map(|path| {
                path.strip_prefix(run.path("out").to_str().unwrap())
                    .unwrap()
                    .to_string()
            })
            .collect();
        names.sort();
        names
    };
    assert_eq!(files(&four), files(&alone));

    // The log counts the communication: each adapter's numbers once, and some metadata.
    let numbers: usize = four.adapter().values().map(|tensor| tensor.elem_count()).sum();
    for bytes in four.column("communication_bytes") {
        let more = bytes - 4.0 * numbers as f64;
        assert!((0.0..2000.0).contains(&more), "{bytes} bytes for {numbers} numbers");
    }
    assert!(
        four.column("communication_seconds")
            .iter()
            .all(|seconds| *seconds > 0.0)
    );
    assert!(four.column("waiting_seconds").iter().all(|seconds| *seconds >= 0.0));
    assert!(alone.metrics()[0].get("communication_bytes").is_none());
}

#[test]
#[cfg_attr(not(feature = "mpi"), ignore = "needs mpi: built without the feature")]
fn a_base_that_is_shared_out_gives_the_same_adapter_and_the_same_videos() {
    let prompt = "validation.prompts=[{prompt: a ball, num_frames: 9, height: 32, width: 48, steps: 2, \
                  guidance_scale: 3.0}]";
    let run = |ranks: usize, more: &[&str]| {
        let run = Run::training(STEPS, 3);
        let more = [&["--set", prompt], more].concat();
        let output = run.train(ranks, 6 / ranks, &more);
        let video = fs::read(run.path("out/validation/step-000006/00-a-ball.mp4")).unwrap();
        (run, stderr(&output), video)
    };
    let shared = ["--set", "model.sharding=full"];
    let (whole, said, video) = run(3, &[]);
    assert!(!said.contains("sharded over"), "{said}");
    // Three parts do not come out even.
    for ranks in [2, 3] {
        let (run, said, again) = run(ranks, &shared);
        assert!(said.contains(&format!("sharded over {ranks} ranks")), "{said}");
        assert_same(&format!("{ranks} ranks that share the base out"), &run, &whole);
        assert!(ranks != 3 || again == video, "the videos differ");
        let each = |run: &Run| run.column("communication_bytes").iter().sum::<f64>();
        assert!(each(&run) > each(&whole), "blocks travel, too");
    }
    let (alone, said, _) = run(1, &shared);
    assert!(!said.contains("sharded over"), "{said}");
    assert_same("one rank that has nobody to share with", &alone, &whole);
}

#[test]
#[cfg_attr(not(feature = "mpi"), ignore = "needs mpi: built without the feature")]
fn parts_of_the_base_that_each_rank_reads_from_a_file_give_the_same_adapter() {
    let shared = ["--set", "model.sharding=full"];
    let streamed = ["--set", "model.offload=group", "--set", "model.offload_resident=0"];
    let nf4 = [
        "--set",
        "model.quantization=nf4",
        "--set",
        "model.quantization_cache=none",
    ];
    let run = |more: &[&str]| {
        let run = Run::training(2, 3);
        let said = stderr(&run.train(2, 2, more));
        (run, said)
    };
    for form in [&[][..], &nf4] {
        let (whole, _) = run(form);
        let (parts, said) = run(&[form, &shared, &streamed].concat());
        assert!(said.contains("sharded over 2 ranks"), "{said}");
        assert!(
            said.contains("; of each rank's, the matrices of 2 blocks are in files"),
            "{said}"
        );
        assert!(said.contains(": 0 blocks of 0 B in all stay in memory"), "{said}");
        assert_same(&format!("parts in files, {form:?}"), &parts, &whole);
    }
}

#[test]
fn a_base_that_is_shared_out_keeps_no_block_for_the_way_back() {
    let run = Run::training(1, 1);
    for more in ["train.activation_policy=all", "train.gradient_checkpointing=false"] {
        let output = super::finish(run.vtrain(&[], &["--set", "model.sharding=full", "--set", more]));
        assert_eq!(output.status.code(), Some(2));
        assert!(
            stderr(&output).contains("model.sharding: full needs"),
            "{}",
            stderr(&output)
        );
    }
}

fn list(folder: &Path, names: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => list(&path, names),
            false => names.push(path.to_str().unwrap().to_string()),
        }
    }
}

#[test]
#[cfg_attr(not(feature = "mpi"), ignore = "needs mpi: built without the feature")]
fn a_run_of_two_ranks_goes_on_with_one_and_with_four() {
    let straight = straight(2, 2);
    for (ranks, accumulation) in [(1, 4), (4, 1)] {
        let run = Run::training(STEPS, 3);
        run.train(2, 2, &["--set", "train.steps=3"]);
        assert_eq!(run.metrics().len(), 3);
        let output = run.train(ranks, accumulation, &[]);
        assert!(stderr(&output).contains("after step 3"), "{}", stderr(&output));
        assert_same(&format!("3 steps on 2 ranks, then 3 on {ranks}"), &run, &straight);
    }
    // Another number of micro-batches a step is another run.
    let run = Run::training(STEPS, 3);
    run.train(2, 2, &["--set", "train.steps=3"]);
    let refused = super::finish(run.vtrain(&[], &[]));
    let said = stderr(&refused);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(
        said.contains("train.gradient_accumulation_steps: 4 in the checkpoint, 1 now")
            && said.contains("over all ranks"),
        "{said}"
    );
}

#[test]
#[cfg_attr(not(feature = "mpi"), ignore = "needs mpi: built without the feature")]
fn validation_videos_are_shared_out_and_equal_those_of_one_rank() {
    let prompt = |text: &str, seed: usize| {
        format!("{{prompt: {text}, num_frames: 9, height: 32, width: 48, steps: 2, guidance_scale: 1.0, seed: {seed}}}")
    };
    let prompts = format!(
        "validation.prompts=[{}, {}, {}]",
        prompt("a ball", 0),
        prompt("a cloud", 1),
        prompt("a sun", 2)
    );
    let run = |ranks: usize| {
        let run = Run::training(2, 2);
        run.train(
            ranks,
            4 / ranks,
            &["--set", &prompts, "--set", "tracking.tensorboard=true"],
        );
        let video = |name: &str| fs::read(run.path("out/validation").join(name)).unwrap();
        let names = ["00-a-ball.mp4", "01-a-cloud.mp4", "02-a-sun.mp4"];
        let videos = names.map(|name| video(&format!("step-000000/{name}")));
        let last = names.map(|name| video(&format!("step-000002/{name}")));
        (videos, last)
    };
    let (one, two) = (run(1), run(2));
    assert!(one.0 == two.0, "those of the base model differ");
    assert_eq!(one.1.each_ref().map(Vec::is_empty), two.1.each_ref().map(Vec::is_empty));
}
