//! The safetensors formats beside GPTQ, from folder to folder: what is written is what is read, the same integers give
//! the same weights in every format, and what is wrong is refused by name.

#![allow(clippy::unwrap_used)] // helpers of tests may panic like the tests

#[allow(dead_code)] // shared with the GPTQ tests, which use all of it
mod toy;

use half::{bf16, f16};
use kernels::{ActOrder, QuantSpec, QuantizedMatrix};
use model::{
    Checkpoint, ModelError,
    format::{Contents, QuantizedModule, Target, write},
};
use proptest::prelude::*;
use safetensors::Dtype;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;
use toy::{Stored, all_modules, matrix, read_tensors, source_tensors, spec, write_checkpoint, write_source};

const GIGABYTE: u64 = 1 << 30;
const DOWN: &str = "model.layers.1.mlp.down_proj";

fn target(name: &str) -> Target {
    name.parse().unwrap()
}

struct Bench {
    folder: TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { folder: TempDir::new().unwrap() };
        write_source(&bench.path("source"), true);
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, format: &str, shared: QuantSpec, modules: &[QuantizedModule]) -> Result<Checkpoint, ModelError> {
        let out = self.path(format);
        write_checkpoint(&self.path("source"), &out, shared, modules, target(format), GIGABYTE)?;
        Checkpoint::open(&out.to_string_lossy())
    }

    fn settings(&self, format: &str) -> Value {
        json_file(&self.path(format).join("config.json"))["quantization_config"].clone()
    }
}

