//! All layouts, detected or configured.

use super::{Set, accepted, bmp};
use vtrain::data::Config;
use vtrain::data::dataset::Layout;
use vtrain::data::manifest;

const PARQUET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/data");

#[test]
fn lines_of_videos_belong_to_lines_of_prompts() {
    for captions in ["prompt.txt", "prompts.txt", "captions.txt", "Prompt.TXT"] {
        let set = Set::new().clips(&["videos/a.y4m", "videos/b.y4m"]);
        let set = set
            .file("videos.txt", "videos/b.y4m\nvideos/a.y4m\n")
            .file(captions, "Second.\nFirst.\n");
        let listing = set.read();
        assert_eq!(
            accepted(&listing),
            [("videos/b.y4m", "Second."), ("videos/a.y4m", "First.")]
        );
        assert_eq!(listing.notes, [""; 0]);
        let source = &listing.items[1].as_ref().unwrap().source;
        assert_eq!(set.without_folder(source), "videos.txt:2");
    }
}

#[test]
fn byte_order_marks_carriage_returns_and_blank_ends_are_no_content() {
    let set = Set::new().clips(&["a.y4m", "b.y4m"]);
    let set = set.file("videos.txt", "\u{feff}a.y4m\r\nb.y4m\r\n\r\n\r\n");
    let set = set.file("prompt.txt", "\u{feff}One.\r\n  Two. \r\n \r\n");
    assert_eq!(accepted(&set.read()), [("a.y4m", "One."), ("b.y4m", "Two.")]);
}

#[test]
fn files_with_other_names_are_named_in_the_config() {
    let set = Set::new()
        .clip("a.y4m")
        .file("lists/v", "a.y4m")
        .file("lists/c", "One.");
    let config = Config {
        videos: Some("lists/v".into()),
        captions: Some("lists/c".into()),
        ..set.config()
    };
    assert_eq!(accepted(&manifest::read(&config)), [("a.y4m", "One.")]);
}

#[test]
fn a_folder_of_pairs_is_searched_recursively_and_in_order() {
    let set = Set::new().clips(&["z.y4m", "a.y4m", "sub/deep/m.1.Y4M"]);
    let set = set
        .file("z.txt", "Z.\n")
        .file("a.TXT", "A.\nAnd more.\n")
        .file("sub/deep/m.1.txt", "M.");
    let listing = set.read();
    assert_eq!(
        accepted(&listing),
        [("a.y4m", "A. And more."), ("sub/deep/m.1.Y4M", "M."), ("z.y4m", "Z.")]
    );
    assert_eq!(listing.notes, [""; 0]);
}

#[test]
fn a_folder_of_images_is_found_and_images_among_clips_are_said_to_be_unused() {
    let set = Set::new()
        .file("a.bmp", bmp(8, 8))
        .file("a.txt", "A.")
        .file("b.JPG", "not read here")
        .file("b.txt", "B.");
    assert_eq!(accepted(&set.read()), [("a.bmp", "A."), ("b.JPG", "B.")]);

    let set = set.clip("a.y4m");
    let listing = set.read();
    assert_eq!(accepted(&listing), [("a.y4m", "A.")]);
    let note = "images are not used; they need a data set with `layout: images`: a.bmp, b.JPG";
    assert_eq!(listing.notes, [note]);
    let images = Config {
        layout: Layout::Images,
        ..set.config()
    };
    assert_eq!(accepted(&manifest::read(&images)), [("a.bmp", "A."), ("b.JPG", "B.")]);
}

#[test]
fn clips_that_share_a_caption_file_are_both_used_and_it_is_said() {
    let set = Set::new().clips(&["x.y4m", "x.avi"]).file("x.txt", "X.");
    let listing = set.read();
    assert_eq!(accepted(&listing), [("x.avi", "X."), ("x.y4m", "X.")]);
    assert_eq!(
        listing.notes,
        ["x.txt is the caption of each of x.avi, x.y4m; remove all but one"]
    );
}

#[test]
fn a_table_is_read_in_every_format_and_with_every_usual_column() {
    for (name, table) in [
        (
            "metadata.csv",
            "file_name,text\na.y4m,\"One, two.\"\nsub/b.y4m,Three.\n",
        ),
        (
            "METADATA.CSV",
            "\u{feff}Text;File_Name\r\nOne, two.;a.y4m\r\n\r\nThree.;sub/b.y4m\r\n",
        ),
        ("metadata.tsv", "path\tprompt\na.y4m\tOne, two.\nsub/b.y4m\tThree.\n"),
        (
            "metadata.jsonl",
            "{\"video\": \"a.y4m\", \"caption\": \"One, two.\", \"n\": 1}\n\n{\"caption\": \"Three.\", \"video\": \"sub/b.y4m\"}",
        ),
        (
            "metadata.json",
            "[{\"path\": \"a.y4m\", \"prompt\": \"One, two.\"},\n {\"path\": \"sub/b.y4m\", \"prompt\": \"Three.\"}]",
        ),
        ("metadata.json", "{\"a.y4m\": \"One, two.\", \"sub/b.y4m\": \"Three.\"}"),
        (
            "metadata.json",
            "{\"a.y4m\": {\"caption\": \"One, two.\"}, \"sub/b.y4m\": {\"caption\": \"Three.\"}}",
        ),
    ] {
        let set = Set::new().clips(&["a.y4m", "sub/b.y4m"]).file(name, table);
        let listing = set.read();
        assert_eq!(
            accepted(&listing),
            [("a.y4m", "One, two."), ("sub/b.y4m", "Three.")],
            "{name}: {table}"
        );
        assert_eq!(set.refusals(&listing), [""; 0], "{name}: {table}");
        assert_eq!(listing.notes, [""; 0], "{name}: {table}");
    }
}

