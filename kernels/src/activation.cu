// Gated activation, gate = act(gate) * up; see activation.rs, whose arithmetic it repeats.

extern "C" __global__ void gated(float* gate, const float* up, unsigned long long count, unsigned gelu) {
    const unsigned long long stride = (unsigned long long)gridDim.x * blockDim.x;
    for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        const float x = gate[i];
        const float y = gelu ? -1.595769f * fmaf(0.044715f * x * x, x, x) : -x;
        gate[i] = x / (1.0f + exponential(y)) * up[i];
    }
}
