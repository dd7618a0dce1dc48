//! What a shell script would run, found by reading it. Nothing is ever run.
//!
//! Variables and arrays are put in. Of an `if` whose test compares texts, the branch that holds is followed; of any other
//! `if`, every branch. Of a `for`, the first value counts. `eval` is read as the script that its words make. All of this is
//! told in [`Script::remarks`].

use std::collections::HashMap;

pub mod syntax;

use syntax::{Part, Token, Word, is_name, plain};

/// A longer script, or one that grows longer as its variables are put in, is not read.
const MOST_BYTES: usize = 1 << 20;
const MOST_EVALS: usize = 8;
const MOST_FRAMES: usize = 64;
const MOST_REMARKS: usize = 100;

/// What a script comes to.
#[derive(Debug, Default)]
pub struct Script {
    /// The words of every command that would run, in order.
    pub commands: Vec<Vec<String>>,
    /// Names of the variables handed to programs.
    pub exported: Vec<String>,
    /// What could not be followed, or only in part.
    pub remarks: Vec<String>,
    variables: HashMap<String, Vec<String>>,
    frames: Vec<Frame>,
    /// What the last command of a test came to; none: it cannot be told.
    truth: Option<bool>,
    /// How many commands this test has had.
    tests: usize,
    /// Bytes that variables have grown to, in all.
    grown: usize,
}

/// An open `if`, loop or `case`.
#[derive(Debug)]
struct Frame {
    kind: Kind,
    /// Commands of this branch count.
    active: bool,
    /// A branch of this `if` or `case` is known to hold.
    taken: bool,
}

#[derive(Debug, PartialEq)]
enum Kind {
    If,
    Loop,
    Case(String),
}

impl Script {
    /// Reads a script whose unset variables have these values.
    ///
    /// # Errors
    /// What makes it no script: an open quote, say.
    pub fn read(text: &str, variables: &[(String, String)]) -> Result<Self, String> {
        let mut script = Script::default();
        for (name, value) in variables {
            script.variables.insert(name.clone(), vec![value.clone()]);
        }
        script.follow(text, 0)?;
        Ok(script)
    }

    fn follow(&mut self, text: &str, depth: usize) -> Result<(), String> {
        if text.len() > MOST_BYTES {
            return Err(format!("is longer than {MOST_BYTES} bytes"));
        }
        let tokens = syntax::tokens(text)?;
        let mut rest = &tokens[..];
        while let Some(token) = rest.first() {
            match token {
                Token::End | Token::Open | Token::Close => rest = &rest[1..],
                Token::Clause => {
                    rest = &rest[1..];
                    if matches!(self.frames.last(), Some(frame) if matches!(frame.kind, Kind::Case(_))) {
                        rest = self.pattern(rest);
                    }
                }
                Token::Word(_) | Token::Array { .. } => {
                    let end = rest
                        .iter()
                        .position(|t| matches!(t, Token::End | Token::Clause | Token::Open | Token::Close))
                        .unwrap_or(rest.len());
                    rest = self.command(&rest[..end], &rest[end..], depth)?;
                }
            }
        }
        Ok(())
    }

    fn active(&self) -> bool {
        self.frames.iter().all(|frame| frame.active)
    }

