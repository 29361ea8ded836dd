//! The command line of `quantize`, and from it a [`Request`].

use anyhow::{Context, bail};
use calibration::{Inputs, Packing, Sequence, WindowOptions};
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use console::generated::Kind;
use kernels::{ActOrder, Compute, ScaleSearch, engine::Choice};
use model::{Stage, format::Target};
use quantize::{AwqOptions, Conversion, Method, Objective, Options, Request};
use std::{path::PathBuf, thread};

/// Quantize a language model to 2, 3, 4 or 8 bits
///
/// Reads a model and a calibration text and writes checkpoints that other tools load. The work is done a decoder
/// block at a time; killed at any moment and started again with the same command, it goes on after the last finished
/// block, and the result is the same bytes. What was written is read back and compared before success is reported.
#[derive(Parser)]
#[command(name = "quantize", version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) run: Run,
}

/// What else can be done.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Show what a checkpoint holds
    ///
    /// Prints tensors, bits per weight measured on disk, settings and what each runtime will do with the checkpoint,
    /// for any checkpoint, made by this tool or not.
    Inspect {
        /// A checkpoint: folder, GGUF file, hub id, or `demo`
        #[arg(value_name = "PATH")]
        path: String,
        /// Print one JSON object instead of tables
        #[arg(long)]
        json: bool,
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
    /// Move a checkpoint to another format
    ///
    /// The integers, scales and zero-points stay as they are; what a format can't hold is refused by name. `dequantized`
    /// holds everything, rounded once to its float type; `gguf:Q4_0`, `gguf:Q4_1` and `gguf:Q8_0` hold integers in groups of
    /// a multiple of 32, and of these Q4_1 rounds what it adds to each block to float16. What was written is read back and compared.
    Convert(Convert),
    /// Write the man page, the reference page or shell completions to stdout
    #[command(hide = true)]
    Generate {
        /// What to write
        kind: Kind,
    },
}

/// The arguments of a conversion.
#[derive(Args)]
pub(crate) struct Convert {
    /// A quantized checkpoint: folder, hub id or, for `dequantized`, a GGUF file
    #[arg(value_name = "IN")]
    input: String,
    /// Formats to write, separated by commas; one makes OUT the checkpoint, several make it a folder of checkpoints
    #[arg(long = "format", value_name = "LIST", value_delimiter = ',', required = true)]
    formats: Vec<Target>,
    /// Folder for the result; a file ending in .gguf for `gguf:MIXTURE` alone
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Largest size of a safetensors file
    #[arg(long, value_name = "SIZE", default_value = "4GiB", value_parser = size)]
    shard_size: u64,
    /// Replace OUT if it exists
    #[arg(long)]
    overwrite: bool,
    /// Print one JSON object instead of tables
    #[arg(long)]
    pub(crate) json: bool,
}

impl Convert {
    /// What is to be converted into what.
    pub(crate) fn conversion(self) -> Conversion {
        Conversion {
            input: self.input,
            out: self.out,
            formats: self.formats,
            shard_bytes: self.shard_size,
            overwrite: self.overwrite,
        }
    }
}

/// The arguments of a quantization.
#[derive(Args)]
pub(crate) struct Run {
    /// The model: a Hugging Face folder, a GGUF file, `org/name[@revision]` on the hub, or `demo`
    #[arg(value_name = "MODEL", required = true)]
    model: Option<String>,
    /// Folder for the checkpoint; a file ending in .gguf for `--format gguf:MIXTURE` alone
    ///
    /// It appears when everything is written and proven; until then the work lies in OUT.partial beside it.
    #[arg(long, value_name = "FOLDER", required = true)]
    out: Option<PathBuf>,
    #[command(flatten)]
    weights: Weights,
    #[command(flatten)]
    text: Text,
    #[command(flatten)]
    resources: Resources,
    #[command(flatten)]
    output: Output,
}

