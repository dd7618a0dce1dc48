//! Problems of a data set: each with its own message, by file and line, all at once.

use std::os::unix::fs::symlink;

use super::survey;
use super::{Set, accepted, y4m};
use vtrain::data::Config;
use vtrain::data::dataset::Layout;
use vtrain::data::manifest;
use vtrain::data::survey::Report;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/data");

/// The refusals of a set that is read as it is.
fn refusals(set: &Set) -> Vec<String> {
    set.refusals(&set.read())
}

/// The refusals of a survey, without the folder.
fn refused(set: &Set, report: &Report) -> Vec<String> {
    report
        .refused
        .iter()
        .map(|refusal| set.without_folder(refusal))
        .collect()
}

#[track_caller]
fn assert_starts(found: &[String], wanted: &[&str]) {
    let matches = |(found, wanted): (&String, &&str)| found.starts_with(wanted);
    assert!(
        found.len() == wanted.len() && found.iter().zip(wanted).all(matches),
        "{found:#?}\n{wanted:#?}"
    );
}

#[test]
fn a_folder_with_many_faults_reports_each_on_a_line_of_its_own() {
    let set = Set::new().clips(&["good.y4m", "orphan.y4m", "blank.y4m", "latin.y4m", "short.y4m"]);
    let set = set
        .file("good.txt", "Good.")
        .file("blank.txt", " \r\n\n")
        .file("latin.txt", b"fine\ncaf\xe9");
    let set = set.file("short.y4m", y4m(48, 32, 2, 8)).file("short.txt", "Short.");
    let set = set
        .file("zero.mp4", "")
        .file("zero.txt", "Zero.")
        .file("zero-caption.txt", "");
    let set = set
        .file("noise.mp4", "this is no video")
        .file("noise.txt", "Noise.")
        .file("lone.txt", "Lone.");
    let set = set
        .file("cut.y4m", &y4m(48, 32, 9, 8)[..9000])
        .file("cut.txt", "Cut.")
        .file("README.txt", "Hello.");
    let report = survey(&[set.config()], false);
    assert_eq!(report.samples.len(), 1);
    assert_starts(
        &refused(&set, &report),
        &[
            "blank.txt: blank.y4m: the caption is empty; write one, or remove the clip",
            "cut.y4m: ",
            "latin.txt:2: not valid UTF-8 at byte 4; save the file as UTF-8",
            "lone.txt: no clip for this caption; add lone.mp4 or its like, or remove the caption",
            "noise.mp4: not a readable clip",
            "orphan.y4m: no caption for this clip; add orphan.txt, or remove the clip",
            "short.y4m: too short: it has 2 frames, the shortest bucket [9, 32, 48] needs 9; add a shorter bucket, or remove the clip",
            "zero.mp4: the file has zero bytes; fetch it again, or remove it",
            "zero-caption.txt: no clip for this caption",
        ],
    );
    let notes: Vec<_> = report
        .notes
        .iter()
        .map(|note| note.rsplit(": ").next().unwrap())
        .collect();
    assert_eq!(notes, ["README.txt is not used as a caption"]);
}

#[test]
fn both_files_of_a_line_are_examined() {
    let set = Set::new().clips(&["a.y4m", "d.y4m"]);
    let set = set.file(
        "videos.txt",
        "a.y4m\ngone.mp4\n\n../out.mp4\nd.y4m\n\u{2764}\u{fe0f}.mp4\n",
    );
    let set = set.file("prompt.txt", b"\nGone.\nC.\nD.\n\xff\xfe\nHeart.\n");
    assert_starts(
        &refusals(&set),
        &[
            "prompt.txt:1: a.y4m: the caption is empty",
            "videos.txt:2: gone.mp4: no such file; correct the name, or add the file",
            "videos.txt:3: no name of a clip here; write one, or remove the line and its caption",
            "videos.txt:4: ../out.mp4: leads out of the data set's folder, to ",
            "prompt.txt:5: d.y4m: not valid UTF-8 at byte 1",
            "videos.txt:6: \u{2764}\u{fe0f}.mp4: no such file",
        ],
    );
}

