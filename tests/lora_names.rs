//! Adapters under the names of any program, from files and from folders: read the same everywhere, or rejected by name
//! everywhere.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use candle_core::{DType, Device, Tensor};
use vtrain::lora::file;
use vtrain::lora::format::Format;
use vtrain::lora::names::Names;
use vtrain::lora::trainable::Trainable;
use vtrain::lora::{Config, TargetModules};
use vtrain::models::FamilyName;
use vtrain::models::registry::{self, FAMILIES};
use vtrain::nn::Load;
use vtrain::rng::Rng;

type Tensors = BTreeMap<String, Tensor>;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn names(family: FamilyName) -> &'static Names {
    FAMILIES.iter().find(|room| room.name == family).unwrap().names
}

fn vtrain(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vtrain")).args(args).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn random(rng: &mut Rng, rows: usize, columns: usize) -> Tensor {
    Tensor::from_vec(rng.randn(rows * columns), (rows, columns), &Device::Cpu).unwrap()
}

/// Layers of two blocks of a family, in diffusers' names: 28 wide as the small models of Wan and LTX-Video.
fn layers(family: FamilyName) -> Vec<String> {
    let (blocks, layers) = match family {
        FamilyName::Wan => ("blocks", ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"]),
        // Those that are no rows of another one.
        FamilyName::HunyuanVideo => (
            "transformer_blocks",
            ["attn.to_out.0", "attn.to_add_out", "ff.net.2", "ff_context.net.0.proj"],
        ),
        FamilyName::Mochi => (
            "transformer_blocks",
            ["attn1.to_out.0", "attn1.to_add_out", "ff.net.2", "ff_context.net.2"],
        ),
        _ => (
            "transformer_blocks",
            ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"],
        ),
    };
    let layer = |block: usize, layer: &str| format!("{blocks}.{block}.{layer}");
    (0..2).flat_map(|block| layers.map(|name| layer(block, name))).collect()
}

/// Adapters of rank 2 on those layers; `spell` makes the names of A and B of a layer.
fn spelled(family: FamilyName, spell: impl Fn(&str) -> [String; 2]) -> Tensors {
    let mut rng = Rng::new(3);
    let mut tensors = Tensors::new();
    for layer in layers(family) {
        let [a, b] = spell(&layer);
        tensors.insert(a, random(&mut rng, 2, 28));
        tensors.insert(b, random(&mut rng, 28, 2));
    }
    tensors
}

fn bytes(tensors: &Tensors) -> Vec<u8> {
    safetensors::serialize(tensors, None).unwrap()
}

/// Ends of names, with the adapter's name in PEFT between them or before them.
const ENDS: [[&str; 2]; 8] = [
    [".lora_A.weight", ".lora_B.weight"],
    [".lora_A.default.weight", ".lora_B.default.weight"],
    [".lora_A.style_2.weight", ".lora_B.style_2.weight"],
    [".default.lora_A.weight", ".default.lora_B.weight"],
    [".default.lora_A.default.weight", ".default.lora_B.default.weight"],
    [".lora_down.weight", ".lora_up.weight"],
    [".lora.down.weight", ".lora.up.weight"],
    [".lora_A", ".lora_B"],
];

#[test]
fn every_spelling_of_a_layer_means_the_same_layer() {
    for family in [
        FamilyName::Wan,
        FamilyName::LtxVideo,
        FamilyName::CogVideoX,
        FamilyName::HunyuanVideo,
        FamilyName::Mochi,
    ] {
        let known = names(family);
        let plain = file::from_bytes(
            &bytes(&spelled(family, |layer| ENDS[0].map(|end| format!("{layer}{end}")))),
            None,
            &[],
        );
        let expected = plain.unwrap().write(Format::Diffusers).unwrap();
        let dotted = [
            "",
            "transformer.",
            "transformer.transformer.",
            "base_model.model.",
            "base_model.model.transformer.",
            "transformer.base_model.model.",
            "base_model.model.base_model.model.",
            "diffusion_model.",
            "model.diffusion_model.",
            "diffusion_model.diffusion_model.",
            "diffusion.model.",
            "pipe.dit.",
            "module.",
            "_orig_mod.",
            "model.",
        ];
        let flat = [
            "lora_unet_",
            "lora_unet_lora_unet_",
            "lora_transformer_",
            "lora_dit_",
            "lycoris_",
            "lycoris_diffusion_model_",
            "lora_unet_transformer_",
        ];
        let original = |layer: &str| known.original(layer).unwrap();
        let own = |layer: &str| layer.to_string();
        let comfyui = |layer: &str| known.in_comfyui(&original(layer));
        let mut spellings = 0;
        // ComfyUI's names are the makers' elsewhere. Ends of names know no families.
        let (ways, ends) = match known.comfyui {
            [] => (2, &ENDS[..]),
            _ => (3, &ENDS[..2]),
        };
        for end in ends {
            let mut check = |prefix: &str, name: &dyn Fn(&str) -> String| {
                let made = spelled(family, |layer| end.map(|end| format!("{prefix}{}{end}", name(layer))));
                let read = file::from_bytes(&bytes(&made), None, &registry::names()).unwrap();
                read.check()
                    .unwrap_or_else(|error| panic!("{prefix} {end:?}: {error:#}"));
                assert!(read.families.contains(&known), "{prefix} {end:?}");
                let written = read.write(Format::Diffusers).unwrap();
                assert!(written == expected, "{prefix} {end:?} means something else");
                spellings += 1;
            };
            for prefix in dotted {
                check(prefix, &own);
                check(prefix, &original);
                if ways > 2 {
                    check(prefix, &comfyui);
                }
            }
            for prefix in flat {
                // Wan's own names behind this are those of LTX-Video.
                if family != FamilyName::Wan || prefix != "lora_unet_transformer_" {
                    check(prefix, &|layer: &str| own(layer).replace('.', "_"));
                }
                check(prefix, &|layer: &str| original(layer).replace('.', "_"));
                if ways > 2 {
                    check(prefix, &|layer: &str| comfyui(layer).replace('.', "_"));
                }
            }
        }
        assert!(spellings >= ends.len() * (ways * (dotted.len() + flat.len()) - 1));
    }
}

#[test]
fn a_format_is_told_by_its_prefix() {
    let cases = [
        ("transformer.blocks.0.attn1.to_q", Format::Diffusers),
        ("blocks.0.attn1.to_q", Format::Diffusers),
        ("blocks.0.self_attn.q", Format::Original),
        ("pipe.dit.blocks.0.self_attn.q", Format::Original),
        ("transformer.base_model.model.blocks.0.attn1.to_q", Format::Peft),
        ("base_model.model.blocks.0.self_attn.q", Format::Peft),
        ("diffusion_model.blocks.0.self_attn.q", Format::ComfyUi),
        ("lora_unet_blocks_0_self_attn_q", Format::Kohya),
        ("lycoris_blocks_0_attn1_to_q", Format::Kohya),
    ];
    for (layer, format) in cases {
        let mut rng = Rng::new(1);
        let made = Tensors::from([
            (format!("{layer}.lora_A.weight"), random(&mut rng, 2, 28)),
            (format!("{layer}.lora_B.weight"), random(&mut rng, 28, 2)),
        ]);
        let read = file::from_bytes(&bytes(&made), None, &registry::names()).unwrap();
        assert_eq!(read.format, format, "{layer}");
        assert!(read.layers.contains_key("blocks.0.attn1.to_q"), "{layer}");
    }
}

/// Patterns of alpha that PEFT wrote over a model with original names are for those names.
#[test]
fn patterns_of_alpha_are_for_the_names_in_the_file() {
    let made = spelled(FamilyName::Wan, |layer| {
        let original = names(FamilyName::Wan).original(layer).unwrap();
        ENDS[0].map(|end| format!("base_model.model.{original}{end}"))
    });
    let config = r#"{"lora_alpha": 8, "alpha_pattern": {"blocks.1.self_attn.q": 2}}"#;
    let read = file::from_bytes(&bytes(&made), Some(config), &registry::names()).unwrap();
    assert_eq!(read.layers["blocks.1.attn1.to_q"].alpha, 2.0);
    assert_eq!(read.layers["blocks.0.attn1.to_q"].alpha, 8.0);
    assert!(!read.alpha_is_a_guess);
}

#[test]
fn a_name_that_is_not_known_is_refused_by_name_wherever_a_file_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("style.safetensors");
    let file = path.to_str().unwrap();
    let (model, out) = (fixture("wan/wan-2.1-t2v"), folder.path().join("out"));
    let (model, out) = (model.to_str().unwrap(), out.to_str().unwrap());
    let cases = [
        ("transformer.", "double_blocks.0.img_attn_qkv"),
        ("", "blocks.0.self_attn.qkv"),
        ("lycoris_", "blocks_0_self_attn_qkv"),
        ("base_model.model.", "blocks.x.attn1.to_q"),
    ];
    for (prefix, unknown) in cases {
        // Together with known layers, in the same format.
        let mut made = spelled(FamilyName::Wan, |layer| {
            let layer = names(FamilyName::Wan).original(layer).unwrap();
            let layer = if prefix.ends_with('_') {
                layer.replace('.', "_")
            } else {
                layer
            };
            ENDS[0].map(|end| format!("{prefix}{layer}{end}"))
        });
        let expected = &format!("{unknown} is not a layer of Wan");
        let unknown = format!("{prefix}{unknown}");
        let mut rng = Rng::new(9);
        made.insert(format!("{unknown}.lora_A.weight"), random(&mut rng, 2, 28));
        made.insert(format!("{unknown}.lora_B.weight"), random(&mut rng, 28, 2));
        std::fs::write(&path, bytes(&made)).unwrap();
        let sample = [
            "sample",
            "--model",
            model,
            "--lora",
            file,
            "--prompt",
            "x",
            "--num-frames",
            "1",
            "--height",
            "32",
        ];
        let sample = [
            &sample[..],
            &["--width", "48", "--steps", "1", "--device", "cpu", "--output", "x.gif"],
        ]
        .concat();
        for args in [
            &["lora", "convert", "--to", "diffusers", file, out][..],
            &["lora", "convert", "--to", "comfyui", file, out],
            &["lora", "merge", "--model", model, "--lora", file, out],
            &["lora", "resize", "--rank", "1", file, out],
            &sample[..],
        ] {
            let output = Command::new(env!("CARGO_BIN_EXE_vtrain"))
                .args(args)
                .current_dir(folder.path())
                .output()
                .unwrap();
            assert_eq!(output.status.code(), Some(4), "{args:?}: {}", stderr(&output));
            assert!(
                stderr(&output).contains(expected.as_str()),
                "{args:?}: {}",
                stderr(&output)
            );
            assert!(!Path::new(out).exists());
        }
        let output = vtrain(&["lora", "inspect", file]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            text.contains("not applied: 1") && text.contains(expected.as_str()),
            "{text}"
        );
        let config = Config {
            rank: 2,
            alpha: 2.0,
            init: Some(path.clone().into()),
            ..Config::default()
        };
        let refused = Trainable::new(&config, &registry::names(), Rng::new(0), &Device::Cpu).unwrap_err();
        let message = format!("{refused:#}");
        assert!(
            message.contains(expected.as_str()) && message.contains("lora.init"),
            "{message}"
        );
    }
    // And where none of them is known.
    let made = spelled(FamilyName::Wan, |layer| {
        ENDS[0].map(|end| format!("transformer.x.{layer}{end}"))
    });
    std::fs::write(&path, bytes(&made)).unwrap();
    let output = vtrain(&["lora", "convert", "--to", "diffusers", file, out]);
    let said = stderr(&output);
    assert!(said.contains("is not a layer of a supported family"), "{said}");
}

