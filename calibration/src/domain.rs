//! A source of calibration text and its weight in a mixture.

use crate::{CalibrationError, manifest::FileRecord};
use model::{
    hub::{self, HubId},
    text::{self, Document},
};
use sha2::{Digest, Sha256};
use std::{fmt, path::Path};

/// Where text comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// A file, folder or glob.
    Files(String),
    /// An embedded text: `demo:prose`, `demo:code`.
    Demo(String),
    /// Tokens drawn evenly from the vocabulary, the control of a study.
    RandomTokens,
    /// A data set file on a hub: `hub:org/name/path[@revision]`.
    Hub(String),
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Files(pattern) => formatter.write_str(pattern),
            Self::Demo(name) => write!(formatter, "demo:{name}"),
            Self::RandomTokens => formatter.write_str("random-tokens"),
            Self::Hub(file) => write!(formatter, "hub:{file}"),
        }
    }
}

impl Source {
    fn parse(text: &str) -> Result<Self, CalibrationError> {
        if text.is_empty() {
            return Err(CalibrationError::Option(
                "a calibration source is empty: give a file, folder, glob, demo:prose, demo:code, hub:org/name/path or random-tokens"
                    .into(),
            ));
        }
        if text == "random-tokens" {
            return Ok(Self::RandomTokens);
        }
        match text.split_once(':') {
            Some(("demo", name @ ("prose" | "code"))) => Ok(Self::Demo(name.to_owned())),
            Some(("demo", name)) => Err(CalibrationError::Option(format!(
                "demo:{name}: the embedded calibration texts are demo:prose and demo:code"
            ))),
            Some(("hub", file)) => {
                hub_file(file)?;
                Ok(Self::Hub(file.to_owned()))
            }
            _ => Ok(Self::Files(text.to_owned())),
        }
    }

    /// The documents of this source and the files they come from; `field` as in [`text::read`].
    pub(crate) fn read(&self, field: Option<&str>) -> Result<(Vec<FileRecord>, Vec<Document>), CalibrationError> {
        match self {
            Self::Files(pattern) => read_files(pattern, field),
            Self::Hub(file) => {
                let (id, path) = hub_file(file)?;
                read_files(&hub::dataset_file(&id, &path)?.to_string_lossy(), field)
            }
            Self::Demo(name) => {
                let text = model::demo::text(name).ok_or_else(|| {
                    CalibrationError::Option(format!("demo:{name}: there is no embedded text of that name"))
                })?;
                let sha256 = text::hexadecimal(&Sha256::digest(text));
                Ok((vec![FileRecord { name: self.to_string(), sha256 }], vec![Document::Text(text.to_owned())]))
            }
            Self::RandomTokens => Ok((Vec::new(), Vec::new())),
        }
    }
}

fn read_files(pattern: &str, field: Option<&str>) -> Result<(Vec<FileRecord>, Vec<Document>), CalibrationError> {
    let (mut records, mut documents) = (Vec::new(), Vec::new());
    for file in text::read(pattern, field)? {
        let name = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        records.push(FileRecord { name, sha256: file.sha256 });
        documents.extend(file.documents);
    }
    Ok((records, documents))
}

/// `org/name/path[@revision]` taken apart.
fn hub_file(file: &str) -> Result<(HubId, String), CalibrationError> {
    let (path, revision) = file.rsplit_once('@').unwrap_or((file, "main"));
    let mut parts = path.splitn(3, '/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(owner), Some(name), Some(path))
            if ![owner, name, revision].contains(&"")
                && path.split('/').all(|part| !matches!(part, "" | "." | "..")) =>
        {
            Ok((HubId { name: format!("{owner}/{name}"), revision: revision.to_owned() }, path.to_owned()))
        }
        _ => Err(CalibrationError::Option(format!(
            "hub:{file}: a data set's file is named hub:org/name/path/of/file[@revision]"
        ))),
    }
}

/// A source and its share of the windows.
#[derive(Clone, Debug, PartialEq)]
pub struct Domain {
    /// The source.
    pub source: Source,
    /// Relative weight.
    pub weight: f64,
}

