//! From options to a plan: [`Options::check`] refuses what can't be done; nothing after it checks again.

use crate::{
    QuantizeError, blocks, gguf,
    overrides::{Override, group_size, pattern},
};
use calibration::{Inputs, Sequence, WindowOptions};
use kernels::{ActOrder, Compute, QuantSpec, ScaleSearch, kquant::BlockType};
use model::{
    Config, Stage,
    config::LinearLayout,
    format::{QuantizedModule, Target, gguf::Mixture},
};
use serde::{Deserialize, Serialize};

/// The name of the language-model head among modules.
pub const HEAD: &str = "lm_head";

/// How weights become integers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Error compensation by the inverse Hessian.
    #[default]
    Gptq,
    /// Rounding to nearest.
    Rtn,
    /// Scaling by input magnitude and clipping, then rounding to nearest.
    Awq,
    /// Scaling and clipping, then error compensation.
    #[serde(rename = "awq+gptq")]
    AwqGptq,
}

impl Method {
    /// Whether it compensates errors by the inverse Hessian.
    pub fn compensates(self) -> bool {
        matches!(self, Self::Gptq | Self::AwqGptq)
    }

    /// Whether it scales inputs and clips ranges.
    pub fn scales(self) -> bool {
        matches!(self, Self::Awq | Self::AwqGptq)
    }
}

/// Settings of AWQ.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AwqOptions {
    /// Exponents tried beside 0: `1/steps, 2/steps, .. 1`.
    pub steps: u32,
    /// The stages whose input is scaled.
    pub scaled: Vec<Stage>,
    /// Whether ranges are drawn in.
    pub clip: bool,
    /// What the search minimizes.
    #[serde(default)]
    pub objective: Objective,
}

/// What AWQ's search minimizes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    /// The error of the scaled linears' own outputs, over all calibration tokens.
    #[default]
    Linears,
    /// The error of what attention, or the feed-forward network, makes of them, over a few windows.
    Block,
}

impl Default for AwqOptions {
    fn default() -> Self {
        Self { steps: 20, scaled: Stage::ALL.to_vec(), clip: true, objective: Objective::default() }
    }
}

/// Everything that shapes the output, as the user asked for it. Threads, memory and the like don't and aren't here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// The method.
    pub method: Method,
    /// Bits per code.
    pub bits: u32,
    /// Columns to a scale; −1 is one group per row.
    pub group_size: i64,
    /// Symmetric grids.
    pub symmetric: bool,
    /// Order of columns; only GPTQ has one.
    pub act_order: ActOrder,
    /// How scales are found.
    pub scale_search: ScaleSearch,
    /// Relative damping.
    pub damping: f64,
    /// Share of the error of earlier layers that a layer makes up for; 0 is none.
    #[serde(default)]
    pub input_correction: f64,
    /// Settings of AWQ.
    #[serde(default)]
    pub awq: AwqOptions,
    /// Whose outputs later layers see.
    pub inputs: Inputs,
    /// How the linears of a block follow each other.
    pub sequence: Sequence,
    /// The formats to write, in the order asked for.
    pub formats: Vec<Target>,
    /// `GLOB:setting=value,...`, later ones over earlier ones.
    pub overrides: Vec<String>,
    /// Globs of modules left in full precision.
    pub skip: Vec<String>,
    /// Whether the language-model head is quantized too; if it is the embedding, it becomes a matrix of its own.
    pub lm_head: bool,
    /// Largest size of a shard in bytes.
    pub shard_bytes: u64,
    /// `SOURCE[=WEIGHT]` of the calibration text; empty for none.
    pub calibration: Vec<String>,
    /// How the text is cut.
    pub windows: WindowOptions,
    /// The arithmetic of the decoder's dense products.
    #[serde(default)]
    pub compute: Compute,
    /// Importance matrix that weighs errors in block formats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imatrix: Option<String>,
}

/// A linear of the model and what becomes of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Module {
    /// Full name, e.g. `model.layers.3.self_attn.q_proj`.
    pub name: String,
    /// Its block; the head is counted as one more block after the last.
    pub block: usize,
    /// Its stage; `None` for the head.
    pub stage: Option<Stage>,
    /// Rows.
    pub outputs: usize,
    /// Columns.
    pub inputs: usize,
    /// Its settings; `None` is left in full precision.
    pub spec: Option<QuantSpec>,
    /// The block format it is solved in, where GGUF is the only format asked for.
    pub blocks: Option<BlockType>,
}

