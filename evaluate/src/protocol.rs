//! The named ways to compute a perplexity, as a table of data.
//!
//! With `l(t)` the negative log-likelihood in nats of target token `t` given the tokens before it in its window, every
//! protocol is `exp(Σ_w numerator(w) / Σ_w weight(w))` over blocks `w`, and the protocols differ in how the text is
//! made one string, how it is cut, which targets count, what stands before the first token, and how blocks weigh:
//!
//! ```text
//! window means   numerator = mean of l over the window's targets   weight = 1
//! tokens         numerator = sum of l over the window's targets    weight = number of targets
//! words          numerator = sum of l over a page                  weight = words of the page before detokenizing
//! ```
//!
//! The same model on the same text moves by more than a fifth between protocols, so the name belongs beside every
//! figure. Sources: the GPTQ paper's code, the Transformers documentation on fixed-length models, llama.cpp's
//! perplexity tool and lm-evaluation-harness, whose rules are restated here and whose figures the tests reproduce.

use crate::EvaluateError;
use serde::Serialize;

/// How documents become the strings that are tokenized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TextHandling {
    /// Lines as rows (a whitespace-only line becomes empty, others keep their newline), joined by a blank line: how
    /// the WikiText rows of the hub come out of `"\n\n".join`.
    Joined,
    /// The file as it is.
    Raw,
    /// Lines stripped of surrounding space, joined by a blank line (Penn Treebank).
    SentencesBlankLine,
    /// Lines stripped of surrounding space, joined by one space (Penn Treebank, newer form).
    SentencesSpace,
    /// WikiText articles, each detokenized and taken by itself.
    Pages,
    /// 256 windows at random places of random documents that are long enough, Python's generator with seed 0.
    RandomSlices,
    /// The first 1,100 documents joined by one space, of which the first 256 windows count.
    FirstDocuments,
}

/// The length of a window in tokens, before it is cut to what the model can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowLength {
    /// This many, whatever the model.
    Fixed(usize),
    /// This many unless `--window` says otherwise.
    Default(usize),
    /// The model's longest unless `--window` says otherwise.
    Longest,
}

/// Where windows start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stride {
    /// One window after the other.
    Window,
    /// Every so many tokens.
    Fixed(usize),
    /// Every so many tokens unless `--stride` says otherwise.
    Default(usize),
}

/// Which targets of a window count, and what becomes of an incomplete last window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scored {
    /// All but the first token; an incomplete last window is dropped.
    AllOfFullWindows,
    /// Those that no earlier window had; the last window may be short.
    New,
    /// All but the first token of every window, so most tokens count twice; the last window may be short.
    AllEveryTime,
    /// The second half; an incomplete last window is dropped.
    SecondHalf,
    /// Every token once: windows follow each other with one token of context, the last is filled up to the left.
    Rolling,
}

/// What stands before the first target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Beginning {
    /// What the tokenizer puts before the whole text, hence in the first window only.
    Tokenizer,
    /// BOS in place of each window's first token, if the tokenizer puts one before a text.
    Replaced,
    /// BOS, else EOS, before each page.
    Prefix,
}

/// How blocks weigh in the mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reduction {
    /// Every window alike.
    WindowMeans,
    /// Every scored token alike.
    Tokens,
    /// By the words of each page: word perplexity.
    Words,
}

/// A named protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// The name people quote.
    pub name: &'static str,
    /// How the text is put together.
    pub text: TextHandling,
    /// Tokens in a window.
    pub window: WindowLength,
    /// Distance of windows.
    pub stride: Stride,
    /// Which targets count.
    pub scored: Scored,
    /// What stands before the first target.
    pub beginning: Beginning,
    /// How blocks weigh.
    pub reduction: Reduction,
    /// The formula, in a line.
    pub formula: &'static str,
    /// Where it is used and what to beware of.
    pub note: &'static str,
}

const GPTQ: Protocol = Protocol {
    name: "gptq-2048",
    text: TextHandling::Joined,
    window: WindowLength::Fixed(2048),
    stride: Stride::Window,
    scored: Scored::AllOfFullWindows,
    beginning: Beginning::Tokenizer,
    reduction: Reduction::WindowMeans,
    formula: "exp(mean over windows of the mean of l over the window's targets, all tokens but the first)",
    note: "What papers on weight quantization report for WikiText-2.",
};

const SEED: Protocol = Protocol {
    name: "seed-1024-512",
    text: TextHandling::Joined,
    window: WindowLength::Fixed(1024),
    stride: Stride::Fixed(512),
    scored: Scored::AllEveryTime,
    beginning: Beginning::Tokenizer,
    reduction: Reduction::WindowMeans,
    formula: "exp(mean over windows of the mean of l over all targets of the window, nothing masked)",
    note: "The common tutorial loop. It looks like a sliding window but scores most tokens twice, once with little \
           context; it estimates `hf-disjoint` with window 1024 and lies clearly above `hf-sliding`.",
};

