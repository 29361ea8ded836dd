//! Log-likelihoods of continuations, with what they share computed once.
//!
//! The choices of an item are token sequences that begin alike. They are cut by the item alone, never by what else happens
//! to be scored, so that an item's figures are the same to the bit in every batch, order and number of threads:
//!
//! ```text
//! prefix    tokens of description and shots: shared with other items, keys and values computed once a batch
//! trunk     what all choices of the item have in common after it: computed once
//! branches  the rest of each choice but its last token, which nothing is predicted from
//! ```
//!
//! Choices of a single token need no branch: all are read off the trunk's last row. As in scoring windows, one block is
//! in memory at a time; keys and values live no longer than their block.

use crate::{
    EvaluateError,
    framing::{self, BosRule},
    task::prompt::Item,
};
use kernels::log_probability::Score;
use model::{
    Block, Checkpoint, ModelError,
    decoder::{Branching, Head, KeyValues},
};
use rayon::prelude::*;
use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

/// A prefix shorter than this is not worth its own pass.
const SHORTEST_PREFIX: usize = 16;
/// Tokens that a batch holds at least, memory allowing: fewer, and bringing in the weights takes longer than using them.
const BATCH_TOKENS: usize = 8192;

/// One choice as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Context and continuation.
    pub tokens: Vec<u32>,
    /// Where the continuation begins; at least 1 and below the number of tokens.
    pub start: usize,
}

/// The choices of an item as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The item's id.
    pub id: String,
    /// One a choice.
    pub sequences: Vec<Sequence>,
    /// Tokens of the prefix shared with other items.
    pub prefix: usize,
    /// Whether each choice runs by itself: rope frequencies depend on the length of long sequences.
    pub apart: bool,
    /// Whether tokens were dropped from the left to fit the model.
    pub truncated: bool,
    /// Whether a token spans the place where context and continuation meet.
    pub spanned: bool,
}

/// What a choice scored.
#[derive(Clone, Debug, PartialEq)]
pub struct Likelihood {
    /// Sum over the continuation's tokens, in nats.
    pub log_probability: f64,
    /// Tokens of the continuation.
    pub tokens: usize,
    /// Whether each of its tokens is the most probable one.
    pub greedy: bool,
}

/// How a tokenizer and its special tokens are used; made once for a model.
pub struct Encoder<'a> {
    checkpoint: &'a Checkpoint,
    /// What stands for an empty context: BOS, else EOS.
    stand_in: Option<u32>,
    bos: BosRule,
    /// The text of BOS.
    bos_text: String,
    longest: usize,
    /// Sequences longer than this have rope frequencies of their own.
    ordinary: usize,
    prefixes: HashMap<Arc<str>, Vec<u32>>,
}

impl<'a> Encoder<'a> {
    /// For `checkpoint`, with contexts of at most `longest` tokens.
    pub fn new(checkpoint: &'a Checkpoint, longest: usize) -> Self {
        let config = &checkpoint.config;
        let ordinary = config.ropes.iter().filter_map(|rope| Some(rope.beyond.as_ref()?.positions)).min();
        Self {
            checkpoint,
            stand_in: config.bos_token.or_else(|| config.eos_tokens.first().copied()),
            bos: BosRule::default(),
            bos_text: framing::ends(checkpoint)[0].clone(),
            longest,
            ordinary: ordinary.unwrap_or(usize::MAX),
            prefixes: HashMap::new(),
        }
    }

    /// With another rule for BOS; an error where the model has none to put before a text.
    pub fn with_bos(mut self, bos: BosRule) -> Result<Self, EvaluateError> {
        if bos == BosRule::Always && self.checkpoint.config.bos_token.is_none() {
            let what = "it names no BOS token: `--bos tokenizer` or `--bos never`".to_owned();
            return Err(EvaluateError::Framing { model: self.checkpoint.reference.clone(), what });
        }
        self.bos = bos;
        Ok(self)
    }

    /// What the tokenizer puts before a text, in words.
    pub fn beginning(&self) -> Result<String, EvaluateError> {
        let tokens = self.encode("a")?;
        let plain = model::tokenizer::encode(&self.checkpoint.tokenizer, "a", false)?;
        let added = &tokens[..tokens.len() - plain.len().min(tokens.len())];
        let name = |token: &u32| {
            let text = self.checkpoint.tokenizer.id_to_token(*token).unwrap_or_default();
            format!("token {token} `{text}`")
        };
        Ok(match added {
            [] if self.bos == BosRule::Never => "none: switched off".to_owned(),
            [] => "none: the tokenizer adds none".to_owned(),
            added => {
                let names = added.iter().map(name).collect::<Vec<_>>().join(", ");
                let why = if self.bos == BosRule::Always { "always" } else { "as the tokenizer adds it" };
                format!("{names}, {why}")
            }
        })
    }

