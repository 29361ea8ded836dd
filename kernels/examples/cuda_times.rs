//! How long the operations take on a CUDA device, at the shapes of Llama 3 8B, beside what docs/cuda-roofline.md expects.
//!
//! `cuda_times [DEVICE]`. Copies to and from the device are part of solving, since its interface takes and gives slices. The
//! driver's stand-in is refused: its times say nothing.

#![allow(clippy::print_stdout, reason = "its output is what it is for")]

use kernels::{
    ActOrder, Compute, QuantSpec, ScaleSearch,
    attention::Attention,
    block_solve::ColumnPlan,
    cuda::{Buffer, CudaError, Device, PackedWeight},
};
use std::{process::ExitCode, time::Instant};

/// Width of the model and of its feed-forward network, heads, entries of its vocabulary.
const WIDTH: usize = 4096;
const INNER: usize = 14_336;
const HEAD: usize = 128;
const VOCABULARY: usize = 128_256;
/// Tokens of a window.
const TOKENS: usize = 2048;
/// Times that a thing is done after a first one.
const REPEATS: usize = 5;

fn main() -> ExitCode {
    let ordinal = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(0);
    match Device::open(ordinal).and_then(|device| times(&device)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn times(device: &Device) -> Result<(), CudaError> {
    let what = "times on the stand-in say nothing".to_owned();
    if device.name().contains("stand-in") {
        return Err(CudaError::Shape { what });
    }
    println!("{}, sm_{}; median of {REPEATS}", device.name(), device.architecture());
    let compiling = Instant::now();
    device.compile_all()?;
    println!("{:50} {:10.1} ms", "all kernels, compiled or from the cache", 1e3 * compiling.elapsed().as_secs_f64());
    solvers(device)?;
    products(device)?;
    decoder(device)
}

/// The median time of `work`; `operations` of it, in 10⁹, give a rate.
fn time<T>(
    device: &Device,
    name: &str,
    operations: f64,
    mut work: impl FnMut() -> Result<T, CudaError>,
) -> Result<(), CudaError> {
    let mut once = || {
        let started = Instant::now();
        work()?;
        device.synchronize()?;
        Ok::<f64, CudaError>(started.elapsed().as_secs_f64())
    };
    once()?;
    let mut seconds = (0..REPEATS).map(|_| once()).collect::<Result<Vec<_>, _>>()?;
    seconds.sort_by(f64::total_cmp);
    let median = seconds[REPEATS / 2];
    println!("{name:50} {:10.3} ms {:10.0} GFLOP/s", 1e3 * median, operations / median);
    Ok(())
}

/// Numbers without a pattern that matters.
fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|at| ((at * 7919 % 10_007) as f32 / 5003.5 - 1.0) * 0.1).collect()
}

fn spec() -> QuantSpec {
    QuantSpec {
        bits: 4,
        group_size: Some(128),
        symmetric: true,
        act_order: ActOrder::Static,
        scale_search: ScaleSearch::MinMax,
        smallest_zero: 0,
    }
}

fn solvers(device: &Device) -> Result<(), CudaError> {
    let spec = spec();
    let weight = numbers(WIDTH * INNER);
    time(device, "copy of a 14336 x 4096 weight to the device", 0.0, || device.upload(&weight))?;
    for (name, scale_search) in
        [("round to nearest", ScaleSearch::MinMax), ("round, scales searched", ScaleSearch::Mse)]
    {
        let spec = QuantSpec { scale_search, ..spec };
        time(device, &format!("{name}, 14336 x 4096"), 0.0, || device.round_to_nearest(&weight, WIDTH, &spec))?;
    }
    for (outputs, inputs) in [(WIDTH, WIDTH), (INNER, WIDTH), (WIDTH, INNER)] {
        let mut u = vec![0.0; inputs * inputs];
        for row in 0..inputs {
            u[row * inputs + row] = 1.0;
            u[row * inputs + row + 1..(row + 1) * inputs].fill(1e-3);
        }
        let u = device.upload(&u)?;
        let plan = ColumnPlan {
            order: (0..inputs).collect(),
            group_index: (0..inputs).map(|column| (column / 128) as u32).collect(),
            fixed_grids: true,
        };
        let weight = &weight[..outputs * inputs];
        let operations = 1e-9 * (outputs * inputs) as f64 * inputs as f64;
        let name = format!("GPTQ, {outputs} x {inputs}");
        time(device, &name, operations, || device.compensate(weight, &u, &plan, &spec, None))?;
    }
    Ok(())
}

