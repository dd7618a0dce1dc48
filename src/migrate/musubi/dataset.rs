//! `dataset.toml`: `[general]` with defaults, and `[[datasets]]`.

use toml::{Table, Value};

use super::super::document::Block;
use super::{DEFAULT, Migration};

/// Default of `max_frames` with `frame_extraction = "full"`.
const MOST_FRAMES: u64 = 129;
/// Limit for it, beyond which the list of buckets would be unreadable.
const MOST_FULL_FRAMES: u64 = 1025;

/// Keys without a counterpart, and why.
const REASONS: &[(&str, &str)] = &[
    (
        "cache_directory",
        "vtrain has one place for all that is encoded: precompute.dir",
    ),
    (
        "enable_bucket",
        "vtrain's buckets are those that are listed: list more for other aspect ratios",
    ),
    ("bucket_no_upscale", "vtrain brings every clip to its bucket's size"),
    ("frame_stride", "vtrain takes one stretch of a clip in an epoch"),
    ("frame_sample", "vtrain takes one stretch of a clip in an epoch"),
    ("max_frames", "is read with frame_extraction = \"full\" only"),
    ("control_directory", "vtrain has no control training"),
];

impl Migration<'_> {
    pub(super) fn dataset(&mut self, given: Option<&str>) {
        let flag = self.flags.text("dataset_config");
        if let (Some(given), Some(flag)) = (given, &flag) {
            self.document.remark(
                format!("--dataset_config {flag}"),
                format!("{given} is read in its place"),
            );
        }
        let Some(file) = given.map(String::from).or(flag) else {
            self.flags
                .problems
                .push("--dataset_config is not given: name the data set's file".into());
            return;
        };
        let table = self
            .source
            .read(&file)
            .and_then(|text| text.parse::<Table>().map_err(|error| format!("{file}: {error}")));
        match table {
            Ok(table) => self.tables(&file, table),
            Err(message) => self
                .flags
                .problems
                .push(format!("--dataset_config: {}", message.trim())),
        }
    }

    fn tables(&mut self, file: &str, mut table: Table) {
        let general = match table.remove("general") {
            Some(Value::Table(general)) => general,
            None => Table::new(),
            Some(_) => return self.wrong(file, "general", "expected a table"),
        };
        let sets = match table.remove("datasets") {
            Some(Value::Array(sets)) if !sets.is_empty() => sets,
            _ => return self.wrong(file, "datasets", "expected at least one [[datasets]]"),
        };
        for (key, value) in table {
            self.document
                .remark(format!("{file}: {key} = {value}"), "is not a key that vtrain knows");
        }
        let mut blocks = Vec::new();
        let mut batches: Vec<i64> = Vec::new();
        for (n, set) in sets.into_iter().enumerate() {
            let Value::Table(own) = set else {
                self.wrong(file, &format!("datasets[{n}]"), "expected a table");
                continue;
            };
            let mut all = general.clone();
            all.extend(own);
            match all.remove("batch_size") {
                Some(Value::Integer(batch)) => batches.push(batch),
                None => batches.push(1),
                Some(_) => self.wrong(file, "batch_size", "expected a whole number"),
            }
            let block = self.one(&format!("{file}: datasets[{n}]"), all);
            blocks.push(block);
        }
        let batch = batches.iter().copied().max().unwrap_or(1);
        if batches.iter().any(|other| *other != batch) {
            self.document.remark(
                format!("{file}: batch_size"),
                format!("vtrain has one for all data sets: the largest, {batch}, of {batches:?}"),
            );
        }
        self.set("train", "batch_size", batch, "batch_size");
        self.document
            .root
            .list("datasets", blocks, &format!("--dataset_config {file}"));
    }

    fn wrong(&mut self, file: &str, key: &str, message: &str) {
        self.flags
            .problems
            .push(format!("--dataset_config: {file}: {key}: {message}"));
    }

    /// Converts one data set, with the general keys as defaults.
    fn one(&mut self, place: &str, mut keys: Table) -> Block {
        let mut set = Block::default();
        let picture = self.place(place, &mut keys, &mut set);
        if let Some(value) = keys.remove("num_repeats") {
            match value.as_integer() {
                Some(repeats) => set.set("repeats", repeats, "num_repeats"),
                None => self.wrong(place, "num_repeats", "expected a whole number"),
            }
        }
        if let Some(value) = keys.remove("caption_extension")
            && value.as_str() != Some(".txt")
        {
            self.document.remark(
                format!("{place}: caption_extension = {value}"),
                "vtrain reads captions from .txt",
            );
        }
        self.frames(place, &mut keys, &mut set, picture);
        match keys.remove("source_fps") {
            Some(value) if value.as_float().is_some() || value.as_integer().is_some() => {
                set.set(
                    "fps",
                    self.fps(),
                    &format!("source_fps {value}, brought to the model's rate"),
                );
            }
            Some(_) => self.wrong(place, "source_fps", "expected a number"),
            None => {}
        }
        for (key, value) in keys {
            let why = REASONS
                .iter()
                .find(|(name, _)| *name == key)
                .map_or("is not a key that vtrain knows", |(_, why)| why);
            self.document.remark(format!("{place}: {key} = {value}"), why);
        }
        set
    }

    /// Converts the location of the clips; returns true for pictures.
    fn place(&mut self, place: &str, keys: &mut Table, set: &mut Block) -> bool {
        let mut found = None;
        for key in [
            "video_directory",
            "video_jsonl_file",
            "image_directory",
            "image_jsonl_file",
        ] {
            let Some(value) = keys.remove(key) else { continue };
            let Some(path) = value.as_str() else {
                self.wrong(place, key, "expected a text");
                continue;
            };
            if found.is_some() {
                self.document
                    .remark(format!("{place}: {key} = {value}"), "a data set has one place");
                continue;
            }
            found = Some(key.starts_with("image"));
            if key.ends_with("directory") {
                set.set("path", self.source.path(path), key);
                let layout = if found == Some(true) { "images" } else { "pairs" };
                set.set("layout", layout, key);
            } else {
                let path = self.source.slashed(path);
                let (folder, name) = path.rsplit_once('/').unwrap_or((".", &path));
                set.set("path", self.source.path(folder), key);
                set.set("layout", "metadata", key);
                set.set("metadata", name, key);
                set.set("caption_column", "caption", key);
                let column = if found == Some(true) {
                    "image_path"
                } else {
                    "video_path"
                };
                set.set("video_column", column, key);
            }
        }
        if found.is_none() {
            self.wrong(place, "video_directory", "is not there, nor another place of clips");
        }
        found.unwrap_or(false)
    }

    /// Converts sizes, and the selection of frames.
    fn frames(&mut self, place: &str, keys: &mut Table, set: &mut Block, picture: bool) {
        let resolution = match keys.remove("resolution") {
            None => Some([960, 544]),
            Some(value) => sides(&value),
        };
        let Some([width, height]) = resolution else {
            return self.wrong(place, "resolution", "expected [width, height]");
        };
        if picture {
            let buckets = vec![serde_json::Value::from(vec![1, height, width])];
            return set.set("buckets", buckets, "resolution [width, height]");
        }
        let extraction = keys.remove("frame_extraction");
        let name = extraction
            .as_ref()
            .map_or(Some("head"), Value::as_str)
            .unwrap_or_default()
            .to_string();
        let counts = match name.as_str() {
            "full" => self.whole_clips(place, keys),
            _ => self.target_frames(place, keys),
        };
        let Some(counts) = counts else { return };
        let buckets: Vec<serde_json::Value> = counts.iter().map(|f| vec![*f, height, width].into()).collect();
        set.set("buckets", buckets, "target_frames, resolution [width, height]");
        let from = match extraction {
            Some(_) => format!("frame_extraction {name}"),
            None => DEFAULT.into(),
        };
        let once = keys.get("frame_sample").is_none_or(|n| n.as_integer() == Some(1));
        match name.as_str() {
            "head" | "full" => set.set("frames", "head", &from),
            "uniform" if once => set.set("frames", "head", &format!("{from} of one sample")),
            "chunk" | "slide" | "uniform" => {
                set.set("frames", "random", &from);
                self.document.remark(
                    format!("{place}: frame_extraction = {name}"),
                    "takes several segments of each clip; vtrain takes one, drawn by the seed",
                );
            }
            _ => self.wrong(place, "frame_extraction", "is one of head, chunk, slide, uniform, full"),
        }
    }

    /// Returns the lengths of `target_frames`, each rounded down to 4 n + 1, as the model requires.
    fn target_frames(&mut self, place: &str, keys: &mut Table) -> Option<Vec<u64>> {
        let given: Option<Vec<u64>> = match keys.remove("target_frames") {
            None => Some(vec![1]),
            Some(Value::Array(list)) => list.iter().map(count).collect(),
            Some(value) => count(&value).map(|n| vec![n]),
        };
        let given = given.filter(|counts| !counts.is_empty() && !counts.contains(&0));
        let Some(given) = given else {
            self.wrong(place, "target_frames", "expected whole numbers of at least 1");
            return None;
        };
        let mut counts: Vec<u64> = given.iter().map(|n| whole(*n)).collect();
        if counts != given {
            self.document.remark(
                format!("{place}: target_frames = {given:?}"),
                format!("are rounded down to 4 n + 1, in musubi-tuner too: {counts:?}"),
            );
        }
        counts.sort_unstable();
        counts.dedup();
        if counts.len() > 1 {
            self.document.remark(
                format!("{place}: target_frames = {counts:?}"),
                "musubi-tuner trains on each of these from every clip, vtrain on the longest that the clip fills",
            );
        }
        Some(counts)
    }

    /// Converts `frame_extraction = "full"`: each clip at its full length, rounded down to 4 n + 1, up to `max_frames`.
    fn whole_clips(&mut self, place: &str, keys: &mut Table) -> Option<Vec<u64>> {
        let longest = keys
            .remove("max_frames")
            .map_or(Some(MOST_FRAMES), |value| count(&value));
        let Some(longest) = longest.filter(|n| (1..=MOST_FULL_FRAMES).contains(n)) else {
            self.wrong(
                place,
                "max_frames",
                &format!("expected a whole number from 1 to {MOST_FULL_FRAMES}"),
            );
            return None;
        };
        if let Some(value) = keys.remove("target_frames") {
            let why = "is not read with frame_extraction = \"full\"";
            self.document.remark(format!("{place}: target_frames = {value}"), why);
        }
        Some((1..=whole(longest)).step_by(4).collect())
    }
}

/// Returns the largest 4 n + 1 that is not larger.
pub(super) fn whole(frames: u64) -> u64 {
    (frames - 1) / 4 * 4 + 1
}

/// Parses `[width, height]`, or one side of a square.
fn sides(value: &Value) -> Option<[u64; 2]> {
    match value {
        Value::Array(list) => match list[..] {
            [ref width, ref height] => Some([count(width)?, count(height)?]),
            _ => None,
        },
        value => count(value).map(|side| [side, side]),
    }
}

fn count(value: &Value) -> Option<u64> {
    value.as_integer().and_then(|n| u64::try_from(n).ok())
}