    /// `text` with the special tokens that the rule for BOS puts before it, without any behind it. A text that begins with
    /// BOS gets no second one.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, EvaluateError> {
        let begun = !self.bos_text.is_empty() && text.starts_with(&self.bos_text);
        if begun || self.bos != BosRule::Tokenizer {
            let mut tokens = model::tokenizer::encode(&self.checkpoint.tokenizer, text, false)?;
            if let (BosRule::Always, false, Some(bos)) = (self.bos, begun, self.checkpoint.config.bos_token) {
                tokens.insert(0, bos);
            }
            return Ok(tokens);
        }
        let refused = |error: Box<dyn std::error::Error + Send + Sync>| ModelError::Tokenizer(error.to_string());
        let encoding = self.checkpoint.tokenizer.encode(text, true).map_err(refused)?;
        let trailing = encoding.get_special_tokens_mask().iter().rev().take_while(|&&added| added == 1).count();
        let ids = encoding.get_ids();
        // A text that adds nothing of its own has only what stands before it.
        let trailing = if trailing == ids.len() { 0 } else { trailing };
        Ok(ids[..ids.len() - trailing].to_vec())
    }

    /// [`Encoder::request`] of every item, side by side.
    pub fn requests(&mut self, items: &[Item]) -> Result<Vec<Request>, EvaluateError> {
        let prefixes: HashSet<&Arc<str>> = items.iter().map(|item| &item.prefix).collect();
        let encoded = prefixes.into_par_iter().map(|prefix| Ok((Arc::clone(prefix), self.encode(prefix)?)));
        self.prefixes = encoded.collect::<Result<_, EvaluateError>>()?;
        items.par_iter().map(|item| self.request(item)).collect()
    }

    /// Tokenizes the choices of `item`. White space at a context's end goes to the continuation; both are tokenized as one
    /// text, and the continuation begins where its tokens part from those of the context alone, but holds one at least.
    pub fn request(&self, item: &Item) -> Result<Request, EvaluateError> {
        let mut request = Request {
            id: item.id.clone(),
            sequences: Vec::new(),
            prefix: 0,
            apart: false,
            truncated: false,
            spanned: false,
        };
        let mut contexts: HashMap<&str, Vec<u32>> = HashMap::new();
        for pair in &item.pairs {
            let context = pair.context.trim_end();
            let whole = self.encode(&[&*pair.context, &*pair.continuation].concat())?;
            let alone = match contexts.get(context) {
                Some(tokens) => tokens,
                None => contexts.entry(context).or_insert(self.encode(context)?),
            };
            request.spanned |= !whole.starts_with(alone);
            let sequence = self.sequence(item, whole, alone)?;
            let (sequence, truncated) = self.truncate(item, sequence)?;
            request.truncated |= truncated;
            request.sequences.push(sequence);
        }
        let longest = request.sequences.iter().map(|sequence| sequence.tokens.len()).max().unwrap_or(0);
        request.apart = longest > self.ordinary;
        if !request.truncated && !request.apart {
            request.prefix = self.shared_prefix(item, &request.sequences)?;
        }
        Ok(request)
    }

    fn sequence(&self, item: &Item, mut tokens: Vec<u32>, context: &[u32]) -> Result<Sequence, EvaluateError> {
        let mut start = common(&tokens, context);
        if tokens.is_empty() {
            return Err(EvaluateError::Item { item: item.id.clone(), what: "a choice has no tokens".to_owned() });
        }
        if start == 0 {
            let Some(token) = self.stand_in else {
                let what = "its context is empty, and the model names neither BOS nor EOS to stand for it".to_owned();
                return Err(EvaluateError::Item { item: item.id.clone(), what });
            };
            if tokens[0] != token || tokens.len() == 1 {
                tokens.insert(0, token);
            }
            start = 1;
        }
        start = start.min(tokens.len() - 1);
        if start == 0 {
            // One token in all, and it is the context's: something has to stand before it.
            return self.sequence(item, tokens, &[]);
        }
        Ok(Sequence { tokens, start })
    }

    /// Drops tokens on the left so that all but the last fit the model.
    fn truncate(&self, item: &Item, mut sequence: Sequence) -> Result<(Sequence, bool), EvaluateError> {
        let excess = sequence.tokens.len().saturating_sub(self.longest + 1);
        if excess == 0 {
            return Ok((sequence, false));
        }
        if excess >= sequence.start {
            let (count, longest) = (sequence.tokens.len() - sequence.start, self.longest);
            let what = format!("a choice of {count} tokens leaves no room for context in {longest} tokens");
            return Err(EvaluateError::Item { item: item.id.clone(), what });
        }
        sequence.tokens.drain(..excess);
        sequence.start -= excess;
        Ok((sequence, true))
    }

    /// Tokens that every choice has in common with the tokens of description and shots alone.
    fn shared_prefix(&self, item: &Item, sequences: &[Sequence]) -> Result<usize, EvaluateError> {
        if item.prefix.is_empty() {
            return Ok(0);
        }
        let prefix = match self.prefixes.get(&item.prefix) {
            Some(known) => Cow::Borrowed(known),
            None => Cow::Owned(self.encode(&item.prefix)?),
        };
        let shared = sequences.iter().map(|sequence| common(&prefix, &sequence.tokens).min(sequence.start - 1));
        Ok(shared.min().filter(|shared| *shared >= SHORTEST_PREFIX).unwrap_or(0))
    }
}

