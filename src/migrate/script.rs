//! A script as the commands that it would run: of a Unix shell ([`shell`]), of Windows' cmd ([`batch`]) or of PowerShell
//! ([`powershell`]). It is read, never run.

use std::path::Path;

use super::{Source, batch, powershell, shell};

/// A script that grows longer as its variables are put in is not read.
pub const MOST_BYTES: usize = 1 << 20;
const MOST_REMARKS: usize = 100;

/// All that a script comes to.
#[derive(Debug, Default)]
pub struct Script {
    /// The words of every command that would run, in order.
    pub commands: Vec<Vec<String>>,
    /// Names of the variables handed to programs.
    pub exported: Vec<String>,
    /// Parts that could not be followed, or not wholly.
    pub remarks: Vec<String>,
    /// Texts that stay in the words as they stand in the script, since only running it would tell their value.
    pub unread: Vec<String>,
}

/// The language of a script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    Shell,
    Batch,
    PowerShell,
}

impl Language {
    /// By the file's name, else by how its lines are joined and its variables are set.
    pub fn of(source: &Source) -> Self {
        let extension = Path::new(&source.name).extension().and_then(|e| e.to_str());
        match extension.map(str::to_lowercase).as_deref() {
            Some("bat" | "cmd") => Self::Batch,
            Some("ps1" | "psm1") => Self::PowerShell,
            _ => Self::by_lines(&source.text),
        }
    }

    fn by_lines(text: &str) -> Self {
        if text.starts_with("#!") {
            return Self::Shell;
        }
        for line in text.lines() {
            let line = line.trim_end_matches('\r');
            let start = line.trim_start().to_lowercase();
            let batch = ["@echo ", "rem ", "setlocal"]
                .iter()
                .any(|word| start.starts_with(word))
                || start.strip_prefix("set ").is_some_and(|rest| {
                    rest.trim_start_matches(['"', ' '])
                        .split_once('=')
                        .is_some_and(|(name, _)| shell::syntax::is_name(name))
                });
            let assigns = start.starts_with("$env:")
                || start
                    .strip_prefix('$')
                    .and_then(|rest| rest.split_once('='))
                    .is_some_and(|(name, _)| shell::syntax::is_name(name.trim_end().trim_end_matches('+')));
            if batch || line.trim_end().ends_with(" ^") {
                return Self::Batch;
            }
            if assigns || line.trim_end().ends_with(" `") || start.starts_with("param(") {
                return Self::PowerShell;
            }
        }
        Self::Shell
    }

    /// The sign that joins a line to the next.
    pub fn joiner(self) -> char {
        match self {
            Self::Shell => '\\',
            Self::Batch => '^',
            Self::PowerShell => '`',
        }
    }
}

impl Script {
    /// Reads a script in its own language.
    ///
    /// # Errors
    /// Text that is no script, or that cannot be followed and could change the training.
    pub fn read(source: &Source) -> Result<Self, String> {
        let language = Language::of(source);
        let script = match language {
            Language::Shell => shell::read(source)?,
            Language::Batch => batch::read(source).map_err(|e| format!("{e} (read as a batch file of Windows)"))?,
            Language::PowerShell => {
                powershell::read(source).map_err(|e| format!("{e} (read as a script of PowerShell)"))?
            }
        };
        let astray = script.commands.iter().find(|words| words[0].starts_with('-'));
        match astray {
            Some(words) => Err(format!(
                "a line starts with {}, a flag that belongs to the command above it: the line before has to end in {}, with \
                 nothing behind it",
                words[0].escape_debug(),
                language.joiner()
            )),
            None => Ok(script),
        }
    }

    /// Notes what could not be followed, once.
    pub fn remark(&mut self, text: impl Into<String>) {
        let text = text.into();
        if self.remarks.len() < MOST_REMARKS && !self.remarks.contains(&text) {
            self.remarks.push(text);
        }
    }

    /// Notes a text that stays as it stands, and why.
    pub fn leave(&mut self, text: &str, why: &str) {
        if !self.unread.iter().any(|left| left == text) {
            self.unread.push(text.to_string());
        }
        self.remark(format!("{} {why}", text.escape_debug()));
    }
}

/// Tells whether a part of a script that is not followed could change the training: it runs Python, or hands it over.
pub fn trains(text: &str) -> bool {
    let text = text.to_lowercase();
    [".py", "accelerate", "torchrun", "train_network"]
        .iter()
        .any(|word| text.contains(word))
}
