//! Every protocol on a toy model against its definition written as plain loops over the full softmax.

#![allow(clippy::unwrap_used)]

mod toy;

use evaluate::{
    EvaluateError, Measurement, Prepared, Protocol, compare,
    protocol::{Changes, PROTOCOLS},
    score::score,
    source::Source,
    stream::Stream,
    text,
};
use model::Checkpoint;
use toy::{POSITIONS, Toy};

/// Sums are taken over float32 likelihoods of at most 1e-6 relative error each; the reference has its own such error.
const TOLERANCE: f64 = 5e-6;

/// `−log p` of every token of `tokens` but the first, by softmax over all logits in float64.
fn reference(checkpoint: &Checkpoint, tokens: &[u32]) -> Vec<f64> {
    let mut hidden = checkpoint.embed(tokens).unwrap();
    for index in 0..checkpoint.config.layers.len() {
        hidden = checkpoint.block(index).unwrap().forward(hidden, &mut |_, _| {});
    }
    let logits = checkpoint.head().unwrap().logits(&hidden);
    let rows = logits.chunks_exact(checkpoint.config.vocabulary);
    let targets = &tokens[1..];
    rows.zip(targets)
        .map(|(row, &target)| {
            let sum: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
            sum.ln() - f64::from(row[target as usize])
        })
        .collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn prepared(checkpoint: &Checkpoint, name: &str, changes: Changes, text: &str) -> Result<Prepared, EvaluateError> {
    let resolved = changes.resolve(Protocol::named(name).unwrap(), checkpoint.config.max_positions)?;
    Prepared::new(checkpoint, &Source::from_text("words", text), resolved)
}

fn measure(checkpoint: &Checkpoint, name: &str, changes: Changes, text: &str) -> Measurement {
    let prepared = prepared(checkpoint, name, changes, text).unwrap();
    let scores = score(checkpoint, &prepared.windows, 1 << 20, &mut |_| {}).unwrap();
    prepared.measure(&scores, 0, 1.0)
}

/// The text's tokens under the protocol's own text handling.
fn tokens(checkpoint: &Checkpoint, name: &str, words: &str) -> Vec<u32> {
    let handling = Protocol::named(name).unwrap().text;
    let document = text::documents(&Source::from_text("words", words), handling).remove(0).text;
    Stream::tokenize(checkpoint, &document, true).unwrap().tokens
}

fn close(ours: f64, expected: f64) {
    assert!((ours / expected - 1.0).abs() < TOLERANCE, "{ours} against {expected}");
}

#[test]
fn gptq_is_the_mean_over_full_windows() {
    let (_folder, checkpoint) = Toy::PLAIN.open();
    let text = toy::text(3 * POSITIONS + 10);
    let tokens = tokens(&checkpoint, "gptq-2048", &text);
    let means: Vec<f64> = tokens.chunks_exact(POSITIONS).map(|window| mean(&reference(&checkpoint, window))).collect();
    let ours = measure(&checkpoint, "gptq-2048", Changes::default(), &text);
    assert_eq!((ours.windows, ours.tokens_scored), (3, 3 * (POSITIONS - 1)));
    close(ours.perplexity, mean(&means).exp());
    close(measure(&checkpoint, "gptq-ctx", Changes::default(), &text).perplexity, ours.perplexity);
}

/// The documentation's loop: labels before the last `trg_len` of a window are masked, and the shift drops the first.
fn hugging_face(checkpoint: &Checkpoint, tokens: &[u32], length: usize, stride: usize) -> Vec<Vec<f64>> {
    let mut windows = Vec::new();
    let mut previous_end = 0;
    for begin in (0..tokens.len()).step_by(stride) {
        let end = (begin + length).min(tokens.len());
        let target_length = end - previous_end;
        let losses = reference(checkpoint, &tokens[begin..end]);
        windows.push(losses[losses.len() - target_length.min(losses.len())..].to_vec());
        previous_end = end;
        if end == tokens.len() {
            break;
        }
    }
    windows
}

#[test]
fn hf_sliding_and_disjoint_are_the_documentations_loop() {
    let (_folder, checkpoint) = Toy::PLAIN.open();
    for count in [2, 31, 32, 33, 64, 65, 150] {
        let text = toy::text(count);
        let tokens = tokens(&checkpoint, "hf-sliding", &text);
        for (window, stride) in [(32, 8), (32, 32), (20, 7)] {
            let expected = hugging_face(&checkpoint, &tokens, window, stride).concat();
            let changes = Changes { window: Some(window), stride: Some(stride), ..Changes::default() };
            let ours = measure(&checkpoint, "hf-sliding", changes, &text);
            assert_eq!((ours.tokens_scored, ours.unique_tokens_scored), (expected.len(), expected.len()));
            close(ours.perplexity, mean(&expected).exp());
            if window == stride {
                let changes = Changes { window: Some(window), ..Changes::default() };
                let disjoint = measure(&checkpoint, "hf-disjoint", changes, &text);
                assert_eq!(disjoint.perplexity, ours.perplexity);
            }
        }
    }
}

/// Windows of 1024 every 512 tokens; 2100 tokens leave a short last window.
#[test]
fn seed_protocols_score_tokens_twice_unless_masked() {
    let (_folder, checkpoint) = Toy { positions: 1024, ..Toy::PLAIN }.open();
    let text = toy::text(2100);
    let tokens = tokens(&checkpoint, "seed-1024-512", &text);
    let starts = [0, 512, 1024, 1536];
    let windows = starts.map(|start| reference(&checkpoint, &tokens[start..tokens.len().min(start + 1024)]));
    let masked = hugging_face(&checkpoint, &tokens, 1024, 512);
    let means = |windows: &[Vec<f64>]| mean(&windows.iter().map(|window| mean(window)).collect::<Vec<_>>()).exp();

    let ours = measure(&checkpoint, "seed-1024-512", Changes::default(), &text);
    assert_eq!((ours.windows, ours.tokens_scored, ours.unique_tokens_scored), (4, 3 * 1023 + 563, 2099));
    close(ours.perplexity, means(&windows));
    let value = |name| measure(&checkpoint, name, Changes::default(), &text).perplexity;
    close(value("seed-1024-512-token-weighted"), mean(&windows.concat()).exp());
    close(value("seed-1024-512-masked"), means(&masked));
    close(value("hf-sliding"), mean(&masked.concat()).exp());
}

#[test]
fn llamacpp_scores_second_halves_behind_a_bos() {
    for bos in [false, true] {
        let (_folder, checkpoint) = Toy { bos, ..Toy::PLAIN }.open();
        let text = toy::text(2 * POSITIONS + 5);
        let tokens = tokens(&checkpoint, "llamacpp-512", &text);
        let mut losses = Vec::new();
        for chunk in tokens.chunks_exact(POSITIONS) {
            let mut chunk = chunk.to_vec();
            if bos {
                chunk[0] = 0;
            }
            losses.extend_from_slice(&reference(&checkpoint, &chunk)[POSITIONS / 2..]);
        }
        let ours = measure(&checkpoint, "llamacpp-512", Changes::default(), &text);
        assert_eq!(ours.tokens_scored, 2 * (POSITIONS / 2 - 1));
        close(ours.perplexity, mean(&losses).exp());
    }
}

#[test]
fn lm_eval_divides_by_the_words_and_bytes_of_the_page_in_the_file() {
    let (_folder, checkpoint) = Toy::PLAIN.open();
    let text = format!(" = w2 = \n{} = w3 = \n{}", toy::text(100), toy::text(20));
    let pages = text::documents(&Source::from_text("t", &text), evaluate::protocol::TextHandling::Pages);
    assert_eq!(pages.len(), 2);
    let (mut sum, mut words, mut bytes) = (0.0, 0, 0);
    for page in &pages {
        let tokens = Stream::tokenize(&checkpoint, &page.text, false).unwrap().tokens;
        let with_prefix: Vec<u32> = std::iter::once(0).chain(tokens).collect();
        let length = with_prefix.len();
        // One window of up to 64 targets, then the rest at the end of the last 65 tokens.
        let first = &with_prefix[..length.min(POSITIONS + 1)];
        sum += reference(&checkpoint, first).iter().sum::<f64>();
        if length > first.len() {
            let rest = length - first.len();
            let last = reference(&checkpoint, &with_prefix[length - POSITIONS - 1..]);
            sum += last[last.len() - rest..].iter().sum::<f64>();
        }
        words += page.words;
        bytes += page.bytes;
    }
    let ours = measure(&checkpoint, "lm-eval-wikitext", Changes::default(), &text);
    close(ours.perplexity, (sum / words as f64).exp());
    close(ours.byte_perplexity.unwrap(), (sum / bytes as f64).exp());
    close(ours.bits_per_byte.unwrap(), sum / bytes as f64 / std::f64::consts::LN_2);
}

#[test]
fn bits_per_byte_are_the_code_length_over_the_bytes_it_encodes() {
    let (_folder, checkpoint) = Toy::PLAIN.open();
    let words = toy::text(40);
    let changes = Changes { window: Some(64), ..Changes::default() };
    let ours = measure(&checkpoint, "hf-disjoint", changes, &words);
    let tokens = tokens(&checkpoint, "hf-disjoint", &words);
    let nats: f64 = reference(&checkpoint, &tokens).iter().sum();
    let joined = text::documents(&Source::from_text("t", &words), Protocol::named("hf-disjoint").unwrap().text);
    // The first word is never a target, and what follows the last word belongs to no token.
    let joined = joined[0].text.trim_end();
    let bytes = joined.len() - joined.find(' ').unwrap();
    assert_eq!(ours.bytes_scored, bytes);
    close(ours.bits_per_byte.unwrap(), nats / bytes as f64 / std::f64::consts::LN_2);
}

#[test]
fn neither_memory_nor_threads_change_a_score() {
    let (_folder, checkpoint) = Toy::PLAIN.open();
    let changes = Changes { window: Some(48), stride: Some(16), ..Changes::default() };
    let prepared = prepared(&checkpoint, "hf-sliding", changes, &toy::text(300)).unwrap();
    let scored = |memory, threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| score(&checkpoint, &prepared.windows, memory, &mut |_| {}).unwrap())
    };
    let expected = scored(1 << 30, 1);
    for (memory, threads) in [(1 << 30, 3), (0, 1), (10_000, 2)] {
        assert_eq!(scored(memory, threads), expected, "{memory} bytes, {threads} threads");
    }
}

