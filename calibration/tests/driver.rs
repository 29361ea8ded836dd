//! The driver against full forward passes with a tap, in every order; restoring, spilling, threads.

#![allow(clippy::unwrap_used, reason = "a test may panic anywhere, helpers included")]

mod toy;

use calibration::{
    CalibrationError, DriveReport, DriverOptions, Inputs, LayerStatistics, Sequence, Visitor, drive,
    driver::activation_bytes,
};
use model::{Block, Checkpoint, Linear, Stage, decoder::Head};
use std::collections::BTreeMap;

const ORDERS: [(Inputs, Sequence); 4] = [
    (Inputs::Quantized, Sequence::Module),
    (Inputs::Quantized, Sequence::Block),
    (Inputs::Original, Sequence::Module),
    (Inputs::Original, Sequence::Block),
];
/// Windows long and short, so that batches hold one window and several; the last batch is small.
const LENGTHS: [usize; 9] = [3, 400, 1, 250, 600, 17, 64, 512, 30];

type Captured = BTreeMap<(usize, Stage), LayerStatistics>;

/// Replaces weights by coarse ones and keeps what it saw.
#[derive(Default)]
struct Recorder {
    captured: Captured,
    /// Replaced weights of finished blocks, by linear.
    journal: BTreeMap<String, Vec<f32>>,
    /// Blocks below this are restored from `journal`.
    finished: usize,
    unwanted: Option<&'static str>,
    done: Vec<usize>,
    wants_head: bool,
    head: Option<LayerStatistics>,
}

fn replace(linears: &mut [Linear]) {
    for weight in linears.iter_mut().flat_map(|linear| &mut linear.weight) {
        *weight = (*weight * 4.0).round() / 4.0;
    }
}

fn is_wanted(linears: &[Linear], unwanted: Option<&str>) -> bool {
    !unwanted.is_some_and(|part| linears[0].name.contains(part))
}

impl Visitor for Recorder {
    fn restore(&mut self, block: &mut Block) -> Result<bool, CalibrationError> {
        if block.index >= self.finished {
            return Ok(false);
        }
        for linear in Stage::ALL.into_iter().flat_map(|stage| block.linears_mut(stage).to_vec()) {
            assert!(self.journal.contains_key(&linear.name));
        }
        for stage in Stage::ALL {
            for linear in block.linears_mut(stage) {
                linear.weight.clone_from(&self.journal[&linear.name]);
            }
        }
        Ok(true)
    }

    fn wants_head(&self) -> bool {
        self.wants_head
    }

    fn head(&mut self, _: &Head, statistics: &LayerStatistics) -> Result<(), CalibrationError> {
        self.head = Some(statistics.clone());
        Ok(())
    }

    fn wants(&self, linears: &[Linear]) -> bool {
        is_wanted(linears, self.unwanted)
    }

    fn stage(
        &mut self,
        block: usize,
        stage: Stage,
        linears: &mut [Linear],
        statistics: &LayerStatistics,
    ) -> Result<(), CalibrationError> {
        replace(linears);
        assert!(self.captured.insert((block, stage), statistics.clone()).is_none());
        Ok(())
    }

    fn block_done(&mut self, block: &Block) -> Result<(), CalibrationError> {
        for linear in Stage::ALL.into_iter().flat_map(|stage| block.linears(stage)) {
            self.journal.insert(linear.name.clone(), linear.weight.clone());
        }
        self.done.push(block.index);
        Ok(())
    }
}

