//! What is allowed but bites later: groups that don't divide a width, siblings that a runtime fuses with unequal
//! settings.

use crate::plan::Module;
use kernels::QuantSpec;
use model::Stage;
use std::collections::{BTreeMap, BTreeSet};

/// One sentence for each thing to know.
pub fn of(modules: &[Module], spec: &QuantSpec) -> Vec<String> {
    ragged_groups(modules).into_iter().chain(unequal_siblings(modules)).chain(group_index(spec)).collect()
}

/// The last group of a row is shorter where the group size does not divide the width.
fn ragged_groups(modules: &[Module]) -> Vec<String> {
    let ragged: BTreeSet<(usize, usize)> = modules
        .iter()
        .filter_map(|module| Some((module.spec?.group_size?, module.inputs)))
        .filter(|(group_size, inputs)| inputs % group_size.min(inputs) != 0)
        .collect();
    ragged
        .into_iter()
        .map(|(group_size, inputs)| {
            format!(
                "groups of {group_size} don't divide inputs of width {inputs}: the last group is shorter, and vLLM, ExLlama and Marlin kernels refuse such a layer; {} would divide",
                listed(&dividing(inputs))
            )
        })
        .collect()
}

/// Group sizes that loaders know and that divide `inputs`.
fn dividing(inputs: usize) -> Vec<String> {
    let known = [128usize, 64, 32, 16].into_iter().filter(|size| inputs.is_multiple_of(*size));
    known.map(|size| size.to_string()).chain(["-1".to_owned()]).collect()
}

/// vLLM fuses q, k, v into one matrix and gate, up into another, and wants one setting for each.
fn unequal_siblings(modules: &[Module]) -> Vec<String> {
    let mut stages: BTreeMap<(usize, Stage), Vec<&Module>> = BTreeMap::new();
    for module in modules {
        stages.entry((module.block, module.stage)).or_default().push(module);
    }
    let unequal = stages.values().filter(|members| members.iter().any(|m| m.spec != members[0].spec));
    let names: Vec<String> =
        unequal.map(|m| m.iter().map(|m| m.name.as_str()).collect::<Vec<_>>().join(", ")).collect();
    let Some(first) = names.first() else { return Vec::new() };
    vec![format!(
        "{} group(s) of linears that vLLM fuses have unequal settings and it will refuse them, the first: {first}",
        names.len()
    )]
}

fn group_index(spec: &QuantSpec) -> Option<String> {
    (spec.act_order == kernels::ActOrder::Desc).then(|| {
        "act-order desc scatters groups over columns: kernels must look the group of each column up and are slower; static costs nothing at inference".to_owned()
    })
}

fn listed(items: &[String]) -> String {
    match items {
        [] => String::new(),
        [only] => only.clone(),
        [head @ .., last] => format!("{} or {last}", head.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::{ActOrder, ScaleSearch};

    fn module(name: &str, stage: Stage, inputs: usize, bits: u32) -> Module {
        let spec = QuantSpec {
            bits,
            group_size: Some(128),
            symmetric: true,
            act_order: ActOrder::Static,
            scale_search: ScaleSearch::MinMax,
            smallest_zero: 1,
        };
        Module { name: name.to_owned(), block: 0, stage, outputs: 8, inputs, spec: Some(spec) }
    }

    #[test]
    fn a_group_size_that_does_not_divide_is_named_with_those_that_do() {
        let modules = [module("a", Stage::Down, 576, 4), module("b", Stage::Output, 512, 4)];
        let warnings = of(&modules, &modules[0].spec.unwrap());
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("groups of 128 don't divide inputs of width 576"), "{}", warnings[0]);
        assert!(warnings[0].ends_with("64, 32, 16 or -1 would divide"), "{}", warnings[0]);
    }

    #[test]
    fn siblings_that_a_runtime_fuses_must_agree() {
        let modules = [module("q", Stage::Qkv, 512, 4), module("k", Stage::Qkv, 512, 8)];
        let warnings = of(&modules, &modules[0].spec.unwrap());
        assert!(warnings[0].contains("vLLM fuses") && warnings[0].ends_with("q, k"), "{warnings:?}");
    }
}
