//! Taking a factor out of a stage's input without changing what the block computes: what produces the input is divided
//! by it, channel by channel, and the columns of the linears that read it are multiplied.
//!
//! | stage | its input's producer | exact because | columns of a channel |
//! |---|---|---|---|
//! | Qkv | the norm before attention | it multiplies channel by channel | one |
//! | Output | rows of v, and their bias | attention is linear in v, channel by channel | that channel of every query head that shares the key-value head |
//! | GateUp | the norm before the feed-forward network | it multiplies channel by channel | one |
//! | Down | rows of up, and their bias | `act(gate) * up` is linear in up | one |
//!
//! In fused linears v is the last rows of qkv, up the second half of gate_up.
//!
//! What is stored in few bits decides the factor: the norm (or bias) divided by the factor asked for is rounded to a
//! number that float16, bfloat16 and float32 all hold, and the factor is what that number makes of it. Folding is
//! therefore exact up to float32 rounding, whatever type the checkpoint stores, and whatever a loader converts it to.

use super::{Block, Linear, Norm, Stage};
use crate::ModelError;
use half::{bf16, f16};
use std::{collections::BTreeMap, ops::Range};

/// What feeds a stage.
enum Producer {
    Norm,
    /// Rows of the linear at this place in this stage.
    Rows(Stage, usize, Range<usize>),
}

impl Block {
    /// For each column of the input of `stage`, the channel of its producer. Columns of one channel share a factor.
    pub fn channels(&self, stage: Stage) -> Vec<usize> {
        let width = self.input_width(stage);
        if stage != Stage::Output {
            return (0..width).collect();
        }
        let head = self.attention.head_width;
        let sharing = self.attention.heads / self.attention.kv_heads;
        (0..width).map(|column| column / head / sharing * head + column % head).collect()
    }

    /// The linear whose rows produce the input of `stage`, with those rows; `None` where a norm does.
    pub fn producing_rows(&self, stage: Stage) -> Option<(&Linear, Range<usize>)> {
        match self.producer(stage) {
            Producer::Norm => None,
            Producer::Rows(of, index, rows) => Some((&self.linears(of)[index], rows)),
        }
    }

    /// The factors nearest to `factors` (one a channel) that can be folded exactly. A channel that can't be scaled (its
    /// norm or bias would leave the range of float16) gets 1.
    pub fn storable(&self, stage: Stage, factors: &[f32]) -> Vec<f32> {
        match self.producer(stage) {
            Producer::Norm => {
                let Norm { weight, offset, .. } = self.norm_before(stage);
                weight.iter().zip(factors).map(|(value, factor)| factor_of_norm(*value, *offset, *factor)).collect()
            }
            Producer::Rows(of, index, rows) => match &self.linears(of)[index].bias {
                Some(bias) => bias[rows].iter().zip(factors).map(|(v, factor)| factor_of_bias(*v, *factor)).collect(),
                None => factors.to_vec(),
            },
        }
    }

    /// Divides the producer of the input of `stage` by `factors` (one a channel, from [`Block::storable`]) and
    /// multiplies the columns of its linears.
    pub fn fold(&mut self, stage: Stage, factors: &[f32]) {
        let channels = self.channels(stage);
        match self.producer(stage) {
            Producer::Norm => {
                let norm = self.norm_before_mut(stage);
                let offset = norm.offset;
                norm.weight.iter_mut().zip(factors).for_each(|(value, factor)| divide_norm(value, offset, *factor));
            }
            Producer::Rows(of, index, rows) => {
                let linear = &mut self.linears_mut(of)[index];
                let inputs = linear.inputs;
                for (row, factor) in rows.clone().zip(factors) {
                    linear.weight[row * inputs..][..inputs].iter_mut().for_each(|weight| *weight /= factor);
                }
                let bias = linear.bias.iter_mut().flat_map(|bias| &mut bias[rows.clone()]);
                bias.zip(factors).for_each(|(value, factor)| divide_bias(value, *factor));
            }
        }
        for linear in self.linears_mut(stage) {
            for row in linear.weight.chunks_exact_mut(channels.len()) {
                row.iter_mut().zip(&channels).for_each(|(weight, channel)| *weight *= factors[*channel]);
            }
        }
    }