struct Bench {
    checkpoint: Checkpoint,
    windows: Vec<Vec<u32>>,
    folder: tempfile::TempDir,
    /// Whether the original model runs beside.
    compare: bool,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = toy::checkpoint(folder.path());
        let token = |window: usize, at: usize| ((window * 31 + at * at * 7 + at) % toy::WORDS) as u32;
        let windows = LENGTHS.iter().enumerate();
        let windows = windows.map(|(window, length)| (0..*length).map(|at| token(window, at)).collect()).collect();
        Self { checkpoint, windows, folder, compare: false }
    }

    fn comparing() -> Self {
        Self { compare: true, ..Self::new() }
    }

    fn options(&self, (inputs, sequence): (Inputs, Sequence)) -> DriverOptions {
        DriverOptions {
            inputs,
            sequence,
            compare_original: self.compare,
            activation_bytes_in_memory: usize::MAX,
            spill_folder: self.folder.path().to_path_buf(),
            engine: kernels::Engine::Cpu,
            device_windows: 0,
        }
    }

    fn drive(&self, order: (Inputs, Sequence), recorder: &mut Recorder) -> DriveReport {
        drive(&self.checkpoint, &self.windows, &self.options(order), recorder).unwrap()
    }

    fn captured(&self, order: (Inputs, Sequence)) -> Recorder {
        let mut recorder = Recorder::default();
        self.drive(order, &mut recorder);
        recorder
    }

    /// Every stage's inputs by whole forward passes, a fresh one for each stage: the definition of the four orders.
    fn reference(
        &self,
        (inputs, sequence): (Inputs, Sequence),
        unwanted: Option<&str>,
    ) -> BTreeMap<(usize, Stage), Vec<f32>> {
        let mut rows = BTreeMap::new();
        for window in &self.windows {
            let mut hidden = self.checkpoint.embed(window).unwrap();
            for index in 0..toy::LAYERS {
                let replaced_before = |before: Option<Stage>| {
                    let mut block = self.checkpoint.block(index).unwrap();
                    for stage in Stage::ALL.into_iter().filter(|stage| before.is_none_or(|before| *stage < before)) {
                        if inputs == Inputs::Quantized && is_wanted(block.linears(stage), unwanted) {
                            replace(block.linears_mut(stage));
                        }
                    }
                    block
                };
                for stage in Stage::ALL {
                    let block = match sequence {
                        Sequence::Module => replaced_before(Some(stage)),
                        Sequence::Block => self.checkpoint.block(index).unwrap(),
                    };
                    block.forward(hidden.clone(), &mut |at, input| {
                        if at == stage && is_wanted(block.linears(stage), unwanted) {
                            rows.entry((index, stage)).or_insert_with(Vec::new).extend_from_slice(input);
                        }
                    });
                }
                hidden = replaced_before(None).forward(hidden, &mut |_, _| {});
            }
        }
        rows
    }
}

/// Holds captured sums against float64 sums over the reference's rows. The rows are the same to the bit, so what differs
/// is the rounding of float32 sums of `n` products: at most `n 2^-24 sum |x_i x_j|`, here with the bound
/// `sum |x_i x_j| <= (s_i + s_j) / 2`; doubled, since blocked sums add a step.
fn assert_statistics(captured: &LayerStatistics, rows: &[f32]) {
    let width = captured.width;
    assert_eq!(captured.tokens, LENGTHS.iter().sum::<usize>());
    assert_eq!(rows.len(), captured.tokens * width);
    let sum = |f: &dyn Fn(&[f32]) -> f64| rows.chunks(width).map(f).sum::<f64>();
    for i in 0..width {
        let (absolute, square) = (sum(&|row| f64::from(row[i].abs())), sum(&|row| f64::from(row[i]).powi(2)));
        assert!((captured.sum_absolute[i] - absolute).abs() <= 1e-12 * absolute);
        assert!((captured.sum_square[i] - square).abs() <= 1e-12 * square);
        for j in 0..width {
            let product = sum(&|row| f64::from(row[i]) * f64::from(row[j]));
            let scale = captured.sum_square[i].midpoint(captured.sum_square[j]);
            let bound = 2.0 * captured.tokens as f64 / f64::from(1 << 24) * scale;
            assert!((f64::from(captured.gram[i * width + j]) - product).abs() <= bound, "{i}, {j}");
        }
    }
}

#[test]
fn statistics_are_those_of_full_forward_passes() {
    let bench = Bench::new();
    for order in ORDERS {
        let recorder = bench.captured(order);
        let reference = bench.reference(order, None);
        assert_eq!(recorder.captured.len(), 4 * toy::LAYERS);
        assert_eq!(recorder.done, [0, 1, 2]);
        for (place, statistics) in &recorder.captured {
            assert_statistics(statistics, &reference[place]);
        }
    }
}

#[test]
fn orders_differ_where_they_should() {
    let bench = Bench::new();
    let [module, block, original, same] = ORDERS.map(|order| bench.captured(order).captured);
    assert_eq!(original, same);
    assert_eq!(module[&(0, Stage::Qkv)], original[&(0, Stage::Qkv)]);
    for stage in [Stage::Output, Stage::GateUp, Stage::Down] {
        assert_ne!(module[&(0, stage)].gram, block[&(0, stage)].gram);
        assert_eq!(block[&(0, stage)], original[&(0, stage)]);
    }
    assert_ne!(block[&(1, Stage::Qkv)].gram, original[&(1, Stage::Qkv)].gram);
}

