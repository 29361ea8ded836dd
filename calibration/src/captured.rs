//! Statistics as an artefact: captured once over a model as it is, kept in a folder, read for any number of solves.
//!
//! ```text
//! FOLDER/statistics.json                 what they are of: the model's files, the windows' tokens, token count
//! FOLDER/block-00007.safetensors         the inputs of block 7's four stages (layout: `statistics_file`)
//! ```
//!
//! They are those of the original model, so that nothing a solver does to one layer changes the input of another: every
//! number of bits, group size, order and damping is solved on the same ones. Killed while capturing, the next run goes on
//! after the last block that is there. Several folders, of other texts for the same model, can be read as one mixture.

use crate::{
    CalibrationError, LayerStatistics, Visitor,
    driver::{DriverOptions, drive},
    statistics_file,
};
use model::{Block, Checkpoint, Config, Linear, Stage};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// What a folder of statistics is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// SHA-256 of each of the model's files.
    pub model_sha256: Vec<String>,
    /// SHA-256 of the windows' tokens.
    pub tokens_sha256: String,
    /// Windows.
    pub windows: usize,
    /// Tokens in them.
    pub tokens: usize,
    /// Where the text came from.
    pub sources: Vec<String>,
}

/// A folder of statistics.
#[derive(Clone, Debug, PartialEq)]
pub struct Captured {
    folder: PathBuf,
    /// What they are of.
    pub origin: Origin,
}

/// Statistics of a block's stages, in the order of the stages.
pub type BlockStatistics = Vec<(Stage, LayerStatistics)>;

/// Something that has the statistics of every block.
pub trait Statistics {
    /// Those of block `index`.
    fn block(&self, config: &Config, index: usize) -> Result<BlockStatistics, CalibrationError>;
}

impl Captured {
    /// Opens `folder`, all of whose `blocks` blocks must be there.
    pub fn open(folder: &Path, blocks: usize) -> Result<Self, CalibrationError> {
        let path = folder.join("statistics.json");
        let wrong = |what: String| CalibrationError::Statistics { path: path.clone(), what };
        let text = fs::read(&path).map_err(|error| wrong(format!("{error}; is this a folder of statistics?")))?;
        let origin = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
        if let Some(missing) = (0..blocks).find(|&index| !block_path(folder, index).exists()) {
            return Err(wrong(format!("block {missing} of {blocks} is missing: capture again, it goes on from there")));
        }
        Ok(Self { folder: folder.to_owned(), origin })
    }

    /// Walks `checkpoint` over `windows` and keeps the statistics in `folder`; blocks that are there already are only
    /// carried through. `done` hears of each finished block.
    pub fn capture(
        checkpoint: &Checkpoint,
        windows: &[Vec<u32>],
        options: &DriverOptions,
        folder: &Path,
        origin: &Origin,
        done: &mut dyn FnMut(usize),
    ) -> Result<Self, CalibrationError> {
        let blocks = checkpoint.config.layers.len();
        if let Ok(known) = Self::open(folder, blocks)
            && known.origin == *origin
        {
            return Ok(known);
        }
        let path = folder.join("statistics.json");
        let wrong = |what: String| CalibrationError::Statistics { path: path.clone(), what };
        fs::create_dir_all(folder).map_err(|error| wrong(error.to_string()))?;
        let text = serde_json::to_vec_pretty(origin).expect("an origin is plain data");
        match fs::read(&path) {
            Ok(known) if known == text => {}
            Ok(_) => return Err(wrong("holds statistics of another model or text; choose another folder".to_owned())),
            Err(_) => put(&path, &text).map_err(|error| wrong(error.to_string()))?,
        }
        let options = DriverOptions { inputs: crate::Inputs::Original, ..options.clone() };
        let mut recorder = Recorder { folder, captured: Vec::new(), done };
        drive(checkpoint, windows, &options, &mut recorder)?;
        Self::open(folder, blocks)
    }

