//! What a decoder does between its products, on the device. The kernels are `norm.cu`, `rope.cu`, `activation.cu` and
//! `attention.cu`.

use super::{
    Buffer, CudaError, Device, View, ViewMut,
    device::{MOST_BLOCKS, THREADS, grid},
    sources::{ACTIVATION, ATTENTION, NORM, ROPE},
};
use crate::{activation::Activation, attention::Attention, rope::RopeTable};
use cudarc::driver::{DeviceRepr, PushKernelArg};

/// Threads that take a row of a norm.
const NORM_THREADS: u32 = 256;
/// Queries that a block of threads takes, and threads that share one.
const QUERIES: usize = 64;
const ATTENTION_THREADS: u32 = 256;
/// The widest head that the attention kernel has room for.
pub const MOST_HEAD_WIDTH: usize = 256;

/// `Shape` of `attention.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Shape {
    queries: u32,
    tokens: u32,
    heads: u32,
    kv_heads: u32,
    width: u32,
    window: u32,
    scale: f32,
}

// SAFETY: seven numbers of 4 bytes in C's order, as the kernel's struct.
unsafe impl DeviceRepr for Shape {}

/// [`RopeTable`] on the device.
#[derive(Debug)]
pub struct DeviceRope {
    cosines: Buffer<f32>,
    sines: Buffer<f32>,
    half: usize,
}

impl Device {
    /// Root-mean-square norm of each row of `x` (`[rows, weight.len()]`), as [`crate::norm::rms_norm`].
    pub fn rms_norm(
        &self,
        x: &Buffer<f32>,
        weight: &Buffer<f32>,
        offset: f32,
        epsilon: f32,
    ) -> Result<Buffer<f32>, CudaError> {
        assert_eq!(x.len() % weight.len(), 0, "shapes of x and weight");
        let rows = x.len() / weight.len();
        let mut out = self.room(x.len(), "a norm")?;
        if rows > 0 {
            let kernel = self.kernel(&NORM, "rms_norm")?;
            let width = weight.len() as u32;
            let mut launch = self.stream().launch_builder(&kernel);
            launch.arg(x).arg(weight).arg(&offset).arg(&epsilon).arg(&width).arg(&mut out);
            // SAFETY: arguments as the kernel declares them; a block of threads for each of x's rows, which out has too.
            unsafe { launch.launch(grid([rows, 1], [NORM_THREADS, 1])) }?;
        }
        Ok(out)
    }

    /// The table of `rope` on the device.
    pub fn upload_rope(&self, rope: &RopeTable) -> Result<DeviceRope, CudaError> {
        let (half, cosines, sines) = rope.parts();
        Ok(DeviceRope { cosines: self.upload(cosines)?, sines: self.upload(sines)?, half })
    }

    /// Turns `x` (`[tokens, heads * head_width]`) in place, row `t` by position `first + t`, as [`RopeTable::apply`].
    pub fn rotate(
        &self,
        x: &mut ViewMut<'_, f32>,
        rope: &DeviceRope,
        heads: usize,
        head_width: usize,
        first: usize,
    ) -> Result<(), CudaError> {
        let tokens = x.len() / (heads * head_width);
        let inside = 2 * rope.half <= head_width && (first + tokens) * rope.half <= rope.cosines.len();
        assert!(inside && x.len() == tokens * heads * head_width, "shapes of x and the table");
        if tokens == 0 {
            return Ok(());
        }
        let kernel = self.kernel(&ROPE, "rotate")?;
        let blocks = [(heads * rope.half).div_ceil(THREADS as usize), tokens.min(MOST_BLOCKS)];
        let [tokens, heads, head_width, half, first] =
            [tokens, heads, head_width, rope.half, first].map(|count| count as u32);
        let mut launch = self.stream().launch_builder(&kernel);
        launch.arg(x).arg(&rope.cosines).arg(&rope.sines);
        launch.arg(&tokens).arg(&heads).arg(&head_width).arg(&half).arg(&first);
        // SAFETY: arguments as the kernel declares them; positions and pairs were checked to be inside table and heads.
        unsafe { launch.launch(grid(blocks, [THREADS, 1])) }?;
        Ok(())
    }

    /// `gate[i] = act(gate[i]) * up[i]`, as [`crate::activation::gated`].
    pub fn gated(&self, activation: Activation, gate: &mut Buffer<f32>, up: &Buffer<f32>) -> Result<(), CudaError> {
        assert_eq!(gate.len(), up.len(), "shapes of gate and up");
        if up.is_empty() {
            return Ok(());
        }
        let kernel = self.kernel(&ACTIVATION, "gated")?;
        let (count, gelu) = (up.len() as u64, u32::from(activation == Activation::GeluTanh));
        let blocks = up.len().div_ceil(THREADS as usize).min(MOST_BLOCKS);
        let mut launch = self.stream().launch_builder(&kernel);
        launch.arg(gate).arg(up).arg(&count).arg(&gelu);
        // SAFETY: arguments as the kernel declares them; both have `count` numbers, and what lies beyond is left alone.
        unsafe { launch.launch(grid([blocks, 1], [THREADS, 1])) }?;
        Ok(())
    }

    /// Causal attention as [`Attention::causal`]: `q` and `out` are `[queries, heads * head_width]`, `k` and `v` `[tokens,
    /// kv_heads * head_width]`, the queries those of the last tokens.
    ///
    /// # Errors
    /// A head wider than [`MOST_HEAD_WIDTH`].
    pub fn attend(
        &self,
        attention: &Attention,
        [q, k, v]: [&View<'_, f32>; 3],
        out: &mut ViewMut<'_, f32>,
    ) -> Result<(), CudaError> {
        let &Attention { heads, kv_heads, head_width, scale, window } = attention;
        if head_width > MOST_HEAD_WIDTH || heads > MOST_BLOCKS {
            let what =
                format!("{heads} heads of width {head_width}: at most {MOST_HEAD_WIDTH} numbers wide are possible");
            return Err(CudaError::Shape { what });
        }
        let (queries, tokens) = (q.len() / (heads * head_width), k.len() / (kv_heads * head_width));
        let sizes = (queries * heads * head_width, tokens * kv_heads * head_width, k.len(), q.len());
        assert_eq!((q.len(), k.len(), v.len(), out.len()), sizes, "shapes of q, k, v and out");
        assert!(queries <= tokens && heads.is_multiple_of(kv_heads), "{queries} queries of {tokens} tokens");
        if queries == 0 {
            return Ok(());
        }
        let kernel = self.kernel(&ATTENTION, "attend")?;
        let [query_count, tokens, head_count, kv_heads, width] =
            [queries, tokens, heads, kv_heads, head_width].map(|count| count as u32);
        let window = window.map_or(u32::MAX, |window| u32::try_from(window).unwrap_or(u32::MAX));
        let shape = Shape { queries: query_count, tokens, heads: head_count, kv_heads, width, window, scale };
        let mut launch = self.stream().launch_builder(&kernel);
        launch.arg(q).arg(k).arg(v).arg(&shape).arg(out);
        // SAFETY: arguments as the kernel declares them; all sizes were checked above, a head fits the kernel's tiles, and
        // queries and keys beyond the last are left alone.
        unsafe { launch.launch(grid([queries.div_ceil(QUERIES), heads], [ATTENTION_THREADS, 1])) }?;
        Ok(())
    }
}
