//! Data sets: `--data_root` and related flags, or the file of `--dataset_config`.

use serde_json::Value;

use super::super::document::Block;
use super::{Migration, Trainer};

impl Migration<'_> {
    pub(super) fn datasets(&mut self) {
        if let Some(file) = self.flags.text("dataset_config") {
            match read_json(self, &file) {
                Ok(json) => self.dataset_file(&file, &json),
                Err(message) => self.flags.problems.push(format!("--dataset_config: {message}")),
            }
        } else {
            self.one_dataset();
        }
        if let Some(dir) = self.flags.text("precomputation_dir") {
            let dir = self.source.path(&dir);
            self.set("precompute", "dir", dir, "--precomputation_dir");
        }
        self.onoff("enable_tiling", "precompute", "vae_tiling");
        self.onoff("enable_slicing", "precompute", "vae_slicing");
    }

    /// Converts flags of v0.0.1: columns are files of lines, unless a table is named.
    fn one_dataset(&mut self) {
        let mut set = Block::default();
        let root = self.flags.text("data_root");
        let table = self.flags.text("dataset_file");
        if let Some(root) = &root {
            let (folder, from) = (self.folder(root), self.flags.said("data_root"));
            set.set("path", folder, &from);
        }
        if let Some(name) = self.flags.text("dataset_name") {
            set.set("path", self.folder(&name), "--dataset_name");
        }
        if let Some(table) = &table {
            let table = self.source.slashed(table);
            let (folder, name) = table.rsplit_once('/').unwrap_or((".", &table));
            if root.is_none() {
                set.set("path", self.source.path(folder), "--dataset_file");
            }
            set.set("layout", "metadata", "--dataset_file");
            set.set("metadata", name, "--dataset_file");
        }
        let (captions, videos) = match table {
            Some(_) => ("caption_column", "video_column"),
            None => ("captions", "videos"),
        };
        let before = matches!(self.trainer, Trainer::Diffusers | Trainer::Factory);
        for (flag, key, default) in [("caption_column", captions, "text"), ("video_column", videos, "video")] {
            match self.flags.text(flag) {
                Some(column) => set.set(key, column, &format!("--{flag}")),
                None if before => set.set(key, default, self.default),
                None => {}
            }
        }
        if let Some(token) = self.flags.text("id_token") {
            if self.trainer == Trainer::Diffusers && !token.ends_with(' ') {
                let why = "directly precedes the caption in diffusers; vtrain puts a space between";
                self.document.remark(format!("--id_token {token}"), why);
            }
            set.set("id_token", token, "--id_token");
        }
        let mut buckets = Vec::new();
        let mut from = Vec::new();
        for (name, sides) in [("video_resolution_buckets", 3), ("image_resolution_buckets", 2)] {
            let Some(flag) = self.flags.take(name) else { continue };
            from.push(format!("--{name}"));
            for value in flag.values.iter().flat_map(|value| value.split_whitespace()) {
                match bucket(value, sides) {
                    Some(bucket) => buckets.push(bucket),
                    None => self.flags.problems.push(format!(
                        "--{name}: expected {sides} whole numbers with x between, found '{}'",
                        value.escape_debug()
                    )),
                }
            }
        }
        if before {
            (buckets, from) = self.sides();
        }
        if self.trainer == Trainer::Mochi {
            self.prepared(&mut set);
        } else if buckets.is_empty() {
            self.document.remark(
                "--video_resolution_buckets (not given)",
                "finetrainers tries a long list of sizes, vtrain one: write datasets[0].buckets",
            );
        } else {
            self.buckets(&mut set, buckets, &from.join(", "));
        }
        if let Some(flag) = self.flags.take("video_reshape_mode") {
            match flag.values.first().map(String::as_str) {
                Some(mode @ ("center" | "random")) => set.set("crop", mode, "--video_reshape_mode"),
                Some("none") if self.trainer == Trainer::Diffusers => {
                    set.set(
                        "crop",
                        "random",
                        "--video_reshape_mode none, which crops at random, too",
                    );
                }
                Some("none") => set.set("crop", "fit", "--video_reshape_mode none"),
                _ => self.flags.wrong(&flag, "is one of center, random, none"),
            }
        }
        self.document.root.list("datasets", vec![set], "");
    }

    /// Converts flags from before finetrainers: one size by `--max_num_frames`, `--height` and `--width`, or all
    /// combinations of lists.
    fn sides(&mut self) -> (Vec<[u64; 3]>, Vec<String>) {
        let mut from = Vec::new();
        let mut lists = Vec::new();
        for (list, one, default) in [
            ("frame_buckets", "max_num_frames", 49),
            ("height_buckets", "height", 480),
            ("width_buckets", "width", 720),
        ] {
            let single = self.flags.number::<u64>(one);
            let many = self.flags.take(list).filter(|_| self.trainer == Trainer::Factory);
            let numbers: Vec<u64> = match &many {
                Some(flag) => {
                    let words = flag.values.iter().flat_map(|value| value.split_whitespace());
                    let numbers: Option<Vec<u64>> = words.map(|word| word.parse().ok()).collect();
                    numbers.filter(|numbers| !numbers.is_empty()).unwrap_or_else(|| {
                        self.flags.wrong(flag, "takes whole numbers");
                        vec![default]
                    })
                }
                None => vec![single.unwrap_or(default)],
            };
            from.push(if many.is_some() {
                format!("--{list}")
            } else {
                format!("--{one}")
            });
            lists.push(numbers);
        }
        if let ([_], [height], [width]) = (&lists[0][..], &lists[1][..], &lists[2][..]) {
            self.size = Some([*height, *width]);
        }
        if self.trainer == Trainer::Factory && !from.iter().any(|flag| flag.ends_with("buckets")) {
            self.document.remark(
                "--height_buckets, --width_buckets (not given)",
                "cogvideox-factory tries a long list of sizes, vtrain one: write datasets[0].buckets",
            );
        }
        // The VAE takes 4 n + 1 frames; the scripts drop the rest.
        let frames: Vec<u64> = lists[0].iter().map(|n| n.saturating_sub(1) / 4 * 4 + 1).collect();
        if frames != lists[0] {
            let what = format!("{} {:?}", from[0], lists[0]);
            self.document
                .remark(what, format!("are rounded down to 4 n + 1, there too: {frames:?}"));
        }
        let sizes = lists[1].iter().flat_map(|h| lists[2].iter().map(move |w| (*h, *w)));
        let buckets = frames
            .iter()
            .flat_map(|f| sizes.clone().map(move |(h, w)| [*f, h, w]))
            .collect();
        (buckets, from)
    }

    fn buckets(&mut self, set: &mut Block, buckets: Vec<[u64; 3]>, from: &str) {
        let mut kept: Vec<[u64; 3]> = Vec::new();
        for bucket in buckets {
            if kept.contains(&bucket) {
                self.document.remark(format!("{from} {bucket:?}"), "is given twice");
            } else {
                kept.push(bucket);
            }
        }
        let values: Vec<Value> = kept.iter().map(|bucket| bucket.to_vec().into()).collect();
        set.set("buckets", values, from);
    }

    /// Returns a data set's folder, with a remark if it may be a name of the Hub.
    fn folder(&mut self, root: &str) -> String {
        let hub = root.matches('/').count() == 1 && !root.starts_with(['.', '/', '~', '$']);
        if hub && !self.source.from.join(root).is_dir() {
            self.document.remark(
                root,
                "vtrain reads folders. If this is a data set of the Hub, download it to the path given here: \
                 `hf download --repo-type dataset NAME --local-dir PATH`",
            );
        }
        self.source.path(root)
    }

    fn dataset_file(&mut self, file: &str, json: &Value) {
        let sets = match json.get("datasets") {
            Some(Value::Array(sets)) if !sets.is_empty() => sets,
            _ => {
                let message = format!("--dataset_config: {file}: expected a list 'datasets' that is not empty");
                return self.flags.problems.push(message);
            }
        };
        if let Value::Object(top) = json {
            for key in top.keys().filter(|key| *key != "datasets") {
                self.document
                    .remark(format!("{file}: {key}"), "is not a key that vtrain knows");
            }
        }
        let blocks = sets
            .iter()
            .enumerate()
            .map(|(n, set)| self.listed(file, n, set))
            .collect();
        self.document
            .root
            .list("datasets", blocks, &format!("--dataset_config {file}"));
    }

    /// Converts one entry of `datasets`.
    fn listed(&mut self, file: &str, n: usize, json: &Value) -> Block {
        let mut set = Block::default();
        let Value::Object(entries) = json else {
            let message = format!("--dataset_config: {file}: datasets[{n}]: expected a mapping");
            self.flags.problems.push(message);
            return set;
        };
        for (key, value) in entries {
            let place = format!("{file}: datasets[{n}].{key}");
            let known = match (key.as_str(), value) {
                (_, Value::Null) => {
                    self.document
                        .remark(format!("{place}: null"), "is the same as no such key");
                    true
                }
                ("data_root", Value::String(root)) => {
                    let root = self.folder(root);
                    set.set("path", root, key);
                    true
                }
                ("dataset_type", Value::String(kind)) => {
                    if kind != "video" {
                        let why = "pictures are clips of one frame: their buckets start with 1";
                        self.document.remark(format!("{place}: {kind}"), why);
                    }
                    true
                }
                ("dataset_file", Value::String(table)) => {
                    let name = table.rsplit('/').next().unwrap_or(table);
                    set.set("layout", "metadata", key);
                    set.set("metadata", name, key);
                    true
                }
                ("id_token", Value::String(token)) => {
                    set.set("id_token", token.as_str(), key);
                    true
                }
                ("caption_column" | "video_column", Value::String(column)) => {
                    set.set(key, column.as_str(), key);
                    true
                }
                ("video_resolution_buckets" | "image_resolution_buckets", Value::Array(list)) => {
                    let found: Option<Vec<[u64; 3]>> = list.iter().map(json_bucket).collect();
                    if let Some(found) = &found {
                        self.buckets(&mut set, found.clone(), key);
                    }
                    found.is_some()
                }
                ("reshape_mode", Value::String(mode)) => self.reshape(&mut set, &place, mode),
                ("remove_common_llm_caption_prefixes", Value::Bool(on)) => {
                    set.set("remove_caption_prefixes", *on, key);
                    true
                }
                (
                    "data_root"
                    | "dataset_type"
                    | "dataset_file"
                    | "id_token"
                    | "caption_column"
                    | "video_column"
                    | "video_resolution_buckets"
                    | "image_resolution_buckets"
                    | "reshape_mode"
                    | "remove_common_llm_caption_prefixes",
                    _,
                ) => false,
                _ => {
                    self.document
                        .remark(format!("{place}: {value}"), "is not a key that vtrain knows");
                    true
                }
            };
            if !known {
                self.flags
                    .problems
                    .push(format!("--dataset_config: {place}: cannot be read: {value}"));
            }
        }
        if !entries.contains_key("remove_common_llm_caption_prefixes") {
            set.set("remove_caption_prefixes", false, self.default);
        }
        set
    }

    fn reshape(&mut self, set: &mut Block, place: &str, mode: &str) -> bool {
        let crop = match mode {
            // Resizing alone changes the aspect ratio.
            "bicubic" | "bilinear" | "nearest" | "area" => "fit",
            "center_crop" | "resize_crop" | "center" => "center",
            "random_crop" | "random" => "random",
            _ => return false,
        };
        set.set("crop", crop, &format!("reshape_mode {mode}"));
        if mode != "bicubic" {
            self.document.remark(
                format!("{place}: {mode}"),
                "vtrain resizes by a bicubic filter first, then crops",
            );
        }
        true
    }
}

/// Parses `49x480x720`, or `480x720` of one frame.
fn bucket(text: &str, sides: usize) -> Option<[u64; 3]> {
    let numbers: Vec<u64> = text.split('x').map(|n| n.trim().parse().ok()).collect::<Option<_>>()?;
    match numbers[..] {
        [f, h, w] if sides == 3 => Some([f, h, w]),
        [h, w] if sides == 2 => Some([1, h, w]),
        _ => None,
    }
}

/// Parses `[49, 480, 720]`, or `[480, 720]` of one frame.
fn json_bucket(json: &Value) -> Option<[u64; 3]> {
    let numbers: Vec<u64> = json.as_array()?.iter().map(Value::as_u64).collect::<Option<_>>()?;
    match numbers[..] {
        [f, h, w] => Some([f, h, w]),
        [h, w] => Some([1, h, w]),
        _ => None,
    }
}

/// Reads a JSON file that the script names.
pub(super) fn read_json(migration: &Migration, path: &str) -> Result<Value, String> {
    let text = migration.source.read(path)?;
    serde_json::from_str(&text).map_err(|error| format!("{path}: is not JSON: {error}"))
}
