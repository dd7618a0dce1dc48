//! The words and operators of a shell script: the part of bash that scripts which start a training are written in.
//!
//! Comments, continued lines, both kinds of quotes, `$NAME`, `${NAME}`, `${NAME[@]}`, `${NAME:-word}`, arrays. What would
//! have to be run (`$(...)`, backticks, `$((...))`) is kept as text and told.

use std::iter::Peekable;
use std::str::Chars;

/// Deeper nesting of `${a:-${b:-...}}` than this is no script.
const MOST_DEPTH: usize = 16;

/// A piece of a word.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// `quoted` text is never split, and is no operator or keyword.
    Text { text: String, quoted: bool },
    /// `$NAME`, with what stands in for it when it is unset.
    Variable {
        name: String,
        /// `[@]` or `[*]`: all items.
        all: bool,
        default: Option<Vec<Part>>,
        quoted: bool,
    },
    /// What a shell would have to run or compute, as it stands in the script.
    Run(String),
}

pub type Word = Vec<Part>;

#[derive(Debug, Clone, PartialEq)]
pub enum Token {
    Word(Word),
    /// `NAME=(...)` or `NAME+=(...)`.
    Array {
        name: String,
        append: bool,
        words: Vec<Word>,
    },
    /// The end of a command: a line's end, `;`, `&&`, `||`, `|`, `&`.
    End,
    /// `;;` of a `case`.
    Clause,
    Open,
    Close,
}

/// A script as tokens.
///
/// # Errors
/// A quote, brace or bracket that is never closed.
pub fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut lexer = Lexer {
        chars: text.chars().peekable(),
        depth: 0,
    };
    let mut found = Vec::new();
    while let Some(token) = lexer.token()? {
        found.push(token);
    }
    Ok(found)
}

struct Lexer<'a> {
    chars: Peekable<Chars<'a>>,
    depth: usize,
}

