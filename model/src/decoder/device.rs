//! A block on a graphics processor: [`DeviceBlock`], the four stages of [`Block`] on windows that lie one after the other in
//! device memory. Linears, norms and activation take all rows at once, rope and attention a window at a time.
//!
//! Results agree with the CPU's but for the order of float32 sums; bfloat16 operands are rounded alike, but attention's
//! products are float32 here always, and those of few rows bfloat16 too. A window's rows don't depend on the windows beside it,
//! but for what cuBLAS chooses by the number of rows. What the kernels can't do is told beforehand, by name: [`obstacle`].

pub use super::ahead::each_block;
use super::{Block, Head, Linear, Norm, RopeTables, Stage};
use crate::Config;
use kernels::{
    Compute,
    activation::Activation,
    attention::Attention,
    cuda::{Buffer, CudaError, Device, DeviceRope, MOST_HEAD_WIDTH, Operand},
    divergence::Divergence,
    rope::RopeTable,
};
use std::sync::{Arc, Mutex, PoisonError};

/// Why the forward pass of such a model has no place on a device, if it hasn't.
pub fn obstacle(config: &Config) -> Option<String> {
    let width = config.head_width;
    (width > MOST_HEAD_WIDTH)
        .then(|| format!("heads {width} wide are not on the device, which has room for {MOST_HEAD_WIDTH}"))
}

/// Bytes of device memory that the largest block takes, and its largest linear once more: while that is rounded to bfloat16.
pub fn block_bytes(config: &Config) -> usize {
    let weights = |index| {
        let linears = Stage::ALL.into_iter().flat_map(move |stage| config.linears(index, stage));
        let sizes: Vec<usize> = linears.map(|linear| (linear.inputs + 1) * linear.outputs).collect();
        sizes.iter().sum::<usize>() + sizes.iter().max().unwrap_or(&0)
    };
    let norms = 4 * config.hidden_size + 2 * config.head_width;
    ((0..config.layers.len()).map(weights).max().unwrap_or(0) + norms) * size_of::<f32>()
}

/// Bytes of device memory that `tokens` tokens take while they go through a block, at most: the residual stream, a
/// stage's input, and what its linears make of it, twice where fused ones are taken apart.
pub fn activation_bytes(config: &Config, tokens: usize) -> usize {
    let attention = (config.heads + 2 * config.kv_heads) * config.head_width;
    let widest = attention.max(2 * config.intermediate_size).max(config.hidden_size);
    let input = config.hidden_size.max(config.heads * config.head_width).max(config.intermediate_size);
    let made = if config.fused { 2 * widest } else { widest };
    // The input twice: float32, and in bfloat16 where products want that.
    tokens * (2 * config.hidden_size + 2 * input + made) * size_of::<f32>()
}

/// How numbers are copied to the device.
type Upload<'a> = &'a dyn Fn(&[f32]) -> Result<Buffer<f32>, CudaError>;

struct DeviceLinear {
    weight: Operand,
    bias: Option<Buffer<f32>>,
    outputs: usize,
}

impl DeviceLinear {
    fn new(device: &Device, compute: Compute, linear: &Linear, upload: Upload<'_>) -> Result<Self, CudaError> {
        let bias = linear.bias.as_deref().map(upload).transpose()?;
        let weight = device.operand(compute, upload(&linear.weight)?, linear.inputs)?;
        Ok(Self { weight, bias, outputs: linear.outputs })
    }

    fn apply(&self, device: &Device, x: &Operand<&Buffer<f32>>) -> Result<Buffer<f32>, CudaError> {
        let mut out = device.multiply(x, &self.weight)?;
        if let Some(bias) = &self.bias {
            device.add_bias(&mut out, bias)?;
        }
        Ok(out)
    }
}

struct DeviceNorm {
    weight: Buffer<f32>,
    offset: f32,
    epsilon: f32,
}

impl DeviceNorm {
    fn new(norm: &Norm, upload: Upload<'_>) -> Result<Self, CudaError> {
        Ok(Self { weight: upload(&norm.weight)?, offset: norm.offset, epsilon: norm.epsilon })
    }

    fn apply(&self, device: &Device, x: &Buffer<f32>) -> Result<Buffer<f32>, CudaError> {
        device.rms_norm(x, &self.weight, self.offset, self.epsilon)
    }
}

/// Activations of consecutive windows inside a block, as far as they are on the device.
pub struct DeviceActivations {
    /// Tokens of each window.
    pub lengths: Vec<usize>,
    /// The residual stream, `[tokens, hidden_size]`: what [`DeviceBlock::begin`], [`Stage::Output`] and [`Stage::Down`] need.
    pub hidden: Option<Buffer<f32>>,
    /// The input of the present stage's linears, `[tokens, width]`: what all stages need.
    pub input: Option<Buffer<f32>>,
}

impl DeviceActivations {
    /// The residual stream, where a step needs it.
    fn hidden(&mut self) -> &mut Buffer<f32> {
        self.hidden.as_mut().expect("callers bring the residual stream to the steps that need it")
    }

