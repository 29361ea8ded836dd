//! Which runtimes load a quantized checkpoint, and why not: rules about widths, groups and grids, tried on every module.
//!
//! GPTQ:
//!
//! | | bits | group size | grid | widths |
//! |---|---|---|---|---|
//! | Marlin kernels | 4, 8 | -1, 32, 64, 128 | symmetric | inputs % 128 = 0, outputs % 64 = 0 |
//! | ExLlama kernels | 4 | -1, 32, 64, 128 | any | inputs % group size = 0 |
//! | vLLM | 2, 3, 4, 8 | any | any | inputs % group size = 0; q/k/v and gate/up alike |
//! | Transformers with GPTQModel | 2, 3, 4, 8 | -1, 16 to 1024 in powers of two | any | a ragged group only in PyTorch |
//!
//! AWQ and compressed-tensors in vLLM:
//!
//! | | bits | group size | grid | otherwise |
//! |---|---|---|---|---|
//! | AWQ, Marlin | 4 | -1, 32, 64, 128 | any | layer by layer AWQ's own kernels: float16, no -1 |
//! | compressed-tensors, Marlin | 4, 8 | -1, 32, 64, 128 | asymmetric at 4 bits | ExLlama: float16, symmetric |
//!
//! The widths are those of the Marlin kernels above. Transformers reads both through a package of the format's own, AWQ
//! with the head in full precision.
//!
//! The rules of GPTQModel (7.4) and of its Marlin and ExLlama kernels, and vLLM's on widths, were read in their sources
//! in November 2026; that vLLM's other GPTQ kernels compute in float16 only and that it refuses Gemma in float16 is
//! from its documentation. None of these runtimes was run here. More than one device splits widths further.

use crate::{
    Config,
    config::Family,
    format::{QuantizedModule, Target, gptq::Version},
};
use kernels::ActOrder;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt};

/// A program, or a family of kernels, that runs quantized checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Runtime {
    /// vLLM.
    #[serde(rename = "vLLM")]
    Vllm,
    /// Transformers with the GPTQModel package.
    #[serde(rename = "Transformers with GPTQModel")]
    GptqModel,
    /// Transformers with the AutoAWQ package.
    #[serde(rename = "Transformers with AutoAWQ")]
    AutoAwq,
    /// Transformers with the compressed-tensors package.
    #[serde(rename = "Transformers with compressed-tensors")]
    CompressedTensors,
    /// The Marlin kernels, in vLLM and elsewhere.
    #[serde(rename = "Marlin kernels")]
    Marlin,
    /// The ExLlama (version 2) kernels.
    #[serde(rename = "ExLlama kernels")]
    ExLlama,
}

impl Runtime {
    /// Those that GPTQ checkpoints are judged for.
    pub const OF_GPTQ: [Self; 4] = [Self::Vllm, Self::GptqModel, Self::Marlin, Self::ExLlama];
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Vllm => "vLLM",
            Self::GptqModel => "Transformers with GPTQModel",
            Self::AutoAwq => "Transformers with AutoAWQ",
            Self::CompressedTensors => "Transformers with compressed-tensors",
            Self::Marlin => "Marlin kernels",
            Self::ExLlama => "ExLlama kernels",
        })
    }
}

/// What a runtime does with a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It loads, with the fast kernels.
    #[serde(rename = "loads")]
    Loads,
    /// It loads, with slower kernels.
    #[serde(rename = "loads slower")]
    LoadsSlower,
    /// It refuses.
    #[serde(rename = "refuses")]
    Refuses,
    /// There are no rules here for this kind of checkpoint.
    #[serde(rename = "unknown")]
    Unknown,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Loads => "loads",
            Self::LoadsSlower => "loads slower",
            Self::Refuses => "refuses",
            Self::Unknown => "unknown",
        })
    }
}

/// What one runtime does with a checkpoint, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Whose.
    pub runtime: Runtime,
    /// What.
    pub outcome: Outcome,
    /// Why, naming the first module that causes it; may be empty for [`Outcome::Loads`].
    pub reason: String,
}

impl Verdict {
    fn of(runtime: Runtime, (outcome, reason): (Outcome, String)) -> Self {
        Self { runtime, outcome, reason }
    }
}

