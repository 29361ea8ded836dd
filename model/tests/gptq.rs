//! GPTQ checkpoints from folder to folder: what is written is what is read, and what is wrong is refused by name.

#![allow(clippy::unwrap_used)] // helpers of tests may panic like the tests

mod toy;

use kernels::{ActOrder, QuantSpec};
use model::{
    Checkpoint,
    format::{
        QuantizedModule, StoredType, Target, TensorSource,
        gptq::{GptqFolder, Version},
        huggingface::SafetensorsFolder,
    },
    inspect::inspect,
    runtimes::Outcome,
};
use safetensors::Dtype;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;
use toy::{
    Stored, all_modules, matrix, read_tensors, source_tensors, spec, write_checkpoint, write_source, write_tensors,
};

const GIGABYTE: u64 = 1 << 30;
const V1: Target = Target::Gptq(Version::V1);

struct Bench {
    folder: TempDir,
}

impl Bench {
    fn new(tied: bool) -> Self {
        let bench = Self { folder: TempDir::new().unwrap() };
        write_source(&bench.source(), tied);
        bench
    }

    fn source(&self) -> PathBuf {
        self.folder.path().join("source")
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    fn write(&self, shared: QuantSpec, modules: &[QuantizedModule]) -> Result<(), model::ModelError> {
        write_checkpoint(&self.source(), &self.out(), shared, modules, V1, GIGABYTE)
    }

    fn open(&self) -> Result<Checkpoint, model::ModelError> {
        Checkpoint::open(&self.out().to_string_lossy())
    }
}

fn json_file(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn what_is_written_is_read_back_bit_for_bit() {
    for (bits, group_size, symmetric) in
        [(2, Some(16), false), (3, Some(32), true), (4, Some(64), false), (8, None, true)]
    {
        for (version, act_order) in [(Version::V1, ActOrder::None), (Version::V2, ActOrder::Desc)] {
            let bench = Bench::new(true);
            let smallest_zero = u8::from(version == Version::V1);
            let shared = QuantSpec { act_order, smallest_zero, ..spec(bits, group_size, symmetric) };
            let modules = all_modules(shared);
            write_checkpoint(&bench.source(), &bench.out(), shared, &modules, Target::Gptq(version), GIGABYTE).unwrap();
            let read = bench.open().unwrap();
            for (index, module) in modules.iter().enumerate() {
                let written = matrix(index as u64 + 1, module);
                assert_eq!(read.tensors.quantized(&module.name).unwrap().unwrap(), written, "{}", module.name);
                let name = format!("{}.weight", module.name);
                assert_eq!(read.tensors.read(&name).unwrap(), written.dequantize());
                let rows = read.tensors.read_rows(&name, &[3, 0]).unwrap();
                assert_eq!(rows[module.inputs..], written.dequantize()[..module.inputs]);
                assert_eq!(read.tensors.shape(&name).unwrap(), [module.outputs, module.inputs]);
                assert_eq!(read.tensors.stored_type(&name).unwrap(), StoredType::Quantized);
                assert!(read.tensors.read_rows(&name, &[9999]).is_err());
            }
        }
    }
}

#[test]
fn other_tensors_keep_their_bits_and_biases_become_float16() {
    let bench = Bench::new(true);
    let modules = all_modules(spec(4, Some(32), true));
    bench.write(spec(4, Some(32), true), &modules[1..]).unwrap(); // The first q_proj stays as it is.
    let (before, after) = (source_tensors(true), read_tensors(&bench.out().join("model.safetensors")));
    for name in ["model.embed_tokens.weight", "model.norm.weight", "model.layers.0.self_attn.q_proj.weight"] {
        assert_eq!(after[name], before[name], "{name}");
    }
    assert_eq!(after["model.layers.0.self_attn.q_proj.bias"].0, Dtype::BF16, "its linear isn't quantized");
    assert_eq!(after["model.layers.0.self_attn.k_proj.bias"].0, Dtype::F16);
    assert!(!after.contains_key("lm_head.weight") && !after.contains_key("model.layers.0.self_attn.k_proj.weight"));
    assert!(bench.out().join("tokenizer.json").is_file() && bench.out().join("generation_config.json").is_file());
    let bench = Bench::new(false);
    bench.write(spec(4, Some(32), true), &modules).unwrap();
    let after = read_tensors(&bench.out().join("model.safetensors"));
    assert_eq!(after["lm_head.weight"], source_tensors(false)["lm_head.weight"]);
}

#[test]
fn an_embedding_too_large_to_copy_at_once_keeps_its_bits() {
    let bench = Bench::new(true);
    let (file, config_file) = (bench.source().join("model.safetensors"), bench.source().join("config.json"));
    let (mut tensors, mut config) = (read_tensors(&file), json_file(&config_file));
    let rows = (1 << 24) / toy::HIDDEN + 5;
    let values: Vec<f32> = (0..rows * toy::HIDDEN).map(|index| (index % 1999) as f32).collect();
    let embedding = (Dtype::F16, vec![rows, toy::HIDDEN], toy::encode(Dtype::F16, &values));
    tensors.insert("model.embed_tokens.weight".into(), embedding.clone());
    config["vocab_size"] = json!(rows);
    write_tensors(&file, &tensors);
    fs::write(config_file, config.to_string()).unwrap();
    bench.write(spec(4, Some(32), true), &all_modules(spec(4, Some(32), true))).unwrap();
    assert!(read_tensors(&bench.out().join("model.safetensors"))["model.embed_tokens.weight"] == embedding);
}

#[test]
fn settings_name_what_differs_and_what_is_skipped() {
    let bench = Bench::new(true);
    let shared = QuantSpec { act_order: ActOrder::Static, ..spec(4, Some(32), false) };
    let mut modules = all_modules(shared);
    let skipped = modules.remove(3);
    assert_eq!(skipped.name, "model.layers.0.self_attn.o_proj");
    modules[5].spec = QuantSpec { bits: 8, group_size: None, symmetric: true, ..shared };
    bench.write(shared, &modules).unwrap();
    let config = json_file(&bench.out().join("config.json"));
    let settings = &config["quantization_config"];
    assert_eq!(*settings, json_file(&bench.out().join("quantize_config.json")));
    assert_eq!(config["torch_dtype"], "float16");
    let expected = json!({
        "quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": false, "sym": false, "lm_head": false,
        "checkpoint_format": "gptq", "true_sequential": true, "damp_percent": 0.05, "static_groups": true,
        "pack_dtype": "int32",
        "dynamic": {
            r"+:^model\.layers\.0\.mlp\.down_proj$": { "bits": 8, "group_size": -1, "sym": true },
            r"-:^model\.layers\.0\.self_attn\.o_proj$": {},
        },
        "meta": { "quantizer": [format!("caliper:{}", env!("CARGO_PKG_VERSION"))], "calibration": "none" },
    });
    assert_eq!(*settings, expected);
    let read = bench.open().unwrap();
    for (index, module) in modules.iter().enumerate() {
        assert_eq!(read.tensors.quantized(&module.name).unwrap().unwrap(), matrix(index as u64 + 1, module));
    }
    assert_eq!(read.tensors.quantized(&skipped.name).unwrap(), None);
}

#[test]
fn a_tied_head_can_be_quantized_by_untying_it() {
    let bench = Bench::new(true);
    let mut modules = all_modules(spec(4, Some(32), true));
    modules.push(QuantizedModule {
        name: "lm_head".into(),
        outputs: toy::VOCABULARY,
        inputs: toy::HIDDEN,
        spec: spec(4, Some(32), true),
    });
    bench.write(spec(4, Some(32), true), &modules).unwrap();
    let config = json_file(&bench.out().join("config.json"));
    assert_eq!(
        (&config["tie_word_embeddings"], &config["quantization_config"]["lm_head"]),
        (&json!(false), &json!(true))
    );
    let read = bench.open().unwrap();
    assert!(read.tensors.quantized("lm_head").unwrap().is_some() && !read.config.tied_head);
}

/// Every file of `folder` by name.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

#[test]
fn shards_stay_below_their_limit_and_two_runs_give_the_same_bytes() {
    let bench = Bench::new(false);
    let modules = all_modules(spec(4, Some(32), true));
    let (one, other) = (bench.folder.path().join("one"), bench.folder.path().join("other"));
    for folder in [&one, &other] {
        write_checkpoint(&bench.source(), folder, spec(4, Some(32), true), &modules, V1, 6_000).unwrap();
    }
    assert_eq!(files(&one), files(&other));
    let index = json_file(&one.join("model.safetensors.index.json"));
    let map = index["weight_map"].as_object().unwrap();
    let shards: Vec<PathBuf> =
        files(&one).keys().filter(|name| name.ends_with(".safetensors")).map(|name| one.join(name)).collect();
    assert!(shards.len() > 3 && shards[0].ends_with(format!("model-00001-of-{:05}.safetensors", shards.len())));
    let (mut names, mut total) = (0, 0);
    for shard in &shards {
        let tensors = read_tensors(shard);
        let bytes: usize = tensors.values().map(|(_, _, bytes)| bytes.len()).sum();
        assert!(bytes <= 6_000 || tensors.len() == 1, "{}: {bytes} bytes", shard.display());
        assert!(tensors.keys().all(|name| shard.ends_with(map[name].as_str().unwrap())));
        (names, total) = (names + tensors.len(), total + bytes);
    }
    assert_eq!((names, json!(total)), (map.len(), index["metadata"]["total_size"].clone()));
    bench.write(spec(4, Some(32), true), &modules).unwrap();
    let (sharded, single) = (Checkpoint::open(&one.to_string_lossy()).unwrap(), bench.open().unwrap());
    assert_eq!(sharded.tensors.names(), single.tensors.names());
    for name in single.tensors.names() {
        assert_eq!(sharded.tensors.read(&name).unwrap(), single.tensors.read(&name).unwrap(), "{name}");
    }
}

#[cfg(unix)]
#[test]
fn shards_can_be_read_by_whoever_can_read_the_config() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::new(true);
    bench.write(spec(4, Some(32), true), &all_modules(spec(4, Some(32), true))).unwrap();
    let mode = |name: &str| fs::metadata(bench.out().join(name)).unwrap().permissions().mode();
    assert_eq!(mode("model.safetensors"), mode("config.json"));
}

#[test]
fn what_cannot_be_stored_is_refused() {
    let message = |shared: QuantSpec, modules: &[QuantizedModule]| {
        let bench = Bench::new(true);
        let error = bench.write(shared, modules).unwrap_err().to_string();
        assert!(!bench.out().join("model.safetensors").exists(), "an incomplete file was left");
        error
    };
    let zero_allowed = QuantSpec { smallest_zero: 0, ..spec(2, Some(16), false) };
    assert_eq!(
        message(zero_allowed, &all_modules(zero_allowed)),
        "tensor `model.layers.0.mlp.down_proj`: zero-point 0 cannot be stored as `gptq`, which holds 1..=3"
    );
    let plain = spec(4, Some(32), true);
    let mut twice = all_modules(plain);
    twice.push(twice[0].clone());
    assert!(message(plain, &twice).ends_with("q_proj`: is to be written twice"));
    let mut wrong = all_modules(plain);
    wrong[0].inputs = 32;
    assert!(message(plain, &wrong).contains("is [64, 64] in the source, but [64, 32] quantized"));
    let module = |outputs, inputs| QuantizedModule { name: "lm_head".into(), outputs, inputs, spec: plain };
    assert_eq!(
        V1.check(&[module(49153, 576)]).unwrap_err().to_string(),
        "tensor `lm_head`: 49153 outputs are not a multiple of 32, which GPTQ files need on both axes: leave this module \
         in full precision"
    );
    assert!(V1.check(&[module(32, 0)]).is_err() && V1.check(&[module(32, 64)]).is_ok());
}

#[test]
fn a_bias_beyond_float16_is_refused_by_name() {
    let bench = Bench::new(true);
    let file = bench.source().join("model.safetensors");
    let mut tensors = read_tensors(&file);
    let name = "model.layers.1.self_attn.k_proj.bias";
    tensors.get_mut(name).unwrap().2 = toy::encode(Dtype::BF16, &[131_072.0; 32]);
    write_tensors(&file, &tensors);
    let error = bench.write(spec(4, Some(32), true), &all_modules(spec(4, Some(32), true))).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("tensor `{name}`: the value 131072 is beyond float16's largest number, 65504")
    );
}

