//! The command line of `study`.

use clap::{Args, Parser, Subcommand, ValueEnum};
use console::generated::Kind;
use std::path::PathBuf;
use study::{Store, init::Changes};

/// Answer a question about quantization with evidence
///
/// A study file states a question and the grid that answers it: models, methods, bits, group sizes, calibration texts,
/// evaluation texts. `study run` computes every cell of the grid once, whatever happens in between; `study report` says
/// what came of it, every number with its interval.
#[derive(Parser)]
#[command(name = "study", version, max_term_width = 100)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed (also where a single cell failed), 2 wrong usage, 130 interrupted."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What `study init` writes.
#[derive(Args)]
pub(crate) struct InitOptions {
    /// The file to write
    #[arg(value_name = "FILE", default_value = "study.toml")]
    pub(crate) file: PathBuf,
    /// Which study to start from [default: calibration-alignment]
    #[arg(long, value_enum, value_name = "NAME")]
    pub(crate) template: Option<Template>,
    /// The models: a Hugging Face folder, a GGUF file, `org/name` on the hub, or `demo`
    #[arg(long, value_name = "MODEL", value_delimiter = ',')]
    model: Vec<String>,
    /// Methods, separated by commas; several are crossed, as with the options below
    #[arg(long, value_name = "METHODS", value_delimiter = ',')]
    method: Vec<String>,
    /// Bits per weight
    #[arg(long, value_name = "BITS", value_delimiter = ',')]
    bits: Vec<u32>,
    /// Columns that share a scale, or -1 for a whole row
    #[arg(long, value_name = "COLUMNS", value_delimiter = ',', allow_hyphen_values = true)]
    group_size: Vec<i64>,
    /// Orders of columns
    #[arg(long, value_name = "ORDERS", value_delimiter = ',')]
    act_order: Vec<String>,
    /// Seeds: as many draws of each calibration set
    #[arg(long, value_name = "SEEDS", value_delimiter = ',')]
    seed: Vec<u64>,
    /// A calibration set, in place of the template's; may be given several times, a name again for a mixture
    ///
    /// As `quantize --calibration` takes it: `law=texts/law.txt`, `code=hub:org/name/path`, `both=texts/law.txt=2`.
    #[arg(long, value_name = "NAME=SOURCE", value_parser = named)]
    calibration: Vec<(String, String)>,
    /// A text to evaluate on, in place of the template's; may be given several times
    ///
    /// One that is called like a calibration set is of its domain.
    #[arg(long, value_name = "NAME=TEXT", value_parser = named)]
    evaluation: Vec<(String, String)>,
}

impl InitOptions {
    /// What is to differ from the template.
    pub(crate) fn changes(&self) -> Changes {
        Changes {
            settings: vec![
                ("model", self.model.clone()),
                ("method", self.method.clone()),
                ("bits", self.bits.iter().map(ToString::to_string).collect()),
                ("group-size", self.group_size.iter().map(ToString::to_string).collect()),
                ("act-order", self.act_order.clone()),
                ("seed", self.seed.iter().map(ToString::to_string).collect()),
            ],
            calibration: self.calibration.clone(),
            evaluation: self.evaluation.clone(),
        }
    }
}

/// `law=law.txt` as its two halves.
pub(crate) fn named(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, rest)) if !name.is_empty() && !rest.is_empty() => Ok((name.to_owned(), rest.to_owned())),
        _ => Err("a name and a text are written NAME=TEXT, such as law=texts/law.txt".to_owned()),
    }
}

