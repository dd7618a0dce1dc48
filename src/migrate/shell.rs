//! Extracts the commands of a shell script by parsing it. Nothing is ever run.
//!
//! Variables, arrays, arguments, functions, sourced files and `eval` are expanded. Of an `if`, `&&` or `||` whose
//! condition compares texts or numbers, the branch that holds is followed; of any other `if`, every branch. Of a `for`,
//! the first value counts. Everything that is not followed exactly is recorded in [`Script::remarks`].

use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;

use super::Source;
use super::script::{MOST_BYTES, Script};

mod expand;
mod flow;
pub mod syntax;
mod test;
mod word;

use expand::{Target, assignment, is_keyed};
use flow::{Frame, Kind};
use syntax::{Part, Token, is_name};

/// Limit for nested `eval`, functions and sourced files.
const MOST_DEPTH: usize = 8;
const MOST_FRAMES: usize = 64;
/// Limit for commands, counting those of functions and of `eval` each time.
const MOST_COMMANDS: usize = 100_000;

/// Parses a script of a Unix shell.
///
/// # Errors
/// Fails for text that is not a script: an open quote, say.
pub fn read(source: &Source) -> Result<Script, String> {
    let mut shell = Shell {
        source,
        script: Script::default(),
        variables: HashMap::new(),
        functions: HashMap::new(),
        arguments: None,
        frames: Vec::new(),
        truth: Some(true),
        skips: false,
        doubts: false,
        negates: false,
        test: None,
        ended: false,
        returned: false,
        grown: 0,
        commands: 0,
    };
    for (name, value) in &source.variables {
        shell.variables.insert(name.clone(), vec![value.clone()]);
    }
    shell.variables.insert("0".into(), vec![source.name.clone()]);
    shell.text(&source.text, 0)?;
    Ok(shell.script)
}

struct Shell<'a> {
    source: &'a Source,
    script: Script,
    variables: HashMap<String, Vec<String>>,
    functions: HashMap<String, Rc<[Token]>>,
    /// `$1` and on, if known.
    arguments: Option<Vec<String>>,
    frames: Vec<Frame>,
    /// Outcome of the last command; None if unknown.
    truth: Option<bool>,
    /// True if `&&` or `||` skips the next command.
    skips: bool,
    /// True if the next command is in doubt: `&&` after a condition that is unknown.
    doubts: bool,
    /// True after a `!` before the next command.
    negates: bool,
    /// The last command, if it was a test.
    test: Option<String>,
    /// True after `exit`: nothing after it runs.
    ended: bool,
    /// True after `return`: nothing after it in this function runs.
    returned: bool,
    /// Total bytes of variables.
    grown: usize,
    commands: usize,
}

