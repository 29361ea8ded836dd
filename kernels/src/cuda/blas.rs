//! The products that cuBLAS does, with float32 sums: of float32 numbers (its default arithmetic: no TF32) and of bfloat16.
//!
//! cuBLAS counts columns first: a row-major `[a, b]` is its `[b, a]`, which the functions here account for.

use super::{CudaError, Device};
use cudarc::{
    cublas::{result, sys},
    driver::{DevicePtr, DevicePtrMut},
};
use std::ops::Range;

/// A size as cuBLAS takes it.
pub(super) fn size(count: usize, of: &str) -> Result<i32, CudaError> {
    i32::try_from(count).map_err(|_| CudaError::Shape { what: format!("{count} {of} are too many for cuBLAS") })
}

/// How the second operand of [`product`] lies.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Right {
    /// `[depth, columns]`.
    AsIs,
    /// `[columns, depth]`, as a linear layer's weight.
    Transposed,
}

/// `out = a b`, all row-major: `out` `[rows, columns]`, `a` `[rows, depth]`, `b` as `right` says.
pub(super) fn product(
    device: &Device,
    [rows, columns, depth]: [usize; 3],
    a: &impl DevicePtr<f32>,
    b: &impl DevicePtr<f32>,
    right: Right,
    out: &mut impl DevicePtrMut<f32>,
) -> Result<(), CudaError> {
    let enough = a.len() >= rows * depth && b.len() >= depth * columns && out.len() >= rows * columns;
    assert!(enough, "shapes of a product: [{rows}, {columns}, {depth}]");
    if rows == 0 || columns == 0 {
        return Ok(());
    }
    let [m, n, k] = [size(columns, "columns")?, size(rows, "rows")?, size(depth, "terms of a sum")?];
    let (operation, leading) = match right {
        Right::AsIs => (sys::cublasOperation_t::CUBLAS_OP_N, m),
        Right::Transposed => (sys::cublasOperation_t::CUBLAS_OP_T, k.max(1)),
    };
    let stream = device.stream();
    let ((a, _a), (b, _b), (out, _out)) = (a.device_ptr(stream), b.device_ptr(stream), out.device_ptr_mut(stream));
    let (one, zero) = (1.0f32, 0.0f32);
    // SAFETY: the handle is the device's own, the factors outlive the call, and every matrix was checked above to hold
    // the numbers that its sizes and leading dimension say.
    unsafe {
        result::sgemm(
            *device.blas().handle(),
            operation,
            sys::cublasOperation_t::CUBLAS_OP_N,
            m,
            n,
            k,
            &raw const one,
            b as *const f32,
            leading,
            a as *const f32,
            k.max(1),
            &raw const zero,
            out as *mut f32,
            m,
        )
    }?;
    Ok(())
}