/// What can be done.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Write a commented study file to start from
    ///
    /// From a template, with the models, settings and texts that are given; on a terminal and without any of them it asks.
    Init(InitOptions),
    /// Validate a study, count its cells, estimate what it takes
    ///
    /// Opens every model and text, cuts every calibration set and evaluation, holds every combination of settings against
    /// its model, and measures how many of each evaluation text's 13-grams of words are also in each calibration text.
    /// All that is wrong is said at once.
    Check {
        #[command(flatten)]
        study: Where,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Compute the cells that are not there yet
    ///
    /// Each cell is kept as soon as it is finished; killed at any moment and started again, nothing finished is computed
    /// twice. A cell that fails keeps its error and the others go on. A changed study file computes what is new in it.
    Run(RunOptions),
    /// Compute the cells that failed
    Retry(RunOptions),
    /// Capture a model's statistics over a text once, for any number of `study solve`
    ///
    /// Walks the original model over the calibration windows and keeps what solvers need of every layer's input, in
    /// float32, in a folder. Killed and started again, it goes on after the last finished block.
    Capture(CaptureOptions),
    /// Solve a checkpoint from captured statistics, without running the model
    ///
    /// Any bits, group size, order and damping from the same statistics; several folders are mixed by their weights. Layers
    /// don't see each other's errors, as with `quantize --inputs original`.
    Solve(SolveOptions),
    /// Show how alike the statistics of two texts, or of two halves of one, are
    ///
    /// For each stage of a block: the similarity of the Hessians, and the correlation of the inputs' mean squares. Capture the
    /// halves of a text as two sources, or two seeds of it, with `study capture`.
    Agreement {
        /// The model that the statistics are of
        #[arg(value_name = "MODEL")]
        model: String,
        /// A folder of `study capture`
        #[arg(value_name = "FIRST")]
        first: PathBuf,
        /// Another
        #[arg(value_name = "SECOND")]
        second: PathBuf,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Have a model write text to calibrate it on
    ///
    /// Writes JSON lines, a text in each, to be named as a calibration source. The first token of a text is drawn evenly from
    /// the vocabulary, the others as the model would have them.
    Sample(SampleOptions),
    /// Count cells done, open and failed, and say why
    Status {
        #[command(flatten)]
        study: Where,
    },
    /// Say what came of it, as one HTML page and as Markdown with figures
    ///
    /// The page needs nothing else: no network, no file beside it. Made from the results alone, so that neither models nor
    /// texts need be there. The answer is also printed.
    Report {
        #[command(flatten)]
        study: Where,
        /// Folder for report.html, report.md and figures [default: the results folder]
        #[arg(long, value_name = "FOLDER")]
        out: Option<PathBuf>,
        /// Another study to put beside this one: its answer, and the configurations that both have; may be given again
        #[arg(long, value_name = "STUDY")]
        beside: Vec<PathBuf>,
        /// Recommend the best of what fits into so much memory, such as 80MiB
        #[arg(long, value_name = "SIZE", value_parser = console::machine::parse_bytes)]
        within: Option<u64>,
    },
    /// Write the measured cells as one table to stdout
    ///
    /// A row for each cell, the same columns in every format, so that pandas and polars read it in one line. The blocks
    /// behind each perplexity are in the results folder's own lines.
    Export {
        #[command(flatten)]
        study: Where,
        /// The format
        #[arg(long, value_enum, value_name = "NAME", default_value_t = Format::Csv)]
        format: Format,
        /// File to write to instead of stdout
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Suggest bits for each part of the model under a byte budget
    ///
    /// From cells that quantize one part alone (`part = "only each layer stage"`, several `bits`), by their divergence. What
    /// runtimes fuse stays alike. It rests on divergences adding up: measure what it suggests before you believe it.
    Suggest {
        #[command(flatten)]
        study: Where,
        /// Most bytes of the checkpoint's tensors, such as 60MiB
        #[arg(long, value_name = "SIZE")]
        bytes: String,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Run a small study on the embedded model, in about a minute, and report it
    Demo {
        /// Folder for the study, its results and its report
        #[arg(long, value_name = "FOLDER", default_value = "study-demo")]
        out: PathBuf,
        /// Threads [default: all cores]; the results do not depend on it
        #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..))]
        threads: Option<u16>,
    },
    /// Show what this machine is and how fast the numerical loops are on it
    ///
    /// Prints processor, memory, the instructions chosen, and the speed of a float32 product in 10⁹ operations per
    /// second, timed for about a second.
    Doctor {
        /// Print one JSON object instead of the table
        #[arg(long)]
        json: bool,
    },
    /// Print the JSON schema of study files, for editors
    Schema,
    /// Write the man page, the reference page or shell completions to stdout
    #[command(hide = true)]
    Generate {
        /// What to write
        kind: Kind,
    },
}

/// Formats of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Comma-separated, with a heading.
    Csv,
    /// One JSON object a line.
    Jsonl,
    /// A Parquet file.
    Parquet,
}

/// A study and its results.
#[derive(Args)]
pub(crate) struct Where {
    /// The study file; its paths are meant from its own folder on
    #[arg(value_name = "STUDY", default_value = "study.toml")]
    pub(crate) study: PathBuf,
    /// Folder of the results [default: STUDY with the ending `.results`]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) results: Option<PathBuf>,
}

/// How cells are run.
#[derive(Args)]
pub(crate) struct RunOptions {
    #[command(flatten)]
    pub(crate) study: Where,
    /// Threads [default: all cores]; the results do not depend on it
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) threads: Option<u16>,
    /// Run only part I of N of the configurations, such as 2/4: for several machines on one results folder
    #[arg(long, value_name = "I/N", value_parser = part, conflicts_with = "on")]
    pub(crate) part: Option<(usize, usize)>,
    /// Where: in processes on this machine, or in an array of Slurm jobs [default: in this process]
    #[arg(long, value_enum, value_name = "WHERE")]
    pub(crate) on: Option<On>,
    /// Processes, or Slurm jobs, at once [default: 2 processes; no limit under Slurm]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..), requires = "on")]
    pub(crate) jobs: Option<u16>,
    /// Configurations in each chunk [default: even chunks for the processes; 1 under Slurm]; those that share statistics
    /// are never torn apart
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..), requires = "on")]
    pub(crate) chunk_size: Option<u16>,
    /// Slurm: partition
    #[arg(long, value_name = "NAME", requires = "on")]
    pub(crate) partition: Option<String>,
    /// Slurm: account
    #[arg(long, value_name = "NAME", requires = "on")]
    pub(crate) account: Option<String>,
    /// Slurm: time limit of a job, such as 2:00:00
    #[arg(long, value_name = "TIME", requires = "on")]
    pub(crate) time_limit: Option<String>,
    /// Slurm: memory of a job, such as 16G
    #[arg(long, value_name = "SIZE", requires = "on")]
    pub(crate) memory: Option<String>,
    /// Slurm: a further option of sbatch, as it is; may be given again
    #[arg(long, value_name = "OPTION", requires = "on", allow_hyphen_values = true)]
    pub(crate) sbatch: Vec<String>,
    /// Slurm: stay until all jobs are through
    #[arg(long, requires = "on")]
    pub(crate) wait: bool,
    /// Run only these configurations: what workers are started with
    #[arg(long, hide = true, value_name = "FILE:INDEX")]
    pub(crate) chunk: Option<String>,
}