#[test]
fn progress_counts_every_layer_of_every_batch() {
    let (_folder, checkpoint) = Toy::PLAIN.open();
    let prepared = prepared(&checkpoint, "gptq-2048", Changes::default(), &toy::text(200)).unwrap();
    let mut steps = Vec::new();
    score(&checkpoint, &prepared.windows, 1, &mut |step| steps.push(step)).unwrap();
    assert_eq!(steps.len() as u64, evaluate::score::steps(&checkpoint, &prepared.windows, 1));
    assert_eq!(steps.last().map(|step| (step.layer, step.layers, step.end)), Some((3, 2, 3)));
}

#[test]
fn a_model_against_itself_is_exactly_equal() {
    let (_folder, checkpoint) = Toy::PLAIN.open();
    let prepared = prepared(&checkpoint, "gptq-2048", Changes::default(), &toy::text(400)).unwrap();
    let blocks = prepared.blocks(&score(&checkpoint, &prepared.windows, 1 << 20, &mut |_| {}).unwrap());
    let comparison = compare::compare(&prepared, &blocks, &blocks, 0, None);
    assert_eq!((comparison.ratio, comparison.log_ratio), (1.0, 0.0));
    assert_eq!(comparison.log_ratio_interval_95, Some([0.0, 0.0]));
    assert_eq!(comparison.ratio_interval_95, Some([1.0, 1.0]));
}

