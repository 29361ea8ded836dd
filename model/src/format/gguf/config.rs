//! `config.json` and the small files beside it, from the metadata.

use super::{Architecture, GgufFile, metadata::Metadata, metadata::shortest, rope};
use crate::{ModelError, format::TensorSource};
use serde_json::{Map, Value, json};

/// The settings of an architecture that are understood; any other might change results and is refused.
const UNDERSTOOD: [&str; 21] = [
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "expert_count",
    "expert_used_count",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.freq_base_swa",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
];

/// The settings of one architecture: keys without its name.
struct Settings<'a> {
    metadata: Metadata<'a>,
    architecture: Architecture,
}

impl Settings<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture.name())
    }

    fn size(&self, key: &str) -> Result<Option<u64>, ModelError> {
        self.metadata.size(&self.key(key))
    }

    fn required(&self, key: &str) -> Result<u64, ModelError> {
        match self.metadata.required_size(&self.key(key))? {
            0 => Err(ModelError::malformed(self.metadata.path, format!("`{}` is 0", self.key(key)))),
            size => Ok(size),
        }
    }

    fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        self.metadata.number(&self.key(key))
    }

    /// Refuses settings that nothing here takes into account.
    fn check(&self) -> Result<(), ModelError> {
        let prefix = format!("{}.", self.architecture.name());
        for (key, value) in self.metadata.entries {
            let Some(short) = key.strip_prefix(&prefix) else { continue };
            // The number of rows of the embedding says the same, and more reliably.
            if short != "vocab_size" && !UNDERSTOOD.contains(&short) {
                return Err(self.metadata.unsupported(format!("the setting `{key}` = {value}")));
            }
        }
        for key in ["expert_count", "expert_used_count"] {
            if let Some(experts @ 1..) = self.size(key)? {
                return Err(self.metadata.unsupported(format!("the setting `{}` = {experts}", self.key(key))));
            }
        }
        let keys = head_width(&self.metadata, self.architecture)? as u64;
        match self.size("attention.value_length")? {
            Some(values) if values != keys => Err(self
                .metadata
                .unsupported(format!("a model whose values are {values} wide and whose keys are {keys} wide"))),
            _ => Ok(()),
        }
    }
}

/// The width of an attention head.
pub(super) fn head_width(metadata: &Metadata<'_>, architecture: Architecture) -> Result<usize, ModelError> {
    let settings = Settings { metadata: *metadata, architecture };
    let heads = settings.required("attention.head_count")?;
    let width = settings.required("embedding_length")?;
    let head_width = match settings.size("attention.key_length")? {
        Some(width) => width,
        None if width.is_multiple_of(heads) => width / heads,
        None => 0,
    };
    match usize::try_from(head_width) {
        Ok(head_width @ 1..) if head_width <= 1 << 20 => Ok(head_width),
        _ => Err(ModelError::malformed(
            metadata.path,
            format!("{heads} heads of width {head_width} don't fit an embedding of width {width}"),
        )),
    }
}

/// The model's `config.json`.
pub(super) fn config_json(file: &GgufFile) -> Result<Value, ModelError> {
    let settings = Settings { metadata: file.metadata(), architecture: file.architecture };
    settings.check()?;
    let mut config = common(file, &settings)?;
    config.append(&mut match file.architecture {
        Architecture::Llama => llama(file, &settings)?,
        Architecture::Qwen2 | Architecture::Qwen3 => qwen(file, &settings)?,
        Architecture::Gemma3 => gemma3(&settings)?,
        Architecture::Phi3 => phi3(file, &settings)?,
    });
    config.append(&mut token_ids(&settings.metadata, file.embedding_rows()?)?);
    Ok(Value::Object(config))
}

impl GgufFile {
    fn embedding_rows(&self) -> Result<usize, ModelError> {
        Ok(self.shape("model.embed_tokens.weight")?[0])
    }

    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }
}

