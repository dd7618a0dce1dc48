//! What one layer is called by different programs.
//!
//! A layer's own name here is that of the diffusers checkpoint. The *original* name is that of the checkpoint its makers
//! published, which is what ComfyUI's model classes use; kohya's trainers write it with `_` in place of `.`.

/// The names of one family's linear layers.
#[derive(Debug, PartialEq, Eq)]
pub struct Names {
    /// As run files call the family.
    pub family: &'static str,
    /// For people.
    pub title: &'static str,
    /// Whether diffusers takes an `alpha` in files for ComfyUI.
    pub alpha_in_diffusers: bool,
    /// (diffusers, original). `{}` stands for a number, the same in both.
    pub layers: &'static [(&'static str, &'static str)],
}

/// A layer of one name.
pub const fn same(name: &'static str) -> (&'static str, &'static str) {
    (name, name)
}

impl Names {
    /// Whether a layer of this family is called so in diffusers.
    pub fn has(&self, layer: &str) -> bool {
        self.original(layer).is_some()
    }

    /// The original name of a layer.
    pub fn original(&self, layer: &str) -> Option<String> {
        self.layers
            .iter()
            .find_map(|(ours, original)| Some(fill(original, number(ours, layer)?)))
    }

    /// The layer of an original name. A layer's own name is taken, too: some programs put nothing but their prefix
    /// before it.
    pub fn layer(&self, original: &str) -> Option<String> {
        let known = self
            .layers
            .iter()
            .find_map(|(ours, theirs)| Some(fill(ours, number(theirs, original)?)));
        known.or_else(|| self.has(original).then(|| original.to_string()))
    }

    /// The layer of a name that was written with `_` in place of `.`, of either kind.
    pub fn layer_of_flat(&self, flat: &str) -> Option<String> {
        self.layers.iter().find_map(|(ours, original)| {
            let found = number(&flatten(original), flat).or_else(|| number(&flatten(ours), flat))?;
            Some(fill(ours, found))
        })
    }
}

/// Those of `families` in which `knows` finds all `names`; if there is none, the one in which it finds the most.
pub fn of<'a>(
    families: &[&'static Names],
    names: impl Iterator<Item = &'a str> + Clone,
    knows: impl Fn(&Names, &str) -> bool,
) -> Vec<&'static Names> {
    let total = names.clone().count();
    let count = |family: &Names| names.clone().filter(|name| knows(family, name)).count();
    let counted: Vec<(usize, &'static Names)> = families.iter().map(|family| (count(family), *family)).collect();
    let whole = counted.iter().filter(|(known, _)| *known == total && total > 0);
    let whole: Vec<&'static Names> = whole.map(|(_, family)| *family).collect();
    if !whole.is_empty() {
        return whole;
    }
    let most = counted
        .iter()
        .filter(|(known, _)| *known > 0)
        .max_by_key(|(known, _)| *known);
    most.map(|(_, family)| *family).into_iter().collect()
}

/// A name with `_` in place of `.`.
pub fn flatten(name: &str) -> String {
    name.replace('.', "_")
}

/// What stands for `{}` in a name of this pattern: digits, or nothing where the pattern has no `{}`.
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
