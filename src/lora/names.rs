//! Names of a layer in different programs.
//!
//! A layer's own name here is that of the diffusers checkpoint. The *original* name is that of the makers' published
//! checkpoint, which ComfyUI's model classes mostly use; kohya's trainers write it with `_` in place of `.`. An original
//! layer may be several here, each some of its rows: see [`Fused`].

use std::borrow::Cow;

use crate::nn::fused_rows::Rows;
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
    /// True if neither ComfyUI nor kohya's trainers have the model, so that their files are not of it.
    pub diffusers_alone: bool,
    /// Linear layers.
    pub layers: Pairs,
    /// Linear layers that are rows of one in the original checkpoint.
    pub fused: &'static [Fused],
    /// Norms and convolutions, which have a `weight` and may have a `bias`, too.
    pub others: Pairs,
    /// Parameters outside of layers.
    pub tables: Pairs,
    /// Parts of original names, and what ComfyUI's modules have in their place; replaced in this order.
    pub comfyui: Pairs,
    /// Original names of layers whose adapters diffusers and ComfyUI do not read under one name.
    pub apart: &'static [&'static str],
}

/// An original linear layer whose rows are layers in diffusers.
#[derive(Debug, PartialEq, Eq)]
pub struct Fused {
    /// Original name.
    pub original: &'static str,
    /// Beginning of the names in diffusers.
    pub stem: &'static str,
    /// Their ends, in the order of the rows.
    pub parts: &'static [&'static str],
    /// Sizes of the parts.
    pub division: Division,
}

/// Division of a fused layer's rows among its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Division {
    /// Equal shares.
    Equal,
    /// As many rows as there are inputs for each part but the last, which has the rest: so many times the inputs, if
    /// nothing else tells.
    SquaresAndRest(usize),
    /// A single part, with the halves of its rows the other way round.
    HalvesSwapped,
    /// Layers of which a block has one: the first part if it has more outputs than inputs, else the second.
    WiderOrNarrower,
}

impl Fused {
    /// Layer of several parts.
    pub const fn new(
        original: &'static str,
        stem: &'static str,
        parts: &'static [&'static str],
        division: Division,
    ) -> Self {
        Self {
            original,
            stem,
            parts,
            division,
        }
    }

    /// Returns the rows of a part.
    pub fn rows(&self, index: usize) -> Rows {
        let count = self.parts.len();
        match self.division {
            Division::Equal => Rows::Share { index, count },
            Division::SquaresAndRest(_) if index + 1 < count => Rows::Square { index },
            Division::SquaresAndRest(_) => Rows::Rest { index },
            Division::HalvesSwapped => Rows::HalvesSwapped,
            Division::WiderOrNarrower if index == 0 => Rows::IfWider,
            Division::WiderOrNarrower => Rows::IfNarrower,
        }
    }
}

/// A layer or tensor of diffusers, and its rows in the original one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// Name in diffusers.
    pub name: String,
    /// Rows of the original layer.
    pub rows: Rows,
}

impl Located {
    /// All of an original layer.
    pub fn whole(name: impl Into<String>) -> Self {
        let (name, rows) = (name.into(), Rows::All);
        Self { name, rows }
    }
}