/// The complaint about a good checkpoint after `spoil`.
fn complaint(spoil: impl Fn(&mut BTreeMap<String, Stored>, &mut Value)) -> String {
    let bench = Bench::new(true);
    bench.write(spec(4, Some(32), false), &all_modules(spec(4, Some(32), false))).unwrap();
    let (file, config_file) = (bench.out().join("model.safetensors"), bench.out().join("config.json"));
    let (mut tensors, mut config) = (read_tensors(&file), json_file(&config_file));
    spoil(&mut tensors, &mut config["quantization_config"]);
    write_tensors(&file, &tensors);
    fs::write(config_file, config.to_string()).unwrap();
    let checked = GptqFolder::open(SafetensorsFolder::open(&bench.out()).unwrap(), &config, &bench.out());
    let read = checked.and_then(|folder| folder.names().iter().try_for_each(|name| folder.read(name).map(drop)));
    read.unwrap_err().to_string()
}

const DOWN: &str = "model.layers.1.mlp.down_proj";

fn set(tensors: &mut BTreeMap<String, Stored>, suffix: &str, change: impl Fn(&mut Stored)) {
    change(tensors.get_mut(&format!("{DOWN}.{suffix}")).unwrap());
}

/// What is done to the tensors of a sound checkpoint.
type Damage<'a> = &'a dyn Fn(&mut BTreeMap<String, Stored>);

