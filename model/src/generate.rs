//! Generation: the likeliest token after another, or drawn ones, many sequences at once.
//!
//! The whole model is held as it is stored, packed weights packed. Up to `batch` (at most [`FEW_ROWS`]) sequences are worked
//! on at a time, one token of each in a step, so that weights are brought to float32 once for all of them; the threads of the
//! current pool share a step's outputs among them. A sequence that ends makes room for the next. Products of a step's few
//! rows treat each row by itself, so the tokens of a sequence depend on its prompt (and seed) alone. Of equal logits the
//! smallest id wins.
//!
//! Drawn tokens follow `p(v) ∝ exp(logit(v) / temperature)`, cut to the smallest set of likeliest tokens whose
//! probability reaches `top_p`. Each sequence has a generator of its own, so that neighbours draw nothing from it.

use crate::{
    Block, Checkpoint, ModelError,
    decoder::{Branching, Head, KeyValues},
};
use kernels::{few_rows::FEW_ROWS, stored::StoredMatrix};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use std::{collections::VecDeque, mem};

/// Memory for the keys and values of the sequences that are worked on together.
const MEMORY: usize = 4 << 30;

/// How tokens are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// What logits are divided by; above 0.
    pub temperature: f64,
    /// Probability that the likeliest tokens must have together; 1 keeps all.
    pub top_p: f64,
    /// The sequence's own.
    pub seed: u64,
}

/// A prompt to go on from.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The tokens given; at least one.
    pub prompt: Vec<u32>,
    /// The most tokens to add.
    pub longest: usize,
    /// How tokens are drawn; the likeliest are taken without.
    pub sampling: Option<Sampling>,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The model gave one of its end tokens, which is not among the tokens.
    EndToken,
    /// The caller had what it wanted.
    Stopped,
    /// As long as was asked for, or as the model's longest sequence.
    Longest,
}

/// What was added to a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// The tokens.
    pub tokens: Vec<u32>,
    /// Why there are no more.
    pub ending: Ending,
}

/// What the caller says to a sequence that has grown, given the request's number and all tokens added: whether it is
/// enough.
pub type Enough<'a> = dyn Fn(usize, &[u32]) -> bool + Sync + 'a;

/// A model ready to generate.
pub struct Generator<'a> {
    checkpoint: &'a Checkpoint,
    blocks: Vec<Block<StoredMatrix>>,
    head: Head<StoredMatrix>,
}

/// A sequence being generated.
struct Sequence {
    request: usize,
    tokens: Vec<u32>,
    chooser: Chooser,
    /// For each block.
    caches: Vec<KeyValues>,
}

impl<'a> Generator<'a> {
    /// Brings all weights in.
    pub fn new(checkpoint: &'a Checkpoint) -> Result<Self, ModelError> {
        let blocks = (0..checkpoint.config.layers.len()).map(|index| checkpoint.stored_block(index));
        Ok(Self { checkpoint, blocks: blocks.collect::<Result<_, _>>()?, head: checkpoint.stored_head()? })
    }

    /// As many sequences as multiply well together and as have room in 4 GiB, each as long as it may get; at least one.
    pub fn batch(&self, requests: &[Request]) -> usize {
        let config = &self.checkpoint.config;
        let token = config.layers.len() * 2 * config.kv_heads * config.head_width * size_of::<f32>();
        let longest = requests.iter().map(|request| request.prompt.len().saturating_add(request.longest)).max();
        let sequence = longest.unwrap_or(0).min(config.max_positions) * token;
        (MEMORY / sequence.max(1)).clamp(1, FEW_ROWS)
    }

    /// What the model adds to each prompt, in their order; long prompts are begun first. `finished` is called as each
    /// sequence ends.
    pub fn generate(
        &self,
        requests: &[Request],
        batch: usize,
        enough: &Enough<'_>,
        finished: &mut (dyn FnMut(usize, &Generated) + Send),
    ) -> Result<Vec<Generated>, ModelError> {
        requests.iter().try_for_each(|request| self.check(request))?;
        let mut order: Vec<usize> = (0..requests.len()).collect();
        order.sort_by_key(|&request| std::cmp::Reverse(requests[request].prompt.len()));
        // On a thread of the pool: from outside each loop over the threads would wait for one of them to wake up.
        rayon::scope(|_| self.run(requests, order.into(), batch.clamp(1, FEW_ROWS), enough, finished))
    }

