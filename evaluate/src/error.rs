//! What can go wrong with an evaluation, said so that a person can act on it.

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvaluateError {
    /// The model or the text could not be read.
    #[error(transparent)]
    Model(#[from] model::ModelError),
    /// The device that the model runs on.
    #[error("--device: {0}")]
    Device(#[from] kernels::cuda::CudaError),
    /// No protocol has this name.
    #[error("there is no protocol `{name}`; the names are {names}")]
    UnknownProtocol {
        /// What the user gave.
        name: String,
        /// Every name there is.
        names: String,
    },
    /// An option that the protocol fixes was given.
    #[error("protocol `{protocol}` fixes its {what}, so `{option}` can't change it; protocols that let you: {others}")]
    Fixed {
        /// The protocol.
        protocol: &'static str,
        /// What is fixed, with its value.
        what: String,
        /// The option given.
        option: &'static str,
        /// Protocols that accept the option.
        others: String,
    },
    /// A window or stride that can't be walked.
    #[error("{what}")]
    Geometry {
        /// Both numbers and the rule.
        what: String,
    },
    /// The text reference names nothing.
    #[error("{reference}: {what}")]
    Text {
        /// What the user gave.
        reference: String,
        /// What is wrong and what to do.
        what: String,
    },
    /// The text gives no window to score.
    #[error("{text}: protocol `{protocol}` needs {needed} and there are only {found}; {remedy}")]
    TooShort {
        /// The text.
        text: String,
        /// The protocol.
        protocol: &'static str,
        /// What one window needs.
        needed: String,
        /// What is there.
        found: String,
        /// Options that help.
        remedy: String,
    },
    /// The protocol starts each text with a token that the model doesn't name.
    #[error("{model}: protocol `{protocol}` starts every page with the BOS or EOS token, and the model names neither")]
    NoPrefix {
        /// The model.
        model: String,
        /// The protocol.
        protocol: &'static str,
    },
    /// A model's output is not a number.
    #[error(
        "{model}: the log-likelihood of token {position} of window {window} is {value}: \
         the checkpoint holds numbers that no softmax survives"
    )]
    NotFinite {
        /// The model.
        model: String,
        /// Index of the window.
        window: usize,
        /// Index of the token inside the window.
        position: usize,
        /// NaN or infinite.
        value: f32,
    },
    /// A task, its file or its data can't be used.
    #[error("task {task}: {what}")]
    Task {
        /// The task or its file.
        task: String,
        /// What is wrong and what to do.
        what: String,
    },
    /// Prompts can't be put to the model as asked for.
    #[error("{model}: {what}")]
    Framing {
        /// The model.
        model: String,
        /// What is wrong and what to do.
        what: String,
    },
    /// An item can't be scored.
    #[error("item {item}: {what}")]
    Item {
        /// The item's id.
        item: String,
        /// What is wrong.
        what: String,
    },
    /// Records that can't be read or compared.
    #[error("{file}: {what}")]
    Records {
        /// The file or folder.
        file: String,
        /// What is wrong and what to do.
        what: String,
    },
    /// Distributions over different vocabularies.
    #[error(
        "{model} has {} entries in its vocabulary and {baseline} {}: no divergence is defined between them", sizes[0], sizes[1]
    )]
    Vocabularies {
        /// The model.
        model: String,
        /// The baseline.
        baseline: String,
        /// The model's size and the baseline's.
        sizes: [usize; 2],
    },
    /// A result file that can't serve as the baseline.
    #[error("{file} can't be the baseline: {what}")]
    StoredBaseline {
        /// The file.
        file: String,
        /// What is wrong and what to do.
        what: String,
    },
    /// Generated programs can't be run safely here.
    #[error("generated code is run only in a sandbox, and there is none: {what}")]
    Sandbox {
        /// What is missing and what to do.
        what: String,
    },
    /// Model and baseline cut the text into different tokens.
    #[error(
        "{model} and {baseline} tokenize {text} differently ({difference}): perplexities across tokenizers are not \
         comparable; evaluate each by itself and compare bits per byte"
    )]
    Tokenizers {
        /// The model.
        model: String,
        /// The baseline.
        baseline: String,
        /// The text.
        text: String,
        /// Where they part, with both values.
        difference: String,
    },
    /// A figure or page could not be made.
    #[error(transparent)]
    Page(#[from] console::page::PageError),
    /// The table for other programs could not be made.
    #[error("the results could not be exported: {0}")]
    Export(String),
}