#[test]
fn training_starts_from_a_file_of_any_format() {
    let folder = tempfile::tempdir().unwrap();
    let config = |init: PathBuf| Config {
        rank: 2,
        alpha: 2.0,
        target_modules: TargetModules::Regex(r"blocks\.[01]\.attn1\..*".into()),
        init: Some(init.into()),
        ..Config::default()
    };
    let known = names(FamilyName::Wan);
    let original = |layer: &str| known.original(layer).unwrap();
    let made = [
        spelled(FamilyName::Wan, |layer| {
            ENDS[1].map(|end| format!("{}{end}", original(layer)))
        }),
        spelled(FamilyName::Wan, |layer| {
            ENDS[0].map(|end| format!("diffusion_model.{}{end}", original(layer)))
        }),
        spelled(FamilyName::Wan, |layer| {
            ENDS[5].map(|end| format!("lycoris_{}{end}", layer.replace('.', "_")))
        }),
    ];
    for made in made {
        std::fs::write(folder.path().join("pytorch_lora_weights.safetensors"), bytes(&made)).unwrap();
        // Of a folder, too.
        let trainable = Trainable::new(
            &config(folder.path().into()),
            &registry::names(),
            Rng::new(0),
            &Device::Cpu,
        );
        let trainable = std::sync::Arc::new(trainable.unwrap());
        let transformer = fixture("wan/wan-2.1-t2v/transformer");
        let load = Load::new(DType::F32, &Device::Cpu).with_adapters(trainable.clone());
        vtrain::models::wan::dit::Dit::load(&transformer, &load).unwrap();
        assert_eq!(trainable.finish().unwrap().len(), 8);
    }
}

