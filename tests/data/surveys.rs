//! Surveys: buckets, crops, the effect of a bad clip, totals; and loading of accepted clips.

use super::{Set, bmp, bucket, y4m};
use super::{survey, survey_folder};
use vtrain::data::bucket::choose;
use vtrain::data::dataset::{Cropping, Frames, OnInvalidClip};
use vtrain::data::loader::{load, load_all};
use vtrain::data::{Config, Reason};
use vtrain::rng::Rng;

/// Clips in wide, tall and square, long and short.
fn shapes() -> Set {
    let sizes = [
        ("wide", 96, 64, 20),
        ("tall", 64, 96, 20),
        ("square", 64, 64, 9),
        ("short", 48, 32, 3),
    ];
    sizes.iter().fold(Set::new(), |set, (name, width, height, frames)| {
        set.file(&format!("{name}.y4m"), y4m(*width, *height, *frames, 8))
            .file(&format!("{name}.txt"), name)
    })
}

fn buckets() -> Vec<vtrain::data::Bucket> {
    vec![
        bucket(17, 32, 48),
        bucket(17, 48, 32),
        bucket(9, 32, 32),
        bucket(5, 32, 48),
    ]
}

#[test]
fn a_clip_goes_to_the_most_frames_it_has_then_to_the_nearest_aspect_ratio() {
    let buckets = buckets();
    assert_eq!(choose(&buckets, 20, 64, 96), Some(bucket(17, 32, 48)));
    assert_eq!(choose(&buckets, 17, 96, 64), Some(bucket(17, 48, 32)));
    assert_eq!(
        choose(&buckets, 16, 64, 96),
        Some(bucket(9, 32, 32)),
        "frames come before aspect ratio"
    );
    assert_eq!(choose(&buckets, 8, 96, 64), Some(bucket(5, 32, 48)));
    assert_eq!(choose(&buckets, 4, 64, 96), None);
    assert_eq!(choose(&[], 4, 64, 96), None);
    let alike = [bucket(1, 512, 768), bucket(1, 32, 48), bucket(1, 64, 96)];
    assert_eq!(
        choose(&alike, 1, 60, 90),
        Some(bucket(1, 64, 96)),
        "of equal ratios the nearest in size"
    );
}

#[test]
fn every_clip_is_listed_with_its_facts_its_bucket_and_its_crop() {
    let set = shapes();
    let report = survey(
        &[Config {
            buckets: buckets(),
            on_invalid_clip: OnInvalidClip::Skip,
            ..set.config()
        }],
        true,
    );
    let lines: Vec<_> = report
        .samples
        .iter()
        .map(|s| {
            let facts = &s.found.facts;
            (
                s.found.entry.name.as_str(),
                facts.width,
                facts.height,
                facts.num_frames,
                s.bucket,
                s.fit.as_str(),
            )
        })
        .collect();
    let wide = "resized to 48x32";
    assert_eq!(
        lines,
        [
            ("square.y4m", 64, 64, 9, bucket(9, 32, 32), "resized to 32x32"),
            ("tall.y4m", 64, 96, 20, bucket(17, 48, 32), "resized to 32x48"),
            ("wide.y4m", 96, 64, 20, bucket(17, 32, 48), wide),
        ]
    );
    let facts = &report.samples[2].found.facts;
    assert!(
        (facts.fps - 8.0).abs() < 1e-6 && (facts.duration - 2.5).abs() < 1e-3,
        "{facts:?}"
    );
    assert!(matches!(
        *report.refused[0].reason,
        Reason::TooShort { available: 3, .. }
    ));

    let totals = report.totals();
    assert_eq!((totals.accepted, totals.refused, totals.frames), (3, 1, 49));
    let wanted = [(bucket(9, 32, 32), 1), (bucket(17, 32, 48), 1), (bucket(17, 48, 32), 1)];
    assert_eq!(totals.buckets, wanted);
}

#[test]
fn how_a_clip_is_cropped_is_said_in_words() {
    let set = Set::new().file("a.y4m", y4m(128, 72, 9, 8)).file("a.txt", "A.");
    let fit = |crop, height, width| {
        let config = Config {
            crop,
            buckets: vec![bucket(9, height, width)],
            ..set.config()
        };
        survey(&[config], false).samples.remove(0).fit
    };
    assert_eq!(
        fit(Cropping::Center, 36, 54),
        "resized to 64x36, cut to 54x36 at the center"
    );
    assert_eq!(
        fit(Cropping::Random, 36, 54),
        "resized to 64x36, cut to 54x36 at a random position"
    );
    assert_eq!(fit(Cropping::Fit, 36, 54), "squeezed to 54x36, nothing cut");
    assert_eq!(fit(Cropping::Center, 72, 96), "cut to 96x72 at the center");
    assert_eq!(fit(Cropping::Center, 72, 128), "kept at 128x72");
}

