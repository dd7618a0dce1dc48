//! Manifests: the clips of a data set, and the caption of each.
//!
//! There are three layouts: `lines` (`videos.txt` with `prompt.txt`), `pairs` (`x.mp4` with `x.txt`, or `x.png`) and
//! `metadata` (a table). No clip is opened here.

mod column;
mod folder;
mod lines;
mod metadata;
mod pairs;
mod table;
mod text;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use super::caption;
use super::dataset::{Config, Layout};
use super::reason::{Reason, count};
use super::rejection::{Rejection, Source};
use crate::disk;
use folder::Folder;

/// Paths that a message names.
const SHOWN: usize = 5;

/// An entry of a manifest: a clip, its caption, and their source.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Entry {
    /// Path of the clip.
    #[serde(serialize_with = "lossy")]
    pub video: PathBuf,
    /// Path relative to the data set's folder, for display.
    pub name: String,
    /// Caption as encoded: prefix removed, identifying token in front.
    pub caption: String,
    /// Place that names the clip; the clip itself in a folder of pairs.
    pub source: Source,
}

/// Serialises a path lossily, because JSON cannot hold every file name.
fn lossy<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&path.display())
}

/// Contents of a data set's manifest, in its order.
#[derive(Debug, Default)]
pub struct Listing {
    /// Entries, or rejections of lines.
    pub items: Vec<Result<Entry, Rejection>>,
    /// Notes for the user that stop nothing.
    pub notes: Vec<String>,
}

/// Kind of file, by extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Media {
    Video,
    Image,
}

const VIDEOS: [&str; 20] = [
    "mp4", "mov", "mkv", "webm", "avi", "m4v", "mpg", "mpeg", "ts", "mts", "m2ts", "wmv", "flv", "f4v", "ogv", "3gp",
    "vob", "gif", "y4m", "mxf",
];
/// HEIF's four extensions are rejected by name when they are opened.
const IMAGES: [&str; 12] = [
    "png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "ppm", "heic", "heif", "hif", "avif",
];

impl Media {
    fn of(path: &Path) -> Option<Media> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        let among = |list: &[&str]| list.contains(&extension.as_str());
        if among(&VIDEOS) {
            Some(Media::Video)
        } else {
            among(&IMAGES).then_some(Media::Image)
        }
    }
}

/// Reads the manifest of a data set.
pub fn read(config: &Config) -> Listing {
    let mut listing = Listing::default();
    let folder = match Folder::open(&config.path, config.follow_links) {
        Ok(folder) => folder,
        Err(refusal) => {
            listing.refuse(refusal);
            return listing;
        }
    };
    match layout(config, &folder) {
        Ok(Layout::Lines) => lines::read(config, &folder, &mut listing),
        Ok(Layout::Metadata) => metadata::read(config, &folder, &mut listing),
        Ok(Layout::Pairs) => pairs::read(config, &folder, Media::Video, &mut listing),
        Ok(Layout::Images) => pairs::read(config, &folder, Media::Image, &mut listing),
        Ok(Layout::Auto) | Err(None) => {
            let looked_for = "videos.txt with prompt.txt, metadata.csv, .jsonl, .json or .parquet, \
                              and clips or images with a .txt of the same name";
            let reason = Reason::NothingFound {
                looked_for: looked_for.into(),
            };
            listing.refuse(Rejection::of_data_set(Source::file(folder.shown("")), reason));
        }
        Err(Some(refusal)) => listing.refuse(refusal),
    }
    listing.note_repeated_names();
    listing
}

/// Returns the configured layout, or else the one detected in the folder.
fn layout(config: &Config, folder: &Folder) -> Result<Layout, Option<Rejection>> {
    if config.layout != Layout::Auto {
        return Ok(config.layout);
    }
    if config.metadata.is_some() {
        return Ok(Layout::Metadata);
    }
    if config.videos.is_some() || config.captions.is_some() {
        return Ok(Layout::Lines);
    }
    let top = folder.top();
    let lines = top.iter().find(|name| name.eq_ignore_ascii_case(lines::VIDEOS));
    let table = top.iter().find(|name| metadata::is_one(Path::new(name)));
    match (lines, table) {
        (Some(lines), Some(table)) => {
            let found = vec![lines.clone(), table.clone()];
            let reason = Reason::Ambiguous {
                found,
                choose_with: "layout",
            };
            return Err(Some(Rejection::of_data_set(Source::file(folder.shown("")), reason)));
        }
        (Some(_), None) => return Ok(Layout::Lines),
        (None, Some(_)) => return Ok(Layout::Metadata),
        (None, None) => {}
    }
    let files = folder.search().files;
    let any = |media| files.iter().any(|path| Media::of(path) == Some(media));
    if files.iter().any(|path| metadata::is_one(path)) {
        Ok(Layout::Metadata)
    } else if any(Media::Video) {
        Ok(Layout::Pairs)
    } else if any(Media::Image) {
        Ok(Layout::Images)
    } else {
        Err(None)
    }
}

