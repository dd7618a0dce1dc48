//! Reports of truncated captions and of pictures that teach nothing; records of rotated clips.

use std::fs;

use serde_json::json;
use vtrain::commands::Exit;
use vtrain::data::cache::{EncodedTiles, EncoderId, Key};
use vtrain::data::loader::ClipSelection;
use vtrain::video::{Crop, Fit};

use super::{Counts, DType, Run, THREE, shipped};

/// 226 tokens are read, the one at the end among them.
fn words(count: usize) -> String {
    vec!["a"; count].join(" ")
}

#[test]
fn captions_that_are_cut_are_told_once_with_how_many_and_which() {
    let run = Run::new(&["ball_rolls", "sun_rises", "snow_falls", "boat_sails", "clock_runs"]);
    fs::write(run.path("data/ball_rolls.txt"), format!("A ball {}", words(600))).unwrap();
    fs::write(run.path("data/snow_falls.txt"), format!("Snow {}", words(500))).unwrap();
    let output = run.vtrain(&["--set", &format!("validation.prompts=[{{prompt: '{}'}}]", words(400))]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{told}");
    let at = told
        .find("3 of 7 captions are longer than the 226 tokens")
        .unwrap_or_else(|| panic!("{told}"));
    let lines: Vec<&str> = told[at..].lines().map(str::trim).collect();
    assert!(
        lines[1].contains("ball_rolls.mp4 of \"A ball a a") && lines[1].ends_with(" lost"),
        "{}",
        lines[1]
    );
    assert!(lines[2].contains("snow_falls.mp4 of \"Snow a"), "{}", lines[2]);
    assert!(lines[3].starts_with("a prompt of \"a a"), "{}", lines[3]);
    let lost = |line: &str| line.rsplit(' ').nth(1).unwrap().parse::<usize>().unwrap();
    assert!(
        lost(lines[1]) > lost(lines[2]) && lost(lines[2]) > lost(lines[3]),
        "{lines:?}"
    );
    assert_eq!(told.matches("lost").count(), 3, "nothing is said twice: {told}");
    // Cached items are neither encoded nor reported again.
    let output = run.vtrain(&[]);
    assert!(!String::from_utf8(output.stderr).unwrap().contains("lost"));
}

/// A caption in a record, for people, has 1000 characters.
#[test]
fn of_many_captions_that_are_cut_the_worst_are_named_by_their_start() {
    let run = Run::new(&THREE[..1]);
    let told = |prompts: std::ops::Range<usize>| {
        let prompts: Vec<String> = prompts.map(|count| format!("{{prompt: '{}'}}", words(count))).collect();
        let output = run.vtrain(&["--set", &format!("validation.prompts=[{}]", prompts.join(", "))]);
        String::from_utf8(output.stderr).unwrap()
    };
    let few = told(500..505);
    assert!(few.matches(" lost").count() == 5 && !few.contains(" more"), "{few}");
    let many = told(510..516);
    assert!(
        many.matches(" lost").count() == 5 && many.contains("  and 1 more"),
        "{many}"
    );
    let notes = run.records("captions").into_iter().map(|path| {
        let bytes = fs::read(path).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        header.metadata().as_ref().unwrap()["caption"].clone()
    });
    let notes: Vec<String> = notes.collect();
    assert!(notes.contains(&words(500)), "of 999 characters");
    assert!(notes.contains(&words(501)[..1000].to_string()), "of 1001 characters");
}

#[test]
fn captions_that_just_fit_are_not_told() {
    let run = Run::new(&THREE[..1]);
    let told = String::from_utf8(run.vtrain(&[]).stderr).unwrap();
    assert!(!told.contains("longer than"), "{told}");
}

/// A checkpoint that starts from an image, on pictures.
fn pictures(checkpoint: &str) -> Run {
    let run = Run::of(checkpoint, &[]);
    fs::copy(shipped("tests/fixtures/video/still.png"), run.path("data/a.png")).unwrap();
    fs::write(run.path("data/a.txt"), "A disc").unwrap();
    run
}

const PICTURES: &str = "datasets=[{path: data, layout: images, buckets: [[1, 32, 48]]}]";

#[test]
fn image_to_video_on_pictures_alone_is_refused_before_anything_is_encoded() {
    let run = pictures("cogvideox-5b-i2v");
    let (failed, counts) = run.try_encode(&[PICTURES], Counts::default());
    let failure = failed.unwrap_err();
    assert_eq!((failure.exit, counts.encoded()), (Exit::Usage, (0, 0)));
    let told = failure.to_string();
    assert!(
        told.contains("all 1 clips are single pictures") && told.contains("nothing left to learn"),
        "{told}"
    );
    // The same pictures teach a model that starts from text.
    let run = pictures("cogvideox-5b");
    assert_eq!(run.misses(&[PICTURES]), (2, 1));
}

#[test]
fn pictures_among_films_are_told_to_teach_such_a_model_nothing() {
    let run = pictures("cogvideox-5b-i2v");
    run.add("ball_rolls", "b");
    let both = "datasets=[{path: data, layout: images, buckets: [[1, 32, 48]]}, \
                {path: data, layout: pairs, buckets: [[9, 32, 48]]}]";
    let output = run.vtrain(&["--set", both]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{told}");
    assert!(
        told.contains("1 of 2 clips are single pictures, from which this checkpoint learns nothing"),
        "{told}"
    );
    let films = run.vtrain(&[
        "--set",
        "datasets=[{path: data, layout: pairs, buckets: [[9, 32, 48]]}]",
    ]);
    assert!(!String::from_utf8(films.stderr).unwrap().contains("single pictures"));
}

/// A bucket of one frame is one latent frame of a video, too.
#[test]
fn films_of_which_a_single_frame_is_taken_are_pictures() {
    let run = Run::of("cogvideox-1.5-5b-i2v", &THREE);
    let (failed, _) = run.try_encode(&["datasets.0.buckets=[[1, 32, 48]]"], Counts::default());
    assert!(failed.unwrap_err().to_string().contains("all 3 clips"));
}

#[test]
fn a_record_of_a_picture_that_turns_itself_has_another_name_than_before_and_all_others_keep_theirs() {
    let coder = EncoderId {
        fingerprint: blake3::hash(b"vae"),
        dtype: DType::F32,
        tiling: EncodedTiles::Some(true),
        image: false,
    };
    let key = |orientation| {
        let cut = ClipSelection {
            frames: vec![0, 1],
            fit: Fit::cover((64, 96), (32, 48), Crop::Center),
            fps: 8.0,
            orientation,
        };
        Key::clip(blake3::hash(b"clip"), &cut, &coder)
    };
    // As before orientation was read.
    let before = json!({
        "format": 1,
        "clip": blake3::hash(b"clip").to_string(),
        "frames": [0, 1],
        "resize": [32, 48],
        "crop": [0, 0, 32, 48],
        "encoder": blake3::hash(b"vae").to_string(),
        "dtype": "f32",
        "tiling": true,
        "image": false,
    });
    let before = blake3::hash(before.to_string().as_bytes());
    assert_eq!(key(None).hash(), before);
    assert_eq!(key(Some(1)).hash(), before, "it is upright");
    let turned: Vec<_> = (2..=8).map(|n| key(Some(n)).hash()).collect();
    for (n, hash) in turned.iter().enumerate() {
        assert!(*hash != before && !turned[..n].contains(hash));
    }
}