fn json_file(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// A spec without a smallest zero-point, as the formats without that restriction have it.
fn free(bits: u32, group_size: Option<usize>, symmetric: bool) -> QuantSpec {
    QuantSpec { smallest_zero: 0, ..spec(bits, group_size, symmetric) }
}

#[test]
fn what_is_written_is_read_back_bit_for_bit() {
    let cases: [(&str, u32, Option<usize>, bool, ActOrder); 9] = [
        ("awq", 4, Some(32), false, ActOrder::None),
        ("awq", 4, Some(16), true, ActOrder::Static),
        ("awq", 4, None, false, ActOrder::Desc),
        ("compressed-tensors", 4, Some(32), true, ActOrder::None),
        ("compressed-tensors", 4, Some(32), false, ActOrder::Desc),
        ("compressed-tensors", 4, None, false, ActOrder::Desc),
        ("compressed-tensors", 8, None, true, ActOrder::Group),
        ("compressed-tensors", 8, Some(16), false, ActOrder::Static),
        ("compressed-tensors", 8, Some(8), true, ActOrder::Desc),
    ];
    for (format, bits, group_size, symmetric, act_order) in cases {
        let bench = Bench::new();
        let shared = QuantSpec { act_order, ..free(bits, group_size, symmetric) };
        let modules = all_modules(shared);
        let read = bench.write(format, shared, &modules).unwrap();
        for (index, module) in modules.iter().enumerate() {
            let written = matrix(index as u64 + 1, module);
            let found = read.tensors.quantized(&module.name).unwrap().unwrap();
            assert_eq!(
                (&found.codes, &found.scales, &found.zeros, &found.group_index),
                (&written.codes, &written.scales, &written.zeros, &written.group_index),
                "{} as {format}",
                module.name
            );
            let name = format!("{}.weight", module.name);
            assert_eq!(read.tensors.read(&name).unwrap(), written.dequantize());
            let weight = written.dequantize();
            let rows = [2, 0].map(|row: usize| &weight[row * module.inputs..][..module.inputs]).concat();
            assert_eq!(read.tensors.read_rows(&name, &[2, 0]).unwrap(), rows);
        }
        assert_eq!(read.config_json["torch_dtype"], "float16");
    }
}

#[test]
fn the_same_integers_are_the_same_weights_in_every_format() {
    for symmetric in [true, false] {
        let bench = Bench::new();
        let shared = spec(4, Some(32), symmetric);
        let modules = all_modules(shared);
        let formats = ["gptq", "gptq_v2", "awq", "compressed-tensors", "dequantized:float32"];
        let opened = formats.map(|format| bench.write(format, shared, &modules).unwrap());
        for (index, module) in modules.iter().enumerate() {
            let expected: Vec<u32> =
                matrix(index as u64 + 1, module).dequantize().iter().map(|weight| weight.to_bits()).collect();
            for (format, checkpoint) in formats.iter().zip(&opened) {
                let weight = checkpoint.tensors.read(&format!("{}.weight", module.name)).unwrap();
                let bits: Vec<u32> = weight.iter().map(|weight| weight.to_bits()).collect();
                assert!(bits == expected, "{} as {format}", module.name);
            }
        }
    }
}

/// Few rows, as generation has them; then many, whose sums may be ordered otherwise.
#[test]
fn a_block_kept_as_it_is_stored_computes_what_the_inflated_one_does() {
    let formats = ["gptq", "awq", "compressed-tensors", "dequantized:float16", "dequantized:bfloat16"];
    for format in formats {
        let bench = Bench::new();
        let shared = spec(4, Some(32), false);
        let checkpoint = bench.write(format, shared, &all_modules(shared)).unwrap();
        let (stored, inflated) = (checkpoint.stored_block(1).unwrap(), checkpoint.block(1).unwrap());
        for (tokens, tolerance) in [(1, 0.0), (16, 0.0), (40, 1e-4)] {
            let hidden = checkpoint.embed(&(0..tokens).map(|token| token % 8).collect::<Vec<_>>()).unwrap();
            let (got, expected) =
                (stored.forward(hidden.clone(), &mut |_, _| {}), inflated.forward(hidden.clone(), &mut |_, _| {}));
            assert_ne!(got, hidden);
            let largest = expected.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
            let same = got.iter().zip(&expected).all(|(got, want)| (got - want).abs() <= tolerance * largest);
            assert!(same, "{format}: {tokens} tokens");
        }
        let last = checkpoint.embed(&[3]).unwrap();
        let logits = |logits: Vec<f32>| logits.iter().map(|logit| logit.to_bits()).collect::<Vec<_>>();
        let (stored, inflated) = (checkpoint.stored_head().unwrap(), checkpoint.head().unwrap());
        assert_eq!(logits(stored.logits(&last)), logits(inflated.logits(&last)), "{format}");
    }
}

#[test]
fn dequantized_weights_are_rounded_once_and_nothing_says_they_were_quantized() {
    let bench = Bench::new();
    let modules = all_modules(spec(4, Some(32), true));
    let expected = |index: usize| matrix(index as u64 + 1, &modules[index]).dequantize();
    let name = |index: usize| format!("{}.weight", modules[index].name);
    // The toy says bfloat16; its norms are float32 and stay so.
    bench.write("dequantized", modules[0].spec, &modules[1..]).unwrap();
    let stored = read_tensors(&bench.path("dequantized/model.safetensors"));
    assert_eq!(stored.keys().collect::<Vec<_>>(), source_tensors(true).keys().collect::<Vec<_>>());
    for (unchanged, tensor) in source_tensors(true) {
        let quantized = modules[1..].iter().any(|module| format!("{}.weight", module.name) == unchanged);
        assert!(quantized || stored[&unchanged] == tensor, "{unchanged}");
    }
    let config = json_file(&bench.path("dequantized/config.json"));
    assert!(config.get("quantization_config").is_none() && config["torch_dtype"] == "bfloat16");
    #[allow(clippy::type_complexity, reason = "said once, here")]
    let types: [(&str, Dtype, fn(f32) -> f32); 3] = [
        ("dequantized:float16", Dtype::F16, |w| f16::from_f32(w).to_f32()),
        ("dequantized:bfloat16", Dtype::BF16, |w| bf16::from_f32(w).to_f32()),
        ("dequantized:float32", Dtype::F32, |w| w),
    ];
    for (format, dtype, round) in types {
        let read = bench.write(format, modules[0].spec, &modules).unwrap();
        for index in 0..modules.len() {
            let rounded: Vec<f32> = expected(index).into_iter().map(round).collect();
            assert_eq!(read.tensors.read(&name(index)).unwrap(), rounded, "{format}");
            assert_eq!(target(format).rounded(expected(index), &Value::Null), rounded);
        }
        let stored = read_tensors(&bench.path(format).join("model.safetensors"));
        assert!(stored.values().all(|(stored, _, _)| *stored == dtype), "{format}");
        assert_eq!(read.config_json["torch_dtype"], format.split_once(':').unwrap().1);
    }
}

fn contents<'a>(
    source: &'a Checkpoint,
    modules: &'a [QuantizedModule],
    load: &'a (dyn Fn(usize) -> Result<QuantizedMatrix, ModelError> + Sync),
) -> Contents<'a> {
    Contents {
        source,
        spec: modules[0].spec,
        modules,
        load,
        meta: Value::Null,
        damping: 0.0,
        true_sequential: false,
        shard_bytes: GIGABYTE,
    }
}

