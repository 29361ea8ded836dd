//! The published solutions of HumanEval and MBPP have to pass their own tests in our sandbox.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use crate::real_models::folders;
use evaluate::sandbox::{Limits, Sandbox, Trial, Verdict};
use model::text::records::{Layout, Record, records};
use rayon::prelude::*;

fn text<'a>(record: &'a Record, field: &str) -> &'a str {
    record[field].as_str().unwrap()
}

/// The number of problems and the solutions that failed; nothing where there is no sandbox.
fn failures(name: &str, trial: impl Fn(&Record) -> Trial + Sync) -> Option<(usize, Vec<String>)> {
    let sandbox = match Sandbox::find(Limits { seconds: 60, ..Limits::default() }) {
        Ok(sandbox) => sandbox,
        Err(error) => {
            println!("SKIPPED {name}: {error}");
            return None;
        }
    };
    let records = records(&folders().1.join("data").join(name), Layout::default()).unwrap();
    let judged = records.par_iter().map(|record| (&record["task_id"], sandbox.judge(&trial(record)).unwrap()));
    let failed = judged.filter(|(_, verdict)| *verdict != Verdict::Passed);
    Some((records.len(), failed.map(|(id, verdict)| format!("{id}: {verdict:?}")).collect()))
}

fn definitions(code: &str) -> Vec<String> {
    let names = code.lines().filter_map(|line| line.strip_prefix("def ")?.split_once('('));
    names.map(|(name, _)| name.trim().to_owned()).collect()
}

#[test]
#[ignore = "needs the shared data and bubblewrap"]
fn humanevals_own_solutions_pass() {
    let failed = failures("humaneval/HumanEval.jsonl.gz", |record| Trial {
        solution: [text(record, "prompt"), text(record, "canonical_solution")].concat(),
        given: format!("{}\n    pass\n", text(record, "prompt")),
        theirs: vec![text(record, "entry_point").to_owned()],
        tests: format!("{}\ncheck({})", text(record, "test"), text(record, "entry_point")),
    });
    if let Some(failed) = failed {
        assert_eq!(failed, (164, Vec::new()));
    }
}

#[test]
#[ignore = "needs the shared data and bubblewrap"]
fn mbpps_own_solutions_pass() {
    let failed = failures("mbpp/mbpp_test500.jsonl", |record| Trial {
        solution: text(record, "code").to_owned(),
        given: text(record, "test_setup_code").to_owned(),
        theirs: definitions(text(record, "code")),
        tests: record["test_list"]
            .as_array()
            .unwrap()
            .iter()
            .map(|test| test.as_str().unwrap())
            .collect::<Vec<_>>()
            .join("\n"),
    });
    if let Some(failed) = failed {
        assert_eq!(failed, (500, Vec::new()));
    }
}
