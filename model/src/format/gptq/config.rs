//! `quantization_config`: which modules are quantized and how, as JSON that loaders read, and back.

use super::Version;
use crate::{
    ModelError,
    format::{
        Contents, QuantizedModule,
        settings::{Fields, group_size},
    },
};
use fancy_regex::Regex;
use kernels::{ActOrder, QuantSpec, ScaleSearch};
use serde_json::{Map, Value, json};
use std::path::Path;

/// The object of `quantization_config`. `skipped` are the linears that stay in full precision.
pub(super) fn to_json(contents: &Contents<'_>, version: Version, skipped: &[String]) -> Value {
    let spec = &contents.spec;
    let mut object = json!({
        "quant_method": "gptq",
        "bits": spec.bits,
        "group_size": group_size_json(spec),
        "desc_act": spec.act_order == ActOrder::Desc,
        "sym": spec.symmetric,
        "lm_head": contents.modules.iter().any(|module| module.name == "lm_head"),
        "checkpoint_format": version.name(),
        "true_sequential": contents.true_sequential,
        "damp_percent": contents.damping,
        "static_groups": spec.act_order == ActOrder::Static,
        "pack_dtype": "int32",
    });
    let dynamic = dynamic_table(contents, skipped);
    if !dynamic.is_empty() {
        object["dynamic"] = Value::Object(dynamic);
    }
    let mut meta = Map::new();
    meta.insert("quantizer".into(), json!([concat!("caliper:", env!("CARGO_PKG_VERSION"))]));
    if let Value::Object(given) = &contents.meta {
        meta.extend(given.clone());
    }
    object["meta"] = Value::Object(meta);
    object
}

/// `dynamic`: one anchored expression for each module that differs from the shared settings.
fn dynamic_table(contents: &Contents<'_>, skipped: &[String]) -> Map<String, Value> {
    let expression = |name: &str| format!("^{}$", fancy_regex::escape(name));
    let shared = visible_settings(&contents.spec);
    let different = contents.modules.iter().filter_map(|module| {
        let mut own = visible_settings(&module.spec);
        own.retain(|key, value| shared.get(key) != Some(value));
        (!own.is_empty()).then(|| (format!("+:{}", expression(&module.name)), Value::Object(own)))
    });
    let untouched = skipped.iter().map(|name| (format!("-:{}", expression(name)), json!({})));
    different.chain(untouched).collect()
}

/// The settings a loader needs, which are those that `dynamic` can override.
fn visible_settings(spec: &QuantSpec) -> Map<String, Value> {
    let mut settings = Map::new();
    settings.insert("bits".into(), json!(spec.bits));
    settings.insert("group_size".into(), group_size_json(spec));
    settings.insert("sym".into(), json!(spec.symmetric));
    settings.insert("desc_act".into(), json!(spec.act_order == ActOrder::Desc));
    settings
}

fn group_size_json(spec: &QuantSpec) -> Value {
    spec.group_size.map_or(json!(-1), |size| json!(size))
}

/// How one module is quantized, as the settings say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModuleSettings {
    /// Bits per code.
    pub bits: u32,
    /// Columns per group; `None` is one group a row.
    pub group_size: Option<usize>,
    /// Whether the zero-point is fixed in the middle.
    pub symmetric: bool,
    /// Whether columns were reordered; `None` where the file doesn't say.
    pub desc_act: Option<bool>,
}

/// The settings of a GPTQ checkpoint.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Zero-point convention.
    pub version: Version,
    /// What modules have unless a rule says otherwise.
    pub shared: ModuleSettings,
    static_groups: bool,
    rules: Vec<Rule>,
}

/// One entry of `dynamic`.
#[derive(Clone, Debug)]
struct Rule {
    expression: Regex,
    /// `None`: left in full precision.
    settings: Option<ModuleSettings>,
}

impl Settings {
    /// The settings in `config_json`, else in `folder/quantize_config.json`; `None` where there are none or another
    /// method's.
    pub fn find(config_json: &Value, folder: &Path) -> Result<Option<Self>, ModelError> {
        if let Some(object) = config_json.get("quantization_config") {
            return Self::parse(object, &folder.join("config.json"));
        }
        let path = folder.join("quantize_config.json");
        if !path.is_file() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(&path).map_err(ModelError::io(&path))?;
        let object: Value =
            serde_json::from_str(&text).map_err(|error| ModelError::malformed(&path, error.to_string()))?;
        Self::parse(&object, &path)
    }

    fn parse(object: &Value, path: &Path) -> Result<Option<Self>, ModelError> {
        let method = Fields { object, path }.any(&["quant_method", "method"])?.unwrap_or(&Value::Null);
        if !(method.is_null() || method.as_str() == Some("gptq")) {
            return Ok(None);
        }
        let reader = Reader { path };
        reader.pack_type(object)?;
        let version = reader.version(object)?;
        let shared = reader.module(object, None)?;
        let meta = object.get("meta").unwrap_or(&Value::Null);
        let static_groups = [object, meta].iter().any(|from| from.get("static_groups") == Some(&Value::Bool(true)));
        Ok(Some(Self { version, shared, static_groups, rules: reader.rules(object, shared)? }))
    }

