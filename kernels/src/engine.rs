//! Where loops run: [`Engine`]. Solvers give the same integers everywhere; sums over activations differ by their order.

use crate::{
    QuantSpec, QuantizedMatrix, Resident,
    block_solve::{self, ColumnPlan, Grids},
    cuda::{self, CudaError, Device, DeviceMatrix},
};
use std::{fmt, str::FromStr, sync::Arc};

/// What a user asks for: `auto`, `cpu`, `cuda` or `cuda:N`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The first CUDA device if it can be opened, else the CPU.
    Auto,
    /// The CPU.
    #[default]
    Cpu,
    /// A CUDA device, counted from 0; an error if it can't be opened.
    Cuda(usize),
}

/// A place to work in, ready.
#[derive(Clone, Debug, Default)]
pub enum Engine {
    /// The current thread pool.
    #[default]
    Cpu,
    /// A graphics processor.
    Cuda(Arc<Device>),
}

/// The integers of a weight.
#[derive(Debug)]
pub struct Solution {
    /// On the host.
    pub matrix: QuantizedMatrix,
    /// On the device that found them.
    pub there: Option<DeviceMatrix>,
}

impl Choice {
    /// Opens what was chosen. Also says what came of it, for people: where `auto` found no device, why.
    ///
    /// # Errors
    /// A device was named and can't be opened.
    pub fn open(self) -> Result<(Engine, String), CudaError> {
        let engine = match self {
            Self::Cpu => Engine::Cpu,
            Self::Cuda(ordinal) => Engine::Cuda(Arc::new(Device::open(ordinal)?)),
            Self::Auto => match Device::open(0) {
                Ok(device) => Engine::Cuda(Arc::new(device)),
                Err(error) => return Ok((Engine::Cpu, format!("{} ({error})", Engine::Cpu))),
            },
        };
        let said = engine.to_string();
        Ok((engine, said))
    }
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let ordinal = text.strip_prefix("cuda:").and_then(|ordinal| ordinal.parse().ok());
                ordinal.map(Self::Cuda).ok_or_else(|| "choose `auto`, `cpu`, `cuda` or `cuda:N`".to_owned())
            }
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(device) => write!(f, "cuda ({}, sm_{})", device.name(), device.architecture()),
        }
    }
}

impl Engine {
    /// Refuses a weight `[outputs, inputs]` that is too large for the device's memory.
    ///
    /// # Errors
    /// With the amount that is needed.
    pub fn check_room(&self, outputs: usize, inputs: usize, spec: &QuantSpec) -> Result<(), CudaError> {
        match self {
            Self::Cpu => Ok(()),
            Self::Cuda(device) => {
                let needed = cuda::bytes_to_solve(outputs, inputs, spec);
                device.require(needed, &format!("solving a weight of {outputs} x {inputs}"))
            }
        }
    }

    /// [`block_solve::round_to_nearest`].
    pub fn round_to_nearest(
        &self,
        weight: &[f32],
        inputs: usize,
        spec: &QuantSpec,
    ) -> Result<QuantizedMatrix, CudaError> {
        self.pick(
            || block_solve::round_to_nearest(weight, inputs, spec),
            |device| device.round_to_nearest(weight, inputs, spec),
        )
    }

    /// [`block_solve::round_on`], the columns' count being that of `group_index`.
    pub fn round_on(
        &self,
        weight: &[f32],
        group_index: &[u32],
        grids: &Grids,
        spec: &QuantSpec,
    ) -> Result<QuantizedMatrix, CudaError> {
        self.pick(
            || block_solve::round_on(weight, group_index.len(), group_index, grids, spec),
            |device| device.round_on(weight, group_index, grids, spec),
        )
    }

    /// [`block_solve::compensate`], or, with `grids`, [`block_solve::compensate_on`]; `u` is where this works.
    pub fn compensate(
        &self,
        weight: &[f32],
        u: &Resident<'_>,
        plan: &ColumnPlan,
        spec: &QuantSpec,
        grids: Option<&Grids>,
    ) -> Result<Solution, CudaError> {
        let Self::Cuda(device) = self else {
            let u = u.to_host()?;
            let matrix = match grids {
                None => block_solve::compensate(weight, &u, plan, spec),
                Some(grids) => block_solve::compensate_on(weight, &u, plan, spec, grids),
            };
            return Ok(Solution { matrix, there: None });
        };
        let there = match u {
            Resident::Device { numbers, .. } => device.compensate(weight, numbers, plan, spec, grids)?,
            Resident::Host(u) => device.compensate(weight, &device.upload(u)?, plan, spec, grids)?,
        };
        Ok(Solution { matrix: there.download(device)?, there: Some(there) })
    }

    fn pick(
        &self,
        cpu: impl FnOnce() -> QuantizedMatrix,
        cuda: impl FnOnce(&Device) -> Result<DeviceMatrix, CudaError>,
    ) -> Result<QuantizedMatrix, CudaError> {
        match self {
            Self::Cpu => Ok(cpu()),
            Self::Cuda(device) => cuda(device)?.download(device),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_read_back_as_they_are_written() {
        for choice in [Choice::Auto, Choice::Cpu, Choice::Cuda(0), Choice::Cuda(3)] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        assert_eq!("cuda".parse(), Ok(Choice::Cuda(0)));
        for wrong in ["", "gpu", "cuda:", "cuda:-1", "cuda:x"] {
            assert!(wrong.parse::<Choice>().is_err(), "{wrong}");
        }
    }
}
