// Products with a weight that stays packed. Codes are a GPTQ checkpoint's words, [words, outputs]: a stream of bits down
// the inputs of each output (pack.cu). Grids lie as [groups, outputs].

constexpr unsigned OUTPUTS = WARP;      // outputs that a thread block computes
constexpr unsigned PARTS = 8;           // threads that share an output
constexpr unsigned MOST_ROWS = 8;       // rows of x that a thread takes on at a time

struct Packed {
    const unsigned* words;
    const float* scales;
    const byte* zeros;
    const unsigned* group_index;
    unsigned inputs;
    unsigned outputs;
    unsigned bits;

    // The weight of one input and output. A code of 3 bits may lie in two words.
    __device__ float operator()(unsigned input, unsigned output) const {
        const unsigned at = input * bits, shift = at % 32;
        const size_t word = (size_t)(at / 32) * outputs + output;
        unsigned code = words[word] >> shift;
        if (shift + bits > 32) {
            code |= words[word + outputs] << (32 - shift);
        }
        code &= (1u << bits) - 1u;
        const size_t grid = (size_t)group_index[input] * outputs + output;
        return scales[grid] * ((float)code - (float)zeros[grid]);
    }
};

// out[row][output] = sum over the inputs of x[row][input] * weight, for up to MOST_ROWS rows from row blockIdx.y *
// MOST_ROWS on. Launched with (OUTPUTS, PARTS) threads: each part takes every PARTS-th input, the parts' sums are added
// in order.
extern "C" __global__ void multiply_packed(const float* x, Packed weight, unsigned rows, float* out) {
    __shared__ float parts[PARTS][MOST_ROWS][OUTPUTS];
    const unsigned output = blockIdx.x * OUTPUTS + threadIdx.x, first = blockIdx.y * MOST_ROWS;
    const unsigned own_rows = min(MOST_ROWS, rows - first);
    float sums[MOST_ROWS] = {};
    for (unsigned input = threadIdx.y; output < weight.outputs && input < weight.inputs; input += PARTS) {
        const float w = weight(input, output);
        for (unsigned r = 0; r < MOST_ROWS; ++r) {
            const float value = r < own_rows ? x[(size_t)(first + r) * weight.inputs + input] : 0.0f;
            sums[r] = fmaf(value, w, sums[r]);
        }
    }
    for (unsigned r = 0; r < MOST_ROWS; ++r) {
        parts[threadIdx.y][r][threadIdx.x] = sums[r];
    }
    __syncthreads();
    for (unsigned r = threadIdx.y; r < own_rows && output < weight.outputs; r += PARTS) {
        float sum = 0.0f;
        for (unsigned part = 0; part < PARTS; ++part) {
            sum += parts[part][r][threadIdx.x];
        }
        out[(size_t)(first + r) * weight.outputs + output] = sum;
    }
}

// The whole weight as [inputs, outputs], for a dense product with many rows.
extern "C" __global__ void unpack_weight(Packed weight, float* out) {
    const unsigned output = blockIdx.x * blockDim.x + threadIdx.x;
    if (output >= weight.outputs) {
        return;
    }
    for (unsigned input = blockIdx.y; input < weight.inputs; input += gridDim.y) {
        out[(size_t)input * weight.outputs + output] = weight(input, output);
    }
}
