//! What plans read, build and run: each once, whatever number of settings is tried.

use std::path::Path;

use vtrain::config::RunConfig;
use vtrain::models::{self, FamilyName};
use vtrain::nn::WeightFolder;
use vtrain::nn::storage::quantize::Quantization;
use vtrain::plan::findings::Counts;
use vtrain::plan::suggestions::suggestions;
use vtrain::plan::timeline::Place;
use vtrain::plan::{Extent, Subject};

/// Three buckets and a prompt, of other numbers of frames and patches.
const RUN: &str = "
datasets: [{path: ., buckets: [[41, 64, 96], [49, 64, 96], [57, 96, 96]]}]
lora: {rank: 8, alpha: 8}
validation: {prompts: [{prompt: a, num_frames: 65, height: 64, width: 64}]}
";

/// Calls `test` with the run, and what is planned of it on a GPU.
fn with_subject(test: impl Fn(&RunConfig, &Subject)) {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ltx_video/ltx-0.9.5");
    let text = format!("model: {{path: {}}}{RUN}", model.display());
    let config = RunConfig::parse(&text, Path::new("run.yaml"), Path::new("/"), &[]).unwrap();
    let folder = WeightFolder::new(&model, None);
    let family = models::open(folder.clone(), FamilyName::Auto).unwrap();
    let place = (Place::Gpu, Some(1 << 30));
    test(&config, &Subject::new(&config, folder, Some(&*family), None, place));
}

fn quantized(config: &RunConfig, form: &str) -> RunConfig {
    let mut config = config.clone();
    config.model.quantization = Quantization::from_name(form).into();
    config
}

#[test]
fn headers_are_read_once_and_passes_of_few_tokens_serve_every_bucket_and_suggestion() {
    with_subject(|config, subject| {
        subject.plan(config).unwrap();
        // Transformer, text encoder and autoencoder; adapters of two ranks; ten sizes of training, of its beginning with two
        // other policies, and of sampling.
        let mut counts = Counts {
            header_reads: 3,
            models: 2,
            passes: 40,
        };
        assert_eq!(subject.findings.counts(), counts);
        assert!(suggestions(subject, config, 1, Extent::Run).is_empty());
        assert_eq!(subject.findings.counts(), counts, "what cannot fit is not recorded");
        // Nothing is read again.
        subject.plan(&quantized(config, "int8")).unwrap();
        (counts.models, counts.passes) = (4, 80);
        assert_eq!(subject.findings.counts(), counts);
        // Its bytes are those of a model; passes are as in 8 bits.
        subject.plan(&quantized(config, "nf4")).unwrap();
        counts.models = 5;
        assert_eq!(subject.findings.counts(), counts);
        subject.plan(config).unwrap();
        assert_eq!(
            subject.findings.counts(),
            counts,
            "what is known is not found out again"
        );
    });
}

#[test]
fn what_exceeds_the_memory_is_known_by_the_fewest_passes_that_tell() {
    with_subject(|config, subject| {
        let exceeds = |extent, room| {
            let exceeds = subject.exceeds(config, extent, room).unwrap();
            let Counts { models, passes, .. } = subject.findings.counts();
            (exceeds, models, passes)
        };
        assert_eq!(exceeds(Extent::Run, 1), (true, 0, 0), "by the text encoder");
        assert_eq!(exceeds(Extent::Training, 1), (true, 1, 0), "by weights and adapters");
        assert_eq!(exceeds(Extent::Training, 240_000), (true, 2, 10), "by activations");
        assert_eq!(exceeds(Extent::Run, 1 << 30), (false, 2, 10));
        subject.plan(config).unwrap();
        assert_eq!(subject.findings.counts().passes, 40);
    });
}
