//! Captions: prefixes and the identifying token.

use vtrain::data::caption::{with_token, without_prefix};

#[test]
fn openings_of_captioning_models_are_removed_and_the_rest_starts_with_a_capital() {
    for (caption, rest) in [
        ("This video shows a dog running.", "A dog running."),
        ("The video depicts élan in motion.", "Élan in motion."),
        ("In this video, we see a boat.", "A boat."),
        ("In the clip, a boat sails.", "A boat sails."),
        ("In this video we can see a boat.", "A boat."),
        ("Here is a video of two cats.", "Two cats."),
        ("A short clip showing rain.", "Rain."),
        ("THE FOOTAGE CAPTURES a storm", "A storm"),
        ("The scene shows: a kitchen", "A kitchen"),
        ("The video shows that a man waits.", "A man waits."),
        ("In this video, the clip features a horse.", "A horse."),
        ("This video clip shows us rain", "Rain"),
    ] {
        assert_eq!(without_prefix(caption), rest, "{caption}");
    }
}

#[test]
fn captions_that_only_look_like_one_are_kept() {
    for caption in [
        "A dog runs.",
        "a lower-case caption stays as it is",
        "Video games on a shelf.",
        "The video showsoff a car",
        "A scene of calm.",
        "This videotape shows wear.",
        "The clip-on shows a flower.",
        "In this video a dog runs.",
        "The video begins with a sunrise.",
        "이 비디오는 개를 보여줍니다",
        "",
    ] {
        assert_eq!(without_prefix(caption), caption);
    }
}

#[test]
fn nothing_may_be_left_of_a_caption() {
    assert_eq!(without_prefix("This video shows"), "");
}

#[test]
fn the_token_is_put_before_the_caption() {
    assert_eq!(with_token("BW_STYLE", "A dog."), "BW_STYLE A dog.");
    assert_eq!(with_token(" BW_STYLE ", "A dog."), "BW_STYLE A dog.");
    assert_eq!(with_token(" ", "A dog."), "A dog.");
}