/// Original layer that a layer of diffusers is a part of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FusedPart {
    /// The original layer.
    pub fused: &'static Fused,
    /// Number of the part.
    pub index: usize,
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

    /// Returns the original name of a layer or of a parameter outside of layers, or that of the layer which it is rows of.
    pub fn original(&self, name: &str) -> Option<String> {
        self.entries()
            .find_map(|entry| Some(fill(entry.original, entry.number(name)?)))
    }

    /// Returns the original layer that a layer of this name in diffusers is a part of; None for a whole one.
    pub fn fused_part(&self, layer: &str) -> Option<FusedPart> {
        let mut parts = self
            .fused
            .iter()
            .flat_map(|fused| (0..fused.parts.len()).map(move |index| (fused, index)));
        let found = parts.find(|(fused, index)| Entry::of_part(fused, *index).number(layer).is_some());
        found.map(|(fused, index)| FusedPart { fused, index })
    }

    /// Returns true for a linear layer of this name in diffusers.
    pub fn is_linear(&self, layer: &str) -> bool {
        let whole = self.layers.iter().any(|(ours, _)| number(ours, layer).is_some());
        whole || self.fused_part(layer).is_some()
    }

    /// Finds a layer or parameter by its original name, which several may share, or by its own, or by ComfyUI's; also with
    /// `_` in place of `.`.
    pub fn find(&self, name: &str) -> Vec<Located> {
        let found = self.find_whole(name);
        if !found.is_empty() || name.contains('.') {
            return found;
        }
        let behind = FLAT_PREFIXES.iter().filter_map(|prefix| name.strip_prefix(prefix));
        let mut found = behind.map(|rest| self.find(rest));
        found.find(|found| !found.is_empty()).unwrap_or_default()
    }

    /// Returns the names in diffusers of a layer's tensor, such as `blocks.0.self_attn.q.weight`, or of a parameter outside
    /// of layers: by its original name, by its own, or by ComfyUI's.
    pub fn tensors(&self, name: &str) -> Vec<Located> {
        let renamed = |name: &str| {
            rename(name, |head, rest| {
                let found = self.matching(head, false).into_iter();
                let found: Vec<Located> = found
                    .map(|Located { name, rows }| Located {
                        name: name + rest,
                        rows,
                    })
                    .collect();
                (!found.is_empty()).then_some(found)
            })
        };
        let found = renamed(name).or_else(|| renamed(&self.original_of_comfyui(name, false)));
        found.unwrap_or_default()
    }

    /// Returns the original name of a tensor with this name in diffusers.
    pub fn original_tensor(&self, name: &str) -> Option<String> {
        rename(name, |head, rest| Some(self.original(head)? + rest))
    }

    /// Returns ComfyUI's name of the module with this original name.
    pub fn in_comfyui(&self, original: &str) -> String {
        let renamed = |name: String, (theirs, comfyui): &(&str, &str)| name.replace(theirs, comfyui);
        self.comfyui.iter().fold(original.to_string(), renamed)
    }

    /// Returns true for an original layer whose adapter diffusers and ComfyUI do not read under one name.
    pub fn is_apart(&self, original: &str) -> bool {
        self.apart.iter().any(|pattern| number(pattern, original).is_some())
    }

    /// Returns the original name of a module of ComfyUI, if it is one; `flat`: with `_` in place of `.`.
    fn original_of_comfyui(&self, name: &str, flat: bool) -> String {
        // Undone in the other order.
        self.comfyui
            .iter()
            .rev()
            .fold(name.to_string(), |name, (theirs, comfyui)| {
                name.replace(&*spelled(comfyui, flat), &spelled(theirs, flat))
            })
    }

    /// Same as [`find`](Self::find), without removing prefixes of other programs.
    fn find_whole(&self, name: &str) -> Vec<Located> {
        let ways = [false, true].map(|flat| (spelled(name, flat), flat));
        let mut found = ways.iter().map(|(name, flat)| self.matching(name, *flat));
        let found = found.find(|found| !found.is_empty());
        let comfyui = || {
            let ways = ways.iter().filter(|_| !self.comfyui.is_empty());
            let mut found = ways.map(|(name, flat)| self.matching(&self.original_of_comfyui(name, *flat), *flat));
            found.find(|found| !found.is_empty())
        };
        found.or_else(comfyui).unwrap_or_default()
    }

    /// Returns the layers with this original name, or the one with this name; `flat`: with `_` in place of `.`.
    fn matching(&self, name: &str, flat: bool) -> Vec<Located> {
        let original = self.entries().filter_map(|entry| {
            let number = number(&spelled(entry.original, flat), name)?;
            let (name, rows) = (entry.name(number), entry.rows);
            Some(Located { name, rows })
        });
        let original: Vec<Located> = original.collect();
        if !original.is_empty() {
            return original;
        }
        let own = self.entries().find_map(|entry| {
            let stem = name.strip_suffix(&*spelled(entry.part, flat))?;
            Some(Located::whole(entry.name(number(&spelled(entry.stem, flat), stem)?)))
        });
        own.into_iter().collect()
    }

    /// Checks whether this name in diffusers is a parameter outside of layers.
    pub fn is_table(&self, name: &str) -> bool {
        self.tables.iter().any(|(ours, _)| number(ours, name).is_some())
    }

    fn entries(&self) -> impl Iterator<Item = Entry> {
        let fused = self.fused.iter();
        let parts = fused.flat_map(|fused| (0..fused.parts.len()).map(move |index| Entry::of_part(fused, index)));
        let whole = self.layers.iter().chain(self.others).chain(self.tables);
        whole.map(Entry::whole).chain(parts)
    }
}

/// Names of a layer.
struct Entry {
    /// Beginning of the name in diffusers.
    stem: &'static str,
    /// End of it.
    part: &'static str,
    original: &'static str,
    rows: Rows,
}

impl Entry {
    fn whole(&(stem, original): &(&'static str, &'static str)) -> Self {
        Self {
            stem,
            part: "",
            original,
            rows: Rows::All,
        }
    }

    fn of_part(fused: &Fused, index: usize) -> Self {
        Self {
            stem: fused.stem,
            part: fused.parts[index],
            original: fused.original,
            rows: fused.rows(index),
        }
    }

    /// Returns the value of `{}` in a name in diffusers.
    fn number<'a>(&self, name: &'a str) -> Option<&'a str> {
        number(self.stem, name.strip_suffix(self.part)?)
    }

    fn name(&self, number: &str) -> String {
        fill(self.stem, number) + self.part
    }
}

/// Renames the longest start of a name, up to a point or the end, that `renamed` knows; it is given the rest, too.
fn rename<T>(name: &str, renamed: impl Fn(&str, &str) -> Option<T>) -> Option<T> {
    let ends = [name.len()]
        .into_iter()
        .chain(name.rmatch_indices('.').map(|(at, _)| at));
    ends.into_iter().find_map(|end| {
        let (head, rest) = name.split_at(end);
        renamed(head, rest)
    })
}

/// Returns a name, with `_` in place of `.` if it is to be flat.
fn spelled(name: &str, flat: bool) -> Cow<'_, str> {
    match flat {
        true => flatten(name).into(),
        false => name.into(),
    }
}

impl Spelling for Names {
    fn in_files(&self, name: &str) -> Option<String> {
        self.original_tensor(name)
    }
}

/// Returns those of `families` that know all `names`; if there is none, the one that knows the most.
pub fn detect<'a>(families: &[&'static Names], names: impl Iterator<Item = &'a str> + Clone) -> Vec<&'static Names> {
    let total = names.clone().count();
    let count = |family: &Names, knows: fn(&Names, &str) -> Vec<Located>| {
        names.clone().filter(|name| !knows(family, name).is_empty()).count()
    };
    // `transformer_blocks_0` is a block of LTX-Video rather than a block of Wan after a prefix.
    let ways: [fn(&Names, &str) -> Vec<Located>; 2] = [Names::find_whole, Names::find];
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
