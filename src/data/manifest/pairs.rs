//! A folder of `x.mp4` with `x.txt`, or of `x.png` with `x.txt`, searched with all its subfolders.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use super::super::dataset::Config;
use super::super::reason::Reason;
use super::super::rejection::{Rejection, Source};
use super::folder::Folder;
use super::{Listing, Media, Named, RawCaption, composed, some_of, text};

pub(super) fn read(config: &Config, folder: &Folder, wanted: Media, listing: &mut Listing) {
    let contents = folder.search();
    listing.items.extend(contents.refused.into_iter().map(Err));
    listing.notes.extend(contents.notes);

    let mut families: BTreeMap<PathBuf, FileGroup> = BTreeMap::new(); // by path without extension
    let mut strangers = Vec::new();
    for path in contents.files {
        let family = families.entry(path.with_extension("")).or_default();
        match Media::of(&path) {
            Some(media) if media == wanted => family.clips.push(path),
            Some(_) => family.others.push(path),
            None if is_caption(&path) => family.captions.push(path),
            None => strangers.push(path),
        }
    }
    join_lookalikes(&mut families);
    let others: Vec<_> = families.values().flat_map(|f| f.others.iter().cloned()).collect();
    if !others.is_empty() {
        let (kind, layout) = match wanted {
            Media::Video => ("images", "images"),
            Media::Image => ("videos", "pairs"),
        };
        let files = some_of(&others);
        listing.notes.push(format!(
            "{kind} are not used; they need a data set with `layout: {layout}`: {files}"
        ));
    }
    if !strangers.is_empty() {
        let files = some_of(&strangers);
        listing.notes.push(format!("files of other kinds are ignored: {files}"));
    }
    for family in families.values() {
        family.list(config, folder, wanted, listing);
    }
}

/// Joins a clip without a caption to a caption without a clip if their names look the same: macOS may write names in
/// Unicode's decomposed form.
fn join_lookalikes(families: &mut BTreeMap<PathBuf, FileGroup>) {
    let incomplete = |family: &FileGroup| family.captions.is_empty() || family.clips.is_empty();
    let lonely = families
        .iter()
        .filter(|(name, family)| incomplete(family) && !name.as_os_str().is_ascii());
    let lonely: Vec<PathBuf> = lonely.map(|(name, _)| name.clone()).collect();
    let mut first_of: HashMap<PathBuf, PathBuf> = HashMap::new(); // by composed name
    for name in lonely {
        match first_of.get(&composed(&name)) {
            None => _ = first_of.insert(composed(&name), name),
            Some(first) => {
                let FileGroup {
                    clips,
                    captions,
                    others,
                } = families.remove(&name).unwrap_or_default();
                let family = families.entry(first.clone()).or_default();
                family.clips.extend(clips);
                family.captions.extend(captions);
                family.others.extend(others);
            }
        }
    }
}

/// Files that share a name except for the extension.
#[derive(Default)]
struct FileGroup {
    clips: Vec<PathBuf>,
    captions: Vec<PathBuf>,
    /// Images among videos, videos among images.
    others: Vec<PathBuf>,
}

impl FileGroup {
    fn list(&self, config: &Config, folder: &Folder, wanted: Media, listing: &mut Listing) {
        let Some(caption) = self.captions.first() else {
            for clip in &self.clips {
                let looked_for = file_name(&clip.with_extension("txt"));
                listing.refuse(refusal(folder, clip, Reason::NoCaption { looked_for }));
            }
            return;
        };
        for spare in &self.captions[1..] {
            let other = file_name(caption);
            listing.refuse(refusal(folder, spare, Reason::SecondCaption { other }));
        }
        if self.clips.is_empty() && self.others.is_empty() {
            self.unmatched(caption, folder, wanted, listing);
        }
        if let [_, _, ..] = self.clips[..] {
            let text = caption.display();
            listing.notes.push(format!(
                "{text} is the caption of each of {}; remove all but one",
                some_of(&self.clips)
            ));
        }
        for clip in &self.clips {
            let name = clip.display().to_string();
            let source = Source::file(folder.shown(clip));
            let clip = Named {
                name: &name,
                bases: &[Path::new("")],
                source,
            };
            listing.pair(config, folder, clip, said(folder, caption));
        }
    }

    /// Rejects a caption without a clip, unless it clearly is not a caption.
    fn unmatched(&self, caption: &Path, folder: &Folder, wanted: Media, listing: &mut Listing) {
        let stem = caption.file_stem().unwrap_or_default().to_ascii_lowercase();
        if ["readme", "license", "licence", "copying", "notice"]
            .iter()
            .any(|name| stem == *name)
        {
            return listing
                .notes
                .push(format!("{} is not used as a caption", caption.display()));
        }
        let extension = match wanted {
            Media::Video => "mp4",
            Media::Image => "png",
        };
        let looked_for = format!("{} or its like", file_name(&caption.with_extension(extension)));
        listing.refuse(refusal(folder, caption, Reason::NoClip { looked_for }));
    }
}

/// Returns a caption file's text on one line.
fn said(folder: &Folder, caption: &Path) -> Result<RawCaption, Rejection> {
    let bytes = match folder.file(caption).and_then(|path| text::read(&path)) {
        Err(Reason::EmptyFile) => Ok(Vec::new()), // an empty caption
        bytes => bytes,
    };
    let bytes = bytes.map_err(|reason| refusal(folder, caption, reason))?;
    let mut words = Vec::new();
    for (n, line) in text::lines(&bytes).into_iter().enumerate() {
        let source = || Source::line(folder.shown(caption), n + 1);
        words.push(line.map_err(|reason| Rejection::of_clip(caption.display().to_string(), source(), reason))?);
    }
    words.retain(|line| !line.is_empty());
    Ok(RawCaption {
        text: words.join(" "),
        source: Source::file(folder.shown(caption)),
    })
}

fn refusal(folder: &Folder, path: &Path, reason: Reason) -> Rejection {
    Rejection::of_clip(path.display().to_string(), Source::file(folder.shown(path)), reason)
}

fn is_caption(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("txt"))
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
