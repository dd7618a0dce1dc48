//! Differences between a checkpoint's data and the current data, clip by clip.
//!
//! Samples with the same record are equal, wherever their files are; the others are matched by path, then by file name.

use std::collections::HashMap;
use std::path::Path;

use crate::data::cache::SampleListing;

/// Lines that are shown; the rest are counted.
const TOLD: usize = 10;

/// Returns lines such as `clips/a.mp4: its caption has changed`; at least one if the lists differ.
pub fn list(then: &[SampleListing], now: &[SampleListing]) -> Vec<String> {
    if then.is_empty() {
        return vec!["the clips are unknown: the checkpoint is from an earlier version, and does not list them".into()];
    }
    let (gone, new) = without_same(then, now);
    let pairs = matched(gone, new);
    if let Some(line) = all_alike(&pairs, then.len(), now.len()) {
        return vec![line];
    }
    let mut lines: Vec<String> = pairs.iter().map(in_words).collect();
    if lines.is_empty() {
        lines.push("the same clips and captions in another order".into());
    }
    let more = lines.len().saturating_sub(TOLD);
    if more > 1 {
        lines.truncate(TOLD);
        lines.push(format!("and {more} more"));
    }
    lines
}

/// A sample before and now; at least one of them is given.
type Pair<'a> = (Option<&'a SampleListing>, Option<&'a SampleListing>);

/// Returns the samples that the other side lacks.
fn without_same<'a>(
    then: &'a [SampleListing],
    now: &'a [SampleListing],
) -> (Vec<&'a SampleListing>, Vec<&'a SampleListing>) {
    let content = |sample: &'a SampleListing| (&sample.clip, &sample.caption, sample.repeats);
    let mut counts: HashMap<_, usize> = HashMap::new();
    then.iter()
        .for_each(|sample| *counts.entry(content(sample)).or_default() += 1);
    let take = |counts: &mut HashMap<_, usize>, sample| match counts.get_mut(&content(sample)) {
        Some(count) if *count > 0 => {
            *count -= 1;
            true
        }
        _ => false,
    };
    let new = now.iter().filter(|sample| !take(&mut counts, sample)).collect();
    // Remaining counts are unmatched samples.
    let gone = then
        .iter()
        .rev()
        .filter(|sample| take(&mut counts, sample))
        .collect::<Vec<_>>();
    (gone.into_iter().rev().collect(), new)
}

/// Pairs samples by path, then by name.
fn matched<'a>(gone: Vec<&'a SampleListing>, new: Vec<&'a SampleListing>) -> Vec<Pair<'a>> {
    let mut pairs = Vec::new();
    let mut left: Vec<Option<&SampleListing>> = gone.into_iter().map(Some).collect();
    let mut unmatched = Vec::new();
    let name = |sample: &SampleListing| Path::new(&sample.video).file_name().map(ToOwned::to_owned);
    let mut find = |same: &dyn Fn(&SampleListing) -> bool| left.iter_mut().find(|then| then.is_some_and(same))?.take();
    for now in new {
        match find(&|then| then.video == now.video) {
            Some(then) => pairs.push((Some(then), Some(now))),
            None => unmatched.push(now),
        }
    }
    for now in unmatched {
        pairs.push((find(&|then| name(then) == name(now)), Some(now)));
    }
    pairs.extend(left.into_iter().filter(Option::is_some).map(|then| (then, None)));
    pairs
}

/// Returns one line for a change to every clip: of an encoder or its settings.
fn all_alike(pairs: &[Pair], then: usize, now: usize) -> Option<String> {
    let all = |changed: &dyn Fn(&SampleListing, &SampleListing) -> bool| {
        let each = |pair: &Pair| matches!(pair, (Some(then), Some(now)) if changed(then, now));
        then > 1 && then == now && pairs.len() == now && pairs.iter().all(each)
    };
    let clips = all(&|then, now| then.clip != now.clip);
    let captions = all(&|then, now| then.caption != now.caption);
    let what = match (clips, captions) {
        (true, true) => {
            "all clips and all captions: they are different, or encoded differently (VAE, text encoder, dtype)"
        }
        (true, false) => {
            "all clips: they are different, or selected or encoded differently (buckets, frames, crop, VAE, dtype)"
        }
        (false, true) => "all captions: they are different, or encoded differently (id_token, text encoder, dtype)",
        (false, false) => return None,
    };
    Some(what.into())
}

fn in_words(pair: &Pair) -> String {
    match pair {
        (Some(then), Some(now)) => {
            let mut changes = Vec::new();
            if then.clip != now.clip {
                changes.push("the clip is different, or selected differently".to_string());
            }
            if then.caption != now.caption {
                changes.push("its caption has changed".to_string());
            }
            if then.repeats != now.repeats {
                changes.push(format!(
                    "repeats: {} in the checkpoint, {} now",
                    then.repeats, now.repeats
                ));
            }
            format!("{}: {}", now.video, changes.join("; "))
        }
        (None, Some(now)) => format!("{}: is new", now.video),
        (Some(then), None) => format!("{}: is gone", then.video),
        (None, None) => String::new(), // there is no such pair
    }
}
