//! Extracts the commands of a Windows cmd batch file by parsing it. Nothing is ever run.
//!
//! Lines joined by `^`, `%NAME%`, `!NAME!`, `set`, `set /a`, `setlocal`, `call` of a command and `if`s whose condition
//! the file itself determines are followed. Everything else becomes a remark if it cannot change the training, and
//! otherwise an error with its line. A line passes through cmd's phases in their order: percent signs, then quotes and
//! carets, then `!`.
//!
//! Source: `help cmd`, `help set`, `help if`, `help call`; words are split as in Microsoft's C runtime.

use std::collections::HashMap;

use super::script::{MOST_BYTES, Script, trains};
use super::{Source, arithmetic};

mod line;

use line::{Line, Piece};

/// Limit for nested blocks.
const MOST_DEPTH: usize = 32;

/// Parses a batch file.
///
/// # Errors
/// Reports, with its line, anything that cannot be followed and could change the training.
pub fn read(source: &Source) -> Result<Script, String> {
    let mut batch = Batch {
        folder: source.folder.as_ref().map(|folder| format!("{}/", folder.display())),
        from: source.from.display().to_string(),
        ..Batch::default()
    };
    for (name, value) in &source.variables {
        batch.variables.insert(name.to_uppercase(), value.clone());
    }
    batch.follow(&line::joined(&source.text)?, 0)?;
    Ok(batch.script)
}

#[derive(Debug, Default)]
struct Batch {
    script: Script,
    /// Variables by their names in capitals: cmd ignores case.
    variables: HashMap<String, String>,
    /// True if `!NAME!` is expanded.
    delayed: bool,
    /// Variables saved by `setlocal`.
    outer: Vec<(HashMap<String, String>, bool)>,
    /// True after `exit`: nothing after it runs.
    ended: bool,
    folder: Option<String>,
    from: String,
    grown: usize,
}

impl Batch {
    fn follow(&mut self, lines: &[Line], depth: usize) -> Result<(), String> {
        if depth > MOST_DEPTH {
            return Err(format!("blocks within blocks, more than {MOST_DEPTH} deep"));
        }
        let mut rest = lines;
        while let [first, behind @ ..] = rest {
            if self.ended {
                return Ok(());
            }
            rest = behind;
            if first.is_comment() {
                continue;
            }
            let (block, behind) = line::block(first, behind)?;
            rest = behind;
            self.one(&block, depth)
                .map_err(|message| match message.starts_with("line ") {
                    true => message,
                    false => format!("line {}: {message}", first.number()),
                })?;
        }
        Ok(())
    }

    /// Processes one command with all of its blocks.
    fn one(&mut self, line: &Line, depth: usize) -> Result<(), String> {
        let line = match line.expanded {
            true => line.clone(),
            false => line.with(self.percent(&line.text)?),
        };
        match line.keyword().as_str() {
            "if" => self.branch(&line, depth),
            "for" | "(" => {
                if could_matter(&line.text) {
                    let what = line.shown();
                    return Err(format!(
                        "`{what}` is not followed, and sets variables or trains: write out what it comes to"
                    ));
                }
                self.skip(&line);
                Ok(())
            }
            _ => self.commands(&line.text),
        }
    }

    fn skip(&mut self, line: &Line) {
        self.script
            .remark(format!("line {}: `{}` is not followed", line.number(), line.shown()));
    }

    fn branch(&mut self, line: &Line, depth: usize) -> Result<(), String> {
        let test = line::test(&line.text).ok_or_else(|| format!("`{}` cannot be read", line.shown()))?;
        let truth = self.truth(&test);
        let (then, otherwise) = line.branches(test.behind)?;
        match truth {
            Some(true) => self.follow(&then, depth + 1),
            Some(false) => self.follow(&otherwise, depth + 1),
            None => {
                // A jump on an error is not taken in a run that goes well.
                let jumps = !test.is_about_failure() && line.text.to_lowercase().contains("goto");
                if jumps || could_matter(&line.text) {
                    return Err(format!(
                        "the file does not say whether `{}` holds, and what hangs on it sets variables or trains: write \
                         out what counts",
                        line.shown()
                    ));
                }
                self.skip(line);
                Ok(())
            }
        }
    }

