//! Options that the chosen method, or a format of blocks, has no use for: given all the same, they are refused, since whoever
//! gives them believes that they do something.

use clap::{ArgMatches, Command, error::ErrorKind, parser::ValueSource};

const COMPENSATING: &[&str] = &["gptq", "awq+gptq"];
const SCALING: &[&str] = &["awq", "awq+gptq"];

/// Options with the methods that heed them.
const HEEDED: [(&str, &[&str]); 7] = [
    ("act_order", COMPENSATING),
    ("damping", COMPENSATING),
    ("input_correction", COMPENSATING),
    ("awq_steps", SCALING),
    ("awq_scale", SCALING),
    ("awq_objective", SCALING),
    ("awq_no_clip", SCALING),
];

/// What blocks of a GGUF file have of their own.
const OF_GRIDS: [&str; 5] = ["bits", "group_size", "symmetric", "asymmetric", "scale_search"];

/// Refuses what `method` doesn't heed, and with `blocks`, which is where the only format is a GGUF mixture, what its blocks
/// settle; the error names all of it.
pub(crate) fn refuse(command: &mut Command, given: &ArgMatches, method: &str, blocks: bool) -> Result<(), clap::Error> {
    let is_given = |option: &str| given.value_source(option) == Some(ValueSource::CommandLine);
    let unheeded = HEEDED.iter().filter(|(option, methods)| is_given(option) && !methods.contains(&method));
    let unheeded: Vec<String> = unheeded.map(|(option, methods)| sentence(option, methods)).collect();
    let settled = OF_GRIDS.iter().filter(|option| blocks && is_given(option)).map(|option| flag(option));
    let settled: Vec<String> = settled.collect();
    let what = match (&unheeded[..], &settled[..]) {
        ([], []) => return Ok(()),
        ([], settled) => format!(
            "a GGUF mixture has blocks with bits and grids of their own, and no use for {}; beside another format, such as \
             `--format gptq,gguf:Q4_0`, it holds that one's integers",
            settled.join(", nor for ")
        ),
        (unheeded, _) => format!("--method {method} has no use for {}", unheeded.join(", nor for ")),
    };
    Err(command.error(ErrorKind::ArgumentConflict, what))
}

fn flag(option: &str) -> String {
    format!("--{}", option.replace('_', "-"))
}

fn sentence(option: &str, methods: &[&str]) -> String {
    format!("{}, which is for {}", flag(option), methods.join(" and "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::CommandFactory as _;

    #[test]
    fn every_option_and_method_is_one_of_the_command_line() {
        let command = Cli::command();
        let find = |id: &str| command.get_arguments().find(|argument| argument.get_id() == id);
        let methods = find("method").unwrap().get_possible_values();
        assert!(OF_GRIDS.iter().all(|option| find(option).is_some()));
        for (option, heeding) in HEEDED {
            assert!(find(option).is_some(), "{option}");
            assert!(heeding.iter().all(|name| methods.iter().any(|method| method.get_name() == *name)), "{heeding:?}");
        }
    }

    #[test]
    fn what_a_method_does_not_heed_is_refused_by_name() {
        let refused = |line: &str, method| {
            let words = ["quantize", "m", "--out", "o"].into_iter().chain(line.split_whitespace());
            let matches = Cli::command().try_get_matches_from(words).unwrap();
            refuse(&mut Cli::command(), &matches, method, line.contains("gguf")).err().map(|error| error.to_string())
        };
        assert_eq!(refused("--damping 0.1 --act-order desc", "gptq"), None);
        assert_eq!(refused("", "rtn"), None);
        assert_eq!(refused("--awq-no-clip --damping 0.1", "awq+gptq"), None);
        let error = refused("--damping 0.1 --awq-objective block", "rtn").unwrap();
        for part in ["--method rtn", "--damping, which is for gptq and awq+gptq", "nor for --awq-objective"] {
            assert!(error.contains(part), "{error}");
        }
        assert!(refused("--awq-no-clip", "gptq").unwrap().contains("--awq-no-clip"));
        let error = refused("--format gguf:Q4_0 --bits 3 --asymmetric", "rtn").unwrap();
        assert!(error.contains("no use for --bits, nor for --asymmetric"), "{error}");
        assert_eq!(refused("--format gguf:Q4_0", "rtn"), None);
    }
}
