//! Converts the commands of other trainers to run files: finetrainers and its predecessors ([`finetrainers`]), and
//! musubi-tuner ([`musubi`]).
//!
//! A script is parsed, never run ([`script`]); its command is split into flags ([`flags`]); each flag becomes a key of
//! the run file or a comment that explains why there is none ([`document`]). The other trainer's defaults for absent
//! flags are written out, because vtrain's differ.

use std::path::{Component, Path, PathBuf};

mod arithmetic;
mod batch;
pub mod document;
mod draft;
pub mod finetrainers;
pub mod flags;
mod language;
pub mod musubi;
mod powershell;
pub mod script;
pub mod shell;
pub mod text;

use crate::config::RunConfig;
use document::Document;
use flags::{Flag, Launch, Reader};
use language::Language;

/// Upper limit for a file that describes data or prompts.
const MOST_BYTES: u64 = 16 << 20;

/// Script to convert, and the folders of relative paths.
#[derive(Debug, Clone)]
pub struct Source {
    /// Text of the script.
    pub text: String,
    /// Name of the script in messages.
    pub name: String,
    /// Folder of the script; None for standard input.
    pub folder: Option<PathBuf>,
    /// Folder that the script is run from.
    pub from: PathBuf,
    /// Folder of the future run file.
    pub to: PathBuf,
    /// Values of variables that the script does not set.
    pub variables: Vec<(String, String)>,
}

/// A run file.
#[derive(Debug)]
pub struct Migrated {
    /// Text of the run file.
    pub yaml: String,
    /// Number of settings without a key, which became comments.
    pub remarks: usize,
    /// Problems that vtrain would report for the run file; empty if it can be loaded.
    pub problems: Vec<String>,
}

impl Source {
    /// Finds a file that the script names: relative to where it is run, else to one of the folders above the script,
    /// else next to it.
    fn find(&self, path: &str) -> PathBuf {
        let path = self.slashed(path);
        let path = Path::new(&path);
        let mut places = vec![self.from.join(path)];
        if let Some(folder) = &self.folder {
            places.extend(folder.ancestors().map(|above| above.join(path)));
            places.extend(path.file_name().map(|name| folder.join(name)));
        }
        let first = places[0].clone();
        places.into_iter().find(|place| place.is_file()).unwrap_or(first)
    }

    /// Returns the text of a file that the script names.
    fn read(&self, path: &str) -> Result<String, String> {
        let found = self.find(path);
        let wrong = |error: std::io::Error| {
            format!(
                "{}: cannot be read: {error}; give the folder that the script is run from with --from",
                found.display()
            )
        };
        let size = std::fs::metadata(&found).map_err(wrong)?.len();
        if size > MOST_BYTES {
            return Err(format!("{}: is longer than {MOST_BYTES} bytes", found.display()));
        }
        let bytes = std::fs::read(&found).map_err(wrong)?;
        text::decode(bytes).map_err(|why| format!("{}: {why}", found.display()))
    }

    /// Returns a path with this machine's separators, instead of Windows'.
    fn slashed(&self, path: &str) -> String {
        match Language::of(self) {
            Language::Batch | Language::PowerShell if !document::is_on_a_drive(path) => path.replace('\\', "/"),
            _ => path.to_string(),
        }
    }

    /// Returns a path of the script relative to the run file.
    fn path(&self, path: &str) -> String {
        let path = self.slashed(path);
        let elsewhere = path.starts_with(['~', '$', '%']) || path.contains("://") || document::is_on_a_drive(&path);
        if path.is_empty() || Path::new(&path).is_absolute() || elsewhere || self.from == self.to {
            return path;
        }
        relative(&self.from.join(path), &self.to).to_string_lossy().into_owned()
    }
}

/// Returns `path` relative to `folder`; both are absolute.
fn relative(path: &Path, folder: &Path) -> PathBuf {
    let (path, folder) = (crate::paths::normalize(path), crate::paths::normalize(folder));
    let shared = path
        .components()
        .zip(folder.components())
        .take_while(|(a, b)| a == b)
        .count();
    let up = folder.components().skip(shared).map(|_| Component::ParentDir);
    up.chain(path.components().skip(shared)).collect()
}

