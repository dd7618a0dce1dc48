//! A script as the commands that it would run, whatever its language. It is parsed, never run.

/// Limit for a script after its variables are expanded.
pub const MOST_BYTES: usize = 1 << 20;
const MOST_REMARKS: usize = 100;

/// Limit for the characters of a statement in a message.
const SHOWN: usize = 60;

/// Returns the start of a statement, for messages.
pub fn short(text: &str) -> String {
    let text = text.trim();
    let start: String = text.lines().next().unwrap_or_default().chars().take(SHOWN).collect();
    let dots = if start.len() < text.len() { "..." } else { "" };
    format!("{}{dots}", start.trim_end().escape_debug())
}

/// Result of parsing a script.
#[derive(Debug, Default)]
pub struct Script {
    /// Words of every command that would run, in order.
    pub commands: Vec<Vec<String>>,
    /// Names of the variables exported to programs.
    pub exported: Vec<String>,
    /// Parts that could not be followed, or only partly.
    pub remarks: Vec<String>,
    /// Texts kept verbatim, because only running the script would reveal their value.
    pub unread: Vec<String>,
}

impl Script {
    /// Records a part that could not be followed, once.
    pub fn remark(&mut self, text: impl Into<String>) {
        let text = text.into();
        if self.remarks.len() < MOST_REMARKS && !self.remarks.contains(&text) {
            self.remarks.push(text);
        }
    }

    /// Records a text that is kept verbatim, and why.
    pub fn leave(&mut self, text: &str, why: &str) {
        if !self.unread.iter().any(|left| left == text) {
            self.unread.push(text.to_string());
        }
        self.remark(format!("{} {why}", text.escape_debug()));
    }
}

/// Checks whether a part of a script that is not followed could change the training: it runs Python, or hands it over.
pub fn trains(text: &str) -> bool {
    let text = text.to_lowercase();
    [".py", "accelerate", "torchrun", "train_network"]
        .iter()
        .any(|word| text.contains(word))
}
