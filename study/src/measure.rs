//! What is measured of a configuration, and in which words and unit its loss is told.
//!
//! ```text
//! perplexity   blocks hold negative log-likelihoods   loss: difference of log-perplexities    told as a change in per cent
//! divergence   blocks hold KL(unquantized || model)   loss: the mean itself, in nats a token  told in nats
//! task         blocks hold 1 − the item's score       loss: difference of the shares wrong    told in percentage points
//! times        blocks hold log seconds a token        loss: difference of the logarithms      told as a change in per cent
//! ```
//!
//! More is worse in all of them, so that everything that compares configurations is written once. Losses of different
//! measures are never averaged.

use crate::statistics::Estimate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A measure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// How well a text is foretold.
    #[default]
    Perplexity,
    /// How far the distributions are from those of the unquantized model on a text.
    Divergence,
    /// How many of a task's questions are answered rightly.
    Task,
    /// How long a token takes in scoring a text ([`crate::speed`]).
    ReadingTime,
    /// How long a token takes in writing, many sequences at once.
    WritingTime,
}

impl Measure {
    /// Every measure, in the order of reports.
    pub const ALL: [Self; 5] = [Self::Perplexity, Self::Divergence, Self::Task, Self::ReadingTime, Self::WritingTime];

    /// Whether a loss is the logarithm of a ratio.
    pub fn is_ratio(self) -> bool {
        self == Self::Perplexity || self.is_timed()
    }

    /// Whether the clock is read: the checkpoint has to be the one that would be used.
    pub fn is_timed(self) -> bool {
        matches!(self, Self::ReadingTime | Self::WritingTime)
    }

    /// What it is called in headings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Perplexity => "perplexity",
            Self::Divergence => "KL divergence",
            Self::Task => "tasks",
            Self::ReadingTime => "time to read",
            Self::WritingTime => "time to write",
        }
    }

    /// What a loss is called on axes and in tables.
    pub fn loss(self) -> &'static str {
        match self {
            Self::Perplexity => "change of perplexity",
            Self::Divergence => "KL divergence in nats",
            Self::Task => "more answers wrong",
            Self::ReadingTime => "change of the time to read a token",
            Self::WritingTime => "change of the time to write a token",
        }
    }

    /// What changes by a loss, in a sentence.
    pub fn subject(self) -> &'static str {
        match self {
            Self::Perplexity => "perplexity",
            Self::Divergence => "the divergence from the unquantized model",
            Self::Task => "the share of wrong answers",
            Self::ReadingTime => "the time to read a token",
            Self::WritingTime => "the time to write a token",
        }
    }

    /// A loss, or a difference of losses, in words: `+3.10 %`, `+0.0123 nats`, `+1.25 points`.
    pub fn change(self, value: f64) -> String {
        let (number, unit) = self.number(value);
        format!("{number}{unit}")
    }

    /// The 95 % interval.
    pub fn interval(self, estimate: &Estimate) -> String {
        let ends = |[low, high]: [f64; 2]| format!("{} to {}", self.number(low).0, self.change(high));
        estimate.interval.map_or_else(|| "not known from one window".to_owned(), ends)
    }

    /// The change with its interval.
    pub fn with_interval(self, estimate: &Estimate) -> String {
        format!("{} (95 % interval {})", self.change(estimate.value), self.interval(estimate))
    }

    fn number(self, value: f64) -> (String, &'static str) {
        let (text, unit) = match self {
            Self::Perplexity | Self::ReadingTime | Self::WritingTime => {
                let percent = 100.0 * value.exp_m1();
                (format!("{percent:+.*}", if percent < 1000.0 { 2 } else { 0 }), " %")
            }
            Self::Divergence => (format!("{value:+.*}", decimals(value)), " nats"),
            Self::Task => (format!("{:+.2}", 100.0 * value), " points"),
        };
        // A rounded nothing has no sign.
        let nothing = text.trim_start_matches(['+', '-']).chars().all(|c| "0.".contains(c));
        let text = if nothing { text.trim_start_matches(['+', '-']).to_owned() } else { text };
        (text.replace('-', "\u{2212}"), unit)
    }

    /// Where a loss stands on an axis.
    pub fn plotted(self, value: f64) -> f64 {
        match self {
            Self::Perplexity | Self::ReadingTime | Self::WritingTime => 100.0 * value.exp_m1(),
            Self::Divergence => value,
            Self::Task => 100.0 * value,
        }
    }

    /// A place on an axis, in words.
    pub fn tick(self, place: f64) -> String {
        // Nothing has no sign, not even a negative nothing.
        let place = place + 0.0;
        let unit = match self {
            Self::Perplexity | Self::ReadingTime | Self::WritingTime => " %",
            Self::Divergence | Self::Task => "",
        };
        let text = format!("{place:+}{unit}").replace('-', "\u{2212}");
        if place == 0.0 { text.trim_start_matches('+').to_owned() } else { text }
    }
}

/// Decimals that show three digits of a small number.
fn decimals(value: f64) -> usize {
    let magnitude = value.abs();
    if magnitude >= 0.1 || magnitude == 0.0 { 3 } else { (2.0 - magnitude.log10().floor()).clamp(3.0, 7.0) as usize }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_have_a_sign_and_nothing_has_none() {
        let percent = |value| Measure::Perplexity.change(value);
        assert_eq!(percent(0.031_f64.ln_1p()), "+3.10 %");
        assert_eq!(percent(-0.0005), "\u{2212}0.05 %");
        assert_eq!(percent(-1e-9), "0.00 %");
        assert_eq!(percent(1234.5_f64.ln()), "+123350 %");
        let estimate = Estimate { value: 0.0, interval: Some([-0.01, 0.01]), seeds: 1, seed_deviation: None };
        assert_eq!(Measure::Perplexity.interval(&estimate), "\u{2212}1.00 to +1.01 %");
        assert_eq!(Measure::Task.interval(&estimate), "\u{2212}1.00 to +1.00 points");
    }

    #[test]
    fn divergences_keep_three_digits() {
        let nats = |value| Measure::Divergence.change(value);
        assert_eq!([nats(0.5), nats(0.01234), nats(0.000_123_4)], ["+0.500 nats", "+0.0123 nats", "+0.000123 nats"]);
        assert_eq!((nats(0.0), nats(-1e-12)), ("0.000 nats".to_owned(), "0.0000000 nats".to_owned()));
    }

    #[test]
    fn ticks_have_no_signed_nothing() {
        assert_eq!(Measure::Perplexity.tick(-0.0), "0 %");
        assert_eq!(Measure::Divergence.tick(0.5), "+0.5");
    }
}
