//! Retired names, which are not used in that sense in the field, with their replacements. None may return to the code
//! of `src/`; quotes and comments are not checked here.

use std::collections::BTreeSet;
use std::path::Path;

/// Retired names, and their replacements.
const RETIRED: &[(&str, &str)] = &[
    ("rooms", "registry"),
    ("Room", "FamilySpec"),
    ("ROOMS", "FAMILIES"),
    ("Bare", "SyntheticBatch"),
    ("BareOpen", "OpenSynthetic"),
    ("Sketch", "SyntheticSpec"),
    ("Places", "InputSpec"),
    ("ImagePlaces", "ImageTokensSpec"),
    ("Modulated", "AdaLnSingleBlock"),
    ("Prompts", "T5Conditioner"),
    ("Canvas", "LatentSize"),
    ("whole_patches", "check_patchable"),
    ("whole_frames", "check_num_frames"),
    ("all_hold", "check_all"),
    ("given_frames", "conditioned_frames"),
    ("TakesImage", "ImageMode"),
    ("ClipEncoder", "VideoEncoder"),
    ("clip_encoder", "video_encoder"),
    ("Conditioner", "TextEncoder"),
    ("lost_tokens", "truncated_tokens"),
    ("image_kept", "image_tensor_specs"),
    ("posterior_of", "posterior_from"),
    ("one_by_one", "per_sample"),
    ("Remembered", "CachedConfigs"),
    ("Planter", "Adapt"),
    ("plant", "adapt"),
    ("planter", "adapt"),
    ("planted", "adapted"),
    ("Planted", "AdaptedLayer"),
    ("made_up", "random_weights"),
    ("Lent", "ShardedMatrix"),
    ("Brought", "BlockGuard"),
    ("bring", "fetch"),
    ("UnderWay", "InFlight"),
    ("Misfits", "HeaderMismatches"),
    ("PatchEmbedding", "PatchEmbed"),
    ("shelf", "saved"),
    ("Shelf", "SavedOutputs"),
    ("Shelved", "SavedOutput"),
    ("Costly", "Saveable"),
    ("shelve", "save_costly"),
    ("Lanes", "Simd"),
    ("widen", "to_f32"),
    ("widened", "f32_view"),
    ("Way", "Backend"),
    ("Wanted", "NeededGradients"),
    ("Given", "Cotangent"),
    ("Passed", "LossAndGrads"),
    ("Shown", "ValidationVideo"),
    ("Keep", "SavedActivations"),
    ("Kept", "SavedBlock"),
    ("Seen", "MicroBatchStats"),
    ("Told", "MicroBatchMessage"),
    ("foresee", "check_space"),
    ("set_aside", "archive_previous"),
    ("agree", "check_consistent"),
    ("ToldByFirst", "ReportedByRankZero"),
    ("Gathering", "Pending"),
    ("Going", "InFlightGather"),
    ("Coming", "InFlightGather"),
    ("Roll", "RankList"),
    ("Meeting", "Rendezvous"),
    ("Death", "RankFailure"),
    ("Known", "HashCache"),
    ("ClipCoder", "EncoderId"),
    ("CaptionCoder", "TextEncoderId"),
    ("Listed", "SampleListing"),
    ("Said", "RawCaption"),
    ("Refusal", "Rejection"),
    ("Gathered", "RowBuilder"),
    ("OnBadClip", "OnInvalidClip"),
    ("on_bad_clip", "on_invalid_clip"),
    ("patience", "retry"),
    ("patiently", "with_retries"),
    ("Beside", "TempFile"),
    ("NoRoom", "NotEnoughSpace"),
    ("Telling", "ReportingAllocator"),
    ("Strange", "UnsupportedTensor"),
    ("Unfit", "AdapterMismatch"),
    ("homeless", "unmatched_layer"),
    ("Refused", "UnsupportedRequest"),
    ("What", "RequestSide"),
    ("Film", "OpenVideo"),
    ("max_nonfinite", "max_consecutive_nonfinite"),
];

/// The identifiers of a source, without those in comments and quotes.
fn identifiers(text: &str) -> BTreeSet<&str> {
    let mut found = BTreeSet::new();
    for line in text.lines() {
        // Every second part stands in quotes; an escaped quote only moves a word from one to the other.
        for part in line.split("//").next().unwrap_or_default().split('"').step_by(2) {
            found.extend(part.split(|c: char| !c.is_alphanumeric() && c != '_'));
        }
    }
    found
}

/// The retired names in a source, with what is in use now.
fn returned(text: &str) -> Vec<String> {
    let identifiers = identifiers(text);
    let retired = RETIRED.iter().filter(|(old, _)| identifiers.contains(old));
    retired.map(|(old, new)| format!("{old} (now {new})")).collect()
}

#[test]
fn no_retired_name_returns() {
    let mut files = Vec::new();
    super::sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut files);
    assert!(files.len() > 300, "the sources were not found");
    let returned: Vec<String> = files
        .iter()
        // A key that has a new name is still known by its old one.
        .filter(|(file, _)| file != "config/unknown")
        .flat_map(|(file, text)| {
            returned(text)
                .into_iter()
                .map(move |name| format!("src/{file}.rs: {name}"))
        })
        .collect();
    assert!(returned.is_empty(), "{}", returned.join("\n"));
}

#[test]
fn a_retired_name_is_found_in_code_and_nowhere_else() {
    assert_eq!(returned("pub struct Room {"), ["Room (now FamilySpec)"]);
    assert_eq!(
        returned("let x = self.planter.as_ref(); // Room"),
        ["planter (now adapt)"]
    );
    assert!(returned("/// Room for all.\nlet x = \"no Room\";\nstruct Roomy;").is_empty());
}
