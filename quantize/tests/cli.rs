//! The binary from outside, on a toy model with random weights made here.

#![allow(clippy::unwrap_used)] // helpers of tests may panic like the tests

mod toy;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};
use toy::Toy;

/// A folder with a toy model, a calibration text and room for outputs.
struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new(toy: &Toy) -> Self {
        let folder = tempfile::tempdir().unwrap();
        toy.write(&folder.path().join("model"));
        fs::write(folder.path().join("text.txt"), toy.text(40_000)).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `quantize model ARGUMENTS --out OUT` in the bench's folder.
    fn command(&self, arguments: &str, out: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quantize"));
        command.current_dir(self.folder.path()).arg("model").args(arguments.split_whitespace()).args(["--out", out]);
        command
    }

    fn run(&self, arguments: &str, out: &str) -> Output {
        self.command(arguments, out).output().unwrap()
    }

    fn succeed(&self, arguments: &str, out: &str) -> Output {
        let output = self.run(arguments, out);
        assert!(output.status.success(), "{}", text(&output.stderr));
        output
    }

    /// The error of a run that has to fail: one line, exit code 1.
    fn fail(&self, arguments: &str, out: &str) -> String {
        let output = self.run(arguments, out);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
        let stderr = text(&output.stderr);
        stderr
            .lines()
            .find(|line| line.starts_with("error: "))
            .unwrap_or_else(|| panic!("no error in {stderr}"))
            .to_owned()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Every file below `folder` with its bytes.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(folder).unwrap().to_owned();
        if path.is_dir() {
            files.extend(contents(&path).into_iter().map(|(inside, bytes)| (name.join(inside), bytes)));
        } else {
            files.insert(name, fs::read(&path).unwrap());
        }
    }
    files
}

fn assert_same(a: &Path, b: &Path) {
    let (a, b) = (contents(a), contents(b));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, bytes) in &a {
        assert!(*bytes == b[name], "{} differs", name.display());
    }
}

const TEXT: &str = "--calibration text.txt --samples 16 --sequence-length 32";
const SMALL: &str = "--calibration text.txt --samples 16 --sequence-length 32 --group-size 32";

#[test]
fn a_run_leaves_a_whole_checkpoint_and_nothing_else() {
    let bench = Bench::new(&Toy { blocks: 2 });
    let output = bench.succeed(SMALL, "out");
    let names: Vec<String> = contents(&bench.path("out")).into_keys().map(|p| p.display().to_string()).collect();
    for name in
        ["README.md", "caliper.json", "calibration.json", "config.json", "quantize_config.json", "tokenizer.json"]
    {
        assert!(names.contains(&name.to_owned()), "{name} is not among {names:?}");
    }
    assert!(!bench.path("out.partial").exists());
    let table = text(&output.stdout);
    assert!(table.contains("0.self_attn.q_proj") && table.contains("1.mlp.down_proj"), "{table}");
    assert!(table.contains("read back equal to the solver's"), "{table}");
    let settings = text(&output.stderr);
    assert!(settings.contains("act-order: static") && settings.contains("damping: 0.01"), "{settings}");
}

#[test]
fn every_method_order_width_and_zero_point_is_proven() {
    let bench = Bench::new(&Toy { blocks: 1 });
    let settings = [
        "--method rtn",
        "--bits 2 --asymmetric --act-order none",
        "--bits 3 --asymmetric --act-order desc --format gptq_v2",
        "--bits 8 --act-order group --scale-search mse",
        "--bits 4 --asymmetric --act-order static --inputs original",
        "--bits 4 --sequence block",
        "--method awq --bits 4 --asymmetric",
        "--method awq --bits 2 --group-size -1 --sequence block --awq-scale output,down",
        "--method awq+gptq --bits 3 --act-order desc --asymmetric --format gptq_v2",
        "--method awq+gptq --bits 8 --inputs original --awq-steps 5 --awq-no-clip",
        "--bits 3 --asymmetric --act-order desc --format gptq_v2 --input-correction 0.5",
        "--method awq+gptq --asymmetric --sequence block --input-correction 1",
    ];
    for setting in settings {
        let group = if setting.contains("--group-size") { "" } else { "--group-size 32" };
        let output = bench.succeed(&format!("{setting} {TEXT} {group} --overwrite --json"), "out");
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(json["proof"]["modules"], 7, "{setting}");
        assert_eq!(json["modules"].as_array().unwrap().len(), 7);
    }
}

