//! What plans read, build and run: each once, whatever number of settings is tried.

use std::path::Path;

use vtrain::config::RunConfig;
use vtrain::models::{self, FamilyName};
use vtrain::nn::WeightFolder;
use vtrain::plan::Subject;
use vtrain::plan::findings::Counts;
use vtrain::plan::suggestions::suggestions;
use vtrain::plan::timeline::Place;

/// Three buckets and a prompt, of other numbers of frames and patches.
const RUN: &str = "
datasets: [{path: ., buckets: [[41, 64, 96], [49, 64, 96], [57, 96, 96]]}]
lora: {rank: 8, alpha: 8}
validation: {prompts: [{prompt: a, num_frames: 65, height: 64, width: 64}]}
";

#[test]
fn headers_are_read_once_and_passes_of_few_tokens_serve_every_bucket_and_suggestion() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ltx_video/ltx-0.9.5");
    let text = format!("model: {{path: {}}}{RUN}", model.display());
    let config = RunConfig::parse(&text, Path::new("run.yaml"), Path::new("/"), &[]).unwrap();
    let folder = WeightFolder::new(&model, None);
    let family = models::open(folder.clone(), FamilyName::Auto).unwrap();
    let subject = Subject::new(&config, folder, Some(&*family), None, (Place::Gpu, Some(1 << 30)));
    subject.plan(&config).unwrap();
    // Transformer, text encoder and autoencoder; adapters of two ranks; ten sizes of training, of its first half with two other
    // policies, and of sampling.
    let counts = Counts {
        header_reads: 3,
        models: 2,
        passes: 40,
    };
    assert_eq!(subject.findings.counts(), counts);
    assert!(suggestions(&subject, &config, 1, |plan| plan.largest().1.peak_bytes).is_empty());
    let tried = subject.findings.counts();
    // Nothing is read again; two forms of the weights are built besides.
    assert_eq!((tried.header_reads, tried.models), (3, 6));
    // Buckets of fewer frames than are recorded have passes of their own.
    assert!(tried.passes <= 240, "{tried:?}");
    subject.plan(&config).unwrap();
    assert_eq!(subject.findings.counts(), tried, "what is known is not found out again");
}
