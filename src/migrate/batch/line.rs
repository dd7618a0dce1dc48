//! Lines of a batch file: joined, split into commands and blocks, and those into words.

use crate::migrate::script::short;

/// Line of a command, with the lines that `^` or a bracket joins to it.
#[derive(Debug, Clone)]
pub struct Line {
    /// File lines of the text's rows, from 1.
    rows: Vec<usize>,
    pub text: String,
    /// True if its percent signs are expanded, which happens to a whole block before any of it runs.
    pub expanded: bool,
}

impl Line {
    pub fn number(&self) -> usize {
        self.rows[0]
    }

    pub fn with(&self, text: String) -> Self {
        Self {
            rows: self.rows.clone(),
            text,
            expanded: true,
        }
    }

    fn start(&self) -> &str {
        self.text.trim_start_matches([' ', '\t', '@', '\u{c}'])
    }

    /// Checks for an empty line, `rem`, `::` or a label.
    pub fn is_comment(&self) -> bool {
        let start = self.start();
        let word = first_word(start).0.to_lowercase();
        start.is_empty() || start.starts_with(':') || word == "rem" || start == ")"
    }

    /// Returns `if`, `for` or `(` at its start; else nothing.
    pub fn keyword(&self) -> String {
        let start = self.start();
        let word = first_word(start).0.to_lowercase();
        match word.as_str() {
            "if" | "for" => word,
            _ if start.starts_with('(') => "(".into(),
            _ => String::new(),
        }
    }

    /// Returns its start, for messages.
    pub fn shown(&self) -> String {
        short(self.start())
    }

    /// Returns the lines that an `if` runs if its condition holds, and otherwise, given the end of the condition.
    pub fn branches(&self, behind: usize) -> Result<(Vec<Line>, Vec<Line>), String> {
        let body = self.text[behind..].trim_start();
        let lines = |part: &str| -> Vec<Line> {
            let start = part.as_ptr().addr() - self.text.as_ptr().addr();
            let above = self.text[..start].matches('\n').count();
            let rows = self.rows[above..].iter().zip(part.lines());
            rows.map(|(row, text)| Line {
                rows: vec![*row],
                text: text.into(),
                expanded: true,
            })
            .collect()
        };
        if !body.starts_with('(') {
            return Ok((lines(body), Vec::new()));
        }
        let end = closing(body).ok_or("a ( is never closed")?;
        let rest = body[end + 1..].trim();
        let otherwise = match first_word(rest) {
            ("", _) => Vec::new(),
            (word, rest) if word.eq_ignore_ascii_case("else") => {
                let rest = rest.trim();
                match rest.starts_with('(') {
                    true => lines(&rest[1..closing(rest).ok_or("a ( is never closed")?]),
                    false => lines(rest),
                }
            }
            _ => return Err(format!("`{}` after a ) cannot be read", rest.escape_debug())),
        };
        Ok((lines(&body[1..end]), otherwise))
    }
}

/// Iterates over characters, each with a flag for those in quotes or after a caret.
fn scan(text: &str) -> impl Iterator<Item = (usize, char, bool)> {
    let (mut quoted, mut escaped) = (false, false);
    text.char_indices().map(move |(at, c)| {
        let literal = quoted || escaped;
        let was_escaped = std::mem::take(&mut escaped);
        match c {
            '"' if !was_escaped => quoted = !quoted,
            '^' if !literal => escaped = true,
            '\n' => quoted = false,
            _ => {}
        }
        (at, c, literal)
    })
}