#[test]
fn rounding_needs_no_calibration() {
    let bench = Bench::new(&Toy { blocks: 2 });
    let with_text = bench.succeed(&format!("--method rtn {SMALL} --json"), "with");
    let without = bench.succeed("--method rtn --group-size 32 --json", "without");
    let json = |output: &Output| serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap();
    assert!(json(&with_text)["modules"][0]["error"].is_f64());
    assert!(json(&without)["modules"][0]["error"].is_null());
    let weights = |out: &str| {
        contents(&bench.path(out))
            .into_iter()
            .filter(|(n, _)| n.extension().is_some_and(|e| e == "safetensors"))
            .collect::<Vec<_>>()
    };
    assert!(weights("with") == weights("without"), "the same integers either way");
}

#[test]
fn one_thread_and_two_give_the_same_bytes() {
    let bench = Bench::new(&Toy { blocks: 3 });
    for method in ["gptq", "awq", "awq+gptq", "gptq --input-correction 1", "awq+gptq --input-correction 1"] {
        let run = |threads: usize| {
            let out = format!("{}-{threads}", method.replace(' ', ""));
            bench.succeed(&format!("{SMALL} --method {method} --threads {threads}"), &out);
            bench.path(&out)
        };
        assert_same(&run(1), &run(2));
    }
}

#[test]
fn activations_in_a_file_give_the_same_bytes_as_in_memory() {
    for arguments in [SMALL.to_owned(), format!("{SMALL} --input-correction 1")] {
        let bench = Bench::new(&Toy { blocks: 2 });
        bench.succeed(&arguments, "roomy");
        // Less than the program itself needs is refused with both numbers; little more leaves no room for activations.
        let error = bench.fail(&format!("{arguments} --memory 1MiB"), "cramped");
        assert!(error.contains("of memory, but there are 1.00 MiB"), "{error}");
        let plan = text(&bench.succeed(&format!("{arguments} --dry-run --json"), "cramped").stdout);
        let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
        let output = bench.succeed(&format!("{arguments} --memory {}", plan["memory"]), "cramped");
        assert!(text(&output.stderr).contains("of activations in a temporary file"), "{}", text(&output.stderr));
        assert_same(&bench.path("roomy"), &bench.path("cramped"));
    }
}

const LONG: &str = "--calibration text.txt --samples 96 --sequence-length 128 --group-size 32 --threads 1 --lm-head";

