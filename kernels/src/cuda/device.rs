//! A device, opened: [`Device`].

use super::{Buffer, CudaError, compiler::Compiler, copies::Copies, factor::open_solver, sources::Source};
use cudarc::{
    cublas::{self, CudaBlas},
    cusolver::DnHandle,
    driver::{CudaContext, CudaFunction, CudaModule, CudaStream, DeviceRepr, LaunchConfig, ValidAsZeroBits, sys},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

/// The oldest architecture that the kernels are compiled and checked for, as `10 * major + minor`.
pub const OLDEST_ARCHITECTURE: u32 = 80;

/// Whether a CUDA driver can be loaded. It may still find no device.
pub fn present() -> bool {
    // SAFETY: loading the driver's library runs its constructors, which every user of it relies on being harmless.
    unsafe { sys::is_culib_present() }
}

/// A graphics processor with what has been compiled for it. Work is done in the order in which it is asked for; copies that
/// are made beside it come before what uses them.
#[derive(Debug)]
pub struct Device {
    name: String,
    architecture: u32,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    compiler: Compiler,
    blas: CudaBlas,
    /// Loaded when first needed.
    solver: OnceLock<DnHandle>,
    modules: Mutex<HashMap<&'static str, Arc<CudaModule>>>,
    /// Made when first needed.
    copies: Mutex<Option<Copies>>,
}

impl Device {
    /// Opens the device `ordinal`, counted from 0.
    ///
    /// # Errors
    /// No driver, no such device, an architecture older than [`OLDEST_ARCHITECTURE`], NVRTC or cuBLAS missing.
    pub fn open(ordinal: usize) -> Result<Self, CudaError> {
        let count = Self::count()?;
        if count == 0 {
            return Err(CudaError::NoDevices);
        }
        if ordinal >= count {
            return Err(CudaError::NoSuchDevice { ordinal, count });
        }
        let context = CudaContext::new(ordinal)?;
        let name = context.name()?;
        let (major, minor) = context.compute_capability()?;
        let architecture = (10 * major + minor).unsigned_abs();
        if architecture < OLDEST_ARCHITECTURE {
            return Err(CudaError::Architecture { name, found: architecture, oldest: OLDEST_ARCHITECTURE });
        }
        let compiler = Compiler::new(architecture)?;
        // SAFETY: as for the driver in `present`.
        if !unsafe { cublas::sys::is_culib_present() } {
            return Err(CudaError::NoLibrary { library: "cublas", package: "nvidia-cublas-cu12" });
        }
        let stream = context.default_stream();
        let blas = CudaBlas::new(stream.clone())?;
        let (modules, copies) = (Mutex::default(), Mutex::default());
        Ok(Self { name, architecture, context, stream, compiler, blas, solver: OnceLock::new(), modules, copies })
    }

    /// How many devices there are.
    ///
    /// # Errors
    /// No driver, or one that doesn't start.
    pub fn count() -> Result<usize, CudaError> {
        // Asked first: without the library, everything else of the driver's panics.
        if !present() {
            return Err(CudaError::NoDriver);
        }
        match CudaContext::device_count() {
            Ok(count) => Ok(count.unsigned_abs() as usize),
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// What the device calls itself.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its architecture, as `10 * major + minor`.
    pub fn architecture(&self) -> u32 {
        self.architecture
    }

    /// Bytes of device memory that are free, and all.
    pub fn memory(&self) -> Result<(usize, usize), CudaError> {
        Ok(self.context.mem_get_info()?)
    }

    /// Refuses a `purpose` that takes more memory than is free.
    pub fn require(&self, needed: usize, purpose: &str) -> Result<(), CudaError> {
        let (mut free, mut total) = self.memory()?;
        if needed > free {
            // What was given back counts as free only once the device has come to it.
            self.synchronize()?;
            if let Ok(copies) = self.copies.try_lock() {
                copies.as_ref().map_or(Ok(()), Copies::synchronize)?;
            }
            (free, total) = self.memory()?;
        }
        if needed > free {
            return Err(CudaError::Memory { purpose: purpose.to_owned(), needed, free, total });
        }
        Ok(())
    }

    /// Copies `numbers` to the device.
    pub fn upload<T: DeviceRepr>(&self, numbers: &[T]) -> Result<Buffer<T>, CudaError> {
        self.require(size_of_val(numbers), "a copy")?;
        Ok(self.stream.clone_htod(numbers)?)
    }

    /// Copies numbers back, when everything asked for before is done.
    pub fn download<T: DeviceRepr>(&self, numbers: &Buffer<T>) -> Result<Vec<T>, CudaError> {
        Ok(self.stream.clone_dtoh(numbers)?)
    }

    /// Copies numbers back into `out`, which is as long, when everything asked for before is done.
    pub fn download_into<T: DeviceRepr>(&self, numbers: &Buffer<T>, out: &mut [T]) -> Result<(), CudaError> {
        assert_eq!(numbers.len(), out.len(), "room for what is copied back");
        Ok(self.stream.memcpy_dtoh(numbers, out)?)
    }

    /// The same numbers once more.
    pub fn duplicate<T: DeviceRepr>(&self, numbers: &Buffer<T>) -> Result<Buffer<T>, CudaError> {
        self.require(numbers.num_bytes(), "a copy")?;
        Ok(self.stream.clone_dtod(numbers)?)
    }

    /// `count` zeros on the device.
    pub fn zeros<T: DeviceRepr + ValidAsZeroBits>(&self, count: usize) -> Result<Buffer<T>, CudaError> {
        self.require(count * size_of::<T>(), "a result")?;
        Ok(self.stream.alloc_zeros(count)?)
    }

    /// Waits until everything asked for is done.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        Ok(self.stream.synchronize()?)
    }

    /// Compiles every source.
    pub fn compile_all(&self) -> Result<(), CudaError> {
        super::sources::ALL.iter().try_for_each(|source| self.module(source).map(drop))
    }

    /// Room for `count` numbers, to be written before they are read.
    pub(super) fn room<T: DeviceRepr>(&self, count: usize, purpose: &str) -> Result<Buffer<T>, CudaError> {
        self.require(count * size_of::<T>(), purpose)?;
        // SAFETY: `T` is a plain number of the device, for which any bits are a value; callers write before they read.
        Ok(unsafe { self.stream.alloc(count) }?)
    }

    pub(super) fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    pub(super) fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    pub(super) fn copies(&self) -> &Mutex<Option<Copies>> {
        &self.copies
    }

    pub(super) fn blas(&self) -> &CudaBlas {
        &self.blas
    }

    pub(super) fn solver(&self) -> Result<&DnHandle, CudaError> {
        if self.solver.get().is_none() {
            let opened = open_solver(self)?;
            return Ok(self.solver.get_or_init(|| opened));
        }
        Ok(self.solver.get().expect("it was there just now"))
    }

    /// The kernel `name` of `source`, compiled and loaded if it isn't yet.
    pub(super) fn kernel(&self, source: &Source, name: &str) -> Result<CudaFunction, CudaError> {
        Ok(self.module(source)?.load_function(name)?)
    }

    fn module(&self, source: &Source) -> Result<Arc<CudaModule>, CudaError> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules.get(source.file) {
            return Ok(module.clone());
        }
        let code = self.compiler.machine_code(source)?;
        let module = self.context.load_module(cudarc::nvrtc::Ptx::from_binary(code))?;
        modules.insert(source.file, module.clone());
        Ok(module)
    }

    /// Compiles a source that isn't one of this crate's, for tests of the compiler.
    pub fn try_compile(&self, source: &Source) -> Result<usize, CudaError> {
        Ok(self.compiler.machine_code(source)?.len())
    }
}

/// Threads of a block where each works for itself.
pub(super) const THREADS: u32 = 128;
/// The most blocks in the second direction of a grid.
pub(super) const MOST_BLOCKS: usize = 65_535;

/// `rows` in blocks of [`THREADS`], `others` beside as far as they go.
pub(super) fn by_row(rows: usize, others: usize) -> LaunchConfig {
    grid([rows.div_ceil(THREADS as usize), others.min(MOST_BLOCKS)], [THREADS, 1])
}

/// A grid of `blocks` with `threads` each.
pub(super) fn grid(blocks: [usize; 2], threads: [u32; 2]) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (blocks[0] as u32, blocks[1] as u32, 1),
        block_dim: (threads[0], threads[1], 1),
        shared_mem_bytes: 0,
    }
}
