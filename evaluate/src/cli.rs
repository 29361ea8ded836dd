//! The command line of `evaluate`, which is also its documentation.

use crate::outputs::Exports;
use clap::{Args, Parser, Subcommand, ValueEnum, builder::TypedValueParser as _, error::ErrorKind};
use console::generated::Kind;
use evaluate::{
    Protocol,
    framing::{BosRule, Framing},
    generation::Drawing,
    protocol::{Changes, PROTOCOLS, TextHandling},
    score::DEFAULT_MEMORY,
};
use kernels::{Compute, engine::Choice};
use std::{path::PathBuf, time::Duration};

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
    /// Further files.
    #[command(flatten)]
    pub(crate) exports: Exports,
    /// How prompts of tasks are put to the model. Not inside [`Measure`]: clap can't tell whether a group is there if
    /// another is nested in it.
    #[command(flatten)]
    pub(crate) put: HowPut,
}

const AFTER_HELP: &str = "\
Examples:
  evaluate demo
  evaluate OUT --baseline MODEL --perplexity wiki.test.raw
  evaluate OUT --baseline MODEL --perplexity wiki.test.raw --divergence
  evaluate OUT --baseline MODEL --perplexity wiki.test.raw --json --limit-ratio 1.10
  evaluate MODEL --perplexity wiki.test.raw --json=base.json
  evaluate OUT --baseline base.json --perplexity wiki.test.raw
  evaluate MODEL --perplexity wiki.test.raw --save-logits base.logits
  evaluate OUT --baseline base.logits --perplexity wiki.test.raw
  evaluate OUT --baseline MODEL --tasks arc_easy,hellaswag --data FOLDER --limit 200
  evaluate OUT --baseline MODEL --capabilities --budget 20m --data FOLDER --html report.html
  evaluate MODEL --tasks ifeval --chat-template on --data FOLDER --limit 50
  evaluate MODEL --tasks humaneval --samples-per-task 10 --temperature 0.8 --allow-code-execution
  evaluate compare RECORDS/baseline RECORDS --show-flips
  evaluate compare RECORDS/baseline RECORDS --html comparison.html
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

/// How prompts are put to the model.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct HowPut {
    /// Whether prompts go through the model's chat template [default: off]
    ///
    /// The whole prompt, with description and solved examples, becomes one user message, or with `turns` a conversation in which
    /// they went before; choices follow without a space before them. Models that were trained to converse follow instructions (ifeval) only so.
    #[arg(long, value_name = "HOW")]
    pub(crate) chat_template: Option<Template>,

    /// A system prompt: the system message where the chat template is on, else text before the prompt [default: none]
    ///
    /// Many templates put one of their own where none is given; `evaluate show` prints what comes out.
    #[arg(long, value_name = "TEXT")]
    pub(crate) system_prompt: Option<String>,

    /// Whether a prompt begins with the BOS token [default: tokenizer]
    #[arg(long, value_name = "RULE")]
    pub(crate) bos: Option<Bos>,
}

/// What becomes of the chat template.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Template {
    /// Applied, the prompt as one message
    On,
    /// Applied, the description as (part of) the system message, each solved example as a question and an answer
    Turns,
    /// Not applied
    Off,
}

/// When a prompt begins with BOS.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Bos {
    /// As the tokenizer does by itself, but never twice
    Tokenizer,
    /// Always
    Always,
    /// Only where the chat template puts it
    Never,
}

impl HowPut {
    /// The same for the library.
    pub(crate) fn framing(&self) -> Framing {
        Framing {
            chat_template: self.chat_template.is_some_and(|template| template != Template::Off),
            turns: self.chat_template == Some(Template::Turns),
            system: self.system_prompt.clone(),
            bos: match self.bos {
                None | Some(Bos::Tokenizer) => BosRule::Tokenizer,
                Some(Bos::Always) => BosRule::Always,
                Some(Bos::Never) => BosRule::Never,
            },
        }
    }

    fn is_given(&self) -> bool {
        self.chat_template.is_some() || self.system_prompt.is_some() || self.bos.is_some()
    }
}

/// What to show.
#[derive(Args, Debug)]
pub(crate) struct Show {
    /// The task: a name of `evaluate tasks`, or a file ending in `.toml` or `.yaml`
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

    /// How prompts are put to the model.
    #[command(flatten)]
    pub(crate) put: HowPut,
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

    /// Further files.
    #[command(flatten)]
    pub(crate) exports: Exports,
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

