//! The programs of `examples/`, one after the other, on a tiny checkpoint with random weights: train an adapter, list the cache
//! that this filled, sample with the adapter.

use std::path::Path;

use clap::Parser;
use vtrain::video::Clip;

#[expect(dead_code, reason = "main is the example's own")]
#[path = "../examples/read_cache.rs"]
mod read_cache;
#[expect(dead_code, reason = "main is the example's own")]
#[path = "../examples/sample.rs"]
mod sample;
#[expect(dead_code, reason = "main is the example's own")]
#[path = "../examples/train.rs"]
mod train;

#[test]
fn the_examples_train_an_adapter_list_the_cache_and_sample() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    std::fs::create_dir(at("clips")).unwrap();
    std::fs::copy(root.join("datasets/shapes/videos/ball_rolls.mp4"), at("clips/ball.mp4")).unwrap();
    std::fs::write(at("clips/ball.txt"), "A red ball rolls.").unwrap();

    let (config, adapter) = (root.join("configs/cogvideox/tiny.yaml"), at("adapter.safetensors"));
    let sets = [
        format!("output_dir={}", at("run")),
        format!("datasets=[{{path: {}, buckets: [[9, 32, 48]]}}]", at("clips")),
        "train.batch_size=1".to_string(),
        "validation.prompts=[]".to_string(),
    ];
    let options = ["train", &config.display().to_string(), &adapter, "--steps", "2"].map(String::from);
    let sets = sets.into_iter().flat_map(|set| ["--set".to_string(), set]);
    train::run(train::Args::parse_from(options.into_iter().chain(sets))).unwrap();

    let mut listed = Vec::new();
    let args = read_cache::Args::parse_from(["read_cache", &at("run/precomputed")]);
    read_cache::run(args, &mut listed).unwrap();
    let listed = String::from_utf8(listed).unwrap();
    // The clip, its caption, and the empty one.
    assert!(
        listed.contains("clips: 1 records") && listed.contains("captions: 2 records"),
        "{listed}"
    );
    assert!(listed.contains("mean F32 [4, 3, 4, 6]"), "{listed}");
    assert!(!listed.contains("digest"), "{listed}");

    let model = root.join("tests/fixtures/cogvideox/cogvideox-5b").display().to_string();
    let video = at("ball.mp4");
    let options = ["sample", &model, "a red ball", &video, "--lora", &adapter];
    let size = ["--size", "9,32,48", "--steps", "2"];
    sample::run(sample::Args::parse_from(options.into_iter().chain(size))).unwrap();
    let clip = Clip::open(Path::new(&video)).unwrap();
    assert_eq!((clip.num_frames(), clip.height(), clip.width()), (9, 32, 48));
}
