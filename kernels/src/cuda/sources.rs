//! The kernels' sources, as this crate was built with them.

/// A file of kernels.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Its name, for messages.
    pub file: &'static str,
    text: &'static str,
}

/// What comes before each.
const COMMON: &str = include_str!("../common.cuh");

macro_rules! sources {
    ($($name:ident = $file:literal,)*) => {
        $(pub(crate) const $name: Source = Source { file: $file, text: include_str!(concat!("../", $file)) };)*
        /// All of them.
        pub const ALL: &[Source] = &[$($name),*];
    };
}

sources! {
    ACTIVATION = "activation.cu",
    ATTENTION = "attention.cu",
    BFLOAT16 = "bfloat16.cu",
    BLOCK_SOLVE = "block_solve.cu",
    CLIP = "clip.cu",
    DIVERGENCE = "divergence.cu",
    ELEMENTWISE = "elementwise.cu",
    FACTOR = "factor.cu",
    GRAM = "gram.cu",
    GRID = "grid.cu",
    LOG_PROBABILITY = "log_probability.cu",
    MOMENTS = "moments.cu",
    NORM = "norm.cu",
    PACK = "pack.cu",
    ROPE = "rope.cu",
    STORED = "stored.cu",
}

impl Source {
    /// What the compiler gets: the common part, then the file, with lines counted from the file's own start.
    pub fn text(&self) -> String {
        format!("#line 1 \"common.cuh\"\n{COMMON}\n#line 1 \"{}\"\n{}", self.file, self.text)
    }

    /// A source that this crate doesn't have, for tests of the compiler.
    pub const fn new(file: &'static str, text: &'static str) -> Self {
        Self { file, text }
    }
}