/// Against rows of whole forward passes of both models: float32 sums of `n` products of `d` and `x`, with the bound
/// `sum |d_i x_j| <= (sum d_i² + sum x_j²) / 2`.
#[test]
fn the_drift_is_that_of_full_forward_passes_of_both_models() {
    let bench = Bench::comparing();
    let originals = bench.reference(ORDERS[2], None);
    for order in ORDERS {
        let reference = bench.reference(order, None);
        for (place, statistics) in bench.captured(order).captured {
            let Some(drift) = statistics.drift else {
                assert_eq!(order.0, Inputs::Original);
                continue;
            };
            let (x, original, width) = (&reference[&place], &originals[&place], statistics.width);
            let d: Vec<f64> = original.iter().zip(x).map(|(o, x)| f64::from(o - x)).collect();
            let sum = |f: &dyn Fn(usize) -> f64| (0..x.len()).step_by(width).map(f).sum::<f64>();
            for i in 0..width {
                for j in 0..width {
                    let product = sum(&|row| d[row + i] * f64::from(x[row + j]));
                    let scale = sum(&|row| d[row + i].powi(2)).midpoint(sum(&|row| f64::from(x[row + j]).powi(2)));
                    let bound = 2.0 * statistics.tokens as f64 / f64::from(1 << 24) * scale;
                    assert!((f64::from(drift[i * width + j]) - product).abs() <= bound, "{order:?} {place:?} {i}, {j}");
                }
            }
            assert_eq!(drift.iter().all(|sum| *sum == 0.0), d.iter().all(|d| *d == 0.0), "{order:?} {place:?}");
        }
    }
}

#[test]
fn stages_that_nobody_wants_are_passed_over() {
    let bench = Bench::new();
    for order in ORDERS {
        for unwanted in ["layers.1.self_attn", "down_proj", "layers.0.", "layers.2."] {
            let mut recorder = Recorder { unwanted: Some(unwanted), ..Recorder::default() };
            bench.drive(order, &mut recorder);
            let reference = bench.reference(order, Some(unwanted));
            assert_eq!(recorder.captured.keys().collect::<Vec<_>>(), reference.keys().collect::<Vec<_>>());
            for (place, statistics) in &recorder.captured {
                assert_statistics(statistics, &reference[place]);
            }
        }
    }
}

#[test]
fn a_restored_start_changes_no_byte() {
    for bench in [Bench::new(), Bench::comparing()] {
        for order in ORDERS {
            let whole = bench.captured(order);
            for finished in 0..=toy::LAYERS {
                let mut resumed = Recorder { journal: whole.journal.clone(), finished, ..Recorder::default() };
                let report = bench.drive(order, &mut resumed);
                let late = whole.captured.iter().filter(|((block, _), _)| *block >= finished);
                assert_eq!(resumed.captured, late.map(|(place, sums)| (*place, sums.clone())).collect::<Captured>());
                assert_eq!((resumed.journal, report.restored), (whole.journal.clone(), finished));
            }
        }
    }
}

#[test]
fn spilled_activations_change_no_byte() {
    for bench in [Bench::new(), Bench::comparing()] {
        let tokens: usize = LENGTHS.iter().sum();
        let hidden_bytes = tokens * toy::HIDDEN * 4;
        for order in ORDERS {
            let beside = bench.compare && order.0 == Inputs::Quantized;
            let whole = bench.captured(order);
            for (memory, spilled) in [(0, true), (hidden_bytes, order == ORDERS[0] || beside)] {
                let mut recorder = Recorder::default();
                let options = DriverOptions { activation_bytes_in_memory: memory, ..bench.options(order) };
                let report = drive(&bench.checkpoint, &bench.windows, &options, &mut recorder).unwrap();
                assert_eq!(recorder.captured, whole.captured);
                assert_eq!(report.spilled_bytes > 0, spilled);
                let expected = activation_bytes(&bench.checkpoint.config, tokens, order, bench.compare);
                assert_eq!(report.activation_bytes, expected);
            }
        }
    }
}

#[test]
fn threads_change_no_byte() {
    for bench in [Bench::new(), Bench::comparing()] {
        let on = |threads, order| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| bench.captured(order)).captured
        };
        for order in ORDERS {
            let single = on(1, order);
            assert_eq!(single, on(2, order));
            assert_eq!(single, on(7, order));
        }
    }
}

