//! The command line of `evaluate`, which is also its documentation.

use clap::{Args, Parser, Subcommand, ValueEnum, builder::TypedValueParser as _, error::ErrorKind};
use console::generated::Kind;
use evaluate::{
    Protocol,
    protocol::{Changes, PROTOCOLS, TextHandling},
    score::DEFAULT_MEMORY,
};
use kernels::Compute;
use std::path::PathBuf;

/// Measure a language model, and what quantization did to it: perplexity, divergence, tasks.
///
/// A checkpoint in any format that Caliper reads is run over a text under a named protocol, one decoder layer in memory
/// at a time. With `--baseline` a second model is run over the same windows, and the ratio of the two perplexities is
/// given with an interval and with what is to be expected of that kind of quantization.
///
/// Perplexities are comparable only between runs with the same protocol, text and tokenizer; bits per byte also between
/// tokenizers. `evaluate protocols` explains the protocols.
///
/// With `--tasks` it answers questions of benchmarks instead, or as well; `evaluate tasks` lists them.
#[derive(Debug, Parser)]
#[command(
    name = "evaluate",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    max_term_width = 100,
    after_help = AFTER_HELP
)]
pub(crate) struct Arguments {
    /// What else there is to do.
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    /// What to measure.
    #[command(flatten)]
    pub(crate) measure: Option<Measure>,
}

const AFTER_HELP: &str = "\
Examples:
  evaluate demo
  evaluate OUT --baseline MODEL --perplexity wiki.test.raw
  evaluate OUT --baseline MODEL --perplexity wiki.test.raw --divergence
  evaluate OUT --baseline MODEL --perplexity wiki.test.raw --json --limit-ratio 1.10
  evaluate MODEL --perplexity wiki.test.raw --json=base.json
  evaluate OUT --baseline base.json --perplexity wiki.test.raw
  evaluate OUT --baseline MODEL --tasks arc_easy,hellaswag --data FOLDER --limit 200
  evaluate compare RECORDS/baseline RECORDS --show-flips
  evaluate org/name --perplexity text.jsonl --field body --protocol hf-sliding --stride 256

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but a ratio is above --limit-ratio,
130 interrupted.";

/// What there is to do besides measuring.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the protocols with their rules and formulas
    Protocols,
    /// Show what this machine is and how fast the numerical loops are on it
    ///
    /// Prints processor, memory, the instructions chosen, and the speed of a float32 product in 10⁹ operations per
    /// second, timed for about a second.
    Doctor {
        /// Print one JSON object instead of the table
        #[arg(long)]
        json: bool,
    },
    /// List the tasks: size, metrics, whose prompt, and where their data is looked for
    Tasks {
        /// Where data is looked for; may be given several times [default: $CALIPER_DATA, else `data`]
        #[arg(long, value_name = "FOLDER")]
        data: Vec<PathBuf>,
    },
    /// Show an item of a task: the exact prompt, its tokens and how it is scored
    Show(Show),
    /// Compare runs from their records alone: differences with intervals, tests, and what flipped
    Compare(Compare),
    /// Write the man page, the reference page or shell completions to stdout
    #[command(hide = true)]
    Generate {
        /// What to write
        kind: Kind,
    },
}

/// What to show.
#[derive(Args, Debug)]
pub(crate) struct Show {
    /// The task: a name of `evaluate tasks`, or a file of your own ending in `.toml`
    #[arg(value_name = "TASK")]
    pub(crate) task: String,

    /// The model whose tokens are shown; without one, texts only
    #[arg(value_name = "MODEL")]
    pub(crate) model: Option<String>,

    /// Which item, counted from 0 in the order of the data
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) item: usize,

    /// Solved examples before the question [default: the task's]
    #[arg(long, value_name = "K")]
    pub(crate) shots: Option<usize>,

    /// Where data is looked for; may be given several times [default: $CALIPER_DATA, else `data`]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) data: Vec<PathBuf>,
}

/// What to compare.
#[derive(Args, Debug)]
pub(crate) struct Compare {
    /// Records of the run to compare with: a folder that `--records` wrote, or a file of it
    #[arg(value_name = "BASELINE")]
    pub(crate) baseline: String,

