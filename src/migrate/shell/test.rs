//! `[`, `[[` and `test`: evaluates comparisons of texts and numbers.

/// Evaluates a test's words; None if the answer is outside of the script. `unread` are texts that stand for unknown
/// values.
pub fn holds(words: &[String], unread: &[String]) -> Option<bool> {
    let patterns = words.first().is_some_and(|word| word == "[[") || words.last().is_some_and(|word| word == "]]");
    let brackets = ["[", "[[", "test", "]", "]]"];
    let inner: Vec<&str> = words.iter().map(String::as_str).collect();
    let inner = match &inner[..] {
        [first, rest @ ..] if brackets.contains(first) => rest,
        all => all,
    };
    let inner = match inner {
        [rest @ .., "]" | "]]"] => rest,
        all => all,
    };
    let (negated, inner) = match inner {
        ["!", rest @ ..] => (true, rest),
        all => (false, all),
    };
    if inner
        .iter()
        .any(|word| unread.iter().any(|left| word.contains(left.as_str())))
    {
        return None;
    }
    let number = |text: &str| text.trim().parse::<i64>().ok();
    let holds = match inner {
        [a, "=" | "==", b] => match patterns && b.contains(['*', '?']) {
            true if b.contains('[') => None,
            true => Some(fits(b, a)),
            false => Some(a == b),
        },
        [a, "!=", b] if patterns && b.contains(['*', '?', '[']) => {
            Some(b).filter(|b| !b.contains('[')).map(|b| !fits(b, a))
        }
        [a, "!=", b] => Some(a != b),
        [a, operator, b] => {
            let order = number(a)?.cmp(&number(b)?);
            match *operator {
                "-eq" => Some(order.is_eq()),
                "-ne" => Some(order.is_ne()),
                "-lt" => Some(order.is_lt()),
                "-le" => Some(order.is_le()),
                "-gt" => Some(order.is_gt()),
                "-ge" => Some(order.is_ge()),
                _ => None,
            }
        }
        ["-z", a] => Some(a.is_empty()),
        ["-n", a] => Some(!a.is_empty()),
        ["-z"] => Some(true),
        ["-n"] => Some(false),
        [a] => Some(!a.is_empty()),
        [] => Some(false),
        _ => None,
    };
    holds.map(|holds| holds != negated)
}

/// Matches a text with a pattern in which `*` is any text and `?` any character.
pub fn fits(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    // Position of the last `*`, and the length of its match.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p).is_some_and(|c| *c == '?' || *c == text[t]) {
            (p, t) = (p + 1, t + 1);
        } else if let Some((at, taken)) = star {
            star = Some((at, taken + 1));
            (p, t) = (at + 1, taken + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}