    /// Reads one command and the keywords before it, and returns where to go on.
    fn command<'a>(
        &mut self,
        mut command: &'a [Token],
        behind: &'a [Token],
        depth: usize,
    ) -> Result<&'a [Token], String> {
        while let Some(first) = command.first() {
            let rest = &command[1..];
            match keyword(first) {
                "if" => self.open(Kind::If)?,
                "while" | "until" => {
                    self.remark("a loop is read once");
                    self.open(Kind::Loop)?;
                }
                "elif" | "else" => self.next_branch(),
                "then" => self.enter_branch(),
                "fi" | "done" | "esac" => {
                    self.frames.pop();
                    return Ok(behind);
                }
                "for" => return self.for_loop(rest).map(|()| behind),
                "case" => return self.case(rest, behind),
                "function" | "}" => return Ok(behind),
                "do" | "{" | "!" | "time" | "nohup" | "exec" => {}
                _ => return self.simple(command, depth).map(|()| behind),
            }
            command = rest;
        }
        Ok(behind)
    }

    fn open(&mut self, kind: Kind) -> Result<(), String> {
        if self.frames.len() >= MOST_FRAMES {
            return Err(format!("ifs and loops within each other, more than {MOST_FRAMES} deep"));
        }
        self.frames.push(Frame {
            kind,
            active: self.active(),
            taken: false,
        });
        self.tests = 0;
        Ok(())
    }

    /// At `elif` and `else`.
    fn next_branch(&mut self) {
        let outer = self.frames.len().saturating_sub(1);
        let outside = self.frames[..outer].iter().all(|frame| frame.active);
        if let Some(frame) = self.frames.last_mut() {
            frame.active = outside && !frame.taken;
        }
        self.tests = 0;
    }

    /// At `then`, behind the test.
    fn enter_branch(&mut self) {
        // What several tests come to together is not followed.
        let truth = self.truth.take().filter(|_| self.tests == 1);
        if self.active()
            && let Some(frame) = self.frames.last_mut()
        {
            frame.active = truth != Some(false);
            frame.taken |= truth == Some(true);
        }
    }

    fn case<'a>(&mut self, rest: &'a [Token], behind: &'a [Token]) -> Result<&'a [Token], String> {
        let value = match rest.first() {
            Some(Token::Word(word)) => self.expand(word)?.join(" "),
            _ => String::new(),
        };
        self.open(Kind::Case(value))?;
        // The first pattern may stand on the line of `case` or on the next.
        let at = rest
            .iter()
            .position(|token| matches!(token, Token::Word(word) if plain(word) == "in"));
        let on_line = &rest[at.map_or(rest.len(), |at| at + 1)..];
        if on_line.is_empty() {
            return Ok(self.pattern(behind));
        }
        let matches = self.matches(on_line);
        self.enter_clause(matches);
        Ok(behind)
    }

    fn for_loop(&mut self, rest: &[Token]) -> Result<(), String> {
        if let (Some(Token::Word(name)), true) = (rest.first(), self.active()) {
            let name = plain(name);
            let mut values = Vec::new();
            for token in rest.get(2..).unwrap_or_default() {
                if let Token::Word(word) = token {
                    values.extend(self.expand(word)?);
                }
            }
            if values.len() > 1 {
                self.remark(&format!(
                    "of the loop over {name}, only the first value is taken: {} (the others: {})",
                    values[0],
                    values[1..].join(", ")
                ));
            }
            if let Some(value) = values.into_iter().next() {
                self.variables.insert(name, vec![value]);
            }
        }
        self.open(Kind::Loop)
    }

    /// The pattern of a clause of `case`, up to its bracket.
    fn pattern<'a>(&mut self, tokens: &'a [Token]) -> &'a [Token] {
        let start = tokens
            .iter()
            .position(|t| !matches!(t, Token::End | Token::Open))
            .unwrap_or(tokens.len());
        let tokens = &tokens[start..];
        if matches!(tokens.first(), Some(Token::Word(word)) if plain(word) == "esac") {
            return tokens;
        }
        let end = tokens.iter().position(|t| *t == Token::Close).unwrap_or(tokens.len());
        let matches = self.matches(&tokens[..end]);
        self.enter_clause(matches);
        &tokens[end..]
    }

    fn matches(&self, patterns: &[Token]) -> bool {
        let Some(Frame {
            kind: Kind::Case(value),
            ..
        }) = self.frames.last()
        else {
            return false;
        };
        patterns.iter().any(|token| match token {
            Token::Word(word) => {
                let pattern = plain(word);
                pattern == "*" || pattern == *value
            }
            _ => false,
        })
    }

    fn enter_clause(&mut self, matches: bool) {
        if let Some(frame) = self.frames.last_mut() {
            frame.active = matches && !frame.taken;
            frame.taken |= matches;
        }
    }

    /// Assignments, then a program's name and its words.
    fn simple(&mut self, command: &[Token], depth: usize) -> Result<(), String> {
        if !self.active() {
            return Ok(());
        }
        let mut words: Vec<String> = Vec::new();
        let mut exporting = false;
        let mut assigned = Vec::new();
        for token in command {
            match token {
                Token::Array { name, append, words } => {
                    let mut items = Vec::new();
                    for word in words {
                        items.extend(self.expand(word)?);
                    }
                    self.assign(name, items, *append)?;
                    assigned.push(name.clone());
                }
                Token::Word(word) => {
                    let declares = matches!(
                        words.first().map(String::as_str),
                        Some("export" | "declare" | "local" | "readonly" | "typeset")
                    );
                    exporting |= declares && words[0] == "export";
                    match assignment(word).filter(|_| words.is_empty() || declares) {
                        Some((name, append, value)) => {
                            let value = self.expand_whole(&value)?;
                            self.assign(&name, vec![value], append)?;
                            assigned.push(name);
                        }
                        None => words.extend(self.expand(word)?),
                    }
                }
                _ => {}
            }
        }
        let program = words.first().map(String::as_str).unwrap_or_default();
        // `NAME=value program` hands the variable to that program.
        if exporting || !words.is_empty() && program != "declare" && program != "local" && program != "readonly" {
            self.exported.append(&mut assigned);
        }
        match program {
            "" | "declare" | "local" | "readonly" | "typeset" => {}
            "export" => self.exported.extend(words.drain(1..).filter(|word| is_name(word))),
            "[" | "[[" | "test" => {
                self.truth = test(&words);
                self.tests += 1;
            }
            "eval" => {
                if depth >= MOST_EVALS {
                    return Err(format!("eval within eval, more than {MOST_EVALS} deep"));
                }
                let text = words[1..].join(" ");
                self.follow(&text, depth + 1)?;
            }
            _ => {
                self.tests += 1;
                self.truth = None;
                self.commands.push(words);
            }
        }
        Ok(())
    }

    fn assign(&mut self, name: &str, items: Vec<String>, append: bool) -> Result<(), String> {
        self.grow(items.iter().map(|item| item.len() + 1).sum())?;
        let here = self.variables.entry(name.to_string()).or_default();
        match (append, items.len(), &mut here[..]) {
            (false, ..) => *here = items,
            // `X+=text` on a text lengthens it.
            (true, 1, [text]) => text.push_str(&items[0]),
            (true, ..) => here.extend(items),
        }
        Ok(())
    }

    fn grow(&mut self, by: usize) -> Result<(), String> {
        self.grown += by;
        if self.grown > MOST_BYTES {
            return Err(format!(
                "comes to more than {MOST_BYTES} bytes once its variables are put in"
            ));
        }
        Ok(())
    }

    fn remark(&mut self, text: &str) {
        if self.remarks.len() < MOST_REMARKS && self.active() && !self.remarks.iter().any(|remark| remark == text) {
            self.remarks.push(text.to_string());
        }
    }

    /// A word as one text, its spaces kept.
    fn expand_whole(&mut self, word: &Word) -> Result<String, String> {
        let quoted: Word = word
            .iter()
            .cloned()
            .map(|part| match part {
                Part::Variable { name, all, default, .. } => Part::Variable {
                    name,
                    all,
                    default,
                    quoted: true,
                },
                Part::Text { text, .. } => Part::Text { text, quoted: true },
                part => part,
            })
            .collect();
        Ok(self.expand(&quoted)?.join(" "))
    }

    /// A word, its variables put in: none, one or many.
    fn expand(&mut self, word: &Word) -> Result<Vec<String>, String> {
        let mut done: Vec<String> = Vec::new();
        let mut open: Option<String> = None;
        for part in word {
            match part {
                Part::Text { text, .. } => open.get_or_insert_default().push_str(text),
                Part::Run(text) => {
                    self.remark(&format!("{} is not run: it stays as it stands", text.escape_debug()));
                    open.get_or_insert_default().push_str(text);
                }
                Part::Variable {
                    name,
                    all,
                    default,
                    quoted,
                } => {
                    let items = self.value(name, *all, default.as_ref())?;
                    self.grow(items.iter().map(String::len).sum())?;
                    let pieces: Vec<&str> = if *quoted {
                        items.iter().map(String::as_str).collect()
                    } else {
                        items.iter().flat_map(|item| item.split_whitespace()).collect()
                    };
                    for (n, piece) in pieces.iter().enumerate() {
                        if n > 0 {
                            done.extend(open.take());
                        }
                        open.get_or_insert_default().push_str(piece);
                    }
                    if *quoted && !*all {
                        open.get_or_insert_default();
                    }
                }
            }
        }
        done.extend(open);
        Ok(done)
    }

    fn value(&mut self, name: &str, all: bool, default: Option<&Word>) -> Result<Vec<String>, String> {
        let items = self.variables.get(name);
        if let (Some(word), true) = (default, items.is_none_or(|items| items.iter().all(String::is_empty))) {
            return Ok(vec![self.expand_whole(word)?]);
        }
        match items {
            Some(items) if all => Ok(items.clone()),
            Some(items) => Ok(items.first().cloned().into_iter().collect()),
            None => {
                self.remark(&format!(
                    "${name} has no value in the script: give it by --var {name}=VALUE, or change it here"
                ));
                Ok(vec![format!("${name}")])
            }
        }
    }
}

