//! Report of captions that exceed the text encoder's length, once for all of them.

use super::plan::Plan;

/// Captions that are listed; the rest are counted.
const NAMED: usize = 5;

/// Characters of a caption that are shown.
const SHOWN: usize = 60;

/// Logs the truncated texts, those that lost most first.
pub fn tell(plan: &Plan, shortened: &[(&str, usize)]) {
    if !shortened.is_empty() {
        log::warn!("{}", in_words(plan, shortened));
    }
}

fn in_words(plan: &Plan, shortened: &[(&str, usize)]) -> String {
    let mut most_first = shortened.to_vec();
    most_first.sort_by_key(|(_, lost)| std::cmp::Reverse(*lost));
    let line = |(text, lost): &(&str, usize)| {
        let owner = match plan.clip_of(text) {
            Some(clip) => format!("{} of", clip.found.entry.source),
            None => "a prompt of".to_string(), // of validation
        };
        let end = if text.chars().count() > SHOWN { "..." } else { "" };
        let start: String = text.chars().take(SHOWN).collect();
        format!("\n  {owner} {start:?}{end}: {lost} lost")
    };
    let lines: String = most_first.iter().take(NAMED).map(line).collect();
    let more = match most_first.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!("\n  and {more} more"),
    };
    format!(
        "{} of {} captions are longer than the {} tokens that the model reads, and the rest of them is not learned; \
         shorten them:{lines}{more}",
        shortened.len(),
        plan.texts(),
        plan.tokens,
    )
}