/// A plan that can be carried out.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidPlan {
    /// The options it was made of.
    pub options: Options,
    /// The settings most modules share.
    pub spec: QuantSpec,
    /// Every linear of every block, in the order of computation.
    pub modules: Vec<Module>,
    /// What the user should know before it starts.
    pub warnings: Vec<String>,
}

impl Options {
    /// The settings that hold where no override does.
    pub fn spec(&self) -> Result<QuantSpec, QuantizeError> {
        let spec = QuantSpec {
            bits: self.bits,
            group_size: group_size(&self.group_size.to_string())?,
            symmetric: self.symmetric,
            act_order: if self.method.compensates() { self.act_order } else { ActOrder::None },
            scale_search: self.scale_search,
            smallest_zero: self.formats.iter().map(|format| format.smallest_zero()).max().unwrap_or(0),
        };
        spec.check().map_err(|source| QuantizeError::Spec { module: "all modules".to_owned(), source })?;
        Ok(spec)
    }

    /// Refuses what can't be done with the model `config` describes, and settles what becomes of each of its linears.
    pub fn check(self, config: &Config) -> Result<ValidPlan, QuantizeError> {
        let spec = self.spec()?;
        if !(self.damping.is_finite() && self.damping >= 0.0) {
            return Err(QuantizeError::Option(format!(
                "--damping {}: give 0 or more, usually 0.01 to 0.1",
                self.damping
            )));
        }
        self.check_correction()?;
        check_formats(&self.formats)?;
        if self.method != Method::Rtn && self.calibration.is_empty() {
            return Err(QuantizeError::Option(format!(
                "--method {} needs text to calibrate on: give --calibration FILE, or use --method rtn",
                crate::card::name_of(&self.method)
            )));
        }
        let mut modules = linears(config);
        modules.extend(self.lm_head.then(|| head(config)));
        self.check_blocks()?;
        self.settle(&spec, &mut modules)?;
        if let Some(mixture) = self.block_mixture() {
            settle_blocks(mixture, self.act_order, config, &mut modules);
        }
        if modules.iter().all(|module| module.spec.is_none()) {
            return Err(QuantizeError::Option("nothing is left to quantize: every linear is skipped".to_owned()));
        }
        let planned: Vec<QuantizedModule> = modules.iter().filter_map(Module::quantized).collect();
        let mut warnings = crate::warnings::of(&planned, &self.formats, config);
        match self.block_mixture() {
            Some(mixture) => warnings.extend(gguf::shortfall(mixture, config, &modules)),
            None => check_held(&planned, &self.formats)?,
        }
        Ok(ValidPlan { options: self, spec, modules, warnings })
    }

    /// The mixture in whose own blocks everything is solved: where GGUF is the only format. Beside others it gets the
    /// integers that they get.
    pub fn block_mixture(&self) -> Option<Mixture> {
        match self.formats[..] {
            [Target::Gguf(mixture)] => Some(mixture),
            _ => None,
        }
    }

    /// Whether layers make up for the error of those before them.
    pub fn corrects(&self) -> bool {
        self.input_correction > 0.0
    }

    fn check_correction(&self) -> Result<(), QuantizeError> {
        let share = self.input_correction;
        let refuse = |what: &str| Err(QuantizeError::Option(format!("--input-correction {share}: {what}")));
        if !(0.0..=1.0).contains(&share) {
            return refuse("give a share from 0, nothing, to 1, all that least squares can");
        }
        if self.corrects() && !self.method.compensates() {
            return refuse("is part of GPTQ's error compensation: use --method gptq or awq+gptq");
        }
        if self.corrects() && self.inputs == Inputs::Original {
            return refuse("makes up for the error of quantized layers, which --inputs original doesn't see");
        }
        Ok(())
    }

    /// Refuses settings that blocks can't follow, and importance where there are no blocks.
    fn check_blocks(&self) -> Result<(), QuantizeError> {
        let refuse = |what: &str| Err(QuantizeError::Option(what.to_owned()));
        if self.block_mixture().is_none() {
            return match self.imatrix {
                Some(_) => refuse("--imatrix weighs errors in GGUF's blocks: give --format gguf:MIXTURE alone with it"),
                None => Ok(()),
            };
        }
        if !self.overrides.is_empty() {
            return refuse(
                "--override sets bits and group size, which a GGUF mixture sets itself: choose another mixture",
            );
        }
        if self.method.compensates() && self.act_order == ActOrder::Desc {
            return refuse("--act-order desc needs a group index, which GGUF's blocks don't have: use static");
        }
        if self.method != Method::Rtn && self.imatrix.is_some() {
            return refuse(
                "only --method rtn takes --imatrix: the others weigh errors by inputs they measure themselves",
            );
        }
        Ok(())
    }

