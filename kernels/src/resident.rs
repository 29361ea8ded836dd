//! A matrix where an engine works with it: what solvers read many times is copied to a device once.

use crate::{
    Engine,
    cuda::{Buffer, CudaError, Device},
};
use std::{borrow::Cow, sync::Arc};

/// Numbers on the host or on a device.
#[derive(Debug)]
pub enum Resident<'a> {
    /// In the process's memory.
    Host(Cow<'a, [f32]>),
    /// In that of a graphics processor.
    Device {
        /// Which.
        device: Arc<Device>,
        /// There.
        numbers: Buffer<f32>,
        /// The same numbers here, where they came from here.
        host: Option<&'a [f32]>,
    },
}

impl<'a> Resident<'a> {
    /// `numbers` where `engine` works.
    pub fn new(engine: &Engine, numbers: &'a [f32]) -> Result<Self, CudaError> {
        match engine {
            Engine::Cpu => Ok(Self::Host(Cow::Borrowed(numbers))),
            Engine::Cuda(device) => Ok(Self::Device {
                device: Arc::clone(device),
                numbers: device.upload_beside(numbers)?,
                host: Some(numbers),
            }),
        }
    }

    /// The numbers on the host.
    pub fn to_host(&self) -> Result<Cow<'_, [f32]>, CudaError> {
        match self {
            Self::Host(numbers) => Ok(Cow::Borrowed(numbers)),
            Self::Device { host: Some(numbers), .. } => Ok(Cow::Borrowed(numbers)),
            Self::Device { device, numbers, host: None } => device.download(numbers).map(Cow::Owned),
        }
    }
}
