//! From options to a plan: [`Options::check`] refuses what can't be done; nothing after it checks again.

use crate::{
    QuantizeError,
    overrides::{Override, group_size, pattern},
};
use calibration::{Inputs, Sequence, WindowOptions};
use kernels::{ActOrder, QuantSpec, ScaleSearch};
use model::{
    Config, Stage,
    config::LinearLayout,
    format::gptq::{self, Version},
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
    /// Whose outputs later layers see.
    pub inputs: Inputs,
    /// How the linears of a block follow each other.
    pub sequence: Sequence,
    /// How zero-points are stored.
    pub zero_points: Version,
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
        let gptq = self.method == Method::Gptq;
        let spec = QuantSpec {
            bits: self.bits,
            group_size: group_size(&self.group_size.to_string())?,
            symmetric: self.symmetric,
            act_order: if gptq { self.act_order } else { ActOrder::None },
            scale_search: self.scale_search,
            smallest_zero: u8::from(self.zero_points == Version::V1),
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
        if self.method == Method::Gptq && self.calibration.is_empty() {
            return Err(QuantizeError::Option(
                "--method gptq needs text to calibrate on: give --calibration FILE, or use --method rtn".to_owned(),
            ));
        }
        let mut modules = linears(config);
        modules.extend(self.lm_head.then(|| head(config)));
        self.settle(&spec, &mut modules)?;
        if modules.iter().all(|module| module.spec.is_none()) {
            return Err(QuantizeError::Option("nothing is left to quantize: every linear is skipped".to_owned()));
        }
        let warnings = crate::warnings::of(&modules, self.zero_points, config);
        Ok(ValidPlan { options: self, spec, modules, warnings })
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
            gptq::check_shape(&module.name, module.outputs, module.inputs)?;
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

    /// The modules that are quantized.
    pub fn quantized(&self) -> impl Iterator<Item = &Module> {
        self.modules.iter().filter(|m| m.spec.is_some())
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
    }
}
