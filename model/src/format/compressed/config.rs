//! `quantization_config` of compressed-tensors: written, and read for what it says of each linear.

use crate::{
    ModelError,
    format::{
        Contents, QuantizedModule,
        settings::{Fields, GroupSize, group_size},
    },
};
use fancy_regex::Regex;
use kernels::{ActOrder, QuantSpec, ScaleSearch};
use serde_json::{Map, Value, json};
use std::{collections::HashMap, path::Path};

/// The class that a group of settings is for when it is for every linear.
const CLASS: &str = "Linear";

/// The object; `skipped` are the linears that stay in full precision.
pub(super) fn to_json(contents: &Contents<'_>, skipped: &[String]) -> Value {
    let mut groups: Vec<(Value, Vec<&str>)> = Vec::new();
    for module in contents.modules {
        let weights = weights_json(&module.spec, module.inputs);
        match groups.iter_mut().find(|(known, _)| *known == weights) {
            Some((_, names)) => names.push(&module.name),
            None => groups.push((weights, vec![&module.name])),
        }
    }
    let alone = groups.len() == 1;
    let group = |(weights, names): (Value, Vec<&str>)| {
        let targets = if alone { json!([CLASS]) } else { json!(names) };
        json!({ "targets": targets, "weights": weights, "input_activations": null, "output_activations": null })
    };
    let groups: Map<String, Value> =
        groups.into_iter().enumerate().map(|(index, found)| (format!("group_{index}"), group(found))).collect();
    let head = contents.modules.iter().any(|module| module.name == "lm_head");
    let mut ignore = skipped.to_vec();
    ignore.extend((!head).then(|| "lm_head".to_owned()));
    json!({
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "global_compression_ratio": null,
        "kv_cache_scheme": null,
        "ignore": ignore,
        "config_groups": groups,
    })
}

/// `weights` of a group of settings.
fn weights_json(spec: &QuantSpec, inputs: usize) -> Value {
    // An order of columns is only accepted beside groups.
    let actorder = match spec.act_order {
        ActOrder::Desc if spec.group_size.is_some() => json!("group"),
        ActOrder::Static if spec.group_size.is_some() => json!("weight"),
        _ => Value::Null,
    };
    json!({
        "num_bits": spec.bits,
        "type": "int",
        "symmetric": spec.symmetric,
        "strategy": if spec.group_size.is_some() { "group" } else { "channel" },
        "group_size": spec.group_size.map(|size| size.min(inputs)),
        "dynamic": false,
        "actorder": actorder,
        "block_structure": null,
        "observer": if spec.scale_search == ScaleSearch::Mse { "mse" } else { "minmax" },
        "observer_kwargs": {},
    })
}

/// The settings of a compressed-tensors checkpoint.
#[derive(Clone, Debug)]
pub struct Settings {
    schemes: Vec<(Vec<Name>, Scheme)>,
    ignore: Vec<Name>,
    /// The scheme that names a linear exactly.
    exact: HashMap<String, usize>,
}

/// One group of settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheme {
    /// Bits per code.
    pub bits: u32,
    /// Columns per group; `None` is one group a row.
    pub group_size: Option<usize>,
    /// Whether there are no zero-points.
    pub symmetric: bool,
    /// How columns were ordered.
    pub act_order: ActOrder,
}

/// An entry of `targets` or `ignore`.
#[derive(Clone, Debug)]
enum Name {
    Exact(String),
    /// `re:...`, matched from the start of a name.
    Matching(Regex),
}

impl Name {
    fn is(&self, module: &str) -> bool {
        match self {
            Self::Exact(name) => name == module,
            // An expression that runs out of steps matches nothing: the tensors then contradict the settings.
            Self::Matching(expression) => expression.is_match(module).unwrap_or(false),
        }
    }

    /// A class of modules: every linear is one of `Linear`.
    fn is_class(&self) -> bool {
        matches!(self, Self::Exact(name) if name == CLASS)
    }
}

impl Settings {
    /// The settings in `object`, which is `quantization_config` in the file `path`.
    pub fn parse(object: &Value, path: &Path) -> Result<Self, ModelError> {
        let fields = Fields { object, path };
        let format = fields.text("format")?.ok_or_else(|| fields.missing("format"))?;
        if !matches!(format, "pack-quantized" | "mixed-precision") {
            return Err(fields.unsupported(format!("the compressed-tensors format `{format}`")));
        }
        if let Some(status) = fields.text("quantization_status")?.filter(|status| *status != "compressed") {
            return Err(fields.unsupported(format!("a checkpoint whose `quantization_status` is `{status}`")));
        }
        for key in ["kv_cache_scheme", "sparsity_config", "transform_config"] {
            absent(&fields, key)?;
        }
        let groups = fields.any(&["config_groups"])?.ok_or_else(|| fields.missing("config_groups"))?;
        let groups = groups.as_object().ok_or_else(|| fields.malformed("config_groups", groups))?;
        let mut parsed = Self { schemes: Vec::new(), ignore: names(&fields, "ignore")?, exact: HashMap::new() };
        for group in groups.values() {
            let group = Fields { object: group, path };
            let own = group.text("format")?.unwrap_or(format);
            if own != "pack-quantized" {
                return Err(fields.unsupported(format!("a group of settings in the format `{own}`")));
            }
            let targets = names(&group, "targets")?;
            for target in &targets {
                if let Name::Exact(name) = target {
                    parsed.exact.entry(name.clone()).or_insert(parsed.schemes.len());
                }
            }
            parsed.schemes.push((targets, scheme(&group)?));
        }
        Ok(parsed)
    }

