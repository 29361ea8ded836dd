//! What lies beside the weights: the model card for people, `caliper.json` for whoever wants to make it again, the
//! calibration manifest. All the same bytes on every run; what is not (times, memory) is printed and not written.

use crate::{
    LayerReport, QuantizeError,
    plan::{AwqOptions, Objective, Options},
    prove::Proof,
    report::{mean_error, scientific},
};
use calibration::Manifest;
use console::files::write_atomically;
use kernels::ActOrder;
use model::{Stage, format::Target};
use serde_json::{Value, json};
use std::{
    fmt::Write,
    path::{Path, PathBuf},
};

/// Name and version of the tool, as written into outputs.
pub const TOOL: &str = concat!("caliper ", env!("CARGO_PKG_VERSION"));

/// What the files beside the weights speak of.
pub struct Provenance<'a> {
    /// The model as the user called it.
    pub model: &'a str,
    /// The options.
    pub options: &'a Options,
    /// The format of this folder.
    pub format: Target,
    /// Everything that shapes the output, as in the journal's plan.
    pub plan: &'a Value,
    /// The calibration set.
    pub manifest: Option<&'a Manifest>,
    /// The quantized modules.
    pub modules: &'a [LayerReport],
}

/// Where the record of a checkpoint that is one file lies: `model.caliper.json` beside `model.gguf`.
pub fn beside(file: &Path) -> PathBuf {
    file.with_extension("caliper.json")
}

/// Writes `README.md`, `caliper.json` and, with calibration, `calibration.json` into `folder`; beside a checkpoint that is
/// one file, only the record.
pub fn write(folder: &Path, provenance: &Provenance<'_>) -> Result<(), QuantizeError> {
    if provenance.format.is_file() {
        return put(&beside(folder), &pretty(&record(provenance)));
    }
    put(&folder.join("README.md"), card(provenance).as_bytes())?;
    put(&folder.join("caliper.json"), &pretty(&record(provenance)))?;
    match provenance.manifest {
        Some(manifest) => put(&folder.join("calibration.json"), &pretty(manifest)),
        None => Ok(()),
    }
}

/// The same for a checkpoint that was converted: how its integers were made stands in the `caliper.json` of the folder
/// `source`, if it has one.
pub fn write_converted(
    folder: &Path,
    input: &str,
    source: &Path,
    input_format: &str,
    format: Target,
) -> Result<(), QuantizeError> {
    let earlier = |name: &str| std::fs::read(source.join(name)).ok();
    let original: Option<Value> = earlier("caliper.json").and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let name = display_name(input);
    let same =
        if format.takes_integers() { "integers, scales and zero-points are" } else { "weights are, rounded once," };
    let mut text = format!(
        "---\npipeline_tag: text-generation\ntags:\n- {}\n- caliper\n---\n\n# {name}, {format}\n\nMade by {TOOL} from the checkpoint `{name}` ({input_format}): the {same} those of it.\n\n## How to make it again\n\n    quantize convert {name} --format {format} --out OUT\n",
        tag(format)
    );
    let converted = json!({ "from": name, "from_format": input_format, "format": format });
    let record = pretty(&json!({ "tool": TOOL, "converted": converted, "original": original }));
    if format.is_file() {
        return put(&beside(folder), &record);
    }
    if original.is_some() {
        text += "\n`caliper.json` holds, under `original`, how that checkpoint was made.\n";
    }
    put(&folder.join("README.md"), text.as_bytes())?;
    put(&folder.join("caliper.json"), &record)?;
    match earlier("calibration.json") {
        Some(bytes) => put(&folder.join("calibration.json"), &bytes),
        None => Ok(()),
    }
}

/// The tag that hubs know a format by.
fn tag(format: Target) -> String {
    format.to_string().split([':', '_']).next().unwrap_or_default().to_owned()
}

/// `caliper.json`: the plan and what came of it.
fn record(provenance: &Provenance<'_>) -> Value {
    let modules: Vec<Value> = provenance.modules.iter().map(LayerReport::reproducible).collect();
    json!({ "tool": TOOL, "plan": provenance.plan, "modules": modules })
}

