//! The metadata of a model from a Hugging Face folder, the way back of [`super::config`]; of a model that was a GGUF file
//! already, the file's own.
//!
//! What metadata can't say is refused by name: readers would compute something else without a word.

use super::{Architecture, GgufFile, front::Entries, front::Entry, vocabulary};
use crate::{
    Checkpoint, ModelError,
    config::{self, Config, Family, Stretch},
};
use serde_json::Value;

/// A tensor that carries a setting.
pub(super) struct SettingTensor {
    pub(super) name: &'static str,
    pub(super) values: Vec<f32>,
}

/// What describes the model `source`.
pub(super) struct Description {
    pub(super) architecture: Architecture,
    pub(super) entries: Entries,
    pub(super) settings: Vec<SettingTensor>,
}

/// Keys that the writer states itself.
const OWN: [&str; 3] = ["general.file_type", "general.quantization_version", "general.alignment"];

impl Description {
    /// Of `source`, whatever it was read from.
    pub(super) fn of(source: &Checkpoint) -> Result<Self, ModelError> {
        if source.path.is_file() { Self::copied(source) } else { Self::made(source) }
    }

    fn copied(source: &Checkpoint) -> Result<Self, ModelError> {
        let file = GgufFile::open(&source.path)?;
        let kept =
            file.container.entries.iter().filter(|(key, _)| !OWN.contains(&&**key) && !key.starts_with("split."));
        let entries =
            kept.map(|(key, place)| (key.clone(), Entry::Copied(file.file[place.clone()].to_vec()))).collect();
        let mut settings = Vec::new();
        for name in ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"] {
            settings.extend(file.setting(name)?.map(|values| SettingTensor { name, values }));
        }
        Ok(Self { architecture: file.architecture, entries, settings })
    }

    fn made(source: &Checkpoint) -> Result<Self, ModelError> {
        let architecture = Architecture::of_family(source.config.family);
        let mut maker = Maker { source, architecture, entries: Vec::new(), settings: Vec::new() };
        maker.sizes();
        maker.windows()?;
        maker.attention()?;
        maker.rope()?;
        maker.entries.extend(vocabulary::entries(source)?);
        Ok(Self { architecture, entries: maker.entries, settings: maker.settings })
    }
}

impl Architecture {
    /// The architecture that a family's files state.
    pub(super) fn of_family(family: Family) -> Self {
        match family {
            Family::Llama | Family::Mistral => Self::Llama,
            Family::Qwen2 => Self::Qwen2,
            Family::Qwen3 => Self::Qwen3,
            Family::Gemma3 => Self::Gemma3,
            Family::Phi3 => Self::Phi3,
        }
    }
}

struct Maker<'a> {
    source: &'a Checkpoint,
    architecture: Architecture,
    entries: Entries,
    settings: Vec<SettingTensor>,
}