    /// Gives each module its settings; an override or skip that speaks of no module is a typing mistake.
    fn settle(&self, spec: &QuantSpec, modules: &mut [Module]) -> Result<(), QuantizeError> {
        let overrides = self.overrides.iter().map(|text| text.parse()).collect::<Result<Vec<Override>, _>>()?;
        let skips = self.skip.iter().map(|glob| pattern(glob)).collect::<Result<Vec<_>, _>>()?;
        let idle = (overrides.iter().filter(|o| !modules.iter().any(|m| o.matches(&m.name))).map(|o| o.text.as_str()))
            .chain(skips.iter().filter(|p| !modules.iter().any(|m| p.matches(&m.name))).map(glob::Pattern::as_str))
            .next();
        if let Some(idle) = idle {
            let example = modules.first().map_or("none", |m| m.name.as_str());
            return Err(QuantizeError::Option(format!(
                "`{idle}` matches no linear; their names look like `{example}`"
            )));
        }
        for module in modules {
            if skips.iter().any(|skip| skip.matches(&module.name)) {
                continue;
            }
            let mut own = *spec;
            overrides.iter().filter(|o| o.matches(&module.name)).for_each(|o| o.apply(&mut own));
            own.check().map_err(|source| QuantizeError::Spec { module: module.name.clone(), source })?;
            module.spec = Some(own);
        }
        Ok(())
    }
}

impl ValidPlan {
    /// The settings of `module`; `None` if it is left in full precision.
    pub fn spec_of(&self, module: &str) -> Option<&QuantSpec> {
        self.modules.iter().find(|m| m.name == module).and_then(|m| m.spec.as_ref())
    }

    /// Blocks of the model, the head counted as one if it is in the plan.
    pub fn blocks(&self) -> usize {
        self.modules.iter().map(|m| m.block + 1).max().unwrap_or(0)
    }

    /// The block format of `module`, if it is solved in one.
    pub fn blocks_of(&self, module: &str) -> Option<BlockType> {
        self.modules.iter().find(|m| m.name == module).and_then(|m| m.blocks)
    }

    /// The modules that are quantized.
    pub fn quantized(&self) -> impl Iterator<Item = &Module> {
        self.modules.iter().filter(|m| m.spec.is_some())
    }
}

/// Gives each module that is to be quantized its block format; what no block fits stays float.
fn settle_blocks(mixture: Mixture, act_order: ActOrder, config: &Config, modules: &mut [Module]) {
    for module in modules.iter_mut().filter(|module| module.spec.is_some()) {
        module.blocks = gguf::blocks_of(mixture, config, module);
        module.spec = module.blocks.map(|kind| blocks::spec(kind, act_order));
    }
}

/// Refuses an empty list and a format named twice.
pub fn check_formats(formats: &[Target]) -> Result<(), QuantizeError> {
    if formats.is_empty() {
        return Err(QuantizeError::Option("--format names no format".to_owned()));
    }
    match formats.iter().enumerate().find(|(place, format)| formats[..*place].contains(format)) {
        Some((_, twice)) => Err(QuantizeError::Option(format!("--format names `{twice}` twice"))),
        None => Ok(()),
    }
}

/// Refuses modules that one of `formats` can't hold.
pub fn check_held(modules: &[QuantizedModule], formats: &[Target]) -> Result<(), QuantizeError> {
    formats.iter().try_for_each(|format| {
        format.check(modules).map_err(|error| QuantizeError::Format { format: *format, source: error })
    })
}

impl Module {
    /// As the formats see it; `None` if it stays in full precision.
    pub fn quantized(&self) -> Option<QuantizedModule> {
        let spec = self.spec?;
        Some(QuantizedModule { name: self.name.clone(), outputs: self.outputs, inputs: self.inputs, spec })
    }
}

