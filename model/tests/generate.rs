//! Generation against the slow way: the whole sequence anew for each token.

#![allow(clippy::unwrap_used)] // helpers of tests may panic like the tests

#[path = "support/small_model.rs"]
mod small_model;

use model::{
    Checkpoint,
    generate::{Ending, Generated, Generator, Request, Sampling},
};
use serde_json::{Value, json};
use small_model::{SmallModel, config};

fn slow(checkpoint: &Checkpoint, request: &Request) -> Generated {
    let head = checkpoint.head().unwrap();
    let mut tokens = request.prompt.clone();
    while tokens.len() < request.prompt.len() + request.longest {
        let hidden = checkpoint.hidden_states(&tokens).unwrap();
        let logits = head.logits(&hidden[hidden.len() - checkpoint.config.hidden_size..]);
        let best = (0..logits.len()).fold(0, |best, token| if logits[token] > logits[best] { token } else { best });
        if checkpoint.config.eos_tokens.contains(&(best as u32)) {
            return Generated { tokens: tokens.split_off(request.prompt.len()), ending: Ending::EndToken };
        }
        tokens.push(best as u32);
    }
    Generated { tokens: tokens.split_off(request.prompt.len()), ending: Ending::Longest }
}

fn requests() -> Vec<Request> {
    let prompt = |length: u32| (0..length).map(|i| 4 + (i * i * 7 + length * 13) % 96).collect();
    [(1, 12), (40, 20), (7, 0), (3, 30), (25, 1), (90, 25), (11, 30)]
        .into_iter()
        .map(|(length, longest)| Request { prompt: prompt(length), longest, sampling: None })
        .collect()
}

fn plain((prompt, longest): (Vec<u32>, usize)) -> Request {
    Request { prompt, longest, sampling: None }
}

fn generate(checkpoint: &Checkpoint, requests: &[Request], batch: usize, threads: usize) -> Vec<Generated> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let mut seen = vec![0; requests.len()];
    let generator = Generator::new(checkpoint).unwrap();
    let all = pool.install(|| generator.generate(requests, batch, &|_, _| false, &mut |request, _| seen[request] += 1));
    assert!(seen.iter().all(|count| *count == 1), "{seen:?}");
    all.unwrap()
}

/// The logits of both ways differ by the order of float32 sums; random weights leave no near ties.
#[test]
fn every_family_generates_what_the_slow_way_gives_however_sequences_are_batched() {
    let families: [(&str, &str, Value); 6] = [
        ("LlamaForCausalLM", "llama", json!({})),
        ("MistralForCausalLM", "mistral", json!({"sliding_window": 16})),
        ("Qwen2ForCausalLM", "qwen2", json!({})),
        ("Qwen3ForCausalLM", "qwen3", json!({"head_dim": 32})),
        ("Phi3ForCausalLM", "phi3", json!({})),
        ("LlamaForCausalLM", "llama", json!({"tie_word_embeddings": true, "num_key_value_heads": 4})),
    ];
    for (architecture, model_type, more) in families {
        let model = SmallModel::new(config(architecture, model_type, &more), 5);
        let checkpoint = Checkpoint::open(model.path().to_str().unwrap()).unwrap();
        let requests = requests();
        let expected: Vec<Generated> = requests.iter().map(|request| slow(&checkpoint, request)).collect();
        for (batch, threads) in [(1, 1), (3, 1), (16, 1), (2, 3)] {
            assert_eq!(generate(&checkpoint, &requests, batch, threads), expected, "{model_type} {batch} {threads}");
        }
    }
}

/// Requests that end at different times, so that places are filled anew all the time, alone and in any company.
#[test]
fn a_sequence_doesn_t_depend_on_its_neighbours_whether_tokens_are_drawn_or_not() {
    let model = SmallModel::new(config("LlamaForCausalLM", "llama", &json!({})), 5);
    let checkpoint = Checkpoint::open(model.path().to_str().unwrap()).unwrap();
    let drawn = |seed| Some(Sampling { temperature: 0.8, top_p: 0.9, seed });
    let mut requests = requests();
    requests.extend(self::requests().into_iter().zip(1..).map(|(r, seed)| Request { sampling: drawn(seed), ..r }));
    requests.extend(self::requests().into_iter().map(|r| Request { sampling: drawn(77), ..r }));
    let alone: Vec<Generated> =
        requests.iter().map(|request| generate(&checkpoint, std::slice::from_ref(request), 1, 1).remove(0)).collect();
    for (batch, threads) in [(1, 2), (4, 1), (16, 1), (3, 3)] {
        assert_eq!(generate(&checkpoint, &requests, batch, threads), alone, "{batch} {threads}");
        let backwards: Vec<Request> = requests.iter().rev().cloned().collect();
        let reversed: Vec<Generated> = generate(&checkpoint, &backwards, batch, threads).into_iter().rev().collect();
        assert_eq!(reversed, alone, "{batch} {threads}");
    }
    // The same prompts: drawn tokens are others than the likeliest, and seeds matter.
    assert_ne!(alone[..7], alone[7..14]);
    assert_ne!(alone[7..14], alone[14..]);
}

#[test]
fn the_caller_and_the_model_s_longest_sequence_end_a_sequence() {
    let model = SmallModel::new(config("LlamaForCausalLM", "llama", &json!({"eos_token_id": 99})), 5);
    let checkpoint = Checkpoint::open(model.path().to_str().unwrap()).unwrap();
    let generator = Generator::new(&checkpoint).unwrap();
    let requests = [(vec![5; 120], 100), (vec![7], 100)].map(plain);
    let all = generator.generate(&requests, 2, &|request, tokens| request == 1 && tokens.len() == 4, &mut |_, _| {});
    let all = all.unwrap();
    assert_eq!((all[0].tokens.len(), all[0].ending), (8, Ending::Longest));
    assert_eq!((all[1].tokens.len(), all[1].ending), (4, Ending::Stopped));
    let refuse = |prompt| generator.generate(&[plain((prompt, 1))], 1, &|_, _| false, &mut |_, _| {});
    assert!(refuse(Vec::new()).is_err() && refuse(vec![1; 129]).is_err());
}
