//! `study.toml`: the question, the settings that are fixed or crossed, the texts.
//!
//! Keys that mean nothing are refused by name. `study schema` prints the JSON schema of this module's types, which
//! editors complete from.

use crate::{StudyError, measure::Measure, values::Values};
use quantize::Compute;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// A study: a question, and the cells whose results answer it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct StudyFile {
    /// A short name; the results lie in a folder called after the file, not after this.
    pub name: String,
    /// The question, in a sentence. It heads the report.
    pub question: String,
    /// What every cell is quantized with: one value is held fixed, a list is crossed with the others.
    pub settings: Axes,
    /// Further cells: settings given here replace those above, the others stay as they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<Axes>,
    /// Cells to leave out: those whose settings are all among the values given here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<Axes>,
    /// Calibration sets by name; `settings.calibration` chooses among them.
    #[serde(default)]
    pub calibration: BTreeMap<String, CalibrationText>,
    /// Evaluations by name; every cell is measured on each of them.
    pub evaluation: BTreeMap<String, Evaluation>,
    /// Arithmetic of the decoder's dense products, in quantizing and in measuring: `f32`, `bf16x3` or `bf16`.
    #[serde(default)]
    #[schemars(with = "String")]
    pub compute: Compute,
    /// Bounds that the study must keep.
    #[serde(default)]
    pub budget: Budget,
    /// Where everything is solved with `inputs = "original"`: also solve one configuration of each method in true sequence,
    /// so that the report can say what the shortcut costs.
    #[serde(default = "yes")]
    pub shortcut_check: bool,
    /// Keep the quantized checkpoints in the results folder instead of removing each after its evaluation.
    #[serde(default)]
    pub keep: bool,
}

/// The settings of a quantization, each fixed or crossed. They are those of `quantize`, under the names of its options.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Axes {
    /// `demo`, a Hugging Face folder, a GGUF file (both from this file's folder on), or `org/name[@revision]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<Values<String>>,
    /// `gptq`, `rtn`, `awq`, `awq+gptq`; for GGUF formats also `rtn+importance`, rounding weighted by mean squared inputs.
    /// Default: `gptq`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<Values<String>>,
    /// `gptq`, `awq`, `compressed-tensors`, or `gguf:MIXTURE`, whose blocks have bits and groups of their own. Default: `gptq`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<Values<String>>,
    /// Which part of the model is quantized: `all`, `only PLACE` or `without PLACE`, where PLACE is `layer 3`,
    /// `layer 3 qkv` (or `output`, `gate-up`, `down`), `qkv`, or a glob of module names; `only each layer`,
    /// `only each stage` and `only each layer stage` (`without ...` too) stand for one level each. Default: `all`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part: Option<Values<String>>,
    /// Bits per weight. Default: 4.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits: Option<Values<u32>>,
    /// Input columns that share a scale, -1 for one group per row. Default: 128.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_size: Option<Values<i64>>,
    /// Grids symmetric around zero. Default: true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub symmetric: Option<Values<bool>>,
    /// `none`, `desc`, `static` or `group`; only `gptq` has one. Default: `static`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub act_order: Option<Values<String>>,
    /// `minmax` or `mse`. Default: `minmax`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale_search: Option<Values<String>>,
    /// Added to the Hessian's diagonal, as a share of its mean; only `gptq` has one. Default: 0.01.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damping: Option<Values<f64>>,
    /// `quantized` or `original`. Default: `quantized`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inputs: Option<Values<String>>,
    /// `module` or `block`. Default: `module`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence: Option<Values<String>>,
    /// Whether the language-model head is quantized too. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lm_head: Option<Values<bool>>,
    /// Names of calibration sets. Default: all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Values<String>>,
    /// Windows cut from the calibration text. Default: what the calibration set says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub samples: Option<Values<usize>>,
    /// Tokens per window. Default: what the calibration set says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence_length: Option<Values<usize>>,
    /// Seeds of the places where windows are cut: replicates, over which results are averaged. Default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<Values<u64>>,
}

