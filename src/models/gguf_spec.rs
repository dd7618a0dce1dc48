//! GGUF files of a family: what ComfyUI-GGUF and llama.cpp know of it.

/// GGUF files of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GgufSpec {
    /// `general.architecture`.
    pub architecture: &'static str,
    /// Parts of the original paths of layers that stay dense, or their beginnings behind `^`.
    pub dense: &'static [&'static str],
}

impl GgufSpec {
    /// Files of this architecture, with these layers dense.
    pub const fn new(architecture: &'static str, dense: &'static [&'static str]) -> Self {
        Self { architecture, dense }
    }
}
