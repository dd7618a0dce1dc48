//! Every way in which a data set can name a file leads to files inside its folder, unless `follow_links` is set.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use vtrain::data::dataset::Layout;
use vtrain::data::{Config, manifest};

use super::{Set, bmp};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/data");

/// Files outside: clips, an image, captions and manifests.
fn outside() -> Set {
    Set::new()
        .clips(&["a.y4m", "b.y4m", "c.y4m"])
        .file("a.png", bmp(48, 32))
        .file("a.txt", "A secret.")
        .file("list.txt", "in.y4m\n")
        .file("table.csv", "file_name,text\nin.y4m,A secret.\n")
}

/// A data set with one clip of its own.
fn inside() -> Set {
    Set::new().clip("in.y4m")
}

/// Refused where links are not followed, by this name and for that alone; accepted where they are.
#[track_caller]
fn leads_out(set: &Set, config: Config, place: &str) {
    let listing = manifest::read(&config);
    let refused = set.refusals(&listing);
    let named = |said: &&String| said.contains("leads out of the data set's folder, to ") && said.contains(place);
    assert_eq!(
        refused.iter().filter(named).count(),
        refused.len(),
        "{place}: {refused:#?}"
    );
    assert!(!refused.is_empty(), "{place}: {listing:?}");
    assert!(
        listing
            .items
            .iter()
            .flatten()
            .all(|entry| !entry.caption.contains("secret")),
        "{place}: {listing:?}"
    );
    let followed = manifest::read(&Config {
        follow_links: true,
        ..config
    });
    let left: Vec<String> = set
        .refusals(&followed)
        .into_iter()
        .filter(|said| said.contains("leads out"))
        .collect();
    assert!(
        left.is_empty() && followed.items.iter().any(Result::is_ok),
        "{place}: {followed:?}"
    );
}

/// The three ways out: a link, dots, a whole path.
fn ways(set: &Set, outside: &Set, name: &str) -> [String; 3] {
    let link = format!("link-{name}");
    if !set.path().join(&link).exists() {
        symlink(outside.path().join(name), set.path().join(&link)).unwrap();
    }
    let folder = outside.path().file_name().unwrap().to_str().unwrap();
    [
        link,
        format!("../{folder}/{name}"),
        outside.path().join(name).display().to_string(),
    ]
}

#[test]
fn clips_that_manifests_of_every_kind_name() {
    let outside = outside();
    for (file, before, between, after) in [
        ("videos.txt", "", "\n", ""),
        ("metadata.csv", "file_name,text\n", ",A.\n", ",A.\n"),
        ("metadata.tsv", "file_name\ttext\n", "\tA.\n", "\tA.\n"),
        (
            "metadata.jsonl",
            "{\"video\": \"",
            "\", \"text\": \"A.\"}\n{\"video\": \"",
            "\", \"text\": \"A.\"}\n",
        ),
        (
            "metadata.json",
            "[{\"video\": \"",
            "\", \"text\": \"A.\"}, {\"video\": \"",
            "\", \"text\": \"A.\"}]",
        ),
        ("metadata.json", "{\"", "\": \"A.\", \"", "\": \"A.\"}"),
    ] {
        let set = inside();
        for way in ways(&set, &outside, "a.y4m") {
            let text = [before, "in.y4m", between, &way, after].concat();
            fs::write(set.path().join(file), text).unwrap();
            fs::write(set.path().join("prompt.txt"), "A.\nA.\n").unwrap();
            leads_out(&set, set.config(), &format!("{file}:"));
        }
    }
}

#[test]
fn clips_that_parquet_names() {
    let outside = outside();
    let set = Set::new().file(
        "metadata.parquet",
        fs::read(format!("{FIXTURES}/plain.parquet")).unwrap(),
    );
    for name in ["a.y4m", "c.y4m"] {
        symlink(outside.path().join(name), set.path().join(name)).unwrap();
    }
    let listing = manifest::read(&set.config());
    let refused = set.refusals(&listing);
    assert_eq!(
        refused.iter().filter(|said| said.contains("leads out")).count(),
        2,
        "{refused:?}"
    );
    assert!(listing.items.iter().all(Result::is_err), "{listing:?}");
}

#[test]
fn manifests_and_captions_themselves() {
    let outside = outside();
    let set = inside().file("prompt.txt", "A.").file("videos.txt", "in.y4m");
    for way in ways(&set, &outside, "a.txt") {
        let config = Config {
            captions: Some(way.clone().into()),
            ..set.config()
        };
        leads_out(&set, config, Path::new(&way).file_name().unwrap().to_str().unwrap());
    }
    for way in ways(&set, &outside, "list.txt") {
        let config = Config {
            videos: Some(way.clone().into()),
            ..set.config()
        };
        leads_out(&set, config, Path::new(&way).file_name().unwrap().to_str().unwrap());
    }
    for way in ways(&set, &outside, "table.csv") {
        let config = Config {
            metadata: Some(way.clone().into()),
            ..set.config()
        };
        leads_out(&set, config, Path::new(&way).file_name().unwrap().to_str().unwrap());
    }
    // Found by looking.
    let set = inside();
    symlink(outside.path().join("table.csv"), set.path().join("metadata.csv")).unwrap();
    leads_out(&set, set.config(), "metadata.csv");
    let set = inside().file("prompt.txt", "A.");
    symlink(outside.path().join("list.txt"), set.path().join("videos.txt")).unwrap();
    leads_out(&set, set.config(), "videos.txt");
}

#[test]
fn captions_clips_and_images_that_lie_beside_each_other() {
    let outside = outside();
    let set = inside();
    symlink(outside.path().join("a.txt"), set.path().join("in.txt")).unwrap();
    leads_out(&set, set.config(), "in.txt");

    let set = inside().file("in.txt", "In.").file("out.txt", "Out.");
    symlink(outside.path().join("a.y4m"), set.path().join("out.y4m")).unwrap();
    leads_out(&set, set.config(), "out.y4m");

    let set = Set::new()
        .file("in.png", bmp(48, 32))
        .file("in.txt", "In.")
        .file("out.txt", "Out.");
    symlink(outside.path().join("a.png"), set.path().join("out.png")).unwrap();
    let config = Config {
        layout: Layout::Images,
        ..set.config()
    };
    leads_out(&set, config, "out.png");
}
