//! Text of a fragment of HTML, as BeautifulSoup's `text` with Python's `html.parser`: without tags, comments and
//! declarations, without what is in scripts, style sheets, templates and ruby, with entities decoded.
//!
//! Text that is no tag stays: `<3`, `a < b`, a tag that does not end. Where an entity is broken off the parser gives up,
//! and the rest stays as it is.

/// Elements whose content is no markup.
const RAW: [&str; 2] = ["script", "style"];
/// Elements whose text is no part of the text.
const HIDDEN: [&str; 3] = ["rt", "rp", "template"];

/// Returns the text of a fragment.
pub fn html_text(html: &str) -> String {
    let mut parser = Parser {
        rest: html,
        text: String::with_capacity(html.len()),
        hidden: Vec::new(),
    };
    // The first pass ends at what may go on; the second one knows that nothing follows.
    parser.pass(false);
    parser.pass(true);
    parser.text
}

struct Parser<'a> {
    rest: &'a str,
    text: String,
    /// Names of open elements whose text is hidden.
    hidden: Vec<String>,
}

impl Parser<'_> {
    fn pass(&mut self, last: bool) {
        while !self.rest.is_empty() {
            let plain = self.rest.find(['&', '<']).unwrap_or(self.rest.len());
            self.keep(plain);
            let goes_on = match self.rest.as_bytes().first() {
                None => true,
                Some(b'<') => self.markup(last),
                Some(_) => self.entity(last),
            };
            if !goes_on {
                break;
            }
        }
        if last {
            self.keep(self.rest.len());
        }
    }

    /// Passes so many bytes, as text.
    fn keep(&mut self, length: usize) {
        let (text, rest) = self.rest.split_at(length);
        self.write(text);
        self.rest = rest;
    }

    fn write(&mut self, text: &str) {
        if self.hidden.is_empty() {
            self.text.push_str(text);
        }
    }

    /// Passes so many bytes, which are no text.
    fn skip(&mut self, length: usize) {
        self.rest = &self.rest[length..];
    }

    /// Passes what begins with `<`; false if it may go on after the end.
    fn markup(&mut self, last: bool) -> bool {
        let rest = self.rest;
        let second = rest[1..].chars().next();
        let length = match second {
            None => return false,
            Some(c) if c.is_ascii_alphabetic() => tag(rest),
            Some('/') => rest.find('>').map(|at| at + 1),
            Some('!') if rest.starts_with("<!--") => comment(rest),
            Some('!') if rest.starts_with("<![") => self.section(),
            Some('!' | '?') => rest[2..].find('>').map(|at| at + 3),
            Some(_) => {
                self.keep(1);
                return true;
            }
        };
        match length {
            Some(length) => self.element(length),
            None if last => {
                let ends = rest[1..].find('>').map(|at| at + 2);
                let next = || rest[1..].find('<').map(|at| at + 1);
                self.keep(ends.or_else(next).unwrap_or(1));
            }
            None => return false,
        }
        true
    }

    /// Returns the length of `<![..]]>`, whose content is text if it is of CDATA.
    fn section(&mut self) -> Option<usize> {
        let rest = self.rest;
        match rest
            .strip_prefix("<![CDATA[")
            .or_else(|| rest.strip_prefix("<![cdata["))
        {
            Some(content) => {
                let end = content.find("]]>")?;
                self.write(&content[..end]);
                Some(rest.len() - content.len() + end + 3)
            }
            None => rest.find('>').map(|at| at + 1),
        }
    }

    /// Passes a tag of this length, and the content of an element that is no markup.
    fn element(&mut self, length: usize) {
        let tag = &self.rest[..length];
        let (closes, named) = match tag.strip_prefix("</") {
            Some(named) => (true, named.trim_start()),
            None => (false, &tag[1..]),
        };
        let end = named.find(|c: char| c.is_ascii_whitespace() || matches!(c, '/' | '>' | '\0'));
        let name = named[..end.unwrap_or(named.len())].to_ascii_lowercase();
        self.skip(length);
        let empty = tag.ends_with("/>");
        if closes {
            if let Some(open) = self.hidden.iter().rposition(|open| *open == name) {
                self.hidden.truncate(open);
            }
        } else if HIDDEN.contains(&name.as_str()) && !empty {
            self.hidden.push(name);
        } else if RAW.contains(&name.as_str()) && !empty {
            self.skip(raw_length(self.rest, &name));
        }
    }

    /// Passes what begins with `&`; false if the parser gives up.
    fn entity(&mut self, last: bool) -> bool {
        let rest = self.rest;
        if let Some(number) = rest.strip_prefix("&#") {
            let Some(length) = number_length(number) else {
                if rest.contains(';') {
                    self.keep(2);
                }
                return false;
            };
            self.write(&htmlize::unescape(format!("&#{};", &number[..length])));
            self.pass_name(2 + length);
            return true;
        }
        if let Some(length) = name_length(&rest[1..]) {
            let name = &rest[1..=length];
            let written = format!("&{name};");
            match htmlize::unescape(&written) {
                // It is no entity, or only its beginning is one.
                meant if meant.ends_with(';') && name != "semi" => self.write(&format!("&{name}")),
                meant => self.write(&meant),
            }
            self.pass_name(1 + length);
            return true;
        }
        match rest[1..].chars().next() {
            Some(c) if c.is_ascii_alphabetic() => {
                if last && rest.len() == 2 {
                    self.skip(1);
                }
                false
            }
            Some(_) => {
                self.keep(1);
                true
            }
            None => false,
        }
    }

    /// Passes an entity of this length, with its semicolon if it has one.
    fn pass_name(&mut self, length: usize) {
        let ends = self.rest[length..].starts_with(';');
        self.skip(length + usize::from(ends));
    }
}

