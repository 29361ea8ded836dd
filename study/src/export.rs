//! The measured cells of a study as one flat table.

use crate::{
    StudyError,
    plan::{Plan, PlannedCell},
    settings::AXES,
    speed::Timed,
    store::{Contents, Line},
};
use parquet::{
    basic::{LogicalType, Repetition, Type as PhysicalType},
    data_type::{BoolType, ByteArray, ByteArrayType, DoubleType, Int64Type},
    errors::ParquetError,
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::types::Type,
};
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Columns before and after those of the settings ([`AXES`]); see the README of this crate for what they hold.
const BEFORE: [&str; 2] = ["cell", "configuration"];
const AFTER: [&str; 28] = [
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
    "tokens_per_second",
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
        "tokens_per_second": line.timed.as_ref().map(Timed::tokens_per_second),
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

/// Columns of whole numbers, of truth values, and of text after the settings; what else stands after them are other
/// numbers.
const WHOLE: [&str; 8] =
    ["bits", "group_size", "samples", "sequence_length", "seed", "tokens_scored", "windows", "bytes"];
const TRUTH: [&str; 3] = ["symmetric", "lm_head", "own_domain"];
const TEXT: [&str; 4] = ["evaluation", "measure", "protocol", "tool"];

/// The type of `column` in Parquet, whatever values a study happens to have.
fn kind(column: &str) -> PhysicalType {
    match column {
        column if WHOLE.contains(&column) => PhysicalType::INT64,
        column if TRUTH.contains(&column) => PhysicalType::BOOLEAN,
        "damping" => PhysicalType::DOUBLE,
        column if AFTER.contains(&column) && !TEXT.contains(&column) => PhysicalType::DOUBLE,
        _ => PhysicalType::BYTE_ARRAY,
    }
}

/// A Parquet file; every column may be null.
pub fn parquet(rows: &[Map<String, Value>]) -> Result<Vec<u8>, StudyError> {
    written(rows).map_err(|error| StudyError::Export(error.to_string()))
}

fn written(rows: &[Map<String, Value>]) -> Result<Vec<u8>, ParquetError> {
    let field = |column: &str| {
        let builder = Type::primitive_type_builder(column, kind(column)).with_repetition(Repetition::OPTIONAL);
        let text = kind(column) == PhysicalType::BYTE_ARRAY;
        Ok(Arc::new(builder.with_logical_type(text.then_some(LogicalType::String)).build()?))
    };
    let fields = columns().map(field).collect::<Result<Vec<_>, ParquetError>>()?;
    let schema = Type::group_type_builder("cells").with_fields(fields).build()?;
    let mut writer =
        SerializedFileWriter::new(Vec::new(), Arc::new(schema), Arc::new(WriterProperties::builder().build()))?;
    let mut group = writer.next_row_group()?;
    for name in columns() {
        let values: Vec<&Value> = rows.iter().map(|row| &row[name]).collect();
        let present: Vec<i16> = values.iter().map(|value| i16::from(!value.is_null())).collect();
        let values = values.into_iter().filter(|value| !value.is_null());
        let mut column = group.next_column()?.expect("a column for each field of the schema");
        match kind(name) {
            PhysicalType::INT64 => {
                let values: Vec<i64> = values.map(|value| value.as_i64().unwrap_or_default()).collect();
                column.typed::<Int64Type>().write_batch(&values, Some(&present), None)?;
            }
            PhysicalType::BOOLEAN => {
                let values: Vec<bool> = values.map(|value| value.as_bool().unwrap_or_default()).collect();
                column.typed::<BoolType>().write_batch(&values, Some(&present), None)?;
            }
            PhysicalType::DOUBLE => {
                let values: Vec<f64> = values.map(|value| value.as_f64().unwrap_or(f64::NAN)).collect();
                column.typed::<DoubleType>().write_batch(&values, Some(&present), None)?;
            }
            _ => {
                let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let values: Vec<ByteArray> = values.map(|value| ByteArray::from(text(value).into_bytes())).collect();
                column.typed::<ByteArrayType>().write_batch(&values, Some(&present), None)?;
            }
        }
        column.close()?;
    }
    group.close()?;
    writer.into_inner()
}

/// One JSON object a line.
pub fn jsonl(rows: &[Map<String, Value>]) -> String {
    rows.iter().map(|row| Value::Object(row.clone()).to_string() + "\n").collect()
}

/// A heading and a line for each row; null is empty.
pub fn csv(rows: &[Map<String, Value>]) -> Result<String, StudyError> {
    let failed = |error: &dyn std::fmt::Display| StudyError::Export(error.to_string());
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

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::file::{reader::FileReader as _, serialized_reader::SerializedFileReader};

    #[test]
    fn parquet_gives_back_every_value_and_every_null() {
        let empty: Map<String, Value> = columns().map(|column| (column.to_owned(), Value::Null)).collect();
        let mut full = empty.clone();
        for (name, value) in [
            ("cell", json!("a\u{e9}")),
            ("bits", json!(3)),
            ("group_size", json!(-1)),
            ("symmetric", json!(true)),
            ("ratio", json!(1.5)),
            ("bytes", json!(1_u64 << 40)),
        ] {
            full.insert(name.to_owned(), value);
        }
        let bytes = parquet(&[full.clone(), empty.clone(), full.clone()]).unwrap();
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), bytes).unwrap();
        let reader = SerializedFileReader::new(std::fs::File::open(path.path()).unwrap()).unwrap();
        let rows: Vec<_> = reader.get_row_iter(None).unwrap().map(Result::unwrap).collect();
        assert_eq!(rows.len(), 3);
        for (row, wanted) in rows.iter().zip([&full, &empty, &full]) {
            let back = |name: &str| {
                let (_, field) = row.get_column_iter().find(|(column, _)| *column == name).unwrap();
                format!("{field}").trim_matches('"').to_owned()
            };
            assert_eq!(row.get_column_iter().count(), columns().count());
            for column in columns() {
                let value = wanted[column].as_str().map_or_else(|| wanted[column].to_string(), str::to_owned);
                assert_eq!(back(column), value, "{column}");
            }
        }
        assert!(!parquet(&[]).unwrap().is_empty());
    }
}