#[test]
fn a_baseline_with_other_tokens_is_refused() {
    let (_ours, checkpoint) = Toy::PLAIN.open();
    let (_theirs, baseline) = Toy { reversed: true, ..Toy::PLAIN }.open();
    let words = toy::text(100);
    let ours = prepared(&checkpoint, "gptq-2048", Changes::default(), &words).unwrap();
    let theirs = prepared(&baseline, "gptq-2048", Changes::default(), &words).unwrap();
    let error = compare::same_tokens(&checkpoint, &ours, &baseline, &theirs).unwrap_err().to_string();
    assert!(error.contains("first difference is at token 0") && error.contains("bits per byte"), "{error}");
    compare::same_tokens(&checkpoint, &ours, &checkpoint, &ours).unwrap();
}

#[test]
fn a_broken_model_is_named_and_not_averaged() {
    let (_folder, checkpoint) = Toy { shift: f32::NAN, ..Toy::PLAIN }.open();
    let prepared = prepared(&checkpoint, "gptq-2048", Changes::default(), &toy::text(100)).unwrap();
    let error = score(&checkpoint, &prepared.windows, 1 << 20, &mut |_| {}).unwrap_err();
    assert!(matches!(error, EvaluateError::NotFinite { window: 0, position: 1, .. }), "{error}");
}