/// diffusers loads what was converted to the adapters that it loads under its own names.
#[test]
#[ignore = "needs python: VTRAIN_PYTHON names one with what scripts/setup/requirements.txt lists"]
fn diffusers_loads_what_was_converted_from_names_that_it_does_not_know() {
    let folder = tempfile::tempdir().unwrap();
    let known = names(FamilyName::Wan);
    let original = |layer: &str| known.original(layer).unwrap();
    let made = [
        spelled(FamilyName::Wan, |layer| {
            ENDS[0].map(|end| format!("transformer.{layer}{end}"))
        }),
        spelled(FamilyName::Wan, |layer| {
            ENDS[1].map(|end| format!("{}{end}", original(layer)))
        }),
        spelled(FamilyName::Wan, |layer| {
            ENDS[0].map(|end| format!("transformer.base_model.model.{layer}{end}"))
        }),
        spelled(FamilyName::Wan, |layer| {
            ENDS[0].map(|end| format!("lycoris_{}{end}", layer.replace('.', "_")))
        }),
    ];
    let mut files = Vec::new();
    for (index, made) in made.iter().enumerate() {
        let [from, to] = ["from", "to"].map(|name| folder.path().join(format!("{name}-{index}.safetensors")));
        std::fs::write(&from, bytes(made)).unwrap();
        let args = [
            "lora",
            "convert",
            "--to",
            "diffusers",
            from.to_str().unwrap(),
            to.to_str().unwrap(),
        ];
        let output = vtrain(&args);
        assert!(output.status.success(), "{}", stderr(&output));
        files.push(to);
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/checks/check_lora_formats.py");
    let transformer = fixture("wan/wan-2.1-t2v/transformer");
    let output = Command::new(crate::needs::python())
        .arg(script)
        .arg("wan")
        .arg(transformer)
        .args(files)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn every_parameter_of_a_transformer_has_its_names() {
    let mut checked = 0;
    for room in FAMILIES {
        let family = fixture(room.names.family);
        for entry in std::fs::read_dir(family).unwrap() {
            let transformer = entry.unwrap().path().join("transformer");
            for file in std::fs::read_dir(transformer).into_iter().flatten() {
                let path = file.unwrap().path();
                if path.extension().is_none_or(|end| end != "safetensors") {
                    continue;
                }
                for name in candle_core::safetensors::load(&path, &Device::Cpu).unwrap().into_keys() {
                    let layer = name.strip_suffix(".weight").or(name.strip_suffix(".bias"));
                    let known = layer.unwrap_or(&name);
                    let original = room.names.original(known);
                    let original = original.unwrap_or_else(|| panic!("{}: {name} is not known", path.display()));
                    // Several layers may be one there.
                    for original in [original.clone(), original.replace('.', "_")] {
                        let found = room.names.find(&original);
                        assert!(found.iter().any(|found| found.name == known), "{name}: {found:?}");
                        let fused = room.names.fused_part(known).map_or(1, |part| part.fused.parts.len());
                        assert_eq!(found.len(), fused, "{name}");
                    }
                    assert_eq!(room.names.is_table(known), layer.is_none(), "{name}");
                    checked += 1;
                }
            }
        }
    }
    assert!(checked > 500, "{checked}");
}

/// A run's folder as vtrain leaves it, and one as PEFT's `save_pretrained` does.
fn folders(at: &Path) -> [PathBuf; 2] {
    let [run, peft] = ["run", "peft"].map(|name| at.join(name));
    std::fs::create_dir_all(&run).unwrap();
    let made = spelled(FamilyName::Wan, |layer| {
        ENDS[0].map(|end| format!("transformer.{layer}{end}"))
    });
    std::fs::write(run.join("pytorch_lora_weights.safetensors"), bytes(&made)).unwrap();
    std::fs::write(run.join("comfyui_lora.safetensors"), b"not looked at").unwrap();
    std::fs::create_dir_all(&peft).unwrap();
    let made = spelled(FamilyName::Wan, |layer| {
        ENDS[0].map(|end| format!("base_model.model.{layer}{end}"))
    });
    std::fs::write(peft.join("adapter_model.safetensors"), bytes(&made)).unwrap();
    std::fs::write(
        peft.join("adapter_config.json"),
        r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 6}"#,
    )
    .unwrap();
    [run, peft]
}

#[test]
fn a_folder_stands_for_the_adapter_in_it() {
    let folder = tempfile::tempdir().unwrap();
    for (path, alpha) in folders(folder.path()).into_iter().zip([2.0, 6.0]) {
        let read = file::read(&path, &registry::names()).unwrap();
        assert!(
            read.layers.values().all(|adapter| adapter.alpha == alpha),
            "{}",
            path.display()
        );
        let name = path.to_str().unwrap();
        let out = folder.path().join(format!("out{alpha}"));
        let model = fixture("wan/wan-2.1-t2v");
        let lora = format!("{name}=0.5");
        for args in [
            &["lora", "inspect", name][..],
            &[
                "lora",
                "merge",
                "--model",
                model.to_str().unwrap(),
                "--lora",
                &lora,
                out.to_str().unwrap(),
            ],
            &[
                "lora",
                "convert",
                "--to",
                "comfyui",
                name,
                folder.path().join("x.safetensors").to_str().unwrap(),
            ],
        ] {
            let output = vtrain(args);
            assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        }
    }
}

#[test]
fn a_folder_that_leaves_it_open_says_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let told = || format!("{:#}", file::read(folder.path(), &registry::names()).unwrap_err());
    assert!(told().contains("has no safetensors file"), "{}", told());
    std::fs::write(folder.path().join("adapter_model.bin"), b"PK").unwrap();
    assert!(
        told().contains("only adapter_model.bin, which can run code"),
        "{}",
        told()
    );
    for name in ["b.safetensors", "a.safetensors"] {
        std::fs::write(folder.path().join(name), b"").unwrap();
    }
    assert!(
        told().contains("append the name of one: a.safetensors, b.safetensors"),
        "{}",
        told()
    );
}