/// A verdict for each runtime that there are rules for on a checkpoint of `modules` in a format; `config` where the
/// architecture is known. None on float weights.
pub fn verdicts(modules: &[QuantizedModule], target: Target, config: Option<&Config>) -> Vec<Verdict> {
    match target {
        Target::Gptq(version) => gptq(modules, version, config),
        Target::Awq => vec![
            Verdict::of(Runtime::Vllm, vllm_awq(modules, config)),
            Verdict::of(Runtime::AutoAwq, auto_awq(modules)),
            Verdict::of(Runtime::Marlin, kernels_only(modules, marlin_awq_objection)),
        ],
        Target::CompressedTensors => vec![
            Verdict::of(Runtime::Vllm, vllm_compressed(modules, config)),
            Verdict::of(Runtime::CompressedTensors, (Outcome::Loads, "unpacks the weights in PyTorch".into())),
            Verdict::of(Runtime::Marlin, kernels_only(modules, marlin_compressed_objection)),
        ],
        Target::Dequantized(_) | Target::Gguf(_) => Vec::new(),
    }
}

fn gptq(modules: &[QuantizedModule], version: Version, config: Option<&Config>) -> Vec<Verdict> {
    let judge =
        |runtime, (outcome, reason)| Verdict { runtime, outcome, reason: with_version(outcome, reason, version) };
    vec![
        judge(Runtime::Vllm, vllm(modules, config)),
        judge(Runtime::GptqModel, gptq_model(modules)),
        judge(Runtime::Marlin, kernels_only(modules, marlin_objection)),
        judge(Runtime::ExLlama, kernels_only(modules, exllama_objection)),
    ]
}

/// The verdict [`Outcome::Unknown`] for every runtime that reads folders of many kinds.
pub fn unknown(reason: &str) -> Vec<Verdict> {
    Runtime::OF_GPTQ.map(|runtime| Verdict { runtime, outcome: Outcome::Unknown, reason: reason.into() }).into()
}

/// The group sizes, 16 to 1024 in powers of two as kernels know them, that divide `inputs`.
pub fn dividing_group_sizes(inputs: usize) -> Vec<usize> {
    (4..=10).map(|power| 1 << power).filter(|&size| inputs.is_multiple_of(size)).collect()
}

const SLOW_ORDER: &str = "columns are in act-order, so inputs are gathered through g_idx";

fn vllm(modules: &[QuantizedModule], config: Option<&Config>) -> (Outcome, String) {
    if let Some(reason) = first(modules, ragged_objection).or_else(|| fused_objection(modules)) {
        return (Outcome::Refuses, reason);
    }
    match first(modules, marlin_objection) {
        Some(reason) if config.is_some_and(|config| config.family == Family::Gemma3) => {
            (Outcome::Refuses, format!("Gemma needs bfloat16, which only the Marlin kernels offer, but {reason}"))
        }
        Some(reason) => (Outcome::LoadsSlower, format!("not with the Marlin kernels, and in float16 only: {reason}")),
        None if act_ordered(modules) => (Outcome::LoadsSlower, SLOW_ORDER.into()),
        None => (Outcome::Loads, "with the Marlin kernels".into()),
    }
}

/// AWQ: Marlin layer by layer, where it can't AWQ's own kernels.
fn vllm_awq(modules: &[QuantizedModule], config: Option<&Config>) -> (Outcome, String) {
    if let Some(reason) = fused_objection(modules) {
        return (Outcome::Refuses, reason);
    }
    let Some(reason) = first(modules, marlin_awq_objection) else {
        return (Outcome::Loads, "with the Marlin kernels".into());
    };
    if config.is_some_and(|config| config.family == Family::Gemma3) {
        return (Outcome::Refuses, format!("Gemma needs bfloat16, which only the Marlin kernels offer, but {reason}"));
    }
    if modules.iter().any(|module| module.spec.group_size.is_none()) {
        return (Outcome::Refuses, format!("only the Marlin kernels take one group per row, but {reason}"));
    }
    (Outcome::LoadsSlower, format!("not all with the Marlin kernels, and in float16 only: {reason}"))
}

/// Transformers puts AWQ linears in place of all but the head.
fn auto_awq(modules: &[QuantizedModule]) -> (Outcome, String) {
    if modules.iter().any(|module| module.name == "lm_head") {
        return (Outcome::Refuses, "`lm_head`: the head is expected in full precision".into());
    }
    (Outcome::Loads, "on a GPU, in float16".into())
}