    /// The input of the present stage.
    pub fn input(&self) -> &Buffer<f32> {
        self.input.as_ref().expect("callers bring its input to a stage")
    }
}

/// A decoder layer on a device.
pub struct DeviceBlock {
    /// Position in the model.
    pub index: usize,
    device: Arc<Device>,
    compute: Compute,
    linears: [Vec<DeviceLinear>; 4],
    before_attention: DeviceNorm,
    after_attention: Option<DeviceNorm>,
    before_feed_forward: DeviceNorm,
    after_feed_forward: Option<DeviceNorm>,
    query: Option<DeviceNorm>,
    key: Option<DeviceNorm>,
    attention: Attention,
    activation: Activation,
    rope: usize,
    tables: Arc<RopeTables>,
    /// Tables that were copied already.
    ropes: Mutex<Vec<(Arc<RopeTable>, Arc<DeviceRope>)>>,
}

impl DeviceBlock {
    /// Copies `block` as it is now.
    pub fn upload(device: &Arc<Device>, block: &Block) -> Result<Self, CudaError> {
        Self::new(device, block, &|numbers| device.upload(numbers))
    }

    /// The same beside what the device works on: it is the first use of a weight that waits for its copy.
    pub fn upload_beside(device: &Arc<Device>, block: &Block) -> Result<Self, CudaError> {
        Self::new(device, block, &|numbers| device.upload_beside(numbers))
    }

    fn new(device: &Arc<Device>, block: &Block, upload: Upload<'_>) -> Result<Self, CudaError> {
        let norm = |norm: &Norm| DeviceNorm::new(norm, upload);
        let optional = |norm: &Option<Norm>| norm.as_ref().map(|norm| DeviceNorm::new(norm, upload)).transpose();
        let stage = |stage| stage_of(device, block, stage, upload);
        Ok(Self {
            index: block.index,
            device: Arc::clone(device),
            compute: block.compute,
            linears: [stage(Stage::Qkv)?, stage(Stage::Output)?, stage(Stage::GateUp)?, stage(Stage::Down)?],
            before_attention: norm(&block.before_attention)?,
            after_attention: optional(&block.after_attention)?,
            before_feed_forward: norm(&block.before_feed_forward)?,
            after_feed_forward: optional(&block.after_feed_forward)?,
            query: optional(&block.query)?,
            key: optional(&block.key)?,
            attention: block.attention,
            activation: block.activation,
            rope: block.rope,
            tables: Arc::clone(&block.tables),
            ropes: Mutex::default(),
        })
    }

    /// Copies the linears of `stage` again, which have other weights now.
    pub fn renew(&mut self, block: &Block, stage: Stage) -> Result<(), CudaError> {
        // The old ones make room first.
        self.linears[stage as usize].clear();
        self.linears[stage as usize] = stage_of(&self.device, block, stage, &|numbers| self.device.upload(numbers))?;
        Ok(())
    }

    /// [`Block::begin`].
    pub fn begin(&self, activations: &mut DeviceActivations) -> Result<(), CudaError> {
        activations.input = Some(self.before_attention.apply(&self.device, activations.hidden())?);
        Ok(())
    }

    /// [`Block::advance`]; after [`Stage::Down`] there is no input.
    pub fn advance(&self, stage: Stage, activations: &mut DeviceActivations) -> Result<(), CudaError> {
        match stage {
            Stage::Qkv => activations.input = Some(self.attend(activations)?),
            Stage::Output => {
                self.add_to_hidden(stage, self.after_attention.as_ref(), activations)?;
                activations.input = Some(self.before_feed_forward.apply(&self.device, activations.hidden())?);
            }
            Stage::GateUp => activations.input = Some(self.gate(activations)?),
            Stage::Down => {
                self.add_to_hidden(stage, self.after_feed_forward.as_ref(), activations)?;
                activations.input = None;
            }
        }
        Ok(())
    }

    /// The whole block.
    pub fn forward(&self, activations: &mut DeviceActivations) -> Result<(), CudaError> {
        self.begin(activations)?;
        Stage::ALL.into_iter().try_for_each(|stage| self.advance(stage, activations))
    }

    fn attend(&self, activations: &DeviceActivations) -> Result<Buffer<f32>, CudaError> {
        let Attention { heads, kv_heads, head_width, .. } = self.attention;
        let [mut q, mut k, v] =
            self.outputs(Stage::Qkv, activations.input(), [heads, kv_heads, kv_heads], head_width)?;
        for (norm, x) in [(&self.query, &mut q), (&self.key, &mut k)] {
            if let Some(norm) = norm {
                *x = norm.apply(&self.device, x)?;
            }
        }
        let mut out = self.device.zeros(q.len())?;
        let mut first = 0;
        for tokens in &activations.lengths {
            let rope = self.rope(*tokens)?;
            let of = |heads: usize| first * heads * head_width..(first + tokens) * heads * head_width;
            for (x, heads) in [(&mut q, heads), (&mut k, kv_heads)] {
                self.device.rotate(&mut x.slice_mut(of(heads)), &rope, heads, head_width, 0)?;
            }
            let (rows, seen) = (of(heads), of(kv_heads));
            let read = [&q.slice(rows.clone()), &k.slice(seen.clone()), &v.slice(seen)];
            self.device.attend(&self.attention, read, &mut out.slice_mut(rows))?;
            first += tokens;
        }
        Ok(out)
    }