    /// The small float tensors of the block, which folding changes: norms and biases, by their full names.
    pub fn small_tensors(&self) -> BTreeMap<String, Vec<f32>> {
        let norms = [Some(&self.before_attention), Some(&self.before_feed_forward)].into_iter().flatten();
        let norms = norms.map(|norm| (norm.name.clone(), norm.weight.clone()));
        let bias = |linear: &Linear| Some((bias_name(linear), linear.bias.clone()?));
        norms.chain(self.linears.iter().flatten().filter_map(bias)).collect()
    }

    /// Puts `values` in the place of the norm or bias `name`.
    pub fn replace_small_tensor(&mut self, name: &str, values: &[f32]) -> Result<(), ModelError> {
        let refuse = |what: String| Err(ModelError::Tensor { tensor: name.to_owned(), what });
        let norms = [&mut self.before_attention, &mut self.before_feed_forward].into_iter();
        let norms = norms.filter(|norm| norm.name == name).map(|norm| &mut norm.weight);
        let linears = self.linears.iter_mut().flatten().filter(|linear| bias_name(linear) == name);
        match norms.chain(linears.filter_map(|linear| linear.bias.as_mut())).next() {
            Some(tensor) if tensor.len() == values.len() => {
                tensor.copy_from_slice(values);
                Ok(())
            }
            Some(tensor) => refuse(format!("is to be replaced by {} numbers, but has {}", values.len(), tensor.len())),
            None => refuse(format!("is no norm or bias of block {}", self.index)),
        }
    }

    fn producer(&self, stage: Stage) -> Producer {
        let (of, count) = match stage {
            Stage::Qkv | Stage::GateUp => return Producer::Norm,
            Stage::Output => (Stage::Qkv, self.attention.kv_heads * self.attention.head_width),
            Stage::Down => (Stage::GateUp, self.input_width(Stage::Down)),
        };
        let index = self.linears(of).len() - 1;
        let outputs = self.linears(of)[index].outputs;
        Producer::Rows(of, index, outputs - count..outputs)
    }

    fn norm_before(&self, stage: Stage) -> &Norm {
        if stage == Stage::Qkv { &self.before_attention } else { &self.before_feed_forward }
    }

    fn norm_before_mut(&mut self, stage: Stage) -> &mut Norm {
        if stage == Stage::Qkv { &mut self.before_attention } else { &mut self.before_feed_forward }
    }
}

fn bias_name(linear: &Linear) -> String {
    format!("{}.bias", linear.name)
}

/// The factor by which a norm's `value + offset` really shrinks when what is stored of it is rounded. 1 leaves it as it
/// is: a norm is stored in the type it came in.
fn factor_of_norm(value: f32, offset: f32, factor: f32) -> f32 {
    let whole = value + offset;
    if !is_usable(factor) || factor == 1.0 || (whole == 0.0 && offset != 0.0) {
        return 1.0;
    }
    if whole == 0.0 {
        return factor; // Zero divided by anything is zero.
    }
    let real = whole / (in_all_types(whole / factor - offset) + offset);
    if is_usable(real) && in_all_types(whole / real - offset).is_finite() { real } else { 1.0 }
}

/// The same for a bias, which formats store in float16 whatever it came in: it is rounded for a factor of 1 as well.
fn factor_of_bias(value: f32, factor: f32) -> f32 {
    let asked = if is_usable(factor) { factor } else { 1.0 };
    if value == 0.0 {
        return asked;
    }
    let real = |factor: f32| value / in_all_types(value / factor);
    [asked, 1.0].map(real).into_iter().find(|real| is_usable(*real)).unwrap_or(1.0)
}

fn is_usable(factor: f32) -> bool {
    factor.is_finite() && factor > 0.0
}

/// Divides a norm's `value + offset` by a storable factor.
fn divide_norm(value: &mut f32, offset: f32, factor: f32) {
    if factor != 1.0 {
        *value = in_all_types((*value + offset) / factor - offset);
    }
}

