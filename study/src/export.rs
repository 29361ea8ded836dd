//! The measured cells of a study as one flat table.

use crate::{
    StudyError,
    plan::{Plan, PlannedCell},
    settings::AXES,
    store::{Contents, Line},
};
use serde_json::{Map, Value, json};

/// Columns before and after those of the settings ([`AXES`]); see the README of this crate for what they hold.
const BEFORE: [&str; 2] = ["cell", "configuration"];
const AFTER: [&str; 27] = [
    "evaluation",
    "measure",
    "protocol",
    "own_domain",
    "perplexity",
    "standard_error",
    "log_perplexity",
    "baseline_perplexity",
    "ratio",
    "log_ratio",
    "bits_per_byte",
    "kl_mean",
    "kl_median",
    "kl_99",
    "same_top",
    "score",
    "baseline_score",
    "tokens_scored",
    "windows",
    "bits_per_weight",
    "bits_per_weight_all",
    "bytes",
    "error",
    "error_round_to_nearest",
    "seconds_quantizing",
    "seconds_measuring",
    "tool",
];

/// Every column, in order.
pub fn columns() -> impl Iterator<Item = &'static str> {
    BEFORE.into_iter().chain(AXES).chain(AFTER)
}

/// A row for each measured cell, in the order of the plan; what does not apply is null.
pub fn rows(plan: &Plan, contents: &Contents) -> Vec<Map<String, Value>> {
    plan.cells.iter().filter_map(|cell| Some(row(plan, contents, cell, contents.measured(&cell.cell)?))).collect()
}

fn row(plan: &Plan, contents: &Contents, cell: &PlannedCell, line: &Line) -> Map<String, Value> {
    let of_model = |other: &&PlannedCell| {
        other.settings.is_none() && other.model == cell.model && other.evaluation == cell.evaluation
    };
    let unquantized = plan.cells.iter().find(of_model).and_then(|cell| contents.measured(&cell.cell));
    let baseline = unquantized.and_then(|line| line.measured.as_ref());
    let (diverged, answers) = (line.divergence.as_ref(), line.answers.as_ref());
    let measured = line.measured.as_ref();
    let set = cell.settings.as_ref().and_then(|settings| settings.calibration.as_ref());
    let mut row: Map<String, Value> = columns().map(|column| (column.to_owned(), Value::Null)).collect();
    if let Ok(Value::Object(settings)) = serde_json::to_value(&cell.settings) {
        row.extend(settings.into_iter().filter(|(name, _)| AXES.contains(&name.as_str())));
    }
    let own = set.map(|set| plan.domains.get(&cell.evaluation) == Some(set));
    let log_ratio = measured.zip(baseline).map(|(ours, base)| ours.log_perplexity - base.log_perplexity);
    let quantized = line.quantized.as_ref();
    let values = json!({
        "cell": cell.cell,
        "configuration": cell.configuration,
        "model": cell.model,
        "evaluation": cell.evaluation,
        "measure": line.measure,
        "protocol": line.text.protocol,
        "own_domain": own,
        "perplexity": measured.map(|measured| measured.perplexity),
        "standard_error": measured.and_then(|measured| measured.standard_error),
        "log_perplexity": measured.map(|measured| measured.log_perplexity),
        "baseline_perplexity": baseline.map(|baseline| baseline.perplexity),
        "ratio": log_ratio.map(f64::exp),
        "log_ratio": log_ratio,
        "bits_per_byte": measured.and_then(|measured| measured.bits_per_byte),
        "kl_mean": diverged.map(|diverged| diverged.mean),
        "kl_median": diverged.map(|diverged| diverged.median),
        "kl_99": diverged.map(|diverged| diverged.quantile_99),
        "same_top": diverged.map(|diverged| diverged.same_top),
        "score": answers.map(|answers| answers.score),
        "baseline_score": unquantized.and_then(|line| line.answers.as_ref()).map(|answers| answers.score),
        "tokens_scored": measured.map(|measured| measured.tokens_scored).or(diverged.map(|diverged| diverged.tokens)),
        "windows": measured.map(|measured| measured.windows).or(diverged.map(|diverged| diverged.windows)),
        "bits_per_weight": quantized.and_then(|quantized| quantized.bits_per_weight),
        "bits_per_weight_all": quantized.map(|quantized| quantized.bits_per_weight_all),
        "bytes": quantized.map(|quantized| quantized.bytes),
        "error": quantized.and_then(|quantized| quantized.error),
        "error_round_to_nearest": quantized.and_then(|quantized| quantized.error_round_to_nearest),
        "seconds_quantizing": quantized.map(|quantized| quantized.seconds),
        "seconds_measuring": line.seconds_measuring(),
        "tool": line.tool,
    });
    if let Value::Object(values) = values {
        row.extend(values);
    }
    row
}

/// One JSON object a line.
pub fn jsonl(rows: &[Map<String, Value>]) -> String {
    rows.iter().map(|row| Value::Object(row.clone()).to_string() + "\n").collect()
}

/// A heading and a line for each row; null is empty.
pub fn csv(rows: &[Map<String, Value>]) -> Result<String, StudyError> {
    let failed = |error: &dyn std::fmt::Display| StudyError::Report(error.to_string());
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(columns()).map_err(|error| failed(&error))?;
    for row in rows {
        let fields = columns().map(|column| match &row[column] {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        });
        writer.write_record(fields).map_err(|error| failed(&error))?;
    }
    let bytes = writer.into_inner().map_err(|error| failed(&error))?;
    String::from_utf8(bytes).map_err(|error| failed(&error))
}