#[test]
fn parquet_as_pyarrow_writes_it_is_read() {
    for file in ["plain.parquet", "zstd.parquet"] {
        let bytes = std::fs::read(format!("{PARQUET}/{file}")).unwrap();
        let set = Set::new()
            .clips(&["a.y4m", "b.y4m", "c.y4m"])
            .file("metadata.parquet", bytes);
        let listing = set.read();
        assert_eq!(
            accepted(&listing),
            [("a.y4m", "A red square."), ("c.y4m", "Ein blauer Würfel.")]
        );
        let refused = set.refusals(&listing);
        assert!(
            refused[0].starts_with("metadata.parquet:2: b.y4m: the caption is empty"),
            "{refused:?}"
        );
    }
}

#[test]
fn tables_may_lie_in_subfolders_and_name_clips_beside_them_or_from_the_top() {
    let set = Set::new().clips(&["one/a.y4m", "two/b.y4m", "two/deep/c.y4m"]);
    let set = set.file("one/metadata.csv", "file_name,text\na.y4m,A.\n");
    let set = set.file("two/metadata.csv", "file_name,text\ndeep/c.y4m,C.\ntwo/b.y4m,B.\n");
    let listing = set.read();
    assert_eq!(
        accepted(&listing),
        [("one/a.y4m", "A."), ("two/deep/c.y4m", "C."), ("two/b.y4m", "B.")]
    );
    assert_eq!(listing.notes, [""; 0]);
}

#[test]
fn columns_are_chosen_by_the_config_and_a_guess_is_said() {
    let set = Set::new()
        .clip("a.y4m")
        .file("metadata.csv", "file_name,text,caption\na.y4m,T.,C.\n");
    let listing = set.read();
    assert_eq!(accepted(&listing), [("a.y4m", "T.")]);
    let note = "metadata.csv: the captions are taken from `text`, not from `caption`; `caption_column` chooses another";
    assert_eq!(set.without_folder(&listing.notes[0]), note);

    let config = Config {
        caption_column: Some("caption".into()),
        ..set.config()
    };
    let listing = manifest::read(&config);
    assert_eq!((accepted(&listing), listing.notes.len()), (vec![("a.y4m", "C.")], 0));
}

#[test]
fn clips_that_no_manifest_names_and_clips_named_twice_are_said() {
    let set = Set::new().clips(&["a.y4m", "b.y4m", "sub/c.y4m"]);
    let set = set
        .file("videos.txt", "a.y4m\n./a.y4m\n")
        .file("prompt.txt", "One.\nAgain.\n");
    let listing = set.read();
    assert_eq!(accepted(&listing), [("a.y4m", "One."), ("a.y4m", "Again.")]);
    let notes: Vec<_> = listing.notes.iter().map(|note| set.without_folder(note)).collect();
    assert_eq!(
        notes,
        [
            "2 files not named in videos.txt, so not used: b.y4m, sub/c.y4m",
            "a.y4m is named 2 times, each is used: videos.txt:1, videos.txt:2",
        ]
    );
}

#[test]
fn an_absolute_path_within_the_folder_is_shown_as_the_relative_one() {
    let set = Set::new().clip("sub/a.y4m");
    let absolute = set.path().join("sub/a.y4m").display().to_string();
    let set = set.file("videos.txt", absolute).file("prompt.txt", "One.");
    assert_eq!(accepted(&set.read()), [("sub/a.y4m", "One.")]);
}

#[test]
fn the_token_and_the_prefixes_are_seen_to_while_reading() {
    let set = Set::new().clip("a.y4m").file("a.txt", "This video shows a dog.");
    let config = Config {
        id_token: Some("TOK".into()),
        remove_caption_prefixes: true,
        ..set.config()
    };
    assert_eq!(accepted(&manifest::read(&config)), [("a.y4m", "TOK A dog.")]);
}

#[test]
fn files_that_are_neither_clips_nor_captions_are_said() {
    let set = Set::new()
        .clip("a.y4m")
        .file("a.txt", "A.")
        .file("notes.md", "Notes.")
        .file("b.rm", "Old.");
    let listing = set.read();
    assert_eq!(listing.notes, ["files of other kinds are ignored: b.rm, notes.md"]);
}
