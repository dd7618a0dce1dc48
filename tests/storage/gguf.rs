use std::fs;
use std::io::Cursor;

use candle_core::{DType, Device};
use vtrain::nn::gguf::{GgufFile, Header, Value};
use vtrain::rng::Rng;

use super::{bytes, draw, fixture};

/// A header, written by hand.
#[derive(Clone, Default)]
struct Written(Vec<u8>);

impl Written {
    fn new(tensors: u64, pairs: u64) -> Self {
        Self(b"GGUF".to_vec()).u32(3).u64(tensors).u64(pairs)
    }

    fn u32(mut self, number: u32) -> Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    fn u64(mut self, number: u64) -> Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    fn text(self, text: &str) -> Self {
        let mut written = self.u64(text.len() as u64);
        written.0.extend(text.as_bytes());
        written
    }

    fn tensor(self, name: &str, sides: &[u64], kind: u32, offset: u64) -> Self {
        let named = self.text(name).u32(sides.len() as u32);
        sides
            .iter()
            .fold(named, |written, side| written.u64(*side))
            .u32(kind)
            .u64(offset)
    }

    /// With this many bytes behind it.
    fn read(mut self, data: usize) -> Result<Header, String> {
        self.0.resize(self.0.len() + data, 0);
        let length = self.0.len() as u64;
        Header::read(Cursor::new(self.0), length).map_err(|error| format!("{error:#}"))
    }
}

#[test]
fn a_file_of_gguf_py_is_read_with_its_convolution_of_five_sides() {
    let file = GgufFile::open(&fixture("ggml.gguf")).unwrap();
    let Header { metadata, tensors } = file.header();
    for (key, value) in [
        ("general.architecture", Value::Text("wan".into())),
        ("general.file_type", Value::Unsigned(7)),
        ("some.texts", Value::Array(2)),
        ("some.numbers", Value::Array(3)),
        ("some.float", Value::Float(0.5)),
        ("some.negative", Value::Signed(-3)),
        ("some.flag", Value::Bool(true)),
    ] {
        assert_eq!(metadata[key], value, "{key}");
    }
    assert_eq!(tensors.len(), 14);
    let shape = [3, 2, 1, 2, 2];
    assert_eq!(tensors["patch_embedding.weight"].shape, shape);
    let patch = file
        .tensor("patch_embedding.weight", &shape, DType::F32, &Device::Cpu)
        .unwrap();
    assert_eq!(patch.dims(), shape);
    assert_eq!(bytes(&patch), bytes(&draw((6, 4), DType::F32)));
    let complaint = |name: &str, shape| file.matrix(name, shape, &Device::Cpu).err().unwrap().to_string();
    assert!(complaint("blocks.0.Q8_0.weight", (64, 3)).contains("should be [64, 3], but is [3, 64]"));
    assert!(complaint("blocks.1.Q8_0.weight", (3, 64)).contains("missing"));
}

#[test]
fn numbers_beyond_the_file_are_refused_before_anything_is_kept() {
    let many = u64::MAX / 2;
    let short = |tensors, pairs| Written::new(tensors, pairs).read(100).unwrap_err();
    assert!(
        short(many, 0).contains("tensors do not fit in the"),
        "{}",
        short(many, 0)
    );
    assert!(short(0, many).contains("pairs of metadata do not fit"));
    let pair = |kind: u32| Written::new(0, 1).text("key").u32(kind);
    for (written, message) in [
        (Written::new(0, 1).u64(many), "bytes of a string do not fit"),
        (pair(8).u64(many), "bytes of a string do not fit"),
        (pair(9).u32(4).u64(many), "values of an array do not fit"),
        (pair(9).u32(8).u64(1 << 60), "values of an array do not fit"),
        (
            pair(9)
                .u32(9)
                .u64(1)
                .u32(9)
                .u64(1)
                .u32(9)
                .u64(1)
                .u32(9)
                .u64(1)
                .u32(9)
                .u64(1),
            "within each other",
        ),
        (pair(13).u64(0), "type 13 is none"),
        (pair(9).u32(99).u64(1), "type 99 is none"),
        (Written::new(1, 0).tensor("x", &[1; 7], 0, 0), "7 sides, more than 6"),
        (
            Written::new(1, 0).tensor("x", &[1 << 40, 1 << 40], 0, 0),
            "too many elements",
        ),
        (Written::new(1, 0).tensor("x", &[1 << 62], 0, 0), "too many bytes"),
        (
            Written::new(1, 0).tensor("x", &[48, 2], 8, 0),
            "no multiple of Q8_0's blocks of 32",
        ),
        (
            Written::new(1, 0).tensor("x", &[4], 0, 1),
            "no multiple of the alignment 32",
        ),
        (
            Written::new(1, 0).tensor("x", &[4], 0, u64::MAX - 31),
            "runs beyond the file",
        ),
        (Written::new(1, 0).tensor("x", &[400], 0, 0), "runs beyond the file"),
        (
            Written::new(2, 0).tensor("x", &[1], 0, 0).tensor("x", &[1], 0, 0),
            "x is there twice",
        ),
    ] {
        let found = written.clone().read(200).expect_err(message);
        assert!(found.contains(message), "{message}: {found}");
    }
    let twice = Written::new(0, 2).text("key").u32(4).u32(1).text("key").u32(4).u32(1);
    assert!(twice.read(0).unwrap_err().contains("key twice"));
    let text = Written::new(0, 1).u64(2).0;
    let text = Written([text, vec![0xff, 0xff]].concat()).u32(4).u32(1);
    assert!(text.read(0).unwrap_err().contains("not UTF-8"));
}