#[test]
fn parts_captured_apart_add_up() {
    let bench = Bench::new();
    let part = |windows: &[Vec<u32>]| {
        let mut recorder = Recorder::default();
        drive(&bench.checkpoint, windows, &bench.options(ORDERS[2]), &mut recorder).unwrap();
        recorder.captured
    };
    let (first, second) = (part(&bench.windows[..4]), part(&bench.windows[4..]));
    let reference = bench.reference(ORDERS[2], None);
    for (place, mut statistics) in first {
        statistics.merge(&second[&place]).unwrap();
        assert_statistics(&statistics, &reference[&place]);
    }
}

#[test]
fn windows_that_do_not_fit_the_model_are_refused() {
    let bench = Bench::new();
    let error = |windows: &[Vec<u32>]| {
        let result = drive(&bench.checkpoint, windows, &bench.options(ORDERS[0]), &mut Recorder::default());
        result.unwrap_err().to_string()
    };
    assert!(error(&[]).contains("no calibration window"));
    assert!(error(&[vec![1], vec![]]).contains("window 1 has 0 tokens"));
    assert!(error(&[vec![1; toy::POSITIONS + 1]]).contains("601 tokens"));
    assert!(error(&[vec![1, 40]]).contains("token 40"));
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let bench = Bench::new();
    let spill_folder = bench.folder.path().join("missing");
    let options = DriverOptions { activation_bytes_in_memory: 0, spill_folder, ..bench.options(ORDERS[0]) };
    let error = drive(&bench.checkpoint, &bench.windows, &options, &mut Recorder::default()).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
}

#[test]
fn overflow_is_named_by_its_module() {
    let folder = tempfile::tempdir().unwrap();
    toy::write(folder.path(), |name, numbers| {
        if name == "model.layers.1.mlp.up_proj.weight" {
            numbers[5] = f32::INFINITY;
        }
    });
    let checkpoint = Checkpoint::open(folder.path().to_str().unwrap()).unwrap();
    let bench = Bench { checkpoint, folder, ..Bench::new() };
    for order in ORDERS {
        let error = drive(&bench.checkpoint, &bench.windows, &bench.options(order), &mut Keeper).unwrap_err();
        assert!(error.to_string().contains("`model.layers.1.mlp.down_proj`"), "{error}");
    }
}

/// Leaves all weights as they are.
struct Keeper;

impl Visitor for Keeper {
    fn restore(&mut self, _: &mut Block) -> Result<bool, CalibrationError> {
        Ok(false)
    }
    fn wants(&self, _: &[Linear]) -> bool {
        true
    }
    fn stage(&mut self, _: usize, _: Stage, _: &mut [Linear], _: &LayerStatistics) -> Result<(), CalibrationError> {
        Ok(())
    }
    fn block_done(&mut self, _: &Block) -> Result<(), CalibrationError> {
        Ok(())
    }
}

#[test]
fn a_visitor_that_stops_stops_the_walk() {
    struct Stopper(usize);
    impl Visitor for Stopper {
        fn restore(&mut self, _: &mut Block) -> Result<bool, CalibrationError> {
            Ok(false)
        }
        fn wants(&self, _: &[Linear]) -> bool {
            true
        }
        fn stage(&mut self, _: usize, _: Stage, _: &mut [Linear], _: &LayerStatistics) -> Result<(), CalibrationError> {
            self.0 += 1;
            if self.0 == 6 { Err(CalibrationError::Visitor("stopped here".into())) } else { Ok(()) }
        }
        fn block_done(&mut self, _: &Block) -> Result<(), CalibrationError> {
            Ok(())
        }
    }
    let bench = Bench::new();
    for order in ORDERS {
        let mut stopper = Stopper(0);
        let error = drive(&bench.checkpoint, &bench.windows, &bench.options(order), &mut stopper).unwrap_err();
        assert_eq!((error.to_string().as_str(), stopper.0), ("stopped here", 6));
    }
}

/// The device, if one can be used; says loudly that the test is skipped where not.
fn engine() -> Option<kernels::Engine> {
    let error = match kernels::cuda::Device::open(0) {
        Ok(device) => return Some(kernels::Engine::Cuda(std::sync::Arc::new(device))),
        Err(error) => error,
    };
    assert!(std::env::var_os("CALIPER_CUDA_REQUIRED").is_none(), "a device is required: {error}");
    let said = format!("!! SKIPPED, nothing is captured on a device: {error}\n");
    std::io::Write::write_all(&mut std::io::stderr(), said.as_bytes()).unwrap();
    None
}