#[test]
fn a_text_too_short_for_a_window_says_how_much_there_is() {
    let (_folder, checkpoint) = Toy::PLAIN.open();
    for protocol in PROTOCOLS {
        let error = prepared(&checkpoint, protocol.name, Changes::default(), "").unwrap_err();
        assert!(matches!(error, EvaluateError::TooShort { .. }), "{}: {error}", protocol.name);
    }
    let changes = Changes { max_tokens: Some(50), ..Changes::default() };
    let error = prepared(&checkpoint, "gptq-2048", changes, &toy::text(500)).unwrap_err().to_string();
    assert!(error.contains("64 tokens") && error.contains("50 tokens") && error.contains("--max-tokens"), "{error}");
}

#[test]
fn the_beginning_is_said_and_scored_as_the_tokenizer_has_it() {
    let words = toy::text(130);
    let (_folder, plain) = Toy::PLAIN.open();
    let without = prepared(&plain, "gptq-2048", Changes::default(), &words).unwrap();
    assert_eq!(without.beginning, "none: the tokenizer adds none");
    let (_folder, with_bos) = Toy { bos: true, ..Toy::PLAIN }.open();
    let with = prepared(&with_bos, "gptq-2048", Changes::default(), &words).unwrap();
    assert_eq!(with.beginning, "token 0 `<s>` before the whole text only");
    assert_eq!(with.windows[0].tokens[0], 0);
    assert_eq!(with.windows[0].tokens[1..], without.windows[0].tokens[..POSITIONS - 1]);
}

#[test]
fn random_slices_are_pythons_and_cut_by_max_tokens() {
    let (_folder, checkpoint) = Toy::PLAIN.open();
    let changes = Changes { max_tokens: Some(5 * POSITIONS), ..Changes::default() };
    let prepared = prepared(&checkpoint, "c4", changes, &toy::text(300)).unwrap();
    assert_eq!(prepared.windows.len(), 5);
    assert!(prepared.windows.iter().all(|window| window.positions().end <= 300));
    // random.seed(0); five times: random.randint(0, 0), random.randint(0, 300 - 64 - 1)
    let starts: Vec<usize> = prepared.windows.iter().map(|window| window.first_target - 1).collect();
    assert_eq!(starts, [194, 10, 130, 103, 122]);
}