#[test]
fn a_slower_rate_leaves_fewer_frames() {
    let set = Set::new().file("a.y4m", y4m(48, 32, 16, 8)).file("a.txt", "A.");
    let at = |fps| survey(&[Config { fps, ..set.config() }], false);
    assert_eq!(at(None).samples.len(), 1);
    let slow = at(Some(4.0));
    let message = set.without_folder(&slow.refused[0]);
    assert!(
        message.starts_with("a.y4m: too short: it has 8 frames at 4 fps (16 at its own), the"),
        "{message}"
    );
}

#[test]
fn a_bad_clip_stops_a_run_or_is_skipped_as_its_data_set_says() {
    let set = shapes();
    let with = |on_invalid_clip| {
        survey(
            &[Config {
                on_invalid_clip,
                buckets: buckets(),
                ..set.config()
            }],
            false,
        )
    };
    assert!(with(OnInvalidClip::Error).stops());
    let skipping = with(OnInvalidClip::Skip);
    assert_eq!(
        (skipping.stops(), skipping.refused.len(), skipping.samples.len()),
        (false, 1, 3)
    );
}

#[test]
fn a_data_set_of_which_nothing_is_left_stops_a_run_even_if_clips_are_skipped() {
    let set = Set::new().file("a.y4m", y4m(48, 32, 2, 8)).file("a.txt", "A.");
    let report = survey(
        &[Config {
            on_invalid_clip: OnInvalidClip::Skip,
            ..set.config()
        }],
        false,
    );
    assert!(report.stops());
    assert_eq!(*report.refused.last().unwrap().reason, Reason::NothingUsable);
}

#[test]
fn values_that_cannot_work_are_refused_before_a_clip_is_opened() {
    let set = shapes();
    let report = survey(
        &[Config {
            buckets: vec![bucket(0, 0, 0)],
            fps: Some(f64::NAN),
            ..set.config()
        }],
        false,
    );
    assert_eq!(
        (report.samples.len(), report.refused.len(), report.stops()),
        (0, 2, true)
    );
}

#[test]
fn several_data_sets_are_surveyed_in_their_order_with_their_repeats() {
    let (a, b) = (
        Set::new().clip("a.y4m").file("a.txt", "A."),
        Set::new().file("b.bmp", bmp(64, 64)).file("b.txt", "B."),
    );
    let images = Config {
        repeats: 3,
        buckets: vec![bucket(1, 32, 32)],
        ..b.config()
    };
    let report = survey(&[a.config(), images], true);
    let samples: Vec<_> = report
        .samples
        .iter()
        .map(|s| (s.dataset, s.repeats, s.bucket.frames))
        .collect();
    assert_eq!(samples, [(0, 1, 9), (1, 3, 1)], "{:?}", report.refused);
}

#[test]
fn a_folder_alone_is_surveyed_for_what_can_be_read() {
    let set = shapes().clip("silent.y4m");
    let report = survey_folder(set.path(), false);
    let names: Vec<_> = report.samples.iter().map(|found| found.entry.name.as_str()).collect();
    assert_eq!(names, ["short.y4m", "square.y4m", "tall.y4m", "wide.y4m"]);
    assert!(matches!(*report.refused[0].reason, Reason::NoCaption { .. }));
    assert!(report.totals().buckets.is_empty());
}

#[test]
fn a_report_as_json_has_a_flat_line_for_each_clip_and_a_kind_for_each_refusal() {
    let set = shapes();
    let report = survey(
        &[Config {
            buckets: buckets(),
            ..set.config()
        }],
        false,
    );
    let json = serde_json::to_value(&report).unwrap();
    let sample = &json["samples"][0];
    assert_eq!(
        (&sample["name"], &sample["num_frames"]),
        (&"square.y4m".into(), &9.into())
    );
    assert_eq!(
        (&sample["caption"], &sample["bucket"]),
        (&"square".into(), &serde_json::json!([9, 32, 32]))
    );
    let refused = &json["refused"][0];
    assert_eq!(
        (&refused["kind"], &refused["stops"]),
        (&"too_short".into(), &true.into())
    );
    assert!(refused["message"].as_str().unwrap().starts_with("too short"));
}