impl Lexer<'_> {
    fn eat(&mut self, c: char) -> bool {
        self.chars.next_if_eq(&c).is_some()
    }

    /// Spaces, continued lines and comments.
    fn skip_blank(&mut self) {
        loop {
            match self.chars.peek() {
                Some(' ' | '\t' | '\r') => drop(self.chars.next()),
                Some('#') => while self.chars.next_if(|c| *c != '\n').is_some() {},
                Some('\\') => {
                    let mut ahead = self.chars.clone();
                    ahead.next();
                    if ahead.peek() == Some(&'\r') {
                        ahead.next();
                    }
                    if ahead.peek() != Some(&'\n') {
                        return;
                    }
                    ahead.next();
                    self.chars = ahead;
                }
                _ => return,
            }
        }
    }

    fn token(&mut self) -> Result<Option<Token>, String> {
        loop {
            self.skip_blank();
            let Some(&c) = self.chars.peek() else { return Ok(None) };
            match c {
                '\n' => {
                    self.chars.next();
                    return Ok(Some(Token::End));
                }
                ';' => {
                    self.chars.next();
                    return Ok(Some(if self.eat(';') { Token::Clause } else { Token::End }));
                }
                '&' | '|' => {
                    self.chars.next();
                    self.eat(c);
                    // `&>` sends output elsewhere.
                    if !(c == '&' && self.chars.peek() == Some(&'>')) {
                        return Ok(Some(Token::End));
                    }
                }
                '(' => {
                    self.chars.next();
                    return Ok(Some(Token::Open));
                }
                ')' => {
                    self.chars.next();
                    return Ok(Some(Token::Close));
                }
                '<' | '>' => self.skip_redirection()?,
                _ => {
                    let word = self.word()?;
                    if let Some((name, append)) = assigned(&word)
                        && self.chars.peek() == Some(&'(')
                    {
                        self.chars.next();
                        let words = self.items(&name)?;
                        return Ok(Some(Token::Array { name, append, words }));
                    }
                    // `2>file`
                    let digits = matches!(&word[..], [Part::Text { text, quoted: false }]
                        if text.chars().all(|c| c.is_ascii_digit()));
                    if !(digits && matches!(self.chars.peek(), Some('<' | '>'))) {
                        return Ok(Some(Token::Word(word)));
                    }
                }
            }
        }
    }

    /// Where input or output goes is no part of a command. The text of `<<END` is skipped.
    fn skip_redirection(&mut self) -> Result<(), String> {
        let first = self.chars.next();
        let doubled = self.chars.next_if(|c| Some(*c) == first).is_some();
        let here = first == Some('<') && doubled && !self.eat('<');
        let dash = here && self.eat('-');
        self.eat('&');
        self.eat('|');
        self.skip_blank();
        if matches!(self.chars.peek(), None | Some('\n')) {
            return Ok(());
        }
        let word = self.word()?;
        if here {
            let end = plain(&word);
            while self.chars.next_if(|c| *c != '\n').is_some() {}
            self.chars.next();
            loop {
                let line: String = std::iter::from_fn(|| self.chars.next_if(|c| *c != '\n')).collect();
                let line = if dash { line.trim_start_matches('\t') } else { &line };
                if line == end {
                    break;
                }
                if self.chars.next().is_none() {
                    return Err(format!("the text that ends in '{}' never ends", end.escape_debug()));
                }
            }
        }
        Ok(())
    }

    /// The items of an array, behind its bracket.
    fn items(&mut self, name: &str) -> Result<Vec<Word>, String> {
        let mut words = Vec::new();
        loop {
            self.skip_blank();
            match self.chars.peek() {
                None => return Err(format!("the array {name}=( is never closed")),
                Some(')') => {
                    self.chars.next();
                    return Ok(words);
                }
                Some('\n' | ';' | '&' | '|' | '<' | '>' | '(') => drop(self.chars.next()),
                Some(_) => words.push(self.word()?),
            }
        }
    }

    fn word(&mut self) -> Result<Word, String> {
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
                match here_text(&text) {
                    Some((body, literal)) => self.here(word, &body, literal)?,
                    None => word.push(Part::Run(format!("${text}"))),
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
                    name,
                    all: false,
                    default: None,
                    quoted,
                });
            }
            Some(&c) if c.is_ascii_digit() || "@*#?$!-".contains(c) => {
                self.chars.next();
                word.push(Part::Variable {
                    name: c.to_string(),
                    all: false,
                    default: None,
                    quoted,
                });
            }
            _ => push(word, '$', quoted),
        }
        Ok(())
    }

    /// What `cat` prints of the text handed to it: variables are put in, unless its end was named in quotes.
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

    /// Behind `${`.
    fn braced(&mut self, quoted: bool) -> Result<Part, String> {
        let name = self.name();
        let mut all = false;
        let mut default = None;
        let mut other = String::new();
        for spelling in ["[@]", "[*]"] {
            let mut ahead = self.chars.clone();
            if !all && spelling.chars().all(|c| ahead.next() == Some(c)) {
                self.chars = ahead;
                all = true;
            }
        }
        let mut ahead = self.chars.clone();
        let colon = ahead.next_if_eq(&':').is_some();
        if !name.is_empty() && matches!(ahead.peek(), Some('-' | '=')) {
            let _ = colon;
            ahead.next();
            self.chars = ahead;
            default = Some(self.default_word()?);
        }
        // `${NAME%suffix}` and the like are not understood, and kept as they stand.
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
            all,
            default,
            quoted,
        })
    }

    /// Behind `:-`, up to the brace that closes the variable.
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

    /// `(...)`, brackets within it counted.
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

/// The text in `(cat <<END ... END)`, where that is all that there is, and whether it is to be taken as it stands.
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

/// The name in `NAME=` or `NAME+=`, and whether it is the latter, where that is all of the word.
fn assigned(word: &Word) -> Option<(String, bool)> {
    let [Part::Text { text, quoted: false }] = &word[..] else {
        return None;
    };
    let name = text.strip_suffix('=')?;
    let (name, append) = name.strip_suffix('+').map_or((name, false), |name| (name, true));
    is_name(name).then(|| (name.to_string(), append))
}

/// Whether a variable can be called so.
pub fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// A word's letters, nothing put in for its variables.
pub fn plain(word: &Word) -> String {
    word.iter()
        .map(|part| match part {
            Part::Text { text, .. } | Part::Run(text) => text.clone(),
            Part::Variable { name, .. } => format!("${name}"),
        })
        .collect()
}
