//! The operations whose autograd chains would be slow, each fused with its derivative.
//!
//! With g the gradient of the loss in the operation's output:
//!
//! * RMS norm: y = w ∘ x·r, r = (mean(x²) + ε)^-½; dx = r·(w∘g) − x·r³·mean(x ∘ w ∘ g), dw = Σ_rows g ∘ x·r.
//! * Rope: pairs (x_i, x_{i+D/2}) turned by the angle t·θ^(−2i/D); the derivative is the turn the other way.
//! * Causal softmax: p = softmax over columns 0..=t of row t, 0 elsewhere; ds = p ∘ (g − Σ p∘g).
//! * Gated unit: y = silu(a)·b; da = g·b·σ(a)(1 + a(1 − σ(a))), db = g·silu(a).
//! * Cross entropy: mean over rows of log Σ exp(z) − z_target; dz = g·(softmax(z) − onehot)/rows.
//!
//! All work on contiguous f32 rows on the host.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};

/// The contiguous values of an operand.
fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("operand is not contiguous"),
    }
}

/// A copy of a tensor's values in row order.
fn copied(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// RMS norm over the last dimension with weights: operands x and w.
pub(crate) struct RmsNorm {
    /// Added to the mean square.
    pub(crate) epsilon: f32,
}

impl RmsNorm {
    fn scale(&self, row: &[f32]) -> f32 {
        let mean_square = row.iter().map(|x| x * x).sum::<f32>() / row.len() as f32;
        1.0 / (mean_square + self.epsilon).sqrt()
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (values(x, xl)?, values(w, wl)?);
        let mut out = Vec::with_capacity(x.len());
        for row in x.chunks_exact(w.len()) {
            let scale = self.scale(row);
            out.extend(row.iter().zip(w).map(|(x, w)| x * scale * w));
        }
        Ok((CpuStorage::F32(out), xl.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (xs, ws, gs) = (copied(x)?, copied(w)?, copied(g)?);
        let width = ws.len();
        let mut dx = Vec::with_capacity(xs.len());
        let mut dw = vec![0f32; width];
        for (row, grad) in xs.chunks_exact(width).zip(gs.chunks_exact(width)) {
            let scale = self.scale(row);
            let mut dot = 0f32;
            for i in 0..width {
                dot += row[i] * ws[i] * grad[i];
                dw[i] += grad[i] * row[i] * scale;
            }
            let pull = dot / width as f32 * scale * scale * scale;
            dx.extend((0..width).map(|i| ws[i] * grad[i] * scale - row[i] * pull));
        }
        let device = x.device();
        Ok((Some(Tensor::from_vec(dx, x.shape(), device)?), Some(Tensor::from_vec(dw, w.shape(), device)?)))
    }
}

/// Rotary position embedding of a (batch, position, head, head size) tensor.
#[derive(Clone)]
pub(crate) struct Rope {
    /// The base θ.
    pub(crate) theta: f32,
    /// Turns the other way: the derivative.
    pub(crate) inverse: bool,
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, positions, heads, size) = layout.shape().dims4()?;
        let half = size / 2;
        let turns: Vec<(f32, f32)> = (0..positions * half)
            .map(|index| {
                let (position, pair) = (index / half, index % half);
                let angle = position as f32 * self.theta.powf(-2.0 * pair as f32 / size as f32);
                (angle.cos(), if self.inverse { -angle.sin() } else { angle.sin() })
            })
            .collect();
        let mut out = values(x, layout)?.to_vec();
        for (row, head) in out.chunks_exact_mut(size).enumerate() {
            let position = row / heads % positions;
            let (low, high) = head.split_at_mut(half);
            for (pair, (cos, sin)) in turns[position * half..][..half].iter().enumerate() {
                let (a, b) = (low[pair], high[pair]);
                low[pair] = a * cos - b * sin;
                high[pair] = b * cos + a * sin;
            }
        }
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let back = Self { inverse: !self.inverse, ..self.clone() };
        Ok(Some(g.contiguous()?.apply_op1_no_bwd(&back)?))
    }
}

/// Softmax over the columns a row may see: row r of the last two dimensions stands at position r mod (columns).
pub(crate) struct CausalSoftmax {
    /// Multiplies the scores first.
    pub(crate) scale: f32,
}

impl CustomOp1 for CausalSoftmax {
    fn name(&self) -> &'static str {
        "causal-softmax"
    }

    fn cpu_fwd(&self, scores: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let columns = layout.dims()[layout.dims().len() - 1];
        let mut out = values(scores, layout)?.to_vec();
        for (row, values) in out.chunks_exact_mut(columns).enumerate() {
            let (seen, hidden) = values.split_at_mut(row % columns + 1);
            let greatest = seen.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut total = 0f32;
            for value in &mut *seen {
                *value = ((*value - greatest) * self.scale).exp();
                total += *value;
            }
            for value in seen {
                *value /= total;
            }
            hidden.fill(0.0);
        }
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, scores: &Tensor, p: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let columns = scores.dim(candle_core::D::Minus1)?;
        let (ps, mut gs) = (copied(p)?, copied(g)?);
        for (p, g) in ps.chunks_exact(columns).zip(gs.chunks_exact_mut(columns)) {
            let dot: f32 = p.iter().zip(&*g).map(|(p, g)| p * g).sum();
            g.iter_mut().zip(p).for_each(|(g, p)| *g = p * (*g - dot) * self.scale);
        }
        Ok(Some(Tensor::from_vec(gs, scores.shape(), scores.device())?))
    }
}

