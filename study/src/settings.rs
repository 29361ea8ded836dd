//! From crossed settings to single combinations, each said in one way only.
//!
//! ```text
//! axes ─cross─▶ combinations − excluded ─normalise─▶ settings without what its method has no use for ─▶ distinct ones
//! ```
//!
//! Rounding to nearest looks at no text, so that a study that crosses it with three calibration sets has one such cell.

use crate::{
    StudyError,
    file::{Axes, StudyFile},
};
use calibration::WindowOptions;
use model::format::{Target, gptq::Version};
use quantize::{AwqOptions, Options};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

/// At the end of a method's name: rounding errors are weighted by the mean squared inputs.
const IMPORTANCE: &str = "+importance";
/// Shards of checkpoints that live for one evaluation.
const SHARD_BYTES: u64 = 4 << 30;

/// What one cell is quantized with. `None` is what its method has no use for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The model as the study calls it.
    pub model: String,
    /// The method.
    pub method: String,
    /// Bits per weight.
    pub bits: u32,
    /// Columns to a scale, −1 for the whole row.
    pub group_size: i64,
    /// Symmetric grids.
    pub symmetric: bool,
    /// Order of columns.
    pub act_order: Option<String>,
    /// How scales are found.
    pub scale_search: String,
    /// Relative damping.
    pub damping: Option<f64>,
    /// Whose outputs later layers see.
    pub inputs: Option<String>,
    /// How the linears of a block follow each other.
    pub sequence: Option<String>,
    /// Whether the head is quantized too.
    pub lm_head: bool,
    /// The calibration set by name.
    pub calibration: Option<String>,
    /// Its windows.
    pub samples: Option<usize>,
    /// Tokens per window.
    pub sequence_length: Option<usize>,
    /// Seed of its windows.
    pub seed: Option<u64>,
    /// The format, where it is not GPTQ's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// The part of the model, where it is not all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<String>,
}

/// The names of the settings, in the order in which reports speak of them.
pub const AXES: [&str; 17] = [
    "model",
    "method",
    "bits",
    "group_size",
    "symmetric",
    "act_order",
    "scale_search",
    "damping",
    "inputs",
    "sequence",
    "lm_head",
    "calibration",
    "samples",
    "sequence_length",
    "seed",
    "format",
    "part",
];

/// Every combination of a study.
pub struct Combinations {
    /// Those that differ, in the order of the file.
    pub distinct: Vec<Settings>,
    /// How many the grids have, excluded ones and repetitions counted.
    pub crossed: usize,
    /// How many were excluded.
    pub excluded: usize,
}

/// The combinations of `file`.
pub fn combinations(file: &StudyFile) -> Result<Combinations, StudyError> {
    let base = levels(&file.settings);
    let grids = std::iter::once(base.clone()).chain(file.include.iter().map(|axes| laid_over(&base, &levels(axes))));
    let excluded: Vec<Map<String, Value>> = file.exclude.iter().map(levels).collect();
    let mut found = Combinations { distinct: Vec::new(), crossed: 0, excluded: 0 };
    for grid in grids {
        for combination in cross(&with_defaults(&grid, file)) {
            found.crossed += 1;
            if excluded.iter().any(|excluded| is_among(&combination, excluded)) {
                found.excluded += 1;
                continue;
            }
            let settings = normalised(combination, file)?;
            if !found.distinct.contains(&settings) {
                found.distinct.push(settings);
            }
        }
    }
    if found.distinct.is_empty() {
        return Err(StudyError::Settings("every combination is excluded: there is no cell left".to_owned()));
    }
    Ok(found)
}

/// For each model and method that is only solved on the original model's statistics: its first combination, solved in
/// true sequence.
pub fn twins(combinations: &[Settings]) -> Vec<Settings> {
    let mut twins: Vec<Settings> = Vec::new();
    for settings in combinations.iter().filter(|settings| settings.inputs.as_deref() == Some("original")) {
        let same = |other: &&Settings| other.model == settings.model && other.method == settings.method;
        let sequential = combinations.iter().filter(same).any(|other| other.inputs.as_deref() == Some("quantized"));
        if !sequential && !twins.iter().any(|twin| same(&twin)) {
            twins.push(Settings { inputs: Some("quantized".to_owned()), ..settings.clone() });
        }
    }
    twins
}