#[test]
fn replaced_tensors_take_the_place_of_the_source_s() {
    let bench = Bench::new();
    let modules = all_modules(free(4, Some(32), false));
    let source = Checkpoint::open(&bench.path("source").to_string_lossy()).unwrap();
    let changed = ["model.layers.0.input_layernorm.weight", "model.layers.1.self_attn.v_proj.bias"];
    let values = |name: &str| (name.to_owned(), vec![0.5; source.tensors.shape(name).unwrap()[0]]);
    let replaced = source.replacing(changed.iter().map(|name| values(name)).collect()).unwrap();
    let load = |index: usize| Ok(matrix(index as u64 + 1, &modules[index]));
    write(&bench.path("out"), Target::Awq, &contents(&replaced, &modules, &load)).unwrap();
    let stored = read_tensors(&bench.path("out/model.safetensors"));
    assert_eq!(stored[changed[0]], (Dtype::F32, vec![64], toy::encode(Dtype::F32, &[0.5; 64])));
    assert_eq!(stored[changed[1]], (Dtype::F16, vec![32], toy::encode(Dtype::F16, &[0.5; 32])));
    assert_eq!(stored["model.norm.weight"], source_tensors(true)["model.norm.weight"]);
    let short = source.replacing([(changed[0].to_owned(), vec![0.5; 63])].into());
    let error = short.err().unwrap().to_string();
    assert!(error.contains(changed[0]) && error.contains("63 numbers, but has 64"), "{error}");
}

#[test]
fn settings_are_those_that_loaders_know() {
    let bench = Bench::new();
    let shared = QuantSpec { act_order: ActOrder::Static, ..free(4, Some(32), true) };
    let mut modules = all_modules(shared);
    let skipped = modules.remove(3).name;
    bench.write("awq", shared, &modules).unwrap();
    let expected = json!({
        "quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": true, "version": "gemm",
        "modules_to_not_convert": [skipped, "lm_head"], "lm_head": false,
    });
    assert_eq!(bench.settings("awq"), expected);
    bench.write("compressed-tensors", shared, &modules).unwrap();
    let weights = json!({
        "num_bits": 4, "type": "int", "symmetric": true, "strategy": "group", "group_size": 32, "dynamic": false,
        "actorder": "weight", "block_structure": null, "observer": "minmax", "observer_kwargs": {},
    });
    let mut group = json!({
        "targets": ["Linear"], "weights": weights, "input_activations": null, "output_activations": null,
    });
    let mut expected = json!({
        "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
        "global_compression_ratio": null, "kv_cache_scheme": null, "ignore": [skipped, "lm_head"],
        "config_groups": { "group_0": group },
    });
    assert_eq!(bench.settings("compressed-tensors"), expected);
    // Two kinds of settings name their linears.
    modules[2].spec = free(8, None, false);
    bench.write("compressed-tensors", shared, &modules).unwrap();
    let others: Vec<&str> =
        modules.iter().map(|module| &*module.name).filter(|name| *name != modules[2].name).collect();
    group["targets"] = json!(others);
    expected["config_groups"]["group_0"] = group.clone();
    group["targets"] = json!([modules[2].name]);
    for (key, value) in [
        ("num_bits", json!(8)),
        ("symmetric", json!(false)),
        ("strategy", json!("channel")),
        ("group_size", Value::Null),
        ("actorder", Value::Null),
    ] {
        group["weights"][key] = value;
    }
    expected["config_groups"]["group_1"] = group;
    assert_eq!(bench.settings("compressed-tensors"), expected);
}