#[test]
fn tensors_that_contradict_the_settings_are_refused_by_name() {
    let cases: [(&str, Damage); 8] = [
        ("qweight`: has shape [12, 32, 2], not two axes", &|t| set(t, "qweight", |q| q.1 = vec![12, 32, 2])),
        ("qzeros`: has shape [4, 6], not [3, 8] as 96 inputs, 64 outputs, 4 bits and group size 32 make it", &|t| {
            set(t, "qzeros", |q| q.1 = vec![4, 6]);
        }),
        ("scales`: is of type BF16, not F16", &|t| set(t, "scales", |q| q.0 = Dtype::BF16)),
        ("g_idx`: column 0 is in group 3, of 3 groups", &|t| set(t, "g_idx", |q| q.2[0] = 3)),
        ("g_idx`: column 0 is in group -1, of 3 groups", &|t| set(t, "g_idx", |q| q.2[..4].fill(255))),
        ("g_idx`: column 0 is in group 1, but `desc_act` is false, which puts it in group 0", &|t| {
            set(t, "g_idx", |q| q.2[0] = 1);
        }),
        (
            "qzeros`: the stored zero-point 15 is ambiguous: some loaders read 16, some 0; write the file as `gptq_v2`",
            &|t| set(t, "qzeros", |q| q.2[0] = 0xFF),
        ),
        ("qweight`: has shape [0, 64], which no matrix of 4 bits packs into", &|t| {
            set(t, "qweight", |q| (q.1, q.2) = (vec![0, 64], Vec::new()));
        }),
    ];
    for (expected, spoil) in cases {
        assert_eq!(complaint(|tensors, _| spoil(tensors)), format!("tensor `{DOWN}.{expected}"));
    }
}