/// silu(a)·b.
pub(crate) struct GatedUnit;

impl CustomOp2 for GatedUnit {
    fn name(&self) -> &'static str {
        "gated-unit"
    }

    fn cpu_fwd(&self, a: &CpuStorage, al: &Layout, b: &CpuStorage, bl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (a, b) = (values(a, al)?, values(b, bl)?);
        let out = a.iter().zip(b).map(|(a, b)| a * sigmoid(*a) * b).collect();
        Ok((CpuStorage::F32(out), al.shape().clone()))
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, _: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (mut da, mut db, gs) = (copied(a)?, copied(b)?, copied(g)?);
        for ((a, b), g) in da.iter_mut().zip(&mut db).zip(gs) {
            let s = sigmoid(*a);
            let silu = *a * s;
            *a = g * *b * s * (1.0 + *a * (1.0 - s));
            *b = g * silu;
        }
        let device = a.device();
        Ok((Some(Tensor::from_vec(da, a.shape(), device)?), Some(Tensor::from_vec(db, b.shape(), device)?)))
    }
}

/// Mean cross entropy of (rows, vocabulary) logits, a scalar.
pub(crate) struct CrossEntropy {
    /// The right token of each row.
    pub(crate) targets: Vec<u32>,
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        let mut total = 0f64;
        for (row, target) in values(logits, layout)?.chunks_exact(width).zip(&self.targets) {
            let greatest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = row.iter().map(|z| (z - greatest).exp()).sum();
            total += f64::from(greatest + sum.ln() - row[*target as usize]);
        }
        Ok((CpuStorage::F32(vec![(total / rows as f64) as f32]), Shape::from(())))
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let (rows, width) = logits.dims2()?;
        let weight = g.to_scalar::<f32>()? / rows as f32;
        let mut dz = copied(logits)?;
        for (row, target) in dz.chunks_exact_mut(width).zip(&self.targets) {
            let greatest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut sum = 0f32;
            for z in &mut *row {
                *z = (*z - greatest).exp();
                sum += *z;
            }
            for z in &mut *row {
                *z *= weight / sum;
            }
            row[*target as usize] -= weight;
        }
        Ok(Some(Tensor::from_vec(dz, logits.shape(), logits.device())?))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn random(dims: &[usize], rng: &mut ChaCha8Rng) -> Tensor {
        let values: Vec<f32> = (0..dims.iter().product()).map(|_| rng.random_range(-1.0..1.0)).collect();
        Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
    }

    /// Σ r ∘ y with fixed random r, so that no derivative hides behind another.
    fn weighted(y: &Tensor, r: &Tensor) -> Tensor {
        (y * r).unwrap().sum_all().unwrap()
    }