/// Rows agree within 1e-4 of their size, as `model/tests/families.rs` derives it, and so do sums of their products with
/// `sum |x_i x_j| <= (s_i + s_j) / 2`.
fn assert_agree(ours: &Captured, theirs: &Captured, what: &str) {
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>(), "{what}");
    for (place, theirs) in theirs {
        let ours = &ours[place];
        assert_eq!((ours.tokens, ours.width), (theirs.tokens, theirs.width), "{what}");
        let largest = theirs.sum_square.iter().fold(0.0, |most: f64, sum| most.max(*sum));
        let close = |ours: f64, theirs: f64, scale: f64| (ours - theirs).abs() <= 1e-4 * scale;
        let rows = theirs.tokens as f64;
        for i in 0..theirs.width {
            assert!(close(ours.sum_absolute[i], theirs.sum_absolute[i], (rows * largest).sqrt()), "{what} {place:?}");
            assert!(close(ours.sum_square[i], theirs.sum_square[i], largest), "{what} {place:?}");
        }
        let matrices = [(Some(&ours.gram), Some(&theirs.gram)), (ours.drift.as_ref(), theirs.drift.as_ref())];
        for (ours, theirs) in matrices {
            assert_eq!(ours.is_some(), theirs.is_some(), "{what} {place:?}");
            for (ours, theirs) in ours.into_iter().flatten().zip(theirs.into_iter().flatten()) {
                assert!(close(f64::from(*ours), f64::from(*theirs), largest), "{what} {place:?}: {ours} {theirs}");
            }
        }
    }
}

/// With short windows, of which several make a batch: the stand-in takes its time over attention.
fn with_short_windows(mut bench: Bench) -> Bench {
    let token = |window: usize, at: usize| ((window * 31 + at * at * 7 + at) % toy::WORDS) as u32;
    bench.windows = (0..40).map(|window| (0..=window * 7 % 37).map(|at| token(window, at)).collect()).collect();
    bench
}

/// Statistics are the CPU's within rounding in every order, and the same to the bit wherever activations stay: which the
/// head's statistics, brought back at the end, show too.
#[test]
fn a_device_captures_what_the_cpu_captures() {
    let Some(engine) = engine() else { return };
    for bench in [Bench::new(), Bench::comparing()].map(with_short_windows) {
        for order in ORDERS {
            let mut expected = Recorder { wants_head: true, ..Recorder::default() };
            bench.drive(order, &mut expected);
            expected.captured.insert((toy::LAYERS, Stage::Qkv), expected.head.unwrap());
            let expected = expected.captured;
            let on_device = |device_windows| {
                let options = DriverOptions { engine: engine.clone(), device_windows, ..bench.options(order) };
                let mut recorder = Recorder { wants_head: true, ..Recorder::default() };
                drive(&bench.checkpoint, &bench.windows, &options, &mut recorder).unwrap();
                // The head's are told apart from a stage's by their block.
                recorder.captured.insert((toy::LAYERS, Stage::Qkv), recorder.head.unwrap());
                recorder.captured
            };
            let streamed = on_device(0);
            assert_agree(&streamed, &expected, &format!("{order:?}"));
            if order.0 == Inputs::Quantized {
                assert!(on_device(35) == streamed, "{order:?}");
            }
            if order == ORDERS[0] {
                assert!(on_device(usize::MAX) == streamed, "{order:?}");
            }
        }
    }
}

/// Blocks that are only carried through, stages that nobody wants.
#[test]
fn a_device_passes_over_what_the_cpu_passes_over() {
    let Some(engine) = engine() else { return };
    let bench = with_short_windows(Bench::new());
    for order in ORDERS {
        let whole = bench.captured(order);
        for (finished, unwanted) in [(1, None), (2, None), (0, Some("down_proj")), (0, Some("layers.1."))] {
            let journal = whole.journal.clone();
            let mut expected = Recorder { journal: journal.clone(), finished, unwanted, ..Recorder::default() };
            bench.drive(order, &mut expected);
            let options = DriverOptions { engine: engine.clone(), device_windows: 35, ..bench.options(order) };
            let mut recorder = Recorder { journal, finished, unwanted, ..Recorder::default() };
            drive(&bench.checkpoint, &bench.windows, &options, &mut recorder).unwrap();
            assert_agree(&recorder.captured, &expected.captured, &format!("{order:?} {finished} {unwanted:?}"));
        }
    }
}
