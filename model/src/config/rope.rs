//! Rotary frequencies: `f[j] = base^(-2j/d)` for `j < d/2`, stretched for long contexts by the scheme the file names.
//!
//! | type | frequencies | factor of cosine and sine |
//! |---|---|---|
//! | `default` | `f` | 1 |
//! | `linear` | `f / factor` | 1 |
//! | `llama3` | `f` for short wavelengths, `f / factor` for long ones, blended between | 1 |
//! | `dynamic` | `f` up to `max_position_embeddings`; for `n` tokens beyond, the base is multiplied by `(factor n / max - factor + 1)^(d/(d-2))` | 1 |
//! | `longrope`, `su` | `f / short_factor[j]` up to `original_max_position_embeddings` tokens, `f / long_factor[j]` beyond | `sqrt(1 + ln(max/original) / ln(original))` |
//!
//! Wavelength is `2 pi / f`; short is below `original / high_freq_factor`, long above `original / low_freq_factor`. The
//! length that decides is that of the whole window. All in float32, as Transformers has it. Other types are refused.

use super::{LIMIT_POSITIONS, fields::Fields};
use crate::ModelError;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// A rotary embedding: what is turned and by how much.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rope {
    /// One frequency per turned pair, scaling already applied.
    pub inverse_frequencies: Vec<f32>,
    /// Factor of cosine and sine (long-context scalings), usually 1.
    pub attention_factor: f32,
    /// What changes in windows longer than the model was trained on.
    pub beyond: Option<Beyond>,
}

/// Frequencies for windows of more than `positions` tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Beyond {
    /// The longest window that [`Rope::inverse_frequencies`] are for.
    pub positions: usize,
    /// What longer windows use.
    pub stretch: Stretch,
}

/// How frequencies change beyond the trained length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Stretch {
    /// Other frequencies (`longrope`).
    Fixed(Vec<f32>),
    /// A base that grows with the window (`dynamic`).
    Growing {
        /// The base of the trained frequencies.
        base: f64,
        /// The strength of the growth.
        factor: f64,
    },
}

impl Rope {
    /// The frequencies for a window of `tokens` tokens.
    pub fn frequencies(&self, tokens: usize) -> Cow<'_, [f32]> {
        match &self.beyond {
            Some(Beyond { positions, stretch }) if tokens > *positions => match stretch {
                Stretch::Fixed(frequencies) => Cow::Borrowed(frequencies),
                Stretch::Growing { base, factor } => {
                    let width = (2 * self.inverse_frequencies.len()) as f64;
                    let growth = factor * tokens as f64 / *positions as f64 - (factor - 1.0);
                    Cow::Owned(plain(base * growth.powf(width / (width - 2.0)), self.inverse_frequencies.len()))
                }
            },
            _ => Cow::Borrowed(&self.inverse_frequencies),
        }
    }
}

/// What a rope is built from besides its own settings.
pub(super) struct Shape {
    /// Width of a head.
    pub(super) head_width: usize,
    /// `partial_rotary_factor` where the file gives it outside the rope's settings.
    pub(super) partial: f64,
    /// Whether the family can turn a part of each head only.
    pub(super) partial_allowed: bool,
    /// The base unless the settings give one.
    pub(super) base: f64,
    /// `max_position_embeddings`.
    pub(super) max_positions: usize,
    /// `original_max_position_embeddings` where the file gives it outside the rope's settings.
    pub(super) original_positions: Option<usize>,
}

impl Shape {
    /// Pairs turned in each head.
    fn pairs(&self, partial: f64) -> usize {
        (self.head_width as f64 * partial) as usize / 2
    }
}