#[test]
fn what_awq_can_t_hold_together_is_refused() {
    let bench = Bench::new();
    let shared = free(4, Some(32), true);
    let mut modules = all_modules(shared);
    modules[5].spec.group_size = Some(16);
    let error = bench.write("awq", shared, &modules).err().unwrap().to_string();
    assert_eq!(
        error,
        "tensor `model.layers.0.mlp.up_proj`: 16 columns share a scale, in `model.layers.0.self_attn.q_proj` 32: AWQ files \
         have one group size for all linears"
    );
}

/// The complaint about a checkpoint after `spoil` has changed its tensors and settings.
fn complaint(format: &str, symmetric: bool, spoil: impl FnOnce(&mut BTreeMap<String, Stored>, &mut Value)) -> String {
    let bench = Bench::new();
    let shared = QuantSpec { act_order: ActOrder::Desc, ..free(4, Some(32), symmetric) };
    let shared = if format == "awq" { QuantSpec { act_order: ActOrder::None, ..shared } } else { shared };
    bench.write(format, shared, &all_modules(shared)).unwrap();
    let (file, config_file) = (bench.path(format).join("model.safetensors"), bench.path(format).join("config.json"));
    let (mut tensors, mut config) = (read_tensors(&file), json_file(&config_file));
    spoil(&mut tensors, &mut config["quantization_config"]);
    toy::write_tensors(&file, &tensors);
    fs::write(config_file, config.to_string()).unwrap();
    let opened = match Checkpoint::open(&bench.path(format).to_string_lossy()) {
        Ok(opened) => opened,
        Err(error) => return error.to_string().replace(&bench.folder.path().display().to_string(), "FOLDER"),
    };
    opened.tensors.quantized(DOWN).expect_err("nothing was refused").to_string()
}

fn set(tensors: &mut BTreeMap<String, Stored>, part: &str, change: impl FnOnce(&mut Stored)) {
    change(tensors.get_mut(&format!("{DOWN}.{part}")).unwrap());
}

/// What is done to the tensors of a sound checkpoint.
type Damage<'a> = &'a dyn Fn(&mut BTreeMap<String, Stored>);