#[test]
fn the_most_that_is_read_is_read() {
    let deep = Written::new(0, 1)
        .text("key")
        .u32(9)
        .u32(9)
        .u64(1)
        .u32(9)
        .u64(1)
        .u32(9)
        .u64(1)
        .u32(4)
        .u64(2);
    assert!(deep.clone().read(8).is_ok());
    let deeper = Written(deep.0[..deep.0.len() - 12].to_vec())
        .u32(9)
        .u64(1)
        .u32(4)
        .u64(2);
    assert!(deeper.read(8).unwrap_err().contains("within each other"));
    let sides = Written::new(1, 0).tensor("x", &[2; 6], 0, 0).read(300).unwrap();
    assert_eq!(sides.tensors["x"].shape, [2; 6]);
    assert!(Written::new(1, 0).tensor("x", &[2; 7], 0, 0).read(300).is_err());
    // A pair of 13 bytes and a tensor of 24 are the shortest.
    assert!(Written::new(0, 1).text("").u32(7).read(1).is_ok());
    assert!(Written::new(0, 1).text("").u32(7).read(0).is_err());
    assert!(Written::new(1, 0).tensor("", &[], 0, 0).read(64).is_ok());
    let cut = |data| Written::new(1, 0).text("").read(data).unwrap_err();
    assert!(cut(7).contains("1 tensors do not fit in the 23 bytes"), "{}", cut(7));
    assert!(cut(8).contains("in the middle"), "{}", cut(8));
    let aligned = |size: u32| {
        let written = Written::new(1, 1).text("general.alignment").u32(4).u32(size);
        written.tensor("x", &[1], 0, 0).read(1 << 21)
    };
    assert_eq!(aligned(1 << 20).unwrap().tensors["x"].start, 1 << 20);
    assert_eq!(
        aligned(1).unwrap().tensors["x"].start,
        Written::new(1, 1)
            .text("general.alignment")
            .u32(4)
            .u32(1)
            .tensor("x", &[1], 0, 0)
            .0
            .len() as u64
    );
    for size in [0, 48, 1 << 21] {
        assert!(aligned(size).unwrap_err().contains("power of two"), "{size}");
    }
}

#[test]
fn types_that_are_not_read_are_named_all_at_once() {
    let written = Written::new(3, 0)
        .tensor("a", &[256], 20, 0)
        .tensor("b", &[256], 39, 0)
        .tensor("c", &[1], 99, 0);
    let complaint = written.read(1000).unwrap_err();
    for part in [
        "3 tensors",
        "a in IQ4_NL (type 20)",
        "b in MXFP4 (type 39)",
        "c in type 99",
        "Q5_K",
    ] {
        assert!(complaint.contains(part), "{complaint}");
    }
    let some = |count: u64| {
        let written = (0..count).fold(Written::new(count, 0), |w, i| w.tensor(&i.to_string(), &[256], 20, 0));
        written.read(0).unwrap_err()
    };
    assert!(!some(8).contains("...") && some(9).contains("..."));
}

#[test]
fn other_files_and_versions_are_told() {
    let read = |bytes: &[u8]| {
        let read = Header::read(Cursor::new(bytes.to_vec()), bytes.len() as u64);
        format!("{:#}", read.unwrap_err())
    };
    assert!(read(b"PK\x03\x04 and so on").contains("not a GGUF file"));
    assert!(read(b"GG").contains("ends at 0"));
    assert!(read(&[b"GGUF", &1u32.to_le_bytes()[..]].concat()).contains("version 1 is not read"));
    assert!(read(&[b"GGUF", &3u32.to_be_bytes()[..]].concat()).contains("big-endian"));
    let complaint = GgufFile::open(&fixture("none.gguf")).err().unwrap();
    assert!(format!("{complaint:#}").contains("none.gguf"));
}

/// Ten thousand headers with a few bytes changed, or cut: refused or read, without a panic.
#[test]
fn no_header_does_harm() {
    let whole = fs::read(fixture("ggml.gguf")).unwrap();
    let header = 1200;
    let mut rng = Rng::new(3);
    let (mut refused, mut read) = (0, 0);
    for _ in 0..10_000 {
        let mut file = whole.clone();
        for _ in 0..=rng.randint(0, 3, 1)[0] {
            let at = rng.randint(0, header, 1)[0] as usize;
            file[at] = [0, 1, 0x7f, 0x80, 0xff, rng.randint(0, 256, 1)[0] as u8][rng.randint(0, 6, 1)[0] as usize];
        }
        if rng.randint(0, 4, 1)[0] == 0 {
            file.truncate(rng.randint(0, whole.len() as i64, 1)[0] as usize);
        }
        let length = file.len() as u64;
        match Header::read(Cursor::new(file), length) {
            Ok(_) => read += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 1000 && read > 1000, "{refused} refused, {read} read");
}