impl Domain {
    /// Parses `SOURCE` or `SOURCE=WEIGHT`. What follows the last `=` is a weight if it is a number and the whole isn't a
    /// file's name.
    pub fn parse(text: &str) -> Result<Self, CalibrationError> {
        let weighted = text.rsplit_once('=').filter(|_| !Path::new(text).exists());
        let weighted = weighted.and_then(|(source, weight)| Some((source, weight.parse::<f64>().ok()?)));
        let (source, weight) = weighted.unwrap_or((text, 1.0));
        if !(weight > 0.0 && weight.is_finite()) {
            return Err(CalibrationError::Option(format!("{text}: a source's weight must be a number above zero")));
        }
        Ok(Self { source: Source::parse(source)?, weight })
    }
}

/// Deals `samples` windows out to domains in proportion to their `weights`, by largest remainder: each gets the whole
/// part of its share, and the windows left go to the largest fractional parts, the earlier domain where they tie.
pub(crate) fn shares(weights: &[f64], samples: usize) -> Vec<usize> {
    let total: f64 = weights.iter().sum();
    let exact: Vec<f64> = weights.iter().map(|weight| samples as f64 * (weight / total)).collect();
    let mut shares: Vec<usize> = exact.iter().map(|share| share.floor() as usize).collect();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|a, b| exact[*b].fract().total_cmp(&exact[*a].fract()).then(a.cmp(b)));
    let left = samples.saturating_sub(shares.iter().sum());
    for domain in order.into_iter().cycle().take(left) {
        shares[domain] += 1;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(text: &str) -> (Source, f64) {
        let domain = Domain::parse(text).unwrap();
        (domain.source, domain.weight)
    }

    #[test]
    fn sources_are_told_apart() {
        assert_eq!(parsed("a/b.txt"), (Source::Files("a/b.txt".into()), 1.0));
        assert_eq!(parsed("*.jsonl=0.25"), (Source::Files("*.jsonl".into()), 0.25));
        assert_eq!(parsed("a=b.txt"), (Source::Files("a=b.txt".into()), 1.0));
        assert_eq!(parsed("a=b.txt=3"), (Source::Files("a=b.txt".into()), 3.0));
        assert_eq!(parsed("demo:code=2"), (Source::Demo("code".into()), 2.0));
        assert_eq!(parsed("random-tokens"), (Source::RandomTokens, 1.0));
        assert_eq!(parsed("hub:o/n/d/f.parquet@v1=2"), (Source::Hub("o/n/d/f.parquet@v1".into()), 2.0));
        assert_eq!(parsed("C:/texts"), (Source::Files("C:/texts".into()), 1.0));
    }

    #[test]
    fn a_source_is_shown_as_it_was_given() {
        for text in ["a/b.txt", "demo:prose", "random-tokens", "hub:o/n/f.csv@main"] {
            assert_eq!(parsed(text).0.to_string(), text);
        }
    }

    #[test]
    fn hub_files_fall_apart_into_id_and_path() {
        let (id, path) = hub_file("org/name/en/train.parquet@abc").unwrap();
        assert_eq!((id.name.as_str(), id.revision.as_str(), path.as_str()), ("org/name", "abc", "en/train.parquet"));
        assert_eq!(hub_file("org/name/f").unwrap().0.revision, "main");
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for text in ["", "=2", "a=0", "a=-1", "a=nan", "a=inf", "demo:prose-heldout", "demo:", "hub:org/name"] {
            assert!(Domain::parse(text).is_err(), "{text}");
        }
        for text in ["hub:org/name/../x", "hub:org//f", "hub:org/name/f@", "hub:org/name/"] {
            assert!(Domain::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn windows_left_go_to_the_largest_remainders() {
        assert_eq!(shares(&[1.0, 1.0, 1.0], 8), [3, 3, 2]);
        assert_eq!(shares(&[0.7, 0.2, 0.1], 12), [9, 2, 1]);
        assert_eq!(shares(&[1.0], 128), [128]);
        assert_eq!(shares(&[1.0, 1e-9], 4), [4, 0]);
    }

    proptest! {
        #[test]
        fn shares_add_up_and_are_within_one_of_the_exact_ones(
            weights in prop::collection::vec(1e-3f64..1e3, 1..8),
            samples in 0usize..1000,
        ) {
            let dealt = shares(&weights, samples);
            prop_assert_eq!(dealt.iter().sum::<usize>(), samples);
            let total: f64 = weights.iter().sum();
            for (share, weight) in dealt.iter().zip(&weights) {
                prop_assert!((*share as f64 - samples as f64 * weight / total).abs() < 1.0 + 1e-9);
            }
        }
    }
}