#[test]
fn counts_that_differ_are_one_fault_that_no_skipping_passes_over() {
    let set = Set::new()
        .clips(&["a.y4m", "b.y4m"])
        .file("videos.txt", "a.y4m\nb.y4m\n")
        .file("prompts.txt", "One.\n");
    let config = Config {
        on_invalid_clip: vtrain::data::dataset::OnInvalidClip::Skip,
        ..set.config()
    };
    let report = survey(&[config], false);
    let message = "videos.txt: names 2 clips but prompts.txt has 1 caption; line n of one belongs to line n of the other, \
                   so both need the same number of lines";
    assert_eq!(refused(&set, &report), [message]);
    assert!(report.stops());
}

#[test]
fn blank_lines_at_the_end_of_the_captions_belong_to_the_last_clips() {
    let set = Set::new()
        .clips(&["a.y4m", "b.y4m"])
        .file("videos.txt", "a.y4m\nb.y4m")
        .file("prompt.txt", "One.\n\n");
    assert_starts(&refusals(&set), &["prompt.txt:2: b.y4m: the caption is empty"]);
}

#[test]
fn what_is_looked_for_and_not_found_is_said() {
    let set = Set::new();
    assert_starts(
        &refusals(&set),
        &[&format!(
            "{}: no data set found; looked for videos.txt",
            set.path().display()
        )],
    );

    let gone = Config {
        path: set.path().join("gone"),
        ..Config::default()
    };
    let listing = manifest::read(&gone);
    assert_starts(
        &set.refusals(&listing),
        &["gone: the data set's folder does not exist; correct `path`"],
    );

    let set = set.clip("a.y4m").file("videos.txt", "a.y4m\n");
    let missing =
        "file not found; looked for prompt.txt, prompts.txt, captions.txt; add it, or name another with `captions`";
    assert_eq!(refusals(&set), [format!("{}: {missing}", set.path().display())]);

    let file = Config {
        path: set.path().join("videos.txt"),
        ..Config::default()
    };
    assert_starts(
        &set.refusals(&manifest::read(&file)),
        &["videos.txt: `path` must be a folder"],
    );

    let named = Config {
        captions: Some("c.txt".into()),
        ..set.config()
    };
    let message = "c.txt: file not found; looked for c.txt; add it, or name another with `captions`";
    assert_starts(&set.refusals(&manifest::read(&named)), &[message]);

    let table = Config {
        layout: Layout::Metadata,
        ..set.config()
    };
    let listing = manifest::read(&table);
    assert!(
        set.refusals(&listing)[0].contains("looked for metadata.csv, .jsonl"),
        "{listing:?}"
    );
}

#[test]
fn where_two_could_be_meant_neither_is_guessed() {
    let set = Set::new()
        .clip("a.y4m")
        .file("videos.txt", "a.y4m")
        .file("prompt.txt", "A.")
        .file("captions.txt", "A.");
    assert!(
        refusals(&set)[0]
            .ends_with("found captions.txt and prompt.txt, but only one can be used; choose with `captions`")
    );
    let set = set.file("metadata.csv", "file_name,text\na.y4m,A.\n");
    assert!(
        refusals(&set)[0]
            .ends_with("found videos.txt and metadata.csv, but only one can be used; choose with `layout`")
    );
    let set = Set::new()
        .file("metadata.csv", "file_name,text\n")
        .file("metadata.jsonl", "{}");
    assert!(
        refusals(&set)[0].contains("metadata.csv and metadata.jsonl"),
        "{:?}",
        refusals(&set)
    );
}