/// Every protocol, the default first.
pub const PROTOCOLS: &[Protocol] = &[
    GPTQ,
    Protocol {
        name: "gptq-ctx",
        window: WindowLength::Longest,
        formula: "as gptq-2048 with windows of the model's context length",
        note: "What OWQ, QuIP and others report; lower than gptq-2048 for long-context models. `--window` sets the length.",
        ..GPTQ
    },
    Protocol {
        name: "hf-sliding",
        window: WindowLength::Default(1024),
        stride: Stride::Default(512),
        scored: Scored::New,
        reduction: Reduction::Tokens,
        formula: "exp(Σ l / n) over targets not scored before, each with at least window − stride tokens of context",
        note: "The Transformers documentation's strided evaluation with every target weighing the same (its present code \
               gives windows after the first a weight of 511 for 512 targets, a slip of under 0.1 %).",
        ..GPTQ
    },
    Protocol {
        name: "hf-disjoint",
        window: WindowLength::Default(1024),
        scored: Scored::New,
        reduction: Reduction::Tokens,
        formula: "exp(Σ l / n); hf-sliding with stride = window",
        note: "The Transformers documentation's cheap form; higher than hf-sliding because early targets lack context.",
        ..GPTQ
    },
    SEED,
    Protocol {
        name: "seed-1024-512-token-weighted",
        reduction: Reduction::Tokens,
        formula: "exp(Σ l / n) over the same targets as seed-1024-512, duplicates included",
        note: "Shows what the short last window's full weight does to seed-1024-512.",
        ..SEED
    },
    Protocol {
        name: "seed-1024-512-masked",
        scored: Scored::New,
        formula: "exp(mean over windows of the mean of l over targets not scored before)",
        note: "Shows what scoring tokens twice does to seed-1024-512; with equal weights for tokens it is hf-sliding.",
        ..SEED
    },
    Protocol {
        name: "llamacpp-512",
        text: TextHandling::Raw,
        window: WindowLength::Fixed(512),
        scored: Scored::SecondHalf,
        beginning: Beginning::Replaced,
        reduction: Reduction::Tokens,
        formula: "exp(Σ l / n) over the last 255 targets of each window of 512",
        note: "llama.cpp's perplexity tool. Half of the text is never scored.",
        ..GPTQ
    },
    Protocol {
        name: "lm-eval-wikitext",
        text: TextHandling::Pages,
        window: WindowLength::Longest,
        scored: Scored::Rolling,
        beginning: Beginning::Prefix,
        reduction: Reduction::Words,
        formula: "word perplexity exp(Σ l / words); also byte perplexity exp(Σ l / bytes) and bits per byte",
        note: "lm-evaluation-harness's `wikitext`. Words and bytes are those of the page before detokenizing. A word is \
               more than a token, so the figure is higher than any of the others: never compare them. Give it the raw file.",
        ..GPTQ
    },
    Protocol {
        name: "ptb",
        text: TextHandling::SentencesBlankLine,
        formula: "as gptq-2048",
        note: "The GPTQ code's Penn Treebank: sentences joined by a blank line.",
        ..GPTQ
    },
    Protocol {
        name: "ptb-new",
        text: TextHandling::SentencesSpace,
        formula: "as gptq-2048",
        note: "The GPTQ code's newer Penn Treebank: sentences joined by one space.",
        ..GPTQ
    },
    Protocol {
        name: "c4",
        text: TextHandling::RandomSlices,
        formula: "as gptq-2048 over 256 random slices",
        note: "The GPTQ code's C4: give it the first validation shard (JSON lines). Draws as Python's `random.seed(0)` does.",
        ..GPTQ
    },
    Protocol {
        name: "c4-new",
        text: TextHandling::FirstDocuments,
        formula: "as gptq-2048, at most 256 windows",
        note: "The GPTQ code's newer C4: the first 1,100 documents of the first validation shard.",
        ..GPTQ
    },
];

impl Protocol {
    /// The protocol called `name`.
    pub fn named(name: &str) -> Result<&'static Self, EvaluateError> {
        PROTOCOLS
            .iter()
            .find(|protocol| protocol.name == name)
            .ok_or_else(|| EvaluateError::UnknownProtocol { name: name.to_owned(), names: names_where(|_| true) })
    }

    /// Whether `--window` may be given.
    pub fn takes_window(&self) -> bool {
        !matches!(self.window, WindowLength::Fixed(_))
    }

    /// Whether `--stride` may be given.
    pub fn takes_stride(&self) -> bool {
        matches!(self.stride, Stride::Default(_))
    }

    /// Whether `--text` may be given: the text is one string either way.
    pub fn takes_text(&self) -> bool {
        matches!(self.text, TextHandling::Joined | TextHandling::Raw)
    }
}

