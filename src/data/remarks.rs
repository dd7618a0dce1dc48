//! Unusual pictures among a data set's clips, a line for each kind.

use super::reason::count;
use crate::video::Remark;

/// Clips named in a line; the rest are counted.
const NAMED: usize = 5;

/// Returns lines such as `pixels that are not square, ... (2 clips): a.mpg (pixels 4:3, ...), b.mpg (...)`, from clips
/// by name.
pub fn gathered(clips: &[(String, Vec<Remark>)]) -> Vec<String> {
    let mut kinds: Vec<(&str, Vec<String>)> = Vec::new();
    for (name, remarks) in clips {
        for remark in remarks {
            let clip = format!("{name} ({remark})");
            match kinds.iter_mut().find(|(heading, _)| *heading == remark.heading()) {
                Some((_, of_kind)) => of_kind.push(clip),
                None => kinds.push((remark.heading(), vec![clip])),
            }
        }
    }
    let line = |(heading, clips): (&str, Vec<String>)| {
        let named = clips[..clips.len().min(NAMED)].join(", ");
        let more = match clips.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!("{heading} ({}): {named}{more}", count(clips.len(), "clip"))
    };
    kinds.into_iter().map(line).collect()
}