    fn truth(&mut self, test: &line::Test) -> Option<bool> {
        let unread = |text: &str| self.script.unread.iter().any(|left| text.contains(left.as_str()));
        let holds = match &test.words[..] {
            [defined, name] if defined.eq_ignore_ascii_case("defined") => {
                let found = self.variables.contains_key(&name.to_uppercase());
                if !found {
                    self.script
                        .remark(format!("{name} is not set in the file, and is taken as not defined"));
                }
                found
            }
            [a, operator, b] if !unread(a) && !unread(b) => {
                let (a, b) = match test.any_case {
                    true => (a.to_lowercase(), b.to_lowercase()),
                    false => (a.clone(), b.clone()),
                };
                let order = match (a.parse::<i64>(), b.parse::<i64>()) {
                    (Ok(a), Ok(b)) => a.cmp(&b),
                    _ => a.cmp(&b),
                };
                match operator.to_lowercase().as_str() {
                    "==" => a == b,
                    "equ" => order.is_eq(),
                    "neq" => order.is_ne(),
                    "lss" => order.is_lt(),
                    "leq" => order.is_le(),
                    "gtr" => order.is_gt(),
                    "geq" => order.is_ge(),
                    _ => return None,
                }
            }
            _ => return None,
        };
        Some(holds != test.negated)
    }

    /// Runs the commands between `&`, `&&`, `||` and `|`.
    fn commands(&mut self, text: &str) -> Result<(), String> {
        for (piece, text) in line::pieces(text) {
            match piece {
                Piece::Runs => self.command(&text)?,
                // After `||`: only run on a failure; after `|`: only reads the output.
                Piece::Aside if could_matter(&text) => {
                    return Err(format!(
                        "`{}` is not followed, and sets variables or trains",
                        text.trim().escape_debug()
                    ));
                }
                Piece::Aside => {}
            }
            if self.ended {
                return Ok(());
            }
        }
        Ok(())
    }

    fn command(&mut self, text: &str) -> Result<(), String> {
        let text = text.trim_start_matches([' ', '\t', '@']);
        let (word, rest) = line::first_word(text);
        match word.to_lowercase().as_str() {
            "echo" | "echo." | "pause" | "title" | "color" | "chcp" | "cls" | "rem" | "timeout" | "ver" => Ok(()),
            "set" => self.set(rest),
            "setlocal" => {
                self.outer.push((self.variables.clone(), self.delayed));
                self.grow(self.variables.values().map(String::len).sum())?;
                self.delayed |= rest.to_lowercase().contains("enabledelayedexpansion");
                Ok(())
            }
            "endlocal" => {
                if let Some((variables, delayed)) = self.outer.pop() {
                    (self.variables, self.delayed) = (variables, delayed);
                }
                Ok(())
            }
            "exit" => {
                self.ended = true;
                Ok(())
            }
            "goto" if rest.trim().eq_ignore_ascii_case(":eof") => {
                self.ended = true;
                Ok(())
            }
            "goto" => Err(format!(
                "`{}` is not followed: write the commands that count in their order",
                text.trim()
            )),
            "call" if rest.trim_start().starts_with(':') => Err(format!(
                "`{}` is not followed: write its commands in its place",
                text.trim()
            )),
            "call" if line::first_word(rest).0.eq_ignore_ascii_case("call") => Err("call of call is not read".into()),
            // `call` expands variables once more.
            "call" => {
                let again = self.percent(rest)?;
                self.command(&again)
            }
            "if" | "for" => Err(format!(
                "`{}` after another command is not followed: give it a line",
                text.trim()
            )),
            _ => self.program(text),
        }
    }

    fn program(&mut self, text: &str) -> Result<(), String> {
        let text = self.put_in_late(text)?;
        let words = line::words(&text)?;
        let Some(first) = words.first() else { return Ok(()) };
        let name = first.rsplit(['/', '\\']).next().unwrap_or(first).to_lowercase();
        let name = name.strip_suffix(".exe").unwrap_or(&name);
        if ["cmd", "powershell", "pwsh", "bash", "wsl"].contains(&name) && trains(&text) {
            return Err(format!(
                "the command that {name} is handed is not read: write it on a line of its own"
            ));
        }
        self.script.commands.push(words);
        Ok(())
    }