/// The axes that are given, with their levels.
fn levels(axes: &Axes) -> Map<String, Value> {
    let Ok(Value::Object(given)) = serde_json::to_value(axes) else { unreachable!("axes are a table") };
    given.into_iter().map(|(name, levels)| (name.replace('-', "_"), levels)).collect()
}

fn laid_over(base: &Map<String, Value>, over: &Map<String, Value>) -> Map<String, Value> {
    let mut all = base.clone();
    all.extend(over.clone());
    all
}

/// Every axis, those not given at their default; an axis without a value at `null`.
fn with_defaults(given: &Map<String, Value>, file: &StudyFile) -> Map<String, Value> {
    let sets: Vec<&String> = file.calibration.keys().collect();
    let defaults = json!({
        "method": ["gptq"], "bits": [4], "group_size": [128], "symmetric": [true], "act_order": ["static"],
        "scale_search": ["minmax"], "damping": [0.01], "inputs": ["quantized"], "sequence": ["module"],
        "lm_head": [false], "calibration": if sets.is_empty() { json!([null]) } else { json!(sets) }, "seed": [0],
    });
    let value = |name: &str| given.get(name).or_else(|| defaults.get(name)).cloned().unwrap_or_else(|| json!([null]));
    AXES.iter().map(|name| ((*name).to_owned(), value(name))).collect()
}

/// The Cartesian product, the last axis running fastest.
fn cross(grid: &Map<String, Value>) -> Vec<Map<String, Value>> {
    grid.iter().fold(vec![Map::new()], |combinations, (name, levels)| {
        let levels = levels.as_array().map_or(&[][..], Vec::as_slice);
        let extended = |combination: Map<String, Value>| {
            levels.iter().map(move |level| {
                let mut combination = combination.clone();
                combination.insert(name.clone(), level.clone());
                combination
            })
        };
        combinations.into_iter().flat_map(extended).collect()
    })
}

/// Whether each setting that `excluded` names has one of the values it gives.
fn is_among(combination: &Map<String, Value>, excluded: &Map<String, Value>) -> bool {
    let has =
        |(name, levels): (&String, &Value)| levels.as_array().is_some_and(|levels| levels.contains(&combination[name]));
    !excluded.is_empty() && excluded.iter().all(has)
}

/// Without what the method has no use for, and with the numbers that a calibration set gives.
fn normalised(combination: Map<String, Value>, file: &StudyFile) -> Result<Settings, StudyError> {
    if combination["model"].is_null() {
        return Err(StudyError::Settings("[settings] names no model: give `model = \"demo\"` or a path".to_owned()));
    }
    let mut settings: Settings =
        serde_json::from_value(Value::Object(combination)).expect("axes have the types of settings");
    settings.format = settings.format.filter(|format| format != "gptq");
    settings.part = settings.part.filter(|part| part != "all");
    if settings.in_blocks() {
        // A mixture has bits and groups of its own.
        (settings.bits, settings.group_size, settings.symmetric) = (4, -1, true);
        "minmax".clone_into(&mut settings.scale_search);
    }
    if !settings.method.ends_with("gptq") {
        settings = Settings { act_order: None, damping: None, ..settings };
    }
    if settings.method == "rtn" {
        let nothing = (None, None, None, None);
        (settings.calibration, settings.samples, settings.sequence_length, settings.seed) = nothing;
        (settings.inputs, settings.sequence) = (None, None);
    }
    if let Some(name) = &settings.calibration {
        let names = || file.calibration.keys().cloned().collect::<Vec<_>>().join(", ");
        let set = file.calibration.get(name).ok_or_else(|| {
            StudyError::Settings(format!("there is no [calibration.{name}]; the calibration sets are: {}", names()))
        })?;
        settings.samples.get_or_insert(set.samples);
        settings.sequence_length.get_or_insert(set.sequence_length);
    }
    Ok(settings)
}

