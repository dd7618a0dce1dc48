//! Models of the Hugging Face Hub in its cache: a dry run fetches nothing.

use std::fs;

use super::{Run, copy, ltx, stderr};

const HASH: &str = "0123456789012345678901234567890123456789";

/// A run of `somebody/model`, of which the Hub's cache has all of it, or nothing.
fn run(cached: bool) -> Run {
    let run = Run::new(std::path::Path::new("somebody/model"), "");
    if cached {
        let repo = run.path("home/hub/models--somebody--model");
        copy(&ltx(), &repo.join("snapshots").join(HASH));
        fs::create_dir(repo.join("refs")).unwrap();
        fs::write(repo.join("refs/main"), HASH).unwrap();
    }
    run
}

#[test]
fn a_model_that_is_not_here_is_left_out_of_a_dry_run_which_says_so_and_checks_the_rest() {
    let run = run(false);
    let output = run.vtrain("train", &["--dry-run"], &["lora.target_modules=[q]"]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(
        said.contains("somebody/model is not downloaded yet: checks that need the model run after the download"),
        "{said}"
    );
    let output = run.vtrain("train", &["--dry-run"], &["lora.init=nowhere.safetensors"]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    // Where nothing may be asked, the run could not begin.
    let mut offline = run.command("train", &["--dry-run"], &[]);
    let output = offline.env("HF_HUB_OFFLINE", "1").output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("model.path: somebody/model"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_model_in_the_hubs_cache_is_checked_where_it_is_whole() {
    let run = run(true);
    let dry = |sets: &[&str]| run.vtrain("train", &["--dry-run"], sets);
    let output = dry(&[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(!stderr(&output).contains("not downloaded yet"), "{}", stderr(&output));
    let output = dry(&["lora.target_modules=[q]"]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("no layer matches 'q'"), "{}", stderr(&output));

    // A download that broke off: the run fetches the rest.
    let snapshot = run.path("home/hub/models--somebody--model/snapshots").join(HASH);
    fs::remove_file(snapshot.join("vae/diffusion_pytorch_model.safetensors")).unwrap();
    let output = dry(&[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stderr(&output).contains("not downloaded yet"), "{}", stderr(&output));
    // Unless nothing may be asked.
    let mut offline = run.command("train", &["--dry-run"], &[]);
    let output = offline.env("HF_HUB_OFFLINE", "1").output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("vae: no safetensors file"),
        "{}",
        stderr(&output)
    );
}
