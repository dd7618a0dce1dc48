//! Number of items that are shown, kept or drawn.

use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use tempfile::TempDir;
use vtrain::data::{self, Bucket};
use vtrain::hub::layout;
use vtrain::launch::lines::{Line, Lines, Stream};
use vtrain::report::about::{About, Clip};
use vtrain::report::thumbnails::{Maker, Thumbnail};
use vtrain::report::{self, Curves, Environment, Run};
use vtrain::run_dir::RunDir;
use vtrain::train::data_diff;
use vtrain::train::loss_spikes::LossSpikes;
use vtrain::train::metrics::{Config, Metrics};
use vtrain::train::validate;
use vtrain::video::{self, Frames};

const SMALL: Bucket = Bucket {
    frames: 9,
    height: 32,
    width: 48,
};

#[test]
fn of_many_files_a_message_names_the_first() {
    let files = |count: usize| (0..count).map(|n| format!("{n}.safetensors")).collect::<Vec<_>>();
    for (count, all) in [(10, true), (11, false)] {
        let told = layout::adapter(&files(count)).unwrap_err().to_string();
        assert!(told.contains("9.safetensors"), "{told}");
        assert_eq!(told.contains(&format!("{}.safetensors", count - 1)), all, "{told}");
    }
    for (count, note) in [(5, "5.mp4"), (6, "5.mp4 and 1 more")] {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("a.y4m"), crate::data::y4m(48, 32, 9, 8)).unwrap();
        fs::write(folder.path().join("a.txt"), "A.").unwrap();
        (1..=count).for_each(|n| fs::write(folder.path().join(format!(".{n}.mp4")), "").unwrap());
        let config = data::Config {
            path: folder.path().into(),
            ..data::Config::default()
        };
        let notes = data::manifest::read(&config).notes;
        assert!(notes.iter().any(|told| told.ends_with(note)), "{notes:?}");
    }
}

#[test]
fn of_many_clips_that_differ_the_first_ten_are_told() {
    let clip = |n: usize| data::cache::SampleListing {
        video: format!("{n}.mp4"),
        clip: n.to_string(),
        caption: "1".into(),
        repeats: 1,
    };
    for (gone, lines, last) in [
        (10, 10, "10.mp4: is gone"),
        (11, 11, "11.mp4: is gone"),
        (12, 11, "and 2 more"),
    ] {
        let then: Vec<_> = (0..=gone).map(clip).collect();
        let told = data_diff::list(&then, &then[..1]);
        assert_eq!((told.len(), told.last().unwrap().as_str()), (lines, last), "{told:?}");
    }
}

fn page(clips: Vec<Clip>) -> Value {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("metrics.jsonl"), "{\"step\": 1}\n").unwrap();
    let environment = Environment(Vec::new());
    About {
        steps: 1,
        frame_rate: 8.0,
        environment,
        clips,
    }
    .write(&RunDir::new(folder.path()))
    .unwrap();
    let html = report::html(&[Run::read(folder.path()).unwrap()], folder.path()).unwrap();
    let start = html.find("id=\"facts\">").unwrap() + "id=\"facts\">".len();
    let end = start + html[start..].find("</script>").unwrap();
    let facts: Value = serde_json::from_str(&html[start..end]).unwrap();
    facts["runs"][0]["clips"].clone()
}

#[test]
fn a_page_lists_2000_clips_and_1000_characters_of_a_caption() {
    let clip = |caption: String| Clip {
        name: "a.mp4".into(),
        caption,
        bucket: SMALL,
        repeats: 1,
        fps: 8.0,
        thumbnail: None,
    };
    for count in [2000, 2001] {
        let clips = page((0..count).map(|n| clip(n.to_string())).collect());
        assert_eq!(clips["total"], count);
        assert_eq!(clips["listed"].as_array().unwrap().len(), 2000);
    }
    let long = |count: usize| "é".repeat(count);
    let clips = page(vec![clip(long(1000)), clip(long(1001))]);
    assert_eq!(clips["listed"][0]["caption"], long(1000));
    assert_eq!(clips["listed"][1]["caption"], long(1000) + "…");
}

#[test]
fn the_first_200_clips_have_pictures_no_narrower_and_no_wider_than_fits_a_page() {
    let folder = TempDir::new().unwrap();
    let clip = folder.path().join("a.y4m");
    fs::write(&clip, crate::data::y4m(48, 32, 9, 8)).unwrap();
    let wanted = |width: usize, name: String| Thumbnail {
        clip: clip.clone(),
        bucket: Bucket { width, ..SMALL },
        name,
    };
    let pictures = folder.path().join("report");
    for (count, made) in [(3, 3), (201, 200)] {
        Maker::start(
            &RunDir::new(folder.path()),
            (0..count).map(|n| wanted(48, format!("{count}/{n}.jpg"))).collect(),
        )
        .finish();
        assert_eq!(fs::read_dir(pictures.join(count.to_string())).unwrap().count(), made);
    }
    // Rows: 144. At 32 rows of a bucket, 96 columns are as wide as can be, and 4 are 18.
    for (width, drawn) in [(48, 216), (95, 428), (96, 432), (97, 432), (4, 18), (3, 16)] {
        let name = format!("{width}.jpg");
        Maker::start(&RunDir::new(folder.path()), vec![wanted(width, name.clone())]).finish();
        let picture = video::Clip::open(&pictures.join(name)).unwrap();
        assert_eq!((picture.height(), picture.width()), (144, drawn), "{width}");
    }
}

