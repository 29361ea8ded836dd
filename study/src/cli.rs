//! The command line of `study`.

use clap::{Args, Parser, Subcommand, ValueEnum};
use console::generated::Kind;
use std::path::PathBuf;
use study::Store;

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

/// What can be done.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Write a commented study file to start from
    Init {
        /// The file to write
        #[arg(value_name = "FILE", default_value = "study.toml")]
        file: PathBuf,
        /// Which study to start from
        #[arg(long, value_enum, value_name = "NAME", default_value_t = Template::CalibrationAlignment)]
        template: Template,
    },
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
    },
    /// Write the measured cells as one table to stdout
    ///
    /// A row for each cell, the same columns in both formats, so that pandas and polars read it in one line. The blocks
    /// behind each perplexity are in the results folder's own lines.
    Export {
        #[command(flatten)]
        study: Where,
        /// The format
        #[arg(long, value_enum, value_name = "NAME", default_value_t = Format::Csv)]
        format: Format,
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
    #[arg(long, value_name = "I/N", value_parser = part)]
    pub(crate) part: Option<(usize, usize)>,
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
    fn every_study_that_comes_with_the_program_can_be_read() {
        for text in Template::value_variants().iter().map(|template| template.text()).chain([DEMO]) {
            let file = StudyFile::parse(text).unwrap();
            assert!(combinations(&file).is_ok() && !file.evaluation.is_empty(), "{}", file.name);
        }
    }
}
