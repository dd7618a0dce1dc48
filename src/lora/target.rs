//! Selection of the linear layers that get an adapter; equal to PEFT's `target_modules` (`check_target_module_exists`).

use std::collections::BTreeMap;

use fancy_regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// PEFT's name for every linear layer.
const ALL_LINEAR: &str = "all-linear";

/// `target_modules` in PEFT's form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a list of layer names, or one regular expression")]
pub enum TargetModules {
    /// List of names: a layer matches if its name is one of these or ends in `.` and one of these.
    Suffixes(Vec<String>),
    /// Regular expression on the whole name. `all-linear` stands for every linear layer.
    Regex(String),
}

impl TargetModules {
    /// Checks for PEFT's name for every linear layer.
    pub fn is_all_linear(&self) -> bool {
        matches!(self, Self::Regex(pattern) if pattern.to_lowercase() == ALL_LINEAR)
    }

    /// Compiles the rules.
    ///
    /// # Errors
    /// Explains what is wrong with the list or the expression.
    pub fn matcher(&self) -> Result<Matcher, String> {
        let empty = match self {
            Self::Suffixes(names) => names.is_empty() || names.iter().any(|name| name.trim().is_empty()),
            Self::Regex(pattern) => pattern.trim().is_empty(),
        };
        if empty {
            return Err("must name at least one layer, and no name may be empty".into());
        }
        match self {
            Self::Suffixes(names) => Ok(Matcher(names.iter().cloned().map(Rule::Suffix).collect())),
            Self::Regex(_) if self.is_all_linear() => Ok(Matcher(vec![Rule::All])),
            Self::Regex(pattern) => {
                let whole = Regex::new(&format!(r"\A(?:{pattern})\z"));
                let regex = whole.map_err(|error| format!("'{pattern}' is not a regular expression: {error}"))?;
                Ok(Matcher(vec![Rule::Regex(pattern.clone(), Box::new(regex))]))
            }
        }
    }
}

/// Rules of which any one makes a layer a target.
#[derive(Debug)]
pub struct Matcher(Vec<Rule>);

#[derive(Debug)]
enum Rule {
    Suffix(String),
    Regex(String, Box<Regex>),
    All,
}

impl Matcher {
    /// Checks whether the linear layer at `path` is a target.
    ///
    /// # Errors
    /// Fails for an expression that gave up on this path.
    pub fn matches(&self, path: &str) -> anyhow::Result<bool> {
        for rule in &self.0 {
            if rule.matches(path)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns the rules that match none of the paths, as the user wrote them.
    pub fn unmatched(&self, paths: &[String]) -> anyhow::Result<Vec<&str>> {
        let mut idle = Vec::new();
        for rule in &self.0 {
            let mut used = false;
            for path in paths {
                used = used || rule.matches(path)?;
            }
            if !used {
                idle.push(rule.text());
            }
        }
        Ok(idle)
    }
}

impl Rule {
    fn matches(&self, path: &str) -> anyhow::Result<bool> {
        match self {
            Self::Suffix(name) => {
                let before = path.strip_suffix(name.as_str());
                Ok(before.is_some_and(|before| before.is_empty() || before.ends_with('.')))
            }
            Self::Regex(pattern, regex) => regex
                .is_match(path)
                .map_err(|error| anyhow::anyhow!("the expression '{pattern}' gave up on {path}: {error}")),
            Self::All => Ok(true),
        }
    }

    fn text(&self) -> &str {
        match self {
            Self::Suffix(text) | Self::Regex(text, _) => text,
            Self::All => ALL_LINEAR,
        }
    }
}

/// Returns the ends of the layers' names, each with its count: `to_k (42), to_out.0 (42)`.
pub fn kinds(paths: &[String]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for path in paths {
        *counts.entry(end(path)).or_default() += 1;
    }
    let shown: Vec<String> = counts.iter().map(|(kind, count)| format!("{kind} ({count})")).collect();
    shown.join(", ")
}

/// Returns the last part of a path, with those before it while it starts in a number, which alone would be meaningless.
pub fn end(path: &str) -> &str {
    let mut at = path.len();
    while let Some(dot) = path[..at].rfind('.') {
        at = dot;
        if !path[dot + 1..].starts_with(|c: char| c.is_ascii_digit()) {
            return &path[dot + 1..];
        }
    }
    path
}