/// Where cells are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum On {
    /// Processes on this machine.
    Local,
    /// An array of Slurm jobs.
    Slurm,
}

/// What `study capture` takes.
#[derive(Args)]
pub(crate) struct CaptureOptions {
    /// The model: a folder, a GGUF file, `demo`, or org/name[@revision] on the hub
    #[arg(value_name = "MODEL")]
    pub(crate) model: String,
    /// Calibration text: FILE[=WEIGHT], `demo:prose`, `hub:org/name/path`, `random-tokens`; may be given again
    #[arg(long, value_name = "SOURCE", required = true)]
    pub(crate) calibration: Vec<String>,
    /// Windows cut from the text
    #[arg(long, value_name = "COUNT", default_value_t = 128)]
    pub(crate) samples: usize,
    /// Tokens per window
    #[arg(long, value_name = "TOKENS", default_value_t = 2048)]
    pub(crate) sequence_length: usize,
    /// Seed of the places where windows are cut
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Folder for the statistics
    #[arg(long, value_name = "FOLDER")]
    pub(crate) out: PathBuf,
    /// Threads [default: all cores]; the results do not depend on it
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) threads: Option<u16>,
}

/// What `study solve` takes.
#[derive(Args)]
pub(crate) struct SolveOptions {
    /// The model that the statistics are of
    #[arg(value_name = "MODEL")]
    pub(crate) model: String,
    /// A folder of `study capture`, with its share in a mixture; may be given again
    #[arg(long, value_name = "FOLDER[=WEIGHT]", required = true, value_parser = study::solve::weighted)]
    pub(crate) statistics: Vec<(PathBuf, f64)>,
    /// `gptq`, `awq` or `awq+gptq`
    #[arg(long, value_name = "NAME", default_value = "gptq")]
    pub(crate) method: String,
    /// Bits per weight
    #[arg(long, value_name = "COUNT", default_value_t = 4)]
    pub(crate) bits: u32,
    /// Input columns that share a scale; -1 for one group per row
    #[arg(long, value_name = "COLUMNS", default_value_t = 128, allow_hyphen_values = true)]
    pub(crate) group_size: i64,
    /// Grids with a zero-point
    #[arg(long)]
    pub(crate) asymmetric: bool,
    /// `none`, `desc`, `static` or `group`
    #[arg(long, value_name = "ORDER", default_value = "static")]
    pub(crate) act_order: String,
    /// `minmax` or `mse`
    #[arg(long, value_name = "HOW", default_value = "minmax")]
    pub(crate) scale_search: String,
    /// Added to the Hessian's diagonal, as a share of its mean
    #[arg(long, value_name = "SHARE", default_value_t = 0.01)]
    pub(crate) damping: f64,
    /// The format to write
    #[arg(long, value_name = "NAME", default_value = "gptq")]
    pub(crate) format: model::format::Target,
    /// The checkpoint to write
    #[arg(long, value_name = "OUT")]
    pub(crate) out: PathBuf,
    /// Threads [default: all cores]; the results do not depend on it
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) threads: Option<u16>,
}

