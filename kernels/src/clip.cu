// What rounding costs a layer's output, by the Gram matrix: e G e^T for the errors e of a row. The product e G is cuBLAS's.
// Weights and errors lie as [columns, rows].

// Multiplies, or divides, each column by its factor.
extern "C" __global__ void scale_columns(float* weight, const float* factors, unsigned columns, unsigned rows,
                                         unsigned divide) {
    const unsigned row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) {
        return;
    }
    for (unsigned column = blockIdx.y; column < columns; column += gridDim.y) {
        const size_t at = (size_t)column * rows + row;
        weight[at] = divide ? weight[at] / factors[column] : weight[at] * factors[column];
    }
}

// energies[row] = sum over the columns of errors * products, in float64 and in order.
extern "C" __global__ void row_energies(const float* errors, const float* products, unsigned columns, unsigned rows,
                                        double* energies) {
    const unsigned row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) {
        return;
    }
    double sum = 0.0;
    for (unsigned column = 0; column < columns; ++column) {
        const size_t at = (size_t)column * rows + row;
        sum += (double)errors[at] * (double)products[at];
    }
    energies[row] = sum;
}