impl Settings {
    /// The options of `quantize` for these settings; `sources` are the files of the calibration set.
    pub fn options(&self, file: &StudyFile, sources: Vec<String>) -> Result<Options, StudyError> {
        let set = self.calibration.as_ref().and_then(|name| file.calibration.get(name));
        Ok(Options {
            method: named("method", self.method.trim_end_matches(IMPORTANCE))?,
            bits: self.bits,
            group_size: self.group_size,
            symmetric: self.symmetric,
            act_order: named("act-order", self.act_order.as_deref().unwrap_or("none"))?,
            scale_search: named("scale-search", &self.scale_search)?,
            damping: self.damping.unwrap_or(0.01),
            input_correction: 0.0,
            inputs: named("inputs", self.inputs.as_deref().unwrap_or("quantized"))?,
            sequence: named("sequence", self.sequence.as_deref().unwrap_or("module"))?,
            awq: AwqOptions::default(),
            compute: file.compute,
            formats: vec![self.target()?],
            imatrix: None,
            overrides: Vec::new(),
            skip: Vec::new(),
            lm_head: self.lm_head,
            shard_bytes: SHARD_BYTES,
            calibration: sources,
            windows: WindowOptions {
                samples: self.samples.unwrap_or_default(),
                sequence_length: self.sequence_length.unwrap_or_default(),
                seed: self.seed.unwrap_or_default(),
                packing: named("packing", set.map_or("concat", |set| &set.packing))?,
                field: set.and_then(|set| set.field.clone()),
            },
        })
    }

    fn target(&self) -> Result<Target, StudyError> {
        let format = self.format.as_deref().map(str::parse);
        let format = format.transpose().map_err(|error| StudyError::Settings(format!("format: {error}")))?;
        if self.method.ends_with(IMPORTANCE) && !self.in_blocks() {
            return Err(StudyError::Settings(format!("method = \"{}\" is one of GGUF formats only", self.method)));
        }
        Ok(format.unwrap_or(Target::Gptq(Version::V1)))
    }

    /// Whether it is quantized into the blocks of a GGUF format.
    pub fn in_blocks(&self) -> bool {
        self.format.as_deref().is_some_and(|format| format.starts_with("gguf"))
    }

    /// The value of setting `axis` as people read it; `None` where its method or format has no use for it.
    pub fn level(&self, axis: &str) -> Option<String> {
        if self.in_blocks() && ["bits", "group_size", "symmetric", "scale_search"].contains(&axis) {
            return None;
        }
        match axis {
            "format" if self.format.is_none() => return Some("gptq".to_owned()),
            "part" if self.part.is_none() => return Some("all".to_owned()),
            _ => {}
        }
        let value = serde_json::to_value(self).expect("settings are plain data");
        match value.get(axis)? {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        }
    }

    /// These settings with no seed: what replicates share.
    #[must_use]
    pub fn without_seed(&self) -> Self {
        Self { seed: None, ..self.clone() }
    }

    /// The settings of `axes` in words.
    pub fn label(&self, axes: &[&str]) -> String {
        let named = axes.iter().filter_map(|axis| Some(words(axis, &self.level(axis)?)));
        let label: Vec<String> = named.collect();
        if label.is_empty() { self.method.clone() } else { label.join(", ") }
    }
}

/// Whether two configurations agree in all settings but those of `except`; what only one of them has use for counts as
/// agreed.
pub fn agree(a: &Settings, b: &Settings, except: &[&str]) -> bool {
    let same = |axis: &&str| match (a.level(axis), b.level(axis)) {
        (Some(a), Some(b)) => a == b,
        _ => true,
    };
    AXES.iter().filter(|axis| !except.contains(*axis)).all(same)
}

