//! From the likelihoods of an item's choices to its record.
//!
//! ```text
//! acc         argmax_i L_i             L_i the sum of log-probabilities of choice i's tokens, delimiter included
//! acc_norm    argmax_i L_i / characters of choice i        acc_bytes: bytes        acc_token: tokens
//! acc_greedy  every token of the (only) choice is the most probable one
//! perplexity  L of the right choice                        over items: exp(−mean)
//! mc2         Σ_right exp(L_i) / Σ_all exp(L_i)
//! ```
//!
//! Of equal choices the first wins.

use crate::{
    framing::Framing,
    likelihood::Likelihood,
    records::{Record, SCHEMA},
    task::{
        Metric, Task,
        prompt::{Answer, Item},
    },
};

/// The record of `item`.
pub fn record(task: &Task, item: &Item, likelihoods: &[Likelihood]) -> Record {
    let primary = task.primary();
    let value = |metric: Metric| value(metric, item, likelihoods);
    let prediction = normalizer(primary).map(|lengths| argmax(item, likelihoods, lengths));
    let answer = match item.answer {
        Answer::One(index) => Some(index),
        Answer::Marks(_) => None,
    };
    Record {
        schema: SCHEMA,
        task: task.name.clone(),
        id: item.id.clone(),
        subject: item.subject.clone(),
        category: item.subject.as_deref().and_then(|subject| task.category(subject)).map(str::to_owned),
        capability: task.capability,
        prompt_sha256: item.sha256(),
        metric: primary,
        answer,
        prediction,
        correct: primary.is_binary().then(|| value(primary) == 1.0),
        log_probabilities: likelihoods.iter().map(|likelihood| likelihood.log_probability).collect(),
        greedy: likelihoods.iter().map(|likelihood| likelihood.greedy).collect(),
        tokens: likelihoods.iter().map(|likelihood| likelihood.tokens).collect(),
        response: None,
        verdict: None,
        samples: Vec::new(),
        instructions: Vec::new(),
        framing: Framing::default(),
        metrics: task.metrics.iter().map(|metric| (*metric, value(*metric))).collect(),
    }
}

fn value(metric: Metric, item: &Item, likelihoods: &[Likelihood]) -> f64 {
    let right = match item.answer {
        Answer::One(index) => index,
        Answer::Marks(_) => 0,
    };
    match (metric, &item.answer) {
        (Metric::AccGreedy, _) => f64::from(u8::from(likelihoods[right].greedy)),
        (Metric::Perplexity, _) => likelihoods[right].log_probability,
        (Metric::Mc2, Answer::Marks(marks)) => {
            let largest = likelihoods.iter().map(|l| l.log_probability).fold(f64::NEG_INFINITY, f64::max);
            let mass = |l: &Likelihood| (l.log_probability - largest).exp();
            let true_mass: f64 = likelihoods.iter().zip(marks).filter(|(_, mark)| **mark).map(|(l, _)| mass(l)).sum();
            true_mass / likelihoods.iter().map(mass).sum::<f64>()
        }
        (metric, _) => {
            let picked = normalizer(metric).map(|lengths| argmax(item, likelihoods, lengths));
            f64::from(u8::from(picked == Some(right)))
        }
    }
}

/// What a choice's sum is divided by.
type Lengths = fn(&Item, &[Likelihood], usize) -> f64;

fn normalizer(metric: Metric) -> Option<Lengths> {
    match metric {
        Metric::Acc => Some(|_, _, _| 1.0),
        Metric::AccNorm => Some(|item, _, choice| item.pairs[choice].choice.chars().count() as f64),
        Metric::AccBytes => Some(|item, _, choice| item.pairs[choice].choice.len() as f64),
        Metric::AccToken => Some(|_, likelihoods, choice| likelihoods[choice].tokens as f64),
        // Neither the other metrics of choices nor those of texts, of which a task with choices has none.
        _ => None,
    }
}

fn argmax(item: &Item, likelihoods: &[Likelihood], lengths: Lengths) -> usize {
    // An empty choice has its delimiter's likelihood and no length.
    let score = |choice: usize| likelihoods[choice].log_probability / lengths(item, likelihoods, choice).max(1.0);
    (1..likelihoods.len()).fold(0, |best, choice| if score(choice) > score(best) { choice } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::prompt::Pair;

    fn item(choices: &[&str], answer: Answer) -> Item {
        let pair = |choice: &&str| Pair {
            context: "c".into(),
            continuation: format!(" {choice}"),
            choice: (*choice).to_owned(),
        };
        let pairs = choices.iter().map(pair).collect();
        Item { id: "0".into(), subject: None, prefix: "".into(), preface: std::sync::Arc::default(), pairs, answer }
    }

    fn likelihoods(values: &[(f64, usize)]) -> Vec<Likelihood> {
        values.iter().map(|&(log_probability, tokens)| Likelihood { log_probability, tokens, greedy: false }).collect()
    }

    #[test]
    fn each_length_decides_its_own_way() {
        let item = item(&["ab", "äöüß", "abcdef"], Answer::One(1));
        // Per character −1, −0.75, −0.9; per byte −1, −0.375, −0.9; per token −2, −3, −1.35.
        let scores = likelihoods(&[(-2.0, 1), (-3.0, 1), (-5.4, 4)]);
        let values = [Metric::Acc, Metric::AccNorm, Metric::AccBytes, Metric::AccToken]
            .map(|metric| value(metric, &item, &scores));
        assert_eq!(values, [0.0, 1.0, 1.0, 0.0]);
        // Chinese characters weigh one, their bytes three.
        let item = super::tests::item(&["甲乙", "abc"], Answer::One(0));
        let scores = likelihoods(&[(-3.0, 2), (-4.0, 2)]);
        assert_eq!(value(Metric::AccNorm, &item, &scores), 0.0);
        assert_eq!(value(Metric::AccBytes, &item, &scores), 1.0);
    }

    #[test]
    fn the_first_of_equals_wins() {
        let item = item(&["a", "b"], Answer::One(0));
        assert_eq!(value(Metric::Acc, &item, &likelihoods(&[(-1.0, 1), (-1.0, 1)])), 1.0);
    }

    #[test]
    fn mc2_is_a_share_and_perplexity_a_likelihood() {
        let marked = item(&["a", "b", "c"], Answer::Marks(vec![true, false, true]));
        let scores = likelihoods(&[(0.5_f64.ln() - 900.0, 1), (0.2_f64.ln() - 900.0, 1), (0.3_f64.ln() - 900.0, 1)]);
        assert!((value(Metric::Mc2, &marked, &scores) - 0.8).abs() < 1e-9);
        let item = item(&["a"], Answer::One(0));
        assert_eq!(value(Metric::Perplexity, &item, &likelihoods(&[(-2.5, 1)])), -2.5);
    }
}
