//! Extracts the commands of a PowerShell script by parsing it. Nothing is ever run.
//!
//! Lines joined by a backtick, `$NAME`, `$env:NAME`, lists with their splatting and `.Add`, here-strings, both kinds of
//! quotes and `if`s whose condition the script itself determines are followed. Everything else becomes a remark if it
//! cannot change the training, and otherwise an error with its line.
//!
//! Source: about_Parsing, about_Quoting_Rules, about_Splatting, about_Special_Characters.

use std::collections::HashMap;

use super::Source;
use super::script::{MOST_BYTES, Script, short, trains};

mod branch;
mod statement;
mod text;
mod value;

use text::Text;
use value::Value;

/// Parses a PowerShell script.
///
/// # Errors
/// Reports, with its line, anything that cannot be followed and could change the training.
pub fn read(source: &Source) -> Result<Script, String> {
    let mut reader = PowerShell::default();
    for (name, value) in &source.variables {
        for name in [name.to_lowercase(), format!("env:{}", name.to_lowercase())] {
            reader.variables.insert(name, Value::Text(value.clone()));
        }
    }
    if let Some(folder) = &source.folder {
        let folder = folder.display().to_string();
        reader.variables.insert("psscriptroot".into(), Value::Text(folder));
    }
    reader.follow(&mut Text::new(&source.text))?;
    Ok(reader.script)
}

/// Keywords that begin something else than a command.
const KEYWORDS: &[&str] = &[
    "if", "elseif", "else", "foreach", "for", "while", "do", "switch", "function", "filter", "param", "try", "catch",
    "finally", "begin", "process", "end", "throw", "trap", "class", "using",
];

/// Programs that take a command as text.
const INDIRECT: &[&str] = &[
    "invoke-expression",
    "iex",
    "start-process",
    "start",
    "saps",
    "start-job",
    "invoke-command",
    "icm",
    "cmd",
    "powershell",
    "pwsh",
    "bash",
    "wsl",
];

#[derive(Debug, Default)]
struct PowerShell {
    script: Script,
    /// Variables by their names in lower case: PowerShell ignores case.
    variables: HashMap<String, Value>,
    /// True after `exit`: nothing after it runs.
    ended: bool,
    grown: usize,
}

impl PowerShell {
    fn follow(&mut self, text: &mut Text) -> Result<(), String> {
        while !self.ended && text.skip_to_statement()? {
            let line = text.line();
            self.statement(text)
                .map_err(|message| match message.starts_with("line ") {
                    true => message,
                    false => format!("line {line}: {message}"),
                })?;
        }
        Ok(())
    }

    fn statement(&mut self, text: &mut Text) -> Result<(), String> {
        let start = text.clone();
        if text.eat_cast() && text.peek() != Some('$') {
            *text = start.clone();
        }
        if text.peek() == Some('$')
            && let Some(name) = text.variable()
        {
            return self.with_variable(&name, text, start);
        }
        *text = start.clone();
        let word = text.word_ahead().to_lowercase();
        if word == "exit" || word == "return" {
            self.ended = true;
            return Ok(());
        }
        if word == "if" && self.branch(text)? {
            return Ok(());
        }
        if KEYWORDS.contains(&word.as_str()) || word.is_empty() && text.peek().is_some_and(|c| "({[@}])".contains(c)) {
            return self.refuse_or_tell(text);
        }
        self.command(text)
    }

    /// Processes `$NAME = value`, `$NAME += value`, `$NAME.Add(value)`
    fn with_variable<'a>(&mut self, name: &str, text: &mut Text<'a>, start: Text<'a>) -> Result<(), String> {
        text.skip_blank()?;
        let appends = text.eat("+=");
        if appends || text.peek() == Some('=') && text.eat("=") {
            let value = self.value(text)?;
            return self.assign(name, value, appends);
        }
        if text.eat_any_case(".Add(") {
            let item = self.term(text)?;
            text.skip_blank()?;
            if let (Some(item), true) = (item, text.eat(")")) {
                text.end_of_statement();
                let items = Value::List(item.items());
                return self.assign(name, Some(items), true);
            }
        }
        *text = start;
        let rest = text.end_of_statement();
        if trains(&rest) {
            return Err(format!("`{}` is not followed", short(&rest)));
        }
        // Any other use leaves the variable's value unknown.
        self.variables.remove(name);
        self.script.remark(format!("`{}` is not followed", short(&rest)));
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

    fn command(&mut self, text: &mut Text) -> Result<(), String> {
        let start = text.clone();
        text.eat("&");
        let mut words: Vec<String> = Vec::new();
        loop {
            text.skip_blank()?;
            if text.at_end_of_statement() {
                break;
            }
            if text.eat("||") || text.eat("|") {
                // Commands that read the output, or only run on a failure.
                let rest = text.end_of_statement();
                if trains(&rest) {
                    return Err(format!("`{}` after a | is not followed", short(&rest)));
                }
                break;
            }
            if text.eat("&&") || text.eat("&") {
                break;
            }
            if text.skip_redirection()? {
                continue;
            }
            self.word(text, &mut words)?;
        }
        let said = start.upto(text);
        let Some(first) = words.first() else { return Ok(()) };
        let name = first.rsplit(['/', '\\']).next().unwrap_or(first).to_lowercase();
        let name = name.strip_suffix(".exe").unwrap_or(&name);
        if INDIRECT.contains(&name) && trains(&words.join(" ")) {
            return Err(format!(
                "the command that {name} is handed is not read: write it on a line of its own"
            ));
        }
        // Commands that set variables without `=`.
        if ["set-variable", "sv", "new-variable", "set-item"].contains(&name) {
            return Err(format!("`{}` is not followed: write $NAME = value", short(&said)));
        }
        if ![
            "write-host",
            "write-output",
            "echo",
            "pause",
            "read-host",
            "clear-host",
            "cls",
        ]
        .contains(&name)
        {
            self.script.commands.push(words);
        }
        Ok(())
    }