/// What `study sample` takes.
#[derive(Args)]
pub(crate) struct SampleOptions {
    /// The model: a folder, a GGUF file, `demo`, or org/name[@revision] on the hub
    #[arg(value_name = "MODEL")]
    pub(crate) model: String,
    /// Texts to write
    #[arg(long, value_name = "COUNT", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) texts: u32,
    /// The most tokens of a text
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) length: u32,
    /// What logits are divided by: 1 is as the model has it, less is likelier text
    #[arg(long, value_name = "NUMBER", default_value_t = 1.0, value_parser = positive)]
    pub(crate) temperature: f64,
    /// Seed of every draw
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub(crate) seed: u64,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Threads [default: all cores]; the results do not depend on it
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) threads: Option<u16>,
}

fn positive(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|number: &f64| *number > 0.0 && number.is_finite())
        .ok_or("give a number above 0".to_owned())
}

impl RunOptions {
    /// In this process, all of it.
    pub(crate) fn here(study: Where, threads: Option<u16>) -> Self {
        Self {
            study,
            threads,
            part: None,
            on: None,
            jobs: None,
            chunk_size: None,
            partition: None,
            account: None,
            time_limit: None,
            memory: None,
            sbatch: Vec::new(),
            wait: false,
            chunk: None,
        }
    }
}

/// The study of `study demo`.
pub(crate) const DEMO: &str = include_str!("../examples/demo.toml");

/// The studies that come with the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Template {
    /// Does it matter that calibration and use are of the same domain?
    CalibrationAlignment,
    /// What does a group size buy, and at how many bits on disk?
    GroupSize,
    /// What does the order of columns buy?
    ActOrder,
    /// How much calibration text is enough?
    SampleCount,
    /// Which method, at how many bits?
    Methods,
    /// Which part of the model does the damage?
    Damage,
    /// Which capability suffers most?
    Capability,
    /// Which format is best at equal size?
    Formats,
}

impl Template {
    /// The study file.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::CalibrationAlignment => include_str!("../examples/calibration-alignment.toml"),
            Self::GroupSize => include_str!("../examples/group-size.toml"),
            Self::ActOrder => include_str!("../examples/act-order.toml"),
            Self::SampleCount => include_str!("../examples/sample-count.toml"),
            Self::Methods => include_str!("../examples/methods.toml"),
            Self::Damage => include_str!("../examples/damage.toml"),
            Self::Capability => include_str!("../examples/capability.toml"),
            Self::Formats => include_str!("../examples/formats.toml"),
        }
    }
}

impl Where {
    /// The store of the results.
    pub(crate) fn store(&self) -> Store {
        Store::new(&self.results.clone().unwrap_or_else(|| Store::folder_of(&self.study)))
    }
}

/// `2/4` as (1, 4).
fn part(text: &str) -> Result<(usize, usize), String> {
    let numbers =
        text.split_once('/').and_then(|(part, of)| Some((part.parse::<usize>().ok()?, of.parse::<usize>().ok()?)));
    match numbers {
        Some((part, of)) if 1 <= part && part <= of => Ok((part - 1, of)),
        _ => Err("a part is written I/N with I from 1 to N, such as 2/4".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use study::{StudyFile, settings::combinations};

    #[test]
    fn the_command_line_is_sound_and_everything_has_help() {
        Cli::command().debug_assert();
        for subcommand in Cli::command().get_subcommands() {
            assert!(subcommand.get_about().is_some(), "{}", subcommand.get_name());
            for argument in subcommand.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {}", subcommand.get_name(), argument.get_id());
            }
        }
    }

    #[test]
    fn parts_are_counted_from_one() {
        assert_eq!((part("1/1"), part("2/4")), (Ok((0, 1)), Ok((1, 4))));
        for wrong in ["0/4", "5/4", "1", "a/b", "1/0", "-1/2"] {
            assert!(part(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_name_and_a_text_are_told_apart_at_the_first_sign() {
        assert_eq!(named("law=a.txt=2"), Ok(("law".to_owned(), "a.txt=2".to_owned())));
        for wrong in ["law", "=a.txt", "law=", ""] {
            assert!(named(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_study_that_comes_with_the_program_can_be_read() {
        for text in Template::value_variants().iter().map(|template| template.text()).chain([DEMO]) {
            let file = StudyFile::parse(text).unwrap();
            assert!(combinations(&file).is_ok() && !file.evaluation.is_empty(), "{}", file.name);
        }
    }
}
