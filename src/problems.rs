//! Values that parse but make no sense, each by the path of its key, so that all are reported at once.

use std::fmt::Display;

/// Problems found so far, in the order of the checks: paths and messages.
#[derive(Debug, Default)]
pub struct Problems {
    /// Path of the section whose keys are checked.
    section: String,
    found: Vec<(String, String)>,
}

impl Problems {
    /// Runs a check and returns what it found.
    pub fn of(check: impl FnOnce(&mut Self)) -> Self {
        let mut problems = Self::default();
        check(&mut problems);
        problems
    }

    /// Runs a check whose keys are below `key`.
    pub fn section(&mut self, key: impl Display, check: impl FnOnce(&mut Self)) {
        let section = self.path(key);
        let above = std::mem::replace(&mut self.section, section);
        check(self);
        self.section = above;
    }

    /// Adds a problem with a key; an empty key stands for the section as a whole.
    pub fn push(&mut self, key: impl Display, message: impl Display) {
        self.found.push((self.path(key), message.to_string()));
    }

    /// Adds an error, if there is one.
    pub fn failed<T>(&mut self, key: impl Display, result: Result<T, impl Display>) {
        if let Err(error) = result {
            self.push(key, error);
        }
    }

    /// Checks a count.
    pub fn at_least_one(&mut self, key: impl Display, count: impl PartialEq + From<u8>) {
        if count == 0.into() {
            self.push(key, "must be at least 1, got 0");
        }
    }

    /// Checks a number that is positive and finite.
    pub fn above_zero(&mut self, key: impl Display, value: f64) {
        if !(value > 0.0 && value.is_finite()) {
            self.push(key, format!("must be above 0, got {value}"));
        }
    }

    /// Checks a number in 0..1, without 1.
    pub fn below_one(&mut self, key: impl Display, value: f64) {
        if !(0.0..1.0).contains(&value) {
            self.push(key, format!("must be at least 0 and below 1, got {value}"));
        }
    }

    /// Returns true if nothing was found.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    fn path(&self, key: impl Display) -> String {
        match (self.section.as_str(), key.to_string()) {
            ("", key) => key,
            (section, key) if key.is_empty() => section.to_string(),
            (section, key) => format!("{section}.{key}"),
        }
    }
}

impl IntoIterator for Problems {
    type Item = (String, String);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.found.into_iter()
    }
}