/// How many tokens two sequences begin with in common.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// A pass: rows that go through the model together.
struct Pass {
    /// Which choice of which request each sequence is.
    choices: Vec<(usize, usize)>,
    /// Index of the prefix in the batch.
    prefix: Option<usize>,
    branching: Branching,
    /// Tokens of trunk and branches.
    tokens: Vec<u32>,
    /// For each row that something is predicted from: row, and (index into `choices`, target).
    targets: BTreeMap<usize, Vec<(usize, u32)>>,
}

impl Pass {
    /// The pass of `sequences`, whose first `before` tokens are a prefix computed elsewhere.
    fn new(choices: Vec<(usize, usize)>, sequences: &[&Sequence], before: usize, prefix: Option<usize>) -> Self {
        let fed: Vec<&[u32]> = sequences.iter().map(|s| &s.tokens[before..s.tokens.len() - 1]).collect();
        let trunk = fed.iter().map(|other| common(fed[0], other)).min().unwrap_or(0);
        let branches = fed.iter().map(|fed| fed.len() - trunk).collect();
        let tokens = fed[0][..trunk].iter().chain(fed.iter().flat_map(|fed| &fed[trunk..])).copied().collect();
        let mut targets: BTreeMap<usize, Vec<(usize, u32)>> = BTreeMap::new();
        let mut first = trunk;
        for (index, (sequence, fed)) in sequences.iter().zip(&fed).enumerate() {
            for position in sequence.start..sequence.tokens.len() {
                let at = position - 1 - before;
                let row = if at < trunk { at } else { first + at - trunk };
                targets.entry(row).or_default().push((index, sequence.tokens[position]));
            }
            first += fed.len() - trunk;
        }
        Self { choices, prefix, branching: Branching { before, trunk, branches }, tokens, targets }
    }
}

/// Requests that go through the model together, and the prefixes they share.
struct Batch {
    prefixes: Vec<Vec<u32>>,
    passes: Vec<Pass>,
    /// Requests in it.
    requests: usize,
    /// Tokens of all of it.
    tokens: usize,
}

/// Cuts `requests` into batches of consecutive ones.
fn batches(requests: &[Request], largest: usize) -> Vec<Batch> {
    let mut batches: Vec<Batch> = Vec::new();
    let mut known: HashMap<&[u32], usize> = HashMap::new();
    for (index, request) in requests.iter().enumerate() {
        if batches.last().is_none_or(|batch| batch.tokens >= largest) {
            batches.push(Batch { prefixes: Vec::new(), passes: Vec::new(), requests: 0, tokens: 0 });
            known.clear();
        }
        let batch = batches.last_mut().expect("one was just pushed");
        batch.requests += 1;
        let prefix = (request.prefix > 0).then(|| {
            let tokens = &request.sequences[0].tokens[..request.prefix];
            *known.entry(tokens).or_insert_with(|| {
                batch.prefixes.push(tokens.to_vec());
                batch.tokens += tokens.len();
                batch.prefixes.len() - 1
            })
        });
        let choices: Vec<(usize, usize)> = (0..request.sequences.len()).map(|choice| (index, choice)).collect();
        let groups: Vec<Vec<(usize, usize)>> =
            if request.apart { choices.into_iter().map(|choice| vec![choice]).collect() } else { vec![choices] };
        for choices in groups {
            let sequences: Vec<&Sequence> = choices.iter().map(|(_, choice)| &request.sequences[*choice]).collect();
            let pass = Pass::new(choices, &sequences, request.prefix, prefix);
            batch.tokens += pass.tokens.len();
            batch.passes.push(pass);
        }
    }
    batches
}