    /// Records of the runs to compare, each with the first
    #[arg(value_name = "RUN", required = true)]
    pub(crate) models: Vec<String>,

    /// List every item whose correctness changed, with what either picked
    #[arg(long)]
    pub(crate) show_flips: bool,

    /// Seed of the bootstrap that intervals come from
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,

    /// Give everything as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// The options of a measurement.
#[derive(Args, Debug)]
pub(crate) struct Measure {
    /// The checkpoint to measure: a Hugging Face folder, a GGUF file, `org/name[@revision]` on the hub, or `demo`
    ///
    /// Quantized checkpoints are dequantized layer by layer, so the figures are those of the stored integers and scales,
    /// whatever kernels a runtime would use.
    #[arg(value_name = "MODEL")]
    pub(crate) model: String,

    /// The checkpoint to compare with, usually the model before quantization; or the file of its `--json=FILE`
    ///
    /// Adds the ratio of the perplexities, the difference of their logarithms with a paired interval, and a verdict. It
    /// must tokenize the text exactly as MODEL does. Takes as long again as MODEL; a result file takes no time, and must
    /// come from the same text, protocol and number of tokens. `--divergence` and `--tasks` need the model itself.
    #[arg(long, value_name = "MODEL")]
    pub(crate) baseline: Option<String>,

    /// Measure how far the model's next-token distributions are from the baseline's as well
    ///
    /// Mean and percentiles of the Kullback-Leibler divergence, how often both prefer the same token, and what became of
    /// the probability of the actual one. Both models run side by side over the same windows, so the baseline must be a
    /// model, not a result file. Takes the time of the two runs and a little more.
    #[arg(long, requires = "baseline")]
    pub(crate) divergence: bool,

    /// The text to measure on; may be given several times
    ///
    /// A plain text, JSON lines, CSV or Parquet file, a folder or a glob of them; `demo:prose-heldout` or
    /// `demo:code-heldout`, which are embedded; or `hub:org/name/path/to/file[@revision]`, a data set's file on the hub.
    /// WikiText-2's test split is `hub:Salesforce/wikitext/wikitext-2-raw-v1/test-00000-of-00001.parquet`, that of
    /// WikiText-103 the same with `103` for `2`. Where the model or the baseline is `demo`, the default is both embedded
    /// texts, read as they are; for others there is none.
    #[arg(long, value_name = "TEXT")]
    pub(crate) perplexity: Vec<String>,

    /// The column that holds the text in JSON lines, CSV and Parquet [default: `text`, else `content`]
    #[arg(long, value_name = "NAME")]
    pub(crate) field: Option<String>,

    /// How perplexity is computed; `evaluate protocols` explains the names
    ///
    /// The protocol moves a perplexity by more than most quantization does: name it beside every figure. The default is
    /// what papers on weight quantization report.
    #[arg(long, value_name = "NAME", default_value = PROTOCOLS[0].name, value_parser = protocol)]
    pub(crate) protocol: &'static Protocol,

    /// Use only the first N tokens of each text
    ///
    /// For a quick look: perplexity depends strongly on which part of a text is read. `lm-eval-wikitext` takes as many
    /// whole pages as N has room for. The default is the whole text.
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<usize>,

    /// Tokens in a window, for protocols that leave it open
    ///
    /// `hf-sliding` and `hf-disjoint` (default 1024), `gptq-ctx` and `lm-eval-wikitext` (default: the model's longest
    /// sequence). Longer windows give lower perplexity. Windows longer than the model's longest sequence are cut to it.
    #[arg(long, value_name = "TOKENS")]
    pub(crate) window: Option<usize>,

    /// Tokens from the start of one window to the next, for `hf-sliding` [default: 512]
    ///
    /// Smaller strides give every target more context and cost more: the model reads the text window/stride times.
    #[arg(long, value_name = "TOKENS")]
    pub(crate) stride: Option<usize>,

    /// Put lines together otherwise than the protocol does
    ///
    /// Changes the tokens at every line's end, and the perplexity by a few tenths of a per cent. Shown beside the
    /// protocol's name.
    #[arg(long, value_name = "HOW")]
    pub(crate) text: Option<Text>,

