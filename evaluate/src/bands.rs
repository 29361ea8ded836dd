//! Expected relative perplexities of kinds of quantization, and where a measurement falls among them.
//!
//! The table is the project's reference; it holds per-token perplexity over the unquantized model's on the same text.

use model::{Checkpoint, format::gguf::GgufFile};
use serde::Serialize;
use serde_json::Value;

/// The ratios to expect of a kind of quantization.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Band {
    /// The kind.
    pub kind: &'static str,
    /// The least ratio expected.
    pub low: f64,
    /// The largest ratio expected.
    pub high: f64,
    /// Whether the band has no upper end: beyond `high` is still what is expected.
    pub open: bool,
    /// What such a ratio means, where it means something.
    pub remark: Option<&'static str>,
}

const fn band(kind: &'static str, low: f64, high: f64) -> Band {
    Band { kind, low, high, open: false, remark: None }
}

/// Every band.
pub const BANDS: &[Band] = &[
    band("8-bit", 1.02, 1.05),
    band("GGUF Q8", 1.03, 1.06),
    band("GPTQ 4-bit", 1.05, 1.10),
    band("AWQ 4-bit", 1.04, 1.08),
    band("Q4_K_M", 1.05, 1.12),
    Band { remark: Some("marginal"), ..band("Q3_K_M", 1.10, 1.20) },
    Band { open: true, remark: Some("problematic"), ..band("Q2_K", 1.15, 1.30) },
];

/// Where a ratio falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// Below the band.
    Better,
    /// In the band, its ends included.
    Inside,
    /// Above the band.
    Worse,
}

/// A ratio against its band.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// Where it falls.
    pub place: Place,
    /// What was expected.
    pub band: Band,
}

impl Band {
    fn of(kind: &str) -> Option<&'static Self> {
        BANDS.iter().find(|band| band.kind == kind)
    }

    /// The band of a checkpoint, from its `quantization_config` or, for a GGUF file, its file type; none where the kind
    /// has none.
    pub fn of_checkpoint(checkpoint: &Checkpoint) -> Option<&'static Self> {
        if checkpoint.path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
            return Self::of_file_type(GgufFile::open(&checkpoint.path).ok()?.file_type()?);
        }
        Self::of_config(checkpoint.config_json.get("quantization_config")?)
    }

    fn of_config(quantization: &Value) -> Option<&'static Self> {
        let method = quantization.get("quant_method")?.as_str()?.to_lowercase();
        match (method.as_str(), bits(quantization)) {
            ("gptq", Some(4)) => Self::of("GPTQ 4-bit"),
            ("awq", Some(4)) => Self::of("AWQ 4-bit"),
            (_, Some(8)) => Self::of("8-bit"),
            _ => None,
        }
    }

    /// llama.cpp's numbers of file types.
    fn of_file_type(number: u64) -> Option<&'static Self> {
        match number {
            7 => Self::of("GGUF Q8"),
            10 => Self::of("Q2_K"),
            12 => Self::of("Q3_K_M"),
            15 => Self::of("Q4_K_M"),
            _ => None,
        }
    }

    /// The band of what `method` makes at `bits`, in `format` where that is one of GGUF's mixtures (`gguf:Q4_K_M`).
    pub fn of_method(method: &str, bits: u32, format: Option<&str>) -> Option<&'static Self> {
        match (format.and_then(|format| format.strip_prefix("gguf:")), method, bits) {
            (Some("Q8_0"), ..) => Self::of("GGUF Q8"),
            (Some(mixture), ..) => Self::of(mixture),
            (None, _, 8) => Self::of("8-bit"),
            (None, "gptq", 4) => Self::of("GPTQ 4-bit"),
            (None, "awq", 4) => Self::of("AWQ 4-bit"),
            _ => None,
        }
    }

    /// Where `ratio` falls.
    pub fn verdict(&self, ratio: f64) -> Verdict {
        let place = match ratio {
            ratio if ratio < self.low => Place::Better,
            ratio if ratio <= self.high || self.open => Place::Inside,
            _ => Place::Worse,
        };
        Verdict { place, band: *self }
    }
}