/// Builds a rope from its settings (`rope_scaling` or `rope_parameters`); without any it is the plain one.
pub(super) fn build(settings: Option<&Fields<'_>>, shape: &Shape) -> Result<Rope, ModelError> {
    let Some(settings) = settings else {
        let inverse_frequencies = plain(shape.base, shape.pairs(shape.partial));
        return Ok(Rope { inverse_frequencies, attention_factor: 1.0, beyond: None });
    };
    let base = settings.positive("rope_theta")?.unwrap_or(shape.base);
    let partial = settings.positive("partial_rotary_factor")?.unwrap_or(shape.partial);
    if partial > 1.0 || (partial < 1.0 && !shape.partial_allowed) {
        return Err(settings.unsupported("partial_rotary_factor"));
    }
    let original = settings.size("original_max_position_embeddings", LIMIT_POSITIONS)?;
    let mut rope = Rope { inverse_frequencies: plain(base, shape.pairs(partial)), attention_factor: 1.0, beyond: None };
    match kind(settings)? {
        "default" => {}
        "linear" => {
            let factor = settings.required_positive("factor")? as f32;
            rope.inverse_frequencies.iter_mut().for_each(|f| *f /= factor);
        }
        "llama3" => llama3(&mut rope.inverse_frequencies, settings, original)?,
        "dynamic" => {
            let stretch = Stretch::Growing { base, factor: settings.required_positive("factor")? };
            rope.beyond = Some(Beyond { positions: shape.max_positions, stretch });
        }
        "longrope" | "su" => long(&mut rope, settings, original, shape)?,
        _ => return Err(settings.unsupported(if settings.mentions("rope_type") { "rope_type" } else { "type" })),
    }
    settings.refuse_all_unread()?;
    Ok(rope)
}

/// The scheme's name: `rope_type`, formerly `type`; a file that gives both has to give them equal.
fn kind<'a>(settings: &Fields<'a>) -> Result<&'a str, ModelError> {
    match (settings.text("rope_type")?, settings.text("type")?) {
        (Some(new), Some(old)) if new != old => {
            Err(settings.malformed("rope_type", &format!("is `{new}` but `type` is `{old}`")))
        }
        (Some(kind), _) | (None, Some(kind)) => Ok(kind),
        (None, None) => Ok("default"),
    }
}

/// `base^(-2j/d)` for the `pairs = d/2` pairs.
pub(crate) fn plain(base: f64, pairs: usize) -> Vec<f32> {
    let width = (2 * pairs) as f32;
    (0..pairs).map(|j| 1.0 / (base.powf(f64::from((2 * j) as f32 / width)) as f32)).collect()
}

fn llama3(frequencies: &mut [f32], settings: &Fields<'_>, original: Option<usize>) -> Result<(), ModelError> {
    let factor = settings.required_positive("factor")? as f32;
    let low = settings.required_positive("low_freq_factor")? as f32;
    let high = settings.required_positive("high_freq_factor")? as f32;
    let original = original.ok_or_else(|| settings.missing("original_max_position_embeddings"))? as f32;
    if high <= low {
        return Err(settings.malformed("high_freq_factor", &format!("is {high}, not above `low_freq_factor` {low}")));
    }
    for f in frequencies {
        let wavelength = 2.0 * std::f32::consts::PI / *f;
        if wavelength > original / low {
            *f /= factor;
        } else if wavelength >= original / high {
            let smooth = (original / wavelength - low) / (high - low);
            *f = (1.0 - smooth) * *f / factor + smooth * *f;
        }
    }
    Ok(())
}

fn long(rope: &mut Rope, settings: &Fields<'_>, original: Option<usize>, shape: &Shape) -> Result<(), ModelError> {
    let plain = std::mem::take(&mut rope.inverse_frequencies);
    let scaled = |key: &str| -> Result<Vec<f32>, ModelError> {
        let factors = settings.positives(key, plain.len())?;
        // 1 / (factor * base^(2j/d)), in the order of operations of Transformers.
        Ok(plain.iter().zip(factors).map(|(f, factor)| 1.0 / (factor as f32 * (1.0 / f))).collect())
    };
    let given = settings.positive("factor")?;
    let (original, ratio) = match shape.original_positions.or(original) {
        Some(original) => (original, shape.max_positions as f64 / original as f64),
        None => (shape.max_positions, given.unwrap_or(1.0)),
    };
    if original < 2 {
        return Err(settings.malformed("original_max_position_embeddings", &format!("is {original}, not above 1")));
    }
    if given.is_some_and(|given| (given / ratio - 1.0).abs() > 0.01) {
        let what = format!("contradicts `max_position_embeddings` / `original_max_position_embeddings` = {ratio}");
        return Err(settings.malformed("factor", &what));
    }
    let suggested = if ratio > 1.0 { (1.0 + ratio.ln() / (original as f64).ln()).sqrt() } else { 1.0 };
    rope.attention_factor = settings.positive("attention_factor")?.unwrap_or(suggested) as f32;
    rope.inverse_frequencies = scaled("short_factor")?;
    rope.beyond = Some(Beyond { positions: original, stretch: Stretch::Fixed(scaled("long_factor")?) });
    Ok(())
}
