//! Built-in tasks on the data sets as they are published, and likelihoods of real models against Transformers.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use crate::real_models::folders;
use evaluate::{
    likelihood::{Encoder, score},
    score::DEFAULT_MEMORY,
    task::{
        Task,
        data::TaskData,
        prompt::{Answer, Item, Pair, Templates},
    },
};
use model::Checkpoint;
use std::collections::BTreeMap;

/// Every item of every task whose data is there, with its shots.
fn items(name: &str) -> (Task, Vec<Item>) {
    let task = Task::open(name).unwrap();
    let data = TaskData::read(&task, &[folders().1.join("data")], task.shots > 0).unwrap();
    let mut templates = Templates::new(&task).unwrap();
    let items = data.rows.iter().map(|row| templates.item(row, &data, task.shots).unwrap()).collect();
    drop(templates);
    (task, items)
}

#[test]
#[ignore = "needs the shared data"]
fn every_published_item_becomes_a_prompt() {
    for name in ["mmlu", "cmmlu", "arc_easy", "arc_challenge", "hellaswag", "piqa", "winogrande", "lambada"] {
        let (task, items) = items(name);
        assert_eq!(Some(items.len()), task.items, "{name}");
        assert!(items.iter().all(|item| item.pairs.iter().all(|pair| !pair.continuation.trim().is_empty())), "{name}");
        let mut answers: BTreeMap<usize, usize> = BTreeMap::new();
        for item in &items {
            let Answer::One(answer) = item.answer else { panic!("{name} has one right choice") };
            *answers.entry(answer).or_default() += 1;
        }
        println!("{name}: {} items, answers {answers:?}", items.len());
        // The right choice is none more often than chance by much, but for tasks of one choice.
        let largest = *answers.values().max().unwrap() as f64 / items.len() as f64;
        assert!(largest < 0.56 || items[0].pairs.len() == 1, "{name}: {answers:?}");
    }
}

#[test]
#[ignore = "needs the shared data"]
fn mmlu_has_the_published_number_of_items_in_each_category() {
    let (task, items) = items("mmlu");
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for item in &items {
        *counts.entry(task.category(item.subject.as_deref().unwrap()).unwrap()).or_default() += 1;
    }
    let expected = [("humanities", 4705), ("other", 3107), ("social_sciences", 3077), ("stem", 3153)];
    assert_eq!(counts, BTreeMap::from(expected));
    let first = items.iter().find(|item| item.subject.as_deref() == Some("anatomy")).unwrap();
    let context = &first.pairs[0].context;
    assert!(context.starts_with(
        "The following are multiple choice questions (with answers) about anatomy.\n\nWhat is the embryological origin of \
         the hyoid bone?\nA. The first pharyngeal arch\n"
    ));
    assert!(context.contains("third pharyngeal arches\nAnswer: D\n\n"));
    assert_eq!(context.matches("\nAnswer:").count(), 6);
}

/// A text of the goldens as an item: the first part before the choice, the rest the choice; with a prefix and without, and
/// beside another choice that shares its beginning.
#[test]
#[ignore = "needs the real models"]
fn likelihoods_of_continuations_are_those_of_transformers() {
    for name in ["smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"] {
        let (models, shared) = folders();
        let checkpoint = Checkpoint::open(models.join(format!("{name}.gguf")).to_str().unwrap()).unwrap();
        let golden = std::fs::read(shared.join(format!("golden/{name}.json"))).unwrap();
        let golden: serde_json::Value = serde_json::from_slice(&golden).unwrap();
        for text in golden["texts"].as_array().unwrap() {
            let whole = text["text"].as_str().unwrap();
            let place =
                |share: usize| (whole.len() * share / 4..=whole.len()).find(|at| whole.is_char_boundary(*at)).unwrap();
            let (prefix, half) = (&whole[..place(2)], place(3));
            let pair = |end: usize| Pair {
                context: whole[..half].into(),
                continuation: whole[half..end].to_owned(),
                choice: whole[half..end].to_owned(),
            };
            let near = (half + 8..=whole.len()).find(|at| whole.is_char_boundary(*at)).unwrap();
            for prefix in ["", prefix] {
                let item = Item {
                    id: "golden".to_owned(),
                    subject: None,
                    prefix: prefix.into(),
                    preface: std::sync::Arc::default(),
                    pairs: vec![pair(near), pair(whole.len())],
                    answer: Answer::One(0),
                };
                let request = Encoder::new(&checkpoint, 2048).request(&item).unwrap();
                // Half of the Chinese text is too few tokens to be worth a pass of its own.
                assert!((request.prefix > 0) != prefix.is_empty() || text["label"] == "chinese");
                let sequence = &request.sequences[1];
                let ids: Vec<u64> = text["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
                assert!(
                    ids.iter().zip(&sequence.tokens).all(|(a, b)| *a == u64::from(*b))
                        && ids.len() == sequence.tokens.len()
                );
                let nll: Vec<f64> = text["nll"].as_array().unwrap().iter().map(|nll| nll.as_f64().unwrap()).collect();
                let expected = -nll[sequence.start - 1..].iter().sum::<f64>();
                let ours = score(&checkpoint, &[request], DEFAULT_MEMORY, &mut |_| {}).unwrap().remove(0).remove(1);
                let difference = ours.log_probability - expected;
                println!("{name}, {}: {} tokens, difference {difference:.1e}", text["label"], ours.tokens);
                assert!(difference.abs() < 1e-3, "{name}, {}: {} {expected}", text["label"], ours.log_probability);
            }
        }
    }
}