    /// Steps all sequences that have room until none is `waiting`.
    fn run(
        &self,
        requests: &[Request],
        mut waiting: VecDeque<usize>,
        batch: usize,
        enough: &Enough<'_>,
        finished: &mut (dyn FnMut(usize, &Generated) + Send),
    ) -> Result<Vec<Generated>, ModelError> {
        let mut results = vec![None; requests.len()];
        let mut active: Vec<Sequence> = Vec::new();
        // A prompt is read by one thread: as many at a time as there are threads, but no long wait for the room.
        let at_once = rayon::current_num_threads().min(batch.div_ceil(4));
        while !(waiting.is_empty() && active.is_empty()) {
            let room = (batch - active.len()).min(waiting.len());
            if room >= at_once.min(waiting.len()) {
                let next: Vec<usize> = waiting.drain(..room).collect();
                let begun = next.into_par_iter().with_max_len(1).map(|at| self.begin(at, &requests[at]));
                active.extend(begun.collect::<Result<Vec<_>, _>>()?);
            }
            let endings: Vec<Option<Ending>> =
                active.par_iter_mut().map(|sequence| self.ending(sequence, requests, enough)).collect();
            for (at, ending) in endings.into_iter().enumerate().rev() {
                let Some(ending) = ending else { continue };
                let Sequence { request, tokens, .. } = active.swap_remove(at);
                let generated = Generated { tokens, ending };
                finished(request, &generated);
                results[request] = Some(generated);
            }
            if !active.is_empty() {
                self.step(&mut active)?;
            }
        }
        Ok(results.into_iter().flatten().collect())
    }

    fn check(&self, request: &Request) -> Result<(), ModelError> {
        let (tokens, longest) = (request.prompt.len(), self.checkpoint.config.max_positions);
        if tokens == 0 || tokens > longest {
            let what = format!("a prompt has {tokens} tokens; the model takes 1 to {longest}");
            return Err(ModelError::Reference { reference: self.checkpoint.reference.clone(), what });
        }
        Ok(())
    }

    /// The prompt in one pass, and the first token.
    fn begin(&self, request: usize, Request { prompt, sampling, .. }: &Request) -> Result<Sequence, ModelError> {
        let (branching, mut caches) = (Branching::plain(prompt.len()), Vec::with_capacity(self.blocks.len()));
        let mut hidden = self.checkpoint.embed(prompt)?;
        for block in &self.blocks {
            let keys;
            (hidden, keys) = block.forward_branching(hidden, &branching, &KeyValues::default());
            caches.push(keys);
        }
        let last = hidden.len() - self.checkpoint.config.hidden_size;
        let mut chooser = Chooser::new(*sampling);
        let token = self.choose(&mut chooser, &self.head.logits(&hidden[last..]))?;
        Ok(Sequence { request, tokens: vec![token], chooser, caches })
    }

    /// One more token for each of `active`.
    fn step(&self, active: &mut [Sequence]) -> Result<(), ModelError> {
        let last: Vec<u32> = active.iter().filter_map(|sequence| sequence.tokens.last().copied()).collect();
        let mut hidden = self.checkpoint.embed(&last)?;
        for (index, block) in self.blocks.iter().enumerate() {
            let mut caches: Vec<&mut KeyValues> =
                active.iter_mut().map(|sequence| &mut sequence.caches[index]).collect();
            hidden = block.step(mem::take(&mut hidden), &mut caches);
        }
        let logits = self.head.logits(&hidden);
        let logits = logits.par_chunks_exact(self.checkpoint.config.vocabulary);
        active.par_iter_mut().zip(logits).try_for_each(|(sequence, logits)| {
            sequence.tokens.push(self.choose(&mut sequence.chooser, logits)?);
            Ok(())
        })
    }

    /// Why `sequence` ends after its latest token, if it does.
    fn ending(&self, sequence: &mut Sequence, requests: &[Request], enough: &Enough<'_>) -> Option<Ending> {
        let (config, request) = (&self.checkpoint.config, &requests[sequence.request]);
        if request.longest == 0 {
            sequence.tokens.clear();
            return Some(Ending::Longest);
        }
        if sequence.tokens.last().is_some_and(|token| config.eos_tokens.contains(token)) {
            sequence.tokens.pop();
            return Some(Ending::EndToken);
        }
        let count = sequence.tokens.len();
        let full = count >= request.longest || request.prompt.len() + count >= config.max_positions;
        enough(sequence.request, &sequence.tokens)
            .then_some(Ending::Stopped)
            .or_else(|| full.then_some(Ending::Longest))
    }