/// How weights become integers.
#[derive(Args)]
#[command(next_help_heading = "Quantization")]
#[command(group = ArgGroup::new("grid").args(["symmetric", "asymmetric"]))]
#[allow(clippy::struct_excessive_bools, reason = "flags that have nothing to do with each other")]
struct Weights {
    /// How weights become integers
    #[arg(long, value_enum, default_value_t = MethodName::Gptq)]
    method: MethodName,
    /// Bits per weight: 2, 3, 4 or 8
    #[arg(long, value_name = "BITS", default_value_t = 4)]
    bits: u32,
    /// Input columns that share a scale: 8 or more, or -1 for one group per row
    ///
    /// Where it does not divide a layer's width the last group is shorter, which some loaders refuse; a warning says
    /// which, and which sizes would divide.
    #[arg(long, value_name = "COLUMNS", default_value_t = 128, allow_negative_numbers = true)]
    group_size: i64,
    /// Grids symmetric around zero: what every runtime loads (the default)
    #[arg(long)]
    symmetric: bool,
    /// Grids with a zero-point of their own: more accurate, but Marlin kernels refuse them
    #[arg(long)]
    asymmetric: bool,
    /// Order in which GPTQ visits columns
    #[arg(long, value_enum, default_value_t = OrderName::Static)]
    act_order: OrderName,
    /// How the scale of a group is found
    #[arg(long, value_enum, default_value_t = SearchName::Minmax)]
    scale_search: SearchName,
    /// Added to the Hessian's diagonal, as a share of its mean; raised if the factorization fails, which is reported
    #[arg(long, value_name = "SHARE", default_value_t = 0.01)]
    damping: f64,
    /// Share of the earlier layers' error that GPTQ makes up for in each layer: 0 none, 1 all that least squares can
    ///
    /// Asymmetric calibration (as in GPTAQ): the original model runs beside, and a layer's outputs are to be those that it
    /// had there, not those of the given weights on the inputs that quantized layers leave. Takes another pass over the
    /// text and twice the activations. A share below 1 can be better, since the text is finite: see docs/results.md.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    input_correction: f64,
    /// Exponents of the input's magnitude that AWQ tries beside 0, which is no scaling
    #[arg(long, value_name = "COUNT", default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=1000))]
    awq_steps: u32,
    /// Inputs that AWQ scales
    ///
    /// The factors go into what comes before: norms, or the rows of v and up. Inputs of modules in full precision, or
    /// made by them, are never scaled.
    #[arg(long, value_enum, value_name = "INPUTS", value_delimiter = ',', default_value = "qkv,output,gate-up,down")]
    awq_scale: Vec<StageName>,
    /// What AWQ's search minimizes for the inputs of q, k, v and of gate and up
    ///
    /// `linears`: the error of these linears' own outputs, over all calibration tokens. `block`: of what attention, or the
    /// feed-forward network, makes of them, as the paper has it, over windows of about 4,096 tokens; takes a pass over
    /// these for each exponent.
    #[arg(long, value_enum, value_name = "NAME", default_value_t = ObjectiveName::Linears)]
    awq_objective: ObjectiveName,
    /// Keep AWQ from drawing in the range of groups with outliers
    #[arg(long)]
    awq_no_clip: bool,
    /// Whose outputs a layer sees while it is quantized
    #[arg(long, value_enum, default_value_t = InputsName::Quantized)]
    inputs: InputsName,
    /// Whether the modules of a layer are quantized one after the other or all at once
    #[arg(long, value_enum, default_value_t = SequenceName::Module)]
    sequence: SequenceName,
    /// Arithmetic of the decoder's dense products; solvers are float32 always
    #[arg(long, value_enum, default_value_t = ComputeName::F32)]
    compute: ComputeName,
    /// Other bits or group size for the modules that a glob matches
    ///
    /// `GLOB:bits=8,group-size=64`, for instance '*.down_proj:bits=8'. May be given several times; later ones win.
    #[arg(long = "override", value_name = "GLOB:SETTINGS")]
    overrides: Vec<String>,
    /// Leave the modules that a glob matches in full precision; may be given several times
    #[arg(long, value_name = "GLOB")]
    skip: Vec<String>,
    /// Quantize the language-model head too; if it is the embedding, it becomes a matrix of its own
    #[arg(long)]
    lm_head: bool,
    /// Importance matrix (llama.cpp's, GGUF form) that weighs errors in `--method rtn --format gguf:MIXTURE`
    ///
    /// Without one, `--calibration` measures the same on the way.
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
}

