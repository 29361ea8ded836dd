//! Calibration sets from files to windows with a toy tokenizer.

#![allow(clippy::unwrap_used, reason = "a test may panic anywhere, helpers included")]

mod toy;

use calibration::{
    CalibrationError, CalibrationSet, Packing, WindowOptions,
    adequacy::check_tokens,
    domain::Domain,
    manifest::{WindowRecord, tokens_sha256},
};
use model::{Checkpoint, Stage};
use std::fs;

struct Bench {
    checkpoint: Checkpoint,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        fs::create_dir(&model).unwrap();
        Self { checkpoint: toy::checkpoint(&model), folder }
    }

    /// Writes a file and returns its name with its folder.
    fn file(&self, name: &str, content: &str) -> String {
        let path = self.folder.path().join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn build(&self, sources: &[&str], options: &WindowOptions) -> Result<CalibrationSet, CalibrationError> {
        let sources = sources.iter().map(|source| Domain::parse(source)).collect::<Result<Vec<_>, _>>()?;
        CalibrationSet::build(&sources, options, &self.checkpoint)
    }

    fn error(&self, sources: &[&str], options: &WindowOptions) -> String {
        self.build(sources, options).unwrap_err().to_string()
    }
}

fn options(packing: Packing, samples: usize, sequence_length: usize) -> WindowOptions {
    WindowOptions { samples, sequence_length, seed: 1, packing, field: None }
}

/// The words `w2 w3 ...`, as many as asked for, running round the vocabulary.
fn words(first: usize, count: usize) -> String {
    let words: Vec<String> = (0..count).map(|i| format!("w{}", 2 + (first + i) % 37)).collect();
    words.join(" ")
}

#[test]
fn joined_windows_are_cut_from_the_text() {
    let bench = Bench::new();
    let file = bench.file("a.txt", &words(0, 300));
    let set = bench.build(&[&file], &options(Packing::Concat, 10, 25)).unwrap();
    assert_eq!((set.windows.len(), set.tokens()), (10, 250));
    let [source] = set.manifest.sources.as_slice() else { panic!("one source") };
    assert_eq!((source.source.as_str(), source.documents, source.tokens, source.weight), (file.as_str(), 1, 300, 1.0));
    assert_eq!((source.files[0].name.as_str(), source.files[0].sha256.len()), ("a.txt", 64));
    for (window, place) in set.windows.iter().zip(&source.windows) {
        let expected: Vec<u32> = (0..25).map(|i| (2 + (place.offset + i) % 37) as u32).collect();
        assert_eq!((window, place.length, place.document), (&expected, 25, 0));
    }
    assert_eq!(set.manifest.tokens_sha256, tokens_sha256(&set.windows));
    assert!(!set.manifest.special_tokens);
}

#[test]
fn a_set_follows_from_files_options_and_seed() {
    let bench = Bench::new();
    let file = bench.file("a.txt", &words(0, 300));
    let set = |seed| {
        let options = WindowOptions { seed, ..options(Packing::Concat, 10, 25) };
        bench.build(&[&file], &options).unwrap()
    };
    assert_eq!(set(1), set(1));
    assert_ne!(set(1).windows, set(2).windows);
    let manifest = serde_json::to_string(&set(1).manifest).unwrap();
    assert_eq!(serde_json::from_str::<calibration::Manifest>(&manifest).unwrap(), set(1).manifest);
}

#[test]
fn documents_are_joined_by_a_blank_line() {
    let bench = Bench::new();
    // No word boundary but the blank line itself keeps the documents apart.
    let file = bench.file("a.jsonl", "{\"text\": \"w2 w3\"}\n{\"text\": \"w4\"}\n{\"text\": \"w5 w6\"}\n");
    let set = bench.build(&[&file], &options(Packing::Consecutive, 2, 2)).unwrap();
    assert_eq!(set.windows, [[2, 3], [4, 5]]);
    assert_eq!((set.manifest.sources[0].documents, set.manifest.sources[0].tokens), (3, 5));
}

#[test]
fn documents_stay_apart_under_document_packing() {
    let bench = Bench::new();
    let file = bench.file("a.csv", "text\nw2 w3\n\"\"\nw4 w5 w6 w7\n");
    let set = bench.build(&[&file], &options(Packing::Document, 2, 3)).unwrap();
    let places = &set.manifest.sources[0].windows;
    let short = places.iter().position(|place| place.document == 0).unwrap();
    assert_eq!(places[short], WindowRecord { document: 0, offset: 0, length: 2 });
    assert_eq!(set.windows[short], [2, 3]);
    assert_eq!(set.windows[1 - short].len(), 3);
    assert!(bench.error(&[&file], &options(Packing::Document, 3, 3)).contains("2 documents"));
}

