//! What `doctor` prints: the machine as the system describes it, and what the numerical loops found on it.

use crate::{Exit, Table, machine};
use anyhow::Context as _;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::{fs, io::Write as _};

/// Prints this machine's figures and `findings`, which is to be an object of plain values: as a table, or as one JSON
/// object.
pub fn run(tool: &str, findings: &impl Serialize, json: bool) -> anyhow::Result<Exit> {
    let mut report = system(tool);
    if let Value::Object(findings) = serde_json::to_value(findings)? {
        report.extend(findings);
    }
    let text = if json { serde_json::to_string_pretty(&report)? } else { table(&report).to_string() };
    writeln!(std::io::stdout(), "{text}").context("writing the result to stdout")?;
    Ok(Exit::Done)
}

fn system(tool: &str) -> Map<String, Value> {
    let folder = std::env::temp_dir();
    let figures = [
        ("tool", json!(tool)),
        ("processor", json!(processor())),
        ("processors", json!(std::thread::available_parallelism().map(std::num::NonZero::get).ok())),
        ("memory_bytes", json!(machine::total_memory())),
        ("memory_available_bytes", json!(machine::available_memory())),
        ("temporary_folder_free_bytes", json!(machine::free_disk(&folder))),
    ];
    figures.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The processor's name, where the system tells.
fn processor() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn table(report: &Map<String, Value>) -> Table {
    let mut table = Table::new(["this machine", ""]);
    for (name, value) in report {
        let name = name.trim_end_matches("_bytes");
        table.row([name.replace('_', " "), words(value, report.contains_key(&format!("{name}_bytes")))]);
    }
    table
}

fn words(value: &Value, bytes: bool) -> String {
    match value {
        Value::Null => "unknown".to_owned(),
        Value::Number(number) if bytes => number.as_u64().map_or_else(String::new, machine::bytes),
        Value::Number(number) if number.is_f64() => format!("{:.0}", number.as_f64().unwrap_or_default()),
        Value::Array(all) if all.is_empty() => "none".to_owned(),
        Value::Array(all) => all.iter().map(|one| words(one, false)).collect::<Vec<_>>().join(" "),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_become_words() {
        assert_eq!(words(&Value::Null, false), "unknown");
        assert_eq!(words(&json!(2_u64 << 30), true), "2.00 GiB");
        assert_eq!(words(&json!(226.6), false), "227");
        assert_eq!(words(&json!(["avx2", "fma"]), false), "avx2 fma");
        assert_eq!(words(&json!([]), false), "none");
    }
}
