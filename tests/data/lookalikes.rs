//! Names that look the same in Unicode's composed (NFC) and decomposed (NFD) form. Python:
//! `unicodedata.normalize("NFD", "Café – Übung ガ")`.

use super::{Set, accepted, survey, survey_folder};
use vtrain::data::Config;
use vtrain::disk::{composed, spelled};

/// é, Ü and ガ as one character each.
const NFC: &str = "Caf\u{e9} \u{dc}bung \u{30ac}";

/// A letter and a mark each, which is how macOS names files.
const NFD: &str = "Cafe\u{301} U\u{308}bung \u{30ab}\u{3099}";

/// A clip in one form and a list in the other, both ways round.
const WAYS: [(&str, &str); 2] = [(NFC, NFD), (NFD, NFC)];

#[test]
fn a_list_finds_its_clips_in_the_other_form_in_folders_too() {
    for (listed, there) in WAYS {
        assert_ne!(listed, there);
        let set = Set::new()
            .clip(&format!("{there}/{there}.y4m"))
            .clip(&format!("{there}.y4m"));
        let set = set.file("videos.txt", format!("{listed}/{listed}.y4m\n{listed}.y4m\n"));
        let set = set.file("prompt.txt", "In a folder.\nAt the top.\n");
        let listing = set.read();
        let captions: Vec<_> = accepted(&listing).into_iter().map(|(_, caption)| caption).collect();
        assert_eq!(
            captions,
            ["In a folder.", "At the top."],
            "{:?}",
            set.refusals(&listing)
        );
        assert_eq!(listing.notes, [""; 0], "and nothing is called unnamed");
        assert_eq!(survey(&[set.config()], true).samples.len(), 2);
    }
}

#[test]
fn tables_and_files_that_the_config_names_do_so_too() {
    for (listed, there) in WAYS {
        let set = Set::new().clip(&format!("{there}.y4m"));
        let set = set.file("metadata.csv", format!("file_name,text\n{listed}.y4m,One.\n"));
        assert_eq!(accepted(&set.read()).len(), 1);
        let set = Set::new()
            .clip("a.y4m")
            .file(&format!("{there}.csv"), "file_name,text\na.y4m,One.\n");
        let config = Config {
            metadata: Some(format!("{listed}.csv").into()),
            ..set.config()
        };
        assert_eq!(accepted(&vtrain::data::manifest::read(&config)).len(), 1);
        // And the data set's own folder.
        let set = Set::new()
            .clip(&format!("{there}/a.y4m"))
            .file(&format!("{there}/a.txt"), "One.");
        assert_eq!(survey_folder(&set.path().join(listed), true).samples.len(), 1);
    }
}

#[test]
fn a_clip_and_its_caption_file_may_differ_in_form() {
    for (text, clip) in WAYS {
        let set = Set::new()
            .clip(&format!("{clip}.y4m"))
            .file(&format!("{text}.txt"), "One.");
        let listing = set.read();
        assert_eq!(
            accepted(&listing),
            [(format!("{clip}.y4m").as_str(), "One.")],
            "{:?}",
            set.refusals(&listing)
        );
    }
    // Where each form has its own, each keeps it.
    let set = Set::new().clips(&[&format!("{NFC}.y4m"), &format!("{NFD}.y4m")]);
    let set = set
        .file(&format!("{NFC}.txt"), "Composed.")
        .file(&format!("{NFD}.txt"), "Decomposed.");
    let listing = set.read();
    let mut both = accepted(&listing);
    both.sort();
    let names = [format!("{NFD}.y4m"), format!("{NFC}.y4m")];
    assert_eq!(
        both,
        [(names[0].as_str(), "Decomposed."), (names[1].as_str(), "Composed.")]
    );
}

#[test]
fn a_name_that_is_there_is_taken_as_it_is_and_another_name_is_not_made_up() {
    let set = Set::new().file(NFC, "1").file(NFD, "2");
    let path = |name: &str| set.path().join(name);
    assert_eq!(spelled(&path(NFC)), path(NFC));
    assert_eq!(spelled(&path(NFD)), path(NFD));
    let other = "Cafe\u{301} \u{dc}bung \u{30ac}"; // a third form, which looks like both
    assert_eq!(composed(other), NFC);
    assert_eq!(spelled(&path(other)), path(other), "either could be meant");
    for gone in ["Cafe Ubung", "Caf\u{e8}", "\u{212a}elvin/\u{e9}"] {
        assert_eq!(spelled(&path(gone)), path(gone));
    }
}
