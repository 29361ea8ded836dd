//! How far a model's next-token distributions are from its baseline's, on the same windows.
//!
//! ```text
//! KL(p || q) = Σ_v p(v) (log p(v) − log q(v))       p the baseline's softmax, q the model's, at every target, in nats
//! same top   = share of targets where both prefer the same token
//! Δp         = q(t) − p(t) of the target token t;   its mean, and RMS Δp = sqrt(mean Δp²)
//! correlation of log-likelihoods = cov(log p(t), log q(t)) / (sd · sd)       over targets
//! ```
//!
//! Both models run side by side, one block of either in memory at a time; the heads are multiplied in tiles of the
//! vocabulary, so neither model's distributions are ever written. Products are float32, sums float64: a model against
//! itself gives exactly zero. Tokens of a window correlate, so errors come from the block bootstrap over windows.

use crate::{
    EvaluateError, Prepared, on_device,
    score::{self, States, Step},
    statistics::{self, Block, Bootstrap, Estimate},
    window::Window,
};
use kernels::divergence::Divergence;
use model::{
    Checkpoint,
    decoder::{Compared, Head},
};
use rayon::prelude::*;
use serde::Serialize;
use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

/// What a joint run gives.
pub struct Joint {
    /// The divergence at every target of every window.
    pub targets: Vec<Vec<Divergence>>,
    /// Wall time of the model's layers and half of the heads'.
    pub model_seconds: f64,
    /// Wall time of the baseline's layers and half of the heads'.
    pub baseline_seconds: f64,
}

impl Joint {
    /// Negative log-likelihoods of the model, as [`score::score`] gives them.
    pub fn model_scores(&self) -> Vec<Vec<f32>> {
        self.scores(|at| at.model)
    }

    /// Negative log-likelihoods of the baseline.
    pub fn baseline_scores(&self) -> Vec<Vec<f32>> {
        self.scores(|at| at.baseline)
    }

    fn scores(&self, which: impl Fn(&Divergence) -> f64) -> Vec<Vec<f32>> {
        self.targets.iter().map(|window| window.iter().map(|at| which(at) as f32).collect()).collect()
    }
}

/// The number of [`Step`]s that [`run`] will report.
pub fn steps(baseline: &Checkpoint, model: &Checkpoint, windows: &[Window], memory: u64) -> u64 {
    let batches = score::batches(windows, width(baseline, model), memory).len();
    (batches * (layers(baseline, model) + 1)) as u64
}

fn width(baseline: &Checkpoint, model: &Checkpoint) -> usize {
    baseline.config.hidden_size + model.config.hidden_size
}

fn layers(baseline: &Checkpoint, model: &Checkpoint) -> usize {
    baseline.config.layers.len() + model.config.layers.len()
}

/// Runs both models over `windows`, which both cut the text into. At most `memory` bytes of hidden states are kept, both
/// models' together.
pub fn run(
    baseline: &Checkpoint,
    model: &Checkpoint,
    windows: &[Window],
    memory: u64,
    progress: &mut dyn FnMut(Step),
) -> Result<Joint, EvaluateError> {
    check_vocabularies(baseline, model)?;
    let (layers, mut targets, mut seconds) = (layers(baseline, model), Vec::new(), [Duration::ZERO; 2]);
    for batch in score::batches(windows, width(baseline, model), memory) {
        let mut report = |layer| progress(Step { layer, layers, first: batch.start, end: batch.end });
        let windows = &windows[batch.clone()];
        let started = Instant::now();
        let theirs = States::of(baseline, windows, &mut report)?;
        seconds[0] += started.elapsed();
        let started = Instant::now();
        let ours = States::of(model, windows, &mut |layer| report(baseline.config.layers.len() + layer))?;
        seconds[1] += started.elapsed();
        let started = Instant::now();
        let heads = [baseline.head()?, model.head()?];
        let theirs = Known { checkpoint: baseline, head: &heads[0], states: &theirs };
        let ours = Known { checkpoint: model, head: &heads[1], states: &ours };
        targets.extend(diverged(&theirs, &ours, windows)?);
        let heads = started.elapsed() / 2;
        seconds = seconds.map(|seconds| seconds + heads);
        report(layers + 1);
    }
    let [baseline_seconds, model_seconds] = seconds.map(|duration| duration.as_secs_f64());
    let joint = Joint { targets, model_seconds, baseline_seconds };
    score::check_finite(baseline, windows, &joint.baseline_scores())?;
    score::check_finite(model, windows, &joint.model_scores())?;
    Ok(joint)
}

