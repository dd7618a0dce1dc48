//! Parses a word of a shell script: quotes, variables and their braces.

use super::syntax::{Change, Items, Lexer, Part, Word};

/// Limit for nested `${a:-${b:-...}}`.
const MOST_DEPTH: usize = 16;
/// Limit for the length of `((...))`.
const MOST_SUM: usize = 1024;

impl Lexer<'_> {
    pub(super) fn word(&mut self) -> Result<Word, String> {
        let mut word = Word::new();
        while let Some(&c) = self.chars.peek() {
            match c {
                ' ' | '\t' | '\r' | '\n' | ';' | '&' | '|' | '(' | ')' | '<' | '>' => break,
                '\'' => {
                    self.chars.next();
                    let text: String = std::iter::from_fn(|| self.chars.next_if(|c| *c != '\'')).collect();
                    if self.chars.next().is_none() {
                        return Err("a ' is never closed".into());
                    }
                    word.push(Part::Text { text, quoted: true });
                }
                '"' => {
                    self.chars.next();
                    self.double_quoted(&mut word)?;
                }
                '\\' => {
                    self.chars.next();
                    match self.chars.next() {
                        Some('\n') | None => {}
                        Some('\r') if self.eat('\n') => {}
                        Some(c) => push(&mut word, c, true),
                    }
                }
                '$' => self.dollar(&mut word, false)?,
                '`' => self.backticks(&mut word)?,
                _ => {
                    self.chars.next();
                    push(&mut word, c, false);
                }
            }
        }
        Ok(word)
    }

    fn double_quoted(&mut self, word: &mut Word) -> Result<(), String> {
        // An empty "" is a word, too.
        word.push(Part::Text {
            text: String::new(),
            quoted: true,
        });
        loop {
            match self.chars.peek() {
                None => return Err("a \" is never closed".into()),
                Some('"') => {
                    self.chars.next();
                    return Ok(());
                }
                Some('\\') => {
                    self.chars.next();
                    match self.chars.next() {
                        Some('\n') | None => {}
                        Some('\r') if self.eat('\n') => {}
                        Some(c @ ('"' | '\\' | '$' | '`')) => push(word, c, true),
                        Some(c) => {
                            push(word, '\\', true);
                            push(word, c, true);
                        }
                    }
                }
                Some('$') => self.dollar(word, true)?,
                Some('`') => self.backticks(word)?,
                Some(&c) => {
                    self.chars.next();
                    push(word, c, true);
                }
            }
        }
    }

    fn dollar(&mut self, word: &mut Word, quoted: bool) -> Result<(), String> {
        self.chars.next();
        match self.chars.peek() {
            Some('(') => {
                let text = self.bracketed()?;
                let sum = text.strip_prefix("((").and_then(|inner| inner.strip_suffix("))"));
                match (here_text(&text), sum) {
                    (Some((body, literal)), _) => self.here(word, &body, literal)?,
                    (None, Some(sum)) if !sum.contains("$(") => word.push(Part::Sum(sum.to_string())),
                    _ => word.push(Part::Run(format!("${text}"))),
                }
            }
            Some('{') => {
                self.chars.next();
                self.depth += 1;
                if self.depth > MOST_DEPTH {
                    return Err(format!("${{...}} within ${{...}}, more than {MOST_DEPTH} deep"));
                }
                let part = self.braced(quoted)?;
                self.depth -= 1;
                word.push(part);
            }
            Some(c) if c.is_ascii_alphabetic() || *c == '_' => {
                let name = self.name();
                word.push(Part::Variable {
                    items: Items::First,
                    name,
                    change: None,
                    quoted,
                });
            }
            Some(&c) if c.is_ascii_digit() || "@*#?$!-".contains(c) => {
                self.chars.next();
                word.push(Part::Variable {
                    name: c.to_string(),
                    items: if "@*".contains(c) { Items::All } else { Items::First },
                    change: None,
                    quoted,
                });
            }
            _ => push(word, '$', quoted),
        }
        Ok(())
    }

    /// Adds the output of `cat` on the text handed to it: variables are expanded, unless its end was named in quotes.
    fn here(&mut self, word: &mut Word, body: &str, literal: bool) -> Result<(), String> {
        if literal {
            word.push(Part::Text {
                text: body.into(),
                quoted: true,
            });
            return Ok(());
        }
        if self.depth >= MOST_DEPTH {
            return Err(format!("texts within texts, more than {MOST_DEPTH} deep"));
        }
        let mut inner = Lexer {
            chars: body.chars().peekable(),
            depth: self.depth + 1,
        };
        while let Some(&c) = inner.chars.peek() {
            match c {
                '$' => inner.dollar(word, true)?,
                '`' => inner.backticks(word)?,
                _ => {
                    inner.chars.next();
                    match inner.chars.next_if(|next| c == '\\' && "$`\\\n".contains(*next)) {
                        Some('\n') => {}
                        Some(escaped) => push(word, escaped, true),
                        None => push(word, c, true),
                    }
                }
            }
        }
        Ok(())
    }

    fn name(&mut self) -> String {
        std::iter::from_fn(|| self.chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '_')).collect()
    }

    /// Reads after `${`.
    fn braced(&mut self, quoted: bool) -> Result<Part, String> {
        let mut name = self.name();
        if let (true, Some(c)) = (name.is_empty(), self.chars.next_if(|c| "@*".contains(*c))) {
            name.push(c);
        }
        let mut items = if matches!(&name[..], "@" | "*") {
            Items::All
        } else {
            Items::First
        };
        let mut ahead = self.chars.clone();
        if ahead.next_if_eq(&'[').is_some() {
            let index: String = ahead.by_ref().take_while(|c| *c != ']').collect();
            let one = index.parse().map(Items::One).ok();
            if let Some(found) = if index == "@" || index == "*" {
                Some(Items::All)
            } else {
                one
            } {
                (items, self.chars) = (found, ahead);
            }
        }
        let change = if name.is_empty() { None } else { self.change()? };
        // `${NAME/a/b}` and similar forms are not supported, and are kept verbatim.
        let mut other = String::new();
        let mut open = 1;
        loop {
            match self.chars.next() {
                None => return Err(format!("${{{name} is never closed")),
                Some('}') => {
                    open -= 1;
                    if open == 0 {
                        break;
                    }
                    other.push('}');
                }
                Some(c) => {
                    open += usize::from(c == '{');
                    other.push(c);
                }
            }
        }
        if name.is_empty() || !other.is_empty() {
            return Ok(Part::Run(format!("${{{name}{other}}}")));
        }
        Ok(Part::Variable {
            name,
            items,
            change,
            quoted,
        })
    }

    /// Reads the change between a variable's name and its closing brace, if supported.
    fn change(&mut self) -> Result<Option<Change>, String> {
        let mut ahead = self.chars.clone();
        let colon = ahead.next_if_eq(&':').is_some();
        let Some(sign) = ahead.next_if(|c| "-=+?".contains(*c) || !colon && "#%".contains(*c)) else {
            return Ok(None);
        };
        let longest = "#%".contains(sign) && ahead.next_if_eq(&sign).is_some();
        self.chars = ahead;
        let word = self.default_word()?;
        Ok(Some(match sign {
            '+' => Change::Alternative { word, colon },
            '?' => Change::Required { colon },
            '#' | '%' => Change::Cut {
                pattern: word,
                end: sign == '%',
                longest,
            },
            _ => Change::Default {
                word,
                colon,
                assigns: sign == '=',
            },
        }))
    }

    /// Reads after `:-`, up to the brace that closes the variable.
    fn default_word(&mut self) -> Result<Word, String> {
        let mut word = Word::new();
        while let Some(&c) = self.chars.peek() {
            match c {
                '}' => break,
                '$' => self.dollar(&mut word, true)?,
                '`' => self.backticks(&mut word)?,
                '"' => {
                    self.chars.next();
                    self.double_quoted(&mut word)?;
                }
                '\'' => drop(self.chars.next()),
                _ => {
                    self.chars.next();
                    push(&mut word, c, true);
                }
            }
        }
        Ok(word)
    }

    fn backticks(&mut self, word: &mut Word) -> Result<(), String> {
        self.chars.next();
        let text: String = std::iter::from_fn(|| self.chars.next_if(|c| *c != '`')).collect();
        if self.chars.next().is_none() {
            return Err("a ` is never closed".into());
        }
        word.push(Part::Run(format!("`{text}`")));
        Ok(())
    }

    /// Reads `((...))` as a command, and returns its inside; None for other brackets.
    pub(super) fn sum(&mut self) -> Option<String> {
        let mut ahead = self.chars.clone();
        let (mut text, mut open) = (String::new(), 0usize);
        for c in ahead.by_ref().take(MOST_SUM) {
            text.push(c);
            match c {
                '(' => open += 1,
                ')' => open -= 1,
                _ => {}
            }
            if open > MOST_DEPTH {
                return None;
            }
            if open == 0 {
                let inner = text.strip_prefix("((")?.strip_suffix("))")?.to_string();
                self.chars = ahead;
                return Some(inner);
            }
            if text.len() == 2 && text != "((" {
                return None;
            }
        }
        None
    }

    /// Reads `(...)`, with nested brackets.
    fn bracketed(&mut self) -> Result<String, String> {
        let mut text = String::new();
        let mut open = 0usize;
        for c in self.chars.by_ref() {
            text.push(c);
            match c {
                '(' => open += 1,
                ')' => open -= 1,
                _ => {}
            }
            if open == 0 {
                return Ok(text);
            }
        }
        Err("a $( is never closed".into())
    }
}

/// Returns the text in `(cat <<END ... END)`, if that is everything, and true if it is literal.
fn here_text(bracketed: &str) -> Option<(String, bool)> {
    let inner = bracketed.strip_prefix('(')?.strip_suffix(')')?.trim();
    let (first, rest) = inner.split_once('\n')?;
    let end = first.strip_prefix("cat")?.trim().strip_prefix("<<")?.trim();
    let (end, dash) = end.strip_prefix('-').map_or((end, false), |end| (end.trim(), true));
    let bare = end.trim_matches(['\'', '"']);
    let mut lines: Vec<&str> = rest.lines().collect();
    if dash {
        lines.iter_mut().for_each(|line| *line = line.trim_start_matches('\t'));
    }
    if bare.is_empty() || lines.pop()?.trim_end() != bare {
        return None;
    }
    Some((lines.join("\n").trim_end_matches('\n').to_string(), bare != end))
}

fn push(word: &mut Word, c: char, quoted: bool) {
    match word.last_mut() {
        Some(Part::Text { text, quoted: as_last }) if *as_last == quoted => text.push(c),
        _ => word.push(Part::Text {
            text: c.to_string(),
            quoted,
        }),
    }
}
