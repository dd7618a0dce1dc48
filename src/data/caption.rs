//! Preparation of captions: removes openings that captioning models like, and prepends the identifying token.

/// Nouns for the video itself, after `this`, `the`, `a`, ... `animation` and similar are not included: they name a
/// style, which is content.
const SUBJECTS: [&str; 9] = [
    "video clip",
    "video sequence",
    "video footage",
    "video",
    "short clip",
    "short video",
    "clip",
    "footage",
    "film clip",
];

/// Verbs of that subject. `begins with` and similar are not included: they say when something happens, which is
/// content.
const VERBS: [&str; 16] = [
    "shows",
    "depicts",
    "features",
    "captures",
    "presents",
    "displays",
    "portrays",
    "illustrates",
    "showcases",
    "highlights",
    "contains",
    "consists of",
    "is about",
    "is of",
    "shows us",
    "gives us a view of",
];

/// Phrases after `In this video,`.
const WITNESSES: [&str; 10] = [
    "we see",
    "we can see",
    "we are shown",
    "we observe",
    "you see",
    "you can see",
    "you will see",
    "there is",
    "there are",
    "one can see",
];

/// Joins between `A video` and its content.
const JOINS: [&str; 7] = [
    "of",
    "showing",
    "depicting",
    "featuring",
    "capturing",
    "that shows",
    "which shows",
];

/// Removes openings such as `This video shows`, `In the clip, we see` or `Here is a video of`, and capitalises the
/// first letter if it removed one.
pub fn without_prefix(caption: &str) -> String {
    let caption = caption.trim();
    let mut rest = caption;
    while let Some(shorter) = opening(rest) {
        rest = shorter;
    }
    if rest.len() == caption.len() {
        caption.to_owned()
    } else {
        capitalised(rest)
    }
}

/// Returns `token caption`, or the caption alone if the token is blank.
pub fn with_token(token: &str, caption: &str) -> String {
    match token.trim() {
        "" => caption.to_owned(),
        token => format!("{token} {caption}"),
    }
}

/// Returns the text after one known opening.
fn opening(text: &str) -> Option<&str> {
    located(text).or_else(|| asserted(text)).or_else(|| titled(text))
}

/// `In this video, [we see]`
fn located(text: &str) -> Option<&str> {
    let rest = any(text, &["in", "throughout"])?;
    let rest = subject(any(rest, &["this", "the"])?)?;
    match rest.strip_prefix(',') {
        Some(rest) => Some(any(rest.trim_start(), &WITNESSES).unwrap_or(rest.trim_start())),
        None => any(rest, &WITNESSES), // "In this video a dog runs" keeps its sense only whole
    }
}

/// `This video shows [that]`
fn asserted(text: &str) -> Option<&str> {
    let rest = any(text, &["this", "the", "a"]).unwrap_or(text);
    let rest = any(subject(rest)?, &VERBS)?;
    let rest = any(rest, &["us"]).unwrap_or(rest);
    let rest = rest.strip_prefix([':', ',']).map_or(rest, str::trim_start);
    Some(any(rest, &["that"]).unwrap_or(rest))
}

/// `[This is | Here is] a video of`
fn titled(text: &str) -> Option<&str> {
    let rest = any(text, &["this is", "here is", "here's"]).unwrap_or(text);
    let rest = any(rest, &["a", "an", "the"]).unwrap_or(rest);
    any(any(rest, &SUBJECTS)?, &JOINS)
}

/// `scene` is a subject only with a verb: `a scene of calm` is content.
fn subject(text: &str) -> Option<&str> {
    any(text, &SUBJECTS).or_else(|| any(text, &["scene"]))
}

/// Returns the text after the longest of `phrases` that starts it, as whole words and in any case.
fn any<'a>(text: &'a str, phrases: &[impl AsRef<str>]) -> Option<&'a str> {
    let after = |phrase: &str| {
        let head = text.get(..phrase.len())?; // also None inside a character
        let rest = &text[phrase.len()..];
        let ends = rest
            .chars()
            .next()
            .is_none_or(|c| !(c.is_alphanumeric() || matches!(c, '\'' | '’' | '-')));
        (ends && head.eq_ignore_ascii_case(phrase)).then(|| rest.trim_start())
    };
    phrases
        .iter()
        .filter_map(|p| after(p.as_ref()))
        .min_by_key(|rest| rest.len())
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map(|first| first.to_uppercase().chain(chars).collect())
        .unwrap_or_default()
}
