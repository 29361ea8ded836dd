// Rotary position embedding; see rope.rs, whose arithmetic it repeats. x is [tokens, heads, head_width], the table's
// cosines and sines are [positions, half]; the token t is at position first + t.

extern "C" __global__ void rotate(float* x, const float* cosines, const float* sines, unsigned tokens, unsigned heads,
                                  unsigned head_width, unsigned half, unsigned first) {
    const unsigned at = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned token = blockIdx.y;
    if (at >= heads * half) {
        return;
    }
    const unsigned head = at / half, j = at % half;
    for (unsigned t = token; t < tokens; t += gridDim.y) {
        const size_t angle = (size_t)(first + t) * half + j;
        const float cosine = cosines[angle], sine = sines[angle];
        float* low = x + ((size_t)t * heads + head) * head_width + j;
        float* high = low + half;
        const float l = *low, h = *high;
        *low = l * cosine - h * sine;
        *high = h * cosine + l * sine;
    }
}
