//! What is computed of an item: the names, and what each means.

use serde::{Deserialize, Serialize};

/// What is computed of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// The choice of the largest log-likelihood is the right one.
    Acc,
    /// As `acc`, log-likelihoods divided by the choice's Unicode characters.
    AccNorm,
    /// As `acc`, log-likelihoods divided by the choice's UTF-8 bytes.
    AccBytes,
    /// As `acc`, log-likelihoods divided by the continuation's tokens.
    AccToken,
    /// The model would write the only choice itself: each of its tokens is the most probable.
    AccGreedy,
    /// `exp(−mean log-likelihood)` of the right choice over items.
    Perplexity,
    /// Probability of the right choices over that of all.
    Mc2,
    /// What the strict expression finds in what the model wrote is the right answer.
    ExactMatchStrict,
    /// What the flexible expression finds last is the right answer.
    ExactMatchFlexible,
    /// As `exact_match_flexible`, compared as numbers.
    ExactMatchNumeric,
    /// What the task's filters leave of what the model wrote is the right answer.
    ExactMatch,
    /// The program that the model wrote passes its tests.
    #[serde(rename = "pass_at_1")]
    PassAt1,
    /// One of two programs drawn from those written does, and so on.
    #[serde(rename = "pass_at_2")]
    PassAt2,
    /// Of five.
    #[serde(rename = "pass_at_5")]
    PassAt5,
    /// Of eight.
    #[serde(rename = "pass_at_8")]
    PassAt8,
    /// Of ten.
    #[serde(rename = "pass_at_10")]
    PassAt10,
    /// Of sixteen.
    #[serde(rename = "pass_at_16")]
    PassAt16,
    /// Of thirty-two.
    #[serde(rename = "pass_at_32")]
    PassAt32,
    /// Of sixty-four.
    #[serde(rename = "pass_at_64")]
    PassAt64,
    /// Of a hundred.
    #[serde(rename = "pass_at_100")]
    PassAt100,
    /// All instructions of the prompt are followed.
    PromptLevelStrictAcc,
    /// Share of instructions that are followed, over all prompts' together.
    InstLevelStrictAcc,
    /// As `prompt_level_strict_acc`, on the most favourable of eight readings.
    PromptLevelLooseAcc,
    /// As `inst_level_strict_acc`, on the most favourable of eight readings.
    InstLevelLooseAcc,
}

impl Metric {
    /// Every metric.
    pub const ALL: [Self; 24] = [
        Self::Acc,
        Self::AccNorm,
        Self::AccBytes,
        Self::AccToken,
        Self::AccGreedy,
        Self::Perplexity,
        Self::Mc2,
        Self::ExactMatchStrict,
        Self::ExactMatchFlexible,
        Self::ExactMatchNumeric,
        Self::ExactMatch,
        Self::PassAt1,
        Self::PassAt2,
        Self::PassAt5,
        Self::PassAt8,
        Self::PassAt10,
        Self::PassAt16,
        Self::PassAt32,
        Self::PassAt64,
        Self::PassAt100,
        Self::PromptLevelStrictAcc,
        Self::InstLevelStrictAcc,
        Self::PromptLevelLooseAcc,
        Self::InstLevelLooseAcc,
    ];