    /// Parses `NAME=value`, `"NAME=value"`, `/a NAME=2*3`, `/p NAME=question`
    fn set(&mut self, rest: &str) -> Result<(), String> {
        let rest = self.put_in_late(rest.trim_start())?;
        let option = rest.get(..2).unwrap_or_default().to_lowercase();
        if option == "/a" {
            return self.compute(rest[2..].trim().trim_matches('"'));
        }
        let assigned = match option.as_str() {
            "/p" => rest[2..].trim_start(),
            _ => &rest,
        };
        // In quotes, everything up to the last quote counts; without, carets are removed and the spaces stay.
        let assigned = match assigned.strip_prefix('"') {
            Some(inner) => inner.rsplit_once('"').map_or(inner, |(inner, _)| inner).to_string(),
            None => line::uncareted(assigned),
        };
        let Some((name, value)) = assigned.split_once('=') else {
            return Ok(()); // shows variables
        };
        let name = name.to_uppercase();
        match (option.as_str(), value) {
            ("/p", _) => {
                self.variables.remove(&name);
                self.script.remark(format!(
                    "{name} is asked for when the file runs: give it by --var {name}=VALUE"
                ));
            }
            (_, "") => drop(self.variables.remove(&name)),
            _ => {
                self.grow(value.len())?;
                self.variables.insert(name, value.to_string());
            }
        }
        Ok(())
    }

    fn compute(&mut self, text: &str) -> Result<(), String> {
        let text = line::uncareted(text).replace("%%", "%");
        // Unset names count as 0.
        let value = |name: &str| match self.variables.get(&name.to_uppercase()) {
            Some(text) => text.trim().parse().ok(),
            None => name
                .starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                .then_some(0),
        };
        let (_, set) = arithmetic::evaluate(&text, &value)
            .map_err(|message| format!("set /a {}: {message}", text.escape_debug()))?;
        for (name, number) in set {
            self.variables.insert(name.to_uppercase(), number.to_string());
        }
        Ok(())
    }

    fn grow(&mut self, by: usize) -> Result<(), String> {
        self.grown += by;
        match self.grown > MOST_BYTES {
            true => Err(format!(
                "comes to more than {MOST_BYTES} bytes once its variables are expanded"
            )),
            false => Ok(()),
        }
    }

    /// Expands the first phase: `%NAME%`, `%%`, `%1`, `%~dp0`.
    fn percent(&mut self, text: &str) -> Result<String, String> {
        let mut done = String::new();
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once('%') {
            done.push_str(before);
            rest = behind;
            if let Some(behind) = behind.strip_prefix('%') {
                done.push('%');
                rest = behind;
            } else if let Some((argument, behind)) = line::argument(behind) {
                let value = match (argument, &self.folder) {
                    ("~dp0", Some(folder)) => folder.clone(),
                    _ => {
                        let text = format!("%{argument}");
                        self.script
                            .leave(&text, "is what the file is called with: write its value in its place");
                        text
                    }
                };
                done.push_str(&value);
                rest = behind;
            } else if let Some((name, behind)) = behind.split_once('%') {
                let value = self.value(name, '%')?;
                done.push_str(&value);
                rest = behind;
            }
            // A single % is dropped.
        }
        done.push_str(rest);
        Ok(done)
    }

    /// Expands the last phase: `!NAME!`, if enabled.
    fn put_in_late(&mut self, text: &str) -> Result<String, String> {
        if !self.delayed {
            return Ok(text.to_string());
        }
        let mut done = String::new();
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once('!') {
            done.push_str(before);
            rest = behind;
            if let Some((name, behind)) = behind.split_once('!') {
                let value = self.value(name, '!')?;
                done.push_str(&value);
                rest = behind;
            }
        }
        done.push_str(rest);
        Ok(done)
    }

    fn value(&mut self, name: &str, sign: char) -> Result<String, String> {
        if let Some(value) = self.variables.get(&name.to_uppercase()).cloned() {
            self.grow(value.len())?;
            return Ok(value);
        }
        if name.eq_ignore_ascii_case("cd") {
            return Ok(self.from.clone());
        }
        let text = format!("{sign}{name}{sign}");
        let why = match name.contains(':') {
            true => "cuts or replaces within a variable, which is not read: write its value in its place".to_string(),
            false => format!("has no value in the file: give it by --var {name}=VALUE, or change it here"),
        };
        self.script.leave(&text, &why);
        Ok(text)
    }
}

/// Checks whether commands that are not followed could change the training.
fn could_matter(text: &str) -> bool {
    let text = text.to_lowercase();
    let sets = text.match_indices("set").any(|(at, _)| {
        let before = text[..at]
            .chars()
            .next_back()
            .is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != '-');
        before && text[at + 3..].starts_with([' ', '\t', '"'])
    });
    sets || trains(&text)
}
