//! Expansion of variables in words.

use super::super::arithmetic;
use super::Shell;
use super::syntax::{Change, Items, Part, Word, plain};
use super::test::fits;

/// Limit for values that patterns are applied to.
const MOST_CUT: usize = 512;

/// Pieces of a word during expansion.
#[derive(Default)]
struct Pieces {
    done: Vec<String>,
    open: Option<String>,
}

impl Pieces {
    fn push(&mut self, text: &str) {
        self.open.get_or_insert_default().push_str(text);
    }
}

impl Shell<'_> {
    /// Expands a word to one text, keeping spaces.
    pub(super) fn expand_whole(&mut self, word: &Word) -> Result<String, String> {
        let quoted: Word = word
            .iter()
            .cloned()
            .map(|part| match part {
                Part::Variable {
                    name, items, change, ..
                } => Part::Variable {
                    name,
                    items,
                    change,
                    quoted: true,
                },
                Part::Text { text, .. } => Part::Text { text, quoted: true },
                part => part,
            })
            .collect();
        Ok(self.expand(&quoted)?.join(" "))
    }

    /// Expands a word: to none, one or many.
    pub(super) fn expand(&mut self, word: &Word) -> Result<Vec<String>, String> {
        let mut pieces = Pieces::default();
        for part in word {
            match part {
                Part::Text { text, .. } => pieces.push(text),
                Part::Run(text) => {
                    self.leave(text, "is not run: it is kept verbatim");
                    pieces.push(text);
                }
                Part::Sum(text) => {
                    let number = self.compute(text).unwrap_or_else(|message| {
                        let text = format!("$(({text}))");
                        self.leave(&text, &format!("is not computed ({message}): it is kept verbatim"));
                        text
                    });
                    pieces.push(&number);
                }
                Part::Variable {
                    name,
                    items,
                    change,
                    quoted,
                } => {
                    let values = self.value(name, *items, change.as_ref())?;
                    self.put_in(&values, *quoted, &mut pieces)?;
                    if *quoted && *items != Items::All {
                        pieces.push("");
                    }
                }
            }
        }
        pieces.done.extend(pieces.open);
        Ok(pieces.done)
    }

    fn put_in(&mut self, values: &[String], quoted: bool, pieces: &mut Pieces) -> Result<(), String> {
        self.grow(values.iter().map(String::len).sum())?;
        let values: Vec<&str> = match quoted {
            true => values.iter().map(String::as_str).collect(),
            false => values.iter().flat_map(|value| value.split_whitespace()).collect(),
        };
        for (n, value) in values.iter().enumerate() {
            if n > 0 {
                pieces.done.extend(pieces.open.take());
            }
            pieces.push(value);
        }
        Ok(())
    }

    fn value(&mut self, name: &str, items: Items, change: Option<&Change>) -> Result<Vec<String>, String> {
        let found = self.items(name, items);
        let none = |colon: bool| match &found {
            None => true,
            Some(found) => colon && found.iter().all(String::is_empty),
        };
        match change {
            Some(Change::Default { word, colon, assigns }) if none(*colon) => {
                let value = self.expand_whole(word)?;
                if *assigns {
                    self.assign(name, vec![value.clone()], false)?;
                }
                return Ok(vec![value]);
            }
            Some(Change::Alternative { colon, .. }) if none(*colon) => return Ok(Vec::new()),
            Some(Change::Alternative { word, .. }) => return self.expand(word),
            _ => {}
        }
        let Some(found) = found else {
            return Ok(self.unknown(name));
        };
        match change {
            Some(Change::Cut { pattern, end, longest }) => {
                let pattern = self.expand_whole(pattern)?;
                let mut cut = Vec::new();
                for value in found {
                    self.grow(value.len())?;
                    let Some(rest) = cut_off(&value, &pattern, *end, *longest) else {
                        let text = format!("${{{name}...{pattern}}}");
                        self.leave(&text, "has a pattern that is not read: it is kept verbatim");
                        return Ok(vec![text]);
                    };
                    cut.push(rest.to_string());
                }
                Ok(cut)
            }
            _ => Ok(found),
        }
    }

    fn items(&self, name: &str, items: Items) -> Option<Vec<String>> {
        let called_with = || self.arguments.as_ref();
        match name {
            "@" | "*" => return called_with().cloned(),
            "#" => return called_with().map(|all| vec![all.len().to_string()]),
            _ => {}
        }
        if let Ok(n) = name.parse::<usize>()
            && n > 0
        {
            return called_with()
                .and_then(|all| all.get(n - 1))
                .map(|one| vec![one.clone()]);
        }
        let found = self.variables.get(name)?;
        match items {
            Items::All => Some(found.clone()),
            Items::First => Some(found.first().cloned().into_iter().collect()),
            Items::One(n) => found.get(n).map(|one| vec![one.clone()]),
        }
    }

    /// Returns the text for a variable without a value.
    fn unknown(&mut self, name: &str) -> Vec<String> {
        let text = format!("${name}");
        match name {
            "@" | "*" => {
                self.remark(&format!(
                    "what the script is called with is not known: nothing is put in for {text}"
                ));
                return Vec::new();
            }
            _ if name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') => {
                let why = format!("has no value in the script: give it by --var {name}=VALUE, or change it here");
                self.leave(&text, &why);
            }
            _ => self.leave(
                &text,
                "is known only when the script runs: write its value in its place",
            ),
        }
        vec![text]
    }

    /// Returns the value of `$((...))`, applying its assignments.
    pub(super) fn compute(&mut self, text: &str) -> Result<String, String> {
        let text = text.replace(['$', '{', '}'], "");
        let value = |name: &str| {
            let text = self.items(name, Items::First)?.pop()?;
            text.trim().parse().ok()
        };
        let (number, set) = arithmetic::evaluate(&text, &value)?;
        for (name, number) in set {
            self.assign(&name, vec![number.to_string()], false)?;
        }
        Ok(number.to_string())
    }

    /// Evaluates `((...))` and `let`; if that fails, the assigned names become unknown.
    pub(super) fn compute_or_forget(&mut self, text: &str) -> Option<String> {
        let message = match self.compute(text) {
            Ok(number) => return Some(number),
            Err(message) => message,
        };
        let names = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        names.for_each(|name| drop(self.variables.remove(name)));
        self.remark(&format!("(({})) is not computed: {message}", text.escape_debug()));
        None
    }
}