/// `bits` of GPTQ and AWQ, or `num_bits` of the only group of compressed-tensors.
fn bits(quantization: &Value) -> Option<u64> {
    if let Some(bits) = quantization.get("bits").or_else(|| quantization.get("w_bit")) {
        return bits.as_u64();
    }
    if quantization.get("load_in_8bit").and_then(Value::as_bool) == Some(true) {
        return Some(8);
    }
    let groups = quantization.get("config_groups")?.as_object()?;
    let mut widths = groups.values().map(|group| group.get("weights")?.get("num_bits")?.as_u64());
    let first = widths.next()??;
    widths.all(|width| width == Some(first)).then_some(first)
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Band { kind, low, high, open, remark } = self.band;
        let place = match self.place {
            Place::Better => "better than expected",
            Place::Inside => "as expected",
            Place::Worse => "worse than expected",
        };
        let open = if open { "+" } else { "" };
        let remark = remark.map_or_else(String::new, |remark| format!(", {remark}"));
        write!(f, "{place} of {kind} ({low:.2}–{high:.2}{open}{remark})")
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Place::{Better, Inside, Worse},
        *,
    };
    use serde_json::json;

    #[test]
    fn methods_have_the_bands_of_their_checkpoints() {
        let kind = |method, bits, format| Band::of_method(method, bits, format).map(|band| band.kind);
        assert_eq!(kind("gptq", 4, None), Some("GPTQ 4-bit"));
        assert_eq!(kind("awq", 4, Some("awq")), Some("AWQ 4-bit"));
        assert_eq!(kind("rtn", 8, None), Some("8-bit"));
        assert_eq!(kind("rtn", 4, Some("gguf:Q8_0")), Some("GGUF Q8"));
        assert_eq!(kind("gptq", 4, Some("gguf:Q3_K_M")), Some("Q3_K_M"));
        assert_eq!([kind("rtn", 4, None), kind("gptq", 3, None), kind("rtn", 4, Some("gguf:Q6_K"))], [None; 3]);
    }

    fn kind(config: &Value) -> Option<&'static str> {
        Band::of_config(config).map(|band| band.kind)
    }

    #[test]
    fn the_kind_is_read_from_the_checkpoint() {
        assert_eq!(kind(&json!({"quant_method": "gptq", "bits": 4})), Some("GPTQ 4-bit"));
        assert_eq!(kind(&json!({"quant_method": "gptq", "bits": 8})), Some("8-bit"));
        assert_eq!(kind(&json!({"quant_method": "gptq", "bits": 3})), None);
        assert_eq!(kind(&json!({"quant_method": "awq", "bits": 4})), Some("AWQ 4-bit"));
        assert_eq!(kind(&json!({"quant_method": "bitsandbytes", "load_in_8bit": true})), Some("8-bit"));
        let group = |bits| json!({"weights": {"num_bits": bits}});
        let compressed = |groups| json!({"quant_method": "compressed-tensors", "config_groups": groups});
        assert_eq!(kind(&compressed(json!({"group_0": group(8)}))), Some("8-bit"));
        assert_eq!(kind(&compressed(json!({"group_0": group(8), "group_1": group(4)}))), None);
        let files = [7, 10, 12, 15, 17, 1].map(|number| Band::of_file_type(number).map(|band| band.kind));
        assert_eq!(files, [Some("GGUF Q8"), Some("Q2_K"), Some("Q3_K_M"), Some("Q4_K_M"), None, None]);
    }

    #[test]
    fn ends_belong_to_the_band_and_an_open_band_has_no_upper_end() {
        let places = |kind: &str, ratios: &[f64]| -> Vec<Place> {
            ratios.iter().map(|&ratio| Band::of(kind).unwrap().verdict(ratio).place).collect()
        };
        assert_eq!(places("GPTQ 4-bit", &[1.0, 1.05, 1.10, 1.11]), [Better, Inside, Inside, Worse]);
        assert_eq!(places("Q2_K", &[1.1, 1.2, 5.0]), [Better, Inside, Inside]);
    }

    #[test]
    fn verdicts_read_as_sentences() {
        let sentence = |kind: &str, ratio| Band::of(kind).unwrap().verdict(ratio).to_string();
        assert_eq!(sentence("GPTQ 4-bit", 1.2), "worse than expected of GPTQ 4-bit (1.05–1.10)");
        assert_eq!(sentence("Q2_K", 9.0), "as expected of Q2_K (1.15–1.30+, problematic)");
    }
}