#[test]
fn missing_and_superfluous_tensors_are_refused_by_name() {
    for part in ["g_idx", "scales", "qzeros"] {
        let name = format!("{DOWN}.{part}");
        let error = complaint(|tensors, _| drop(tensors.remove(&name)));
        assert!(error.starts_with(&format!("tensor `{name}`: is missing")), "{error}");
    }
    let error = complaint(|tensors, _| drop(tensors.remove(&format!("{DOWN}.qweight"))));
    assert_eq!(error, format!("tensor `{DOWN}.g_idx`: has no `{DOWN}.qweight` beside it"));
    let twice = |tensors: &mut BTreeMap<String, Stored>, _: &mut Value| {
        tensors.insert(format!("{DOWN}.weight"), (Dtype::F16, vec![1], vec![0, 0]));
    };
    assert_eq!(complaint(twice), format!("tensor `{DOWN}.weight`: stands beside `{DOWN}.qweight`: which one holds?"));
}

#[test]
fn settings_that_are_wrong_or_contradict_the_tensors_are_refused() {
    let cases = [
        (json!({"bits": 5}), "GPTQ with 5 bits is not supported"),
        (json!({"bits": "four"}), "quantization setting `bits` is \"four\""),
        (json!({"bits": null}), "the quantization setting `bits` is missing"),
        (json!({"bits": 8}), "not [48] as 48 inputs, 64 outputs, 8 bits and group size 32 make it"),
        (json!({"group_size": 0}), "quantization setting `group_size` is 0"),
        (json!({"group_size": 64}), "not [2, 8] as 96 inputs, 64 outputs, 4 bits and group size 64 make it"),
        (json!({"group_size": 4}), "a group of 4 columns is too small"),
        (json!({"sym": 1}), "quantization setting `sym` is 1"),
        (json!({"checkpoint_format": "marlin"}), "`checkpoint_format` \"marlin\" is not supported"),
        (json!({"pack_dtype": "int16"}), "packing into `pack_dtype` \"int16\" is not supported"),
        (json!({"dynamic": {"-:(": {}}}), "`-:(` in `dynamic` is no regular expression"),
        (json!({"dynamic": {"-:model.layers.1": {}}}), "the settings say that this module is left in full precision"),
        (json!({"sym": true}), "is not that of a symmetric `gptq` grid of 4 bits"),
    ];
    for (changes, expected) in cases {
        let error = complaint(|_, settings| {
            for (key, value) in changes.as_object().unwrap() {
                settings[key] = value.clone();
            }
        });
        assert!(error.contains(expected), "{changes}: {error}");
    }
}