impl Shell<'_> {
    fn text(&mut self, text: &str, depth: usize) -> Result<(), String> {
        if text.len() > MOST_BYTES {
            return Err(format!("is longer than {MOST_BYTES} bytes"));
        }
        self.follow(&syntax::tokens(text)?, depth)
    }

    fn follow(&mut self, tokens: &[Token], depth: usize) -> Result<(), String> {
        if depth > MOST_DEPTH {
            return Err(format!(
                "eval, functions or files within each other, more than {MOST_DEPTH} deep"
            ));
        }
        let mut rest = tokens;
        while let Some(token) = rest.first() {
            if self.ended || self.returned {
                return Ok(());
            }
            match token {
                Token::End => {
                    rest = &rest[1..];
                    (self.skips, self.doubts) = (false, false);
                }
                Token::And | Token::Or => {
                    self.joined(*token == Token::And);
                    rest = &rest[1..];
                }
                Token::Open => {
                    self.open(Kind::Group)?;
                    rest = &rest[1..];
                }
                Token::Close => {
                    if matches!(self.frames.last(), Some(frame) if frame.kind == Kind::Group) {
                        self.frames.pop();
                    }
                    rest = &rest[1..];
                }
                Token::Sum(text) => {
                    if self.runs() {
                        let number = self.compute_or_forget(text);
                        (self.truth, self.test) = (number.map(|n| n != "0"), Some(format!("(({text}))")));
                    }
                    self.skips = false;
                    rest = &rest[1..];
                }
                Token::Clause => {
                    rest = &rest[1..];
                    if matches!(self.frames.last(), Some(frame) if matches!(frame.kind, Kind::Case(_))) {
                        rest = self.pattern(rest);
                    }
                }
                Token::Word(_) | Token::Array { .. } => {
                    let ends = |t: &Token| !matches!(t, Token::Word(_) | Token::Array { .. });
                    let end = rest.iter().position(ends).unwrap_or(rest.len());
                    rest = self.command(&rest[..end], &rest[end..], depth)?;
                }
            }
        }
        Ok(())
    }

    /// Returns true if the next command runs, as far as known.
    fn runs(&self) -> bool {
        !self.skips && self.frames.iter().all(|frame| frame.active)
    }

    /// Processes assignments, then a program's name and its words.
    fn simple(&mut self, command: &[Token], depth: usize) -> Result<(), String> {
        let runs = self.runs();
        let negates = std::mem::take(&mut self.negates);
        if !std::mem::take(&mut self.skips) && runs {
            self.commands += 1;
            if self.commands > MOST_COMMANDS {
                return Err(format!("comes to more than {MOST_COMMANDS} commands"));
            }
            (self.truth, self.test) = (Some(true), None);
            match self.doubts {
                true => {
                    self.open(Kind::Group)?;
                    self.run(command, depth)?;
                    self.frames.pop();
                }
                false => self.run(command, depth)?,
            }
            if negates {
                self.truth = self.truth.map(|truth| !truth);
            }
        }
        Ok(())
    }

    fn run(&mut self, command: &[Token], depth: usize) -> Result<(), String> {
        let mut words: Vec<String> = Vec::new();
        let mut exporting = false;
        let mut assigned = Vec::new();
        for token in command {
            match token {
                Token::Array { name, words, .. } if words.iter().any(is_keyed) => {
                    self.forget(name, "has named items, which are not read");
                }
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
                        Some((target, append, value)) => {
                            let value = self.expand_whole(&value)?;
                            assigned.push(target.name.clone());
                            self.assign_to(target, value, append)?;
                        }
                        None => words.extend(self.expand(word)?),
                    }
                }
                _ => {}
            }
        }
        let program = words.first().map(String::as_str).unwrap_or_default();
        // `NAME=value program` exports the variable to that program.
        if exporting || !words.is_empty() && !matches!(program, "declare" | "local" | "readonly" | "typeset") {
            self.script.exported.append(&mut assigned);
        }
        self.program(words, depth)
    }

    fn program(&mut self, mut words: Vec<String>, depth: usize) -> Result<(), String> {
        let program = words.first().cloned().unwrap_or_default();
        if let Some(body) = self.functions.get(&program).cloned() {
            return self.call(&body, words.split_off(1), depth);
        }
        match program.as_str() {
            "" | "declare" | "local" | "readonly" | "typeset" | "true" | ":" => {}
            "false" => self.truth = Some(false),
            "export" => self
                .script
                .exported
                .extend(words.drain(1..).filter(|word| is_name(word))),
            "set" => {
                if let Some(at) = words.iter().position(|word| word == "--") {
                    self.arguments = Some(words.split_off(at + 1));
                }
            }
            "shift" => {
                let by = words.get(1).map_or(Some(1), |n| n.parse().ok());
                match (&mut self.arguments, by) {
                    (Some(arguments), Some(by)) => drop(arguments.drain(..by.min(arguments.len()))),
                    (arguments, _) => *arguments = None,
                }
            }
            "unset" => words[1..].iter().for_each(|name| drop(self.variables.remove(name))),
            "read" | "mapfile" | "readarray" | "getopts" => {
                for name in words[1..].iter().filter(|word| is_name(word)) {
                    self.forget(name, &format!("is set by `{program}` when the script runs"));
                }
            }
            "printf" if words.get(1).is_some_and(|word| word == "-v") => {
                if let Some(name) = words.get(2) {
                    self.forget(name, "is set by `printf`, which is not run");
                }
            }
            "let" => words[1..].iter().for_each(|text| drop(self.compute_or_forget(text))),
            "exit" => self.ended |= self.frames.iter().all(Frame::is_certain),
            "return" => self.returned |= self.frames.iter().all(Frame::is_certain),
            "source" | "." => self.sourced(&words, depth)?,
            "eval" => self.text(&words[1..].join(" "), depth + 1)?,
            "bash" | "sh" | "zsh" if words.get(1).is_some_and(|word| word == "-c") && words.len() > 2 => {
                self.text(&words[2], depth + 1)?;
            }
            _ if matches!(program.as_str(), "[" | "[[" | "test") || words.last().is_some_and(|word| word == "]]") => {
                self.truth = test::holds(&words, &self.script.unread);
                self.test = Some(words.join(" "));
            }
            _ => {
                self.truth = None;
                self.script.commands.push(words);
            }
        }
        Ok(())
    }

    fn call(&mut self, body: &[Token], arguments: Vec<String>, depth: usize) -> Result<(), String> {
        let outer = self.arguments.replace(arguments);
        let frames = self.frames.clone();
        let done = self.follow(body, depth + 1);
        (self.arguments, self.frames, self.returned) = (outer, frames, false);
        done
    }

    /// `source FILE`: only files of the script itself are read, not those of the machine.
    fn sourced(&mut self, words: &[String], depth: usize) -> Result<(), String> {
        let Some(file) = words.get(1) else { return Ok(()) };
        let text = match Path::new(file).is_absolute() || file.ends_with("activate") {
            true => Err("is not the script's own, and is not read".to_string()),
            false => self.source.read(file),
        };
        match text.and_then(|text| syntax::tokens(&text)) {
            Ok(tokens) => self.follow(&tokens, depth + 1),
            Err(message) => {
                self.remark(&format!(
                    "{}: {message}: what it sets is not known",
                    words.join(" ").escape_debug()
                ));
                Ok(())
            }
        }
    }

    fn assign_to(&mut self, target: Target, value: String, append: bool) -> Result<(), String> {
        match (target.index, self.variables.get_mut(&target.name)) {
            (None, _) => return self.assign(&target.name, vec![value], append),
            (Some(Some(at)), Some(items)) if at < items.len() => match append {
                true => items[at].push_str(&value),
                false => items[at] = value,
            },
            (Some(Some(at)), Some(items)) if at == items.len() => items.push(value),
            (Some(Some(0)), None) => return self.assign(&target.name, vec![value], false),
            _ => self.forget(&target.name, "has an item set that cannot be told"),
        }
        Ok(())
    }

    fn assign(&mut self, name: &str, items: Vec<String>, append: bool) -> Result<(), String> {
        self.grow(items.iter().map(|item| item.len() + 1).sum())?;
        let here = self.variables.entry(name.to_string()).or_default();
        match (append, items.len(), &mut here[..]) {
            (false, ..) => *here = items,
            // `X+=text` appends to a text.
            (true, 1, [text]) => text.push_str(&items[0]),
            (true, ..) => here.extend(items),
        }
        Ok(())
    }

    /// Marks a variable's value as unknown from here on.
    fn forget(&mut self, name: &str, why: &str) {
        self.variables.remove(name);
        self.remark(&format!("{name} {why}"));
    }

    fn grow(&mut self, by: usize) -> Result<(), String> {
        self.grown += by;
        if self.grown > MOST_BYTES {
            return Err(format!(
                "comes to more than {MOST_BYTES} bytes once its variables are expanded"
            ));
        }
        Ok(())
    }

    fn remark(&mut self, text: &str) {
        if self.frames.iter().all(|frame| frame.active) {
            self.script.remark(text);
        }
    }

    fn leave(&mut self, text: &str, why: &str) {
        if self.frames.iter().all(|frame| frame.active) {
            self.script.leave(text, why);
        }
    }
}

/// Returns the word if it can be a keyword: without quotes and variables.
fn keyword(token: &Token) -> &str {
    match token {
        Token::Word(word) => match &word[..] {
            [Part::Text { text, quoted: false }] => text,
            _ => "",
        },
        _ => "",
    }
}
