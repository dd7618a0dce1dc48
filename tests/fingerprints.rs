//! Names of records and fingerprints of runs: each ingredient changes them, and nothing else does.
//!
//! Structures are destructured completely, so that a new ingredient does not compile until it has a line.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use blake3::{Hash, hash};
use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use tempfile::TempDir;
use vtrain::data::Bucket;
use vtrain::data::cache::{
    Cache, Encoded, EncodedTiles, EncoderId, Encoding, Key, RecordSchema, TextEncoderId, TextId, rng,
};
use vtrain::data::loader::ClipSelection;
use vtrain::lora::diffusers::{self, Named};
use vtrain::lora::{self, TargetModules};
use vtrain::video::Fit;

/// All of these differ from the first and from each other.
fn all_differ<T: std::hash::Hash + Eq>(what: &str, made: impl IntoIterator<Item = (&'static str, T)>) {
    let mut seen = HashMap::new();
    for (ingredient, made) in made {
        if let Some(other) = seen.insert(made, ingredient) {
            panic!("{what}: '{ingredient}' makes what '{other}' makes");
        }
    }
}

/// An ingredient's name, and what changes it alone.
type Change<T> = (&'static str, fn(&mut T));

#[derive(Clone)]
struct Clip {
    content: Hash,
    cut: ClipSelection,
    coder: EncoderId,
}

impl Clip {
    fn key(&self) -> Key {
        Key::clip(self.content, &self.cut, &self.coder)
    }
}

#[test]
fn each_ingredient_of_a_clips_record_makes_another_name() {
    let base = Clip {
        content: hash(b"clip"),
        cut: ClipSelection {
            frames: vec![0, 1, 2],
            fit: Fit {
                resize_height: 40,
                resize_width: 50,
                top: 1,
                left: 2,
                height: 32,
                width: 48,
            },
            fps: 8.0,
            orientation: None,
        },
        coder: EncoderId {
            fingerprint: hash(b"vae"),
            dtype: DType::F32,
            tiling: EncodedTiles::Some(false),
            image: false,
        },
    };
    let Clip { content: _, cut, coder } = &base;
    let ClipSelection {
        frames: _,
        fit,
        fps: _,
        orientation: _,
    } = cut;
    let Fit {
        resize_height: _,
        resize_width: _,
        top: _,
        left: _,
        height: _,
        width: _,
    } = fit;
    let EncoderId {
        fingerprint: _,
        dtype: _,
        tiling: _,
        image: _,
    } = coder;
    let changes: [Change<Clip>; 18] = [
        ("nothing", |_| {}),
        ("content", |clip| clip.content = hash(b"another")),
        ("a frame", |clip| clip.cut.frames[2] = 3),
        ("fewer frames", |clip| clip.cut.frames.truncate(2)),
        ("frames in another order", |clip| clip.cut.frames.swap(0, 1)),
        ("resize_height", |clip| clip.cut.fit.resize_height = 41),
        ("resize_width", |clip| clip.cut.fit.resize_width = 51),
        ("top", |clip| clip.cut.fit.top = 0),
        ("left", |clip| clip.cut.fit.left = 0),
        ("top and left swapped", |clip| {
            (clip.cut.fit.top, clip.cut.fit.left) = (2, 1)
        }),
        ("orientation", |clip| clip.cut.orientation = Some(6)),
        ("height", |clip| clip.cut.fit.height = 33),
        ("width", |clip| clip.cut.fit.width = 49),
        ("the encoder", |clip| clip.coder.fingerprint = hash(b"another")),
        ("dtype", |clip| clip.coder.dtype = DType::BF16),
        ("tiling", |clip| clip.coder.tiling = EncodedTiles::Some(true)),
        ("other tiles", |clip| {
            clip.coder.tiling = EncodedTiles::Named("256x256".into())
        }),
        ("image", |clip| clip.coder.image = true),
    ];
    let changed = changes.map(|(ingredient, change)| {
        let mut clip = base.clone();
        change(&mut clip);
        (ingredient, clip.key().path(Path::new("cache")))
    });
    all_differ("a clip's record", changed);
    // The same pictures at another rate have the same latents.
    let mut slower = base.clone();
    slower.cut.fps = 4.0;
    assert_eq!(slower.key(), base.key());
}

#[test]
fn each_ingredient_of_a_captions_record_makes_another_name() {
    let coder = |fingerprint: &[u8], dtype, tokens| TextEncoderId {
        fingerprint: hash(fingerprint),
        dtype,
        quantization: None,
        tokens,
    };
    let base = coder(b"t5", DType::F32, 226);
    let TextEncoderId {
        fingerprint: _,
        dtype: _,
        quantization: _,
        tokens: _,
    } = &base;
    let keys = [
        ("nothing", Key::caption("a ball", None, &base)),
        ("the text", Key::caption("a ball ", None, &base)),
        ("no text", Key::caption("", None, &base)),
        (
            "the encoder",
            Key::caption("a ball", None, &coder(b"another", DType::F32, 226)),
        ),
        ("dtype", Key::caption("a ball", None, &coder(b"t5", DType::BF16, 226))),
        ("tokens", Key::caption("a ball", None, &coder(b"t5", DType::F32, 128))),
    ];
    all_differ("a caption's record", keys);
}

#[test]
fn a_random_cut_is_drawn_from_the_seed_and_the_content() {
    let draws = |seed, content: &[u8]| {
        rng(seed, hash(content))
            .rand(4)
            .into_iter()
            .map(f32::to_bits)
            .collect::<Vec<_>>()
    };
    let made = [
        ("nothing", draws(1, b"clip")),
        ("the seed", draws(2, b"clip")),
        ("the seed's upper half", draws(1 | 1 << 40, b"clip")),
        ("the content", draws(1, b"another")),
    ];
    all_differ("a random cut", made);
    assert_eq!(draws(1, b"clip"), draws(1, b"clip"));
}

/// Two clips and their captions in a cache that need not hold them.
struct Data {
    samples: Vec<Encoding>,
    texts: HashMap<TextId, Key>,
}

impl Data {
    fn new() -> Self {
        let captions = TextEncoderId {
            fingerprint: hash(b"t5"),
            dtype: DType::F32,
            quantization: None,
            tokens: 8,
        };
        let samples = ["a", "b"].map(|name| Encoding {
            video: name.into(),
            caption: name.into(),
            bucket: Bucket::from([1, 8, 8]),
            repeats: 1,
            fps: 8.0,
            key: Key::caption(&format!("stands for the clip {name}"), None, &captions),
            form: RecordSchema::clip([1, 1, 1, 1], Vec::new()),
        });
        let texts = ["a", "b", "c"].map(|text| (text.into(), Key::caption(text, None, &captions)));
        Self {
            samples: samples.to_vec(),
            texts: texts.into_iter().collect(),
        }
    }

    fn fingerprint(self, folder: &Path) -> Hash {
        let encoded = Encoded {
            cache: Cache::open(folder),
            samples: self.samples,
            texts: self.texts,
            sees_pictures: false,
            text_form: RecordSchema::caption(Vec::new(), DType::F32),
        };
        encoded.fingerprint()
    }
}

#[test]
fn each_ingredient_of_the_data_makes_another_fingerprint_of_a_run() {
    let folder = TempDir::new().unwrap();
    let changes: [Change<Data>; 8] = [
        ("nothing", |_| {}),
        ("a clip", |data| data.samples[1].key = data.texts[&"c".into()]),
        ("a caption", |data| data.samples[1].caption = "c".into()),
        ("the encoder of captions", |data| {
            let other = data.texts[&"c".into()];
            data.texts.insert("b".into(), other);
            data.samples[0].caption = "b".into();
        }),
        ("repeats", |data| data.samples[1].repeats = 2),
        ("the frame rate", |data| data.samples[1].fps = 12.0),
        ("the order", |data| data.samples.reverse()),
        ("a clip less", |data| data.samples.truncate(1)),
    ];
    let changed = changes.map(|(ingredient, change)| {
        let mut data = Data::new();
        change(&mut data);
        (ingredient, data.fingerprint(folder.path()))
    });
    all_differ("the data", changed);
    // Where files lie does not matter; a clip's bucket and form are in its key.
    let mut moved = Data::new();
    let Encoding {
        video,
        caption: _,
        bucket: _,
        repeats: _,
        fps: _,
        key: _,
        form: _,
    } = &mut moved.samples[0];
    *video = "elsewhere".into();
    assert_eq!(moved.fingerprint(folder.path()), Data::new().fingerprint(folder.path()));
}

#[test]
fn each_file_that_decides_what_a_model_computes_makes_another_fingerprint() {
    let made = |change: &dyn Fn(&Path), parts: &[&str]| {
        let folder = TempDir::new().unwrap();
        for part in ["vae", "scheduler"] {
            fs::create_dir(folder.path().join(part)).unwrap();
            for name in [
                "config.json",
                "weights.safetensors",
                "spiece.model",
                "merges.txt",
                "README.md",
            ] {
                fs::write(folder.path().join(part).join(name), name).unwrap();
            }
        }
        change(folder.path());
        Cache::open(&folder.path().join("cache"))
            .fingerprint(&folder.path().into(), parts)
            .unwrap()
    };
    let writes = |name: &'static str| move |folder: &Path| fs::write(folder.join("vae").join(name), "other").unwrap();
    let nothing = |_: &Path| {};
    let both = &["vae", "scheduler"][..];
    let changed = [
        ("nothing", made(&nothing, both)),
        ("config.json", made(&writes("config.json"), both)),
        ("weights", made(&writes("weights.safetensors"), both)),
        ("a SentencePiece model", made(&writes("spiece.model"), both)),
        ("a table of words", made(&writes("merges.txt"), both)),
        ("a file more", made(&writes("more.json"), both)),
        (
            "a file less",
            made(&|folder| fs::remove_file(folder.join("vae/merges.txt")).unwrap(), both),
        ),
        (
            "a file's name",
            made(
                &|folder| fs::rename(folder.join("vae/merges.txt"), folder.join("vae/words.txt")).unwrap(),
                both,
            ),
        ),
        ("a part less", made(&nothing, &["vae"])),
        ("another part", made(&nothing, &["scheduler"])),
        ("parts in another order", made(&nothing, &["scheduler", "vae"])),
    ];
    all_differ("a model", changed);
    assert_eq!(
        made(&writes("README.md"), both),
        made(&nothing, both),
        "what is read by people alone"
    );
}

/// The memory of hashes goes by path, size and time; each by itself makes it read the file.
#[test]
fn a_file_is_read_again_where_its_path_its_size_or_its_time_is_another() {
    let folder = TempDir::new().unwrap();
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let write = |name: &str, text: &str, time: SystemTime| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(time)
            .unwrap();
        path
    };
    let path = write("clip", "one", long_ago);
    let cache = Cache::open(folder.path());
    assert_eq!(cache.hash(&path).unwrap(), hash(b"one"));
    write("clip", "two", long_ago);
    assert_eq!(cache.hash(&path).unwrap(), hash(b"one"), "from memory");
    write("clip", "four", long_ago);
    assert_eq!(cache.hash(&path).unwrap(), hash(b"four"), "the size");
    write("clip", "five", long_ago + Duration::from_nanos(1_000_000));
    assert_eq!(cache.hash(&path).unwrap(), hash(b"five"), "the time");
    let other = write("other", "nine", long_ago + Duration::from_nanos(1_000_000));
    assert_eq!(cache.hash(&other).unwrap(), hash(b"nine"), "the path");
}

#[test]
fn each_setting_of_adapters_is_in_the_header_of_their_file() {
    let base = lora::Config {
        rank: 4,
        alpha: 8.0,
        ..Default::default()
    };
    // Where adapters begin and what is dropped while they learn say nothing of what they do afterwards.
    let lora::Config {
        rank: _,
        alpha: _,
        use_rslora: _,
        dropout: _,
        target_modules: _,
        init: _,
        frozen: _,
    } = &base;
    let header = |change: fn(&mut lora::Config)| -> String {
        let mut config = base.clone();
        change(&mut config);
        let a = Tensor::ones((4, 3), DType::F32, &Device::Cpu).unwrap();
        let b = Tensor::ones((3, 4), DType::F32, &Device::Cpu).unwrap();
        let named = Named {
            layer: "blocks.0.to_q",
            input: &[3],
            a: &a,
            b: &b,
        };
        let bytes = diffusers::to_bytes(&config, &[named], None).unwrap();
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let notes: BTreeMap<_, _> = metadata.metadata().clone().unwrap().into_iter().collect();
        serde_json::to_string(&notes).unwrap()
    };
    let changes: [Change<lora::Config>; 5] = [
        ("nothing", |_| {}),
        ("rank", |config| config.rank = 2),
        ("alpha", |config| config.alpha = 4.0),
        ("use_rslora", |config| config.use_rslora = true),
        ("target_modules", |config| {
            config.target_modules = TargetModules::Suffixes(vec!["to_q".into()]);
        }),
    ];
    all_differ("a header", changes.map(|(setting, change)| (setting, header(change))));
    assert_eq!(header(|config| config.dropout = 0.5), header(|_| {}));
    assert_eq!(
        header(|config| config.init = Some(lora::Init::Residual)),
        header(|_| {})
    );
}

/// A record's digest covers names, formats, shapes and numbers: each that is another is damage.
#[test]
fn each_part_of_a_record_that_is_another_is_damage() {
    let folder = TempDir::new().unwrap();
    let cache = Cache::open(folder.path());
    let coder = TextEncoderId {
        fingerprint: hash(b"t5"),
        dtype: DType::F32,
        quantization: None,
        tokens: 8,
    };
    let form = |name: &'static str, shape: &[usize], dtype| RecordSchema::caption(vec![(name, shape.to_vec())], dtype);
    let kept = form("embeds", &[2, 3], DType::F32);
    let key = Key::caption("a ball", None, &coder);
    let tensor = Tensor::arange(0f32, 6.0, &Device::Cpu)
        .unwrap()
        .reshape((2, 3))
        .unwrap();
    let write = || {
        let _ = fs::remove_file(cache.path(&key));
        cache.write(&key, &kept, std::slice::from_ref(&tensor), &[]).unwrap();
    };
    write();
    assert_eq!(cache.read(&key, &kept).unwrap().len(), 1);
    for other in [
        form("mask", &[2, 3], DType::F32),
        form("embeds", &[3, 2], DType::F32),
        form("embeds", &[6], DType::F32),
        form("embeds", &[2, 3], DType::BF16),
    ] {
        write();
        assert!(cache.read(&key, &other).is_err(), "{other:?}");
    }
    let whole = {
        write();
        fs::read(cache.path(&key)).unwrap()
    };
    // The header's length, the header without its spaces, and each byte of the numbers.
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let mut unseen = HashSet::new();
    for at in (0..8).chain(header..whole.len()) {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        fs::write(cache.path(&key), damaged).unwrap();
        if cache.read(&key, &kept).is_ok() {
            unseen.insert(at);
        }
    }
    assert!(unseen.is_empty(), "bytes that may be others: {unseen:?}");
    let json: Value = serde_json::from_slice(&whole[8..header]).unwrap();
    assert!(json["__metadata__"]["digest"].is_string());
}