/// Starts the run, kills it once `blocks` blocks are finished.
fn kill_after(bench: &Bench, arguments: &str, blocks: usize, out: &str) {
    let mut child = bench.command(arguments, out).stderr(Stdio::null()).spawn().unwrap();
    let waited_for = bench.path(&format!("{out}.partial/block-{:05}.solved", blocks - 1));
    let started = Instant::now();
    while !waited_for.exists() {
        assert!(started.elapsed() < Duration::from_mins(5), "no block was finished");
        assert!(child.try_wait().unwrap().is_none(), "the run ended before it could be killed");
        thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_killed_run_goes_on_after_its_last_block_and_ends_in_the_same_bytes() {
    let bench = Bench::new(&Toy { blocks: 12 });
    bench.succeed(LONG, "whole");
    kill_after(&bench, LONG, 2, "killed");
    assert!(!bench.path("killed").exists(), "a killed run leaves no output");
    kill_after(&bench, LONG, 5, "killed");
    let output = bench.succeed(&format!("{LONG} --json"), "killed");
    assert!(text(&output.stderr).contains("going on with killed.partial"), "{}", text(&output.stderr));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(json["totals"]["blocks_resumed"].as_u64().unwrap() >= 5, "{}", json["totals"]);
    assert_same(&bench.path("whole"), &bench.path("killed"));
    assert!(!bench.path("killed.partial").exists());
}

#[test]
fn a_killed_run_of_awq_goes_on_with_what_it_had_folded() {
    let bench = Bench::new(&Toy { blocks: 6 });
    let arguments = LONG.replace("--lm-head", "--method awq+gptq --bits 3 --asymmetric");
    let whole = bench.succeed(&format!("{arguments} --json"), "whole");
    let json: serde_json::Value = serde_json::from_slice(&whole.stdout).unwrap();
    assert!(json["proof"]["tensors"].as_u64().unwrap() > 0, "nothing was folded");
    kill_after(&bench, &arguments, 3, "killed");
    bench.succeed(&arguments, "killed");
    assert_same(&bench.path("whole"), &bench.path("killed"));
}

#[test]
fn a_killed_run_with_the_original_model_beside_ends_in_the_same_bytes() {
    let bench = Bench::new(&Toy { blocks: 6 });
    for method in ["--lm-head --bits 3", "--method awq+gptq --bits 3 --asymmetric"] {
        let arguments = LONG.replace("--lm-head", &format!("{method} --overwrite --input-correction 1"));
        bench.succeed(&arguments, "whole");
        kill_after(&bench, &arguments, 3, "killed");
        bench.succeed(&arguments, "killed");
        assert_same(&bench.path("whole"), &bench.path("killed"));
        bench.succeed(&arguments.replace("correction 1", "correction 0"), "without");
        let weights = |out: &str| fs::read(bench.path(out).join("model.safetensors")).unwrap();
        assert!(weights("whole") != weights("without"), "{method}: nothing was corrected");
        fs::remove_dir_all(bench.path("killed")).unwrap();
    }
}

#[test]
fn awq_that_neither_scales_nor_clips_is_the_plain_method() {
    let bench = Bench::new(&Toy { blocks: 2 });
    let weights = |arguments: &str, out: &str| {
        bench.succeed(&format!("{SMALL} {arguments}"), out);
        fs::read(bench.path(out).join("model.safetensors")).unwrap()
    };
    for (ours, plain) in [("awq", "rtn"), ("awq+gptq", "gptq")] {
        let ours = weights(&format!("--method {ours} --awq-steps 0 --awq-no-clip"), ours);
        assert!(ours == weights(&format!("--method {plain}"), plain), "{plain}");
    }
}

#[test]
fn modules_in_full_precision_are_not_scaled() {
    let bench = Bench::new(&Toy { blocks: 1 });
    let arguments = format!("{SMALL} --method awq --bits 2 --asymmetric --skip *.up_proj --skip *.q_proj --json");
    let output = bench.succeed(&arguments, "out");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for module in json["modules"].as_array().unwrap() {
        let scaled = module["module"].as_str().unwrap().ends_with("o_proj");
        assert_eq!(module["scaling"].is_object(), scaled, "{module}");
    }
    assert_eq!(json["proof"]["tensors"], 0);
}

#[test]
fn another_command_over_an_unfinished_run_is_refused_with_the_difference() {
    let bench = Bench::new(&Toy { blocks: 12 });
    kill_after(&bench, LONG, 1, "out");
    let error = bench.fail(&LONG.replace("--group-size 32", "--group-size 16 --bits 3"), "out");
    assert!(error.contains("settings.bits: 4 → 3") && error.contains("settings.group_size: 32 → 16"), "{error}");
    assert!(bench.path("out.partial/block-00000.solved").exists(), "nothing was thrown away");
    bench.succeed(&format!("{} --bits 3 --overwrite", LONG.replace("--samples 96", "--samples 4")), "out");
    assert!(!bench.path("out.partial").exists());
}

#[test]
fn a_process_that_died_between_publishing_and_clearing_up_is_finished() {
    let bench = Bench::new(&Toy { blocks: 12 });
    kill_after(&bench, LONG, 1, "other");
    bench.succeed(LONG, "out");
    let before = contents(&bench.path("out"));
    // The work folder of the same command, as it is left if the process dies after the rename.
    fs::rename(bench.path("other.partial"), bench.path("out.partial")).unwrap();
    bench.succeed(LONG, "out");
    assert!(!bench.path("out.partial").exists());
    assert!(before == contents(&bench.path("out")));
}

#[test]
fn an_output_that_exists_is_refused_and_replaced_on_demand() {
    let bench = Bench::new(&Toy { blocks: 1 });
    fs::create_dir(bench.path("out")).unwrap();
    fs::write(bench.path("out/mine.txt"), "precious").unwrap();
    let error = bench.fail(SMALL, "out");
    assert_eq!(error, "error: out exists already; choose another --out, or replace it with --overwrite");
    assert!(bench.path("out/mine.txt").exists());
    bench.succeed(&format!("{SMALL} --overwrite"), "out");
    assert!(!bench.path("out/mine.txt").exists() && bench.path("out/config.json").exists());
}

#[test]
fn what_can_t_be_done_is_said_in_a_sentence() {
    let bench = Bench::new(&Toy { blocks: 1 });
    for (arguments, wanted) in [
        ("--bits 4", "--method gptq needs text to calibrate on"),
        ("--calibration nowhere.txt", "nowhere.txt"),
        ("--calibration text.txt --samples 4000 --sequence-length 64", "not enough calibration text"),
        ("--method rtn --bits 5", "5 bits are not supported: choose 2, 3, 4 or 8"),
        ("--method rtn --group-size 4", "a group of 4 columns is too small"),
        ("--method rtn --group-size 0", "a group size of 0 is none"),
        ("--method rtn --damping -1", "unexpected argument"),
        ("--method rtn --input-correction 1", "no use for --input-correction, which is for gptq and awq+gptq"),
        ("--method awq --calibration text.txt --input-correction 1", "no use for --input-correction"),
        ("--method rtn --format gguf:Q4_0 --bits 3", "no use for --bits"),
        ("--calibration text.txt --input-correction 1.5", "give a share from 0"),
        ("--calibration text.txt --input-correction nan", "give a share from 0"),
        ("--calibration text.txt --input-correction 1 --inputs original", "which --inputs original doesn't see"),
        ("--method rtn --skip *.nothing", "`*.nothing` matches no linear"),
        ("--method rtn --skip *", "every linear is skipped"),
        ("--method rtn --override *.q_proj:bits=5", "model.layers.0.self_attn.q_proj: 5 bits are not supported"),
    ] {
        let output = bench.run(arguments, "out");
        let stderr = text(&output.stderr);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{arguments}: {stderr}");
        assert!(stderr.contains(wanted), "{arguments}: {stderr}");
        assert!(!bench.path("out").exists() && !bench.path("out.partial").exists(), "{arguments} left something");
    }
    let missing = Command::new(env!("CARGO_BIN_EXE_quantize")).args(["./no-model", "--out", "o"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("./no-model"), "{}", text(&missing.stderr));
}

#[test]
fn overrides_and_skips_reach_the_file() {
    let bench = Bench::new(&Toy { blocks: 2 });
    let arguments = format!("{SMALL} --override *.down_proj:bits=8,group-size=-1 --skip *.0.*.o_proj --json");
    let output = bench.succeed(&arguments, "out");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let modules = json["modules"].as_array().unwrap();
    assert_eq!(modules.len(), 13);
    assert!(modules.iter().all(|m| m["module"] != "model.layers.0.self_attn.o_proj"));
    let down = modules.iter().find(|m| m["module"] == "model.layers.1.mlp.down_proj").unwrap();
    assert_eq!((&down["spec"]["bits"], &down["spec"]["group_size"]), (&8.into(), &serde_json::Value::Null));
    let inspected =
        Command::new(env!("CARGO_BIN_EXE_quantize")).arg("inspect").arg(bench.path("out")).output().unwrap();
    assert!(inspected.status.success(), "{}", text(&inspected.stderr));
}

#[test]
fn the_head_is_quantized_on_demand_and_a_tied_one_becomes_its_own_matrix() {
    let bench = Bench::new(&Toy { blocks: 2 });
    for method in ["gptq", "rtn"] {
        let output = bench.succeed(&format!("{SMALL} --method {method} --lm-head --json"), method);
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let head = json["modules"].as_array().unwrap().last().unwrap();
        assert_eq!((&head["module"], &head["outputs"]), (&"lm_head".into(), &64.into()));
        assert!(head["error"].as_f64().unwrap() > 0.0);
        assert_eq!(json["proof"]["modules"], 15);
    }
    bench.succeed("--method rtn --group-size 32 --lm-head", "blind");
    let config = |out: &str| fs::read_to_string(bench.path(out).join("config.json")).unwrap();
    assert!(config("gptq").contains("\"tie_word_embeddings\": false"), "{}", config("gptq"));
    assert!(config("blind").contains("\"lm_head\": true"), "{}", config("blind"));
}

/// `quantize convert INPUT --format FORMATS --out OUT` in the bench's folder.
fn convert(bench: &Bench, input: &str, formats: &str, out: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quantize"));
    command.current_dir(bench.folder.path()).args(["convert", input, "--format", formats, "--out", out]);
    command.output().unwrap()
}

fn convert_well(bench: &Bench, input: &str, formats: &str, out: &str) -> String {
    let output = convert(bench, input, formats, out);
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// Every weight of a checkpoint, as bits.
fn weights(folder: &Path) -> BTreeMap<String, Vec<u32>> {
    let checkpoint = model::Checkpoint::open(&folder.to_string_lossy()).unwrap();
    let read = |name: String| {
        let weight = checkpoint.tensors.read(&name).unwrap();
        (name, weight.iter().map(|weight| weight.to_bits()).collect())
    };
    checkpoint.tensors.names().into_iter().map(read).collect()
}

const FORMATS: &str = "gptq,gptq_v2,awq,compressed-tensors,dequantized:float32";

#[test]
fn one_solve_writes_every_format_with_the_same_weights() {
    let bench = Bench::new(&Toy { blocks: 2 });
    for grid in ["--symmetric", "--asymmetric"] {
        let output = bench.succeed(&format!("{SMALL} {grid} --format {FORMATS} --json --overwrite"), "out");
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&json["proof"]["formats"], &json["proof"]["modules"]), (&5.into(), &14.into()));
        assert_eq!(json["outputs"].as_array().unwrap().len(), 5);
        assert_eq!(json["outputs"][2]["format"], "awq");
        let folders = FORMATS.split(',').map(|format| bench.path("out").join(format.replace(':', "-")));
        let mut all: Vec<_> = folders
            .map(|folder| {
                assert!(folder.join("README.md").is_file() && folder.join("caliper.json").is_file());
                weights(&folder)
            })
            .collect();
        let first = all.pop().unwrap();
        assert!(all.iter().all(|other| *other == first), "{grid}");
    }
    assert_eq!(fs::read_dir(bench.path("out")).unwrap().count(), 5);
}

#[test]
fn other_formats_are_another_run_and_several_lie_side_by_side() {
    let bench = Bench::new(&Toy { blocks: 12 });
    kill_after(&bench, LONG, 1, "other");
    let arguments = format!("{LONG} --format awq,dequantized");
    let refused = bench.fail(&arguments, "other");
    assert!(refused.contains("settings.formats"), "{refused}");
    bench.succeed(&arguments, "out");
    assert!(bench.path("out/awq/config.json").exists() && bench.path("out/dequantized/config.json").exists());
}

#[test]
fn formats_that_can_t_hold_the_settings_are_refused_before_work_starts() {
    let bench = Bench::new(&Toy { blocks: 1 });
    let q_proj = "tensor `model.layers.0.self_attn.q_proj`";
    for (arguments, wanted) in [
        (
            "--bits 3 --format gptq,awq",
            format!("--format awq can't hold this: {q_proj}: 3 bits: AWQ files hold 4 bits only"),
        ),
        (
            "--bits 2 --format compressed-tensors",
            format!("{q_proj}: 2 bits: compressed-tensors files hold 4 or 8 bits"),
        ),
        (
            "--act-order desc --format awq",
            format!("{q_proj}: its columns are in act-order (desc), and AWQ files have no group index"),
        ),
        (
            "--group-size 40 --format awq",
            format!("{q_proj}: groups of 40 columns do not divide 64 inputs; [16, 32, 64] would"),
        ),
        ("--override *.up_proj:group-size=16 --format awq", "AWQ files have one group size for all linears".to_owned()),
        ("--format awq,awq", "--format names `awq` twice".to_owned()),
    ] {
        let error =
            bench.fail(&format!("{SMALL} {arguments}").replace("--group-size 32 --group-size", "--group-size"), "out");
        assert!(error.contains(&wanted), "{arguments}: {error}");
        assert!(!bench.path("out").exists() && !bench.path("out.partial").exists(), "{arguments} left something");
    }
    let unknown = bench.run(&format!("{SMALL} --format exl2"), "out");
    assert_eq!(unknown.status.code(), Some(2));
    assert!(text(&unknown.stderr).contains("`exl2` is no format: write gptq"), "{}", text(&unknown.stderr));
}

#[test]
fn conversion_moves_the_integers_and_comes_back_to_the_same_bytes() {
    let bench = Bench::new(&Toy { blocks: 2 });
    let same = |a: &str, b: &str| {
        let file = |folder: &str, name: &str| fs::read(bench.path(folder).join(name)).unwrap();
        assert!(file(a, "model.safetensors") == file(b, "model.safetensors"), "{a} and {b}");
        assert!(file(a, "config.json") == file(b, "config.json"), "{a} and {b}");
    };
    for (grid, first, others) in
        [("--symmetric", "gptq", "awq,compressed-tensors"), ("--asymmetric", "gptq_v2", "compressed-tensors,awq")]
    {
        let at = |name: &str| format!("{}-{name}", &grid[2..]);
        bench.succeed(&format!("{SMALL} {grid} --act-order none --format {first},{others}"), &at("all"));
        let in_all = |format: &str| format!("{}/{format}", at("all"));
        let table = convert_well(&bench, &in_all(first), others, &at("one"));
        assert!(table.contains("proof: 14 modules"), "{table}");
        for format in others.split(',') {
            same(&in_all(format), &format!("{}/{format}", at("one")));
            convert_well(&bench, &in_all(format), first, &at(format));
            let weights = |folder: &str| weights(&bench.path(folder));
            assert!(weights(&in_all(first)) == weights(&at(format)));
        }
        convert_well(&bench, &in_all("awq"), "dequantized:float32", &at("float"));
        assert!(weights(&bench.path(&in_all("awq"))) == weights(&bench.path(&at("float"))));
    }
    let card = fs::read_to_string(bench.path("symmetric-one/awq/README.md")).unwrap();
    assert!(card.contains("from the checkpoint `gptq` (gptq)"), "{card}");
    let record = fs::read_to_string(bench.path("symmetric-one/awq/caliper.json")).unwrap();
    assert!(record.contains("\"original\"") && record.contains("\"act_order\": \"none\""), "{record}");
}

#[test]
fn conversion_keeps_an_act_order_where_the_format_has_a_group_index() {
    let bench = Bench::new(&Toy { blocks: 1 });
    bench.succeed(&format!("{SMALL} --act-order desc"), "ordered");
    convert_well(&bench, "ordered", "compressed-tensors", "compressed");
    assert!(weights(&bench.path("ordered")) == weights(&bench.path("compressed")));
    convert_well(&bench, "compressed", "gptq", "back");
    let file = |folder: &str| fs::read(bench.path(folder).join("model.safetensors")).unwrap();
    assert!(file("ordered") == file("back"));
}

#[test]
fn what_can_t_be_converted_is_named() {
    let bench = Bench::new(&Toy { blocks: 1 });
    bench.succeed(&format!("{SMALL} --bits 3"), "three");
    bench.succeed(&format!("{SMALL} --act-order desc"), "ordered");
    bench.succeed(&SMALL.replace("--group-size 32", "--group-size 40"), "ragged");
    let down = "tensor `model.layers.0.mlp.down_proj`";
    for (input, formats, wanted) in [
        ("three", "awq", format!("--format awq can't hold this: {down}: 3 bits: AWQ files hold 4 bits only")),
        ("three", "gptq,compressed-tensors", format!("{down}: 3 bits: compressed-tensors files hold 4 or 8 bits")),
        ("ordered", "awq", format!("{down}: its columns are in act-order (desc), and AWQ files have no group index")),
        ("ragged", "awq", format!("{down}: groups of 40 columns do not divide 96 inputs; [16, 32] would")),
        ("ragged", "compressed-tensors", format!("{down}: groups of 40 columns do not divide 96 inputs")),
        ("model", "gptq", "model holds no quantized linears to repack".to_owned()),
        ("model", "awq,awq", "--format names `awq` twice".to_owned()),
    ] {
        let output = convert(&bench, input, formats, "out");
        assert_eq!(output.status.code(), Some(1), "{input} {formats}");
        assert!(text(&output.stderr).contains(&wanted), "{input} {formats}: {}", text(&output.stderr));
        let left = fs::read_dir(bench.folder.path()).unwrap().filter(|entry| {
            let name = entry.as_ref().unwrap().file_name().into_string().unwrap();
            name == "out" || name.starts_with(".tmp")
        });
        assert_eq!(left.count(), 0, "{input} {formats} left something");
    }
    for input in ["three", "ordered", "ragged", "model"] {
        convert_well(&bench, input, "dequantized:float32", &format!("{input}-float"));
        assert!(weights(&bench.path(input)) == weights(&bench.path(&format!("{input}-float"))), "{input}");
    }
    let output = convert(&bench, "three", "dequantized", "three-float");
    assert!(text(&output.stderr).contains("three-float exists already"), "{}", text(&output.stderr));
}

#[test]
fn a_dry_run_writes_nothing() {
    let bench = Bench::new(&Toy { blocks: 1 });
    let output = bench.succeed(&format!("{SMALL} --dry-run"), "out");
    let plan = text(&output.stdout);
    assert!(plan.contains("needs memory") && plan.contains("needs disk") && plan.contains("needs time"), "{plan}");
    assert!(!bench.path("out").exists() && !bench.path("out.partial").exists());
}

#[test]
fn groups_that_do_not_divide_are_warned_of() {
    let bench = Bench::new(&Toy { blocks: 1 });
    let output = bench.succeed("--method rtn --group-size 40", "out");
    let stderr = text(&output.stderr);
    assert!(stderr.contains("warning: vLLM refuses: `model.layers.0.self_attn.q_proj`: group size 40 does not divide 64 inputs; [16, 32, 64] would"), "{stderr}");
}

#[test]
fn the_help_is_as_documented() {
    let help = Command::new(env!("CARGO_BIN_EXE_quantize")).arg("--help").output().unwrap();
    insta::assert_snapshot!(text(&help.stdout));
}