/// `out = a bᵀ`, or with `kept` `out += a bᵀ`: `out` `[rows, columns]`, `a` `[rows, depth]`, `b` `[columns, depth]`, bfloat16.
pub(super) fn add_bfloat16_product(
    device: &Device,
    [rows, columns, depth]: [usize; 3],
    a: &impl DevicePtr<u16>,
    b: &impl DevicePtr<u16>,
    kept: bool,
    out: &mut impl DevicePtrMut<f32>,
) -> Result<(), CudaError> {
    let enough = a.len() >= rows * depth && b.len() >= depth * columns && out.len() >= rows * columns;
    assert!(enough, "shapes of a product: [{rows}, {columns}, {depth}]");
    if rows == 0 || columns == 0 {
        return Ok(());
    }
    let [m, n, k] = [size(columns, "columns")?, size(rows, "rows")?, size(depth, "terms of a sum")?];
    let stream = device.stream();
    let ((a, _a), (b, _b), (out, _out)) = (a.device_ptr(stream), b.device_ptr(stream), out.device_ptr_mut(stream));
    let (one, old) = (1.0f32, if kept { 1.0f32 } else { 0.0 });
    // SAFETY: as for `product`; factors are float32, as sums of this kind want them.
    unsafe {
        result::gemm_ex(
            *device.blas().handle(),
            sys::cublasOperation_t::CUBLAS_OP_T,
            sys::cublasOperation_t::CUBLAS_OP_N,
            m,
            n,
            k,
            (&raw const one).cast(),
            b as *const _,
            sys::cudaDataType::CUDA_R_16BF,
            k.max(1),
            a as *const _,
            sys::cudaDataType::CUDA_R_16BF,
            k.max(1),
            (&raw const old).cast(),
            out as *mut _,
            sys::cudaDataType::CUDA_R_32F,
            m,
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
    }?;
    Ok(())
}

/// Adds `aᵀb` to rows `panel` of the square matrix `sums` (`[width, width]`), in the columns up to the panel's last; both
/// factors are `[rows, width]`, bfloat16.
pub(super) fn add_bfloat16_panel(
    device: &Device,
    sums: &mut impl DevicePtrMut<f32>,
    (a, b): (&impl DevicePtr<u16>, &impl DevicePtr<u16>),
    width: usize,
    panel: Range<usize>,
) -> Result<(), CudaError> {
    assert_eq!((sums.len(), a.len(), b.len() % width), (width * width, b.len(), 0), "shapes of sums, a and b");
    assert!(panel.end <= width, "a panel of {panel:?} in {width} rows");
    let [leading, n, m] = [width, panel.len(), panel.end].map(|count| size(count, "columns"));
    let (leading, n, m, k) = (leading?, n?, m?, size(a.len() / width, "rows")?);
    let stream = device.stream();
    let ((a, _a), (b, _b), (sums, _sums)) = (a.device_ptr(stream), b.device_ptr(stream), sums.device_ptr_mut(stream));
    let one = 1.0f32;
    // SAFETY: as for `product`. The panel begins at its first row of the sums, and at its first column of `a`, each row of
    // which has `width` numbers: none beyond the last is touched.
    unsafe {
        result::gemm_ex(
            *device.blas().handle(),
            sys::cublasOperation_t::CUBLAS_OP_N,
            sys::cublasOperation_t::CUBLAS_OP_T,
            m,
            n,
            k,
            (&raw const one).cast(),
            b as *const _,
            sys::cudaDataType::CUDA_R_16BF,
            leading,
            (a as *const u16).add(panel.start).cast(),
            sys::cudaDataType::CUDA_R_16BF,
            leading,
            (&raw const one).cast(),
            (sums as *mut f32).add(panel.start * width).cast(),
            sys::cudaDataType::CUDA_R_32F,
            leading,
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
    }?;
    Ok(())
}

/// Adds `xᵀx` to the lower triangle of `gram` (`[width, width]`), `x` being `[rows, width]`.
pub(super) fn add_gram(
    device: &Device,
    gram: &mut impl DevicePtrMut<f32>,
    x: &impl DevicePtr<f32>,
    width: usize,
) -> Result<(), CudaError> {
    assert_eq!((gram.len(), x.len() % width), (width * width, 0), "shapes of gram and x");
    let (n, k) = (size(width, "columns")?, size(x.len() / width, "rows")?);
    let stream = device.stream();
    let ((gram, _gram), (x, _x)) = (gram.device_ptr_mut(stream), x.device_ptr(stream));
    let one = 1.0f32;
    // SAFETY: as above. What is the lower triangle row by row is the upper one column by column.
    unsafe {
        sys::cublasSsyrk_v2(
            *device.blas().handle(),
            sys::cublasFillMode_t::CUBLAS_FILL_MODE_UPPER,
            sys::cublasOperation_t::CUBLAS_OP_N,
            n,
            k,
            &raw const one,
            x as *const f32,
            n,
            &raw const one,
            gram as *mut f32,
            n,
        )
        .result()
    }?;
    Ok(())
}

/// Adds `aᵀb` to `sums` (`[width, width]`), both factors being `[rows, width]`.
pub(super) fn add_transposed_product(
    device: &Device,
    sums: &mut impl DevicePtrMut<f32>,
    a: &impl DevicePtr<f32>,
    b: &impl DevicePtr<f32>,
    width: usize,
) -> Result<(), CudaError> {
    assert_eq!((sums.len(), a.len(), b.len() % width), (width * width, b.len(), 0), "shapes of sums, a and b");
    let (n, k) = (size(width, "columns")?, size(b.len() / width, "rows")?);
    let stream = device.stream();
    let ((a, _a), (b, _b), (sums, _sums)) = (a.device_ptr(stream), b.device_ptr(stream), sums.device_ptr_mut(stream));
    let one = 1.0f32;
    // SAFETY: as for `product`.
    unsafe {
        result::sgemm(
            *device.blas().handle(),
            sys::cublasOperation_t::CUBLAS_OP_N,
            sys::cublasOperation_t::CUBLAS_OP_T,
            n,
            n,
            k,
            &raw const one,
            b as *const f32,
            n,
            a as *const f32,
            n,
            &raw const one,
            sums as *mut f32,
            n,
        )
    }?;
    Ok(())
}