fn check_vocabularies(baseline: &Checkpoint, model: &Checkpoint) -> Result<(), EvaluateError> {
    let [theirs, ours] = [baseline, model].map(|checkpoint| checkpoint.config.vocabulary);
    if theirs == ours {
        return Ok(());
    }
    Err(EvaluateError::Vocabularies {
        model: model.reference.clone(),
        baseline: baseline.reference.clone(),
        sizes: [ours, theirs],
    })
}

/// The divergence at every target.
fn diverged(theirs: &Known<'_>, ours: &Known<'_>, windows: &[Window]) -> Result<Vec<Vec<Divergence>>, EvaluateError> {
    if let (Some(device), Some(_)) = (on_device::of(theirs.checkpoint), on_device::of(ours.checkpoint)) {
        return on_device::divergences(device, theirs, ours, windows);
    }
    let together = score::together(windows);
    let parts = windows.par_chunks(together).enumerate().flat_map_iter(|(part, some)| {
        let compared = some.iter().enumerate().map(|(at, window)| {
            let [baseline, model] = [theirs, ours].map(|known| known.states.rows(windows, part * together + at));
            Compared { baseline, model, targets: window.targets() }
        });
        theirs.head.divergence(ours.head, &compared.collect::<Vec<_>>())
    });
    Ok(parts.collect())
}

/// A model with its states on the windows at hand.
pub struct Known<'a> {
    /// The model.
    pub checkpoint: &'a Checkpoint,
    /// Its head.
    pub head: &'a Head,
    /// Its states.
    pub states: &'a States,
}

/// The divergence at every target, from the states of both models on the same windows: the same to the bit as [`run`]
/// gives it, but many models are compared with one walk over the baseline's blocks.
pub fn between(
    theirs: &Known<'_>,
    ours: &Known<'_>,
    windows: &[Window],
) -> Result<Vec<Vec<Divergence>>, EvaluateError> {
    let (baseline, model) = (theirs.checkpoint, ours.checkpoint);
    check_vocabularies(baseline, model)?;
    let targets = diverged(theirs, ours, windows)?;
    let scores = |which: fn(&Divergence) -> f64| -> Vec<Vec<f32>> {
        targets.iter().map(|window| window.iter().map(|at| which(at) as f32).collect()).collect()
    };
    score::check_finite(baseline, windows, &scores(|at| at.baseline))?;
    score::check_finite(model, windows, &scores(|at| at.model))?;
    Ok(targets)
}

/// Divergence figures of one text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DivergenceReport {
    /// Targets, those scored twice counted twice.
    pub tokens: usize,
    /// Mean of KL(baseline || model) in nats.
    pub kl_mean: Estimate,
    /// Quantiles of the same, linear between neighbours.
    pub kl_median: f64,
    /// 90 % lie below.
    pub kl_90: f64,
    /// 95 % lie below.
    pub kl_95: f64,
    /// 99 % lie below.
    pub kl_99: f64,
    /// 99.9 % lie below.
    pub kl_99_9: f64,
    /// The largest.
    pub kl_max: f64,
    /// Share of targets where both models prefer the same token.
    pub same_top: Estimate,
    /// Mean of the target token's probability, model minus baseline.
    pub mean_delta_p: Estimate,
    /// Root mean square of that difference.
    pub rms_delta_p: Estimate,
    /// Correlation of the target's log-likelihoods; none where either does not vary.
    pub correlation: Option<Estimate>,
    /// What stored log-probabilities leave open, where the baseline's were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub truncation: Option<Truncation>,
    /// By the number of tokens in the window before the target.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub by_position: Vec<Class>,
    /// By how often the target's token is a target in this text.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub by_frequency: Vec<Class>,
}

