// Sums over the rows of x ([rows, width]), column by column: |x| and x², in float64, row after row, so that they are the
// CPU's to the bit; see moments.rs. A thread takes a column.

extern "C" __global__ void add_moments(const float* x, unsigned rows, unsigned width, double* absolute, double* square) {
    const unsigned column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) {
        return;
    }
    double of_absolute = absolute[column], of_square = square[column];
    for (unsigned row = 0; row < rows; ++row) {
        const double value = (double)x[(size_t)row * width + column];
        of_absolute += fabs(value);
        of_square += value * value;
    }
    absolute[column] = of_absolute;
    square[column] = of_square;
}