    /// The checkpoint to compare with, usually the model before quantization; or a file that it left
    ///
    /// Adds the ratio of the perplexities, the difference of their logarithms with a paired interval, and a verdict. It
    /// must tokenize the text exactly as MODEL does. Takes as long again as MODEL; a result file takes no time, and must
    /// come from the same text, protocol and number of tokens. Files are those of `--json=FILE` and of `--save-logits FILE`;
    /// from the latter the divergence is measured as well. `--tasks` needs the model itself.
    #[arg(long, value_name = "MODEL")]
    pub(crate) baseline: Option<String>,

    /// Measure how far the model's next-token distributions are from the baseline's as well
    ///
    /// Mean and percentiles of the Kullback-Leibler divergence, how often both prefer the same token, and what became of
    /// the probability of the actual one. Both models run side by side over the same windows, so the baseline must be a
    /// model, not a result file. Takes the time of the two runs and a little more.
    #[arg(long, requires = "baseline")]
    pub(crate) divergence: bool,

    /// Write MODEL's next-token distributions on the texts to FILE, to be the `--baseline` of later runs
    ///
    /// Of each the likeliest `--logits-top` tokens in float16, and what is left over: 6 bytes a token kept, so 1.5 KiB a target
    /// at the default. A run with `--baseline FILE` gives the divergence, and says what the truncation leaves open.
    #[arg(long, value_name = "FILE", conflicts_with = "baseline")]
    pub(crate) save_logits: Option<PathBuf>,

    /// Tokens that `--save-logits` keeps of each distribution [default: 256]
    #[arg(long, value_name = "K", requires = "save_logits", value_parser = clap::value_parser!(u64).range(1..).map(|k| k as usize))]
    pub(crate) logits_top: Option<usize>,

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

    /// Run these tasks, separated by commas: names of `evaluate tasks`, files of your own in TOML, or YAML for lm-evaluation-harness
    ///
    /// Multiple choice by log-likelihood, and written answers. With `--baseline` both models answer the same items, and the difference comes with
    /// a paired interval, McNemar's exact test and the number of items that flipped either way.
    #[arg(long, value_name = "NAME", value_delimiter = ',', group = "asked")]
    pub(crate) tasks: Vec<String>,

    /// Run a balanced subset of tasks for as long as `--budget` says, and name the capability that lost most
    ///
    /// Knowledge, Chinese, reasoning, mathematics, code, instruction following and text prediction get equal shares of the
    /// time, as far as their data is found; how many items that makes is found from the speed of the first. Code needs
    /// `--allow-code-execution`. Without `--baseline` nothing can be said of losses.
    #[arg(long, conflicts_with_all = ["tasks", "limit"], group = "asked")]
    pub(crate) capabilities: bool,

    /// Time for the tasks of `--capabilities`, both models together: `90s`, `20m` or `2h` [default: 20m]
    #[arg(long, value_name = "TIME", requires = "capabilities", value_parser = duration)]
    pub(crate) budget: Option<Duration>,

    /// Where the tasks' data is looked for; may be given several times [default: $CALIPER_DATA, else `data`]
    ///
    /// `evaluate tasks` shows the names that are looked for in it. `hub:org/name[@revision]` is a data set's repository on
    /// the hub, looked through like a folder called `name`: its matching files are downloaded into the cache, and nothing
    /// else ever is.
    #[arg(long, value_name = "FOLDER", requires = "asked")]
    pub(crate) data: Vec<PathBuf>,

    /// Draw N items of each task at random instead of taking all
    ///
    /// The same seed draws the same items for every model.
    #[arg(long, value_name = "N", requires = "asked", value_parser = clap::value_parser!(u64).range(1..).map(|n| n as usize))]
    pub(crate) limit: Option<usize>,

    /// Solved examples before each question [default: the task's]
    #[arg(long, value_name = "K", requires = "asked")]
    pub(crate) shots: Option<usize>,

    /// How prompts are put to the model.
    #[arg(skip)]
    pub(crate) put: HowPut,

    /// Draw the tokens of written answers with this temperature instead of taking the likeliest [default: 0]
    ///
    /// Drawn with `--seed`: the same seed gives the same answers whatever the threads and the other items.
    #[arg(long, value_name = "T", requires = "tasks", value_parser = temperature)]
    pub(crate) temperature: Option<f64>,

    /// Draw only from the likeliest tokens that have this probability together [default: 1]
    #[arg(long, value_name = "P", requires = "temperature", value_parser = share)]
    pub(crate) top_p: Option<f64>,

    /// Programs to write to each problem of tasks that test them; adds pass@k for k up to N [default: 1]
    ///
    /// For N above 1 a temperature is needed; 0.2 or 0.8 with `--top-p 0.95` are usual.
    #[arg(long, value_name = "N", requires = "tasks", value_parser = clap::value_parser!(u64).range(1..=1000).map(|n| n as usize))]
    pub(crate) samples_per_task: Option<usize>,