/// A calibration set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CalibrationText {
    /// `FILE[=WEIGHT]` (a folder or glob too), `demo:prose`, `demo:code`, `hub:org/name/path` or `random-tokens`.
    pub sources: Vec<String>,
    /// Windows cut from the text.
    #[serde(default = "samples")]
    pub samples: usize,
    /// Tokens per window, cut to the longest the model takes.
    #[serde(default = "sequence_length")]
    pub sequence_length: usize,
    /// `concat`, `consecutive`, `document` or `chat`.
    #[serde(default = "packing")]
    pub packing: String,
    /// Column of JSON lines, CSV or Parquet that holds the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

/// A text or task that every cell is measured on, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Evaluation {
    /// `FILE` (a folder or glob too), `demo:prose-heldout`, `demo:code-heldout` or `hub:org/name/path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// `perplexity` (the default), `divergence` from the unquantized model, `reading-time` or `writing-time`; a task is a measure
    /// of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measure: Option<Measure>,
    /// Instead of a text: a task that `evaluate tasks` lists, or a task file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// Solved examples before each question of the task. Default: what the task says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shots: Option<usize>,
    /// Put only so many of the task's questions, drawn once for all cells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Folders where the task's data is looked for. Default: `CALIPER_DATA`, else `data` in the present folder.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<String>,
    /// A protocol that `evaluate protocols` lists.
    #[serde(default = "protocol")]
    pub protocol: String,
    /// Use only the first so many tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<usize>,
    /// Tokens in a window, for protocols that leave it open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// Tokens from the start of one window to the next, for `hf-sliding`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stride: Option<usize>,
    /// Put lines together otherwise than the protocol does. Embedded texts are read raw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lines: Option<Lines>,
    /// Column of JSON lines, CSV or Parquet that holds the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// The calibration set of the same domain, for the own-domain gain. Default: the one with this evaluation's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
}

/// Ways to put lines together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Lines {
    /// Lines as rows, blank ones emptied, joined by a blank line.
    Joined,
    /// The file as it is.
    Raw,
}

/// Bounds that `study check` and `study run` hold the estimate against.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Budget {
    /// Most cells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cells: Option<usize>,
    /// Most hours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hours: Option<f64>,
    /// Most memory, such as `8GiB`; also what each quantization may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<String>,
    /// Most disk, such as `20GiB`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
}

fn yes() -> bool {
    true
}

fn samples() -> usize {
    128
}

fn sequence_length() -> usize {
    2048
}

fn packing() -> String {
    "concat".to_owned()
}

fn protocol() -> String {
    "gptq-2048".to_owned()
}

impl Evaluation {
    /// What is measured.
    pub fn measure(&self) -> Measure {
        if self.task.is_some() { Measure::Task } else { self.measure.unwrap_or_default() }
    }

    /// What contradicts itself in it.
    pub fn problem(&self) -> Option<&'static str> {
        match (&self.text, &self.task, self.measure) {
            (Some(_), Some(_), _) => Some("give `text` or `task`, not both"),
            (None, None, _) => Some("give `text = \"FILE\"` or `task = \"NAME\"`"),
            (Some(_), None, Some(Measure::Task)) => {
                Some("`measure = \"task\"` needs `task = \"NAME\"` instead of a text")
            }
            (None, Some(_), Some(measure)) if measure != Measure::Task => {
                Some("a task is a measure of its own: leave `measure` out")
            }
            _ => None,
        }
    }
}

impl StudyFile {
    /// Reads `path`; returns the file and its text.
    pub fn read(path: &Path) -> Result<(Self, String), StudyError> {
        let text = fs::read_to_string(path).map_err(StudyError::io(path))?;
        let file = Self::parse(&text).map_err(|what| StudyError::File { path: path.to_owned(), what })?;
        Ok((file, text))
    }

