//! The operations of this crate on a graphics processor, through the CUDA driver.
//!
//! Nothing of CUDA is needed to build or to start: the driver, the compiler (NVRTC) and cuBLAS are loaded when
//! [`Device::open`] is called, which says plainly what is missing, cuSOLVER when a factor is first wanted. Kernels are compiled when they are first wanted, from
//! the sources in this crate, one `.cu` file beside the CPU's version of the operation; `sources` lists them and a folder
//! on disk keeps the machine code (`compiler`).
//!
//! Solvers give the very integers that the CPU gives: their kernels do the same operations in the same order, none fused
//! that isn't fused there. (The CPU's far update is fused where the processor has AVX2, which is taken for granted.)
//! Everything else agrees within the bounds that the tests state.
//!
//! Weights lie as `[columns, rows]` on the device, so that threads that solve neighbouring rows read neighbouring numbers.
//!
//! What has run on real hardware and what hasn't: `docs/cuda.md`.

mod blas;
mod clip;
mod compiler;
mod copies;
mod decoder;
mod device;
mod divergence;
mod elementwise;
mod error;
mod factor;
mod gram;
mod grids;
mod log_probability;
mod moments;
mod operand;
mod packing;
mod solve;
pub mod sources;
mod stored;

pub use clip::Trial;
pub use compiler::resources;
pub use cudarc::driver::{CudaSlice as Buffer, CudaView as View, CudaViewMut as ViewMut};
pub use decoder::{DeviceRope, MOST_HEAD_WIDTH};
pub use device::{Device, OLDEST_ARCHITECTURE, present};
pub use divergence::DeviceSide;
pub use error::CudaError;
pub use factor::{DeviceFactor, bytes_to_factor};
pub use moments::{Sums, Totals};
pub use operand::Operand;
pub use solve::{DeviceMatrix, bytes_to_solve};
pub use stored::PackedWeight;
