// Codes to the words of checkpoints. Codes lie as [columns, rows]: a column is an input, a row an output.

// GPTQ: a stream of bits down the inputs of each output (pack.rs), words [columns * bits / 32, rows]; `words` of them a
// row, the last filled up with zeros.
extern "C" __global__ void pack_stream(const byte* codes, unsigned columns, unsigned rows, unsigned bits,
                                       unsigned words, unsigned* out) {
    const unsigned row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) {
        return;
    }
    for (unsigned word = blockIdx.y; word < words; word += gridDim.y) {
        const unsigned begin = word * 32, end = begin + 32;
        unsigned packed = 0;
        for (unsigned column = begin / bits; column * bits < end && column < columns; ++column) {
            const unsigned code = codes[(size_t)column * rows + row] & ((1u << bits) - 1u);
            const unsigned at = column * bits;
            packed |= at >= begin ? code << (at - begin) : code >> (begin - at);
        }
        out[(size_t)word * rows + row] = packed;
    }
}

// AWQ: 8 neighbouring outputs of an input in a word, in the order 0 2 4 6 1 3 5 7 from the lowest bits on; words
// [columns, rows / 8].
extern "C" __global__ void pack_interleaved(const byte* codes, unsigned columns, unsigned rows, unsigned* out) {
    const unsigned word = blockIdx.x * blockDim.x + threadIdx.x, words = rows / 8;
    if (word >= words) {
        return;
    }
    for (unsigned column = blockIdx.y; column < columns; column += gridDim.y) {
        const byte* own = codes + (size_t)column * rows + word * 8;
        unsigned packed = 0;
        for (unsigned i = 0; i < 8; ++i) {
            const unsigned source = i < 4 ? 2 * i : 2 * i - 7;
            packed |= (own[source] & 15u) << (4 * i);
        }
        out[(size_t)column * words + word] = packed;
    }
}