/// Removes the end or start of a value that a pattern matches; None if the pattern or the value is unsupported.
fn cut_off<'a>(value: &'a str, pattern: &str, end: bool, longest: bool) -> Option<&'a str> {
    if pattern.contains(['[', '\\']) || value.len() > MOST_CUT {
        return None;
    }
    let mut places: Vec<usize> = value.char_indices().map(|(at, _)| at).chain([value.len()]).collect();
    // Shortest first: for an end, from the end of the value.
    if end != longest {
        places.reverse();
    }
    let fitting = places.into_iter().find(|at| match end {
        true => fits(pattern, &value[*at..]),
        false => fits(pattern, &value[..*at]),
    });
    Some(match fitting {
        Some(at) if end => &value[..at],
        Some(at) => &value[at..],
        None => value,
    })
}

/// Parses `NAME=value` to the name, whether it is `+=`, and the value.
pub(super) fn assignment(word: &Word) -> Option<(Target, bool, Word)> {
    let Some(Part::Text { text, quoted: false }) = word.first() else {
        return None;
    };
    let (name, value) = text.split_once('=')?;
    let (name, append) = name.strip_suffix('+').map_or((name, false), |name| (name, true));
    let target = match name.strip_suffix(']').and_then(|name| name.split_once('[')) {
        Some((name, index)) => Target {
            name: name.to_string(),
            index: Some(index.parse().ok()),
        },
        None => Target {
            name: name.to_string(),
            index: None,
        },
    };
    if !super::syntax::is_name(&target.name) {
        return None;
    }
    let mut rest = vec![Part::Text {
        text: value.to_string(),
        quoted: true,
    }];
    rest.extend(word[1..].iter().cloned());
    Some((target, append, rest))
}

/// Left side of an assignment: a variable, or an item of one, whose index may be unknown.
pub(super) struct Target {
    pub name: String,
    pub index: Option<Option<usize>>,
}

/// Checks for `[key]=value` in an array's brackets.
pub(super) fn is_keyed(word: &Word) -> bool {
    let text = plain(word);
    text.starts_with('[') && text.contains("]=")
}