#[test]
fn tensors_that_contradict_the_settings_are_refused_by_name() {
    let cases: [(&str, &str, Damage); 15] = [
        ("awq", "qweight`: has shape [12, 8, 8], not two axes", &|t| set(t, "qweight", |q| q.1 = vec![12, 8, 8])),
        ("awq", "qweight`: groups of 32 columns do not divide 48 inputs; [16] would", &|t| {
            set(t, "qweight", |q| q.1 = vec![48, 16]);
        }),
        ("awq", "qweight`: has shape [0, 8], which holds nothing", &|t| {
            set(t, "qweight", |q| (q.1, q.2) = (vec![0, 8], Vec::new()));
        }),
        (
            "awq",
            "qzeros`: has shape [4, 6], not [3, 8] as 96 inputs, 64 outputs, 4 bits and group size 32 make it",
            &|t| {
                set(t, "qzeros", |q| q.1 = vec![4, 6]);
            },
        ),
        ("awq", "scales`: is of type BF16, not F16", &|t| set(t, "scales", |q| q.0 = Dtype::BF16)),
        ("awq", "scales`: is missing in the safetensors files", &|t| {
            t.remove(&format!("{DOWN}.scales"));
        }),
        ("awq", "qzeros`: has no `model.layers.1.mlp.down_proj.qweight` beside it", &|t| {
            t.remove(&format!("{DOWN}.qweight"));
        }),
        (
            "compressed-tensors",
            "weight_packed`: has shape [32, 24], which no 32 x 96 matrix of 4 bits packs into",
            &|t| {
                set(t, "weight_packed", |q| q.1 = vec![32, 24]);
                set(t, "weight_shape", |q| q.2[0] = 32);
            },
        ),
        ("compressed-tensors", "weight_shape`: holds [64, -1], but there are 64 rows of codes", &|t| {
            set(t, "weight_shape", |q| q.2[8..].fill(255));
        }),
        ("compressed-tensors", "weight_shape`: is of type F32, not I64 or I32", &|t| {
            set(t, "weight_shape", |q| (q.0, q.1) = (Dtype::F32, vec![4]));
        }),
        ("compressed-tensors", "weight_scale`: is of type I32, not F16 or BF16 or F32", &|t| {
            set(t, "weight_scale", |q| (q.0, q.1) = (Dtype::I32, vec![96]));
        }),
        ("compressed-tensors", "weight_zero_point`: has shape [3, 8], not [8, 3]", &|t| {
            set(t, "weight_zero_point", |q| q.1 = vec![3, 8]);
        }),
        ("compressed-tensors", "weight_g_idx`: column 0 is in group 3, of 3 groups", &|t| {
            set(t, "weight_g_idx", |q| q.2[0] = 3);
        }),
        ("compressed-tensors", "weight_g_idx`: is missing in the safetensors files", &|t| {
            t.remove(&format!("{DOWN}.weight_g_idx"));
        }),
        ("compressed-tensors", "weight_scale`: the scale 3.4028235e38 is no float16 number", &|t| {
            let widened = [f32::MAX; 192].iter().flat_map(|scale| scale.to_le_bytes()).collect();
            set(t, "weight_scale", |q| (q.0, q.2) = (Dtype::F32, widened));
        }),
    ];
    for (format, expected, spoil) in cases {
        let error = complaint(format, false, |tensors, _| spoil(tensors));
        assert!(error.starts_with(&format!("tensor `{DOWN}.{expected}")), "{error}");
    }
    let error = complaint("compressed-tensors", true, |tensors, _| {
        tensors.insert(format!("{DOWN}.weight_zero_point"), (Dtype::I32, vec![8, 3], vec![0; 96]));
    });
    assert!(error.contains("is there, but the settings say that the grid is symmetric"), "{error}");
    let twice = |tensors: &mut BTreeMap<String, Stored>, _: &mut Value| {
        tensors.insert(format!("{DOWN}.weight"), (Dtype::F16, vec![1], vec![0, 0]));
    };
    for (format, codes) in [("awq", "qweight"), ("compressed-tensors", "weight_packed")] {
        let error = complaint(format, true, twice);
        assert_eq!(error, format!("tensor `{DOWN}.weight`: stands beside `{DOWN}.{codes}`: which one holds?"));
    }
}

#[test]
fn awq_settings_that_are_wrong_or_contradict_the_tensors_are_refused() {
    let cases = [
        (json!({"bits": 8}), "AWQ with 8 bits is not supported"),
        (json!({"bits": null}), "the quantization setting `bits` is missing"),
        (json!({"group_size": 0}), "quantization setting `group_size` is 0"),
        (json!({"group_size": 16}), "not [6, 8] as 96 inputs, 64 outputs, 4 bits and group size 16 make it"),
        (json!({"group_size": 4}), "a group of 4 columns is too small"),
        (json!({"zero_point": 1}), "quantization setting `zero_point` is 1"),
        (json!({"zero_point": false}), "but `zero_point` is false, which makes them all 8"),
        (json!({"version": "gemv"}), "the AWQ version `gemv` is not supported"),
        (json!({"modules_to_not_convert": "lm_head"}), "quantization setting `modules_to_not_convert` is \"lm_head\""),
        (json!({"modules_to_not_convert": ["up_proj"]}), "`modules_to_not_convert` leaves `up_proj` in full precision"),
    ];
    for (changes, expected) in cases {
        let error = complaint("awq", false, |_, settings| change(settings, &changes));
        assert!(error.contains(expected), "{changes}: {error}");
    }
}