/// The record of an earlier run in (or, of a file, beside) `folder`: its plan and its modules.
pub fn read_record(folder: &Path) -> Option<(Value, Vec<LayerReport>)> {
    let path = if folder.is_file() { beside(folder) } else { folder.join("caliper.json") };
    let bytes = std::fs::read(path).ok()?;
    let mut record: Value = serde_json::from_slice(&bytes).ok()?;
    let modules = serde_json::from_value(record.get_mut("modules")?.take()).ok()?;
    Some((record.get_mut("plan")?.take(), modules))
}

/// What `quantization_config.meta` says.
pub fn meta(options: &Options, manifest: Option<&Manifest>) -> Value {
    json!({
        "quantizer": [format!("caliper:{}", env!("CARGO_PKG_VERSION"))],
        "method": options.method,
        "act_order": options.act_order,
        "scale_search": options.scale_search,
        "damp_percent": options.method.compensates().then_some(options.damping),
        "awq": options.method.scales().then_some(&options.awq),
        "inputs": options.inputs,
        "sequence": options.sequence,
        "calibration_tokens_sha256": manifest.map(|manifest| manifest.tokens_sha256.clone()),
    })
}

fn card(provenance: &Provenance<'_>) -> String {
    let options = provenance.options;
    let model = display_name(provenance.model);
    // A hub knows ids, not the names of files.
    let base =
        if model == provenance.model && model.contains('/') { format!("base_model: {model}\n") } else { String::new() };
    let mut text = format!(
        "---\n{base}pipeline_tag: text-generation\ntags:\n- {format}\n- {bits}-bit\n- caliper\n---\n\n# {model}, {bits} bits\n\nMade by {TOOL} from `{model}`, format {target}.\n",
        bits = options.bits,
        format = tag(provenance.format),
        target = provenance.format,
    );
    text += &settings_section(options);
    text += &calibration_section(provenance.manifest);
    text += &cost_section(provenance.modules);
    let _ = write!(
        text,
        "\nThe cost in perplexity is measured on this folder by a program of its own:\n\n    evaluate OUT --baseline {model} --perplexity FILE\n\n## How to make it again\n\n    {}\n\n`caliper.json` holds every setting, the hashes of the model's files and what was measured of each module{}.\n",
        command(provenance),
        if provenance.manifest.is_some() { "; `calibration.json` the windows of the calibration text" } else { "" },
    );
    text
}

fn settings_section(options: &Options) -> String {
    let mut text = "\n## Settings\n\n| | |\n|---|---|\n".to_owned();
    for (name, value) in options.described() {
        let _ = writeln!(text, "| {name} | {value} |");
    }
    text
}

fn calibration_section(manifest: Option<&Manifest>) -> String {
    let mut text = "\n## Calibration\n\n".to_owned();
    let Some(manifest) = manifest else { return text + "None: weights were rounded without looking at inputs.\n" };
    text += "| source | share | documents | tokens | windows | SHA-256 of its files |\n|---|---|---|---|---|---|\n";
    for source in &manifest.sources {
        let hashes: Vec<&str> = source.files.iter().map(|file| file.sha256.as_str()).collect();
        let _ = writeln!(
            text,
            "| {} | {:.3} | {} | {} | {} | {} |",
            display_name(&source.source),
            source.weight,
            source.documents,
            source.tokens,
            source.windows.len(),
            hashes.join(" ")
        );
    }
    let _ = writeln!(text, "\nSHA-256 of the windows' tokens: `{}`", manifest.tokens_sha256);
    text
}