/// compressed-tensors: Marlin, where it can't the ExLlama kernels, which have no zero-points there.
fn vllm_compressed(modules: &[QuantizedModule], config: Option<&Config>) -> (Outcome, String) {
    if let Some(reason) = first(modules, head_objection).or_else(|| fused_objection(modules)) {
        return (Outcome::Refuses, reason);
    }
    match first(modules, marlin_compressed_objection) {
        Some(reason) if modules.iter().any(|module| !module.spec.symmetric) => {
            (Outcome::Refuses, format!("only the Marlin kernels take zero-points, but {reason}"))
        }
        Some(reason) if config.is_some_and(|config| config.family == Family::Gemma3) => {
            (Outcome::Refuses, format!("Gemma needs bfloat16, which only the Marlin kernels offer, but {reason}"))
        }
        Some(reason) => (Outcome::LoadsSlower, format!("not with the Marlin kernels, and in float16 only: {reason}")),
        None if act_ordered(modules) => (Outcome::LoadsSlower, SLOW_ORDER.into()),
        None => (Outcome::Loads, "with the Marlin kernels".into()),
    }
}

fn gptq_model(modules: &[QuantizedModule]) -> (Outcome, String) {
    let group_size = |module: &QuantizedModule| match module.spec.group_size {
        Some(size) if !(size.is_power_of_two() && (16..=1024).contains(&size)) => {
            Some(format!("knows the group sizes -1 and 16, 32, … 1024, not {size}"))
        }
        _ => None,
    };
    if let Some(reason) = first(modules, group_size) {
        return (Outcome::Refuses, reason);
    }
    if let Some(reason) = first(modules, ragged_objection) {
        return (Outcome::LoadsSlower, format!("older versions refuse, newer ones compute in plain PyTorch: {reason}"));
    }
    match (first(modules, marlin_objection), first(modules, exllama_objection)) {
        (Some(marlin), Some(_)) => (Outcome::LoadsSlower, format!("with PyTorch or Triton kernels only: {marlin}")),
        _ if act_ordered(modules) => (Outcome::LoadsSlower, SLOW_ORDER.into()),
        (None, _) => (Outcome::Loads, "with the Marlin kernels".into()),
        (Some(_), None) => (Outcome::Loads, "with the ExLlama kernels".into()),
    }
}

fn kernels_only(modules: &[QuantizedModule], objection: fn(&QuantizedModule) -> Option<String>) -> (Outcome, String) {
    match first(modules, objection) {
        Some(reason) => (Outcome::Refuses, reason),
        None if act_ordered(modules) => (Outcome::LoadsSlower, SLOW_ORDER.into()),
        None => (Outcome::Loads, String::new()),
    }
}

/// Version 2 zero-points are a matter of the loader's age.
fn with_version(outcome: Outcome, reason: String, version: Version) -> String {
    if version == Version::V1 || matches!(outcome, Outcome::Refuses | Outcome::Unknown) {
        return reason;
    }
    let note = "needs a version that knows `gptq_v2`";
    if reason.is_empty() { note.into() } else { format!("{reason}; {note}") }
}

/// The first module that `objection` is raised against, with the number of others.
fn first(modules: &[QuantizedModule], objection: impl Fn(&QuantizedModule) -> Option<String>) -> Option<String> {
    let mut objections = modules.iter().filter_map(|module| Some((module, objection(module)?)));
    let (module, reason) = objections.next()?;
    let others = match objections.count() {
        0 => String::new(),
        1 => " (and one module more)".into(),
        count => format!(" (and {count} modules more)"),
    };
    Some(format!("`{}`: {reason}{others}", module.name))
}

fn act_ordered(modules: &[QuantizedModule]) -> bool {
    modules.iter().any(|module| module.spec.act_order == ActOrder::Desc)
}

fn ragged_objection(module: &QuantizedModule) -> Option<String> {
    let size = module.spec.group_size.filter(|&size| !module.inputs.is_multiple_of(size))?;
    let dividing = dividing_group_sizes(module.inputs);
    let advice = match dividing.as_slice() {
        [] => "; no group size but -1 would".into(),
        sizes => format!("; {sizes:?} would"),
    };
    Some(format!("group size {size} does not divide {} inputs{advice}", module.inputs))
}

fn common_group_size_objection(module: &QuantizedModule) -> Option<String> {
    let size = module.spec.group_size.filter(|size| ![32, 64, 128].contains(size))?;
    Some(format!("group size {size} is none of -1, 32, 64, 128"))
}

fn marlin_objection(module: &QuantizedModule) -> Option<String> {
    let spec = &module.spec;
    if !matches!(spec.bits, 4 | 8) {
        Some(format!("{} bits, not 4 or 8", spec.bits))
    } else if !spec.symmetric {
        Some("the grid is asymmetric".into())
    } else {
        marlin_shape_objection(module)
    }
}