fn change(settings: &mut Value, changes: &Value) {
    for (key, value) in changes.as_object().unwrap() {
        settings[key] = value.clone();
    }
}

#[test]
fn compressed_settings_that_are_wrong_or_contradict_the_tensors_are_refused() {
    let outer = [
        (json!({"format": "int-quantized"}), "the compressed-tensors format `int-quantized` is not supported"),
        (json!({"format": null}), "the quantization setting `format` is missing"),
        (
            json!({"quantization_status": "frozen"}),
            "a checkpoint whose `quantization_status` is `frozen` is not supported",
        ),
        (json!({"kv_cache_scheme": {"num_bits": 8}}), "a checkpoint with `kv_cache_scheme` is not supported"),
        (json!({"config_groups": []}), "quantization setting `config_groups` is []"),
        (json!({"config_groups": {}}), "the settings say that this module is left in full precision"),
        (json!({"ignore": ["re:("]}), "`re:(` in `ignore` is no regular expression"),
        (json!({"ignore": ["re:.*up_proj$"]}), "the settings say that this module is left in full precision"),
    ];
    for (changes, expected) in outer {
        let error = complaint("compressed-tensors", false, |_, settings| change(settings, &changes));
        assert!(error.contains(expected), "{changes}: {error}");
    }
    let inner = [
        (json!({"num_bits": 3}), "compressed-tensors with 3 bits is not supported"),
        (json!({"num_bits": "4"}), "quantization setting `num_bits` is \"4\""),
        (json!({"num_bits": 8}), "which no 64 x 96 matrix of 8 bits packs into"),
        (json!({"type": "float"}), "weights of the type `float` is not supported"),
        (json!({"strategy": "tensor"}), "the strategy `tensor` is not supported"),
        (json!({"strategy": "channel"}), "quantization setting `group_size` is 32"),
        (json!({"group_size": 16}), "not [64, 6] as 96 inputs, 64 outputs, 4 bits and group size 16 make it"),
        (json!({"symmetric": true}), "is there, but the settings say that the grid is symmetric"),
        (json!({"actorder": "weight"}), "but `actorder` is not `group`, which puts it in group 0"),
        (json!({"actorder": "sideways"}), "quantization setting `actorder` is \"sideways\""),
        (json!({"dynamic": true}), "a weight quantized dynamically is not supported"),
    ];
    for (changes, expected) in inner {
        let error = complaint("compressed-tensors", false, |_, settings| {
            change(&mut settings["config_groups"]["group_0"]["weights"], &changes);
        });
        assert!(error.contains(expected), "{changes}: {error}");
    }
    let error = complaint("compressed-tensors", false, |_, settings| {
        settings["config_groups"]["group_0"]["input_activations"] = json!({"num_bits": 8});
    });
    assert!(error.contains("a checkpoint with `input_activations` is not supported"), "{error}");
}

