//! What a run came to, as tables for people and as one JSON object.

use crate::{LayerReport, Options, QuantizeError, card, prove::Proof, solver::ClippingReport};
use calibration::{DriveReport, Manifest, walk::Seconds};
use console::{Table, machine};
use model::{format::Target, inspect::Inspection, runtimes::Verdict};
use serde::Serialize;
use std::{
    fmt::Write,
    path::{Path, PathBuf},
};

/// The result of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// The model as the user called it.
    pub model: String,
    /// The finished checkpoint.
    pub out: PathBuf,
    /// The options.
    pub settings: Options,
    /// What the calibration set was.
    pub calibration: Option<CalibrationSummary>,
    /// Every quantized module.
    pub modules: Vec<LayerReport>,
    /// What was written, a checkpoint for each format.
    pub outputs: Vec<Output>,
    /// Sums.
    pub totals: Totals,
    /// What was read back and compared; none where an earlier run had proven and published it.
    pub proof: Option<Proof>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// The calibration set in short.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CalibrationSummary {
    /// Windows.
    pub windows: usize,
    /// Tokens in them.
    pub tokens: usize,
    /// SHA-256 of the windows' tokens.
    pub tokens_sha256: String,
}

/// A checkpoint that was written.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Output {
    /// Its format.
    pub format: Target,
    /// Where it is.
    pub path: PathBuf,
    /// Bits per weight of the quantized linears on disk, scales, zero-points and group indices counted.
    pub bits_per_weight: Option<f64>,
    /// Bits per weight of the whole checkpoint.
    pub bits_per_weight_all: f64,
    /// Bytes of the checkpoint's tensors.
    pub bytes: u64,
    /// What each runtime will do with it.
    pub runtimes: Vec<Verdict>,
}

/// Seconds of the parts of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Parts {
    /// Reading weights, and bringing them to a device.
    pub weights: f64,
    /// Forward passes; on a device also summing up statistics.
    pub forward: f64,
    /// Summing up statistics; on a device bringing them back.
    pub statistics: f64,
    /// Solving, measuring, keeping what is done.
    pub solving: f64,
    /// Writing the checkpoint and reading it back.
    pub writing: f64,
}

/// Sums over a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Totals {
    /// Modules quantized.
    pub modules: usize,
    /// Mean relative output error of rounding to nearest.
    pub error_round_to_nearest: Option<f64>,
    /// Mean relative output error as written.
    pub error: Option<f64>,
    /// Seconds of this run.
    pub seconds: f64,
    /// Seconds of its parts, where it walked the model.
    pub parts: Option<Parts>,
    /// Calibration tokens per second of walking the model; none where blocks came from an earlier run.
    pub tokens_per_second: Option<f64>,
    /// The most memory held, in bytes.
    pub peak_memory: Option<u64>,
    /// Blocks taken over from an earlier run.
    pub blocks_resumed: usize,
}

impl Parts {
    /// Of `walk`, and of writing behind it.
    pub(crate) fn of(walk: &DriveReport, writing: f64) -> Self {
        let sum = |part: fn(&Seconds) -> f64| walk.blocks.iter().map(part).sum();
        Self {
            weights: sum(|block| block.load),
            forward: sum(|block| block.propagate),
            statistics: sum(|block| block.capture),
            solving: sum(|block| block.visit),
            writing,
        }
    }
}

impl LayerReport {
    /// Everything but the time, which no two runs share.
    pub fn reproducible(&self) -> serde_json::Value {
        let mut value = serde_json::to_value(self).expect("a report is plain data");
        if let Some(map) = value.as_object_mut() {
            map.shift_remove("seconds");
        }
        value
    }
}

impl CalibrationSummary {
    /// Of `manifest`.
    pub fn of(manifest: &Manifest) -> Self {
        let windows = || manifest.sources.iter().flat_map(|source| &source.windows);
        Self {
            windows: windows().count(),
            tokens: windows().map(|window| window.length).sum(),
            tokens_sha256: manifest.tokens_sha256.clone(),
        }
    }
}

/// The mean of `error` over `modules`; `None` if any has none.
pub fn mean_error(modules: &[&LayerReport], error: impl Fn(&LayerReport) -> Option<f64>) -> Option<f64> {
    let errors = modules.iter().map(|module| error(module)).collect::<Option<Vec<f64>>>()?;
    (!errors.is_empty()).then(|| errors.iter().sum::<f64>() / errors.len() as f64)
}