/// What every family has.
fn common(file: &GgufFile, settings: &Settings<'_>) -> Result<Map<String, Value>, ModelError> {
    let heads = settings.required("attention.head_count")?;
    let epsilon = "attention.layer_norm_rms_epsilon";
    let epsilon = settings.number(epsilon)?.ok_or_else(|| settings.metadata.missing(&settings.key(epsilon)))?;
    let theta = if file.architecture == Architecture::Gemma3 { 1e6 } else { 1e4 };
    Ok(object(json!({
        "architectures": [],
        "model_type": "",
        "vocab_size": file.embedding_rows()?,
        "hidden_size": settings.required("embedding_length")?,
        "intermediate_size": settings.required("feed_forward_length")?,
        "num_hidden_layers": settings.required("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": settings.size("attention.head_count_kv")?.unwrap_or(heads),
        "head_dim": head_width(&settings.metadata, file.architecture)?,
        "max_position_embeddings": settings.required("context_length")?,
        "rms_norm_eps": epsilon,
        "rope_theta": settings.number("rope.freq_base")?.unwrap_or(theta),
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": !file.has("lm_head.weight"),
        "torch_dtype": "float16",
        "use_cache": true,
    })))
}

/// Llama, and Mistral where a sliding window is set.
fn llama(file: &GgufFile, settings: &Settings<'_>) -> Result<Map<String, Value>, ModelError> {
    whole_head_is_turned(settings)?;
    let window = settings.size("attention.sliding_window")?.filter(|window| *window > 0);
    let query = file.has("model.layers.0.self_attn.q_proj.bias");
    let output = file.has("model.layers.0.self_attn.o_proj.bias");
    let mlp = file.has("model.layers.0.mlp.up_proj.bias");
    let scaling = match file.setting("rope_freqs.weight")? {
        Some(divisors) => llama3(settings, &divisors)?,
        None => plain_scaling(settings)?,
    };
    let biased = query || output || mlp;
    Ok(object(match window {
        Some(_) if biased => return Err(settings.metadata.unsupported("a sliding window together with biases")),
        Some(window) => json!({
            "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_act": "silu",
            "sliding_window": window, "rope_scaling": scaling,
        }),
        None if query != output => {
            return Err(settings.metadata.unsupported("a Llama whose q and o projections are not both biased"));
        }
        None => json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "attention_bias": query, "mlp_bias": mlp, "rope_scaling": scaling, "pretraining_tp": 1,
        }),
    }))
}

/// Qwen2, Qwen2.5 and Qwen3.
fn qwen(file: &GgufFile, settings: &Settings<'_>) -> Result<Map<String, Value>, ModelError> {
    whole_head_is_turned(settings)?;
    no_window(settings)?;
    let third = file.architecture == Architecture::Qwen3;
    let mut config = object(json!({
        "architectures": [if third { "Qwen3ForCausalLM" } else { "Qwen2ForCausalLM" }],
        "model_type": file.architecture.name(),
        "hidden_act": "silu",
        "use_sliding_window": false,
        "sliding_window": null,
        "max_window_layers": settings.required("block_count")?,
        "rope_scaling": plain_scaling(settings)?,
    }));
    if third {
        config.insert("attention_bias".into(), file.has("model.layers.0.self_attn.q_proj.bias").into());
    }
    Ok(config)
}

/// Gemma 3, text. What the file doesn't say is what every published size has.
fn gemma3(settings: &Settings<'_>) -> Result<Map<String, Value>, ModelError> {
    whole_head_is_turned(settings)?;
    let layers = settings.required("block_count")?;
    let pattern = settings.size("attention.sliding_window_pattern")?.unwrap_or(6).max(1);
    let kinds = (1..=layers.min(1 << 16))
        .map(|layer| if layer % pattern == 0 { "full_attention" } else { "sliding_attention" });
    let head_width = head_width(&settings.metadata, settings.architecture)? as u64;
    // Scores are divided by the root of the head's width, but in the largest model by that of hidden size / heads.
    let largest = layers == 62;
    let query_scalar = if largest {
        settings.required("embedding_length")? / settings.required("attention.head_count")?
    } else {
        head_width
    };
    Ok(object(json!({
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": false,
        "query_pre_attn_scalar": query_scalar,
        "sliding_window": settings.required("attention.sliding_window")?,
        "sliding_window_pattern": pattern,
        "layer_types": kinds.collect::<Vec<_>>(),
        "rope_local_base_freq": settings.number("rope.freq_base_swa")?.unwrap_or(1e4),
        "rope_scaling": plain_scaling(settings)?,
        "attn_logit_softcapping": null,
        "final_logit_softcapping": null,
    })))
}