#[test]
fn peft_without_its_settings_says_that_alpha_is_a_guess() {
    let folder = tempfile::tempdir().unwrap();
    let [run, peft] = folders(folder.path());
    let inspect = |path: &Path| {
        let output = vtrain(&["lora", "inspect", path.to_str().unwrap()]);
        (stderr(&output), String::from_utf8(output.stdout).unwrap())
    };
    for path in [&run, &peft] {
        let (said, text) = inspect(path);
        assert!(!said.contains("guess") && !text.contains("guess"), "{said}{text}");
    }
    let config = peft.join("adapter_config.json");
    std::fs::write(&config, r#"{"peft_type": "LORA", "r": 2}"#).unwrap();
    assert!(inspect(&peft).0.contains("is a guess") && inspect(&peft).0.contains("does not contain it"));
    std::fs::remove_file(&config).unwrap();
    let (said, text) = inspect(&peft);
    assert!(
        said.contains("is a guess") && said.contains("is not next to it"),
        "{said}"
    );
    assert!(text.contains("alpha     a guess"), "{text}");
    // Settings that cannot be read are no settings that are not there.
    std::fs::write(&config, b"\xff").unwrap();
    assert!(inspect(&peft).0.contains("adapter_config.json"));
    assert_eq!(
        vtrain(&["lora", "inspect", peft.to_str().unwrap()]).status.code(),
        Some(4)
    );
}