#[test]
fn other_ways_to_say_the_same_are_understood() {
    let bench = Bench::new();
    let shared = free(4, Some(32), true);
    let modules = all_modules(shared);
    bench.write("compressed-tensors", shared, &modules).unwrap();
    let (file, config_file) =
        (bench.path("compressed-tensors/model.safetensors"), bench.path("compressed-tensors/config.json"));
    let (mut tensors, mut config) = (read_tensors(&file), json_file(&config_file));
    let settings = &mut config["quantization_config"];
    let weights = settings["config_groups"]["group_0"]["weights"].clone();
    // Targets by expression, exact names before them; the strategy follows from the group size.
    let mut inferred = weights.clone();
    inferred.as_object_mut().unwrap().remove("strategy");
    settings["config_groups"] = json!({
        "group_0": { "targets": ["re:.*self_attn"], "weights": inferred },
        "group_1": { "targets": ["Linear"], "weights": weights },
    });
    settings.as_object_mut().unwrap().remove("quantization_status");
    fs::write(&config_file, config.to_string()).unwrap();
    // Scales in bfloat16, the shape in int32.
    let scales = format!("{DOWN}.weight_scale");
    let halves = tensors[&scales].2.as_chunks::<2>().0.to_vec();
    let floats: Vec<f32> = halves.iter().map(|&half| f16::from_le_bytes(half).to_f32()).collect();
    tensors.insert(scales, (Dtype::BF16, vec![64, 3], toy::encode(Dtype::BF16, &floats)));
    let shape = [64i32, 96].iter().flat_map(|width| width.to_le_bytes()).collect();
    tensors.insert(format!("{DOWN}.weight_shape"), (Dtype::I32, vec![2], shape));
    toy::write_tensors(&file, &tensors);
    let read = Checkpoint::open(&bench.path("compressed-tensors").to_string_lossy()).unwrap();
    for (index, module) in modules.iter().enumerate() {
        let mut written = matrix(index as u64 + 1, module);
        if module.name == DOWN {
            written.scales.iter_mut().for_each(|scale| *scale = f16::from_f32(bf16::from_f32(scale.to_f32()).to_f32()));
        }
        assert_eq!(read.tensors.read(&format!("{}.weight", module.name)).unwrap(), written.dequantize());
        assert_eq!(read.tensors.quantized(&module.name).unwrap().unwrap().scales, written.scales);
    }
}

#[test]
fn inspection_says_what_is_there_and_who_loads_it() {
    let bench = Bench::new();
    let shared = free(4, Some(32), false);
    for format in ["awq", "compressed-tensors"] {
        bench.write(format, shared, &all_modules(shared)).unwrap();
        let inspection = model::inspect::inspect(&bench.path(format).to_string_lossy()).unwrap();
        assert_eq!((&*inspection.format, &inspection.problems), (format, &Vec::new()));
        assert_eq!(inspection.modules[0].settings, "4 bits, groups of 32, asymmetric");
        assert_eq!((inspection.modules[0].modules, inspection.runtimes.len()), (14, 3));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Bytes of tensors and settings changed at random: an error or a weight, never a panic.
    #[test]
    fn damaged_checkpoints_never_panic(
        awq: bool, part in 0usize..5, shape in prop::collection::vec(0usize..200, 1..3), bits in 0i64..40, size in -3i64..200,
    ) {
        let format = if awq { "awq" } else { "compressed-tensors" };
        let bench = Bench::new();
        let shared = free(4, Some(32), false);
        bench.write(format, shared, &all_modules(shared)).unwrap();
        let (file, config_file) = (bench.path(format).join("model.safetensors"), bench.path(format).join("config.json"));
        let (mut tensors, mut config) = (read_tensors(&file), json_file(&config_file));
        let settings = &mut config["quantization_config"];
        if awq {
            settings["group_size"] = json!(size);
        } else {
            settings["config_groups"]["group_0"]["weights"]["num_bits"] = json!(bits);
            settings["config_groups"]["group_0"]["weights"]["group_size"] = json!(size);
        }
        let names: Vec<String> = tensors.keys().filter(|name| name.starts_with(DOWN)).cloned().collect();
        let name = &names[part % names.len()];
        let dtype = tensors[name].0;
        let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        tensors.insert(name.clone(), (dtype, shape, vec![0xA5; bytes]));
        toy::write_tensors(&file, &tensors);
        for settings in [true, false] {
            if settings {
                fs::write(&config_file, config.to_string()).unwrap();
            }
            if let Ok(opened) = Checkpoint::open(&bench.path(format).to_string_lossy()) {
                let _ = opened.tensors.read(&format!("{DOWN}.weight"));
            }
        }
    }
}
