//! Where in a text a model departs from the unquantized one: by the kind of the token foretold, and by its place in the
//! window.
//!
//! | class | a token whose text, white space cut off, |
//! |---|---|
//! | `digits` | is digits |
//! | `punctuation` | holds neither letter nor digit |
//! | `white space` | is empty |
//! | `Latin` | holds letters, all Latin |
//! | `other script` | holds a letter that is not Latin |
//! | `rare` | any of these, but is foretold once in the text |
//! | `first 16`, `quarter 1`..`quarter 4` | any, by its place in the window |
//!
//! Classes of either kind are a partition of the targets but for `rare` and `first 16`, which lie across.

use evaluate::{
    statistics::{Block, Bootstrap, interval_95, ratio},
    window::Window,
};
use model::Checkpoint;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// The classes in order.
pub const CLASSES: [&str; 11] = [
    "digits",
    "punctuation",
    "white space",
    "Latin",
    "other script",
    "rare",
    "first 16",
    "quarter 1",
    "quarter 2",
    "quarter 3",
    "quarter 4",
];
const RARE: usize = 5;
const FIRST: usize = 6;
const QUARTERS: usize = 7;
/// Targets of a window that count as its beginning.
const BEGINNING: usize = 16;

/// The divergence of a class of targets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Place {
    /// The class.
    pub class: String,
    /// Its targets.
    pub tokens: usize,
    /// Their mean KL(unquantized || model) in nats.
    pub mean: f64,
    /// Its 95 % interval over windows; none where draws lack the class.
    pub interval: Option<[f64; 2]>,
}

/// The classes of every target of `windows`.
pub fn classes(checkpoint: &Checkpoint, windows: &[Window]) -> Vec<Vec<Vec<usize>>> {
    let mut counts: HashMap<u32, usize> = HashMap::new();
    windows.iter().flat_map(Window::targets).for_each(|token| *counts.entry(*token).or_default() += 1);
    let mut kinds: HashMap<u32, usize> = HashMap::new();
    let mut of = |token: u32, place: usize, count: usize| {
        let kind = *kinds
            .entry(token)
            .or_insert_with(|| kind(&checkpoint.tokenizer.decode(&[token], false).unwrap_or_default()));
        let mut classes = vec![kind, QUARTERS + 4 * place / count.max(1)];
        classes.extend((counts[&token] == 1).then_some(RARE));
        classes.extend((place < BEGINNING).then_some(FIRST));
        classes
    };
    let window = |window: &Window| {
        let targets = window.targets();
        targets.iter().enumerate().map(|(place, token)| of(*token, place, targets.len())).collect()
    };
    windows.iter().map(window).collect()
}

/// The class of a token's text, as an index of [`CLASSES`].
fn kind(text: &str) -> usize {
    let text = text.trim();
    let latin = |c: char| c.is_ascii_alphabetic() || ('\u{c0}'..='\u{24f}').contains(&c);
    if text.is_empty() {
        2
    } else if text.chars().all(char::is_numeric) {
        0
    } else if !text.chars().any(char::is_alphanumeric) {
        1
    } else if text.chars().any(|c| c.is_alphabetic() && !latin(c)) {
        4
    } else {
        3
    }
}

/// The divergence by class: `kl[window][target]`.
pub fn of(classes: &[Vec<Vec<usize>>], kl: &[Vec<f64>], bootstrap: Bootstrap) -> Vec<Place> {
    let nothing = Block { sum: 0.0, weight: 0.0 };
    let mut blocks = vec![vec![nothing; kl.len()]; CLASSES.len()];
    for (window, (classes, kl)) in classes.iter().zip(kl).enumerate() {
        for (classes, kl) in classes.iter().zip(kl) {
            for class in classes {
                blocks[*class][window].sum += kl;
                blocks[*class][window].weight += 1.0;
            }
        }
    }
    let place = |(name, blocks): (&&str, Vec<Block>)| {
        let tokens = blocks.iter().map(|block| block.weight).sum::<f64>() as usize;
        let draws = bootstrap.ratios(&blocks).filter(|draws| draws.iter().all(|draw| draw.is_finite()));
        let (mean, interval) = (ratio(blocks), draws.map(|draws| interval_95(&draws)));
        (tokens > 0).then(|| Place { class: (*name).to_owned(), tokens, mean, interval })
    };
    CLASSES.iter().zip(blocks).filter_map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_told_apart_by_their_text() {
        let kinds = [" 42", "...", "\n", "word", "café", "слово", "语", "x1", " ("].map(|text| CLASSES[kind(text)]);
        let wanted = [
            "digits",
            "punctuation",
            "white space",
            "Latin",
            "Latin",
            "other script",
            "other script",
            "Latin",
            "punctuation",
        ];
        assert_eq!(kinds, wanted);
    }

    #[test]
    fn kinds_and_quarters_are_partitions_and_their_means_the_mean() {
        let checkpoint = Checkpoint::open("demo").unwrap();
        let tokens: Vec<u32> = (0..41).map(|index| 3 + index * 17 % 200).collect();
        let windows: Vec<Window> = (0..3)
            .map(|document| Window { tokens: tokens.clone(), scored: 1..41, document, first_target: 1 })
            .collect();
        let classes = classes(&checkpoint, &windows);
        let kl: Vec<Vec<f64>> = (0..3).map(|w| (0..40).map(|t| f64::from(w * 40 + t)).collect()).collect();
        let places = of(&classes, &kl, Bootstrap { seed: 0, run: 1 });
        for part in [&CLASSES[..RARE], &CLASSES[QUARTERS..]] {
            let of: Vec<&Place> = places.iter().filter(|place| part.contains(&place.class.as_str())).collect();
            assert_eq!(of.iter().map(|place| place.tokens).sum::<usize>(), 120);
            let mean = of.iter().map(|place| place.mean * place.tokens as f64).sum::<f64>() / 120.0;
            assert!((mean - 59.5).abs() < 1e-9, "{mean}");
        }
        let find = |class: &str| places.iter().find(|place| place.class == class).unwrap();
        assert_eq!((find("first 16").tokens, find("quarter 1").tokens), (48, 30));
        // The first quarter's ten targets of each window: mean 4.5 + 40 · window number.
        assert!((find("quarter 1").mean - 44.5).abs() < 1e-9);
        assert!(!places.iter().any(|place| place.class == "rare"), "every token is foretold three times");
    }
}