#[test]
fn samples_are_loaded_in_the_shape_of_their_bucket() {
    let set = shapes();
    for (frames, crop) in [
        (Frames::Uniform, Cropping::Center),
        (Frames::Head, Cropping::Fit),
        (Frames::Random, Cropping::Random),
    ] {
        let config = Config {
            frames,
            crop,
            buckets: buckets(),
            ..set.config()
        };
        let report = survey(&[config], false);
        let samples: Vec<_> = report.samples.iter().collect();
        let loaded = load_all(&samples, &mut Rng::new(3)).unwrap();
        for (frames, sample) in loaded.iter().zip(&samples) {
            let [f, h, w] = sample.bucket.into();
            assert_eq!(
                (frames.num_frames, frames.height, frames.width, frames.data.len()),
                (f, h, w, f * h * w * 3)
            );
        }
        let alone = load(samples[0], &mut Rng::new(3)).unwrap();
        assert!(alone.data == loaded[0].data, "the first draws are the first sample's");
    }
}

#[test]
fn a_clip_that_vanished_after_the_survey_is_an_error_that_names_it() {
    let set = shapes();
    let report = survey(
        &[Config {
            buckets: buckets(),
            ..set.config()
        }],
        false,
    );
    std::fs::remove_file(set.path().join("square.y4m")).unwrap();
    let error = load(&report.samples[0], &mut Rng::new(0)).expect_err("the file is gone");
    assert!(error.to_string().contains("square.y4m"), "{error}");
}

/// The clips that come with the program are in every bucket that they should be.
#[test]
fn the_shapes_that_ship_are_a_data_set_without_a_fault() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/datasets/shapes");
    let config = Config {
        path: path.into(),
        buckets: vec![bucket(17, 64, 96)],
        ..Config::default()
    };
    let report = survey(&[config], true);
    assert!(
        report.refused.is_empty() && report.notes.is_empty(),
        "{:?} {:?}",
        report.refused,
        report.notes
    );
    assert!(!report.samples.is_empty());
    for sample in &report.samples {
        assert!((17..=33).contains(&sample.found.facts.num_frames));
        assert_eq!(load(sample, &mut Rng::new(0)).unwrap().data.len(), 17 * 64 * 96 * 3);
    }
}

/// A clip whose pixels have this shape.
fn shaped(width: usize, height: usize, aspect: &str) -> Vec<u8> {
    let plain = y4m(width, height, 9, 8);
    let at = plain.windows(4).position(|part| part == b"A1:1").unwrap();
    [&plain[..at], b"A", aspect.as_bytes(), &plain[at + 4..]].concat()
}

#[test]
fn clips_are_placed_by_the_size_they_are_shown_at_and_a_note_gathers_them() {
    let clips = [
        ("a", "4:3"),
        ("b", "4:3"),
        ("c", "1:1"),
        ("d", "2:1"),
        ("e", "4:3"),
        ("f", "4:3"),
        ("g", "4:3"),
    ];
    let set = clips.iter().fold(Set::new(), |set, (name, aspect)| {
        set.file(&format!("{name}.y4m"), shaped(72, 64, aspect))
            .file(&format!("{name}.txt"), "One.")
    });
    let report = survey(
        &[Config {
            buckets: vec![bucket(9, 64, 96), bucket(9, 64, 72), bucket(9, 64, 160)],
            ..set.config()
        }],
        true,
    );
    let placed: Vec<_> = report
        .samples
        .iter()
        .map(|s| (s.bucket.width, s.fit.as_str()))
        .collect();
    assert_eq!(placed[0], (96, "resized to 96x64"));
    assert_eq!(placed[2], (72, "kept at 72x64"));
    assert_eq!(placed[3], (160, "resized to 160x71, cut to 160x64 at the center"));
    let [note] = &report.notes[..] else {
        panic!("{:?}", report.notes)
    };
    for said in [
        "pixels that are not square",
        "(6 clips)",
        "a.y4m (pixels 4:3, 72x64 shown as 96x64)",
        "d.y4m (pixels 2:1, 72x64 shown as 144x64)",
        "and 1 more",
    ] {
        assert!(note.contains(said), "{said}: {note}");
    }
    // What is squeezed into its bucket is what was stored, once.
    let frames = load(&report.samples[0], &mut Rng::new(0)).unwrap();
    assert_eq!((frames.height, frames.width), (64, 96));
}
