//! Adapters of Allegro, whose pipeline loads none: by the lines of the model card, which ask PEFT.

use std::fs;
use std::path::Path;
use std::process::Command;

use vtrain::models::allegro::SPEC;
use vtrain::train::model_card::Facts;

use super::needs::python;
use super::watching::facts;

/// What follows the card's lines: every adapter has the file's numbers, and its scale.
const CHECKS: &str = "
layers = {name: layer for name, layer in pipe.transformer.named_modules() if hasattr(layer, 'lora_A')}
assert len(lora) == 2 * len(layers) > 0, (len(lora), len(layers))
for name, layer in layers.items():
    for half in ('lora_A', 'lora_B'):
        assert torch.equal(getattr(layer, half)['default'].weight, lora[f'{name}.{half}.weight']), name
    assert layer.scaling['default'] == settings['lora_alpha'] / settings['r'], layer.scaling
";

#[test]
#[ignore = "needs python: VTRAIN_PYTHON names one with what scripts/setup/requirements.txt lists"]
fn an_adapter_loads_by_the_lines_of_its_card_with_no_key_left() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/allegro");
    let folder = tempfile::tempdir().unwrap();
    let adapter = folder.path().join("pytorch_lora_weights.safetensors");
    let converted = Command::new(env!("CARGO_BIN_EXE_vtrain"))
        .args(["lora", "convert", "--to", "diffusers"])
        .arg(fixtures.join("lora/pytorch_lora_weights.safetensors"))
        .arg(&adapter)
        .output()
        .unwrap();
    assert!(
        converted.status.success(),
        "{}",
        String::from_utf8_lossy(&converted.stderr)
    );
    let (pipeline, lora_loading) = (SPEC.pipelines[0].into(), SPEC.lora_loading);
    let card = Facts {
        pipeline,
        lora_loading,
        tiles_only: true,
        ..facts()
    }
    .card();
    let (_, lines) = card.split_once("```python\n").unwrap();
    let (lines, _) = lines.split_once("video = pipe(").unwrap();
    let (before, after) = lines.split_once("pipe = ").unwrap();
    let (_, after) = after.split_once('\n').unwrap();
    // The checkpoint has no text encoder of its own: its transformer and its VAE are the pipeline here.
    let model = fixtures.join("allegro-t2v");
    let program = format!(
        "{before}import types\nfrom diffusers import AllegroTransformer3DModel, AutoencoderKLAllegro\n\
         pipe = types.SimpleNamespace(\n    transformer=AllegroTransformer3DModel.from_pretrained('{model}/transformer'),\n    \
         vae=AutoencoderKLAllegro.from_pretrained('{model}/vae'),\n)\n{after}{CHECKS}",
        model = model.display(),
    );
    let program = program.replace("path/to/this/folder", &folder.path().display().to_string());
    let file = folder.path().join("card.py");
    fs::write(&file, &program).unwrap();
    let output = Command::new(python()).arg(&file).output().unwrap();
    assert!(
        output.status.success(),
        "{program}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