#[test]
fn links_and_dots_stay_inside_unless_they_are_followed() {
    let outside = Set::new().clips(&["real.y4m", "more/b.y4m"]).file("more/b.txt", "B.");
    let set = Set::new().clip("in/a.y4m").file("in/a.txt", "A.");
    symlink(outside.path().join("real.y4m"), set.path().join("link.y4m")).unwrap();
    symlink(outside.path().join("more"), set.path().join("folder")).unwrap();
    symlink(set.path().join("in"), set.path().join("again")).unwrap();
    symlink("nowhere", set.path().join("broken.mp4")).unwrap();
    symlink(set.path(), set.path().join("in/round")).unwrap();
    let set = set.file("link.txt", "L.").file("broken.txt", "Broken.");

    let listing = set.read();
    assert_eq!(accepted(&listing), [("in/a.y4m", "A.")]);
    assert_starts(
        &set.refusals(&listing),
        &[
            "folder: leads out of the data set's folder, to ",
            "broken.mp4: a symbolic link to nowhere, which does not exist; fix or remove it",
            "link.y4m: leads out of the data set's folder, to ",
        ],
    );
    assert_eq!(
        listing.notes.len(),
        2,
        "the links within the folder: {:?}",
        listing.notes
    );

    let followed = manifest::read(&Config {
        follow_links: true,
        ..set.config()
    });
    assert_eq!(
        accepted(&followed),
        [("folder/b.y4m", "B."), ("in/a.y4m", "A."), ("link.y4m", "L.")]
    );

    let name = format!("../{}/real.y4m", outside.path().file_name().unwrap().to_str().unwrap());
    let set = Set::new().file("videos.txt", &name).file("prompt.txt", "Up and out.");
    assert_starts(
        &refusals(&set),
        &[&format!("videos.txt:1: {name}: leads out of the data set's folder")],
    );
    let followed = manifest::read(&Config {
        follow_links: true,
        ..set.config()
    });
    assert_eq!(accepted(&followed), [(name.as_str(), "Up and out.")]);
    let absolute = outside.path().join("real.y4m").display().to_string();
    let set = Set::new().file("videos.txt", absolute).file("prompt.txt", "Elsewhere.");
    assert_eq!(refusals(&set).len(), 1);
}

#[test]
fn a_folder_or_a_pipe_named_as_a_clip_is_no_clip() {
    let set = Set::new()
        .clip("sub.mp4/a.y4m")
        .file("videos.txt", "sub.mp4\nsub.mp4/a.y4m/b.y4m")
        .file("prompt.txt", "A.\nB.");
    assert_starts(
        &refusals(&set),
        &[
            "videos.txt:1: sub.mp4: not an ordinary file",
            "videos.txt:2: sub.mp4/a.y4m/b.y4m: no such file",
        ],
    );
}

#[test]
fn rows_of_a_csv_are_refused_by_their_line() {
    let table =
        b"file_name,text\n\na.y4m,one, two\n\"a.y4m\",\"two\nlines\"\ngone.mp4,G.\r\na.y4m,caf\xe9\n,N.\na.y4m,\n";
    let set = Set::new().clip("a.y4m").file("metadata.csv", table);
    let listing = set.read();
    assert_eq!(accepted(&listing), [("a.y4m", "two lines")]);
    assert_starts(
        &set.refusals(&listing),
        &[
            "metadata.csv:3: malformed: 3 fields where the header has 2; quote a caption",
            "metadata.csv:6: gone.mp4: no such file",
            "metadata.csv:7: a.y4m: not valid UTF-8 at byte 4",
            "metadata.csv:8: no name of a clip here",
            "metadata.csv:9: a.y4m: the caption is empty",
        ],
    );
}

#[test]
fn a_quote_without_an_end_does_not_swallow_the_rows_below_it_in_silence() {
    let set = Set::new()
        .clips(&["a.y4m", "b.y4m"])
        .file("metadata.csv", "file_name,text\na.y4m,\"open\nb.y4m,B.\n");
    let message = "metadata.csv:2: malformed: a quote that opens here is never closed; rows below it are lost";
    assert!(refusals(&set).contains(&message.to_owned()), "{:?}", refusals(&set));
}