    /// Bytes on disk of the statistics of a model that `config` describes.
    pub fn bytes(config: &Config) -> u64 {
        let stage = |block, stage| {
            let width = config.linears(block, stage).first().map_or(0, |linear| linear.inputs) as u64;
            width * width * 4 + width * 16
        };
        (0..config.layers.len()).map(|block| Stage::ALL.into_iter().map(|s| stage(block, s)).sum::<u64>()).sum()
    }
}

impl Statistics for Captured {
    fn block(&self, config: &Config, index: usize) -> Result<BlockStatistics, CalibrationError> {
        let path = block_path(&self.folder, index);
        let mut layers = statistics_file::load(&path)?;
        let mut take = |stage: Stage| {
            let linears = config.linears(index, stage);
            let first = linears.first().map(|linear| linear.name.as_str()).unwrap_or_default();
            let place = layers.iter().position(|(name, _)| name == first);
            let wrong = |what| CalibrationError::Statistics { path: path.clone(), what };
            let place = place.ok_or_else(|| wrong(format!("holds nothing of `{first}`: is it of another model?")))?;
            let (_, statistics) = layers.swap_remove(place);
            let width = linears[0].inputs;
            if statistics.width != width {
                return Err(wrong(format!("`{first}` is {} wide in it, but {width} in the model", statistics.width)));
            }
            Ok((stage, statistics))
        };
        Stage::ALL.into_iter().map(&mut take).collect()
    }
}

/// Several folders as one: each with its share, however many tokens it was captured from.
pub struct Mixture(pub Vec<(f64, Captured)>);

impl Statistics for Mixture {
    fn block(&self, config: &Config, index: usize) -> Result<BlockStatistics, CalibrationError> {
        if let [(_, only)] = self.0.as_slice() {
            return only.block(config, index);
        }
        let parts = self.0.iter().map(|(weight, part)| Ok((*weight, part.block(config, index)?)));
        let parts: Vec<(f64, BlockStatistics)> = parts.collect::<Result<_, CalibrationError>>()?;
        let mix = |(number, stage): (usize, Stage)| {
            let parts: Vec<_> = parts.iter().map(|(weight, stages)| (*weight, &stages[number].1)).collect();
            Ok((stage, LayerStatistics::mixture(&parts)?))
        };
        Stage::ALL.into_iter().enumerate().map(mix).collect()
    }
}

fn block_path(folder: &Path, index: usize) -> PathBuf {
    folder.join(format!("block-{index:05}.safetensors"))
}

/// Whole or not at all, also where two processes write the same at once: each under a name of its own first.
fn put(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let own = path.with_extension(format!("tmp-{}", std::process::id()));
    fs::write(&own, bytes)?;
    fs::rename(&own, path)
}

/// Keeps what the driver captures, block by block.
struct Recorder<'a> {
    folder: &'a Path,
    captured: Vec<(String, LayerStatistics)>,
    done: &'a mut dyn FnMut(usize),
}