#[test]
fn a_log_of_more_than_20_000_steps_is_thinned() {
    for (steps, whole) in [(20_000, true), (20_001, false)] {
        let log: String = (1..=steps)
            .map(|step| format!("{{\"step\": {step}, \"loss\": {}}}\n", step % 10))
            .collect();
        let curves = Curves::parse(log.as_bytes());
        assert_eq!(
            (curves.means.is_none(), curves.step.len() == steps),
            (whole, whole),
            "{steps}"
        );
    }
}

/// TensorBoard shows at most four frames of a clip, next to each other.
#[test]
fn a_strip_has_as_many_frames_as_the_clip_up_to_four() {
    for (frames, shown) in [(1, 1), (3, 3), (4, 4), (5, 4)] {
        let folder = TempDir::new().unwrap();
        let clip = Frames {
            data: vec![7; frames * 4 * 10 * 3],
            num_frames: frames,
            height: 4,
            width: 10,
        };
        let mut metrics = Metrics::open(&RunDir::new(folder.path()), &Config { tensorboard: true }, None).unwrap();
        metrics.show(1, "a", &clip).unwrap();
        drop(metrics);
        let file = fs::read_dir(folder.path().join("tensorboard"))
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        let bytes = fs::read(file).unwrap();
        let header = bytes.windows(4).position(|part| part == b"IHDR").unwrap();
        let width = u32::from_be_bytes(bytes[header + 4..header + 8].try_into().unwrap());
        assert_eq!(width, shown * 10, "{frames} frames");
    }
}

#[test]
fn a_videos_name_takes_whole_words_up_to_40_letters() {
    let (words, last) = ("a".repeat(37), "bb".to_string());
    assert_eq!(
        validate::name(0, &format!("{words} {last}")),
        format!("00-{words}-{last}")
    );
    assert_eq!(validate::name(0, &format!("{words} {last}b")), format!("00-{words}"));
    assert_eq!(validate::name(1, &"C".repeat(40)), format!("01-{}", "c".repeat(40)));
    assert_eq!(validate::name(1, &"C".repeat(41)), format!("01-{}", "c".repeat(40)));
}

/// The median is of the last 100 losses.
#[test]
fn a_loss_is_measured_by_the_hundred_before_it() {
    for (low, median) in [(50, 100.0), (51, 1.0)] {
        let before = std::iter::repeat_n(100.0, 60).chain(std::iter::repeat_n(1.0, low));
        assert_eq!(
            LossSpikes::new(Some(3.0), before).add(1e9),
            Some(median),
            "{low} of the last hundred"
        );
    }
}

/// For launchers ten times as much is kept as for a rank.
#[test]
fn last_words_are_the_last_lines_up_to_a_length() {
    let said = |count: usize, length: usize| {
        let mut lines = Lines::new(1, false, None);
        lines.silence();
        for n in 0..count {
            let text = format!("{n}{}", "x".repeat(length - n.to_string().len()));
            lines
                .take(&Line {
                    rank: None,
                    stream: Stream::Err,
                    text,
                })
                .unwrap();
        }
        let kept: Vec<_> = lines.of_starter().map(String::from).collect();
        (kept.len(), kept[0].clone())
    };
    assert_eq!(said(200, 5), (200, "0xxxx".into()));
    assert_eq!(said(201, 5), (200, "1xxxx".into()));
    assert_eq!([4000, 4001].map(|length| said(1, length).1.len()), [4000, 4000]);
}

#[test]
fn an_inspection_shows_200_characters_of_a_note_and_20_tensors_that_do_not_apply() {
    let folder = TempDir::new().unwrap();
    let inspected = |characters: usize, strangers: usize| {
        let name = "diffusion_model.blocks.0.self_attn.q.lora";
        let mut tensors = vec![
            (format!("{name}_A.weight"), [2, 4]),
            (format!("{name}_B.weight"), [4, 2]),
        ];
        tensors.extend((0..strangers).map(|n| (format!("stranger.{n:02}"), [1, 1])));
        let ones = |shape: [usize; 2]| Tensor::ones(&shape, DType::F32, &Device::Cpu).unwrap();
        let notes = [("note".to_string(), "n".repeat(characters))].into();
        let bytes = safetensors::serialize(
            tensors.into_iter().map(|(name, shape)| (name, ones(shape))),
            Some(notes),
        )
        .unwrap();
        let path = folder.path().join("a.safetensors");
        fs::write(&path, bytes).unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_vtrain"));
        let output = command
            .args(["lora", "inspect"])
            .arg(Path::new(&path))
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let (within, beyond) = (inspected(200, 20), inspected(201, 21));
    assert!(within.contains(&format!("note: {}\n", "n".repeat(200))), "{within}");
    assert!(beyond.contains(&format!("note: {}...\n", "n".repeat(200))), "{beyond}");
    assert!(
        within.contains("stranger.19") && !within.contains("and more"),
        "{within}"
    );
    assert!(
        beyond.contains("stranger.19") && !beyond.contains("stranger.20") && beyond.contains("and more"),
        "{beyond}"
    );
}
