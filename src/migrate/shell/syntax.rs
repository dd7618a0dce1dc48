//! Words and operators of a shell script: the subset of bash that training scripts are written in.
//!
//! Comments, continued lines, both kinds of quotes, `$NAME`, `${NAME[@]}`, `${NAME:-word}` and related forms,
//! `$((...))`, arrays. Text that would have to be run (`$(...)`, backticks) is kept verbatim with a remark.
//! brush-parser (0.4) reads all of bash, but its tree leaves words unparsed, it rejects a script at the first error,
//! and it needs proc macros to build.

use std::iter::Peekable;
use std::str::Chars;

/// A piece of a word.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// Text, which is never split, and is not an operator or keyword, if `quoted`.
    Text {
        /// Characters of the text.
        text: String,
        /// True inside of quotes.
        quoted: bool,
    },
    /// `$NAME`
    Variable {
        /// Name of the variable.
        name: String,
        /// Items that are read.
        items: Items,
        /// Change to the value, such as `:-word`.
        change: Option<Change>,
        /// True inside of double quotes.
        quoted: bool,
    },
    /// The sum in `$((...))`.
    Sum(String),
    /// Text that a shell would have to run, verbatim.
    Run(String),
}

/// A word: its pieces, joined without spaces.
pub type Word = Vec<Part>;

/// Items of an array.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Items {
    /// The first: without brackets.
    First,
    /// `[@]` or `[*]`
    All,
    /// `[2]`
    One(usize),
}

/// A change to a variable's value. With a colon an empty value counts as none.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// `:-word`, `:=word`: another value if there is none.
    Default {
        /// The other value.
        word: Word,
        /// True if an empty value counts as none.
        colon: bool,
        /// True if the variable is set to it as well (`=`).
        assigns: bool,
    },
    /// `:+word`: another value if there is one.
    Alternative {
        /// The other value.
        word: Word,
        /// True if an empty value counts as none.
        colon: bool,
    },
    /// `:?word`: an error if there is none.
    Required {
        /// True if an empty value counts as none.
        colon: bool,
    },
    /// `%word`, `%%word`, `#word`, `##word`: removes the shortest or longest end or start that the pattern matches.
    Cut {
        /// Pattern to remove.
        pattern: Word,
        /// True for the end, false for the start.
        end: bool,
        /// True for the longest match.
        longest: bool,
    },
}

/// A token of a script.
#[derive(Debug, Clone, PartialEq)]
pub enum Token {
    /// A word, quotes and variables resolved into pieces.
    Word(Word),
    /// `NAME=(...)` or `NAME+=(...)`.
    Array {
        /// Name of the array.
        name: String,
        /// True for `+=`.
        append: bool,
        /// Words between the parentheses.
        words: Vec<Word>,
    },
    /// `((...))`
    Sum(String),
    /// The end of a command: a line's end, `;`, `|`, `&`.
    End,
    /// `&&`
    And,
    /// `||`
    Or,
    /// `;;` of a `case`.
    Clause,
    /// `(`
    Open,
    /// `)`
    Close,
}

/// Splits a script into tokens.
///
/// # Errors
/// Fails for a quote, brace or bracket that is never closed.
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

pub(super) struct Lexer<'a> {
    pub(super) chars: Peekable<Chars<'a>>,
    pub(super) depth: usize,
}

impl Lexer<'_> {
    pub(super) fn eat(&mut self, c: char) -> bool {
        self.chars.next_if_eq(&c).is_some()
    }

    /// Skips spaces, continued lines and comments.
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
                    if self.eat(c) {
                        return Ok(Some(if c == '&' { Token::And } else { Token::Or }));
                    }
                    // `&>` redirects the output.
                    if !(c == '&' && self.chars.peek() == Some(&'>')) {
                        return Ok(Some(Token::End));
                    }
                }
                '(' => {
                    if let Some(sum) = self.sum() {
                        return Ok(Some(Token::Sum(sum)));
                    }
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

    /// Skips a redirection, which is not part of a command, including the text of `<<END`.
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

    /// Reads the items of an array, after its bracket.
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
}

/// Returns the name in `NAME=` or `NAME+=`, and true for the latter, if that is the whole word.
fn assigned(word: &Word) -> Option<(String, bool)> {
    let [Part::Text { text, quoted: false }] = &word[..] else {
        return None;
    };
    let name = text.strip_suffix('=')?;
    let (name, append) = name.strip_suffix('+').map_or((name, false), |name| (name, true));
    is_name(name).then(|| (name.to_string(), append))
}

/// Checks for a valid name of a variable.
pub fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Returns a word's text, without its variables.
pub fn plain(word: &Word) -> String {
    word.iter()
        .map(|part| match part {
            Part::Text { text, .. } | Part::Run(text) | Part::Sum(text) => text.clone(),
            Part::Variable { name, .. } => format!("${name}"),
        })
        .collect()
}