/// Phi-3.
fn phi3(file: &GgufFile, settings: &Settings<'_>) -> Result<Map<String, Value>, ModelError> {
    let head_width = head_width(&settings.metadata, settings.architecture)? as u64;
    let turned = settings.size("rope.dimension_count")?.unwrap_or(head_width);
    let context = settings.required("context_length")?;
    let original = settings.size("rope.scaling.original_context_length")?.unwrap_or(context);
    let factors = (file.setting("rope_factors_long.weight")?, file.setting("rope_factors_short.weight")?);
    let scaling = match factors {
        (None, None) => plain_scaling(settings)?,
        (Some(long), Some(short)) => long_rope(settings, &long, &short, context as f64 / original as f64, original)?,
        _ => return Err(ModelError::malformed(&file.path, "only one of the long and short rope factors is there")),
    };
    Ok(object(json!({
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "hidden_act": "silu",
        "attention_bias": false,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "partial_rotary_factor": turned as f64 / head_width as f64,
        "original_max_position_embeddings": original,
        "sliding_window": settings.size("attention.sliding_window")?.filter(|window| *window > 0),
        "rope_scaling": scaling,
    })))
}

/// Refuses a rope that turns only part of the head.
fn whole_head_is_turned(settings: &Settings<'_>) -> Result<(), ModelError> {
    let head_width = head_width(&settings.metadata, settings.architecture)? as u64;
    match settings.size("rope.dimension_count")? {
        Some(turned) if turned != head_width => Err(settings.metadata.unsupported(format!(
            "a rotary embedding of {turned} of {head_width} dimensions (`{}`)",
            settings.key("rope.dimension_count")
        ))),
        _ => Ok(()),
    }
}

fn no_window(settings: &Settings<'_>) -> Result<(), ModelError> {
    match settings.size("attention.sliding_window")? {
        Some(window @ 1..) => {
            let key = settings.key("attention.sliding_window");
            Err(settings.metadata.unsupported(format!("the setting `{key}` = {window}")))
        }
        _ => Ok(()),
    }
}

/// The scalings that are stored by name: none, linear, YaRN.
fn plain_scaling(settings: &Settings<'_>) -> Result<Value, ModelError> {
    let kind = settings.metadata.text(&settings.key("rope.scaling.type"))?.unwrap_or("none");
    if let (true, Some(factor)) = (kind != "none", settings.number("rope.scaling.attn_factor")?)
        && factor != 1.0
    {
        let key = settings.key("rope.scaling.attn_factor");
        return Err(settings.metadata.unsupported(format!("the setting `{key}` = {factor}")));
    }
    let factor = || {
        let key = settings.key("rope.scaling.factor");
        settings.metadata.number(&key)?.filter(|factor| *factor > 0.0).ok_or_else(|| settings.metadata.missing(&key))
    };
    match kind {
        "none" => Ok(Value::Null),
        "linear" => Ok(json!({ "type": kind, "rope_type": kind, "factor": factor()? })),
        "yarn" => Ok(json!({
            "type": kind, "rope_type": kind, "factor": factor()?,
            "original_max_position_embeddings": settings.required("rope.scaling.original_context_length")?,
        })),
        other => Err(settings.metadata.unsupported(format!("the rope scaling `{other}`"))),
    }
}

fn llama3(settings: &Settings<'_>, divisors: &[f32]) -> Result<Value, ModelError> {
    let theta = settings.number("rope.freq_base")?.unwrap_or(1e4);
    let pairs = head_width(&settings.metadata, settings.architecture)? / 2;
    if divisors.len() != pairs {
        return Err(ModelError::malformed(
            settings.metadata.path,
            format!("`rope_freqs.weight` has {} numbers, but a head has {pairs} pairs", divisors.len()),
        ));
    }
    match plain_scaling(settings)? {
        Value::Null => {}
        other => return Err(settings.metadata.unsupported(format!("`rope_freqs.weight` together with {other}"))),
    }
    let scaling = rope::recover_llama3(settings.metadata.path, divisors, theta)?;
    Ok(scaling.map_or(Value::Null, |scaling| {
        json!({
            "rope_type": "llama3", "factor": scaling.factor, "low_freq_factor": scaling.low,
            "high_freq_factor": scaling.high, "original_max_position_embeddings": scaling.original as u64,
        })
    }))
}