/// What a baseline's stored log-probabilities leave open, means over targets; see [`crate::logits`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Truncation {
    /// Tokens listed of each distribution.
    pub top: usize,
    /// Probability of those that are not.
    pub tail_mass: f64,
    /// The mean divergence may be off by so much, for float16.
    pub rounding_bound: f64,
    /// It may be higher by so much, for what is not listed.
    pub tail_bound: f64,
}

impl std::fmt::Display for Truncation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { top, tail_mass, rounding_bound, tail_bound } = self;
        write!(
            f,
            "from stored log-probabilities of {top} tokens a target, which leave out {:.3} % of the probability: the mean KL \
             is exact but for {rounding_bound:.1e} of rounding to float16, and that of whole distributions is higher by at \
             most {tail_bound:.1e}",
            100.0 * tail_mass
        )
    }
}

/// Targets that have something in common: it lies between two numbers, the second of which is below twice the first.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Class {
    /// The least number.
    pub low: usize,
    /// The largest.
    pub high: usize,
    /// Targets.
    pub tokens: usize,
    /// Mean of KL(baseline || model) in nats over them.
    pub kl_mean: Estimate,
}

/// The divergence of `targets` by the octave of a number of each, `1, 2–3, 4–7, …`; octaves without targets are left out.
fn classes(targets: &[Vec<Divergence>], bootstrap: Bootstrap, number: impl Fn(usize, usize) -> usize) -> Vec<Class> {
    let none = Block { sum: 0.0, weight: 0.0 };
    let mut octaves: BTreeMap<u32, Vec<Block>> = BTreeMap::new();
    for (window, targets_of) in targets.iter().enumerate() {
        for (place, at) in targets_of.iter().enumerate() {
            let octave = number(window, place).max(1).ilog2();
            let block = &mut octaves.entry(octave).or_insert_with(|| vec![none; targets.len()])[window];
            block.sum += at.kl;
            block.weight += 1.0;
        }
    }
    let class = |(octave, blocks): (u32, Vec<Block>)| {
        // A draw may hold no window with such a target.
        let draws = bootstrap.ratios(&blocks).map(|draws| draws.into_iter().filter(|draw| draw.is_finite()).collect());
        let draws = draws.filter(|draws: &Vec<f64>| draws.len() > statistics::DRAWS / 2);
        Class {
            low: 1 << octave,
            high: (2 << octave) - 1,
            tokens: blocks.iter().map(|block| block.weight).sum::<f64>() as usize,
            kl_mean: Estimate::new(statistics::ratio(blocks.iter().copied()), draws.as_deref()),
        }
    };
    octaves.into_iter().map(class).collect()
}

/// Sums over a window from which every figure with an error is made.
#[derive(Clone, Copy, Default)]
struct Moments {
    count: f64,
    kl: f64,
    same_top: f64,
    delta: f64,
    delta_squared: f64,
    /// `Σ a, Σ b, Σ a², Σ b², Σ ab` of the two negative log-likelihoods.
    likelihoods: [f64; 5],
}

impl Moments {
    fn of(targets: &[Divergence]) -> Self {
        targets.iter().fold(Self::default(), |sum, at| {
            let (a, b) = (at.baseline, at.model);
            let delta = (-b).exp() - (-a).exp();
            sum.plus(&Self {
                count: 1.0,
                kl: at.kl,
                same_top: f64::from(u8::from(at.same_top)),
                delta,
                delta_squared: delta * delta,
                likelihoods: [a, b, a * a, b * b, a * b],
            })
        })
    }

    fn plus(&self, other: &Self) -> Self {
        Self {
            count: self.count + other.count,
            kl: self.kl + other.kl,
            same_top: self.same_top + other.same_top,
            delta: self.delta + other.delta,
            delta_squared: self.delta_squared + other.delta_squared,
            likelihoods: std::array::from_fn(|at| self.likelihoods[at] + other.likelihoods[at]),
        }
    }

    /// Not-a-number where either side does not vary.
    fn correlation(&self) -> f64 {
        let [a, b, aa, bb, ab] = self.likelihoods.map(|sum| sum / self.count);
        let (variance_a, variance_b) = (aa - a * a, bb - b * b);
        // Rounding of the two differences, relative to what they are differences of.
        let varies = |variance: f64, square: f64| variance > 1e-12 * square;
        if varies(variance_a, aa) && varies(variance_b, bb) {
            ((ab - a * b) / (variance_a * variance_b).sqrt()).clamp(-1.0, 1.0)
        } else {
            f64::NAN
        }
    }
}

