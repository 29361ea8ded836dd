// Products with a weight that stays packed. Codes are a GPTQ checkpoint's words, [words, outputs]: a stream of bits down
// the inputs of each output (pack.cu). Grids lie as [groups, outputs].

constexpr unsigned OUTPUTS = WARP;      // outputs that a thread block computes
constexpr unsigned PARTS = 8;           // warps that share them
constexpr unsigned CHUNK = WARP;        // inputs that a warp takes on together; their codes fill whole words
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

// A warp's share of the products of its outputs, one a lane: every PARTS-th chunk of CHUNK inputs, whose words hold whole
// codes. A lane brings a chunk's input for all; where the group changes, it does so for all lanes together.
template <unsigned BITS, unsigned ROWS>
__device__ void add_chunks(const float* x, const Packed& weight, unsigned own_rows, unsigned output, float* sums) {
    const bool inside = output < weight.outputs;
    const unsigned words = (weight.inputs * BITS + 31) / 32;
    unsigned current = 0xffffffffu;
    float scale = 0.0f, zero = 0.0f;
    for (unsigned chunk = threadIdx.y; chunk * CHUNK < weight.inputs; chunk += PARTS) {
        const unsigned own_input = chunk * CHUNK + threadIdx.x;
        const bool exists = own_input < weight.inputs;
        const unsigned own_group = exists ? weight.group_index[own_input] : 0;
        float own_x[ROWS];
        for (unsigned r = 0; r < ROWS; ++r) {
            own_x[r] = exists && r < own_rows ? x[(size_t)r * weight.inputs + own_input] : 0.0f;
        }
        unsigned own_words[BITS + 1] = {};
        for (unsigned i = 0; i < BITS; ++i) {
            const unsigned word = chunk * BITS + i;
            own_words[i] = inside && word < words ? weight.words[(size_t)word * weight.outputs + output] : 0;
        }
#pragma unroll
        for (unsigned j = 0; j < CHUNK; ++j) {
            const unsigned word = j * BITS / 32, shift = j * BITS % 32;
            unsigned code = own_words[word] >> shift;
            if (shift + BITS > 32) {
                code |= own_words[word + 1] << (32 - shift);
            }
            const unsigned group = __shfl_sync(ALL_LANES, own_group, j);
            if (group != current && inside) {
                scale = weight.scales[(size_t)group * weight.outputs + output];
                zero = (float)weight.zeros[(size_t)group * weight.outputs + output];
            }
            current = group;
            const float value = scale * ((float)(code & ((1u << BITS) - 1u)) - zero);
            for (unsigned r = 0; r < ROWS; ++r) {
                sums[r] = fmaf(__shfl_sync(ALL_LANES, own_x[r], j), value, sums[r]);
            }
        }
    }
}

template <unsigned ROWS>
__device__ void add_chunks(const float* x, const Packed& weight, unsigned own_rows, unsigned output, float* sums) {
    switch (weight.bits) {
        case 2: add_chunks<2, ROWS>(x, weight, own_rows, output, sums); break;
        case 3: add_chunks<3, ROWS>(x, weight, own_rows, output, sums); break;
        case 4: add_chunks<4, ROWS>(x, weight, own_rows, output, sums); break;
        default: add_chunks<8, ROWS>(x, weight, own_rows, output, sums);
    }
}

// out[row][output] = sum over the inputs of x[row][input] * weight, for up to MOST_ROWS rows from row blockIdx.y *
// MOST_ROWS on. Launched with (OUTPUTS, PARTS) threads; the parts' sums are added in order.
extern "C" __global__ void multiply_packed(const float* x, Packed weight, unsigned rows, float* out) {
    __shared__ float parts[PARTS][MOST_ROWS][OUTPUTS];
    const unsigned output = blockIdx.x * OUTPUTS + threadIdx.x, first = blockIdx.y * MOST_ROWS;
    const unsigned own_rows = min(MOST_ROWS, rows - first);
    const float* own_x = x + (size_t)first * weight.inputs;
    float sums[MOST_ROWS] = {};
    if (own_rows == 1) {
        add_chunks<1>(own_x, weight, own_rows, output, sums);
    } else {
        add_chunks<MOST_ROWS>(own_x, weight, own_rows, output, sums);
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
