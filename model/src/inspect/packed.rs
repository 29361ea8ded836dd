//! Linears packed into several tensors, recognised by these tensors' names and measured from their shapes.
//!
//! | layout | codes | outputs | inputs | columns per group |
//! |---|---|---|---|---|
//! | GPTQ | `qweight` `[in * bits / 32, out]` | axis 1 | length of `g_idx` | in / rows of `scales` |
//! | AWQ | `qweight` `[in, out * bits / 32]` | axis 1 of `scales` | axis 0 | in / rows of `scales` |
//! | compressed-tensors | `weight_packed` `[out, ...]` | `weight_shape` | `weight_shape` | in / columns of `weight_scale` |

use super::{Found, StoredTensor};
use crate::format::huggingface::SafetensorsFolder;
use std::collections::{BTreeMap, HashSet};

/// A way to pack a linear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    Gptq,
    Awq,
    CompressedTensors,
}

impl Layout {
    /// The layout of a quantization method.
    pub(super) fn named(method: Option<&str>) -> Option<Self> {
        match method? {
            "gptq" => Some(Self::Gptq),
            "awq" => Some(Self::Awq),
            "compressed-tensors" => Some(Self::CompressedTensors),
            _ => None,
        }
    }

    /// Suffixes of the tensors of a linear; the first is that of the codes, the second that of the scales.
    fn parts(self) -> &'static [&'static str] {
        match self {
            Self::Gptq => &["qweight", "scales", "qzeros", "g_idx"],
            Self::Awq => &["qweight", "scales", "qzeros"],
            Self::CompressedTensors => {
                &["weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape"]
            }
        }
    }
}

/// A packed linear.
pub(super) struct Linear {
    name: String,
    parts: Vec<String>,
    settings: String,
    parameters: u64,
    bytes: u64,
}

impl Linear {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn found(&self) -> Found {
        Found { settings: self.settings.clone(), parameters: self.parameters, bytes: self.bytes }
    }
}

/// The packed linears among `tensors`, where their shapes fit together.
pub(super) fn find(tensors: &[StoredTensor], layout: Option<Layout>, files: &SafetensorsFolder) -> Vec<Linear> {
    let Some(layout) = layout else { return Vec::new() };
    let by_name: BTreeMap<&str, &StoredTensor> = tensors.iter().map(|tensor| (&*tensor.name, tensor)).collect();
    let codes = layout.parts()[0];
    let module = |tensor: &StoredTensor| Some(tensor.name.strip_suffix(codes)?.strip_suffix('.')?.to_owned());
    tensors.iter().filter_map(module).filter_map(|name| describe(&name, layout, &by_name, files)).collect()
}

fn describe(
    name: &str,
    layout: Layout,
    tensors: &BTreeMap<&str, &StoredTensor>,
    files: &SafetensorsFolder,
) -> Option<Linear> {
    let part = |suffix: &str| tensors.get(&*format!("{name}.{suffix}")).copied();
    let (codes, scales) = (part(layout.parts()[0])?, part(layout.parts()[1])?);
    let (&[rows, columns], &[scale_rows, scale_columns]) = (codes.shape.as_slice(), scales.shape.as_slice()) else {
        return None;
    };
    let (outputs, inputs, groups) = match layout {
        Layout::Gptq => (columns, *part("g_idx")?.shape.first()?, scale_rows),
        Layout::Awq => (scale_columns, rows, scale_rows),
        Layout::CompressedTensors => {
            let (outputs, inputs) = original_shape(files, &format!("{name}.weight_shape"))?;
            (outputs, inputs, scale_columns)
        }
    };
    let parameters = (outputs as u64).checked_mul(inputs as u64).filter(|&count| count > 0)?;
    // Ten 3-bit values a word in compressed-tensors, hence rounded down.
    let bits = Some(8 * codes.bytes / parameters).filter(|&bits| bits > 0)?;
    let present: Vec<&StoredTensor> = layout.parts().iter().filter_map(|suffix| part(suffix)).collect();
    let grouped =
        if groups == 1 { "one group per row".into() } else { format!("groups of {}", inputs.div_ceil(groups.max(1))) };
    Some(Linear {
        name: name.into(),
        parts: present.iter().map(|tensor| tensor.name.clone()).collect(),
        settings: format!("{bits} bits, {grouped}"),
        parameters,
        bytes: present.iter().map(|tensor| tensor.bytes).sum(),
    })
}

/// `weight_shape`: two integers of 32 or 64 bits.
fn original_shape(files: &SafetensorsFolder, name: &str) -> Option<(usize, usize)> {
    let (_, shape, bytes) = files.raw(name).ok()?;
    if shape != [2] || !matches!(bytes.len(), 8 | 16) {
        return None;
    }
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |number, &byte| number << 8 | u64::from(byte));
    let (outputs, inputs) = bytes.split_at(bytes.len() / 2);
    Some((usize::try_from(number(outputs)).ok()?, usize::try_from(number(inputs)).ok()?))
}

/// All parameters: those of packed linears, and the elements of every tensor that belongs to none.
pub(super) fn parameters(tensors: &[StoredTensor], linears: &[Linear]) -> u64 {
    let parts: HashSet<&str> = linears.iter().flat_map(|linear| &linear.parts).map(String::as_str).collect();
    let others = tensors.iter().filter(|tensor| !parts.contains(&*tensor.name));
    let others: u64 = others.map(|tensor| tensor.shape.iter().product::<usize>() as u64).sum();
    others + linears.iter().map(|linear| linear.parameters).sum::<u64>()
}