/// Every linear of every block, in the order of computation.
fn linears(config: &Config) -> Vec<Module> {
    let places = (0..config.layers.len()).flat_map(|block| Stage::ALL.map(|stage| (block, stage)));
    let module = |block, stage, linear: LinearLayout| Module {
        name: linear.name,
        block,
        stage: Some(stage),
        outputs: linear.outputs,
        inputs: linear.inputs,
        spec: None,
        blocks: None,
    };
    places
        .flat_map(|(block, stage)| {
            config.linears(block, stage).into_iter().map(move |linear| module(block, stage, linear))
        })
        .collect()
}

fn head(config: &Config) -> Module {
    Module {
        name: HEAD.to_owned(),
        block: config.layers.len(),
        stage: None,
        outputs: config.vocabulary,
        inputs: config.hidden_size,
        spec: None,
        blocks: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use calibration::Packing;
    use model::format::gptq::Version;
    use serde_json::json;
    use std::path::Path;

    fn config() -> Config {
        let json = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128, "intermediate_size": 256,
            "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 320,
            "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": true,
        });
        Config::from_json(&json, Path::new("config.json")).unwrap()
    }

    fn options() -> Options {
        Options {
            method: Method::Gptq,
            bits: 4,
            group_size: 128,
            symmetric: true,
            act_order: ActOrder::Static,
            scale_search: ScaleSearch::MinMax,
            damping: 0.01,
            input_correction: 0.0,
            awq: AwqOptions::default(),
            inputs: Inputs::Quantized,
            sequence: Sequence::Module,
            formats: vec![Target::Gptq(Version::V1)],
            overrides: Vec::new(),
            skip: Vec::new(),
            lm_head: false,
            shard_bytes: 1 << 32,
            calibration: vec!["text.txt".to_owned()],
            windows: WindowOptions { samples: 1, sequence_length: 8, seed: 0, packing: Packing::Concat, field: None },
            compute: Compute::default(),
            imatrix: None,
        }
    }

    #[test]
    fn modules_come_in_the_order_of_computation_and_the_head_last() {
        let plan = Options { lm_head: true, ..options() }.check(&config()).unwrap();
        let names: Vec<&str> = plan.modules.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names.len(), 15);
        assert_eq!(names[0], "model.layers.0.self_attn.q_proj");
        assert_eq!(names[6], "model.layers.0.mlp.down_proj");
        assert_eq!(names[14], HEAD);
        assert_eq!((plan.blocks(), plan.modules[14].outputs), (3, 320));
        assert_eq!(options().check(&config()).unwrap().blocks(), 2);
    }

    #[test]
    fn later_overrides_win_and_skips_win_over_them() {
        let overrides = ["*:bits=8", "*.mlp.*:group-size=64", "*.up_proj:bits=3"].map(str::to_owned).to_vec();
        let plan = Options { overrides, skip: vec!["*.1.*".to_owned()], ..options() }.check(&config()).unwrap();
        let settings = |module: &str| plan.spec_of(&format!("model.layers.{module}")).map(|s| (s.bits, s.group_size));
        assert_eq!(settings("0.self_attn.q_proj"), Some((8, Some(128))));
        assert_eq!(settings("0.mlp.gate_proj"), Some((8, Some(64))));
        assert_eq!(settings("0.mlp.up_proj"), Some((3, Some(64))));
        assert_eq!(settings("1.mlp.up_proj"), None);
    }

    #[test]
    fn zero_points_and_order_follow_format_and_method() {
        let spec = |options: Options| options.spec().unwrap();
        assert_eq!(spec(options()).smallest_zero, 1);
        assert_eq!(spec(Options { formats: vec![Target::Gptq(Version::V2)], ..options() }).smallest_zero, 0);
        assert_eq!(spec(Options { method: Method::Rtn, ..options() }).act_order, ActOrder::None);
        assert_eq!(spec(Options { group_size: -1, ..options() }).group_size, None);
    }

    #[test]
    fn what_no_runtime_wants_is_warned_of() {
        let equal = options().check(&config()).unwrap();
        assert!(equal.warnings.iter().all(|warning| !warning.contains("refuses")), "{:?}", equal.warnings);
        let overrides = vec!["*.q_proj:bits=8".to_owned()];
        let unequal = Options { overrides, ..options() }.check(&config()).unwrap();
        assert!(unequal.warnings.iter().any(|warning| warning.starts_with("vLLM refuses")), "{:?}", unequal.warnings);
    }
}