impl DivergenceReport {
    /// The figures of `targets`, which holds one list a window.
    pub fn new(prepared: &Prepared, targets: &[Vec<Divergence>], seed: u64) -> Self {
        let bootstrap = Bootstrap { seed, run: prepared.resolved.overlap() };
        let windows = &prepared.windows;
        let mut counts: HashMap<u32, usize> = HashMap::new();
        for token in windows.iter().flat_map(Window::targets) {
            *counts.entry(*token).or_default() += 1;
        }
        Self {
            by_position: classes(targets, bootstrap, |window, place| windows[window].scored.start + place),
            by_frequency: classes(targets, bootstrap, |window, place| counts[&windows[window].targets()[place]]),
            ..Self::of(targets, bootstrap)
        }
    }

    fn of(targets: &[Vec<Divergence>], bootstrap: Bootstrap) -> Self {
        let windows: Vec<Moments> = targets.iter().map(|window| Moments::of(window)).collect();
        let estimate = |figure: fn(&Moments) -> f64| {
            let of = |indices: &mut dyn Iterator<Item = usize>| {
                figure(&indices.fold(Moments::default(), |sum, index| sum.plus(&windows[index])))
            };
            let draws = bootstrap.resample(windows.len(), |indices| of(&mut indices.iter().copied()));
            Estimate::new(of(&mut (0..windows.len())), draws.as_deref())
        };
        let mut kl: Vec<f64> = targets.iter().flatten().map(|at| at.kl).collect();
        kl.sort_by(f64::total_cmp);
        let quantile = |fraction| statistics::quantile_of_sorted(&kl, fraction);
        let correlation = estimate(Moments::correlation);
        Self {
            tokens: kl.len(),
            kl_mean: estimate(|m| m.kl / m.count),
            kl_median: quantile(0.5),
            kl_90: quantile(0.9),
            kl_95: quantile(0.95),
            kl_99: quantile(0.99),
            kl_99_9: quantile(0.999),
            kl_max: quantile(1.0),
            same_top: estimate(|m| m.same_top / m.count),
            mean_delta_p: estimate(|m| m.delta / m.count),
            rms_delta_p: estimate(|m| (m.delta_squared / m.count).sqrt()),
            correlation: (!correlation.value.is_nan()).then_some(correlation),
            truncation: None,
            by_position: Vec::new(),
            by_frequency: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(kl: f64, same_top: bool, p: f64, q: f64) -> Divergence {
        Divergence { kl, same_top, baseline: -p.ln(), model: -q.ln() }
    }

    #[test]
    fn states_give_the_figures_of_a_joint_run_to_the_bit() {
        let (baseline, text) =
            (Checkpoint::open("demo").unwrap(), crate::source::Source::read("demo:prose-heldout", None));
        let changes = crate::protocol::Changes { window: Some(48), stride: None, text: None, max_tokens: Some(480) };
        let protocol = crate::Protocol::named("hf-disjoint").unwrap();
        let resolved = changes.resolve(protocol, baseline.config.max_positions).unwrap();
        let windows = Prepared::new(&baseline, &text.unwrap(), resolved).unwrap().windows;
        let name = "model.norm.weight";
        let norm = baseline.tensors.read(name).unwrap().iter().map(|weight| weight * 1.25).collect();
        let model = baseline.replacing(std::collections::BTreeMap::from([(name.to_owned(), norm)])).unwrap();
        let joint = run(&baseline, &model, &windows, 1 << 16, &mut |_| {}).unwrap();
        let heads = [&baseline, &model].map(|checkpoint| checkpoint.head().unwrap());
        let theirs = States::of(&baseline, &windows, &mut |_| {}).unwrap();
        let theirs = Known { checkpoint: &baseline, head: &heads[0], states: &theirs };
        // Of two texts at once, of which this is the second.
        let states = States::of_each(&model, &[&windows[..2], &windows]).unwrap();
        let ours = Known { checkpoint: &model, head: &heads[1], states: &states[1] };
        assert_eq!(between(&theirs, &ours, &windows).unwrap(), joint.targets);
        let scores = score::score(&model, &windows, 1 << 16, &mut |_| {}).unwrap();
        assert_eq!(states[1].likelihoods(&model, &heads[1], &windows).unwrap(), scores);
        assert_eq!(states[0].likelihoods(&model, &heads[1], &windows[..2]).unwrap(), scores[..2]);
        assert!(joint.targets.iter().flatten().any(|at| at.kl > 1e-4));
    }

    #[test]
    fn figures_are_their_formulas() {
        let targets = vec![
            vec![at(0.1, true, 0.5, 0.4), at(0.3, false, 0.2, 0.4)],
            vec![at(0.0, true, 0.9, 0.9), at(0.2, true, 0.25, 0.05)],
        ];
        let report = DivergenceReport::of(&targets, Bootstrap { seed: 0, run: 1 });
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        close(report.kl_mean.value, 0.15);
        close(report.kl_median, 0.15);
        close(report.kl_90, 0.2 + 0.7 * 0.1);
        close(report.kl_max, 0.3);
        close(report.same_top.value, 0.75);
        close(report.mean_delta_p.value, (-0.1 + 0.2 - 0.2) / 4.0);
        close(report.rms_delta_p.value, ((0.01 + 0.04 + 0.04) / 4.0_f64).sqrt());
        let (a, b) = ([0.5, 0.2, 0.9, 0.25_f64].map(f64::ln), [0.4, 0.4, 0.9, 0.05_f64].map(f64::ln));
        let mean = |x: [f64; 4]| x.iter().sum::<f64>() / 4.0;
        let covariance =
            |x: [f64; 4], y: [f64; 4]| x.iter().zip(y).map(|(x_i, y_i)| (x_i - mean(x)) * (y_i - mean(y))).sum::<f64>();
        let expected = covariance(a, b) / (covariance(a, a) * covariance(b, b)).sqrt();
        close(report.correlation.unwrap().value, expected);
        // Two blocks: a draw holds both, or one of them twice.
        assert_eq!(report.kl_mean.interval_95.unwrap().map(|end| (end * 1e6).round()), [1e5, 2e5]);
    }

    #[test]
    fn classes_are_octaves_and_hold_every_target_once() {
        let targets: Vec<Vec<Divergence>> =
            (0..5).map(|w| (0..20).map(|i| at(f64::from(w * 20 + i), true, 0.5, 0.5)).collect()).collect();
        let found = classes(&targets, Bootstrap { seed: 0, run: 1 }, |_, place| place + 1);
        let ends: Vec<_> = found.iter().map(|class| (class.low, class.high, class.tokens)).collect();
        assert_eq!(ends, [(1, 1, 5), (2, 3, 10), (4, 7, 20), (8, 15, 40), (16, 31, 25)]);
        // Place 0 of each window: 0, 20, …, 80.
        assert_eq!(found[0].kl_mean.value, 40.0);
        let [low, high] = found[0].kl_mean.interval_95.unwrap();
        assert!(low < 40.0 && high > 40.0);
        let whole: f64 = found.iter().map(|class| class.kl_mean.value * class.tokens as f64).sum();
        assert!((whole - f64::from((0..100).sum::<i32>())).abs() < 1e-9);
        // A class that only one window in many has gets no interval from the few draws that hold it.
        let lone = classes(
            &targets,
            Bootstrap { seed: 0, run: 1 },
            |window, place| {
                if window == 0 && place == 0 { 1 } else { 2 }
            },
        );
        assert_eq!((lone[0].tokens, lone[0].kl_mean.value), (1, 0.0));
    }

    #[test]
    fn one_window_has_no_error_and_constants_no_correlation() {
        let report = DivergenceReport::of(&[vec![at(0.0, true, 0.5, 0.5); 3]], Bootstrap { seed: 0, run: 1 });
        assert_eq!((report.kl_mean.value, report.kl_mean.interval_95, report.correlation), (0.0, None, None));
        assert_eq!((report.same_top.value, report.rms_delta_p.value), (1.0, 0.0));
    }
}
