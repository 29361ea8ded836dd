//! The upper factor of a damped Hessian's inverse, as [`crate::cholesky`]. The kernels are `factor.cu`; factorization and
//! triangular inverse are cuSOLVER's.

use super::{
    Buffer, CudaError, Device,
    device::{MOST_BLOCKS, THREADS, grid},
    sources::FACTOR,
};
use crate::cholesky::{Damped, NotPositiveDefinite, Precision};
use cudarc::{
    cusolver::{
        CusolverError, DnHandle, result,
        sys::{self, cublasDiagType_t, cublasFillMode_t, cudaDataType},
    },
    driver::{DevicePtrMut, DeviceRepr, PushKernelArg, ValidAsZeroBits},
};
use std::ffi::c_void;

/// Edge of a tile of the transposition, and its rows of threads.
const SQUARE: usize = 32;
const ROWS: u32 = 8;

/// Bytes of device memory that factoring in float32 takes at most, beside cuSOLVER's own: the Gram matrix, the matrix that is
/// factored, and what is made of it.
pub fn bytes_to_factor(width: usize) -> usize {
    3 * width * width * size_of::<f32>()
}

/// [`crate::factor::Factor`] on a device.
#[derive(Debug)]
pub struct DeviceFactor {
    /// `[width, width]`, zeros below the diagonal.
    pub upper: Buffer<f32>,
    /// Its diagonal.
    pub pivots: Vec<f32>,
}

/// The arithmetic of a factorization.
trait Arithmetic: DeviceRepr + ValidAsZeroBits {
    /// As cuSOLVER calls it.
    const TYPE: cudaDataType;
    /// Kernels before and after.
    const HESSIAN: &'static str;
    const TRANSPOSE: &'static str;
}

impl Arithmetic for f32 {
    const TYPE: cudaDataType = cudaDataType::CUDA_R_32F;
    const HESSIAN: &'static str = "reversed_hessian_single";
    const TRANSPOSE: &'static str = "reversed_transpose_single";
}

impl Arithmetic for f64 {
    const TYPE: cudaDataType = cudaDataType::CUDA_R_64F;
    const HESSIAN: &'static str = "reversed_hessian_double";
    const TRANSPOSE: &'static str = "reversed_transpose_double";
}

impl Device {
    /// [`crate::cholesky::inverse_upper_factor`] of the Hessian that `damped` makes of `gram`, `[width, width]`.
    pub fn inverse_upper_factor(
        &self,
        gram: &Buffer<f32>,
        damped: &Damped<'_>,
        precision: Precision,
    ) -> Result<Result<DeviceFactor, NotPositiveDefinite>, CudaError> {
        match precision {
            Precision::Single => self.factor::<f32>(gram, damped),
            Precision::Double => self.factor::<f64>(gram, damped),
        }
    }

    fn factor<T: Arithmetic>(
        &self,
        gram: &Buffer<f32>,
        damped: &Damped<'_>,
    ) -> Result<Result<DeviceFactor, NotPositiveDefinite>, CudaError> {
        let mut matrix = self.reversed_hessian::<T>(gram, damped)?;
        let width = damped.order.len();
        for step in [Step::Cholesky, Step::Inverse] {
            if !self.in_place(step, &mut matrix, width)? {
                return Ok(Err(NotPositiveDefinite));
            }
        }
        self.reversed_transpose(&matrix, width)
    }

    fn reversed_hessian<T: Arithmetic>(&self, gram: &Buffer<f32>, damped: &Damped<'_>) -> Result<Buffer<T>, CudaError> {
        let width = damped.order.len();
        assert_eq!((gram.len(), damped.diagonal.len()), (width * width, width), "shapes of gram and diagonal");
        let order: Vec<u32> = damped.order.iter().map(|&column| column as u32).collect();
        let (order, diagonal) = (self.upload(&order)?, self.upload(damped.diagonal)?);
        let mut out = self.room(width * width, "a Hessian")?;
        let kernel = self.kernel(&FACTOR, T::HESSIAN)?;
        let columns = width as u32;
        let mut launch = self.stream().launch_builder(&kernel);
        launch.arg(gram).arg(&order).arg(&diagonal).arg(&damped.scale).arg(&columns).arg(&mut out);
        // SAFETY: arguments as the kernel declares them; both matrices are [width, width], the order names columns, and
        // columns beyond the last are left alone.
        unsafe { launch.launch(grid([width.div_ceil(THREADS as usize), width.min(MOST_BLOCKS)], [THREADS, 1])) }?;
        Ok(out)
    }

    /// Takes `step` in place, columns first; whether it could be done.
    fn in_place<T: Arithmetic>(&self, step: Step, matrix: &mut Buffer<T>, width: usize) -> Result<bool, CudaError> {
        assert_eq!(matrix.len(), width * width, "shape of the matrix");
        let (stream, parameters) = (self.stream(), Parameters::new()?);
        let mut info = self.zeros::<i32>(1)?;
        {
            let (matrix, _matrix) = matrix.device_ptr_mut(stream);
            let (solver, parameters, n, matrix) =
                (self.solver()?.cu(), parameters.0, width as i64, matrix as *mut c_void);
            let call = Call { solver, parameters, n, number: T::TYPE, matrix };
            // SAFETY: handle and parameters are alive, and so is the matrix, which has n x n numbers of this type.
            let (there, here) = unsafe { call.workspace(step) }?;
            let (mut there, mut here) = (self.room::<u8>(there.max(1), "cuSOLVER")?, vec![0u8; here]);
            let bytes = there.len();
            let ((there, _there), (info, _info)) = (there.device_ptr_mut(stream), info.device_ptr_mut(stream));
            // SAFETY: as above; both workspaces are as large as was asked for, and the stream is waited for before the one
            // on the host goes.
            unsafe { call.run(step, (there as *mut _, bytes), &mut here, info as *mut _) }?;
            self.synchronize()?;
        }
        Ok(self.download(&info)? == [0])
    }

