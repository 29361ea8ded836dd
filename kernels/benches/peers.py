#!/usr/bin/env python3
"""Dense products of other libraries, in the shapes of kernels/benches/operations/main.rs, on one thread.

    python3 -m venv target/peers && target/peers/bin/pip install numpy mkl
    target/peers/bin/python kernels/benches/peers.py

Prints GFLOP/s, the median of repeated runs. Run it right before or after `cargo bench -p kernels -- 'linear f32|gram'` on
the same machine: only ratios within one session mean anything.
"""

import ctypes
import os
import statistics
import sys
import time
from pathlib import Path

for variable in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np  # noqa: E402  (after the number of threads is set)

ROW_MAJOR, NO_TRANSPOSE, TRANSPOSE, UPPER = 101, 111, 112, 121


def mkl():
    """The library of the `mkl` package, or nothing."""
    found = sorted(Path(sys.prefix, "lib").glob("libmkl_rt.so*"))
    return ctypes.CDLL(str(found[-1])) if found else None


def pointer(array):
    return array.ctypes.data_as(ctypes.c_void_p)


def rate(operations, work):
    """GFLOP/s of `work`."""
    work()
    seconds = []
    while sum(seconds) < 2 or len(seconds) < 5:
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return operations / statistics.median(seconds) * 1e-9


def main():
    library = mkl()
    random = np.random.default_rng(0)
    numbers = lambda *shape: random.uniform(-1, 1, shape).astype(np.float32)  # noqa: E731
    one, zero = ctypes.c_float(1), ctypes.c_float(0)
    print(f"numpy {np.__version__} (OpenBLAS)" + (" and MKL" if library else "; no mkl package"))
    for rows, inputs, outputs in [(2048, 576, 576), (2048, 576, 1536), (2048, 896, 4864), (2048, 4864, 896), (2048, 2048, 8192)]:
        x, w, out = numbers(rows, inputs), numbers(outputs, inputs), np.empty((rows, outputs), np.float32)
        operations = 2 * rows * inputs * outputs
        line = f"linear {rows}x{inputs}x{outputs}: OpenBLAS {rate(operations, lambda: np.dot(x, w.T, out=out)):.1f}"
        if library:
            sgemm = lambda: library.cblas_sgemm(  # noqa: E731
                ROW_MAJOR, NO_TRANSPOSE, TRANSPOSE, rows, outputs, inputs, one, pointer(x), inputs, pointer(w), inputs, zero,
                pointer(out), outputs)
            line += f", MKL {rate(operations, sgemm):.1f}"
        print(line, flush=True)
    for width in (576, 896, 1536, 4864):
        x, sums = numbers(2048, width), np.zeros((width, width), np.float32)
        operations = 2048 * width * width
        line = f"gram 2048x{width}: OpenBLAS {rate(operations, lambda: np.dot(x.T, x)):.1f}"
        if library:
            ssyrk = lambda: library.cblas_ssyrk(  # noqa: E731
                ROW_MAJOR, UPPER, TRANSPOSE, width, 2048, one, pointer(x), width, one, pointer(sums), width)
            line += f", MKL {rate(operations, ssyrk):.1f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