/// Splits a file into lines, those that end in `^` joined to the next.
///
/// # Errors
/// Fails for a `^` that seems to join lines but does not.
pub fn joined(text: &str) -> Result<Vec<Line>, String> {
    let mut lines: Vec<Line> = Vec::new();
    let mut open: Option<Line> = None;
    for (n, text) in text.lines().enumerate() {
        let number = n + 1;
        let joins = open.is_some();
        let mut line = open.take().unwrap_or(Line {
            rows: vec![number],
            text: String::new(),
            expanded: false,
        });
        let text = text.trim_end_matches('\r');
        line.text.push_str(text);
        let comment = !joins && line.is_comment();
        let last = scan(text).filter(|(_, c, _)| !c.is_whitespace()).last();
        match last {
            Some((at, '^', false)) if at + 1 == text.len() && !comment => {
                line.text.pop();
                open = Some(line);
                continue;
            }
            Some((_, '^', quoted)) => {
                let why = match (comment, quoted) {
                    (true, _) => "it ends a comment",
                    (false, true) => "it is in quotes or after another ^",
                    (false, false) => "it is followed by a space",
                };
                return Err(format!("line {number}: its last ^ does not join it to the next: {why}"));
            }
            _ => lines.push(line),
        }
    }
    lines.extend(open);
    Ok(lines)
}

/// Joins a line with those below it in its brackets, and returns the rest.
pub fn block<'a>(first: &Line, mut rest: &'a [Line]) -> Result<(Line, &'a [Line]), String> {
    let mut block = first.clone();
    if first.keyword().is_empty() {
        return Ok((block, rest));
    }
    let mut open = open_brackets(&block.text);
    while open > 0 {
        let [next, behind @ ..] = rest else {
            return Err(format!("line {}: a ( is never closed", first.number()));
        };
        rest = behind;
        open += open_brackets(&next.text);
        block.rows.extend(&next.rows);
        block.text.push('\n');
        block.text.push_str(&next.text);
    }
    Ok((block, rest))
}

fn open_brackets(text: &str) -> isize {
    scan(text)
        .map(|(_, c, literal)| match c {
            '(' if !literal => 1,
            ')' if !literal => -1,
            _ => 0,
        })
        .sum()
}

/// Finds the bracket that closes the one at the start.
fn closing(text: &str) -> Option<usize> {
    let mut open = 0;
    scan(text).find_map(|(at, c, literal)| {
        match c {
            '(' if !literal => open += 1,
            ')' if !literal => open -= 1,
            _ => {}
        }
        (open == 0).then_some(at)
    })
}

/// Condition of an `if`.
#[derive(Debug)]
pub struct Test {
    pub negated: bool,
    /// `/i`
    pub any_case: bool,
    /// `defined NAME`, `exist FILE`, `errorlevel N`, or two texts with an operator between.
    pub words: Vec<String>,
    /// Start of what it controls.
    pub behind: usize,
}

impl Test {
    /// Returns true for conditions on the success of commands, or on files.
    pub fn is_about_failure(&self) -> bool {
        let words = self.words.iter().map(|word| word.to_lowercase());
        words
            .into_iter()
            .any(|word| word == "exist" || word.contains("errorlevel"))
    }
}

/// Parses the condition of an `if`, at the start of the text.
pub fn test(text: &str) -> Option<Test> {
    let mut at = text.find(|c: char| !" \t@".contains(c))? + "if".len();
    let mut test = Test {
        negated: false,
        any_case: false,
        words: Vec::new(),
        behind: 0,
    };
    loop {
        let (word, behind) = operand(text, at)?;
        at = behind;
        match word.to_lowercase().as_str() {
            "/i" => test.any_case = true,
            "not" => test.negated = !test.negated,
            "defined" | "exist" | "errorlevel" | "cmdextversion" => {
                let (name, behind) = operand(text, at)?;
                test.words = vec![word, name];
                test.behind = behind;
                return Some(test);
            }
            _ => {
                let (operator, behind) = operand(text, at)?;
                let (right, behind) = operand(text, behind)?;
                test.words = vec![word, operator, right];
                test.behind = behind;
                return Some(test);
            }
        }
    }
}

/// Returns the next word of a condition: `==` ends one, and is one.
fn operand(text: &str, from: usize) -> Option<(String, usize)> {
    let rest = &text[from..];
    let start = rest.find(|c: char| !" \t".contains(c))?;
    let rest = &rest[start..];
    if rest.starts_with("==") {
        return Some(("==".into(), from + start + 2));
    }
    let end = scan(rest)
        .find(|(at, c, literal)| !literal && (" \t\n".contains(*c) || rest[*at..].starts_with("==")))
        .map_or(rest.len(), |(at, ..)| at);
    Some((rest[..end].to_string(), from + start + end))
}

