//! The language of a script: of a Unix shell (`shell`), of Windows' cmd (`batch`) or of PowerShell (`powershell`).

use std::path::Path;

use super::script::Script;
use super::{Source, batch, powershell, shell};

/// Language of a script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    /// sh and bash.
    Shell,
    /// Windows batch files.
    Batch,
    /// PowerShell.
    PowerShell,
}

impl Language {
    /// Detects the language by the file's name, else by how it joins lines and sets variables.
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

    /// Returns the character that joins a line to the next.
    pub fn joiner(self) -> char {
        match self {
            Self::Shell => '\\',
            Self::Batch => '^',
            Self::PowerShell => '`',
        }
    }
}

/// Parses a script in its own language.
///
/// # Errors
/// Fails for text that is not a script, or that cannot be followed and could change the training.
pub fn read(source: &Source) -> Result<Script, String> {
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
             nothing after it",
            words[0].escape_debug(),
            language.joiner()
        )),
        None => Ok(script),
    }
}
