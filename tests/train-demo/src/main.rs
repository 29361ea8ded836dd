//! Trains the demo model and its tokenizer from text files, and measures it.
//!
//! ```text
//! train-demo --prose FILE... --code FILE... --out FOLDER --steps N --seed S
//! train-demo --prose FILE... --code FILE... --out FOLDER --evaluate TEXT...
//! ```
//!
//! The first form trains the tokenizer (where FOLDER has none), then the model, one step a batch of half prose and
//! half code. Every `--save-every` steps it writes `FOLDER/state.safetensors`; the same command, started again,
//! continues there, and what comes out is what an uninterrupted run gives, bit for bit, on one thread
//! (`RAYON_NUM_THREADS=1`). At the end it writes the Hugging Face folder with weights in float16. The second form
//! measures that folder's model, and a unigram model beside it, on the held-out part of the training files and on the
//! texts given.
//!
//! The files: `text` reads and samples, `tokenizer` trains the BPE, `network` is the decoder over the fused
//! `operations`, `optimizer` the AdamW and its schedule, `state` what is on disk, `measure` the perplexities.

mod measure;
mod network;
mod operations;
mod optimizer;
mod state;
mod text;
mod tokenizer;

use anyhow::{Context, Result};
use clap::Parser;
use network::{Network, Shape};
use optimizer::AdamW;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::path::{Path, PathBuf};
use std::time::Instant;
use text::{Domain, Source};
use tokenizers::Tokenizer;

/// Trains the demo model from text files, or measures it.
#[derive(Parser)]
struct Arguments {
    /// Training texts of English prose.
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    prose: Vec<PathBuf>,
    /// Training texts of Python code.
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    code: Vec<PathBuf>,
    /// Folder for the tokenizer, the state of the run and the model.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Optimizer steps in all.
    #[arg(long, default_value_t = 2000, value_name = "N")]
    steps: u64,
    /// Windows in a step.
    #[arg(long, default_value_t = 8, value_name = "N")]
    batch: usize,
    /// Decides the first weights and the order of the windows.
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// Steps between two saved states.
    #[arg(long, default_value_t = 100, value_name = "N")]
    save_every: u64,
    /// Measure the model of the folder on these texts instead of training.
    #[arg(long, num_args = 1.., value_name = "TEXT")]
    evaluate: Option<Vec<PathBuf>>,
}

/// The texts of both domains as tokens.
struct Data {
    tokenizer: Tokenizer,
    /// Prose and code: training tokens, a stream a file.
    training: [Vec<Vec<u32>>; 2],
    /// Prose and code: tokens held out.
    held_out: [Vec<u32>; 2],
    /// Names every file by its hash.
    fingerprint: String,
}

fn read(arguments: &Arguments) -> Result<Data> {
    std::fs::create_dir_all(&arguments.out)?;
    let read = |paths: &[PathBuf], code| paths.iter().map(|path| Source::read(path, code)).collect::<Result<Vec<_>>>();
    let sources = [read(&arguments.prose, false)?, read(&arguments.code, true)?];
    let tokenizer = tokenizer::load_or_train(&arguments.out.join("tokenizer.json"), &text::for_tokenizer(&sources))?;
    let mut training = [Vec::new(), Vec::new()];
    let mut held_out = [Vec::new(), Vec::new()];
    let mut fingerprint = String::new();
    for (domain, sources) in sources.iter().enumerate() {
        for source in sources {
            let stream = text::tokens(&tokenizer, source.training())?;
            say(&format!("{}  {}  {} training tokens", source.sha256, source.path.display(), stream.len()));
            training[domain].push(stream);
            held_out[domain].extend(text::tokens(&tokenizer, source.held_out())?);
            fingerprint.push_str(&source.sha256[..8]);
        }
    }
    Ok(Data { tokenizer, training, held_out, fingerprint })
}

#[allow(clippy::print_stdout)] // A development tool whose progress is its result.
fn say(line: &str) {
    println!("{line}");
}

/// A run between two steps.
struct Run {
    network: Network,
    optimizer: AdamW,
    /// Steps done.
    done: u64,
}

impl Run {
    /// Where the saved state left off, or a new beginning.
    fn open(path: &Path, shape: &Shape, seed: u64, settings: &str) -> Result<Self> {
        if path.exists() {
            let (network, optimizer, done) = state::load(path, shape.clone(), settings)?;
            return Ok(Self { network, optimizer, done });
        }
        let network = Network::random(shape.clone(), &mut ChaCha8Rng::seed_from_u64(seed))?;
        let optimizer = AdamW::new(&network);
        Ok(Self { network, optimizer, done: 0 })
    }

    /// One step on `windows`. Returns the loss before it and the gradient's norm.
    fn step(&mut self, windows: &[&[u32]], steps: u64) -> Result<(f32, f64)> {
        let loss = self.network.loss(windows)?;
        let rate = optimizer::learning_rate(self.done, steps);
        let norm = self.optimizer.step(&self.network, &loss.backward()?, self.done, rate)?;
        self.done += 1;
        Ok((loss.to_scalar()?, norm))
    }
}