/// Returns the length of the digits of a numeric entity, which something else must follow.
fn number_length(text: &str) -> Option<usize> {
    let hexadecimal = text.strip_prefix(['x', 'X']);
    let digits = hexadecimal.unwrap_or(text);
    let is_digit = |c: char| match hexadecimal {
        Some(_) => c.is_ascii_hexdigit(),
        None => c.is_ascii_digit(),
    };
    let end = digits.find(|c| !is_digit(c)).filter(|end| *end > 0)?;
    let follows = digits[end..].chars().next()?;
    (!follows.is_ascii_hexdigit()).then_some(text.len() - digits.len() + end)
}

/// Returns the length of the name of an entity, which something else must follow.
fn name_length(text: &str) -> Option<usize> {
    if !text.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return None;
    }
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '.')));
    end.or_else(|| text.rfind(['-', '.']))
}

/// Returns the length of a comment.
fn comment(text: &str) -> Option<usize> {
    let mut from = 4;
    loop {
        let end = from + text[from..].find("--")? + 2;
        let behind = text[end..].trim_start();
        if behind.starts_with('>') {
            return Some(text.len() - behind.len() + 1);
        }
        from = end - 1;
    }
}

/// Returns the length of a start tag; its end does not lie in a quoted value.
fn tag(text: &str) -> Option<usize> {
    let mut at = text.find(['\t', '\n', '\r', '\x0c', ' ', '/', '>', '\0'])?;
    loop {
        at += text[at..].find(|c: char| !(c.is_whitespace() || c == '/'))?;
        if text[at..].starts_with('>') {
            return Some(at + 1);
        }
        // The name of an attribute, which may begin with anything, and its value.
        let first = text[at..].chars().next()?.len_utf8();
        let named = at + first;
        at = named + text[named..].find(|c: char| c.is_whitespace() || matches!(c, '/' | '=' | '>'))?;
        let value = text[at..].trim_start();
        if value.starts_with('=') {
            let value = value.trim_start_matches('=').trim_start();
            at = text.len() - value.len();
            at += match value.chars().next()? {
                quote @ ('"' | '\'') => value[1..].find(quote)? + 2,
                _ => value.find(|c: char| c.is_whitespace() || c == '>')?,
            };
        }
    }
}

/// Returns the length of the content of an element that is no markup, up to its end; all of it, if it does not end.
fn raw_length(text: &str, name: &str) -> usize {
    let ends = |at: &usize| {
        let inside = text[at + 2..].trim_start();
        let named = inside
            .get(..name.len())
            .is_some_and(|found| found.eq_ignore_ascii_case(name));
        named && inside[name.len()..].trim_start().starts_with('>')
    };
    let places = text.match_indices("</").map(|(at, _)| at);
    places.into_iter().find(ends).unwrap_or(text.len())
}