#[test]
fn older_names_of_settings_are_understood() {
    let bench = Bench::new(true);
    bench.write(spec(4, Some(32), false), &all_modules(spec(4, Some(32), false))).unwrap();
    let config = json!({ "quantization_config": { "method": "gptq", "wbits": 4, "q_group_size": 32, "zero_point": true,
        "version": "gptq", "dynamic": { r".*\.0\.(?!mlp)": { "bits": 4 } } } });
    let open = |config: &Value| {
        GptqFolder::open(SafetensorsFolder::open(&bench.out()).unwrap(), config, &bench.out()).unwrap()
    };
    let folder = open(&config);
    assert_eq!(
        folder.read(&format!("{DOWN}.weight")).unwrap(),
        matrix(14, &all_modules(spec(4, Some(32), false))[13]).dequantize()
    );
    assert!(!folder.settings().shared.symmetric && folder.settings().shared.desc_act.is_none());
    assert_eq!(open(&json!({})).modules().len(), 14, "the settings are in quantize_config.json");
}

#[test]
fn inspection_measures_a_gptq_checkpoint() {
    let bench = Bench::new(true);
    let mut modules = all_modules(spec(4, Some(32), true));
    modules[6].spec.bits = 8;
    bench.write(spec(4, Some(32), true), &modules).unwrap();
    let inspection = inspect(&bench.out().to_string_lossy()).unwrap();
    assert_eq!((&*inspection.format, &inspection.problems), ("gptq", &Vec::new()));
    let words: Vec<(&str, usize)> = inspection.modules.iter().map(|group| (&*group.settings, group.modules)).collect();
    assert_eq!(words, [("4 bits, groups of 32, symmetric", 13), ("8 bits, groups of 32, symmetric", 1)]);
    // By hand: the layers hold 2 × 30720 weights; codes b/8 bytes a weight, a scale (2) and a zero-point (b/8) for every
    // 32 of them, 4 bytes of g_idx per input column; one down_proj (6144 weights) has 8 bits.
    let (four, eight) = (2 * 30720 - 6144, 6144);
    let bytes = four / 2 + four / 32 * 2 + four / 64 + eight + eight / 32 * 3 + 4 * 2 * (6 * 64 + 96);
    let measured = inspection.bits_per_quantized_weight.unwrap();
    assert!((measured - 8.0 * f64::from(bytes) / f64::from(2 * 30720)).abs() < 1e-12, "{measured}");
    let source: u64 = source_tensors(true).values().map(|(_, shape, _)| shape.iter().product::<usize>() as u64).sum();
    assert_eq!(inspection.parameters, source);
    assert_eq!(inspection.bytes, inspection.tensors.iter().map(|tensor| tensor.bytes).sum::<u64>());
    assert!(inspection.runtimes.iter().any(|verdict| verdict.outcome == Outcome::LoadsSlower));
    let text = serde_json::to_string(&inspection).unwrap();
    assert_eq!(serde_json::from_str::<model::inspect::Inspection>(&text).unwrap(), inspection);
}

