//! `videos.txt` with `prompt.txt`: line n of one belongs to line n of the other.

use std::path::{Path, PathBuf};

use super::super::dataset::Config;
use super::super::reason::Reason;
use super::super::rejection::{Rejection, Source};
use super::folder::Folder;
use super::{Listing, Named, RawCaption, text};

pub(super) const VIDEOS: &str = "videos.txt";
const CAPTIONS: [&str; 3] = ["prompt.txt", "prompts.txt", "captions.txt"];

pub(super) fn read(config: &Config, folder: &Folder, listing: &mut Listing) {
    let videos = open(folder, config.videos.as_deref(), &[VIDEOS], "videos");
    let captions = open(folder, config.captions.as_deref(), &CAPTIONS, "captions");
    match (videos, captions) {
        (Ok(videos), Ok(captions)) => pair(config, folder, &videos, &captions, listing),
        (videos, captions) => listing
            .items
            .extend(videos.err().into_iter().chain(captions.err()).map(Err)),
    }
}

struct Opened {
    /// Path relative to the data set's folder.
    name: PathBuf,
    shown: PathBuf,
    bytes: Vec<u8>,
}

/// Opens the named file, or else the only usual one that exists.
fn open(folder: &Folder, named: Option<&Path>, usual: &[&str], key: &'static str) -> Result<Opened, Rejection> {
    let name = match named {
        Some(name) => name.to_owned(),
        None => PathBuf::from(usual_one(folder, usual, key)?),
    };
    let path = folder.manifest(&name, key)?;
    let shown = folder.shown(&name);
    let refuse = |reason| Rejection::of_data_set(Source::file(&shown), reason);
    let bytes = text::read(&path).map_err(refuse)?;
    Ok(Opened { name, shown, bytes })
}

fn usual_one(folder: &Folder, usual: &[&str], key: &'static str) -> Result<String, Rejection> {
    let mut found = folder.top();
    found.retain(|name| usual.iter().any(|u| u.eq_ignore_ascii_case(name)));
    let refuse = |reason| Err(Rejection::of_data_set(Source::file(folder.shown("")), reason));
    match found.len() {
        0 => refuse(Reason::NoManifest {
            looked_for: usual.join(", "),
            choose_with: key,
        }),
        1 => Ok(found.remove(0)),
        _ => refuse(Reason::Ambiguous {
            found,
            choose_with: key,
        }),
    }
}

fn pair(config: &Config, folder: &Folder, videos: &Opened, captions: &Opened, listing: &mut Listing) {
    let (names, said) = (text::lines(&videos.bytes), text::lines(&captions.bytes));
    let (clips, texts) = counts(&names, &said);
    if clips != texts {
        let captions_file = captions.name.display().to_string();
        let reason = Reason::CountsDiffer {
            videos: clips,
            captions: texts,
            captions_file,
        };
        listing.refuse(Rejection::of_data_set(Source::file(&videos.shown), reason));
    }
    let bases = [videos.name.parent().unwrap_or(Path::new("")), Path::new("")];
    for (n, (name, said)) in names.iter().zip(&said).take(clips.min(texts)).enumerate() {
        let source = Source::line(&videos.shown, n + 1);
        let name = match name {
            Ok(name) => *name,
            Err(reason) => {
                listing.refuse(Rejection::of_clip("", source, reason.clone()));
                continue;
            }
        };
        let place = Source::line(&captions.shown, n + 1);
        let said = match said {
            Ok(text) => Ok(RawCaption {
                text: text.to_string(),
                source: place,
            }),
            Err(reason) => Err(Rejection::of_clip(name, place, reason.clone())),
        };
        listing.pair(
            config,
            folder,
            Named {
                name,
                bases: &bases,
                source,
            },
            said,
        );
    }
    let named: Vec<_> = names
        .iter()
        .flatten()
        .flat_map(|name| bases.map(|base| base.join(name)))
        .collect();
    listing.note_unnamed(folder, &videos.name.display().to_string(), &named);
}

type Lines<'a> = [Result<&'a str, Reason>];

/// Counts clips and captions, without blank lines at the end, except captions that belong to a clip.
fn counts(names: &Lines, said: &Lines) -> (usize, usize) {
    let clips = text::without_blank_end(names);
    let texts = text::without_blank_end(said);
    (clips, texts.max(said.len().min(clips)))
}