    /// How `module` is quantized: by the group of settings that names it, else the first whose expression matches it, else
    /// the first for the class of linears. `None` where it is ignored or not spoken of.
    pub fn module(&self, module: &str) -> Option<Scheme> {
        if self.ignore.iter().any(|name| name.is(module)) {
            return None;
        }
        let exact = self.exact.get(module).map(|&index| &self.schemes[index]);
        let found = exact
            .or_else(|| self.schemes.iter().find(|(targets, _)| targets.iter().any(|target| target.is(module))))
            .or_else(|| self.schemes.iter().find(|(targets, _)| targets.iter().any(Name::is_class)));
        found.map(|(_, scheme)| *scheme)
    }

    /// The description of a quantized linear found in the file. How scales were searched leaves no sure trace.
    pub(super) fn described(&self, name: &str, outputs: usize, inputs: usize) -> Option<QuantizedModule> {
        let Scheme { bits, group_size, symmetric, act_order } = self.module(name)?;
        let spec =
            QuantSpec { bits, group_size, symmetric, act_order, scale_search: ScaleSearch::MinMax, smallest_zero: 0 };
        Some(QuantizedModule { name: name.into(), outputs, inputs, spec })
    }
}

/// Refuses a setting that asks for what is not done here.
fn absent(fields: &Fields<'_>, key: &str) -> Result<(), ModelError> {
    match fields.any(&[key])? {
        Some(value) if value.as_object().is_none_or(|object| !object.is_empty()) => {
            Err(fields.unsupported(format!("a checkpoint with `{key}`")))
        }
        _ => Ok(()),
    }
}

fn names(fields: &Fields<'_>, key: &str) -> Result<Vec<Name>, ModelError> {
    let name = |text: String| match text.strip_prefix("re:") {
        None => Ok(Name::Exact(text)),
        Some(pattern) => Regex::new(&format!("^(?:{pattern})")).map(Name::Matching).map_err(|error| {
            ModelError::malformed(fields.path, format!("`{text}` in `{key}` is no regular expression: {error}"))
        }),
    };
    fields.texts(key)?.into_iter().map(name).collect()
}

/// The columns that share a scale: those of strategy `group`, the whole row for `channel`.
fn scheme_group_size(fields: &Fields<'_>) -> Result<Option<usize>, ModelError> {
    let stated = group_size(fields, &["group_size"])?;
    match (fields.text("strategy")?, stated) {
        (Some("group") | None, Some(GroupSize::Columns(size))) => Ok(Some(size)),
        (Some("channel"), None | Some(GroupSize::Row)) | (None, Some(GroupSize::Row)) => Ok(None),
        (Some("group" | "channel"), _) => {
            Err(fields.malformed("group_size", fields.any(&["group_size"])?.unwrap_or(&Value::Null)))
        }
        (Some(strategy), _) => Err(fields.unsupported(format!("the strategy `{strategy}`"))),
        (None, None) => Err(fields.missing("strategy")),
    }
}

fn scheme(group: &Fields<'_>) -> Result<Scheme, ModelError> {
    for key in ["input_activations", "output_activations"] {
        absent(group, key)?;
    }
    let object = group.any(&["weights"])?.ok_or_else(|| group.missing("weights"))?;
    let fields = Fields { object, path: group.path };
    let number = |key| fields.any(&[key])?.ok_or_else(|| fields.missing(key));
    let bits = match number("num_bits")?.as_u64() {
        Some(bits @ (4 | 8)) => bits as u32,
        Some(bits) => return Err(fields.unsupported(format!("compressed-tensors with {bits} bits"))),
        None => return Err(fields.malformed("num_bits", number("num_bits")?)),
    };
    if let Some(kind) = fields.text("type")?.filter(|kind| *kind != "int") {
        return Err(fields.unsupported(format!("weights of the type `{kind}`")));
    }
    if fields.any(&["dynamic"])?.is_some_and(|value| *value != json!(false)) {
        return Err(fields.unsupported("a weight quantized dynamically".into()));
    }
    absent(&fields, "block_structure")?;
    let group_size = scheme_group_size(&fields)?;
    let act_order = match fields.any(&["actorder"])? {
        None | Some(Value::Bool(false)) => ActOrder::None,
        Some(value) => match value.as_str() {
            Some("group" | "dynamic") => ActOrder::Desc,
            Some("weight" | "static") => ActOrder::Static,
            _ => return Err(fields.malformed("actorder", value)),
        },
    };
    Ok(Scheme { bits, group_size, symmetric: fields.flag("symmetric")?.unwrap_or(true), act_order })
}