    /// Run these tasks, separated by commas: names of `evaluate tasks`, or files of your own ending in `.toml`
    ///
    /// Multiple choice by log-likelihood. With `--baseline` both models answer the same items, and the difference comes with
    /// a paired interval, McNemar's exact test and the number of items that flipped either way.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) tasks: Vec<String>,

    /// Where the tasks' data is looked for; may be given several times [default: $CALIPER_DATA, else `data`]
    ///
    /// `evaluate tasks` shows the names that are looked for in it. Nothing is downloaded.
    #[arg(long, value_name = "FOLDER", requires = "tasks")]
    pub(crate) data: Vec<PathBuf>,

    /// Draw N items of each task at random instead of taking all
    ///
    /// The same seed draws the same items for every model.
    #[arg(long, value_name = "N", requires = "tasks", value_parser = clap::value_parser!(u64).range(1..).map(|n| n as usize))]
    pub(crate) limit: Option<usize>,

    /// Solved examples before each question [default: the task's]
    #[arg(long, value_name = "K", requires = "tasks")]
    pub(crate) shots: Option<usize>,

    /// Run programs that the model writes (humaneval, mbpp), in a sandbox
    ///
    /// Needs bubblewrap and the system's Python. A program sees no network, none of your files and no other process, and has
    /// 10 seconds, 1 GiB of memory and 32 processes.
    #[arg(long, requires = "tasks")]
    pub(crate) allow_code_execution: bool,

    /// Write a record of every item to FOLDER/TASK.jsonl, the baseline's to FOLDER/baseline/TASK.jsonl
    ///
    /// `evaluate compare` works from them.
    #[arg(long, value_name = "FOLDER", requires = "tasks")]
    pub(crate) records: Option<PathBuf>,

    /// Seed of the bootstrap that error bars come from, and of the draw of `--limit`
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,

    /// Threads to use [default: all processors]
    ///
    /// Does not change a result.
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,

    /// Arithmetic of the decoder's dense products
    ///
    /// Changes results a little: compare only runs with the same.
    #[arg(long, value_enum, default_value_t = ComputeName::F32)]
    pub(crate) compute: ComputeName,

    /// Arithmetic of the baseline, to see what another one costs in itself [default: as --compute]
    #[arg(long, value_enum, value_name = "COMPUTE", requires = "baseline")]
    pub(crate) baseline_compute: Option<ComputeName>,

    /// Memory for the hidden states of windows that are scored together, e.g. `512MiB` or `2GiB` [default: 1GiB]
    ///
    /// Weights are brought in once for each such batch of windows: less memory means more reading. Does not change a
    /// result. The weights of one layer or of the head, and what one window per thread needs inside a layer, come on top.
    #[arg(long, value_name = "BYTES", value_parser = console::machine::parse_bytes)]
    pub(crate) memory: Option<u64>,

    /// Give the results as one JSON object, on stdout in place of the tables, or in FILE beside them
    ///
    /// Its top level holds `perplexity`, `standard_error`, `tokens_scored` and, with a baseline, `ratio` of the first
    /// text, the protocol with all its numbers, and the hashes of models and texts; `texts` holds the figures of every
    /// text. FILE must be attached with `=`.
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    #[allow(clippy::option_option)] // absent, on stdout, in a file
    pub(crate) json: Option<Option<PathBuf>>,

    /// Exit with code 3 if the ratio to the baseline is above R on any text
    ///
    /// For checks in scripts. Everything is computed and printed all the same.
    #[arg(long, value_name = "R", requires = "baseline", value_parser = ratio)]
    pub(crate) limit_ratio: Option<f64>,
}

/// Ways to put lines together.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Text {
    /// Lines as rows, blank ones emptied, joined by a blank line, as `"\n\n".join` over WikiText's rows
    Joined,
    /// The file as it is
    Raw,
}

/// Ways to multiply.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ComputeName {
    /// Float32
    F32,
    /// Operands split into two bfloat16 numbers, three products: nearly float32; fast where the processor has AMX
    Bf16x3,
    /// Operands rounded to bfloat16: fast where the processor has AMX or AVX-512 BF16, and the least exact
    Bf16,
}