    /// Reads a word of a command: none, one, or the items of a list.
    fn word(&mut self, text: &mut Text, words: &mut Vec<String>) -> Result<(), String> {
        if text.ahead("--%") {
            return Err("--% hands the rest over unread: leave it out, and quote what needs it".into());
        }
        if let Some((inner, literal)) = text.here_string()? {
            words.push(if literal { inner } else { self.expand(&inner)? });
            return Ok(());
        }
        if text.eat("@") {
            let name = text.name().to_lowercase();
            let Some(value) = self.variables.get(&name).cloned().filter(|_| !name.is_empty()) else {
                return Err(format!("what @{name} stands for is not known: write its words out"));
            };
            self.grow(1)?;
            words.extend(value.items());
            return Ok(());
        }
        let mut word = String::new();
        loop {
            match text.peek() {
                None => break,
                Some(c) if c.is_whitespace() || ";|&".contains(c) => break,
                Some(c @ (')' | '}')) => return Err(format!("a {c} closes what nothing opened")),
                Some('{') => {
                    let block = text.bracketed('{', '}')?;
                    if trains(&block) || assigns(&block) {
                        return Err(format!(
                            "`{}` is not followed, and sets variables or trains",
                            short(&block)
                        ));
                    }
                    word.push_str(&block);
                }
                Some('`') if text.joins_lines() => break,
                Some('`') => word.extend(text.escaped()),
                Some('\'' | '"') => word.push_str(&self.quoted(text)?),
                Some(',') => return Err("a comma outside of quotes makes a list of the word: quote it".into()),
                Some('(') => {
                    let inner = text.bracketed('(', ')')?;
                    self.script.leave(&inner, "is not run: it is kept verbatim");
                    word.push_str(&inner);
                }
                Some('$') => {
                    let before = text.clone();
                    let value = text.variable().and_then(|name| self.variables.get(&name).cloned());
                    match value {
                        Some(Value::List(items)) if word.is_empty() && text.at_end_of_word() => {
                            words.extend(items);
                            return Ok(());
                        }
                        _ => {
                            *text = before;
                            let put_in = self.dollar(text)?;
                            word.push_str(&put_in);
                        }
                    }
                }
                Some(c) => {
                    text.next();
                    word.push(c);
                }
            }
        }
        words.push(word);
        Ok(())
    }

    /// Reads a text in quotes.
    fn quoted(&mut self, text: &mut Text) -> Result<String, String> {
        if text.eat("'") {
            return text.single_quoted();
        }
        text.eat("\"");
        let mut done = String::new();
        loop {
            match text.peek() {
                None => return Err("a \" is never closed".into()),
                Some('"') => {
                    text.next();
                    if !text.eat("\"") {
                        return Ok(done);
                    }
                    done.push('"');
                }
                Some('`') => done.extend(text.escaped()),
                Some('$') => done.push_str(&self.dollar(text)?),
                Some(c) => {
                    text.next();
                    done.push(c);
                }
            }
        }
    }

    /// Expands the variables of a here-string.
    fn expand(&mut self, inner: &str) -> Result<String, String> {
        let mut text = Text::new(inner);
        let mut done = String::new();
        while let Some(c) = text.peek() {
            match c {
                '`' => done.extend(text.escaped()),
                '$' => done.push_str(&self.dollar(&mut text)?),
                c => {
                    text.next();
                    done.push(c);
                }
            }
        }
        Ok(done)
    }

    /// Expands a `$`.
    fn dollar(&mut self, text: &mut Text) -> Result<String, String> {
        let start = text.clone();
        if text.ahead("$(") {
            text.next();
            let inner = format!("${}", text.bracketed('(', ')')?);
            self.script.leave(&inner, "is not run: it is kept verbatim");
            return Ok(inner);
        }
        let Some(name) = text.variable() else {
            text.next();
            return Ok("$".into());
        };
        match self.variables.get(&name).cloned() {
            Some(value) => {
                let value = value.items().join(" ");
                self.grow(value.len())?;
                Ok(value)
            }
            None => {
                let said = start.upto(text);
                let bare = name.strip_prefix("env:").unwrap_or(&name);
                let why = format!("has no value in the script: give it by --var {bare}=VALUE, or change it here");
                self.script.leave(&said, &why);
                Ok(said)
            }
        }
    }

    /// Skips a statement that is not followed, with its blocks, or rejects it.
    fn refuse_or_tell(&mut self, text: &mut Text) -> Result<(), String> {
        let line = text.line();
        let said = text.whole_statement()?;
        if trains(&said) || assigns(&said) {
            return Err(format!(
                "`{}` is not followed, and sets variables or trains: write out what it comes to",
                short(&said)
            ));
        }
        self.script
            .remark(format!("line {line}: `{}` is not followed", short(&said)));
        Ok(())
    }
}

/// Checks whether it sets something: `$NAME =`, `$NAME +=`, `.Add(`, or a parameter.
fn assigns(text: &str) -> bool {
    let lower = text.to_lowercase();
    let sets = text.match_indices('=').any(|(at, _)| {
        let before = text[..at].trim_end_matches(['+', '-', '*', '/']).trim_end();
        let name = before
            .rsplit(|c: char| !c.is_alphanumeric() && !"_:$".contains(c))
            .next()
            .unwrap_or_default();
        name.starts_with('$')
    });
    sets || lower.contains(".add(") || lower.starts_with("param")
}
