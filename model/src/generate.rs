//! Greedy generation: the likeliest token after another, many sequences at once.
//!
//! The whole model is held in float32. Each thread of the current pool works on its own sequences, up to `batch` (at most 16) at a
//! time, one token of each in a step; a sequence that ends makes room for the next. Products of a step's few rows treat
//! each row by itself, so the tokens of a sequence depend on its prompt alone. Of equal logits the smallest id wins.

use crate::{
    Block, Checkpoint, ModelError,
    decoder::{Branching, Head, KeyValues},
};
use rayon::prelude::*;
use std::{
    mem,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

/// A prompt to go on from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The tokens given; at least one.
    pub prompt: Vec<u32>,
    /// The most tokens to add.
    pub longest: usize,
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
    blocks: Vec<Block>,
    head: Head,
}

/// A sequence being generated.
struct Sequence {
    request: usize,
    tokens: Vec<u32>,
    /// For each block.
    caches: Vec<KeyValues>,
}

impl<'a> Generator<'a> {
    /// Brings all weights in.
    pub fn new(checkpoint: &'a Checkpoint) -> Result<Self, ModelError> {
        let blocks = (0..checkpoint.config.layers.len()).map(|index| checkpoint.block(index));
        Ok(Self { checkpoint, blocks: blocks.collect::<Result<_, _>>()?, head: checkpoint.head()? })
    }

    /// What the model adds to each prompt, in their order; long prompts are begun first. `finished` is called as each
    /// sequence ends, from whichever thread.
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
        let (next, finished) = (AtomicUsize::new(0), Mutex::new(finished));
        let take = || order.get(next.fetch_add(1, Ordering::Relaxed)).copied();
        let work = |_| {
            let mut results = Vec::new();
            let mut active: Vec<Sequence> = Vec::new();
            loop {
                while active.len() < batch.clamp(1, kernels::gemm::FEW_ROWS)
                    && let Some(request) = take()
                {
                    active.push(self.begin(request, &requests[request])?);
                }
                for at in (0..active.len()).rev() {
                    if let Some(ending) = self.ending(&mut active[at], requests, enough) {
                        let Sequence { request, tokens, .. } = active.swap_remove(at);
                        let generated = Generated { tokens, ending };
                        finished.lock().unwrap_or_else(PoisonError::into_inner)(request, &generated);
                        results.push((request, generated));
                    }
                }
                if active.is_empty() {
                    if next.load(Ordering::Relaxed) >= order.len() {
                        return Ok(results);
                    }
                    continue;
                }
                self.step(&mut active)?;
            }
        };
        let threads = (0..rayon::current_num_threads()).into_par_iter().with_max_len(1);
        let mut results: Vec<(usize, Generated)> =
            threads.map(work).collect::<Result<Vec<_>, ModelError>>()?.into_iter().flatten().collect();
        results.sort_by_key(|(request, _)| *request);
        Ok(results.into_iter().map(|(_, generated)| generated).collect())
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
    fn begin(&self, request: usize, Request { prompt, .. }: &Request) -> Result<Sequence, ModelError> {
        let (branching, mut caches) = (Branching::plain(prompt.len()), Vec::with_capacity(self.blocks.len()));
        let mut hidden = self.checkpoint.embed(prompt)?;
        for block in &self.blocks {
            let keys;
            (hidden, keys) = block.forward_branching(hidden, &branching, &KeyValues::default());
            caches.push(keys);
        }
        let last = hidden.len() - self.checkpoint.config.hidden_size;
        let token = self.likeliest(&self.head.logits(&hidden[last..]))?;
        Ok(Sequence { request, tokens: vec![token], caches })
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
        for (sequence, logits) in active.iter_mut().zip(logits.chunks_exact(self.checkpoint.config.vocabulary)) {
            sequence.tokens.push(self.likeliest(logits)?);
        }
        Ok(())
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

    /// The id of the largest logit, the smallest of equals.
    fn likeliest(&self, logits: &[f32]) -> Result<u32, ModelError> {
        let best = (0..logits.len()).reduce(|best, token| if logits[token] > logits[best] { token } else { best });
        match best.filter(|best| logits[*best].is_finite()) {
            Some(best) => Ok(best as u32),
            None => Err(ModelError::Reference {
                reference: self.checkpoint.reference.clone(),
                what: "its logits are not finite numbers: the checkpoint is damaged".to_owned(),
            }),
        }
    }
}