fn train(arguments: &Arguments, data: Data) -> Result<()> {
    let shape = Shape::demo(tokenizer::VOCABULARY);
    let window = shape.max_position_embeddings + 1;
    let settings = format!("{shape:?} batch {} seed {} files {}", arguments.batch, arguments.seed, data.fingerprint);
    let [prose, code] = data.training;
    let domains = [Domain::new(prose, window)?, Domain::new(code, window)?];
    let path = arguments.out.join("state.safetensors");
    let mut run = Run::open(&path, &shape, arguments.seed, &settings)?;
    let (first, start) = (run.done, Instant::now());
    say(&format!("{} parameters, steps {first} to {}", run.network.parameters(), arguments.steps));
    let mut mean = None;
    while run.done < arguments.steps {
        let windows = text::batch(&domains, arguments.seed, run.done, arguments.batch, window);
        let (loss, norm) = run.step(&windows, arguments.steps)?;
        let smooth = *mean.insert(mean.map_or(loss, |mean: f32| 0.95 * mean + 0.05 * loss));
        let last = run.done == arguments.steps;
        if last || run.done.is_multiple_of(20) {
            let seconds = start.elapsed().as_secs_f64();
            let tokens = (run.done - first) * (arguments.batch * (window - 1)) as u64;
            let speed = tokens as f64 / seconds;
            say(&format!("step {} loss {smooth:.3} norm {norm:.2} {speed:.0} tokens/s {seconds:.0} s", run.done));
        }
        if last || run.done.is_multiple_of(arguments.save_every) {
            state::save(&path, &run.network, &run.optimizer, run.done, &settings)?;
            state::export(&arguments.out, &run.network, &shape)?;
        }
    }
    Ok(())
}

fn evaluate(arguments: &Arguments, texts: &[PathBuf], data: &Data) -> Result<()> {
    let shape = Shape::demo(tokenizer::VOCABULARY);
    let length = shape.max_position_embeddings;
    let network = state::import(&arguments.out, shape)?;
    let unigram = measure::unigram(data.training.iter().flatten().flatten(), tokenizer::VOCABULARY);
    let mut measured = vec![
        ("prose files, last 2 %".to_owned(), data.held_out[0].clone()),
        ("code files, last 2 %".to_owned(), data.held_out[1].clone()),
    ];
    for path in texts {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let encoding = data.tokenizer.encode_fast(text, false).map_err(anyhow::Error::msg)?;
        measured.push((path.display().to_string(), encoding.get_ids().to_vec()));
    }
    for (name, tokens) in measured {
        let m = measure::measure(&network, &tokens, length, &unigram)?;
        say(&format!("{name}: perplexity {:.2}, unigram {:.1}, {} tokens scored", m.model, m.unigram, m.scored));
    }
    Ok(())
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let data = read(&arguments)?;
    match &arguments.evaluate {
        Some(texts) => evaluate(&arguments, texts, &data),
        None => train(&arguments, data),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn small() -> Shape {
        Shape {
            hidden_size: 8,
            intermediate_size: 8,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            head_dim: 4,
            max_position_embeddings: 8,
            ..Shape::demo(16)
        }
    }

    /// Steps from where the run is up to `until`, of 6 in all.
    fn advance(run: &mut Run, domains: &[Domain; 2], until: u64) {
        while run.done < until {
            run.step(&text::batch(domains, 7, run.done, 2, 9), 6).unwrap();
        }
    }

    #[test]
    fn a_continued_run_equals_an_uninterrupted_one_to_the_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.safetensors");
        let stream = |factor: u32| vec![(0..200).map(|i: u32| i * i * factor % 16).collect()];
        let domains = [Domain::new(stream(3), 9).unwrap(), Domain::new(stream(5), 9).unwrap()];
        let mut whole = Run::open(&path, &small(), 7, "settings").unwrap();
        advance(&mut whole, &domains, 6);
        let mut part = Run::open(&path, &small(), 7, "settings").unwrap();
        advance(&mut part, &domains, 2);
        state::save(&path, &part.network, &part.optimizer, part.done, "settings").unwrap();
        let mut continued = Run::open(&path, &small(), 7, "settings").unwrap();
        assert_eq!(continued.done, 2);
        advance(&mut continued, &domains, 6);
        for (name, var) in &whole.network.weights {
            let values = |var: &candle_core::Var| var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(values(var) == values(&continued.network.weights[name]), "{name}");
        }
    }

    #[test]
    fn a_run_of_other_settings_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.safetensors");
        let run = Run::open(&path, &small(), 7, "these").unwrap();
        state::save(&path, &run.network, &run.optimizer, run.done, "these").unwrap();
        let error = Run::open(&path, &small(), 7, "others").err().unwrap().to_string();
        assert!(error.contains("these") && error.contains("others"), "{error}");
    }
}
