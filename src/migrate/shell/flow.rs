//! Control flow of a script: `if`, loops, `case`, `&&` and `||`, functions.

use super::syntax::{Token, plain};
use super::test::fits;
use super::{MOST_FRAMES, Shell, keyword};

/// An open `if`, loop, `case` or group.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub kind: Kind,
    /// True if the commands around it count.
    outside: bool,
    /// True if the commands of this branch count.
    pub active: bool,
    /// True if a branch of this `if` or `case` is known to hold.
    taken: bool,
    /// True if it depends on something unknown.
    doubted: bool,
}

impl Frame {
    /// Returns true if its commands run for certain, once.
    pub fn is_certain(&self) -> bool {
        self.active
            && !self.doubted
            && match self.kind {
                Kind::If | Kind::Case(_) => self.taken,
                Kind::Group => true,
                Kind::Loop => false,
            }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    If,
    Loop,
    /// `case`, with the value that its patterns are compared with, if known.
    Case(Option<String>),
    /// `{ ...; }` or `( ... )`
    Group,
}

impl Shell<'_> {
    /// Processes one command and the keywords before it, and returns the rest.
    pub(super) fn command<'a>(
        &mut self,
        mut command: &'a [Token],
        behind: &'a [Token],
        depth: usize,
    ) -> Result<&'a [Token], String> {
        if let Some(behind) = self.function(command, behind)? {
            return Ok(behind);
        }
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
                "fi" | "done" | "esac" | "}" => {
                    self.frames.pop();
                    (self.truth, self.test) = (None, None);
                    return Ok(behind);
                }
                "for" | "select" => return self.for_loop(rest, behind),
                "case" => return self.case(rest, behind),
                "{" => self.open(Kind::Group)?,
                "!" => self.negates = !self.negates,
                "do" | "time" | "nohup" | "exec" | "command" | "builtin" => {}
                _ => return self.simple(command, depth).map(|()| behind),
            }
            command = rest;
        }
        Ok(behind)
    }

    pub(super) fn open(&mut self, kind: Kind) -> Result<(), String> {
        if self.frames.len() >= MOST_FRAMES {
            return Err(format!(
                "ifs, loops and brackets within each other, more than {MOST_FRAMES} deep"
            ));
        }
        let active = self.runs();
        self.skips = false;
        self.frames.push(Frame {
            kind,
            outside: active,
            active,
            taken: false,
            doubted: std::mem::take(&mut self.doubts),
        });
        Ok(())
    }

    /// Processes `&&` or `||`, which decide whether the next command runs.
    pub(super) fn joined(&mut self, and: bool) {
        self.doubts = self.truth.is_none();
        self.skips = self.truth == Some(!and) || self.truth.is_none() && !and;
        if let (None, Some(test)) = (self.truth, self.test.clone()) {
            let sign = if and { "&&" } else { "||" };
            self.remark(&format!(
                "the script does not say whether `{}` holds: the command after {sign} is read as if it did",
                test.escape_debug()
            ));
        }
    }

    /// Processes `elif` and `else`.
    fn next_branch(&mut self) {
        if let Some(frame) = self.frames.last_mut() {
            frame.active = frame.outside && !frame.taken;
        }
    }

    /// Processes `then`, after the condition.
    fn enter_branch(&mut self) {
        let (truth, test) = (self.truth.take(), self.test.take());
        let active = self.frames.iter().all(|frame| frame.active);
        if active && truth.is_none() {
            let what = test.map_or("what an `if` asks".into(), |test| format!("`{}`", test.escape_debug()));
            self.remark(&format!(
                "the script does not say whether {what} holds: each branch is read, and of what they set the last counts"
            ));
        }
        if let Some(frame) = self.frames.last_mut()
            && active
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
        let known = !self.script.unread.iter().any(|left| value.contains(left.as_str()));
        if !known && self.runs() {
            let value = value.escape_debug();
            self.remark(&format!(
                "the script does not say what `case {value}` comes to: each clause is read, and of what they set the last counts"
            ));
        }
        self.open(Kind::Case(known.then_some(value)))?;
        // The first pattern may be on the line of `case` or on the next.
        let at = rest
            .iter()
            .position(|token| matches!(token, Token::Word(word) if plain(word) == "in"));
        let on_line = &rest[at.map_or(rest.len(), |at| at + 1)..];
        if on_line.is_empty() {
            return Ok(self.pattern(behind));
        }
        // `a | b)` continues after the sign.
        let end = behind.iter().position(|token| *token == Token::Close).unwrap_or(0);
        let matches = self.matches(on_line) || self.matches(&behind[..end]);
        self.enter_clause(matches);
        Ok(&behind[end..])
    }

    fn for_loop<'a>(&mut self, rest: &[Token], behind: &'a [Token]) -> Result<&'a [Token], String> {
        let runs = self.runs();
        if let (Some(Token::Word(name)), true) = (rest.first(), runs) {
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
        self.open(Kind::Loop)?;
        // `for ((i = 0; i < 3; i++))`
        if let Some((Token::Sum(text), behind)) = behind.split_first().filter(|_| rest.is_empty()) {
            if runs {
                self.remark("a loop is read once");
                self.compute_or_forget(text.split(';').next().unwrap_or_default());
            }
            return Ok(behind);
        }
        Ok(behind)
    }

    /// Processes the pattern of a clause of `case`, up to its bracket.
    pub(super) fn pattern<'a>(&mut self, tokens: &'a [Token]) -> &'a [Token] {
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
        let value = match self.frames.last().map(|frame| &frame.kind) {
            Some(Kind::Case(Some(value))) => value,
            Some(Kind::Case(None)) => return true,
            _ => return false,
        };
        patterns.iter().any(|token| match token {
            Token::Word(word) => fits(&plain(word), value),
            _ => false,
        })
    }

    fn enter_clause(&mut self, matches: bool) {
        if let Some(frame) = self.frames.last_mut() {
            frame.active = frame.outside && matches && !frame.taken;
            frame.taken |= matches && frame.kind != Kind::Case(None);
        }
    }

    /// Stores `name() { ... }` or `function name { ... }` for its calls, and returns the rest.
    fn function<'a>(&mut self, command: &[Token], behind: &'a [Token]) -> Result<Option<&'a [Token]>, String> {
        let mut words = command.iter();
        let mut name = words.next().map(keyword).unwrap_or_default();
        let spelled = name == "function";
        if spelled {
            name = words.next().map(keyword).unwrap_or_default();
        }
        let brackets = behind.starts_with(&[Token::Open, Token::Close]);
        let opened = words.next().is_some_and(|token| keyword(token) == "{");
        if name.is_empty() || !(brackets && words.next().is_none() || spelled) {
            return Ok(None);
        }
        let mut rest = if brackets { &behind[2..] } else { behind };
        // The body's brace may be on the line of the name or on the next.
        if !opened {
            let at = rest.iter().position(|token| *token != Token::End).unwrap_or(rest.len());
            match rest.get(at) {
                Some(token) if keyword(token) == "{" => rest = &rest[at + 1..],
                _ => {
                    return Err(format!(
                        "the body of the function {} is not in {{ }}, and is not read",
                        name.escape_debug()
                    ));
                }
            }
        }
        let mut open = 1;
        let end = rest.iter().position(|token| {
            match keyword(token) {
                "{" => open += 1,
                "}" => open -= 1,
                _ => {}
            }
            open == 0
        });
        let end = end.ok_or_else(|| format!("the function {} is never closed", name.escape_debug()))?;
        if self.runs() {
            self.functions.insert(name.to_string(), rest[..end].into());
        }
        self.skips = false;
        Ok(Some(&rest[end + 1..]))
    }
}