/// Phi-3's two lists of divisors. The factor of cosine and sine follows from the ratio of the context lengths; a file
/// that says otherwise is refused.
fn long_rope(
    settings: &Settings<'_>,
    long: &[f32],
    short: &[f32],
    ratio: f64,
    original: u64,
) -> Result<Value, ModelError> {
    let expected = if ratio <= 1.0 { 1.0 } else { (1.0 + ratio.ln() / (original as f64).ln()).sqrt() };
    if let Some(factor) = settings.number("rope.scaling.attn_factor")?
        && (factor - expected).abs() > 1e-4 * expected
    {
        let key = settings.key("rope.scaling.attn_factor");
        return Err(settings.metadata.unsupported(format!("the setting `{key}` = {factor} (not {expected:.6})")));
    }
    let list = |numbers: &[f32]| numbers.iter().map(|x| shortest(*x)).collect::<Vec<_>>();
    Ok(json!({ "type": "longrope", "rope_type": "longrope", "long_factor": list(long), "short_factor": list(short) }))
}

/// `bos_token_id` and its like, as far as the file names them.
fn token_ids(metadata: &Metadata<'_>, vocabulary: usize) -> Result<Map<String, Value>, ModelError> {
    let mut ids = Map::new();
    for (name, key) in [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")] {
        let key = format!("tokenizer.ggml.{key}_token_id");
        if let Some(id) = metadata.size(&key)? {
            if id >= vocabulary as u64 {
                let what = format!("`{key}` is {id}, but the embedding has {vocabulary} rows");
                return Err(ModelError::malformed(metadata.path, what));
            }
            ids.insert(name.into(), id.into());
        }
    }
    Ok(ids)
}

/// The files beside `config.json` and `tokenizer.json`.
pub(super) fn companion_files(file: &GgufFile) -> Result<Vec<(String, Vec<u8>)>, ModelError> {
    let metadata = file.metadata();
    let special = super::tokenizer::special_tokens(&metadata)?;
    let mut tokenizer = object(json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": metadata.required_size(&format!("{}.context_length", file.architecture.name()))?,
        "clean_up_tokenization_spaces": false,
        "add_bos_token": super::tokenizer::adds_bos(&metadata)?,
        "add_eos_token": super::tokenizer::adds_eos(&metadata)?,
    }));
    tokenizer.extend(special.iter().map(|(name, token)| ((*name).to_owned(), json!(token))));
    if let Some(template) = metadata.text("tokenizer.chat_template")? {
        tokenizer.insert("chat_template".into(), template.into());
    }
    let map: Map<String, Value> = special.iter().map(|(name, token)| ((*name).to_owned(), json!(token))).collect();
    Ok(vec![
        ("tokenizer_config.json".into(), pretty(&Value::Object(tokenizer))),
        ("special_tokens_map.json".into(), pretty(&Value::Object(map))),
        ("generation_config.json".into(), pretty(&Value::Object(generation(&metadata, file.embedding_rows()?)?))),
    ])
}

/// The token ids of `config.json`, but with every token that ends an answer.
fn generation(metadata: &Metadata<'_>, vocabulary: usize) -> Result<Map<String, Value>, ModelError> {
    let mut generation = token_ids(metadata, vocabulary)?;
    let mut ends: Vec<u64> = Vec::new();
    for key in ["eos", "eot", "eom"] {
        if let Some(id) = metadata.size(&format!("tokenizer.ggml.{key}_token_id"))?
            && id < vocabulary as u64
            && !ends.contains(&id)
        {
            ends.push(id);
        }
    }
    if ends.len() > 1 {
        generation.insert("eos_token_id".into(), ends.into());
    }
    Ok(generation)
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn pretty(value: &Value) -> Vec<u8> {
    let mut text = format!("{value:#}");
    text.push('\n');
    text.into_bytes()
}