/// Parses the command of a script that starts a training into flags; the rest of the script becomes remarks.
fn command(source: &Source, is_training: fn(&str) -> bool, document: &mut Document) -> Result<Launch, Vec<String>> {
    let script = language::read(source).map_err(|e| vec![format!("{}: {e}", source.name)])?;
    document.unread = script.unread;
    let mut launches = Vec::new();
    for words in &script.commands {
        match Launch::of(words, is_training) {
            Some(launch) => launches.push(launch),
            None if matches!(
                words[0].as_str(),
                "echo" | "set" | "printf" | "true" | "exit" | "shift" | ":"
            ) => {}
            None => document.remark(flags::typed(words), "is another command of the script, and is not run"),
        }
    }
    for remark in &script.remarks {
        document.remark(source.name.clone(), remark.clone());
    }
    for name in &script.exported {
        document.remark(name.clone(), "vtrain does not read this variable of the environment");
    }
    let mut launches = launches.into_iter();
    let Some(launch) = launches.next() else {
        return Err(vec![nothing_starts(source, &script.commands)]);
    };
    for other in launches {
        let words: Vec<String> = other.flags.iter().map(Flag::typed).collect();
        document.remark(
            format!("{} {}", other.script, words.join(" ")),
            "is a second training; only the first of a script is read",
        );
    }
    for flag in &launch.launcher {
        document.remark(
            flag.typed(),
            "is for the launcher; vtrain starts as one program on one device",
        );
    }
    for word in &launch.stray {
        document.remark(word.clone(), "belongs to no flag");
    }
    Ok(launch)
}

/// Error for a script without a training, which lists what it runs.
fn nothing_starts(source: &Source, commands: &[Vec<String>]) -> String {
    let mut others: Vec<String> = Vec::new();
    for word in commands.iter().flatten() {
        let name = flags::file_name(word).escape_debug().to_string();
        if name.ends_with(".py") && !others.contains(&name) && others.len() < 8 {
            others.push(name);
        }
    }
    let found = match &others[..] {
        [] => "none runs a Python script".into(),
        others => format!("it runs {}", others.join(", ")),
    };
    format!(
        "{}: no command in it starts a training that is read: {found}. `vtrain migrate finetrainers` reads train.py of \
         finetrainers and its text_to_video_lora.py for Mochi 1, {} of diffusers and its like of cogvideox-factory; `vtrain migrate musubi` reads \
         wan_train_network.py and hv_train_network.py",
        source.name,
        finetrainers::DIFFUSERS_SCRIPTS.join(" and ")
    )
}

/// Converts the remaining flags to remarks: those with a known reason, and unknown ones.
fn leave(rest: Vec<Flag>, reasons: &[(&str, &str)], trainer: &str, document: &mut Document) {
    for flag in rest {
        let reason = reasons
            .iter()
            .find(|(names, _)| names.split(' ').any(|name| name == flag.name))
            .map_or_else(
                || format!("is not a flag of {trainer} that vtrain knows"),
                |(_, why)| why.to_string(),
            );
        document.remark(flag.typed(), reason);
    }
}

/// Returns the file's text, and the problems that vtrain would report for it.
fn finish(mut document: Document, reader: Reader, source: &Source, trainer: &str) -> Result<Migrated, Vec<String>> {
    if !reader.problems.is_empty() {
        let named = reader
            .problems
            .iter()
            .map(|problem| format!("{}: {problem}", source.name));
        return Err(named.collect());
    }
    let mut head = vec![format!("From {} of {trainer}, by vtrain migrate.", source.name)];
    if source.from == source.to {
        head.push("Relative paths are as in the script, and start at this file's folder.".into());
    } else {
        head.push("Relative paths of the script are written as they are from this file's folder.".into());
    }
    let yaml = document.to_yaml(&head);
    let mut problems = match RunConfig::parse(&yaml, Path::new("the run file"), &source.to, &[]) {
        Ok(_) => Vec::new(),
        Err(problems) => problems
            .0
            .iter()
            .map(|p| format!("{}: {}", p.path, p.message))
            .collect(),
    };
    problems.extend(document.unfit());
    let yaml = if problems.is_empty() {
        yaml
    } else {
        let told = problems.iter().map(|problem| format!("To be fixed: {problem}"));
        head.extend(told);
        document.to_yaml(&head)
    };
    Ok(Migrated {
        yaml,
        remarks: document.remarks.len(),
        problems,
    })
}