    /// Of how many programs one has to pass.
    pub fn attempts(self) -> Option<usize> {
        Some(match self {
            Self::PassAt1 => 1,
            Self::PassAt2 => 2,
            Self::PassAt5 => 5,
            Self::PassAt8 => 8,
            Self::PassAt10 => 10,
            Self::PassAt16 => 16,
            Self::PassAt32 => 32,
            Self::PassAt64 => 64,
            Self::PassAt100 => 100,
            _ => return None,
        })
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Acc => "acc",
            Self::AccNorm => "acc_norm",
            Self::AccBytes => "acc_bytes",
            Self::AccToken => "acc_token",
            Self::AccGreedy => "acc_greedy",
            Self::Perplexity => "perplexity",
            Self::Mc2 => "mc2",
            Self::ExactMatchStrict => "exact_match_strict",
            Self::ExactMatchFlexible => "exact_match_flexible",
            Self::ExactMatchNumeric => "exact_match_numeric",
            Self::ExactMatch => "exact_match",
            Self::PassAt1 => "pass_at_1",
            Self::PassAt2 => "pass_at_2",
            Self::PassAt5 => "pass_at_5",
            Self::PassAt8 => "pass_at_8",
            Self::PassAt10 => "pass_at_10",
            Self::PassAt16 => "pass_at_16",
            Self::PassAt32 => "pass_at_32",
            Self::PassAt64 => "pass_at_64",
            Self::PassAt100 => "pass_at_100",
            Self::PromptLevelStrictAcc => "prompt_level_strict_acc",
            Self::InstLevelStrictAcc => "inst_level_strict_acc",
            Self::PromptLevelLooseAcc => "prompt_level_loose_acc",
            Self::InstLevelLooseAcc => "inst_level_loose_acc",
        }
    }

    /// How it is computed, in a line.
    pub fn explain(self) -> &'static str {
        match self {
            Self::Acc => {
                "the choice with the largest sum of log-probabilities of its tokens is right (the first of equals)"
            }
            Self::AccNorm => "as acc, the sum divided by the choice's Unicode characters, delimiter not counted",
            Self::AccBytes => "as acc, the sum divided by the choice's UTF-8 bytes, delimiter not counted",
            Self::AccToken => "as acc, the sum divided by the number of tokens",
            Self::AccGreedy => "each token of the choice is the most probable one (lm-evaluation-harness calls it acc)",
            Self::Perplexity => "exp of minus the mean over items of the choice's log-probability",
            Self::ExactMatchStrict => "what the task's strict expression finds first in the text written is the answer",
            Self::ExactMatchFlexible => "what the task's flexible expression finds last is the answer",
            Self::ExactMatchNumeric => "as exact_match_flexible, compared as numbers: 29.00 is 29",
            Self::ExactMatch => "what the filters of a YAML task leave of the text written is the answer",
            Self::PassAt1 => "the program written passes all tests; of several, the share that does",
            Self::PassAt2
            | Self::PassAt5
            | Self::PassAt8
            | Self::PassAt10
            | Self::PassAt16
            | Self::PassAt32
            | Self::PassAt64
            | Self::PassAt100 => {
                "1 − C(n−c, k) / C(n, k) for k = 2, 5, 8, 10, 16, 32, 64, 100 up to the n programs written, c of which pass"
            }
            Self::PromptLevelStrictAcc => "the text follows all instructions of its prompt",
            Self::InstLevelStrictAcc => "instructions followed over all instructions, of all prompts together",
            Self::PromptLevelLooseAcc => {
                "as prompt_level_strict_acc, each instruction on the best of eight readings: without asterisks, without \
                 first and last line"
            }
            Self::InstLevelLooseAcc => "as inst_level_strict_acc, on the best of the eight readings",
            Self::Mc2 => "sum of the right choices' probabilities over the sum of all choices'",
        }
    }

    /// Whether it judges what a model wrote.
    pub fn is_of_text(self) -> bool {
        let matched = matches!(
            self,
            Self::ExactMatch | Self::ExactMatchStrict | Self::ExactMatchFlexible | Self::ExactMatchNumeric
        );
        matched || self.attempts().is_some() || self.is_of_instructions()
    }

    /// Whether it counts instructions that are followed.
    pub fn is_of_instructions(self) -> bool {
        self.weighs_instructions() || matches!(self, Self::PromptLevelStrictAcc | Self::PromptLevelLooseAcc)
    }

    /// Whether an item weighs as many as it has instructions.
    pub fn weighs_instructions(self) -> bool {
        matches!(self, Self::InstLevelStrictAcc | Self::InstLevelLooseAcc)
    }

    /// Whether an item is either right or wrong by it.
    pub fn is_binary(self) -> bool {
        !matches!(self, Self::Perplexity | Self::Mc2)
            && self.attempts().is_none_or(|k| k == 1)
            && !self.weighs_instructions()
    }
}

impl std::fmt::Display for Metric {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
