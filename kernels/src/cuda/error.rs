//! What can go wrong on the way to a device and on it.

use cudarc::{cublas::result::CublasError, cusolver::CusolverError, driver::DriverError};

/// Why something can't be done on a graphics processor.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// The driver's library can't be loaded.
    #[error("no CUDA driver: `libcuda` can't be loaded; install NVIDIA's driver, or use the CPU")]
    NoDriver,
    /// The driver sees no device.
    #[error("the CUDA driver finds no device")]
    NoDevices,
    /// There are fewer devices.
    #[error("there is no CUDA device {ordinal}: the driver finds {count}, counted from 0")]
    NoSuchDevice {
        /// The device asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// The device is older than the kernels are written for.
    #[error("{name} is of architecture sm_{found}; at least sm_{oldest} is needed")]
    Architecture {
        /// The device.
        name: String,
        /// Its architecture, as `10 * major + minor`.
        found: u32,
        /// The oldest that will do.
        oldest: u32,
    },
    /// A library beside the driver can't be loaded.
    #[error("`lib{library}` can't be loaded; install it (the PyPI package `{package}` holds it), or use the CPU")]
    NoLibrary {
        /// Which.
        library: &'static str,
        /// Where to find it.
        package: &'static str,
    },
    /// Less memory is free than is needed.
    #[error("{purpose} needs {} of device memory, {} of {} are free", mebibytes(*.needed), mebibytes(*.free), mebibytes(*.total))]
    Memory {
        /// What for.
        purpose: String,
        /// Bytes needed.
        needed: usize,
        /// Bytes free.
        free: usize,
        /// Bytes of the device.
        total: usize,
    },
    /// A kernel doesn't compile, which is a fault of this program or of a compiler too old for the device.
    #[error("`{file}` doesn't compile for sm_{architecture}: {log}")]
    Compile {
        /// The source.
        file: String,
        /// The architecture compiled for.
        architecture: u32,
        /// What the compiler says.
        log: String,
    },
    /// A shape that a kernel can't work on.
    #[error("{what}")]
    Shape {
        /// What can't be done.
        what: String,
    },
    /// The driver refuses, or a kernel failed.
    #[error("the CUDA driver: {0}")]
    Driver(#[from] DriverError),
    /// cuBLAS refuses.
    #[error("cuBLAS: {0:?}")]
    Blas(#[from] CublasError),
    /// cuSOLVER refuses.
    #[error("cuSOLVER: {0:?}")]
    Solver(#[from] CusolverError),
}

fn mebibytes(bytes: usize) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}
