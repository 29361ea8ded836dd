//! A Qwen2 folder of two tiny layers, with every stored type in it, and random quantized matrices to put into it.

use half::{bf16, f16};
use kernels::{ActOrder, QuantSpec, QuantizedMatrix, ScaleSearch};
use model::format::{Contents, QuantizedModule, Target, write};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::json;
use std::{collections::BTreeMap, fs, path::Path};

pub(crate) const HIDDEN: usize = 64;
pub(crate) const INTERMEDIATE: usize = 96;
pub(crate) const VOCABULARY: usize = 64;
pub(crate) const LAYERS: usize = 2;

/// Name, outputs and inputs of every linear inside the layers.
pub(crate) fn linears() -> Vec<(String, usize, usize)> {
    let of_layer = |layer: usize| {
        [
            ("self_attn.q_proj", 64, HIDDEN),
            ("self_attn.k_proj", 32, HIDDEN),
            ("self_attn.v_proj", 32, HIDDEN),
            ("self_attn.o_proj", HIDDEN, 64),
            ("mlp.gate_proj", INTERMEDIATE, HIDDEN),
            ("mlp.up_proj", INTERMEDIATE, HIDDEN),
            ("mlp.down_proj", HIDDEN, INTERMEDIATE),
        ]
        .map(|(name, outputs, inputs)| (format!("model.layers.{layer}.{name}"), outputs, inputs))
    };
    (0..LAYERS).flat_map(of_layer).collect()
}

/// A number in -1..1 that looks random.
pub(crate) fn noise(seed: u64, index: u64) -> f32 {
    let mut state = (seed << 32 | index).wrapping_add(0x9E37_79B9_7F4A_7C15);
    state = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((state ^ (state >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

/// A tensor of a safetensors file.
pub(crate) type Stored = (Dtype, Vec<usize>, Vec<u8>);

pub(crate) fn encode(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        other => panic!("the toy has no {other:?}"),
    }
}

/// The tensors of the toy. Norms are F32, the embedding F16, everything else BF16.
pub(crate) fn source_tensors(tied: bool) -> BTreeMap<String, Stored> {
    let mut shapes: Vec<(String, Dtype, Vec<usize>)> = vec![
        ("model.embed_tokens.weight".into(), Dtype::F16, vec![VOCABULARY, HIDDEN]),
        ("model.norm.weight".into(), Dtype::F32, vec![HIDDEN]),
    ];
    if !tied {
        shapes.push(("lm_head.weight".into(), Dtype::BF16, vec![VOCABULARY, HIDDEN]));
    }
    for (name, outputs, inputs) in linears() {
        if ["q_proj", "k_proj", "v_proj"].iter().any(|projection| name.ends_with(projection)) {
            shapes.push((format!("{name}.bias"), Dtype::BF16, vec![outputs]));
        }
        shapes.push((format!("{name}.weight"), Dtype::BF16, vec![outputs, inputs]));
    }
    for layer in 0..LAYERS {
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            shapes.push((format!("model.layers.{layer}.{norm}.weight"), Dtype::F32, vec![HIDDEN]));
        }
    }
    let tensor = |(seed, (name, dtype, shape)): (usize, (String, Dtype, Vec<usize>))| {
        let count: usize = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|index| noise(seed as u64, index as u64)).collect();
        (name, (dtype, shape, encode(dtype, &values)))
    };
    shapes.into_iter().enumerate().map(tensor).collect()
}

/// Writes `tensors` as `file`.
pub(crate) fn write_tensors(file: &Path, tensors: &BTreeMap<String, Stored>) {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, file).unwrap();
}

/// Every tensor of `file`.
pub(crate) fn read_tensors(file: &Path) -> BTreeMap<String, Stored> {
    let bytes = fs::read(file).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    tensors.iter().map(|(name, t)| (name.to_owned(), (t.dtype(), t.shape().to_vec(), t.data().to_vec()))).collect()
}

/// Writes the folder of the toy.
pub(crate) fn write_source(folder: &Path, tied: bool) {
    fs::create_dir_all(folder).unwrap();
    let config = json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE, "num_attention_heads": 2, "num_key_value_heads": 1,
        "num_hidden_layers": LAYERS, "vocab_size": VOCABULARY, "max_position_embeddings": 128, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": tied, "torch_dtype": "bfloat16",
    });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": { "a": 0 }, "unk_token": "a" },
    });
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    fs::write(folder.join("generation_config.json"), "{}").unwrap();
    write_tensors(&folder.join("model.safetensors"), &source_tensors(tied));
}

/// Settings with nothing unusual but what is given.
pub(crate) fn spec(bits: u32, group_size: Option<usize>, symmetric: bool) -> QuantSpec {
    QuantSpec {
        bits,
        group_size,
        symmetric,
        act_order: ActOrder::None,
        scale_search: ScaleSearch::MinMax,
        smallest_zero: 1,
    }
}

/// A module with random codes, scales and zero-points; in act-order the groups are dealt out like cards.
pub(crate) fn matrix(seed: u64, module: &QuantizedModule) -> QuantizedMatrix {
    let QuantizedModule { outputs, inputs, spec, .. } = *module;
    let (groups, columns) = (spec.groups(inputs), spec.columns_per_group(inputs));
    let integer = |stream: u64, index: usize, least: u32, most: u32| {
        let unit = f64::from(noise(seed * 8 + stream, index as u64)) / 2.0 + 0.5;
        (least + (unit * f64::from(most - least + 1)) as u32).min(most) as u8
    };
    let zero = |index| {
        if spec.symmetric {
            1 << (spec.bits - 1)
        } else {
            integer(2, index, u32::from(spec.smallest_zero), spec.max_code())
        }
    };
    let group = |column| if spec.act_order == ActOrder::Desc { column % groups } else { column / columns };
    QuantizedMatrix {
        outputs,
        inputs,
        spec,
        codes: (0..outputs * inputs).map(|index| integer(1, index, 0, spec.max_code())).collect(),
        scales: (0..outputs * groups).map(|index| f16::from_f32(noise(seed * 8 + 3, index as u64) / 10.0)).collect(),
        zeros: (0..outputs * groups).map(zero).collect(),
        group_index: (0..inputs).map(|column| group(column) as u32).collect(),
    }
}

/// Writes `modules` with the matrices of seeds 1, 2, …; `shared` are the settings at the top level.
pub(crate) fn write_checkpoint(
    source: &Path,
    folder: &Path,
    shared: QuantSpec,
    modules: &[QuantizedModule],
    target: Target,
    shard_bytes: u64,
) -> Result<(), model::ModelError> {
    let source = model::Checkpoint::open(&source.to_string_lossy()).unwrap();
    write(
        folder,
        target,
        &Contents {
            source: &source,
            spec: shared,
            modules,
            load: &|index| Ok(matrix(index as u64 + 1, &modules[index])),
            meta: json!({ "calibration": "none" }),
            damping: 0.05,
            true_sequential: true,
            shard_bytes,
        },
    )
}

/// Every linear of the layers, quantized by `spec`.
pub(crate) fn all_modules(spec: QuantSpec) -> Vec<QuantizedModule> {
    linears().into_iter().map(|(name, outputs, inputs)| QuantizedModule { name, outputs, inputs, spec }).collect()
}