impl Maker<'_> {
    fn config(&self) -> &Config {
        &self.source.config
    }

    fn set(&mut self, key: &str, value: Entry) {
        self.entries.push((format!("{}.{key}", self.architecture.name()), value));
    }

    fn size(&mut self, key: &str, value: usize) {
        self.set(key, Entry::U32(value as u32));
    }

    fn refuse(&self, what: impl Into<String>) -> ModelError {
        let what = format!("{} in a GGUF file", what.into());
        ModelError::Unsupported { path: self.source.path.clone(), what }
    }

    fn sizes(&mut self) {
        let name = self.source.path.file_name().map(|name| name.to_string_lossy().into_owned());
        let own = [("general.architecture", self.architecture.name().to_owned()), ("general.type", "model".to_owned())];
        self.entries.extend(own.map(|(key, text)| (key.to_owned(), Entry::Text(text))));
        self.entries.extend(name.map(|name| ("general.name".to_owned(), Entry::Text(name))));
        let config = self.config().clone();
        self.size("block_count", config.layers.len());
        self.size("context_length", config.max_positions);
        self.size("embedding_length", config.hidden_size);
        self.size("feed_forward_length", config.intermediate_size);
        self.size("attention.head_count", config.heads);
        self.size("attention.head_count_kv", config.kv_heads);
        self.size("attention.key_length", config.head_width);
        self.size("attention.value_length", config.head_width);
        self.size("vocab_size", config.vocabulary);
        self.set("attention.layer_norm_rms_epsilon", Entry::F32(config.norm_epsilon));
    }

    fn windows(&mut self) -> Result<(), ModelError> {
        let windows: Vec<Option<usize>> = self.config().layers.iter().map(|layer| layer.window).collect();
        let Some(window) = windows.iter().flatten().next().copied() else { return Ok(()) };
        self.size("attention.sliding_window", window);
        let pattern = windows.iter().position(Option::is_none).map_or(windows.len() + 1, |full| full + 1);
        let regular =
            |(layer, window): (usize, &Option<usize>)| window.is_none() == (layer + 1).is_multiple_of(pattern);
        match self.architecture {
            Architecture::Gemma3 if windows.iter().enumerate().all(regular) => {
                self.size("attention.sliding_window_pattern", pattern);
                Ok(())
            }
            Architecture::Llama | Architecture::Phi3 if windows.iter().all(|other| *other == Some(window)) => Ok(()),
            _ => Err(self.refuse("a sliding window in some of the layers")),
        }
    }

    /// Refuses what readers would take for granted otherwise.
    fn attention(&self) -> Result<(), ModelError> {
        let config = self.config();
        let under_root = match (self.architecture, config.layers.len()) {
            (Architecture::Gemma3, 62) => config.hidden_size as f64 / config.heads as f64,
            _ => config.head_width as f64,
        };
        let assumed = (1.0 / under_root.sqrt()) as f32;
        if (config.attention_scale - assumed).abs() > 1e-6 * assumed {
            return Err(self.refuse(format!("an attention scale of {} instead of {assumed}", config.attention_scale)));
        }
        Ok(())
    }

    /// The settings of the rope as `config.json` states them: of the rope of whole attention, where there are two.
    fn rope_json(&self) -> (Value, Value) {
        let json = &self.source.config_json;
        let parameters = json.get("rope_parameters").cloned().unwrap_or(Value::Null);
        let parameters = parameters.get("full_attention").cloned().unwrap_or(parameters);
        let scaling = json.get("rope_scaling").filter(|scaling| !scaling.is_null()).cloned();
        let theta = parameters.get("rope_theta").or_else(|| json.get("rope_theta")).cloned().unwrap_or(Value::Null);
        (theta, scaling.unwrap_or(parameters))
    }

    fn rope(&mut self) -> Result<(), ModelError> {
        let (theta, scaling) = self.rope_json();
        let default = if self.architecture == Architecture::Gemma3 { 1e6 } else { 1e4 };
        let theta = theta.as_f64().unwrap_or(default);
        let rope = self.config().ropes[0].clone();
        let pairs = rope.inverse_frequencies.len();
        self.set("rope.freq_base", Entry::F32(theta as f32));
        self.size("rope.dimension_count", 2 * pairs);
        if self.architecture == Architecture::Gemma3 {
            let local = self.source.config_json["rope_local_base_freq"].as_f64();
            let newer = self.source.config_json["rope_parameters"]["sliding_attention"]["rope_theta"].as_f64();
            self.set("rope.freq_base_swa", Entry::F32(newer.or(local).unwrap_or(1e4) as f32));
        }
        let kind =
            scaling.get("rope_type").or_else(|| scaling.get("type")).and_then(Value::as_str).unwrap_or("default");
        let plain = config::plain(theta, pairs);
        let divisors = |stretched: &[f32]| plain.iter().zip(stretched).map(|(f, stretched)| f / stretched).collect();
        match (kind, &rope.beyond) {
            ("default", None) => {}
            ("linear", None) => {
                let factor = scaling["factor"].as_f64().unwrap_or(1.0);
                self.set("rope.scaling.type", Entry::Text("linear".into()));
                self.set("rope.scaling.factor", Entry::F32(factor as f32));
            }
            ("llama3", None) if self.architecture == Architecture::Llama => {
                let values = divisors(&rope.inverse_frequencies);
                self.settings.push(SettingTensor { name: "rope_freqs.weight", values });
            }
            ("longrope" | "su", Some(beyond)) if self.architecture == Architecture::Phi3 => {
                let Stretch::Fixed(long) = &beyond.stretch else {
                    return Err(self.refuse("a rope that grows with the text"));
                };
                let (long, short) = (divisors(long), divisors(&rope.inverse_frequencies));
                self.settings.push(SettingTensor { name: "rope_factors_long.weight", values: long });
                self.settings.push(SettingTensor { name: "rope_factors_short.weight", values: short });
                self.size("rope.scaling.original_context_length", beyond.positions);
                self.set("rope.scaling.attn_factor", Entry::F32(rope.attention_factor));
            }
            _ => return Err(self.refuse(format!("the rope scaling `{kind}`"))),
        }
        Ok(())
    }
}