/// Three significant digits, or a dash.
pub fn scientific(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2e}"))
}

impl Outcome {
    /// The tables.
    pub fn text(&self) -> String {
        let mut text = format!("{}\n", self.module_table());
        self.remarks().iter().for_each(|remark| {
            let _ = writeln!(text, "{remark}");
        });
        let _ = writeln!(text, "\n{}", self.totals_table());
        for output in &self.outputs {
            let _ = write!(text, "\n{}", output.text());
        }
        if let Some(proof) = &self.proof {
            let _ = writeln!(text, "\n{}", card::proof_sentence(proof));
        }
        let _ = write!(text, "written: {}", self.out.display());
        text
    }

    fn module_table(&self) -> Table {
        let scaled = self.settings.method.scales();
        let mut headings = vec!["module", "bits", "group", "error, nearest", "error, written"];
        headings.extend(if scaled { &["exponent", "factors", "clipped"][..] } else { &[] });
        headings.extend(["damping", "precision", "seconds"]);
        let mut table = Table::new(headings);
        for module in &self.modules {
            let used = module.factorization.as_ref();
            let mut row = vec![
                short(&module.module).to_owned(),
                module.blocks.map_or_else(|| module.spec.bits.to_string(), |kind| kind.name().to_owned()),
                module.spec.group_size.map_or_else(|| "row".to_owned(), |size| size.to_string()),
                scientific(module.error_round_to_nearest),
                scientific(module.error),
            ];
            row.extend(if scaled { scaling_cells(module) } else { Vec::new() });
            row.extend([
                used.map_or_else(|| "-".to_owned(), |f| f.damping.to_string()),
                used.map_or_else(|| "-".to_owned(), |f| f.precision.clone()),
                format!("{:.2}", module.seconds),
            ]);
            table.row(row);
        }
        table
    }

    /// What went otherwise than asked, by name.
    fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        for module in &self.modules {
            let name = short(&module.module);
            if !module.dead_columns.is_empty() {
                remarks.push(format!("{name}: dead columns {}", columns(&module.dead_columns)));
            }
            if !module.near_dead_columns.is_empty() {
                remarks.push(format!("{name}: near-dead columns {}", columns(&module.near_dead_columns)));
            }
            let Some(used) = &module.factorization else { continue };
            if used.damping > used.damping_asked {
                remarks.push(format!("{name}: damping raised from {} to {}", used.damping_asked, used.damping));
            }
            if !used.degenerate_columns.is_empty() {
                remarks.push(format!("{name}: degenerate columns {}", columns(&used.degenerate_columns)));
            }
        }
        remarks
    }

    fn totals_table(&self) -> Table {
        let totals = &self.totals;
        let mut table = Table::new(["total", ""]);
        table.row(["modules".to_owned(), totals.modules.to_string()]);
        table.row(["mean error, nearest".to_owned(), scientific(totals.error_round_to_nearest)]);
        table.row(["mean error, written".to_owned(), scientific(totals.error)]);
        table.row(["seconds".to_owned(), format!("{:.1}", totals.seconds)]);
        if let Some(Parts { weights, forward, statistics, solving, writing }) = totals.parts {
            let parts = [
                ("weights", weights),
                ("forward passes", forward),
                ("statistics", statistics),
                ("solving", solving),
                ("writing", writing),
            ];
            for (part, seconds) in parts {
                table.row([format!("  {part}"), format!("{seconds:.1}")]);
            }
        }
        if let Some(rate) = totals.tokens_per_second {
            table.row(["calibration tokens per second".to_owned(), format!("{rate:.0}")]);
        }
        if let Some(peak) = totals.peak_memory {
            table.row(["peak memory".to_owned(), machine::bytes(peak)]);
        }
        if totals.blocks_resumed > 0 {
            table.row(["blocks from an earlier run".to_owned(), totals.blocks_resumed.to_string()]);
        }
        table
    }
}

/// Exponent, range of factors, and share of groups drawn in.
fn scaling_cells(module: &LayerReport) -> Vec<String> {
    let dash = || "-".to_owned();
    let scaling = module.scaling.as_ref();
    let clipped = |c: &ClippingReport| format!("{:.1} %", 100.0 * c.clipped as f64 / c.groups.max(1) as f64);
    vec![
        scaling.map_or_else(dash, |s| format!("{:.2}", s.exponent)),
        scaling.map_or_else(dash, |s| format!("{:.2} to {:.2}", s.least, s.greatest)),
        module.clipping.as_ref().map_or_else(dash, clipped),
    ]
}