#[test]
fn lines_and_elements_of_json_are_refused_by_their_line() {
    let set = Set::new().clip("a.y4m");
    let set = set.file(
        "metadata.jsonl",
        b"{\"video\": \"a.y4m\", \"text\": \"A.\"}\n[1]\n{\"video\": \n{\"video\": 7, \"text\": \"x\"}\n\n{\"video\": \"a.y4m\", \"text\": {\"en\": \"x\"}}\n{\"text\": null, \"video\": \"a.y4m\"}\n\xff\n",
    );
    assert_starts(
        &refusals(&set),
        &[
            "metadata.jsonl:2: malformed: expected an object, found a list",
            "metadata.jsonl:3: malformed: EOF while parsing a value at column ",
            "metadata.jsonl:4: `video` must be text, found a number",
            "metadata.jsonl:6: a.y4m: `text` must be text, found an object",
            "metadata.jsonl:7: a.y4m: the caption is empty",
            "metadata.jsonl:8: not valid UTF-8 at byte 1",
        ],
    );
    let table = "[\n  {\"video\": \"a.y4m\", \"text\": \"[1, {\\\"\"},\n\n  {\"video\": \"gone.mp4\",\n   \"text\": \"G.\"}, 3,\n \"x\"]";
    let set = Set::new().clip("a.y4m").file("metadata.json", table);
    assert_starts(
        &refusals(&set),
        &[
            "metadata.json:4: gone.mp4: no such file",
            "metadata.json:5: malformed: expected an object, found a number",
            "metadata.json:6: malformed: expected an object, found text",
        ],
    );
}

#[test]
fn tables_that_cannot_be_used_at_all_say_why() {
    let deep = "[".repeat(100_000);
    for (name, table, wanted) in [
        (
            "metadata.json",
            "[1, 2",
            "metadata.json:1: malformed: EOF while parsing a list at column ",
        ),
        (
            "metadata.json",
            "7",
            "metadata.json:1: malformed: expected a list of objects, found a number",
        ),
        (
            "metadata.json",
            deep.as_str(),
            "metadata.json:1: malformed: recursion limit exceeded",
        ),
        (
            "metadata.json",
            "{\"a.y4m\": \"1\",\n\"a.y4m\": \"2\"}",
            "metadata.json: malformed: a clip is a key more than once",
        ),
        (
            "metadata.json",
            "[]",
            "metadata.json: malformed: it has no readable row",
        ),
        (
            "metadata.csv",
            "clip_id,text\n1,A.\n",
            "metadata.csv: no column with the names of the clips; found clip_id, text; ",
        ),
        (
            "metadata.csv",
            "video,words\n1,A.\n",
            "metadata.csv: no column with the captions; found video, words; ",
        ),
        ("metadata.csv", "", "metadata.csv: the file has zero bytes"),
        (
            "metadata.csv",
            "video,text\n",
            "metadata.csv: malformed: it has no readable row",
        ),
        ("metadata.parquet", "PAR1 no more", "metadata.parquet: cannot be read: "),
    ] {
        assert_starts(&refusals(&Set::new().file(name, table)), &[wanted]);
    }
    let utf16: Vec<u8> = "\u{feff}a.y4m\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let set = Set::new().file("videos.txt", utf16).file("prompt.txt", "A.");
    assert_starts(
        &refusals(&set),
        &["videos.txt: cannot be read: it is UTF-16; save it as UTF-8"],
    );
    let json = Set::new().file("metadata.json", b"[{\"video\":\n \"\xff\"}]");
    assert_starts(&refusals(&json), &["metadata.json:2: not valid UTF-8 at byte "]);
}

#[test]
fn clips_embedded_in_parquet_are_named_as_what_they_are() {
    let bytes = std::fs::read(format!("{FIXTURES}/embedded.parquet")).unwrap();
    let set = Set::new().file("metadata.parquet", bytes);
    let message = "metadata.parquet: no column with the names of the clips; found caption, video (not text); name one with `video_column`";
    assert_eq!(refusals(&set), [message]);
}

#[test]
fn damaged_parquet_is_refused_and_nothing_worse() {
    let bytes = std::fs::read(format!("{FIXTURES}/zstd.parquet")).unwrap();
    for n in (0..bytes.len()).step_by(7) {
        let mut flipped = bytes.clone();
        flipped[n] ^= 0x55;
        Set::new().file("metadata.parquet", flipped).read();
        Set::new().file("metadata.parquet", &bytes[..n.max(1)]).read();
    }
}