/// A setting and its value as people say it.
pub fn words(axis: &str, level: &str) -> String {
    match axis {
        "format" => format!("format {level}"),
        "part" if level == "all" => "all of it".to_owned(),
        "model" | "method" | "part" => level.to_owned(),
        "bits" => format!("{level} bits"),
        "group_size" if level == "-1" => "one group per row".to_owned(),
        "group_size" => format!("groups of {level}"),
        "symmetric" => if level == "true" { "symmetric" } else { "asymmetric" }.to_owned(),
        "act_order" => format!("act-order {level}"),
        "calibration" => format!("calibrated on {level}"),
        "samples" => format!("{level} samples"),
        "sequence_length" => format!("{level} tokens each"),
        _ => format!("{} {level}", axis.replace('_', "-")),
    }
}

/// A value by the name that its crate gives it.
pub fn named<T: DeserializeOwned>(axis: &str, name: &str) -> Result<T, StudyError> {
    serde_json::from_value(Value::String(name.to_owned()))
        .map_err(|error| StudyError::Settings(format!("{axis} = \"{name}\": {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(settings: &str) -> StudyFile {
        let text = format!(
            "name = 'n'\nquestion = 'q'\n[calibration.prose]\nsources = ['demo:prose']\nsamples = 8\n[calibration.code]\nsources = ['demo:code']\n[evaluation.e]\ntext = 'demo:prose-heldout'\n{settings}"
        );
        StudyFile::parse(&text).unwrap()
    }

    fn distinct(settings: &str) -> Vec<Settings> {
        combinations(&file(settings)).unwrap().distinct
    }

    #[test]
    fn lists_are_crossed_and_single_values_held() {
        let found = combinations(&file("[settings]\nmodel = 'demo'\nbits = [4, 2]\nseed = [0, 1, 2]")).unwrap();
        assert_eq!((found.crossed, found.distinct.len(), found.excluded), (12, 12, 0));
        assert_eq!(found.distinct[0].calibration.as_deref(), Some("code"));
        assert_eq!((found.distinct[0].samples, found.distinct[11].samples), (Some(128), Some(8)));
        assert!(found.distinct.iter().all(|settings| settings.group_size == 128));
    }

    #[test]
    fn what_a_method_has_no_use_for_makes_no_cells() {
        let cells = distinct("[settings]\nmodel = 'demo'\nmethod = ['rtn', 'gptq']\nseed = [0, 1]");
        assert_eq!(cells.iter().filter(|settings| settings.method == "rtn").count(), 1);
        assert_eq!(cells.len(), 5);
        assert_eq!((cells[0].seed, cells[0].act_order.clone(), cells[0].damping), (None, None, None));
    }

    #[test]
    fn included_grids_replace_what_they_name_and_excluded_cells_are_gone() {
        let settings = "[settings]\nmodel = 'demo'\nbits = [4, 3]\ncalibration = 'prose'\n[[include]]\nbits = 8\ngroup-size = -1\n[[exclude]]\nbits = [3, 2]\nmethod = 'gptq'";
        let cells = distinct(settings);
        let widths: Vec<_> = cells.iter().map(|settings| (settings.bits, settings.group_size)).collect();
        assert_eq!(widths, [(4, 128), (8, -1)]);
        assert!(combinations(&file("[settings]\nmodel = 'demo'\n[[exclude]]\nbits = 4")).is_err());
    }

    #[test]
    fn an_excluding_table_that_names_nothing_excludes_nothing() {
        assert_eq!(distinct("[settings]\nmodel = 'demo'\n[[exclude]]").len(), 2);
    }

    #[test]
    fn what_is_missing_is_named() {
        let wrong = |settings: &str| combinations(&file(settings)).err().unwrap().to_string();
        assert!(wrong("[settings]").contains("names no model"));
        assert!(
            wrong("[settings]\nmodel = 'demo'\ncalibration = 'verse'").contains("calibration sets are: code, prose")
        );
        let settings = distinct("[settings]\nmodel = 'demo'\nmethod = 'magic'").remove(0);
        let error = settings.options(&file("[settings]"), Vec::new()).unwrap_err().to_string();
        assert!(error.contains("method = \"magic\"") && error.contains("gptq"), "{error}");
    }

    #[test]
    fn settings_become_the_options_of_quantize() {
        let study = file("[settings]\nmodel = 'demo'\nact-order = 'desc'\ninputs = 'original'\nsymmetric = false");
        let settings = combinations(&study).unwrap().distinct.remove(1);
        let options = settings.options(&study, vec!["demo:prose".to_owned()]).unwrap();
        let json = serde_json::to_value(&options).unwrap();
        assert_eq!(
            (&json["act_order"], &json["inputs"], &json["symmetric"]),
            (&json!("desc"), &json!("original"), &json!(false))
        );
        assert_eq!((options.windows.samples, options.windows.sequence_length), (8, 2048));
    }

    #[test]
    fn settings_are_said_in_words() {
        let settings = distinct("[settings]\nmodel = 'demo'\ngroup-size = -1").remove(0);
        assert_eq!(
            settings.label(&["bits", "group_size", "calibration"]),
            "4 bits, one group per row, calibrated on code"
        );
        assert_eq!(settings.label(&[]), "gptq");
        let value = serde_json::to_value(&settings).unwrap();
        assert_eq!(value.as_object().unwrap().keys().map(String::as_str).collect::<Vec<_>>(), AXES[..15]);
        assert_eq!(settings.label(&["format", "part"]), "format gptq, all of it");
    }

    #[test]
    fn blocks_have_no_bits_and_only_they_know_importance() {
        let study = "[settings]\nmodel = 'demo'\nmethod = 'rtn+importance'\nformat = ['gguf:Q4_K_M', 'gguf:Q8_0']\nbits = [4, 3]";
        let cells = distinct(study);
        // Two formats with two calibration sets; bits make no cells.
        assert_eq!((cells.len(), cells[0].level("bits"), cells[0].level("group_size")), (4, None, None));
        let options = cells[0].options(&file("[settings]"), vec!["demo:prose".to_owned()]).unwrap();
        assert!(options.block_mixture().is_some() && serde_json::to_value(options.method).unwrap() == "rtn");
        let settings = distinct("[settings]\nmodel = 'demo'\nmethod = 'rtn+importance'").remove(0);
        assert!(settings.options(&file("[settings]"), Vec::new()).unwrap_err().to_string().contains("GGUF"));
        let settings = distinct("[settings]\nmodel = 'demo'\nformat = 'zip'").remove(0);
        assert!(settings.options(&file("[settings]"), Vec::new()).unwrap_err().to_string().contains("is no format"));
    }

    #[test]
    fn each_method_that_takes_the_shortcut_has_one_twin() {
        let twins = |inputs: &str| {
            let study = format!(
                "[settings]\nmodel = 'demo'\nmethod = ['gptq', 'rtn', 'awq']\nbits = [4, 3]\ninputs = {inputs}"
            );
            super::twins(&distinct(&study))
        };
        let found = twins("'original'");
        assert_eq!(found.iter().map(|twin| twin.method.as_str()).collect::<Vec<_>>(), ["gptq", "awq"]);
        assert!(found.iter().all(|twin| twin.inputs.as_deref() == Some("quantized") && twin.bits == 4));
        assert!(twins("'quantized'").is_empty() && twins("['original', 'quantized']").is_empty());
    }

    proptest! {
        #[test]
        fn a_product_has_as_many_members_as_its_factors_say(bits in 1_usize..4, groups in 1_usize..4, seeds in 1_usize..4) {
            let list = |count: usize, values: &[i64]| format!("{:?}", &values[..count]);
            let settings = format!(
                "[settings]\nmodel = 'demo'\nbits = {}\ngroup-size = {}\nseed = {}",
                list(bits, &[4, 3, 2]), list(groups, &[64, 32, -1]), list(seeds, &[5, 6, 7]),
            );
            prop_assert_eq!(distinct(&settings).len(), 2 * bits * groups * seeds);
        }
    }
}
