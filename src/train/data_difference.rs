//! Differences between the data of a checkpoint and those of now, clip by clip.
//!
//! Samples whose records are the same are the same, wherever their files lie; what is left on both sides is matched by path,
//! then by file name.

use std::collections::HashMap;
use std::path::Path;

use crate::data::cache::Listed;

/// Lines that are told; the others are counted.
const TOLD: usize = 10;

/// Lines such as `clips/a.mp4: its caption has changed`. Something where the lists differ at all.
pub fn list(then: &[Listed], now: &[Listed]) -> Vec<String> {
    if then.is_empty() {
        return vec![
            "which clips cannot be said: the checkpoint is from an earlier version, and does not list them".into(),
        ];
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

/// A sample then, and now: one of them at least.
type Pair<'a> = (Option<&'a Listed>, Option<&'a Listed>);

/// Those that the other side has not.
fn without_same<'a>(then: &'a [Listed], now: &'a [Listed]) -> (Vec<&'a Listed>, Vec<&'a Listed>) {
    let content = |sample: &'a Listed| (&sample.clip, &sample.caption, sample.repeats);
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
    // What is left in the counts is what nobody took.
    let gone = then
        .iter()
        .rev()
        .filter(|sample| take(&mut counts, sample))
        .collect::<Vec<_>>();
    (gone.into_iter().rev().collect(), new)
}

/// Pairs by path, then by name.
fn matched<'a>(gone: Vec<&'a Listed>, new: Vec<&'a Listed>) -> Vec<Pair<'a>> {
    let mut pairs = Vec::new();
    let mut left: Vec<Option<&Listed>> = gone.into_iter().map(Some).collect();
    let mut unmatched = Vec::new();
    let name = |sample: &Listed| Path::new(&sample.video).file_name().map(ToOwned::to_owned);
    let mut find = |same: &dyn Fn(&Listed) -> bool| left.iter_mut().find(|then| then.is_some_and(same))?.take();
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

/// One line for what befell every clip: an encoder changed, or what the cache asks of it.
fn all_alike(pairs: &[Pair], then: usize, now: usize) -> Option<String> {
    let all = |changed: &dyn Fn(&Listed, &Listed) -> bool| {
        let each = |pair: &Pair| matches!(pair, (Some(then), Some(now)) if changed(then, now));
        then > 1 && then == now && pairs.len() == now && pairs.iter().all(each)
    };
    let clips = all(&|then, now| then.clip != now.clip);
    let captions = all(&|then, now| then.caption != now.caption);
    let what = match (clips, captions) {
        (true, true) => "all clips and all captions: they are others, or encoded otherwise (VAE, text encoder, dtype)",
        (true, false) => "all clips: they are others, or cut or encoded otherwise (buckets, frames, crop, VAE, dtype)",
        (false, true) => "all captions: they are others, or encoded otherwise (id_token, text encoder, dtype)",
        (false, false) => return None,
    };
    Some(what.into())
}

fn in_words(pair: &Pair) -> String {
    match pair {
        (Some(then), Some(now)) => {
            let mut changes = Vec::new();
            if then.clip != now.clip {
                changes.push("the clip is another, or cut otherwise".to_string());
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