/// The measured errors: the mean over modules of each kind, and the worst module.
fn cost_section(modules: &[LayerReport]) -> String {
    let mut text = "\n## Measured cost\n\n".to_owned();
    let measured: Vec<&LayerReport> = modules.iter().filter(|m| m.error.is_some()).collect();
    let Some(worst) = measured.iter().max_by(|a, b| a.error.unwrap_or(0.0).total_cmp(&b.error.unwrap_or(0.0))) else {
        return text + "No layer error was measured: that needs calibration text.\n";
    };
    text += &scaling_sentence(modules);
    text += "Relative output error ‖ΔW·X‖²/‖W·X‖² on the calibration text, mean over layers:\n\n";
    text += "| module | rounded to nearest | as written |\n|---|---|---|\n";
    let mut kinds: Vec<&str> = measured.iter().map(|m| kind(&m.module)).collect();
    kinds.sort_unstable();
    kinds.dedup();
    for name in kinds {
        let members: Vec<&LayerReport> = measured.iter().copied().filter(|m| kind(&m.module) == name).collect();
        let nearest = scientific(mean_error(&members, |m| m.error_round_to_nearest));
        let _ = writeln!(text, "| {name} | {nearest} | {} |", scientific(mean_error(&members, |m| m.error)));
    }
    let _ = writeln!(text, "\nWorst: `{}` with {}.", worst.module, scientific(worst.error));
    text
}

/// What AWQ did, where it did.
fn scaling_sentence(modules: &[LayerReport]) -> String {
    let exponents: Vec<f64> = modules.iter().filter_map(|m| Some(m.scaling.as_ref()?.exponent)).collect();
    let clipped = modules.iter().filter_map(|m| m.clipping.as_ref());
    let (clipped, groups) = clipped.fold((0, 0), |(clipped, groups), m| (clipped + m.clipped, groups + m.groups));
    let mut text = String::new();
    if !exponents.is_empty() {
        let mean = exponents.iter().sum::<f64>() / exponents.len() as f64;
        let _ = write!(
            text,
            "Inputs were scaled by their magnitude to the power of {mean:.2} on average, and norms, v and up by the inverse, so that norms differ from the source's. "
        );
    }
    if groups > 0 {
        let share = 100.0 * clipped as f64 / groups as f64;
        let _ = write!(text, "The range of {share:.1} % of the groups was drawn in. ");
    }
    if text.is_empty() { text } else { format!("{}\n\n", text.trim_end()) }
}

/// The last part of a module's name.
fn kind(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or(module)
}

/// A hub id as it is; of a path only the last part, since folders of one machine mean nothing on another.
fn display_name(reference: &str) -> &str {
    let path = Path::new(reference);
    let local = path.is_absolute() || reference.starts_with('.') || path.exists();
    if local { path.file_name().and_then(|name| name.to_str()).unwrap_or(reference) } else { reference }
}

/// The command with every setting that shapes the output.
fn command(provenance: &Provenance<'_>) -> String {
    let options = provenance.options;
    let mut words = vec![format!("quantize {}", display_name(provenance.model))];
    let mut push = |name: &str, value: String| words.push(format!("--{name} {value}").trim_end().to_owned());
    push("method", name_of(&options.method));
    push("bits", options.bits.to_string());
    push("group-size", options.group_size.to_string());
    push("scale-search", name_of(&options.scale_search));
    if options.method.scales() {
        push("awq-steps", options.awq.steps.to_string());
        push("awq-scale", scaled(&options.awq, ","));
        push("awq-objective", name_of(&options.awq.objective));
        if !options.awq.clip {
            push("awq-no-clip", String::new());
        }
    }
    if options.method.compensates() {
        push("act-order", name_of(&options.act_order));
        push("damping", options.damping.to_string());
    }
    push("format", formats(options));
    options.overrides.iter().for_each(|text| push("override", format!("'{text}'")));
    options.skip.iter().for_each(|glob| push("skip", format!("'{glob}'")));
    if options.lm_head {
        push("lm-head", String::new());
    }
    if provenance.manifest.is_some() {
        push("inputs", name_of(&options.inputs));
        push("sequence", name_of(&options.sequence));
        push("compute", options.compute.to_string());
        options.calibration.iter().for_each(|source| push("calibration", display_name(source).to_owned()));
        push("samples", options.windows.samples.to_string());
        push("sequence-length", options.windows.sequence_length.to_string());
        push("seed", options.windows.seed.to_string());
        push("packing", name_of(&options.windows.packing));
    }
    words.insert(1, if options.symmetric { "--symmetric" } else { "--asymmetric" }.to_owned());
    words.push("--out OUT".to_owned());
    words.join(" ")
}

