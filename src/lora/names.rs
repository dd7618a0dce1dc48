//! Names of a layer in different programs.
//!
//! A layer's own name here is that of the diffusers checkpoint. The *original* name is that of the makers' published
//! checkpoint, which ComfyUI's model classes use; kohya's trainers write it with `_` in place of `.`.

use crate::nn::named_file::Spelling;

/// (diffusers, original). `{}` stands for a number, the same in both.
pub type Pairs = &'static [(&'static str, &'static str)];

/// Names of one family's layers.
#[derive(Debug, PartialEq, Eq)]
pub struct Names {
    /// Name of the family in run files.
    pub family: &'static str,
    /// Display name.
    pub title: &'static str,
    /// True if diffusers takes an `alpha` in files for ComfyUI.
    pub alpha_in_diffusers: bool,
    /// Linear layers.
    pub layers: Pairs,
    /// Norms and convolutions, which have a `weight` and may have a `bias`, too.
    pub others: Pairs,
    /// Parameters outside of layers.
    pub tables: Pairs,
}

/// Layer with the same name in both.
pub const fn same(name: &'static str) -> (&'static str, &'static str) {
    (name, name)
}

/// Prefixes that flat names may have after the format's own prefix.
const FLAT_PREFIXES: [&str; 3] = ["base_model_model_", "diffusion_model_", "transformer_"];

impl Names {
    /// Checks that a layer or parameter of this family has this name in diffusers.
    pub fn has(&self, name: &str) -> bool {
        self.original(name).is_some()
    }

    /// Returns the original name of a layer or of a parameter outside of layers.
    pub fn original(&self, name: &str) -> Option<String> {
        self.pairs()
            .find_map(|(ours, original)| Some(fill(original, number(ours, name)?)))
    }

    /// Returns true for a linear layer of this name in diffusers.
    pub fn is_linear(&self, layer: &str) -> bool {
        self.layers.iter().any(|(ours, _)| number(ours, layer).is_some())
    }

    /// Finds a layer or parameter by its original name or by its own, also with `_` in place of `.`.
    pub fn find(&self, name: &str) -> Option<String> {
        self.find_whole(name).or_else(|| {
            let flat = Some(name).filter(|name| !name.contains('.'))?;
            let mut behind = FLAT_PREFIXES.iter().filter_map(|prefix| flat.strip_prefix(prefix));
            behind.find_map(|rest| self.find(rest))
        })
    }

    /// Returns the name in diffusers of a layer's tensor, such as `blocks.0.self_attn.q.weight`, or of a parameter outside
    /// of layers: by its original name or by its own.
    pub fn tensor(&self, name: &str) -> Option<String> {
        rename(name, |head| {
            self.pairs().find_map(|(ours, original)| {
                let found = number(original, head).or_else(|| number(ours, head))?;
                Some(fill(ours, found))
            })
        })
    }

    /// Returns the original name of a tensor with this name in diffusers.
    pub fn original_tensor(&self, name: &str) -> Option<String> {
        rename(name, |head| self.original(head))
    }

    /// Same as [`find`](Self::find), without removing prefixes of other programs.
    fn find_whole(&self, name: &str) -> Option<String> {
        let dotted = self.pairs().find_map(|(ours, original)| {
            let found = number(original, name).or_else(|| number(ours, name))?;
            Some(fill(ours, found))
        });
        dotted.or_else(|| {
            let flat = flatten(name);
            self.pairs().find_map(|(ours, original)| {
                let found = number(&flatten(original), &flat).or_else(|| number(&flatten(ours), &flat))?;
                Some(fill(ours, found))
            })
        })
    }

    /// Checks whether this name in diffusers is a parameter outside of layers.
    pub fn is_table(&self, name: &str) -> bool {
        self.tables.iter().any(|(ours, _)| number(ours, name).is_some())
    }

    fn pairs(&self) -> impl Iterator<Item = &(&'static str, &'static str)> {
        self.layers.iter().chain(self.others).chain(self.tables)
    }
}

/// Renames the longest start of a name, up to a point or the end, that `renamed` knows.
fn rename(name: &str, renamed: impl Fn(&str) -> Option<String>) -> Option<String> {
    let ends = [name.len()]
        .into_iter()
        .chain(name.rmatch_indices('.').map(|(at, _)| at));
    ends.into_iter().find_map(|end| {
        let (head, rest) = name.split_at(end);
        Some(renamed(head)? + rest)
    })
}

impl Spelling for Names {
    fn in_files(&self, name: &str) -> Option<String> {
        self.original_tensor(name)
    }
}

/// Returns those of `families` that know all `names`; if there is none, the one that knows the most.
pub fn detect<'a>(families: &[&'static Names], names: impl Iterator<Item = &'a str> + Clone) -> Vec<&'static Names> {
    let total = names.clone().count();
    let count = |family: &Names, knows: fn(&Names, &str) -> Option<String>| {
        names.clone().filter(|name| knows(family, name).is_some()).count()
    };
    // `transformer_blocks_0` is a block of LTX-Video rather than a block of Wan after a prefix.
    let ways: [fn(&Names, &str) -> Option<String>; 2] = [Names::find_whole, Names::find];
    for knows in ways {
        let whole = families
            .iter()
            .filter(|family| total > 0 && count(family, knows) == total);
        let whole: Vec<&'static Names> = whole.copied().collect();
        if !whole.is_empty() {
            return whole;
        }
    }
    let counted = families.iter().map(|family| {
        let known = ways.map(|knows| count(family, knows));
        (known, *family)
    });
    let most = counted
        .filter(|(known, _)| *known != [0, 0])
        .max_by_key(|(known, _)| *known);
    most.map(|(_, family)| family).into_iter().collect()
}

/// Returns a name with `_` in place of `.`.
pub fn flatten(name: &str) -> String {
    name.replace('.', "_")
}

/// Returns the value of `{}` in a name of this pattern: digits, or empty if the pattern has no `{}`.
fn number<'a>(pattern: &str, name: &'a str) -> Option<&'a str> {
    let Some((before, after)) = pattern.split_once("{}") else {
        return (pattern == name).then_some("");
    };
    let digits = name.strip_prefix(before)?.strip_suffix(after)?;
    (!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())).then_some(digits)
}

fn fill(pattern: &str, number: &str) -> String {
    pattern.replacen("{}", number, 1)
}
