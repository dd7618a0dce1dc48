//! Keys of a data set, in what a survey of it lists.

use std::fs;
use std::path::Path;

use tempfile::TempDir;
use vtrain::config::RunConfig;
use vtrain::data::loader::ClipSelection;
use vtrain::data::survey;
use vtrain::rng::Rng;

use crate::data::y4m;

/// A folder with clips of 60x48, 20 frames at 8 a second, under several layouts at once.
fn folder() -> TempDir {
    let folder = TempDir::new().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    let clip = y4m(60, 48, 20, 8);
    for name in ["a.y4m", "b.y4m", "other/a.y4m"] {
        write(&format!("set/{name}"), &clip);
    }
    write("set/a.txt", b"beside a");
    write("set/b.txt", b"beside b");
    write("set/other/a.txt", b"This video shows a ball.");
    write("set/videos.txt", b"a.y4m\n");
    write("set/second.txt", b"b.y4m\n");
    write("set/prompt.txt", b"of a line\n");
    write("set/third.txt", b"of another line\n");
    write(
        "set/metadata.csv",
        b"file_name,text,words,clip\na.y4m,of a row,of a column,b.y4m\n",
    );
    write("set/rows.csv", b"file_name,text\nb.y4m,of another row\n");
    write("set/short/a.y4m", &y4m(60, 48, 3, 8));
    write("set/short/a.txt", b"too short");
    write("set/short/b.y4m", &clip);
    write("set/short/b.txt", b"long enough");
    write("linked/a.txt", b"of a link");
    std::os::unix::fs::symlink(folder.path().join("set/a.y4m"), folder.path().join("linked/a.y4m")).unwrap();
    folder
}

/// Returns the listing of a run file with this data set: a line for each clip, and rejections.
fn listed(folder: &Path, dataset: &str) -> String {
    let text = format!("model: {{path: a/b}}\ndatasets: [{{{dataset}}}]\n");
    let config = RunConfig::parse(&text, Path::new("run.yaml"), folder, &[]).unwrap_or_else(|wrong| panic!("{wrong}"));
    let report = survey(&config.datasets, false, &|_, _| {});
    let clips = report.samples.iter().map(|sample| {
        let cut = ClipSelection::draw(sample, &mut Rng::new(5)).unwrap();
        format!(
            "{} '{}' {} x{} frames {:?} at {:.0}, {}\n",
            sample.found.entry.name,
            sample.found.entry.caption,
            sample.bucket,
            sample.repeats,
            cut.frames,
            cut.fps,
            sample.fit
        )
    });
    let refused = report
        .refused
        .iter()
        .map(|refusal| format!("refused, stops: {}\n", refusal.stops));
    clips.chain(refused).collect()
}

#[test]
fn every_key_of_a_data_set_changes_what_is_listed() {
    let folder = folder();
    let lines = "path: set, layout: lines, buckets: [[5, 48, 60]]";
    let table = "path: set, layout: metadata, buckets: [[5, 48, 60]]";
    let pairs = "path: set/other, layout: pairs, buckets: [[5, 48, 60]]";
    let short = "path: set/short, layout: pairs, buckets: [[5, 48, 60]]";
    let linked = "path: linked, layout: pairs, buckets: [[5, 48, 60]]";
    let spread = "frames [0, 4, 9, 14, 19]";
    let cases = [
        // Result without the key, the data set with it, and its result.
        (
            "",
            "path: set/other, buckets: [[5, 48, 60]]",
            "",
            "This video shows a ball.",
        ),
        (lines, lines, "", "a.y4m 'of a line' [5, 48, 60] x1"),
        (table, table, "", "a.y4m 'of a row'"),
        (lines, lines, "captions: third.txt", "a.y4m 'of another line'"),
        (lines, lines, "videos: second.txt", "b.y4m 'of a line'"),
        (table, table, "metadata: rows.csv", "b.y4m 'of another row'"),
        (table, table, "caption_column: words", "a.y4m 'of a column'"),
        (table, table, "video_column: clip", "b.y4m 'of a row'"),
        (pairs, pairs, "id_token: BALL", "'BALL This video shows a ball.'"),
        (pairs, pairs, "repeats: 3", "x3"),
        (pairs, pairs, "fps: 2", "frames [0, 4, 8, 12, 16] at 2"),
        (pairs, pairs, "frames: head", "frames [0, 1, 2, 3, 4] at 8"),
        (pairs, pairs, "remove_caption_prefixes: true", "'A ball.'"),
        (short, short, "on_invalid_clip: skip", "refused, stops: false"),
        (linked, linked, "follow_links: true", "a.y4m 'of a link'"),
    ];
    for (without, with, key, expected) in cases {
        let with = if key.is_empty() {
            with.to_string()
        } else {
            format!("{with}, {key}")
        };
        let found = listed(folder.path(), &with);
        assert!(found.contains(expected), "{with}:\n{found}is not\n{expected}");
        if !key.is_empty() {
            let found = listed(folder.path(), without);
            assert!(!found.contains(expected), "without {key}:\n{found}");
        }
    }
    assert!(listed(folder.path(), pairs).contains(spread));
    let crop = |crop: &str| {
        listed(
            folder.path(),
            &format!("path: set/other, layout: pairs, buckets: [[5, 24, 24]], crop: {crop}"),
        )
    };
    assert!(crop("center").contains("cut to 24x24 at the center"));
    assert!(crop("random").contains("cut to 24x24 at a random position"));
    assert!(crop("fit").contains("squeezed to 24x24"));
}