/// The formats as the command line takes them.
fn formats(options: &Options) -> String {
    options.formats.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// An enum as the command line spells it.
pub fn name_of<T: serde::Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(name)) => name,
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    }
}

impl Options {
    /// The settings as people read them: (name, value).
    pub fn described(&self) -> Vec<(&'static str, String)> {
        let group = if self.group_size == -1 { "one group per row".to_owned() } else { self.group_size.to_string() };
        let mut rows = vec![
            ("method", name_of(&self.method)),
            ("bits", self.bits.to_string()),
            ("group size", group),
            ("grid", if self.symmetric { "symmetric" } else { "asymmetric" }.to_owned()),
            ("scale search", name_of(&self.scale_search)),
            ("format", formats(self)),
        ];
        if self.method.scales() {
            rows.push(("scaled inputs", format!("{} ({} exponents)", scaled(&self.awq, ", "), self.awq.steps)));
            rows.push(("searched for", objective_described(self.awq.objective).to_owned()));
            if self.block_mixture().is_none() {
                rows.push(("clipping", if self.awq.clip { "on" } else { "off" }.to_owned()));
            }
        }
        if self.method.compensates() {
            rows.push(("act-order", act_order_described(self.act_order).to_owned()));
            rows.push(("damping", self.damping.to_string()));
            if self.corrects() {
                rows.push(("input correction", self.input_correction.to_string()));
            }
        }
        if !self.calibration.is_empty() {
            rows.push(("inputs", name_of(&self.inputs)));
            rows.push(("sequence", name_of(&self.sequence)));
            rows.push(("compute", format!("{} ({})", self.compute, self.compute.unit())));
        }
        if self.block_mixture().is_some() {
            rows.retain(|(name, _)| !["bits", "group size", "grid", "scale search"].contains(name));
        }
        rows.extend(self.imatrix.iter().map(|path| ("importance matrix", path.clone())));
        rows.push(("language-model head", if self.lm_head { "quantized" } else { "in full precision" }.to_owned()));
        rows.extend(self.overrides.iter().map(|text| ("override", text.clone())));
        rows.extend(self.skip.iter().map(|glob| ("in full precision", glob.clone())));
        rows
    }
}

/// The scaled stages by their names on the command line.
fn scaled(awq: &AwqOptions, separator: &str) -> String {
    let name = |stage: &Stage| match stage {
        Stage::Qkv => "qkv",
        Stage::Output => "output",
        Stage::GateUp => "gate-up",
        Stage::Down => "down",
    };
    awq.scaled.iter().map(name).collect::<Vec<_>>().join(separator)
}

fn objective_described(objective: Objective) -> &'static str {
    match objective {
        Objective::Linears => "the least error of the linears' outputs",
        Objective::Block => "the least error of attention's and the feed-forward network's outputs",
    }
}

fn act_order_described(order: ActOrder) -> &'static str {
    match order {
        ActOrder::None => "none (stored order)",
        ActOrder::Desc => "desc (groups follow the order; group index on disk)",
        ActOrder::Static => "static (groups fixed beforehand)",
        ActOrder::Group => "group (groups and columns inside them; no trace on disk)",
    }
}

fn pretty<T: serde::Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("plain data becomes JSON");
    bytes.push(b'\n');
    bytes
}

fn put(path: &Path, bytes: &[u8]) -> Result<(), QuantizeError> {
    write_atomically(path, bytes).map_err(QuantizeError::io(path))
}

/// What the proof says, for people.
pub fn proof_sentence(proof: &Proof) -> String {
    let formats = if proof.formats == 1 { String::new() } else { format!(" from each of {} formats", proof.formats) };
    let folded = match proof.tensors {
        0 => String::new(),
        count => format!("; so are {count} norms and biases that were scaled"),
    };
    format!(
        "proof: {} modules ({} integers) read back{formats} equal to the solver's, bit for bit, and so are the weights whose errors are listed{folded}",
        proof.modules, proof.codes
    )
}