/// The entry of a protocol in the list for people: a line for each rule.
impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let window = match self.window {
            WindowLength::Fixed(length) => format!("{length} tokens"),
            WindowLength::Default(length) => format!("{length} tokens, or `--window`"),
            WindowLength::Longest => "the model's longest sequence, or `--window`".to_owned(),
        };
        let stride = match self.stride {
            Stride::Window => "the window".to_owned(),
            Stride::Fixed(stride) => format!("{stride} tokens"),
            Stride::Default(stride) => format!("{stride} tokens, or `--stride`"),
        };
        writeln!(f, "{}", self.name)?;
        writeln!(f, "  text    {}", self.text.explain())?;
        writeln!(f, "  window  {window}; stride {stride}")?;
        writeln!(f, "  scored  {}", self.scored.explain())?;
        writeln!(f, "  BOS     {}", self.beginning.explain())?;
        writeln!(f, "  value   {}", self.formula)?;
        writeln!(f, "  note    {}", self.note)
    }
}

impl TextHandling {
    fn explain(self) -> &'static str {
        match self {
            Self::Joined => "lines as rows, blank ones emptied, joined by a blank line; tokenized whole",
            Self::Raw => "the file as it is; tokenized whole",
            Self::SentencesBlankLine => "lines stripped, joined by a blank line; tokenized whole",
            Self::SentencesSpace => "lines stripped, joined by one space; tokenized whole",
            Self::Pages => "WikiText articles, detokenized, each by itself",
            Self::RandomSlices => "256 random windows of random documents longer than a window, seed 0",
            Self::FirstDocuments => {
                "the first 1,100 documents joined by one space; tokenized whole, cut to 256 windows"
            }
        }
    }
}

impl Scored {
    fn explain(self) -> &'static str {
        match self {
            Self::AllOfFullWindows => "every token of a window but its first; an incomplete last window is dropped",
            Self::New => "every token that no earlier window had, but a window's first; the last window may be short",
            Self::AllEveryTime => {
                "every token of every window but its first, most of them twice; the last may be short"
            }
            Self::SecondHalf => "the second half of a window but its first token; an incomplete last window is dropped",
            Self::Rolling => "every token once; later windows keep one token of context, the last is filled up",
        }
    }
}

impl Beginning {
    fn explain(self) -> &'static str {
        match self {
            Self::Tokenizer => "what the tokenizer adds before the whole text, so in the first window only",
            Self::Replaced => "in place of each window's first token, if the tokenizer puts one before a text",
            Self::Prefix => "before each page (EOS where the model has no BOS)",
        }
    }
}

fn names_where(accept: impl Fn(&Protocol) -> bool) -> String {
    let names: Vec<&str> = PROTOCOLS.iter().filter(|protocol| accept(protocol)).map(|protocol| protocol.name).collect();
    names.join(", ")
}

/// What a user may change about a protocol; `None` leaves it as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Changes {
    /// Tokens in a window.
    pub window: Option<usize>,
    /// Distance of windows.
    pub stride: Option<usize>,
    /// Joined or raw text.
    pub text: Option<TextHandling>,
    /// Only the first so many tokens.
    pub max_tokens: Option<usize>,
}

impl Changes {
    /// Whether `protocol` lets all of these be changed, before any model is looked at.
    pub fn check(&self, protocol: &'static Protocol) -> Result<(), EvaluateError> {
        let fixed = |what: String, option, others: fn(&Protocol) -> bool| {
            Err(EvaluateError::Fixed { protocol: protocol.name, what, option, others: names_where(others) })
        };
        if let (Some(_), WindowLength::Fixed(length)) = (self.window, protocol.window) {
            return fixed(format!("window at {length} tokens"), "--window", Protocol::takes_window);
        }
        if self.stride.is_some() && !protocol.takes_stride() {
            return fixed("stride".to_owned(), "--stride", Protocol::takes_stride);
        }
        if self.text.is_some() && !protocol.takes_text() {
            return fixed("text handling".to_owned(), "--text", Protocol::takes_text);
        }
        Ok(())
    }