#[test]
fn inspection_of_a_float_folder_and_of_broken_settings() {
    let bench = Bench::new(true);
    let inspection = inspect(&bench.source().to_string_lossy()).unwrap();
    assert_eq!((&*inspection.format, inspection.bits_per_quantized_weight), ("float", None));
    assert!(inspection.runtimes.is_empty() && inspection.bits_per_weight > 16.0 && inspection.bits_per_weight < 16.2);
    bench.write(spec(4, Some(32), true), &all_modules(spec(4, Some(32), true))).unwrap();
    let path = bench.out().join("config.json");
    let mut config = json_file(&path);
    config["quantization_config"]["group_size"] = json!(64);
    fs::write(path, config.to_string()).unwrap();
    let inspection = inspect(&bench.out().to_string_lossy()).unwrap();
    assert!(inspection.runtimes.iter().all(|verdict| verdict.outcome == Outcome::Unknown));
    assert!(inspection.problems[0].contains("group size 64"), "{:?}", inspection.problems);
    assert_eq!(inspection.modules[0].settings, "4 bits, groups of 32", "measured from the tensors");
}

/// A folder with one packed linear of 64 outputs and 128 inputs and one norm.
fn foreign(method: &str, tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) -> TempDir {
    let folder = TempDir::new().unwrap();
    let config = json!({ "model_type": "unheard_of", "quantization_config": { "quant_method": method } });
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let mut stored: BTreeMap<String, Stored> = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| ((*name).into(), (*dtype, shape.clone(), bytes.clone())))
        .collect();
    stored.insert("norm.weight".into(), (Dtype::F16, vec![128], vec![0; 256]));
    write_tensors(&folder.path().join("model.safetensors"), &stored);
    folder
}

#[test]
fn inspection_of_foreign_checkpoints() {
    let awq = foreign(
        "awq",
        &[
            ("a.qweight", Dtype::I32, vec![128, 8], vec![0; 4096]),
            ("a.qzeros", Dtype::I32, vec![4, 8], vec![0; 128]),
            ("a.scales", Dtype::F16, vec![4, 64], vec![0; 512]),
        ],
    );
    let shape: Vec<u8> = [64i64, 128].iter().flat_map(|n| n.to_le_bytes()).collect();
    let compressed = foreign(
        "compressed-tensors",
        &[
            ("a.weight_packed", Dtype::I32, vec![64, 16], vec![0; 4096]),
            ("a.weight_scale", Dtype::BF16, vec![64, 4], vec![0; 512]),
            ("a.weight_shape", Dtype::I64, vec![2], shape),
        ],
    );
    for (folder, format, bytes) in [(awq, "awq", 4736.0), (compressed, "compressed-tensors", 4624.0)] {
        let inspection = inspect(&folder.path().to_string_lossy()).unwrap();
        assert_eq!((&*inspection.format, inspection.parameters), (format, 64 * 128 + 128));
        assert_eq!(inspection.bits_per_quantized_weight, Some(8.0 * bytes / 8192.0));
        assert_eq!(inspection.modules[0].settings, "4 bits, groups of 32");
        assert!(inspection.runtimes.iter().all(|verdict| verdict.outcome == Outcome::Unknown));
    }
    let unheard_of = foreign("unheard_of", &[("a.blob", Dtype::U8, vec![10], vec![0; 10])]);
    let inspection = inspect(&unheard_of.path().to_string_lossy()).unwrap();
    assert_eq!((inspection.parameters, inspection.tensors.len()), (138, 2));
    assert!(inspection.problems[0].contains("`unheard_of` is not known here"));
}