    /// The upper triangle row by row, of the lower one column by column, both reversed.
    fn reversed_transpose<T: Arithmetic>(
        &self,
        lower: &Buffer<T>,
        width: usize,
    ) -> Result<Result<DeviceFactor, NotPositiveDefinite>, CudaError> {
        let mut upper = self.room(width * width, "a factor")?;
        let (mut pivots, mut unsound) = (self.room(width, "a diagonal")?, self.zeros::<u32>(1)?);
        let kernel = self.kernel(&FACTOR, T::TRANSPOSE)?;
        let (columns, squares) = (width as u32, width.div_ceil(SQUARE));
        let mut launch = self.stream().launch_builder(&kernel);
        launch.arg(lower).arg(&columns).arg(&mut upper).arg(&mut pivots).arg(&mut unsound);
        // SAFETY: arguments as the kernel declares them; both matrices are [width, width], there is a pivot for each column,
        // and what lies beyond the edges is left alone.
        unsafe { launch.launch(grid([squares, squares], [SQUARE as u32, ROWS])) }?;
        let sound = self.download(&unsound)? == [0];
        Ok(if sound { Ok(DeviceFactor { upper, pivots: self.download(&pivots)? }) } else { Err(NotPositiveDefinite) })
    }

    /// Refuses to begin what needs factors where cuSOLVER is missing.
    pub fn require_solver(&self) -> Result<(), CudaError> {
        self.solver().map(drop)
    }
}

/// What cuSOLVER makes of a lower triangle.
#[derive(Clone, Copy)]
enum Step {
    /// Of a symmetric matrix its Cholesky factor.
    Cholesky,
    /// Its inverse.
    Inverse,
}

/// What its functions are given.
struct Call {
    solver: sys::cusolverDnHandle_t,
    parameters: sys::cusolverDnParams_t,
    n: i64,
    number: cudaDataType,
    matrix: *mut c_void,
}

/// The lower triangle, columns first, with a diagonal of its own.
const LOWER: cublasFillMode_t = cublasFillMode_t::CUBLAS_FILL_MODE_LOWER;
const DIAGONAL: cublasDiagType_t = cublasDiagType_t::CUBLAS_DIAG_NON_UNIT;

impl Call {
    /// Bytes to work in, on the device and on the host.
    ///
    /// # Safety
    /// Everything that `self` names is alive, the matrix as large as it says.
    unsafe fn workspace(&self, step: Step) -> Result<(usize, usize), CusolverError> {
        let Self { solver, parameters, n, number, matrix } = *self;
        let (mut there, mut here) = (0, 0);
        let (to_there, to_here) = (&raw mut there, &raw mut here);
        // SAFETY: as the caller promises; both sizes are written.
        let status = unsafe {
            match step {
                Step::Cholesky => sys::cusolverDnXpotrf_bufferSize(
                    solver, parameters, LOWER, n, number, matrix, n, number, to_there, to_here,
                ),
                Step::Inverse => {
                    sys::cusolverDnXtrtri_bufferSize(solver, LOWER, DIAGONAL, n, number, matrix, n, to_there, to_here)
                }
            }
        };
        status.result().map(|()| (there, here))
    }

    /// Takes the step; writes 0 to `info` where it could.
    ///
    /// # Safety
    /// As for `workspace`, whose sizes the workspaces have; they stay until the stream has come to the end.
    unsafe fn run(
        &self,
        step: Step,
        (there, bytes): (*mut c_void, usize),
        here: &mut [u8],
        info: *mut i32,
    ) -> Result<(), CusolverError> {
        let Self { solver, parameters, n, number, matrix } = *self;
        let (here, here_bytes) = (here.as_mut_ptr().cast(), here.len());
        // SAFETY: as the caller promises.
        let status = unsafe {
            match step {
                Step::Cholesky => sys::cusolverDnXpotrf(
                    solver, parameters, LOWER, n, number, matrix, n, number, there, bytes, here, here_bytes, info,
                ),
                Step::Inverse => sys::cusolverDnXtrtri(
                    solver, LOWER, DIAGONAL, n, number, matrix, n, there, bytes, here, here_bytes, info,
                ),
            }
        };
        status.result()
    }
}

/// cuSOLVER's settings, as they are by default.
struct Parameters(sys::cusolverDnParams_t);

impl Parameters {
    fn new() -> Result<Self, CusolverError> {
        Ok(Self(result::dn_create_params()?))
    }
}

impl Drop for Parameters {
    fn drop(&mut self) {
        // SAFETY: created by `new`, destroyed only here.
        let _ = unsafe { result::dn_destroy_params(self.0) };
    }
}

/// Loads cuSOLVER.
pub(super) fn open_solver(device: &Device) -> Result<DnHandle, CudaError> {
    // SAFETY: loading a library runs its constructors, which every user of it relies on being harmless.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoLibrary { library: "cusolver", package: "nvidia-cusolver-cu12" });
    }
    Ok(DnHandle::new(device.stream().clone())?)
}