    /// The protocol with these changes for a model whose longest sequence is `longest`.
    pub fn resolve(&self, protocol: &'static Protocol, longest: usize) -> Result<Resolved, EvaluateError> {
        self.check(protocol)?;
        let wanted = match protocol.window {
            WindowLength::Fixed(length) => length,
            WindowLength::Default(length) => self.window.unwrap_or(length),
            WindowLength::Longest => self.window.unwrap_or(longest),
        };
        let window = wanted.min(longest);
        let stride = match protocol.stride {
            Stride::Window => window,
            Stride::Fixed(stride) => stride.min(window),
            Stride::Default(stride) => self.stride.unwrap_or(stride.min(window)),
        };
        if window < 2 {
            return geometry(format!("a window of {window} tokens has no target; `--window` must be at least 2"));
        }
        if stride == 0 || stride > window {
            return geometry(format!("`--stride` {stride} must lie between 1 and the window of {window} tokens"));
        }
        let text = self.text.unwrap_or(protocol.text);
        Ok(Resolved {
            protocol,
            window,
            window_cut_from: (window < wanted).then_some(wanted),
            stride,
            text,
            max_tokens: self.max_tokens,
        })
    }
}

fn geometry(what: String) -> Result<Resolved, EvaluateError> {
    Err(EvaluateError::Geometry { what })
}

/// A protocol with every number settled for one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The protocol.
    pub protocol: &'static Protocol,
    /// Tokens in a window.
    pub window: usize,
    /// The protocol's own window, where the model's longest sequence is shorter.
    pub window_cut_from: Option<usize>,
    /// Distance of windows.
    pub stride: usize,
    /// How the text is put together.
    pub text: TextHandling,
    /// Only the first so many tokens.
    pub max_tokens: Option<usize>,
}

impl Resolved {
    /// The name with whatever departs from the protocol as published.
    pub fn title(&self) -> String {
        let mut departures = Vec::new();
        if self.window_cut_from.is_some() {
            departures.push(format!("window {}: the model's longest", self.window));
        } else if self.protocol.takes_window() {
            departures.push(format!("window {}", self.window));
        }
        if self.protocol.takes_stride() {
            departures.push(format!("stride {}", self.stride));
        }
        if self.text != self.protocol.text {
            departures.push(format!("{} text", if self.text == TextHandling::Raw { "raw" } else { "joined" }));
        }
        if let Some(tokens) = self.max_tokens {
            departures.push(format!("first {tokens} tokens"));
        }
        if departures.is_empty() {
            return self.protocol.name.to_owned();
        }
        format!("{} ({})", self.protocol.name, departures.join(", "))
    }

    /// How many windows in a row share tokens: the block length of the bootstrap.
    pub fn overlap(&self) -> usize {
        self.window.div_ceil(self.stride)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_the_default_is_first() {
        for (index, protocol) in PROTOCOLS.iter().enumerate() {
            assert_eq!(Protocol::named(protocol.name).unwrap(), protocol);
            assert!(PROTOCOLS[..index].iter().all(|other| other.name != protocol.name));
        }
        assert_eq!(PROTOCOLS[0].name, "gptq-2048");
    }

    #[test]
    fn a_short_model_cuts_the_window_and_says_so() {
        let resolved = Changes::default().resolve(Protocol::named("gptq-2048").unwrap(), 256).unwrap();
        assert_eq!((resolved.window, resolved.stride), (256, 256));
        assert_eq!(resolved.title(), "gptq-2048 (window 256: the model's longest)");
        let seed = Changes::default().resolve(Protocol::named("seed-1024-512").unwrap(), 256).unwrap();
        assert_eq!((seed.window, seed.stride, seed.overlap()), (256, 256, 1));
    }

    #[test]
    fn what_a_protocol_fixes_can_not_be_changed() {
        let changes = Changes { window: Some(512), ..Changes::default() };
        let error = changes.resolve(Protocol::named("gptq-2048").unwrap(), 8192).unwrap_err().to_string();
        assert!(error.contains("window at 2048 tokens") && error.contains("hf-sliding"), "{error}");
        let changes = Changes { text: Some(TextHandling::Raw), ..Changes::default() };
        assert!(changes.check(Protocol::named("ptb").unwrap()).is_err());
        let changes = Changes { stride: Some(2000), ..Changes::default() };
        let error = changes.resolve(Protocol::named("hf-sliding").unwrap(), 8192).unwrap_err().to_string();
        assert!(error.contains("2000") && error.contains("1024"), "{error}");
        let changes = Changes { window: Some(1), ..Changes::default() };
        assert!(changes.resolve(Protocol::named("hf-disjoint").unwrap(), 8192).is_err());
    }

    #[test]
    fn titles_name_every_departure() {
        let changes = Changes { stride: Some(256), text: Some(TextHandling::Raw), max_tokens: Some(99), window: None };
        let resolved = changes.resolve(Protocol::named("hf-sliding").unwrap(), 8192).unwrap();
        assert_eq!(resolved.title(), "hf-sliding (window 1024, stride 256, raw text, first 99 tokens)");
        assert_eq!(resolved.overlap(), 4);
    }
}