/// What happened in scoring.
pub enum Step<'a> {
    /// A block, or the head, was applied to a batch: (blocks applied, blocks of the model).
    Layer(usize, usize),
    /// These requests, the next ones, are scored.
    Scored(&'a [Vec<Likelihood>]),
}

/// The number of [`Step::Layer`]s that [`score`] will report.
pub fn steps(checkpoint: &Checkpoint, requests: &[Request], memory: u64) -> u64 {
    (batches(requests, batch_tokens(checkpoint, memory)).len() * (checkpoint.config.layers.len() + 1)) as u64
}

fn batch_tokens(checkpoint: &Checkpoint, memory: u64) -> usize {
    let wanted = BATCH_TOKENS.max(2048 * rayon::current_num_threads());
    wanted.min((memory / (checkpoint.config.hidden_size * size_of::<f32>()) as u64) as usize)
}

/// The likelihood of each choice of each request. At most about `memory` bytes of hidden states are kept.
pub fn score(
    checkpoint: &Checkpoint,
    requests: &[Request],
    memory: u64,
    progress: &mut dyn FnMut(Step<'_>),
) -> Result<Vec<Vec<Likelihood>>, EvaluateError> {
    let mut scored: Vec<Vec<Likelihood>> = Vec::with_capacity(requests.len());
    for batch in batches(requests, batch_tokens(checkpoint, memory)) {
        let first = scored.len();
        let hidden = forward(checkpoint, &batch, progress)?;
        let head = checkpoint.head()?;
        let results: Vec<Vec<Likelihood>> = batch
            .passes
            .par_iter()
            .zip(&hidden)
            .with_max_len(1)
            .map(|(pass, hidden)| read_off(&head, pass, hidden))
            .collect();
        scored.resize_with(first + batch.requests, Vec::new);
        for (pass, results) in batch.passes.iter().zip(results) {
            for ((request, _), likelihood) in pass.choices.iter().zip(results) {
                if !likelihood.log_probability.is_finite() {
                    let what = format!("{}: a log-likelihood is {}", checkpoint.reference, likelihood.log_probability);
                    return Err(EvaluateError::Item { item: requests[*request].id.clone(), what });
                }
                scored[*request].push(likelihood);
            }
        }
        let layers = checkpoint.config.layers.len();
        progress(Step::Layer(layers + 1, layers));
        progress(Step::Scored(&scored[first..]));
    }
    Ok(scored)
}

/// Hidden states of each pass after the last block.
fn forward(
    checkpoint: &Checkpoint,
    batch: &Batch,
    progress: &mut dyn FnMut(Step<'_>),
) -> Result<Vec<Vec<f32>>, ModelError> {
    let embed = |tokens: &Vec<u32>| checkpoint.embed(tokens);
    let mut prefixes = batch.prefixes.par_iter().map(embed).collect::<Result<Vec<_>, _>>()?;
    let mut hidden = batch.passes.par_iter().map(|pass| embed(&pass.tokens)).collect::<Result<Vec<_>, _>>()?;
    let layers = checkpoint.config.layers.len();
    for index in 0..layers {
        let block = checkpoint.block(index)?;
        let known: Vec<(Vec<f32>, KeyValues)> =
            prefixes.into_par_iter().with_max_len(1).map(|hidden| plain(&block, hidden, checkpoint)).collect();
        let nothing = KeyValues::default();
        hidden = (hidden.into_par_iter().zip(&batch.passes))
            .with_max_len(1)
            .map(|(hidden, pass)| {
                let before = pass.prefix.map_or(&nothing, |prefix| &known[prefix].1);
                block.forward_branching(hidden, &pass.branching, before).0
            })
            .collect();
        prefixes = known.into_iter().map(|(hidden, _)| hidden).collect();
        progress(Step::Layer(index + 1, layers));
    }
    Ok(hidden)
}

fn plain(block: &Block, hidden: Vec<f32>, checkpoint: &Checkpoint) -> (Vec<f32>, KeyValues) {
    let tokens = hidden.len() / checkpoint.config.hidden_size;
    block.forward_branching(hidden, &Branching::plain(tokens), &KeyValues::default())
}

/// The likelihoods of a pass's choices from its hidden states.
fn read_off(head: &Head, pass: &Pass, hidden: &[f32]) -> Vec<Likelihood> {
    let width = head.config.hidden_size;
    let rows: Vec<f32> = pass.targets.keys().flat_map(|row| &hidden[row * width..][..width]).copied().collect();
    let targets: Vec<Vec<u32>> =
        pass.targets.values().map(|targets| targets.iter().map(|(_, token)| *token).collect()).collect();
    let targets: Vec<&[u32]> = targets.iter().map(Vec::as_slice).collect();
    let scores = head.scores(&rows, &targets);
    let none = Likelihood { log_probability: 0.0, tokens: 0, greedy: true };
    let mut likelihoods = vec![none; pass.choices.len()];
    for (targets, scores) in pass.targets.values().zip(scores) {
        for ((choice, _), Score { log_probability, greedy }) in targets.iter().zip(scores) {
            let likelihood = &mut likelihoods[*choice];
            likelihood.log_probability += f64::from(log_probability);
            likelihood.tokens += 1;
            likelihood.greedy &= greedy;
        }
    }
    likelihoods
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(tokens: &[u32], start: usize) -> Sequence {
        Sequence { tokens: tokens.to_vec(), start }
    }

    fn pass(sequences: &[Sequence], before: usize) -> Pass {
        let choices = (0..sequences.len()).map(|choice| (0, choice)).collect();
        Pass::new(choices, &sequences.iter().collect::<Vec<_>>(), before, None)
    }

    #[test]
    fn single_tokens_are_read_off_one_row() {
        let pass = pass(&[sequence(&[1, 2, 3, 7], 3), sequence(&[1, 2, 3, 8], 3)], 1);
        assert_eq!(pass.branching, Branching { before: 1, trunk: 2, branches: vec![0, 0] });
        assert_eq!((pass.tokens, pass.targets), (vec![2, 3], BTreeMap::from([(1, vec![(0, 7), (1, 8)])])));
    }

    #[test]
    fn branches_begin_where_choices_part() {
        // Both begin with 5; the first goes on for three tokens, the second for two.
        let pass = pass(&[sequence(&[1, 2, 5, 6, 7, 9], 2), sequence(&[1, 2, 5, 8, 4], 2)], 0);
        assert_eq!(pass.branching, Branching { before: 0, trunk: 3, branches: vec![2, 1] });
        assert_eq!(pass.tokens, [1, 2, 5, 6, 7, 8]);
        let expected = [
            (1, vec![(0, 5), (1, 5)]),
            (2, vec![(0, 6), (1, 8)]),
            (3, vec![(0, 7)]),
            (4, vec![(0, 9)]),
            (5, vec![(1, 4)]),
        ];
        assert_eq!(pass.targets, BTreeMap::from(expected));
    }

    #[test]
    fn contexts_may_differ() {
        let pass = pass(&[sequence(&[1, 2, 7, 8], 2), sequence(&[1, 3, 4, 7, 8], 3)], 0);
        assert_eq!(pass.branching, Branching { before: 0, trunk: 1, branches: vec![2, 3] });
        assert_eq!(pass.tokens, [1, 2, 7, 3, 4, 7]);
        let expected = [(1, vec![(0, 7)]), (2, vec![(0, 8)]), (4, vec![(1, 7)]), (5, vec![(1, 8)])];
        assert_eq!(pass.targets, BTreeMap::from(expected));
    }

    #[test]
    fn batches_share_prefixes_and_hold_a_request_at_least() {
        let request = |prefix: &[u32], rest: u32| Request {
            id: String::new(),
            sequences: vec![sequence(&[prefix, &[rest, 1]].concat(), prefix.len() + 1)],
            prefix: prefix.len(),
            apart: false,
            truncated: false,
            spanned: false,
        };
        let (a, b) = ([1; 20], [2; 30]);
        let requests = [request(&a, 5), request(&a, 6), request(&b, 7), request(&[], 8)];
        let one = batches(&requests, 1000);
        assert_eq!((one.len(), one[0].prefixes.len(), one[0].tokens), (1, 2, 20 + 30 + 4));
        assert_eq!(one[0].passes.iter().map(|pass| pass.prefix).collect::<Vec<_>>(), [Some(0), Some(0), Some(1), None]);
        let each = batches(&requests, 0);
        assert_eq!(each.iter().map(|batch| batch.tokens).collect::<Vec<_>>(), [21, 21, 31, 1]);
    }
}
