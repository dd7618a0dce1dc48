//! A training command as flags with their values.

use std::str::FromStr;

use super::document::Document;

/// `--name value value`, or `--name=value`.
#[derive(Debug, Clone, PartialEq)]
pub struct Flag {
    /// Name without its dashes.
    pub name: String,
    /// Values in the order of the command line.
    pub values: Vec<String>,
}

impl Flag {
    /// Formats the flag as typed, without possible secrets.
    pub fn typed(&self) -> String {
        let mut text = format!("--{}", self.name);
        for value in &self.values {
            text.push(' ');
            text.push_str(if is_secret(&self.name) { "(not shown)" } else { value });
        }
        text
    }
}

/// Checks whether a flag (or a variable) of this name may hold a secret: `--hub_token`, but not `--tokenizer_id`.
fn is_secret(name: &str) -> bool {
    let name = name.trim_start_matches('-').to_lowercase().replace('-', "_");
    let words = ["token", "key", "password", "secret"];
    name != "id_token" && name.split('_').any(|part| words.contains(&part))
}

/// Formats a command that starts no training, as typed, without possible secrets and without the arguments of a
/// `login`.
pub fn typed(command: &[String]) -> String {
    let mut shown: Vec<String> = Vec::new();
    let mut hide = false;
    let mut login = false;
    for word in command {
        let (name, value) = word
            .split_once('=')
            .map_or((word.as_str(), None), |(n, v)| (n, Some(v)));
        shown.push(match value {
            _ if hide || login => "(not shown)".into(),
            Some(_) if is_secret(name) => format!("{name}=(not shown)"),
            _ => word.clone(),
        });
        login |= word == "login";
        hide = value.is_none() && word.starts_with('-') && is_secret(name);
    }
    shown.join(" ")
}

/// Command that starts a training: flags of the launcher, then its own.
#[derive(Debug, Default)]
pub struct Launch {
    /// Script or module that is launched.
    pub script: String,
    /// Flags of the launcher.
    pub launcher: Vec<Flag>,
    /// Flags of the training script.
    pub flags: Vec<Flag>,
    /// Words without a flag.
    pub stray: Vec<String>,
}

impl Launch {
    /// Splits a command at the Python script whose name `is_training` recognises; None without one.
    pub fn of(command: &[String], is_training: fn(&str) -> bool) -> Option<Self> {
        let at = command
            .iter()
            .position(|word| !word.starts_with('-') && is_training(file_name(word)))?;
        let (launcher, _) = flags(&command[..at]);
        let (own, stray) = flags(&command[at + 1..]);
        Some(Self {
            script: command[at].clone(),
            launcher,
            flags: own,
            stray,
        })
    }
}

/// Returns the last part of a path of Unix or Windows.
pub fn file_name(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}

/// Splits words into flags, and the words before the first.
fn flags(words: &[String]) -> (Vec<Flag>, Vec<String>) {
    let mut found: Vec<Flag> = Vec::new();
    let mut stray = Vec::new();
    for word in words {
        if let Some(name) = word.strip_prefix("--").filter(|name| !name.is_empty()) {
            let (name, value) = name
                .split_once('=')
                .map_or((name, None), |(name, value)| (name, Some(value)));
            found.push(Flag {
                name: name.to_string(),
                values: value.map(String::from).into_iter().collect(),
            });
        } else if let Some(flag) = found.last_mut() {
            flag.values.push(word.clone());
        } else {
            stray.push(word.clone());
        }
    }
    (found, stray)
}

/// Flags of a command during conversion: those taken are removed.
pub struct Reader {
    flags: Vec<Flag>,
    /// A trainer's names for flags: ours, and those on the command line.
    spelled: Vec<(&'static str, &'static str)>,
    /// Values that could not be read.
    pub problems: Vec<String>,
}

impl Reader {
    /// Reader of a command's flags. If a flag is given twice the last one counts, as in argparse.
    pub fn new(launch: &Launch, document: &mut Document) -> Self {
        let mut flags: Vec<Flag> = Vec::new();
        for flag in &launch.flags {
            if let Some(at) = flags.iter().position(|f| f.name == flag.name) {
                let earlier = flags.remove(at);
                document.remark(earlier.typed(), format!("is given again: {} counts", flag.typed()));
            }
            flags.push(flag.clone());
        }
        Self {
            flags,
            spelled: Vec::new(),
            problems: Vec::new(),
        }
    }

    /// Uses the second name of these flags if that is given and the first is not.
    pub fn spell(&mut self, names: &[(&'static str, &'static str)]) {
        let given = names.iter().filter(|(name, other)| self.has(other) && !self.has(name));
        self.spelled = given.copied().collect();
    }

    /// Returns a flag's name on the command line.
    fn spelling<'a>(&self, name: &'a str) -> &'a str {
        let other = self.spelled.iter().find(|(asked, _)| *asked == name);
        other.map_or(name, |(_, other)| *other)
    }

    /// Returns `--name`, as on the command line.
    pub fn said(&self, name: &str) -> String {
        format!("--{}", self.spelling(name))
    }

    /// Returns true if the flag was given and not yet taken.
    pub fn has(&self, name: &str) -> bool {
        self.flags.iter().any(|flag| flag.name == self.spelling(name))
    }

    /// Takes a flag off the command line; `None` if it was not given.
    pub fn take(&mut self, name: &str) -> Option<Flag> {
        let at = self.flags.iter().position(|flag| flag.name == self.spelling(name))?;
        Some(self.flags.remove(at))
    }

    /// Takes a switch: present or not.
    pub fn switch(&mut self, name: &str) -> bool {
        match self.take(name) {
            Some(flag) if flag.values.is_empty() => true,
            Some(flag) => {
                self.wrong(&flag, "takes no value");
                true
            }
            None => false,
        }
    }

    /// Takes a flag's single value.
    pub fn text(&mut self, name: &str) -> Option<String> {
        let flag = self.take(name)?;
        match &flag.values[..] {
            [value] => Some(value.clone()),
            _ => {
                self.wrong(&flag, "takes one value");
                None
            }
        }
    }

    /// Takes a flag's single value, as a number.
    pub fn number<T: Number>(&mut self, name: &str) -> Option<T> {
        let text = self.text(name)?;
        match T::read(&text) {
            Some(value) => Some(value),
            None => {
                self.problems.push(format!(
                    "{}: expected {}, found '{}'",
                    self.said(name),
                    T::EXPECTED,
                    text.escape_debug()
                ));
                None
            }
        }
    }

    /// Records a problem of a flag, with its values.
    pub fn wrong(&mut self, flag: &Flag, message: &str) {
        self.problems.push(format!(
            "--{} {message}, found '{}'",
            flag.name,
            flag.values.join(" ").escape_debug()
        ));
    }

    /// Returns the flags that were not taken.
    pub fn rest(&mut self) -> Vec<Flag> {
        std::mem::take(&mut self.flags)
    }
}

/// A number on a command line.
pub trait Number: FromStr {
    /// Description of the numbers that are accepted.
    const EXPECTED: &str;
    /// Parses a number; `None` if the text is not one.
    fn read(text: &str) -> Option<Self>;
}

impl Number for u64 {
    const EXPECTED: &str = "a whole number of at least 0";
    fn read(text: &str) -> Option<Self> {
        text.trim().parse().ok()
    }
}

impl Number for f64 {
    const EXPECTED: &str = "a number";
    fn read(text: &str) -> Option<Self> {
        text.trim().parse().ok().filter(|value: &f64| value.is_finite())
    }
}