/// Divides a bias by a storable factor. One beyond float16 stays what it is, for the writer to refuse.
fn divide_bias(value: &mut f32, factor: f32) {
    let divided = in_all_types(*value / factor);
    if divided.is_finite() {
        *value = divided;
    }
}

/// `value` rounded to a number that float16, bfloat16 and float32 hold; not finite beyond float16.
fn in_all_types(value: f32) -> f32 {
    f16::from_f32(bf16::from_f32(value).to_f32()).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn by_hand() {
        // 1 / 3 in bfloat16 is 171 / 512, so the factor becomes 512 / 171.
        let factor = factor_of_norm(1.0, 0.0, 3.0);
        assert_eq!(factor, 512.0 / 171.0);
        let mut value = 1.0;
        divide_norm(&mut value, 0.0, factor);
        assert_eq!(value, 171.0 / 512.0);
        // Gemma's 0.5 stands for 1.5; divided by 3 that is 0.5, stored as -0.5.
        let mut value = 0.5;
        assert_eq!(factor_of_norm(value, 1.0, 3.0), 3.0);
        divide_norm(&mut value, 1.0, 3.0);
        assert_eq!(value, -0.5);
    }

    #[test]
    fn channels_that_cannot_be_scaled_are_left_alone() {
        assert_eq!(factor_of_norm(0.0, 0.0, 7.0), 7.0, "nothing is nothing");
        assert_eq!(factor_of_norm(-1.0, 1.0, 7.0), 1.0, "a Gemma channel that is off");
        assert_eq!(factor_of_norm(3e4, 0.0, 1e-3), 1.0, "beyond float16");
        assert_eq!(factor_of_norm(1e-4, 0.0, 1e6), 1.0, "below float16");
        for factor in [f32::NAN, f32::INFINITY, 0.0, -1.0] {
            assert_eq!(factor_of_norm(1.0, 0.0, factor), 1.0);
        }
    }

    #[test]
    fn a_bias_is_stored_in_any_type_whatever_its_factor() {
        let divided = |value: f32, factor: f32| {
            let real = factor_of_bias(value, factor);
            let mut divided = value;
            divide_bias(&mut divided, real);
            (divided, real)
        };
        assert_eq!(divided(0.0, 7.0), (0.0, 7.0));
        // 1 / 3 in bfloat16 is 171 / 512, also where nothing was to be scaled.
        assert_eq!(divided(1.0 / 3.0, 1.0), (171.0 / 512.0, (1.0 / 3.0) / (171.0 / 512.0)));
        assert_eq!(divided(1.0, f32::NAN), (1.0, 1.0));
        // Too small for float16 when divided: stored as it is, in a subnormal number, which decides the factor.
        let (stored, real) = divided(1e-6, 1e4);
        assert!((stored / 1e-6 - 1.0).abs() < 0.05 && (stored * real / 1e-6 - 1.0).abs() < 1e-6);
        assert_eq!(divided(1e-9, 1.0), (0.0, 1.0), "below float16 altogether");
        assert_eq!(divided(1e6, 1.0).0, 1e6, "beyond float16: left for the writer to refuse");
        assert_eq!(divided(1e6, 100.0).0, in_all_types(1e4));
    }

    proptest! {
        #[test]
        fn value_and_factor_multiply_to_what_was_there(value in -4.0f32..4.0, gemma: bool, factor in 0.01f32..100.0) {
            let offset = f32::from(u8::from(gemma));
            let real = factor_of_norm(value, offset, factor);
            let mut divided = value;
            divide_norm(&mut divided, offset, real);
            if real != 1.0 {
                prop_assert_eq!(f16::from_f32(divided).to_f32(), divided);
                prop_assert_eq!(bf16::from_f32(divided).to_f32(), divided);
            }
            // Two float32 roundings, of a sum of 1 where there is an offset.
            let error = ((divided + offset) * real - (value + offset)).abs();
            prop_assert!(error <= 4.0 * f32::EPSILON * ((value + offset).abs() + offset * real), "{}", error);
        }
    }
}