/// A clip as named in a manifest.
struct Named<'a> {
    name: &'a str,
    /// Folders, relative to the data set's, that the name may be relative to; never empty.
    bases: &'a [&'a Path],
    source: Source,
}

/// A caption as written in a manifest.
struct RawCaption {
    text: String,
    source: Source,
}

impl Listing {
    fn refuse(&mut self, refusal: Rejection) {
        self.items.push(Err(refusal));
    }

    /// Adds a clip and its caption, or the problems with either or both.
    fn pair(&mut self, config: &Config, folder: &Folder, clip: Named, said: Result<RawCaption, Rejection>) {
        let found = find(folder, &clip);
        let caption = said.and_then(|said| {
            let refuse = |reason| Rejection::of_clip(clip.name, said.source.clone(), reason);
            finish(config, &said.text).map_err(refuse)
        });
        match (found, caption) {
            (Ok((video, name)), Ok(caption)) => {
                self.items.push(Ok(Entry {
                    video,
                    name,
                    caption,
                    source: clip.source,
                }));
            }
            (video, caption) => {
                self.items.extend(
                    video
                        .err()
                        .map(|reason| Err(Rejection::of_clip(clip.name, clip.source, reason))),
                );
                self.items.extend(caption.err().map(Err));
            }
        }
    }

    /// Notes clips that are named twice, which may be intended (two captions) or not.
    fn note_repeated_names(&mut self) {
        let mut lines: HashMap<&Path, Vec<&Entry>> = HashMap::new();
        for entry in self.items.iter().flatten() {
            lines.entry(&entry.video).or_default().push(entry);
        }
        let mut repeated: Vec<_> = lines.into_values().filter(|entries| entries.len() > 1).collect();
        repeated.sort_by(|a, b| a[0].source.cmp(&b[0].source));
        let note = |entries: &Vec<&Entry>| {
            let sources: Vec<_> = entries.iter().map(|e| e.source.to_string()).collect();
            format!(
                "{} is named {} times, each is used: {}",
                entries[0].name,
                entries.len(),
                sources.join(", ")
            )
        };
        let notes: Vec<_> = repeated.iter().map(note).collect();
        self.notes.extend(notes);
    }

    /// Notes clips in the folder that the manifest does not name, which are unused; images, if it names images.
    fn note_unnamed(&mut self, folder: &Folder, manifest: &str, named: &[PathBuf]) {
        let named: HashSet<_> = named.iter().map(|n| composed(&folder.relative(n))).collect();
        let kinds = [Media::Video, Media::Image];
        let kinds = kinds.map(|kind| named.iter().any(|name| Media::of(name) == Some(kind)).then_some(kind));
        let mut unnamed = folder.search().files;
        unnamed.retain(|path| Media::of(path).is_some_and(|kind| kinds.contains(&Some(kind))));
        unnamed.retain(|path| !named.contains(&composed(path)));
        if !unnamed.is_empty() {
            let files = count(unnamed.len(), "file");
            let note = format!("{files} not named in {manifest}, so not used: {}", some_of(&unnamed));
            self.notes.push(note);
        }
    }
}

/// Returns a normalised path, equal for paths that look the same.
fn composed(path: &Path) -> PathBuf {
    path.to_str()
        .map_or_else(|| path.into(), |text| disk::composed(text).as_ref().into())
}

/// Returns the path of a named clip, and its name relative to the data set's folder. If no base has it, returns the
/// problem with the first.
fn find(folder: &Folder, clip: &Named) -> Result<(PathBuf, String), Reason> {
    if clip.name.is_empty() {
        return Err(Reason::EmptyName);
    }
    let mut wrong = None;
    for base in clip.bases {
        let relative = folder.relative(&base.join(clip.name));
        match folder.file(&relative) {
            Ok(path) => return Ok((path, relative.display().to_string())),
            Err(reason) => _ = wrong.get_or_insert(reason),
        }
    }
    Err(wrong.unwrap_or(Reason::MissingFile { link_to: None }))
}

/// Returns the caption as it will be encoded.
fn finish(config: &Config, said: &str) -> Result<String, Reason> {
    let said = said.trim();
    if said.is_empty() {
        return Err(Reason::EmptyCaption { was: None });
    }
    let text = if config.remove_caption_prefixes {
        caption::without_prefix(said)
    } else {
        said.to_owned()
    };
    if text.is_empty() {
        return Err(Reason::EmptyCaption {
            was: Some(said.to_owned()),
        });
    }
    Ok(caption::with_token(
        config.id_token.as_deref().unwrap_or_default(),
        &text,
    ))
}

/// Formats the first few of many paths.
fn some_of(paths: &[PathBuf]) -> String {
    let mut text = paths
        .iter()
        .take(SHOWN)
        .map(|p| p.display().to_string())
        .collect::<Vec<_>>()
        .join(", ");
    if paths.len() > SHOWN {
        text += &format!(" and {} more", paths.len() - SHOWN);
    }
    text
}