/// The word where it can be a keyword: none of it is quoted or put in.
fn keyword(token: &Token) -> &str {
    match token {
        Token::Word(word) => match &word[..] {
            [Part::Text { text, quoted: false }] => text,
            _ => "",
        },
        _ => "",
    }
}

/// `NAME=value`, as the name, whether it is `+=`, and the value.
fn assignment(word: &Word) -> Option<(String, bool, Word)> {
    let Some(Part::Text { text, quoted: false }) = word.first() else {
        return None;
    };
    let (name, value) = text.split_once('=')?;
    let (name, append) = name.strip_suffix('+').map_or((name, false), |name| (name, true));
    if !is_name(name) {
        return None;
    }
    let mut rest = vec![Part::Text {
        text: value.to_string(),
        quoted: true,
    }];
    rest.extend(word[1..].iter().cloned());
    Some((name.to_string(), append, rest))
}

/// What `[ a = b ]` and `[ -z a ]` come to; none where the answer lies outside of the script.
fn test(words: &[String]) -> Option<bool> {
    let words: Vec<&str> = words[1..]
        .iter()
        .map(String::as_str)
        .filter(|word| !matches!(*word, "]" | "]]"))
        .collect();
    let (negated, words) = match words.split_first() {
        Some((&"!", rest)) => (true, rest),
        _ => (false, &words[..]),
    };
    let holds = match words {
        [a, ..] if a.contains('$') => None,
        [.., b] if b.contains('$') => None,
        [a, "=" | "==" | "-eq", b] => Some(a == b),
        [a, "!=" | "-ne", b] => Some(a != b),
        ["-z", a] => Some(a.is_empty()),
        ["-n", a] => Some(!a.is_empty()),
        _ => None,
    };
    holds.map(|holds| holds != negated)
}