impl From<ComputeName> for Compute {
    fn from(name: ComputeName) -> Self {
        match name {
            ComputeName::F32 => Self::F32,
            ComputeName::Bf16x3 => Self::Bf16x3,
            ComputeName::Bf16 => Self::Bf16,
        }
    }
}

fn protocol(name: &str) -> Result<&'static Protocol, String> {
    Protocol::named(name).map_err(|error| error.to_string())
}

fn ratio(text: &str) -> Result<f64, String> {
    let ratio: f64 = text.parse().map_err(|_| "a ratio is a number such as 1.10".to_owned())?;
    if ratio.is_finite() && ratio > 0.0 { Ok(ratio) } else { Err("a ratio is a positive number".to_owned()) }
}

impl Measure {
    /// What is changed about the protocol.
    pub(crate) fn changes(&self) -> Changes {
        let embedded = self.texts().iter().all(|text| text.starts_with("demo:"));
        let text = match self.text {
            Some(Text::Joined) => Some(TextHandling::Joined),
            Some(Text::Raw) => Some(TextHandling::Raw),
            // Blank lines between all lines would make the embedded program a text of another kind.
            None => embedded.then_some(TextHandling::Raw),
        };
        Changes { window: self.window, stride: self.stride, text, max_tokens: self.max_tokens }
    }

    /// The texts, with the default of the demo model.
    pub(crate) fn texts(&self) -> Vec<String> {
        if self.perplexity.is_empty()
            && self.tasks.is_empty()
            && (self.model == "demo" || self.baseline.as_deref() == Some("demo"))
        {
            return vec!["demo:prose-heldout".to_owned(), "demo:code-heldout".to_owned()];
        }
        self.perplexity.clone()
    }

    /// Hidden states' budget in bytes.
    pub(crate) fn memory(&self) -> u64 {
        self.memory.unwrap_or(DEFAULT_MEMORY)
    }

    /// Ends the process with a usage error where options don't fit together.
    pub(crate) fn check(&self) {
        if self.texts().is_empty() && self.tasks.is_empty() {
            let what = "there is nothing to measure on: give `--perplexity TEXT` or `--tasks NAME` (only `demo`, as the model or the baseline, brings its own texts)\n";
            usage(ErrorKind::MissingRequiredArgument, what);
        }
        if self.texts().is_empty() && (self.divergence || self.limit_ratio.is_some()) {
            usage(ErrorKind::MissingRequiredArgument, "`--divergence` and `--limit-ratio` need `--perplexity TEXT`\n");
        }
        if self.threads == Some(0) {
            usage(ErrorKind::ValueValidation, "`--threads` must be at least 1\n");
        }
        if let Err(error) = self.changes().check(self.protocol) {
            usage(ErrorKind::ArgumentConflict, format!("{error}\n"));
        }
    }
}

fn usage(kind: ErrorKind, what: impl std::fmt::Display) -> ! {
    clap::Error::raw(kind, what).exit()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_tree_is_sound_and_every_option_is_explained() {
        let command = Arguments::command();
        command.clone().debug_assert();
        for argument in
            command.get_arguments().filter(|argument| !["help", "version"].contains(&argument.get_id().as_str()))
        {
            assert!(argument.get_help().is_some(), "{}", argument.get_id());
            let flag = !argument.get_action().takes_values();
            assert!(flag || argument.get_value_names().is_some(), "{}", argument.get_id());
        }
    }

    #[test]
    fn json_takes_a_file_only_with_an_equals_sign() {
        let parse = |arguments: &[&str]| Arguments::try_parse_from(arguments).unwrap().measure.unwrap();
        let bare = parse(&["evaluate", "--json", "MODEL", "--perplexity", "T"]);
        assert_eq!((bare.model.as_str(), bare.json), ("MODEL", Some(None)));
        let file = parse(&["evaluate", "MODEL", "--json=out.json", "--perplexity", "T"]);
        assert_eq!(file.json, Some(Some(PathBuf::from("out.json"))));
    }

    #[test]
    fn a_limit_needs_a_baseline() {
        assert!(Arguments::try_parse_from(["evaluate", "M", "--perplexity", "T", "--limit-ratio", "1.1"]).is_err());
    }
}