impl Visitor for Recorder<'_> {
    fn restore(&mut self, block: &mut Block) -> Result<bool, CalibrationError> {
        let there = block_path(self.folder, block.index).exists();
        if there {
            (self.done)(block.index);
        }
        Ok(there)
    }

    fn wants(&self, _linears: &[Linear]) -> bool {
        true
    }

    fn stage(
        &mut self,
        _block: usize,
        _stage: Stage,
        linears: &mut [Linear],
        statistics: &LayerStatistics,
    ) -> Result<(), CalibrationError> {
        self.captured.push((linears[0].name.clone(), statistics.clone()));
        Ok(())
    }

    fn block_done(&mut self, block: &Block) -> Result<(), CalibrationError> {
        let path = block_path(self.folder, block.index);
        let own = path.with_extension(format!("tmp-{}", std::process::id()));
        let captured = std::mem::take(&mut self.captured);
        let layers: Vec<_> = captured.iter().map(|(name, statistics)| (name.clone(), statistics)).collect();
        statistics_file::save(&own, &layers)?;
        fs::rename(&own, &path)
            .map_err(|error| CalibrationError::Statistics { path: path.clone(), what: error.to_string() })?;
        (self.done)(block.index);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Inputs, Sequence};

    const WINDOWS: [[u32; 24]; 3] = [[5; 24], [9; 24], [40; 24]];

    fn windows(of: std::ops::Range<usize>) -> Vec<Vec<u32>> {
        let window = |index: usize| WINDOWS[index].iter().zip(0..).map(|(token, at)| token + at * 7).collect();
        of.map(window).collect()
    }

    fn origin(tokens_sha256: &str) -> Origin {
        let tokens_sha256 = tokens_sha256.to_owned();
        Origin { model_sha256: vec!["m".to_owned()], tokens_sha256, windows: 1, tokens: 24, sources: Vec::new() }
    }

    fn options(folder: &Path) -> DriverOptions {
        DriverOptions {
            inputs: Inputs::Quantized,
            sequence: Sequence::Module,
            compare_original: false,
            activation_bytes_in_memory: usize::MAX,
            spill_folder: folder.to_owned(),
            engine: kernels::Engine::Cpu,
            device_windows: 0,
        }
    }

    fn capture(folder: &Path, windows: &[Vec<u32>], origin: &Origin) -> Result<Captured, CalibrationError> {
        let checkpoint = Checkpoint::open("demo").unwrap();
        Captured::capture(&checkpoint, windows, &options(folder), folder, origin, &mut |_| {})
    }

    #[test]
    fn a_broken_off_capture_goes_on_and_gives_the_same() {
        let (whole, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let config = Checkpoint::open("demo").unwrap().config;
        let first = capture(whole.path(), &windows(0..3), &origin("a")).unwrap();
        capture(broken.path(), &windows(0..3), &origin("a")).unwrap();
        fs::remove_file(block_path(broken.path(), config.layers.len() - 1)).unwrap();
        assert!(Captured::open(broken.path(), config.layers.len()).unwrap_err().to_string().contains("is missing"));
        let again = capture(broken.path(), &windows(0..3), &origin("a")).unwrap();
        for index in 0..config.layers.len() {
            assert_eq!(first.block(&config, index).unwrap(), again.block(&config, index).unwrap());
        }
        let error = capture(broken.path(), &windows(0..2), &origin("b")).unwrap_err().to_string();
        assert!(error.contains("another model or text"), "{error}");
    }

    #[test]
    fn a_mixture_by_token_counts_is_the_capture_of_both_texts() {
        let folder = tempfile::tempdir().unwrap();
        let config = Checkpoint::open("demo").unwrap().config;
        let part = |name: &str, of| capture(&folder.path().join(name), &windows(of), &origin(name)).unwrap();
        let (a, b, both) = (part("a", 0..1), part("b", 1..3), part("both", 0..3));
        let mixture = Mixture(vec![(1.0, a), (2.0, b)]);
        for index in 0..config.layers.len() {
            let (mixed, wanted) = (mixture.block(&config, index).unwrap(), both.block(&config, index).unwrap());
            for ((_, mixed), (_, wanted)) in mixed.iter().zip(&wanted) {
                assert_eq!(mixed.tokens, wanted.tokens);
                // 72 products summed in float32 in another order, each sum again rounded twice: (72 + 2) · 2⁻²⁴ of the
                // diagonal, which bounds every entry.
                let largest = wanted.gram.iter().step_by(wanted.width + 1).fold(0.0f32, |most, entry| most.max(*entry));
                let bound = 74.0 * largest / (1 << 24) as f32;
                assert!(mixed.gram.iter().zip(&wanted.gram).all(|(a, b)| (a - b).abs() <= bound));
            }
        }
    }

    #[test]
    fn the_size_is_known_beforehand() {
        let folder = tempfile::tempdir().unwrap();
        let config = Checkpoint::open("demo").unwrap().config;
        capture(folder.path(), &windows(0..1), &origin("a")).unwrap();
        let files = (0..config.layers.len()).map(|index| fs::metadata(block_path(folder.path(), index)).unwrap().len());
        let (files, told) = (files.sum::<u64>(), Captured::bytes(&config));
        // What is more are headers.
        assert!(told <= files && files <= told + 4096 * config.layers.len() as u64, "{told} against {files}");
    }
}
