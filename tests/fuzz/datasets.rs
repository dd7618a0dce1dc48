//! Captions and manifests: two valid clips, with corrupted lists.

use std::path::Path;

use tempfile::TempDir;
use vtrain::data::dataset::Config;
use vtrain::data::{Bucket, survey};

use super::{Corpus, shipped};
use crate::data::y4m;

/// A data set with two clips and these files, of which those that are listed are spoiled.
fn data_set(files: &[(&str, &[u8])], spoiled: &[&str]) -> Corpus {
    let folder = TempDir::new().unwrap();
    for name in ["a.y4m", "b.y4m", "c.y4m"] {
        std::fs::write(folder.path().join(name), y4m(48, 32, 9, 8)).unwrap();
    }
    for (name, bytes) in files {
        std::fs::create_dir_all(folder.path().join(name).parent().unwrap()).unwrap();
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    Corpus::new(folder, spoiled.iter().map(Into::into).collect(), |folder, file| {
        let mut config = Config {
            path: folder.to_path_buf(),
            buckets: vec![Bucket::from([9, 32, 48])],
            ..Config::default()
        };
        if is_table(file) {
            config.metadata = Some(file.to_path_buf());
        }
        judge(&config)
    })
}

fn is_table(file: &Path) -> bool {
    let ending = file.extension().unwrap_or_default();
    ["csv", "tsv", "jsonl", "json", "parquet"]
        .iter()
        .any(|known| ending == *known)
}

/// Lists the rejections, line by line. A clip without a caption is in the parquet files from the start.
fn judge(config: &Config) -> anyhow::Result<()> {
    let report = survey(std::slice::from_ref(config), false, &|_, _| {});
    let refused: Vec<String> = report.refused.iter().map(ToString::to_string).collect();
    let unexpected = refused
        .iter()
        .filter(|said| !said.contains("parquet:2: b.y4m: the caption is empty"));
    anyhow::ensure!(unexpected.count() == 0, refused.join("\n"));
    Ok(())
}

pub fn lines() -> Corpus {
    let files: [(&str, &[u8]); 2] = [
        ("videos.txt", b"a.y4m\nb.y4m\nc.y4m\n"),
        ("prompt.txt", b"A red ball.\nEin W\xc3\xbcrfel, \"blau\".\nSnow falls\n"),
    ];
    data_set(&files, &["videos.txt", "prompt.txt"])
}

pub fn pairs() -> Corpus {
    let files: [(&str, &[u8]); 3] = [
        ("a.txt", b"A red ball rolls over a green floor.\n"),
        ("b.txt", b"\xef\xbb\xbfEin W\xc3\xbcrfel"),
        ("c.txt", b"Snow\r\nfalls\r\n"),
    ];
    data_set(&files, &["a.txt", "b.txt", "c.txt"])
}

pub fn tables() -> Corpus {
    let files: [(&str, &[u8]); 6] = [
        (
            "one.csv",
            b"file_name,text\na.y4m,\"A red, round ball\"\nb.y4m,\"Two\nlines\"\nc.y4m,Snow\n",
        ),
        ("two.tsv", b"video\tcaption\na.y4m\tA ball\nb.y4m\tA \"cube\"\n"),
        (
            "three.jsonl",
            b"{\"video\": \"a.y4m\", \"text\": \"A.\"}\n\n{\"text\": \"B\", \"video\": \"b.y4m\"}\n",
        ),
        (
            "four.json",
            b"[\n {\"video\": \"a.y4m\", \"text\": \"A\"},\n {\"video\": \"b.y4m\",\n \"text\": \"B\"}]",
        ),
        (
            "five.json",
            b"{\"a.y4m\": \"A\",\n \"b.y4m\": {\"text\": \"B\", \"fps\": 8}}",
        ),
        ("six.csv", b"path;prompt;frames\na.y4m;A;9\nb.y4m;B;9\n"),
    ];
    data_set(&files, &files.map(|(name, _)| name))
}

pub fn parquet() -> Corpus {
    let read = |name: &str| std::fs::read(shipped("tests/fixtures/data").join(name)).unwrap();
    let files = [
        ("plain.parquet", read("plain.parquet")),
        ("zstd.parquet", read("zstd.parquet")),
    ];
    let files = [0, 1].map(|n| (files[n].0, files[n].1.as_slice()));
    data_set(&files, &["plain.parquet", "zstd.parquet"])
}