    fn choose(&self, chooser: &mut Chooser, logits: &[f32]) -> Result<u32, ModelError> {
        let best = likeliest(logits).filter(|best| logits[*best].is_finite());
        let best = best.ok_or_else(|| ModelError::Reference {
            reference: self.checkpoint.reference.clone(),
            what: "its logits are not finite numbers: the checkpoint is damaged".to_owned(),
        })?;
        Ok(chooser.choose(logits, best) as u32)
    }
}

/// The id of the largest logit, the smallest of equals.
fn likeliest(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).reduce(|best, token| if logits[token] > logits[best] { token } else { best })
}

/// What takes a token by its logit, with what it draws from.
struct Chooser(Option<(Sampling, ChaCha8Rng)>);

impl Chooser {
    fn new(sampling: Option<Sampling>) -> Self {
        Self(sampling.map(|sampling| (sampling, ChaCha8Rng::seed_from_u64(sampling.seed))))
    }

    /// A token, given the likeliest one.
    fn choose(&mut self, logits: &[f32], best: usize) -> usize {
        let Some((sampling, random)) = &mut self.0 else { return best };
        let weight = |token: usize| (f64::from(logits[token] - logits[best]) / sampling.temperature).exp();
        let weights: Vec<f64> = (0..logits.len()).map(weight).collect();
        let kept = nucleus(&weights, sampling.top_p);
        let mut left = random.random::<f64>() * kept.iter().map(|token| weights[*token]).sum::<f64>();
        for token in &kept {
            left -= weights[*token];
            if left < 0.0 {
                return *token;
            }
        }
        // The sum above rounds otherwise than the subtractions: what is left over is the last one's.
        kept.last().copied().unwrap_or(best)
    }
}

/// The fewest tokens of largest `weights` that have the share `top_p` of them, in the order of their ids where all are kept.
fn nucleus(weights: &[f64], top_p: f64) -> Vec<usize> {
    let mut tokens: Vec<usize> = (0..weights.len()).filter(|token| weights[*token] > 0.0).collect();
    if top_p >= 1.0 {
        return tokens;
    }
    let wanted = top_p * tokens.iter().map(|token| weights[*token]).sum::<f64>();
    // A stable sort: of equals the smallest id comes first.
    tokens.sort_by(|a, b| weights[*b].total_cmp(&weights[*a]));
    let mut reached = 0.0;
    let count = tokens.iter().take_while(|token| {
        let short = reached < wanted;
        reached += weights[**token];
        short
    });
    let count = count.count().max(1);
    tokens.truncate(count);
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nucleus_is_the_fewest_tokens_that_reach_the_share() {
        let weights = [0.1, 0.4, 0.0, 0.3, 0.2];
        assert_eq!(nucleus(&weights, 1.0), [0, 1, 3, 4]);
        assert_eq!(nucleus(&weights, 0.39), [1]);
        assert_eq!(nucleus(&weights, 0.65), [1, 3]);
        assert_eq!(nucleus(&weights, 0.0), [1]);
        assert_eq!(nucleus(&[1.0, 1.0], 0.4), [0]);
    }

    #[test]
    fn tokens_are_drawn_as_often_as_their_probability_says() {
        let logits = [0.0_f32, 1.0, f32::NEG_INFINITY, 2.0];
        for temperature in [0.5, 1.0, 3.0] {
            let mut chooser = Chooser::new(Some(Sampling { temperature, top_p: 1.0, seed: 7 }));
            let mut counts = [0.0; 4];
            let draws = 20_000;
            for _ in 0..draws {
                counts[chooser.choose(&logits, 3)] += 1.0;
            }
            let weights = logits.map(|logit| (f64::from(logit) / temperature).exp());
            let total: f64 = weights.iter().sum();
            for (count, weight) in counts.iter().zip(weights) {
                let p = weight / total;
                // Five standard deviations of a binomial count.
                let bound = 5.0 * (f64::from(draws) * p * (1.0 - p)).sqrt();
                assert!((count - f64::from(draws) * p).abs() <= bound, "{temperature}: {counts:?}");
            }
        }
    }

    #[test]
    fn a_cold_draw_is_the_likeliest_token_and_a_seed_decides_the_rest() {
        let logits = [0.5_f32, 0.1, 0.4];
        let draws = |temperature, seed| {
            let mut chooser = Chooser::new(Some(Sampling { temperature, top_p: 0.95, seed }));
            (0..50).map(|_| chooser.choose(&logits, 0)).collect::<Vec<_>>()
        };
        assert_eq!(draws(1e-4, 1), [0; 50]);
        assert_eq!(draws(1.0, 1), draws(1.0, 1));
        assert_ne!(draws(1.0, 1), draws(1.0, 2));
        assert_eq!(Chooser::new(None).choose(&logits, 0), 0);
    }
}