/// What it is calibrated on.
#[derive(Args)]
#[command(next_help_heading = "Calibration")]
struct Text {
    /// Calibration text: file, folder or glob (text, JSON lines, Parquet, CSV), `hub:org/name/path`, `demo:prose`,
    /// `demo:code` or `random-tokens`, with its share of the windows
    ///
    /// May be given several times. The model `demo` has its own (demo:prose and demo:code); `--method rtn` needs none,
    /// but measures layer errors only if there is one.
    #[arg(long, value_name = "SOURCE[=WEIGHT]")]
    calibration: Vec<String>,
    /// Windows cut from the text [default: 128, for the model `demo` 64]
    #[arg(long, value_name = "COUNT")]
    samples: Option<usize>,
    /// Tokens per window, cut to the longest the model takes [default: 2048, for the model `demo` 256]
    #[arg(long, value_name = "TOKENS")]
    sequence_length: Option<usize>,
    /// Seed of the places where windows are cut
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// How text becomes windows
    ///
    /// `concat` joins all documents and cuts at random, `consecutive` one window after the other from the start; `document` takes one window from each; `chat` applies the
    /// model's chat template to message lists first.
    #[arg(long, value_name = "PACKING", default_value = "concat", value_parser = packing)]
    packing: Packing,
    /// Column of JSON lines, CSV or Parquet that holds the text [default: text, content or messages]
    #[arg(long, value_name = "NAME")]
    field: Option<String>,
}

/// What it may take.
#[derive(Args)]
#[command(next_help_heading = "Resources")]
struct Resources {
    /// Threads [default: all cores]; the result does not depend on it
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Where the model runs and weights are solved: `auto`, `cpu`, `cuda` or `cuda:N`
    ///
    /// On a CUDA device the model runs over the calibration text, statistics are summed, Hessians are factored, AWQ's factors
    /// are tried, weights are rounded and error-compensated, and errors are measured. AWQ's clipping and the block formats of
    /// GGUF stay on the CPU. Statistics and factors differ from the CPU's by rounding; given the same ones, integers don't.
    /// `auto` takes the first device that can be used, else the CPU. What has run where: docs/cuda.md.
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: Choice,
    /// Windows whose activations stay on the CUDA device [default: as many as fit]
    ///
    /// The others go there and back for every step. Changes no result.
    #[arg(long, value_name = "COUNT")]
    device_windows: Option<usize>,
    /// Most memory to take, such as 8GiB [default: four fifths of what is free]
    ///
    /// Activations that don't fit are kept in a temporary file beside the output.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory: Option<u64>,
    /// Print the plan and what it would take, and stop
    #[arg(long)]
    dry_run: bool,
}

/// What is written and printed.
#[derive(Args)]
#[command(next_help_heading = "Output")]
struct Output {
    /// Formats to write from the same integers, separated by commas
    ///
    /// `gptq` is what most loaders read; `gptq_v2` also holds a zero-point of 0; `awq` (4 bits) and
    /// `compressed-tensors` (4 or 8 bits) are for vLLM; `dequantized` is float safetensors, in
    /// the model's own type or, as `dequantized:float16`, `:bfloat16` or `:float32`, in that one. One format makes OUT
    /// the checkpoint, several make OUT a folder with a checkpoint for each, named after it.
    ///
    /// `gguf:MIXTURE` (Q8_0, Q6_K, Q5_K_M, Q5_K_S, Q4_K_M, Q4_K_S, Q3_K_M, Q2_K, Q5_1, Q5_0, Q4_1, Q4_0, IQ4_NL) is one
    /// file, OUT.gguf. Alone it is solved on the grids of its own blocks, whatever --bits and --group-size say. Beside
    /// other formats it gets the same integers as they: Q4_0 symmetric ones of up to 4 bits, Q4_1 asymmetric ones, Q8_0
    /// those of 8 bits, in groups of a multiple of 32.
    #[arg(long = "format", value_name = "LIST", value_delimiter = ',', default_value = "gptq")]
    formats: Vec<Target>,
    /// Write the sums of squared activations as an importance matrix (llama.cpp's, GGUF form)
    ///
    /// Measured on the calibration text while the model is quantized; with `--inputs original` they are those of the
    /// model as it was.
    #[arg(long, value_name = "FILE")]
    save_imatrix: Option<PathBuf>,
    /// Largest size of a safetensors file
    #[arg(long, value_name = "SIZE", default_value = "4GiB", value_parser = size)]
    shard_size: u64,
    /// Replace OUT if it exists, and throw away an unfinished run with other settings
    #[arg(long)]
    overwrite: bool,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
}