/// AWQ files always have zero-points, which Marlin takes at 4 bits.
fn marlin_awq_objection(module: &QuantizedModule) -> Option<String> {
    if module.spec.bits == 4 { marlin_shape_objection(module) } else { Some(format!("{} bits", module.spec.bits)) }
}

fn marlin_compressed_objection(module: &QuantizedModule) -> Option<String> {
    let spec = &module.spec;
    if spec.symmetric || spec.bits == 4 {
        marlin_shape_objection(module)
    } else {
        Some(format!("the grid is asymmetric at {} bits", spec.bits))
    }
}

fn head_objection(module: &QuantizedModule) -> Option<String> {
    (module.name == "lm_head").then(|| "a quantized head is read from GPTQ and AWQ files only".into())
}

fn marlin_shape_objection(module: &QuantizedModule) -> Option<String> {
    let QuantizedModule { outputs, inputs, .. } = module;
    if !inputs.is_multiple_of(128) {
        Some(format!("{inputs} inputs are not a multiple of 128"))
    } else if !outputs.is_multiple_of(64) {
        Some(format!("{outputs} outputs are not a multiple of 64"))
    } else {
        common_group_size_objection(module).or_else(|| ragged_objection(module))
    }
}

fn exllama_objection(module: &QuantizedModule) -> Option<String> {
    let QuantizedModule { outputs, inputs, spec, .. } = module;
    if spec.bits != 4 {
        Some(format!("{} bits, not 4", spec.bits))
    } else if !inputs.is_multiple_of(32) || !outputs.is_multiple_of(32) {
        Some(format!("{inputs} inputs and {outputs} outputs are not both multiples of 32"))
    } else {
        common_group_size_objection(module).or_else(|| ragged_objection(module))
    }
}

/// vLLM makes one matrix of q, k, v and one of gate, up: they must all be quantized, and alike.
fn fused_objection(modules: &[QuantizedModule]) -> Option<String> {
    const FUSED: [&[&str]; 2] = [&["q_proj", "k_proj", "v_proj"], &["gate_proj", "up_proj"]];
    let by_name: BTreeMap<&str, &QuantizedModule> = modules.iter().map(|module| (&*module.name, module)).collect();
    for module in modules {
        let Some((parent, own)) = module.name.rsplit_once('.') else { continue };
        let Some(members) = FUSED.iter().find(|members| members.contains(&own)) else { continue };
        for member in *members {
            let sibling = format!("{parent}.{member}");
            match by_name.get(&*sibling) {
                None => return Some(format!("`{}` is quantized but `{sibling}` is not; vLLM fuses them", module.name)),
                Some(other) if settings(other) != settings(module) => {
                    return Some(format!("`{}` and `{sibling}` have different settings; vLLM fuses them", module.name));
                }
                Some(_) => {}
            }
        }
    }
    None
}