    /// Reads the text of a study file; the error names the line and the key.
    pub fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())
    }

    /// The calibration set that is of `evaluation`'s domain.
    pub fn domain_of(&self, evaluation: &str) -> Option<&str> {
        let stated = self.evaluation.get(evaluation)?.domain.as_deref();
        stated.or_else(|| self.calibration.get_key_value(evaluation).map(|(name, _)| name.as_str()))
    }
}

/// The JSON schema of a study file, pretty.
pub fn schema() -> String {
    serde_json::to_string_pretty(&schemars::schema_for!(StudyFile)).expect("a schema is plain data")
}

/// A file reference of a study, which is meant from the study's folder on; embedded texts and hub files stay.
pub fn text_from(folder: &Path, reference: &str) -> String {
    let elsewhere = ["demo:", "hub:"].iter().any(|prefix| reference.starts_with(prefix));
    if elsewhere || reference.split('=').next() == Some("random-tokens") {
        return reference.to_owned();
    }
    joined(folder, reference)
}

/// A model reference of a study: what lies at that path from the study's folder on, else as it is.
pub fn model_from(folder: &Path, reference: &str) -> String {
    let path = joined(folder, reference);
    if reference != "demo" && Path::new(&path).exists() { path } else { reference.to_owned() }
}

fn joined(folder: &Path, reference: &str) -> String {
    let path: PathBuf = folder.join(reference);
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str =
        "name = 'n'\nquestion = 'q'\n[settings]\nmodel = 'demo'\n[evaluation.prose]\ntext = 'demo:prose-heldout'\n";

    #[test]
    fn what_is_left_out_has_the_defaults_of_the_tools() {
        let file = StudyFile::parse(&format!("{SMALL}[calibration.prose]\nsources = ['demo:prose']\n")).unwrap();
        let set = &file.calibration["prose"];
        assert_eq!((set.samples, set.sequence_length, set.packing.as_str()), (128, 2048, "concat"));
        assert_eq!(file.evaluation["prose"].protocol, evaluate::protocol::PROTOCOLS[0].name);
        assert_eq!(file.domain_of("prose"), Some("prose"));
        assert_eq!(file.compute, Compute::F32);
        let error = StudyFile::parse(&format!("compute = 'f16'\n{SMALL}")).unwrap_err();
        assert!(error.contains("`f32`, `bf16x3`, `bf16`"), "{error}");
    }

    #[test]
    fn unknown_keys_are_refused_by_name_with_their_line() {
        for (text, key) in [
            (SMALL.replace("[settings]", "[settings]\nbit = 4"), "bit"),
            (format!("{SMALL}[budget]\ntokens = 4"), "tokens"),
            (format!("qestion = 'q'\n{SMALL}"), "qestion"),
            (format!("{SMALL}max-token = 4"), "max-token"),
        ] {
            let error = StudyFile::parse(&text).unwrap_err();
            assert!(error.contains(&format!("unknown field `{key}`")) && error.contains("line "), "{error}");
        }
    }

    #[test]
    fn the_schema_knows_every_key_and_refuses_others() {
        let schema: serde_json::Value = serde_json::from_str(&schema()).unwrap();
        assert_eq!(schema["additionalProperties"], false);
        let axes = &schema["$defs"]["Axes"];
        assert!(axes["properties"]["group-size"]["description"].as_str().unwrap().contains("-1"));
        assert!(schema["properties"]["evaluation"].is_object());
    }

    #[test]
    fn files_are_meant_from_the_studys_folder_on() {
        let folder = Path::new("/studies");
        assert_eq!(text_from(folder, "a.txt=2"), "/studies/a.txt=2");
        assert_eq!(text_from(folder, "/b/c.txt"), "/b/c.txt");
        for kept in ["demo:prose", "hub:org/name/f", "random-tokens", "random-tokens=2"] {
            assert_eq!(text_from(folder, kept), kept);
        }
        assert_eq!(model_from(folder, "org/name"), "org/name");
    }
}