/// What the binary is to do besides the request itself.
pub(crate) struct Wishes {
    /// Stop after the plan.
    pub(crate) dry_run: bool,
    /// JSON instead of tables.
    pub(crate) json: bool,
}

impl Run {
    /// Whether the only format is a GGUF mixture.
    pub(crate) fn in_blocks(&self) -> bool {
        matches!(self.output.formats[..], [Target::Gguf(_)])
    }

    /// The method by its name on the command line.
    pub(crate) fn method(&self) -> String {
        let name = self.weights.method.to_possible_value();
        name.map_or_else(String::new, |name| name.get_name().to_owned())
    }

    /// The request, with the defaults that depend on the model.
    pub(crate) fn request(self) -> anyhow::Result<(Request, Wishes)> {
        let model = self.model.context("the model is missing")?;
        let out = self.out.context("--out is missing")?;
        let wishes = Wishes { dry_run: self.resources.dry_run, json: self.output.json };
        let cores = || thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let options = self.weights.options(self.text.calibration_for(&model), &self.text, &model, &self.output);
        let request = Request {
            model,
            out,
            options,
            threads: self.resources.threads.map_or_else(cores, usize::from),
            memory: self.resources.memory,
            overwrite: self.output.overwrite,
            save_imatrix: self.output.save_imatrix,
            device: self.resources.device,
            device_windows: self.resources.device_windows,
        };
        Ok((request, wishes))
    }
}

impl Text {
    /// The sources given, or those that the demo model brings.
    fn calibration_for(&self, model: &str) -> Vec<String> {
        if self.calibration.is_empty() && model == "demo" {
            return vec!["demo:prose".to_owned(), "demo:code".to_owned()];
        }
        self.calibration.clone()
    }

    fn windows(&self, model: &str) -> WindowOptions {
        let (samples, length) = if model == "demo" { (64, 256) } else { (128, 2048) };
        WindowOptions {
            samples: self.samples.unwrap_or(samples),
            sequence_length: self.sequence_length.unwrap_or(length),
            seed: self.seed,
            packing: self.packing,
            field: self.field.clone(),
        }
    }
}

impl Weights {
    fn options(self, calibration: Vec<String>, text: &Text, model: &str, output: &Output) -> Options {
        Options {
            method: self.method.into(),
            bits: self.bits,
            group_size: self.group_size,
            symmetric: !self.asymmetric,
            act_order: self.act_order.into(),
            scale_search: self.scale_search.into(),
            damping: self.damping,
            input_correction: self.input_correction,
            compute: self.compute.into(),
            awq: AwqOptions {
                steps: self.awq_steps,
                scaled: self.awq_scale.into_iter().map(Stage::from).collect(),
                clip: !self.awq_no_clip,
                objective: self.awq_objective.into(),
            },
            inputs: self.inputs.into(),
            sequence: self.sequence.into(),
            formats: output.formats.clone(),
            overrides: self.overrides,
            skip: self.skip,
            lm_head: self.lm_head,
            shard_bytes: output.shard_size,
            calibration,
            windows: text.windows(model),
            imatrix: self.imatrix.map(|path| path.to_string_lossy().into_owned()),
        }
    }
}