impl Output {
    /// What is at `path`, written as `format`.
    pub fn measure(format: Target, path: &Path) -> Result<Self, QuantizeError> {
        let inspected = model::inspect::inspect(&path.to_string_lossy())?;
        Ok(Self {
            format,
            path: path.to_owned(),
            bits_per_weight: inspected.bits_per_quantized_weight,
            bits_per_weight_all: inspected.bits_per_weight,
            bytes: inspected.bytes,
            runtimes: inspected.runtimes,
        })
    }

    /// Its figures and the runtimes' verdicts.
    pub fn text(&self) -> String {
        let mut table = Table::new([self.format.to_string(), String::new()]);
        if let Some(bits) = self.bits_per_weight {
            table.row(["bits per quantized weight".to_owned(), format!("{bits:.3}")]);
        }
        table.row(["bits per weight, all tensors".to_owned(), format!("{:.3}", self.bits_per_weight_all)]);
        table.row(["size".to_owned(), machine::bytes(self.bytes)]);
        let mut text = format!("{table}\n");
        if !self.runtimes.is_empty() {
            let _ = writeln!(text, "\n{}", runtime_table(&self.runtimes));
        }
        text
    }
}

/// What each runtime does with a checkpoint.
fn runtime_table(runtimes: &[Verdict]) -> Table {
    let mut table = Table::new(["runtime", "verdict", "why"]);
    for verdict in runtimes {
        table.row([verdict.runtime.to_string(), verdict.outcome.to_string(), verdict.reason.clone()]);
    }
    table
}

/// A module's name without the part that all share.
fn short(module: &str) -> &str {
    module.strip_prefix("model.layers.").unwrap_or(module)
}

/// The first few of a list of columns.
fn columns(columns: &[usize]) -> String {
    let named: Vec<String> = columns.iter().take(8).map(ToString::to_string).collect();
    match columns.len().saturating_sub(8) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

/// A checkpoint as people read it.
pub fn inspection(inspected: &Inspection) -> String {
    let mut text = format!("{} ({})\n", inspected.path.display(), inspected.format);
    if let Some(settings) = &inspected.settings {
        let _ = writeln!(text, "settings: {settings}");
    }
    let _ = writeln!(text, "\n{}", tensor_table(inspected));
    if !inspected.modules.is_empty() {
        let _ = writeln!(text, "\n{}", group_table(inspected));
    }
    let _ = writeln!(text, "\n{}", size_table(inspected));
    if !inspected.runtimes.is_empty() {
        let _ = writeln!(text, "\n{}", runtime_table(&inspected.runtimes));
    }
    for problem in &inspected.problems {
        let _ = writeln!(text, "problem: {problem}");
    }
    text.trim_end().to_owned()
}

fn tensor_table(inspected: &Inspection) -> Table {
    let mut table = Table::new(["tensor", "type", "shape", "size"]);
    for tensor in &inspected.tensors {
        let shape: Vec<String> = tensor.shape.iter().map(ToString::to_string).collect();
        let size = machine::bytes(tensor.bytes);
        table.row([tensor.name.clone(), tensor.stored_type.clone(), shape.join(" x "), size]);
    }
    table
}

fn group_table(inspected: &Inspection) -> Table {
    let mut table = Table::new(["quantized linears", "modules", "weights", "size", "bits per weight"]);
    for group in &inspected.modules {
        table.row([
            group.settings.clone(),
            group.modules.to_string(),
            group.parameters.to_string(),
            machine::bytes(group.bytes),
            format!("{:.3}", 8.0 * group.bytes as f64 / group.parameters.max(1) as f64),
        ]);
    }
    table
}

fn size_table(inspected: &Inspection) -> Table {
    let mut table = Table::new(["whole", ""]);
    table.row(["parameters".to_owned(), inspected.parameters.to_string()]);
    table.row(["size".to_owned(), machine::bytes(inspected.bytes)]);
    table.row(["bits per weight, all tensors".to_owned(), format!("{:.3}", inspected.bits_per_weight)]);
    if let Some(bits) = inspected.bits_per_quantized_weight {
        table.row(["bits per quantized weight".to_owned(), format!("{bits:.3}")]);
    }
    table
}