    /// Compares the derivative in each entry of `x` with (L(x + h) − L(x − h))/2h, h = 0.01. With third derivatives of
    /// order 1 the quotient is off by h²/6 ≈ 2e-5, rounding adds about 1e-6·Σ|y|/h ≈ 1e-3: hence 3e-3.
    fn assert_derivative(x: &Tensor, loss: impl Fn(&Tensor) -> Tensor) {
        let var = Var::from_tensor(x).unwrap();
        let gradients = loss(var.as_tensor()).backward().unwrap();
        let found = copied(gradients.get(&var).unwrap()).unwrap();
        let values = copied(x).unwrap();
        for (index, found) in found.iter().enumerate() {
            let at = |step: f32| {
                let mut moved = values.clone();
                moved[index] += step;
                let moved = Tensor::from_vec(moved, x.dims(), &Device::Cpu).unwrap();
                f64::from(loss(&moved).to_scalar::<f32>().unwrap())
            };
            let expected = (at(0.01) - at(-0.01)) / 0.02;
            assert!((f64::from(*found) - expected).abs() < 3e-3, "entry {index}: {found}, not {expected}");
        }
    }

    #[test]
    fn rms_norm_has_its_derivatives() {
        let rng = &mut ChaCha8Rng::seed_from_u64(1);
        let (x, w, r) = (random(&[3, 5], rng), random(&[5], rng), random(&[3, 5], rng));
        let norm = |x: &Tensor, w: &Tensor| weighted(&x.apply_op2(w, RmsNorm { epsilon: 1e-5 }).unwrap(), &r);
        assert_derivative(&x, |x| norm(x, &w));
        assert_derivative(&w, |w| norm(&x, w));
    }

    #[test]
    fn rope_has_its_derivative_and_keeps_length() {
        let rng = &mut ChaCha8Rng::seed_from_u64(2);
        let (x, r) = (random(&[2, 3, 2, 4], rng), random(&[2, 3, 2, 4], rng));
        let turn = |x: &Tensor| x.apply_op1(Rope { theta: 10_000.0, inverse: false }).unwrap();
        assert_derivative(&x, |x| weighted(&turn(x), &r));
        let length = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        assert!((length(&x) - length(&turn(&x))).abs() < 1e-4);
    }

    #[test]
    fn causal_softmax_has_its_derivative_and_hides_what_comes_later() {
        let rng = &mut ChaCha8Rng::seed_from_u64(3);
        let (x, r) = (random(&[2, 6, 3], rng), random(&[2, 6, 3], rng));
        let softmax = |x: &Tensor| x.apply_op1(CausalSoftmax { scale: 0.7 }).unwrap();
        assert_derivative(&x, |x| weighted(&softmax(x), &r));
        for (row, p) in copied(&softmax(&x)).unwrap().chunks_exact(3).enumerate() {
            assert!(p[row % 3 + 1..].iter().all(|p| *p == 0.0));
            assert!((p.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn gated_unit_has_its_derivatives() {
        let rng = &mut ChaCha8Rng::seed_from_u64(4);
        let (a, b, r) = (random(&[2, 5], rng), random(&[2, 5], rng), random(&[2, 5], rng));
        let gated = |a: &Tensor, b: &Tensor| weighted(&a.apply_op2(b, GatedUnit).unwrap(), &r);
        assert_derivative(&a, |a| gated(a, &b));
        assert_derivative(&b, |b| gated(&a, b));
    }

    #[test]
    fn cross_entropy_has_its_derivative_and_is_log_of_width_for_equal_logits() {
        let rng = &mut ChaCha8Rng::seed_from_u64(5);
        let entropy = |z: &Tensor| z.apply_op1(CrossEntropy { targets: vec![4, 0, 2] }).unwrap();
        assert_derivative(&random(&[3, 5], rng), entropy);
        let equal = Tensor::zeros((3, 5), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!((entropy(&equal).to_scalar::<f32>().unwrap() - 5f32.ln()).abs() < 1e-6);
    }
}
