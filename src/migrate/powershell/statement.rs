//! Whole statements of a PowerShell script, with their blocks, and redirections.

use super::text::Text;

impl Text<'_> {
    /// Reads to the end of this line's statement, and returns it, including the blocks and brackets that it opens.
    pub fn end_of_statement(&mut self) -> String {
        let start = self.clone();
        while let Some(c) = self.peek() {
            match c {
                '\n' | ';' => break,
                '{' | '(' => {
                    let close = if c == '{' { '}' } else { ')' };
                    if self.bracketed(c, close).is_err() {
                        self.at = self.all.len();
                    }
                }
                '\'' | '"' => {
                    if self.skip_quoted().is_err() {
                        self.at = self.all.len();
                    }
                }
                '`' => drop((self.next(), self.eat("\r"), self.next())),
                _ => drop(self.next()),
            }
        }
        start.upto(self)
    }

    /// Reads a statement with its blocks, including those after `else` and `catch`.
    pub fn whole_statement(&mut self) -> Result<String, String> {
        let start = self.clone();
        if matches!(self.peek(), Some('}' | ')' | ']')) {
            self.next();
            return Ok(start.upto(self));
        }
        loop {
            let mut braces = false;
            while let Some(c) = self.peek() {
                match c {
                    '{' => {
                        self.bracketed('{', '}')?;
                        braces = true;
                        break;
                    }
                    '(' => drop(self.bracketed('(', ')')?),
                    '\'' | '"' => self.skip_quoted()?,
                    '#' => self.skip_blank()?,
                    ';' => break,
                    '\n' => {
                        // A block may open on the next line.
                        let mut ahead = self.clone();
                        ahead.skip_blank_and_lines()?;
                        if ahead.peek() != Some('{') {
                            break;
                        }
                        *self = ahead;
                    }
                    _ => drop(self.next()),
                }
            }
            let mut ahead = self.clone();
            ahead.skip_blank_and_lines()?;
            let word = ahead.word_ahead().to_lowercase();
            if !braces || !["else", "elseif", "catch", "finally", "while", "until"].contains(&word.as_str()) {
                return Ok(start.upto(self));
            }
            *self = ahead;
        }
    }

    /// Reads `> file`, `2>&1`, `*> file`; returns false if there is none.
    pub fn skip_redirection(&mut self) -> Result<bool, String> {
        let rest = self.rest();
        let stream = rest.starts_with(|c: char| c.is_ascii_digit() || c == '*') && rest[1..].starts_with('>');
        if !stream && !rest.starts_with('>') {
            return Ok(false);
        }
        self.at += usize::from(stream) + 1;
        self.eat(">");
        if self.eat("&1") || self.eat("&2") {
            return Ok(true);
        }
        self.skip_blank()?;
        while let Some(c) = self.peek().filter(|c| !c.is_whitespace() && *c != ';') {
            match c {
                '\'' | '"' => self.skip_quoted()?,
                _ => drop(self.next()),
            }
        }
        Ok(true)
    }
}
