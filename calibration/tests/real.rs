//! A real model over real text: `CALIPER_MODELS` names the folder of the GGUF files, `CALIPER_SHARED` that of the texts.

#![allow(clippy::unwrap_used, reason = "a test may panic anywhere, helpers included")]
#![allow(clippy::print_stderr, reason = "figures and skipping are said where the test's reader sees them")]

use calibration::{
    CalibrationError, CalibrationSet, DriverOptions, Inputs, LayerStatistics, Packing, Sequence, Visitor,
    WindowOptions, adequacy::check_statistics, domain::Domain, drive,
};
use model::{Block, Checkpoint, Linear, Stage};
use std::{env, path::Path};

/// Leaves the weights alone; keeps a fingerprint of all statistics.
#[derive(Default)]
struct Fingerprint {
    sums: Vec<(f64, f64, f64)>,
    warnings: Vec<String>,
}

impl Visitor for Fingerprint {
    fn restore(&mut self, _: &mut Block) -> Result<bool, CalibrationError> {
        Ok(false)
    }
    fn wants(&self, _: &[Linear]) -> bool {
        true
    }
    fn stage(
        &mut self,
        _: usize,
        _: Stage,
        linears: &mut [Linear],
        statistics: &LayerStatistics,
    ) -> Result<(), CalibrationError> {
        self.warnings.extend(check_statistics(&linears[0].name, statistics)?.warnings);
        let gram = statistics.gram.iter().map(|value| f64::from(*value)).sum();
        self.sums.push((gram, statistics.sum_absolute.iter().sum(), statistics.sum_square.iter().sum()));
        Ok(())
    }
    fn block_done(&mut self, _: &Block) -> Result<(), CalibrationError> {
        Ok(())
    }
}

#[test]
#[ignore = "needs the real models"]
fn a_real_model_is_walked_alike_by_any_number_of_threads() {
    let folder = |name| env::var(name).unwrap_or_else(|_| panic!("{name} names no folder"));
    let (models, shared) = (folder("CALIPER_MODELS"), folder("CALIPER_SHARED"));
    let file = Path::new(&models).join("smollm2-135m-instruct.gguf");
    let checkpoint = Checkpoint::open(file.to_str().unwrap()).unwrap();
    let text = Path::new(&shared).join("data/wikitext2/wiki.valid.word.txt");
    let options =
        WindowOptions { samples: 6, sequence_length: 256, seed: 0, packing: Packing::Consecutive, field: None };
    let domain = Domain::parse(text.to_str().unwrap()).unwrap();
    let set = CalibrationSet::build(&[domain], &options, &checkpoint).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let walk = |threads, sequence| {
        let options = DriverOptions {
            inputs: Inputs::Quantized,
            sequence,
            compare_original: false,
            activation_bytes_in_memory: usize::MAX,
            spill_folder: folder.path().to_path_buf(),
            engine: kernels::Engine::Cpu,
            device_windows: 0,
        };
        let mut fingerprint = Fingerprint::default();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let report = pool.install(|| drive(&checkpoint, &set.windows, &options, &mut fingerprint)).unwrap();
        let sum = |part: fn(&calibration::driver::Seconds) -> f64| report.blocks.iter().map(part).sum::<f64>();
        eprintln!(
            "{threads} threads, {sequence:?}: {} tokens, load {:.1} s, propagate {:.1} s, capture {:.1} s, {} bytes of activations",
            report.tokens,
            sum(|s| s.load),
            sum(|s| s.propagate),
            sum(|s| s.capture),
            report.activation_bytes
        );
        (fingerprint.sums, fingerprint.warnings)
    };
    let (sums, warnings) = walk(1, Sequence::Module);
    assert_eq!(sums.len(), 4 * checkpoint.config.layers.len());
    // 1536 tokens for inputs 576 and 1536 wide: thin for all, no column dead.
    assert_eq!(warnings.len(), sums.len());
    assert!(warnings.iter().all(|warning| warning.contains("thin")), "{warnings:?}");
    let (again, _) = walk(2, Sequence::Module);
    assert_eq!(sums, again);
    // No weight is replaced, so stages in sequence see what they see all at once.
    let (at_once, _) = walk(2, Sequence::Block);
    assert_eq!(sums, at_once);
}