/// Role of a command in a line that succeeds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Piece {
    Runs,
    /// After `||` or `|`.
    Aside,
}

/// Splits a line into its commands, between `&`, `&&`, `||` and `|`.
pub fn pieces(text: &str) -> Vec<(Piece, String)> {
    let mut pieces = vec![(Piece::Runs, String::new())];
    let mut before = ' ';
    for (_, c, literal) in scan(text) {
        let last = pieces.last_mut().expect("one from the start");
        match c {
            '&' if !literal && !matches!(before, '>' | '<') => pieces.push((Piece::Runs, String::new())),
            '|' if !literal => pieces.push((Piece::Aside, String::new())),
            '\n' => last.1.push(' '),
            _ => last.1.push(c),
        }
        before = c;
    }
    pieces
}

/// Splits off a command's name.
pub fn first_word(text: &str) -> (&str, &str) {
    let text = text.trim_start();
    let end = text
        .find([' ', '\t', '(', '"', '/', ';', ',', '='])
        .filter(|end| *end > 0);
    let end = end.or_else(|| text.starts_with('"').then_some(0)).unwrap_or(text.len());
    text.split_at(end)
}

/// Removes carets that only escape the next character.
pub fn uncareted(text: &str) -> String {
    scan(text)
        .filter(|(_, c, literal)| *literal || *c != '^')
        .map(|(_, c, _)| c)
        .collect()
}

/// Parses `1`, `*`, `~dp0` after the % of an argument.
pub fn argument(text: &str) -> Option<(&str, &str)> {
    if text.starts_with(|c: char| c.is_ascii_digit() || c == '*') {
        return Some(text.split_at(1));
    }
    let letters = text.strip_prefix('~')?;
    let end = letters.find(|c: char| !c.is_ascii_alphabetic())?;
    letters[end..]
        .starts_with(|c: char| c.is_ascii_digit())
        .then(|| text.split_at(end + 2))
}

/// Returns a program's words: without redirections, carets and quotes resolved.
pub fn words(text: &str) -> Result<Vec<String>, String> {
    let mut plain = String::new();
    let mut chars = scan(text).peekable();
    while let Some((_, c, literal)) = chars.next() {
        match c {
            '^' if !literal => {}
            '<' | '>' if !literal => {
                // The number of a stream directly precedes it: `2>file`.
                if plain.ends_with(|c: char| c.is_ascii_digit()) && plain[..plain.len() - 1].ends_with([' ', '\t']) {
                    plain.pop();
                }
                while chars.next_if(|(_, c, _)| " \t>&".contains(*c)).is_some() {}
                while chars
                    .next_if(|(_, c, literal)| *literal || !" \t".contains(*c))
                    .is_some()
                {}
                plain.push(' ');
            }
            _ => plain.push(c),
        }
    }
    arguments(&plain)
}

/// Microsoft's rules: a quote opens and closes; before a quote, `\\` is `\` and `\"` is a literal quote.
fn arguments(text: &str) -> Result<Vec<String>, String> {
    let mut words: Vec<String> = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut swallowed = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' if !quoted => words.extend(word.take()),
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' => {
                let mut slashes = 1;
                while chars.next_if_eq(&'\\').is_some() {
                    slashes += 1;
                }
                let open = word.get_or_insert_default();
                if chars.peek() != Some(&'"') {
                    open.extend(std::iter::repeat_n('\\', slashes));
                    continue;
                }
                open.extend(std::iter::repeat_n('\\', slashes / 2));
                if slashes % 2 == 1 {
                    chars.next();
                    open.push('"');
                    swallowed |= chars.peek().is_none_or(|c| c.is_whitespace());
                }
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    match quoted {
        true if swallowed => Err(
            "a \\ stands before the quote that should close a text, and Windows takes both for a quote within it: remove \
             the \\"
                .into(),
        ),
        true => Err("a \" is never closed".into()),
        false => Ok(words),
    }
}
