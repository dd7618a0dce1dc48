//! The text of a PowerShell script, read sequentially.

use std::cell::Cell;

/// Limit for nested brackets.
const MOST_DEPTH: usize = 32;

/// Rest of a text.
#[derive(Debug, Clone)]
pub struct Text<'a> {
    pub(super) all: &'a str,
    pub(super) at: usize,
    depth: usize,
    /// Position up to which lines have been counted, and their number.
    counted: Cell<(usize, usize)>,
}

impl<'a> Text<'a> {
    pub fn new(all: &'a str) -> Self {
        Self {
            all,
            at: 0,
            depth: 0,
            counted: Cell::default(),
        }
    }

    pub(super) fn rest(&self) -> &'a str {
        &self.all[self.at..]
    }

    /// Returns the line of the file, from 1.
    pub fn line(&self) -> usize {
        let (at, lines) = Some(self.counted.get())
            .filter(|(at, _)| *at <= self.at)
            .unwrap_or_default();
        let lines = lines + self.all[at..self.at].matches('\n').count();
        self.counted.set((self.at, lines));
        lines + 1
    }

    pub fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    pub fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    pub fn ahead(&self, text: &str) -> bool {
        self.rest().starts_with(text)
    }

    pub fn eat(&mut self, text: &str) -> bool {
        let found = self.ahead(text);
        self.at += if found { text.len() } else { 0 };
        found
    }

    pub fn eat_any_case(&mut self, text: &str) -> bool {
        let found = self
            .rest()
            .get(..text.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(text));
        self.at += if found { text.len() } else { 0 };
        found
    }

    /// Returns the text between here and `end`.
    pub fn upto(&self, end: &Text) -> String {
        self.all[self.at..end.at.max(self.at)].to_string()
    }

    pub fn deeper(&mut self) -> Result<(), String> {
        self.depth += 1;
        match self.depth > MOST_DEPTH {
            true => Err(format!("brackets within brackets, more than {MOST_DEPTH} deep")),
            false => Ok(()),
        }
    }

    pub fn shallower(&mut self) {
        self.depth -= 1;
    }

    /// Checks for a backtick at the end of its line.
    pub fn joins_lines(&self) -> bool {
        ["`\n", "`\r\n"].iter().any(|end| self.ahead(end))
    }

    /// Skips spaces, comments and joined lines.
    pub fn skip_blank(&mut self) -> Result<(), String> {
        loop {
            match self.peek() {
                Some(c) if c.is_whitespace() && c != '\n' => drop(self.next()),
                Some('`') if self.joins_lines() => {
                    self.next();
                    self.eat("\r");
                    self.eat("\n");
                }
                Some('`') => {
                    let behind = &self.rest()[1..];
                    let end = behind.find('\n').unwrap_or(behind.len());
                    if behind.trim().is_empty() && end == behind.len() {
                        self.at = self.all.len();
                    } else if behind[..end].trim().is_empty() {
                        let line = self.line();
                        return Err(format!(
                            "line {line}: its last ` does not join it to the next: it is followed by a space"
                        ));
                    } else {
                        return Ok(());
                    }
                }
                Some('#') => self.at += self.rest().find('\n').unwrap_or(self.rest().len()),
                Some('<') if self.ahead("<#") => match self.rest().find("#>") {
                    Some(end) => self.at += end + 2,
                    None => return Err("a <# is never closed".into()),
                },
                _ => return Ok(()),
            }
        }
    }

    pub fn skip_blank_and_lines(&mut self) -> Result<(), String> {
        self.skip_blank()?;
        while self.eat("\n") {
            self.skip_blank()?;
        }
        Ok(())
    }

    /// Skips to the next statement; returns false at the end.
    pub fn skip_to_statement(&mut self) -> Result<bool, String> {
        self.skip_blank_and_lines()?;
        while self.eat(";") {
            self.skip_blank_and_lines()?;
        }
        Ok(self.peek().is_some())
    }

    pub fn at_end_of_statement(&self) -> bool {
        matches!(self.peek(), None | Some('\n' | ';'))
    }

    pub fn at_end_of_word(&self) -> bool {
        self.peek().is_none_or(|c| c.is_whitespace() || c == ';') || self.joins_lines()
    }

    /// Reads letters, digits and `_`.
    pub fn name(&mut self) -> String {
        let end = self
            .rest()
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(self.rest().len());
        let name = self.rest()[..end].to_string();
        self.at += end;
        name
    }

    /// Reads up to the next space or sign that ends a number.
    pub fn bare(&mut self) -> String {
        let mut ends = self.rest().char_indices().skip(1);
        let end = ends
            .find(|(_, c)| c.is_whitespace() || ",;)}+".contains(*c))
            .map_or(self.rest().len(), |(at, _)| at);
        let word = self.rest()[..end].to_string();
        self.at += end;
        word
    }

    /// Returns the first word of a statement without reading it.
    pub fn word_ahead(&self) -> &'a str {
        let end = self
            .rest()
            .find(|c: char| !c.is_ascii_alphanumeric() && !"-_.".contains(c));
        &self.rest()[..end.unwrap_or(self.rest().len())]
    }

    /// Reads `[int]` before a value.
    pub fn eat_cast(&mut self) -> bool {
        let mut any = false;
        while let Some(inner) = self.rest().strip_prefix('[') {
            let Some((name, behind)) = inner.split_once(']') else {
                break;
            };
            if name.is_empty()
                || !name.chars().all(|c| c.is_alphanumeric() || "._".contains(c))
                || behind.starts_with(':')
            {
                break;
            }
            self.at += name.len() + 2;
            while self.eat(" ") {}
            any = true;
        }
        any
    }

    /// Reads `$NAME`, `${NAME}`, `$env:NAME`, in lower case and without scopes that mean this script.
    pub fn variable(&mut self) -> Option<String> {
        let start = self.at;
        if !self.eat("$") {
            return None;
        }
        let name = if self.eat("{") {
            let (name, _) = self.rest().split_once('}')?;
            self.at += name.len() + 1;
            name.to_string()
        } else {
            let mut name = self.name();
            if !name.is_empty()
                && self.ahead(":")
                && self.rest()[1..].starts_with(|c: char| c.is_alphabetic() || c == '_')
            {
                self.next();
                name = format!("{name}:{}", self.name());
            }
            name
        };
        if name.is_empty() {
            self.at = start;
            return None;
        }
        let name = name.to_lowercase();
        let scopes = ["script:", "global:", "local:", "private:"];
        let bare = scopes.iter().find_map(|scope| name.strip_prefix(scope));
        Some(bare.map(String::from).unwrap_or(name))
    }

    /// Reads the character that a backtick escapes; None if it joins lines.
    pub fn escaped(&mut self) -> Option<char> {
        self.next();
        match self.next()? {
            'n' => Some('\n'),
            't' => Some('\t'),
            'r' => Some('\r'),
            '\r' if self.eat("\n") => None,
            '\n' => None,
            c => Some(c),
        }
    }

    /// Reads after a `'`.
    pub fn single_quoted(&mut self) -> Result<String, String> {
        let mut done = String::new();
        loop {
            let (before, _) = self.rest().split_once('\'').ok_or("a ' is never closed")?;
            done.push_str(before);
            self.at += before.len() + 1;
            if !self.eat("'") {
                return Ok(done);
            }
            done.push('\'');
        }
    }

    /// Reads `@"`, lines, `"@`; also returns whether it is literal.
    pub fn here_string(&mut self) -> Result<Option<(String, bool)>, String> {
        for (open, close, literal) in [("@\"", "\n\"@", false), ("@'", "\n'@", true)] {
            if !self.ahead(open) {
                continue;
            }
            let (_, inner) = self
                .rest()
                .split_once('\n')
                .ok_or(format!("a {open} is never closed"))?;
            let begin = self.all.len() - inner.len();
            // An empty one ends on the next line.
            let end = self.all[begin - 1..]
                .find(close)
                .ok_or(format!("a {open} is never closed"))?
                + begin
                - 1;
            self.at = end + close.len();
            let inner = if end < begin { "" } else { &self.all[begin..end] };
            return Ok(Some((inner.trim_end_matches('\r').to_string(), literal)));
        }
        Ok(None)
    }

    /// Reads `(...)`, from its first bracket to its last.
    pub fn bracketed(&mut self, open: char, close: char) -> Result<String, String> {
        let start = self.clone();
        let mut depth = 0usize;
        while let Some(c) = self.peek() {
            match c {
                '\'' | '"' => self.skip_quoted()?,
                '`' => drop((self.next(), self.next())),
                '#' if self.at > 0 && self.all[..self.at].ends_with(char::is_whitespace) => self.skip_blank()?,
                _ => {
                    self.next();
                    depth += usize::from(c == open);
                    if c == close {
                        depth = depth.saturating_sub(1);
                        if depth == 0 {
                            return Ok(start.upto(self));
                        }
                    }
                }
            }
        }
        Err(format!("a {open} is never closed"))
    }

    /// Reads a `{...}` and returns its inside.
    pub fn block(&mut self) -> Result<Text<'a>, String> {
        let mut inner = self.clone();
        inner.next();
        self.bracketed('{', '}')?;
        inner.all = &self.all[..self.at - 1];
        inner.deeper()?;
        Ok(inner)
    }

    pub(super) fn skip_quoted(&mut self) -> Result<(), String> {
        if self.eat("'") {
            return self.single_quoted().map(drop);
        }
        self.eat("\"");
        while let Some(c) = self.next() {
            match c {
                '"' => return Ok(()),
                '`' => drop(self.next()),
                _ => {}
            }
        }
        Err("a \" is never closed".into())
    }
}