    /// How `module` is quantized; `None` where it is left in full precision.
    pub fn module(&self, module: &str) -> Option<ModuleSettings> {
        // An expression that runs out of steps matches nothing: the tensors then contradict the settings.
        let rule = self.rules.iter().find(|rule| rule.expression.is_match(module).unwrap_or(false));
        rule.map_or(Some(self.shared), |rule| rule.settings)
    }

    /// The description of a quantized linear found in the file. How scales were searched and columns ordered inside
    /// groups leaves no trace; these are filled in with the plainest value.
    pub(super) fn described(&self, name: &str, outputs: usize, inputs: usize) -> Option<QuantizedModule> {
        let settings = self.module(name)?;
        let act_order = match settings.desc_act {
            Some(true) => ActOrder::Desc,
            _ if self.static_groups => ActOrder::Static,
            _ => ActOrder::None,
        };
        let spec = QuantSpec {
            bits: settings.bits,
            group_size: settings.group_size,
            symmetric: settings.symmetric,
            act_order,
            scale_search: ScaleSearch::MinMax,
            smallest_zero: self.version.offset(),
        };
        Some(QuantizedModule { name: name.into(), outputs, inputs, spec })
    }
}

/// Reads single settings; knows the file for its errors.
struct Reader<'a> {
    path: &'a Path,
}

impl Reader<'_> {
    fn fields<'a>(&'a self, object: &'a Value) -> Fields<'a> {
        Fields { object, path: self.path }
    }

    fn pack_type(&self, object: &Value) -> Result<(), ModelError> {
        match object.get("pack_dtype") {
            None | Some(Value::Null) => Ok(()),
            Some(value) if value.as_str() == Some("int32") => Ok(()),
            Some(value) => Err(self.fields(object).unsupported(format!("packing into `pack_dtype` {value}"))),
        }
    }

    fn version(&self, object: &Value) -> Result<Version, ModelError> {
        let fields = self.fields(object);
        match fields.any(&["checkpoint_format", "format", "version"])? {
            None => Ok(Version::V1),
            Some(value) => match value.as_str() {
                Some("gptq") => Ok(Version::V1),
                Some("gptq_v2") => Ok(Version::V2),
                _ => Err(fields.unsupported(format!("`checkpoint_format` {value}"))),
            },
        }
    }

    /// The settings in `object`, those that it lacks from `defaults`.
    fn module(&self, object: &Value, defaults: Option<ModuleSettings>) -> Result<ModuleSettings, ModelError> {
        let fields = self.fields(object);
        let bits = match fields.any(&["bits", "w_bit", "wbits"])? {
            None => defaults.map(|d| d.bits).ok_or_else(|| fields.missing("bits"))?,
            Some(value) => match value.as_u64() {
                Some(bits @ (2 | 3 | 4 | 8)) => bits as u32,
                Some(bits) => return Err(fields.unsupported(format!("GPTQ with {bits} bits"))),
                None => return Err(fields.malformed("bits", value)),
            },
        };
        let group_size = match group_size(&fields, &["group_size", "q_group_size"])? {
            None => defaults.map(|d| d.group_size).ok_or_else(|| fields.missing("group_size"))?,
            Some(size) => size.columns(),
        };
        let stated = fields.flag("sym")?.or(fields.flag("zero_point")?.map(|asymmetric| !asymmetric));
        let symmetric = stated.or(defaults.map(|d| d.symmetric)).unwrap_or(true);
        let desc_act = fields.flag("desc_act")?.or(defaults.and_then(|d| d.desc_act));
        Ok(ModuleSettings { bits, group_size, symmetric, desc_act })
    }

    /// `dynamic` in its order: the first expression that matches from the start of a module's name decides.
    fn rules(&self, object: &Value, shared: ModuleSettings) -> Result<Vec<Rule>, ModelError> {
        let table = match object.get("dynamic") {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::Object(table)) => table,
            Some(value) => return Err(self.fields(object).malformed("dynamic", value)),
        };
        let rule = |(key, overrides): (&String, &Value)| {
            let (skip, pattern) = match key.strip_prefix("-:") {
                Some(pattern) => (true, pattern),
                None => (false, key.strip_prefix("+:").unwrap_or(key)),
            };
            let expression = Regex::new(&format!("^(?:{pattern})")).map_err(|error| {
                ModelError::malformed(self.path, format!("`{key}` in `dynamic` is no regular expression: {error}"))
            })?;
            let settings = if skip { None } else { Some(self.module(overrides, Some(shared))?) };
            Ok(Rule { expression, settings })
        };
        table.iter().map(rule).collect()
    }
}