/// Names of a library's enum on the command line, with a line of help each.
macro_rules! named {
    ($name:ident for $target:ty { $($(#[$doc:meta])* $variant:ident => $value:expr),+ $(,)? }) => {
        #[derive(Clone, Copy, ValueEnum)]
        enum $name { $($(#[$doc])* $variant),+ }

        impl From<$name> for $target {
            fn from(name: $name) -> Self {
                match name { $($name::$variant => $value),+ }
            }
        }
    };
}

named!(MethodName for Method {
    /// Error compensation column by column, by the inverse Hessian of the inputs
    Gptq => Method::Gptq,
    /// Rounding to nearest
    Rtn => Method::Rtn,
    /// Inputs scaled by their magnitude, outliers clipped, then rounding to nearest
    Awq => Method::Awq,
    /// Inputs scaled and outliers clipped, then error compensation
    #[value(name = "awq+gptq")]
    AwqGptq => Method::AwqGptq,
});
named!(ComputeName for Compute {
    /// Float32
    F32 => Compute::F32,
    /// Operands split into two bfloat16 numbers, three products: nearly float32; fast where the processor has AMX
    Bf16x3 => Compute::Bf16x3,
    /// Operands rounded to bfloat16: fast where the processor has AMX or AVX-512 BF16, and the least exact
    Bf16 => Compute::Bf16,
});
named!(StageName for Stage {
    /// That of q, k and v; folded into the norm before them
    Qkv => Stage::Qkv,
    /// That of the attention's output projection; folded into v
    Output => Stage::Output,
    /// That of gate and up; folded into the norm before them
    GateUp => Stage::GateUp,
    /// That of down; folded into up
    Down => Stage::Down,
});
named!(OrderName for ActOrder {
    /// As they are stored
    None => ActOrder::None,
    /// Dearest first; groups follow the order, so inference must look them up
    Desc => ActOrder::Desc,
    /// Dearest first; groups as stored, their grids fixed beforehand
    Static => ActOrder::Static,
    /// Groups by their dearest column, columns inside them; no trace on disk
    Group => ActOrder::Group,
});
named!(SearchName for ScaleSearch {
    /// From the smallest to the largest weight
    Minmax => ScaleSearch::MinMax,
    /// Shrunk to where the error of the weights is least
    Mse => ScaleSearch::Mse,
});
named!(InputsName for Inputs {
    /// Those of the quantized layers before it
    Quantized => Inputs::Quantized,
    /// Those of the original model
    Original => Inputs::Original,
});
named!(ObjectiveName for Objective {
    /// The error of their own outputs
    Linears => Objective::Linears,
    /// The error of attention's and the feed-forward network's outputs
    Block => Objective::Block,
});
named!(SequenceName for Sequence {
    /// One after the other, each seeing the quantized ones before it
    Module => Sequence::Module,
    /// All at once
    Block => Sequence::Block,
});

/// The packing by the name that its crate gives it, so that the two never disagree.
fn packing(text: &str) -> Result<Packing, String> {
    serde_json::from_value(serde_json::Value::String(text.to_owned())).map_err(|error| error.to_string())
}

/// A size with its unit: `8GiB`, `512MiB`, `4GB`, or bytes.
fn size(text: &str) -> anyhow::Result<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor: f64 = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1024.0 * 1024.0,
        "g" | "gib" => 1024.0 * 1024.0 * 1024.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        unit => bail!("`{unit}` is no unit; write 8GiB, 512MiB or 4GB"),
    };
    let number: f64 = digits.trim().parse().with_context(|| format!("`{text}` is no size; write 8GiB or 512MiB"))?;
    if !(number.is_finite() && number >= 0.0) {
        bail!("`{text}` is no size; write 8GiB or 512MiB");
    }
    Ok((number * factor) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound_and_every_value_has_a_name_and_help() {
        Cli::command().debug_assert();
        for argument in Cli::command().get_arguments() {
            assert!(argument.get_help().is_some(), "{} has no help", argument.get_id());
        }
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(size("8GiB").unwrap(), 8 << 30);
        assert_eq!(size("1.5 MiB").unwrap(), 3 << 19);
        assert_eq!(size("2GB").unwrap(), 2_000_000_000);
        assert_eq!(size("12").unwrap(), 12);
        for wrong in ["", "GiB", "-1GiB", "4 parsecs", "nan"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn inspect_is_a_subcommand_and_not_a_model() {
        let cli = Cli::try_parse_from(["quantize", "inspect", "there"]).unwrap();
        assert!(matches!(cli.command, Some(Command::Inspect { path, json: false }) if path == "there"));
        assert!(Cli::try_parse_from(["quantize", "there"]).is_err(), "--out is required");
    }

    #[test]
    fn the_demo_model_brings_its_own_text_and_lengths() {
        let request = |line: &[&str]| Cli::try_parse_from(line).unwrap().run.request().unwrap().0;
        let demo = request(&["quantize", "demo", "--out", "o"]);
        assert_eq!(demo.options.calibration, ["demo:prose", "demo:code"]);
        assert_eq!((demo.options.windows.samples, demo.options.windows.sequence_length), (64, 256));
        let other = request(&["quantize", "m", "--out", "o", "--samples", "7", "--group-size", "-1"]);
        assert!(other.options.calibration.is_empty() && other.options.symmetric);
        assert_eq!((other.options.windows.samples, other.options.windows.sequence_length), (7, 2048));
        assert_eq!(other.options.group_size, -1);
    }
}