    /// Run programs that the model writes (humaneval, mbpp), in a sandbox
    ///
    /// Needs bubblewrap and the system's Python. A program sees no network, none of your files and no other process, and has
    /// 10 seconds, 1 GiB of memory and 32 processes.
    #[arg(long, requires = "asked")]
    pub(crate) allow_code_execution: bool,

    /// Write a record of every item to FOLDER/TASK.jsonl, the baseline's to FOLDER/baseline/TASK.jsonl
    ///
    /// `evaluate compare` works from them.
    #[arg(long, value_name = "FOLDER", requires = "asked")]
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

    /// Where texts are scored: `auto`, `cpu`, `cuda` or `cuda:N`
    ///
    /// On a CUDA device the models run over the windows, and perplexity and divergence are summed there; results differ from
    /// the CPU's by rounding. Tasks and stored log-probabilities (`--save-logits`, and a baseline from it) are read off on
    /// the CPU. `auto` takes the first device that can be used, else the CPU. What has run where: docs/cuda.md.
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: Choice,

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

    /// Further files: given beside these options, as clap can't tell whether optional options with others inside are there.
    #[arg(skip)]
    pub(crate) exports: Exports,

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

fn temperature(text: &str) -> Result<f64, String> {
    let temperature: f64 = text.parse().map_err(|_| "a temperature is a number such as 0.8".to_owned())?;
    let sound = temperature == 0.0 || (1e-3..=100.0).contains(&temperature);
    if sound { Ok(temperature) } else { Err("a temperature is 0, or from 0.001 to 100".to_owned()) }
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "a probability is a number such as 0.95".to_owned())?;
    if share > 0.0 && share <= 1.0 { Ok(share) } else { Err("a probability is above 0 and at most 1".to_owned()) }
}

fn ratio(text: &str) -> Result<f64, String> {
    let ratio: f64 = text.parse().map_err(|_| "a ratio is a number such as 1.10".to_owned())?;
    if ratio.is_finite() && ratio > 0.0 { Ok(ratio) } else { Err("a ratio is a positive number".to_owned()) }
}

/// `90s`, `20m`, `2h`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "a time is a number with `s`, `m` or `h`, such as 20m".to_owned();
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1.0,
        'm' => 60.0,
        'h' => 3600.0,
        _ => return Err(wrong()),
    };
    let number: f64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    let sound = number.is_finite() && number > 0.0;
    if sound { Duration::try_from_secs_f64(seconds * number).map_err(|_| wrong()) } else { Err(wrong()) }
}

impl Measure {
    /// Whether there are tasks to run.
    pub(crate) fn asks_tasks(&self) -> bool {
        self.capabilities || !self.tasks.is_empty()
    }

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
            && !self.asks_tasks()
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

    /// How answers are drawn; nothing where the likeliest is taken.
    pub(crate) fn drawing(&self) -> Option<Drawing> {
        let temperature = self.temperature.filter(|temperature| *temperature > 0.0)?;
        let (samples, top_p) = (self.samples_per_task.unwrap_or(1), self.top_p.unwrap_or(1.0));
        Some(Drawing { samples, temperature, top_p, seed: self.seed })
    }

    /// Ends the process with a usage error where options don't fit together.
    pub(crate) fn check(&self) {
        if self.texts().is_empty() && !self.asks_tasks() {
            let what = "there is nothing to measure on: give `--perplexity TEXT` or `--tasks NAME` (only `demo`, as the model or the baseline, brings its own texts)\n";
            usage(ErrorKind::MissingRequiredArgument, what);
        }
        if self.texts().is_empty() && self.save_logits.is_some() {
            usage(ErrorKind::MissingRequiredArgument, "`--save-logits` needs `--perplexity TEXT`\n");
        }
        if self.texts().is_empty() && (self.divergence || self.limit_ratio.is_some()) {
            usage(ErrorKind::MissingRequiredArgument, "`--divergence` and `--limit-ratio` need `--perplexity TEXT`\n");
        }
        if !self.asks_tasks() && self.exports.lm_eval.is_some() {
            usage(ErrorKind::MissingRequiredArgument, "`--lm-eval` needs `--tasks NAME` or `--capabilities`\n");
        }
        if self.put.is_given() && !self.asks_tasks() {
            let what = "`--chat-template`, `--system-prompt` and `--bos` are about tasks: give `--tasks NAME` or `--capabilities`\n";
            usage(ErrorKind::MissingRequiredArgument, what);
        }
        if self.samples_per_task.is_some_and(|samples| samples > 1) && self.drawing().is_none() {
            let what = "`--samples-per-task` above 1 needs `--temperature`: greedy answers are all the same\n";
            usage(ErrorKind::MissingRequiredArgument, what);
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
