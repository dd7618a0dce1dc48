//! A name with numbers on one line, as flags and keys take them: `first-block:threshold=0.08`.

use std::str::FromStr;

/// The parts of `NAME:KEY=VALUE,KEY=VALUE`, whose keys are taken one by one.
#[derive(Debug, Clone)]
pub struct NamedSettings<'a> {
    /// Name before the colon.
    pub name: &'a str,
    pairs: Vec<(&'a str, &'a str)>,
}

impl<'a> NamedSettings<'a> {
    /// Parts of a text.
    ///
    /// # Errors
    /// Fails for a setting without a value, and for one that is given twice.
    pub fn parse(text: &'a str) -> Result<Self, String> {
        let (name, rest) = text.split_once(':').unwrap_or((text, ""));
        let mut pairs: Vec<(&str, &str)> = Vec::new();
        for setting in rest.split(',').filter(|setting| !setting.is_empty()) {
            let pair = setting
                .split_once('=')
                .ok_or_else(|| format!("'{setting}' has no value; write {name}:{setting}=VALUE"))?;
            if pairs.iter().any(|(key, _)| *key == pair.0) {
                return Err(format!("{} is given twice in '{text}'", pair.0));
            }
            pairs.push(pair);
        }
        Ok(Self { name, pairs })
    }

    /// Takes the value of a key, if it is given.
    ///
    /// # Errors
    /// Fails for a value of another type.
    pub fn take<T: FromStr>(&mut self, key: &str) -> Result<Option<T>, String> {
        let Some(place) = self.pairs.iter().position(|(name, _)| *name == key) else {
            return Ok(None);
        };
        let (_, value) = self.pairs.remove(place);
        let parsed = value.parse();
        parsed
            .map(Some)
            .map_err(|_| format!("{}: {key} cannot be '{value}'", self.name))
    }

    /// Checks that every key was taken; `known` says which there are.
    ///
    /// # Errors
    /// Fails for keys that are left.
    pub fn finish(self, known: &str) -> Result<(), String> {
        match self.pairs.first() {
            None => Ok(()),
            Some((key, _)) if known.is_empty() => Err(format!("{} has no settings, found {key}", self.name)),
            Some((key, _)) => Err(format!("{} has no setting {key}; it has {known}", self.name)),
        }
    }
}