#[test]
fn sources_share_windows_by_weight() {
    let bench = Bench::new();
    let (a, b) = (bench.file("a.txt", &words(0, 300)), bench.file("b.txt", &words(20, 300)));
    let set = bench.build(&[&format!("{a}=3"), &b, "random-tokens"], &options(Packing::Concat, 11, 20)).unwrap();
    let windows: Vec<usize> = set.manifest.sources.iter().map(|source| source.windows.len()).collect();
    let weights: Vec<f64> = set.manifest.sources.iter().map(|source| source.weight).collect();
    assert_eq!((windows.as_slice(), weights.as_slice()), ([7, 2, 2].as_slice(), [0.6, 0.2, 0.2].as_slice()));
    assert_eq!(set.windows.len(), 11);
    assert!(bench.error(&[&a, &format!("{b}=0.001")], &options(Packing::Concat, 11, 20)).contains("b.txt"));
}

#[test]
fn random_tokens_are_all_but_the_special_ones() {
    let bench = Bench::new();
    let set = bench.build(&["random-tokens"], &options(Packing::Chat, 20, 100)).unwrap();
    let mut counts = [0u32; toy::WORDS];
    set.windows.iter().flatten().for_each(|token| counts[*token as usize] += 1);
    assert_eq!(counts[..2], [0, 0]);
    // Of 2000 tokens each of the 38 words has 53 on average, standard deviation 7.2; five of them.
    assert!(counts[2..].iter().all(|count| (17..=89).contains(count)), "{counts:?}");
    assert_eq!((set.manifest.sources[0].tokens, set.manifest.sources[0].documents), (2000, 0));
}

#[test]
fn windows_are_cut_to_the_model() {
    let bench = Bench::new();
    let file = bench.file("a.txt", &words(0, 2000));
    let set = bench.build(&[&file], &options(Packing::Concat, 2, 2048)).unwrap();
    assert_eq!((set.manifest.sequence_length, set.windows[0].len()), (toy::POSITIONS, toy::POSITIONS));
    assert_eq!(set.manifest.options.sequence_length, 2048);
}

#[test]
fn too_little_text_says_how_much_is_needed() {
    let bench = Bench::new();
    let file = bench.file("a.txt", &words(0, 300));
    let error = bench.error(&[&file], &options(Packing::Concat, 16, 20));
    for part in ["a.txt", "300 tokens", "16 windows of 20", "320", "--samples"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn options_that_cannot_be_followed_are_refused() {
    let bench = Bench::new();
    let text = bench.file("a.txt", &words(0, 300));
    let chat = bench.file("c.jsonl", r#"{"messages": [{"role": "user", "content": "w2"}]}"#);
    assert!(bench.error(&[], &options(Packing::Concat, 1, 1)).contains("no calibration source"));
    assert!(bench.error(&[&text], &options(Packing::Concat, 0, 5)).contains("--samples"));
    assert!(bench.error(&[&text], &options(Packing::Concat, 5, 0)).contains("--sequence-length"));
    assert!(bench.error(&[&text], &options(Packing::Concat, usize::MAX, 2)).contains("most"));
    assert!(bench.error(&[&text], &options(Packing::Chat, 1, 1)).contains("message lists"));
    assert!(bench.error(&[&chat], &options(Packing::Concat, 1, 1)).contains("packing `chat`"));
    assert!(bench.error(&[&chat], &options(Packing::Chat, 1, 1)).contains("no chat template"));
    assert!(bench.error(&["missing.txt"], &options(Packing::Concat, 1, 1)).contains("missing.txt"));
}

#[test]
fn chats_go_through_the_template() {
    let mut bench = Bench::new();
    let template = "{{ bos_token }} {% for message in messages %}{{ message['content'] }} {{ eos_token }} {% endfor %}";
    bench.checkpoint.chat_template = Some(template.into());
    let chat = r#"{"conversations": [{"from": "human", "value": "w5 w6"}, {"from": "gpt", "value": "w7"}]}"#;
    let file = bench.file("c.jsonl", chat);
    let set = bench.build(&[&file], &options(Packing::Chat, 1, 20)).unwrap();
    assert_eq!(set.windows, [[0, 5, 6, 1, 7, 1]]);
}

#[test]
fn tokens_are_held_against_each_stage() {
    let checks = check_tokens(&Bench::new().checkpoint.config, 20);
    let widths: Vec<(Stage, usize, usize)> = checks.iter().map(|c| (c.stage, c.width, c.rank_deficit)).collect();
    assert_eq!(widths, [(Stage::Qkv, 16, 0), (Stage::Output, 24, 4), (Stage::GateUp, 16, 0), (Stage::Down, 24, 4)]);
    assert!(checks.iter().all(|check| check.warning.is_some()));
    let enough = check_tokens(&Bench::new().checkpoint.config, 96);
    assert!(enough.iter().all(|check| check.warning.is_none()));
}

#[test]
fn the_embedded_texts_are_enough_for_the_demo_model() {
    let checkpoint = Checkpoint::open("demo").unwrap();
    for source in ["demo:prose", "demo:code"] {
        let domain = Domain::parse(source).unwrap();
        let set = CalibrationSet::build(&[domain], &options(Packing::Concat, 64, 256), &checkpoint).unwrap();
        let record = &set.manifest.sources[0];
        assert_eq!((record.files[0].name.as_str(), record.documents, set.tokens()), (source, 1, 64 * 256));
    }
}