    /// The rope table for a window of `tokens` tokens, copied when it is first asked for.
    fn rope(&self, tokens: usize) -> Result<Arc<DeviceRope>, CudaError> {
        let table = self.tables.table(self.rope, tokens);
        let mut known = self.ropes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, copied)) = known.iter().find(|(other, _)| Arc::ptr_eq(other, &table)) {
            return Ok(Arc::clone(copied));
        }
        let copied = Arc::new(self.device.upload_rope(&table)?);
        known.push((table, Arc::clone(&copied)));
        Ok(copied)
    }

    fn gate(&self, activations: &DeviceActivations) -> Result<Buffer<f32>, CudaError> {
        let width = self.linears[Stage::Down as usize][0].weight.width();
        let [mut gate, up] = self.outputs(Stage::GateUp, activations.input(), [1, 1], width)?;
        self.device.gated(self.activation, &mut gate, &up)?;
        Ok(gate)
    }

    /// What the linears of `stage` make of `x`, piece `i` being `parts[i] * unit` wide; see [`Block`].
    fn outputs<const N: usize>(
        &self,
        stage: Stage,
        x: &Buffer<f32>,
        parts: [usize; N],
        unit: usize,
    ) -> Result<[Buffer<f32>; N], CudaError> {
        let linears = &self.linears[stage as usize];
        let x = &self.operand(stage, x)?;
        let made: Vec<Buffer<f32>> = if linears.len() == N {
            linears.iter().map(|linear| linear.apply(&self.device, x)).collect::<Result<_, _>>()?
        } else {
            let fused = linears[0].apply(&self.device, x)?;
            let mut begin = 0;
            let taken = parts.map(|part| {
                let first = begin;
                begin += part * unit;
                self.device.take_columns(&fused, linears[0].outputs, first, part * unit)
            });
            taken.into_iter().collect::<Result<_, _>>()?
        };
        Ok(made.try_into().unwrap_or_else(|_| unreachable!("a piece for each part")))
    }

    /// The input of `stage` as its linears want it.
    fn operand<'a>(&self, stage: Stage, x: &'a Buffer<f32>) -> Result<Operand<&'a Buffer<f32>>, CudaError> {
        self.device.operand(self.compute, x, self.linears[stage as usize][0].weight.width())
    }

    /// `hidden += norm(linear(input))`, the norm only where the family has one.
    fn add_to_hidden(
        &self,
        stage: Stage,
        norm: Option<&DeviceNorm>,
        activations: &mut DeviceActivations,
    ) -> Result<(), CudaError> {
        let x = self.operand(stage, activations.input())?;
        let mut out = self.linears[stage as usize][0].apply(&self.device, &x)?;
        if let Some(norm) = norm {
            out = norm.apply(&self.device, &out)?;
        }
        self.device.add(activations.hidden(), &out)
    }
}

fn stage_of(device: &Device, block: &Block, stage: Stage, upload: Upload<'_>) -> Result<Vec<DeviceLinear>, CudaError> {
    block.linears(stage).iter().map(|linear| DeviceLinear::new(device, block.compute, linear, upload)).collect()
}

/// [`Head`] on a device.
pub struct DeviceHead {
    device: Arc<Device>,
    compute: Compute,
    weight: Operand,
    norm: DeviceNorm,
}

impl DeviceHead {
    /// Copies `head`.
    pub fn upload(device: &Arc<Device>, head: &Head) -> Result<Self, CudaError> {
        let norm = DeviceNorm {
            weight: device.upload(&head.norm)?,
            offset: head.config.norm_offset,
            epsilon: head.config.norm_epsilon,
        };
        let weight = device.operand(head.compute, device.upload(&head.weight)?, head.config.hidden_size)?;
        Ok(Self { device: Arc::clone(device), compute: head.compute, weight, norm })
    }

    /// `hidden` through the final norm: what the head multiplies.
    fn normed(&self, hidden: &Buffer<f32>) -> Result<Operand, CudaError> {
        let normed = self.norm.apply(&self.device, hidden)?;
        self.device.operand(self.compute, normed, self.weight.width())
    }

    /// [`Head::negative_log_likelihood`].
    pub fn negative_log_likelihood(&self, hidden: &Buffer<f32>, targets: &[u32]) -> Result<Vec<f32>, CudaError> {
        self.device.negative_log_likelihood(&self.normed(hidden)?, &self.weight, targets)
    }

    /// [`Head::divergence`].
    pub fn divergence(
        &self,
        hidden: &Buffer<f32>,
        model: &Self,
        models: &Buffer<f32>,
        targets: &[u32],
    ) -> Result<Vec<Divergence>, CudaError> {
        let (ours, theirs) = (self.normed(hidden)?, model.normed(models)?);
        self.device.divergence((&ours, &self.weight), (&theirs, &model.weight), targets)
    }
}