#[test]
fn nothing_left_of_a_caption_without_its_prefix_is_said() {
    let set = Set::new().clip("a.y4m").file("a.txt", "This video shows");
    let listing = manifest::read(&Config {
        remove_caption_prefixes: true,
        ..set.config()
    });
    assert_starts(
        &set.refusals(&listing),
        &["a.txt: a.y4m: nothing is left of the caption \"This video shows\" without its prefix"],
    );
}

#[test]
fn hidden_files_are_passed_over_and_said() {
    let set = Set::new()
        .clip("a.y4m")
        .file("a.txt", "A.")
        .file("._a.mp4", "resource fork")
        .file(".git/x.mp4", "");
    let listing = set.read();
    assert_eq!(
        (accepted(&listing), set.refusals(&listing).len()),
        (vec![("a.y4m", "A.")], 0)
    );
    assert_eq!(listing.notes, ["hidden files are ignored: ._a.mp4"]);
}

#[test]
fn lines_that_are_all_malformed_are_each_said() {
    let set = Set::new().file("metadata.jsonl", "a\n[]\n");
    let refused = refusals(&set);
    let wanted = [
        "metadata.jsonl:1: malformed",
        "metadata.jsonl:2: malformed",
        "metadata.jsonl: malformed",
    ];
    assert_starts(&refused, &wanted);
}

#[test]
fn a_line_break_in_a_file_name_does_not_break_the_line_of_its_message() {
    let set = Set::new().clip("a\nb.y4m");
    assert_eq!(refusals(&set)[0].lines().count(), 1);
}

#[test]
fn of_two_captions_of_one_name_the_second_is_refused() {
    let set = Set::new().clip("a.y4m").file("a.TXT", "One.").file("a.txt", "Two.");
    let listing = set.read();
    assert_eq!(accepted(&listing), [("a.y4m", "One.")]);
    assert_starts(
        &set.refusals(&listing),
        &["a.txt: a.TXT is a caption of the same clip, and only one can be used; remove one"],
    );
}

#[test]
fn sound_without_a_picture_is_no_clip() {
    let mut wav =
        b"RIFF\x24\x10\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x80\x3e\0\0\x02\0\x10\0data\0\x10\0\0".to_vec();
    wav.resize(44 + 4096, 0);
    let set = Set::new().file("a.mp4", wav).file("a.txt", "A hum.");
    let report = survey(&[set.config()], false);
    assert_starts(
        &refused(&set, &report)[..1],
        &["a.mp4: no video stream, perhaps audio only"],
    );
}

/// Whatever bytes a manifest holds, there is an answer.
#[test]
fn no_manifest_is_too_odd_to_be_read() {
    let odd: [&[u8]; 12] = [
        b"\n",
        b"\xff",
        b"\0",
        b"\r\r\r",
        b"\"",
        b",",
        b"file_name,text\n\"",
        b"file_name,text\n\0,\0\n",
        b"[{}]",
        b"{}",
        b"null\n",
        b"[[[{\"a\": 1e999}]]]",
    ];
    for bytes in odd {
        for name in [
            "metadata.csv",
            "metadata.tsv",
            "metadata.jsonl",
            "metadata.json",
            "metadata.parquet",
            "videos.txt",
        ] {
            let set = Set::new().file(name, bytes).file("prompt.txt", bytes);
            let report = survey(&[set.config()], false);
            assert!(report.stops(), "{name}: {bytes:?}");
        }
    }
}

#[test]
fn heic_pictures_are_refused_as_what_they_are_and_not_passed_over() {
    let heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic\0\0\0\x08meta";
    for name in ["IMG_1.HEIC", "IMG_1.jpg"] {
        let set = Set::new().file(name, heic).file("IMG_1.txt", "One.");
        let report = survey(&[set.config()], false);
        let told: Vec<_> = report
            .refused
            .iter()
            .map(|refusal| set.without_folder(refusal))
            .collect();
        let said = "is a HEIC picture, which is not read; save it as JPEG or PNG, or remove it";
        assert!(told.contains(&format!("{name}: {said}")), "{told:?}");
    }
}