/// The settings that fused modules must share.
fn settings(module: &QuantizedModule) -> (u32, Option<usize>, bool, bool) {
    let spec = &module.spec;
    (spec.bits, spec.group_size, spec.symmetric, spec.act_order == ActOrder::Desc)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::{QuantSpec, ScaleSearch};

    fn module(name: &str, outputs: usize, inputs: usize, bits: u32, group_size: Option<usize>) -> QuantizedModule {
        let spec = QuantSpec {
            bits,
            group_size,
            symmetric: true,
            act_order: ActOrder::None,
            scale_search: ScaleSearch::MinMax,
            smallest_zero: 1,
        };
        QuantizedModule { name: name.into(), outputs, inputs, spec }
    }

    fn outcomes(modules: &[QuantizedModule]) -> [Outcome; 4] {
        let outcomes: Vec<Outcome> =
            verdicts(modules, Target::Gptq(Version::V1), None).iter().map(|v| v.outcome).collect();
        outcomes.try_into().unwrap()
    }

    use Outcome::{Loads, LoadsSlower, Refuses};

    #[test]
    fn a_plain_symmetric_4_bit_model_loads_everywhere() {
        assert_eq!(outcomes(&[module("down_proj", 4096, 11008, 4, Some(128))]), [Loads; 4]);
        assert_eq!(outcomes(&[module("down_proj", 4096, 11008, 8, None)]), [Loads, Loads, Loads, Refuses]);
    }

    #[test]
    fn asymmetric_grids_and_odd_widths_leave_marlin() {
        let mut asymmetric = module("down_proj", 4096, 4096, 4, Some(128));
        asymmetric.spec.symmetric = false;
        assert_eq!(outcomes(&[asymmetric]), [LoadsSlower, Loads, Refuses, Loads]);
        assert_eq!(outcomes(&[module("down_proj", 576, 1536, 4, Some(64))]), [Loads; 4]);
        assert_eq!(outcomes(&[module("o_proj", 576, 576, 4, Some(64))]), [LoadsSlower, Loads, Refuses, Loads]);
        assert_eq!(
            outcomes(&[module("o_proj", 4096, 4096, 3, Some(128))]),
            [LoadsSlower, LoadsSlower, Refuses, Refuses]
        );
        assert_eq!(outcomes(&[module("o_proj", 4096, 4096, 4, Some(48))]), [Refuses, Refuses, Refuses, Refuses]);
    }

    #[test]
    fn a_ragged_group_is_refused_with_the_sizes_that_divide() {
        let verdicts = verdicts(&[module("o_proj", 576, 576, 4, Some(128))], Target::Gptq(Version::V1), None);
        assert_eq!(verdicts[0].outcome, Refuses);
        assert_eq!(verdicts[0].reason, "`o_proj`: group size 128 does not divide 576 inputs; [16, 32, 64] would");
        assert_eq!(verdicts[1].outcome, LoadsSlower);
        assert_eq!(verdicts[3].outcome, Refuses);
    }

    #[test]
    fn act_order_is_slower_and_version_2_is_noted() {
        let mut ordered = module("down_proj", 4096, 4096, 4, Some(128));
        ordered.spec.act_order = ActOrder::Desc;
        assert_eq!(outcomes(&[ordered.clone()]), [LoadsSlower; 4]);
        let verdicts = verdicts(&[ordered], Target::Gptq(Version::V2), None);
        assert!(verdicts.iter().all(|verdict| verdict.reason.ends_with("knows `gptq_v2`")), "{verdicts:?}");
    }

    #[test]
    fn fused_members_must_agree_for_vllm() {
        let names = ["l.self_attn.q_proj", "l.self_attn.k_proj", "l.self_attn.v_proj"];
        let mut modules: Vec<_> = names.iter().map(|name| module(name, 128, 128, 4, Some(32))).collect();
        assert_eq!(outcomes(&modules), [Loads; 4]);
        modules[2].spec.bits = 8;
        assert_eq!(outcomes(&modules), [Refuses, Loads, Loads, Refuses]);
        modules.pop();
        let reason = &verdicts(&modules, Target::Gptq(Version::V1), None)[0].reason;
        assert_eq!(reason, "`l.self_attn.q_proj` is quantized but `l.self_attn.v_proj` is not; vLLM fuses them");
    }

    #[test]
    fn other_formats_have_their_own_rules() {
        let outcomes = |target, modules: &[QuantizedModule]| -> Vec<Outcome> {
            verdicts(modules, target, None).iter().map(|verdict| verdict.outcome).collect()
        };
        let mut asymmetric = module("down_proj", 4096, 11008, 4, Some(128));
        asymmetric.spec.symmetric = false;
        for target in [Target::Awq, Target::CompressedTensors] {
            assert_eq!(outcomes(target, &[asymmetric.clone()]), [Loads; 3]);
            assert_eq!(outcomes(target, &[module("o_proj", 576, 576, 4, Some(64))]), [LoadsSlower, Loads, Refuses]);
        }
        assert_eq!(outcomes(Target::Awq, &[module("o_proj", 576, 576, 4, None)]), [Refuses, Loads, Refuses]);
        asymmetric.spec.bits = 8;
        assert_eq!(outcomes(Target::CompressedTensors, &[asymmetric]), [Refuses, Loads, Refuses]);
        assert_eq!(outcomes(Target::Awq, &[module("lm_head", 4096, 4096, 4, Some(128))]), [Loads, Refuses, Loads]);
        assert_eq!(
            outcomes(Target::CompressedTensors, &[module("lm_head", 4096, 4096, 4, None)]),
            [Refuses, Loads, Loads]
        );
        assert!(verdicts(&[module("o_proj", 576, 576, 4, None)], Target::Dequantized(None), None).is_empty());
    }

    #[test]
    fn dividing_group_sizes_of_real_widths() {
        assert_eq!(dividing_group_sizes(576), [16, 32, 64]);
        assert_eq!(dividing_group_sizes(896), [16, 32, 64, 128]);
        assert_eq!(dividing_group_sizes(4864), [16, 32, 64, 128, 256]);
        assert_eq!(dividing_group_sizes(100), [0; 0]);
    }
}