fn products(device: &Device) -> Result<(), CudaError> {
    for width in [WIDTH, INNER] {
        let x = device.upload(&numbers(TOKENS * width))?;
        let mut gram = device.zeros(width * width)?;
        let operations = 1e-9 * (TOKENS * width) as f64 * width as f64;
        let name = format!("Gram matrix of 2048 tokens, width {width}");
        time(device, &name, operations, || device.accumulate_gram(&mut gram, &x, width))?;
    }
    let matrix = device.round_to_nearest(&numbers(WIDTH * INNER), WIDTH, &spec())?;
    let packed = PackedWeight::new(device, matrix)?;
    for rows in [1, 8, 16, TOKENS] {
        let x = device.upload(&numbers(rows * WIDTH))?;
        let operations = 2e-9 * (rows * WIDTH * INNER) as f64;
        let name = format!("packed 14336 x 4096 at 4 bits, {rows} rows");
        time(device, &name, operations, || packed.multiply(device, &x))?;
    }
    let x = device.upload(&numbers(TOKENS * WIDTH))?;
    let operations = 2e-9 * (TOKENS * WIDTH) as f64 * INNER as f64;
    for compute in [Compute::F32, Compute::Bf16x3, Compute::Bf16] {
        let weight = device.operand(compute, device.upload(&numbers(WIDTH * INNER))?, WIDTH)?;
        let name = format!("dense 14336 x 4096 in {compute}, 2048 rows");
        time(device, &name, operations, || device.multiply(&device.operand(compute, &x, WIDTH)?, &weight))?;
    }
    Ok(())
}

fn attend(device: &Device, attention: &Attention, q: &Buffer<f32>, kv: &Buffer<f32>) -> Result<Buffer<f32>, CudaError> {
    let mut out = device.zeros(q.len())?;
    device.attend(attention, [&q.as_view(), &kv.as_view(), &kv.as_view()], &mut out.as_view_mut())?;
    Ok(out)
}

fn decoder(device: &Device) -> Result<(), CudaError> {
    let x = device.upload(&numbers(TOKENS * WIDTH))?;
    let norm = device.upload(&numbers(WIDTH))?;
    time(device, "norm of 2048 x 4096", 0.0, || device.rms_norm(&x, &norm, 0.0, 1e-5))?;
    let attention = Attention { heads: 32, kv_heads: 8, head_width: HEAD, scale: 0.088, window: None };
    let kv = device.upload(&numbers(TOKENS * 8 * HEAD))?;
    let operations = 2e-9 * (TOKENS * TOKENS) as f64 * WIDTH as f64;
    time(device, "attention, 2048 tokens, 32 heads", operations, || attend(device, &attention, &x, &kv))?;
    let rows = 256;
    let operand = |rows: usize| device.operand(Compute::F32, device.upload(&numbers(rows * WIDTH))?, WIDTH);
    let (hidden, head) = (operand(rows)?, operand(VOCABULARY)?);
    let targets: Vec<u32> = (0..rows as u32).collect();
    let operations = 2e-9 * (rows * VOCABULARY) as f64 * WIDTH as f64;
    time(device, "log-likelihood of 256 tokens, 128256 entries", operations, || {
        device.negative_log_likelihood(&hidden, &head, &targets)
    })
}
