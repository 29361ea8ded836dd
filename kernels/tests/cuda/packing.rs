//! Words of checkpoints, equal bit for bit.

use crate::{
    device,
    solvers::{spec, weights},
};
use kernels::{QuantizedMatrix, ScaleSearch, pack};

#[test]
fn gptq_words_are_the_stream_of_each_output() {
    let Some(device) = device() else { return };
    for bits in [2, 3, 4, 8] {
        for (outputs, inputs) in [(1, 1), (5, 32), (130, 33), (9, 100), (140, 64)] {
            let spec = spec(bits, Some(16), false, ScaleSearch::MinMax);
            let matrix = device.round_to_nearest(&weights(outputs, inputs, 1), inputs, &spec).unwrap();
            let got = device.download(&matrix.stream_words(device).unwrap()).unwrap();
            let codes = matrix.download(device).unwrap().codes;
            let streams: Vec<Vec<u32>> =
                codes.chunks_exact(inputs).map(|row| pack::pack(row.iter().copied(), bits)).collect();
            let expected: Vec<u32> =
                (0..streams[0].len()).flat_map(|word| streams.iter().map(move |stream| stream[word])).collect();
            assert_eq!(got, expected, "{bits} bits, {outputs} x {inputs}");
        }
    }
}

/// As AWQ's packer defines it: output `8 word + order[i]` in bits `4 i` and up.
fn awq_words(matrix: &QuantizedMatrix) -> Vec<u32> {
    let order = [0, 2, 4, 6, 1, 3, 5, 7];
    let code = |output: usize, input: usize| u32::from(matrix.codes[output * matrix.inputs + input]);
    let word = |input: usize, word: usize| {
        (0..8).fold(0, |packed, slot| packed | code(8 * word + order[slot], input) << (4 * slot))
    };
    (0..matrix.inputs)
        .flat_map(|input| (0..matrix.outputs / 8).map(move |at| (input, at)))
        .map(|(i, w)| word(i, w))
        .collect()
}

#[test]
fn awq_words_interleave_eight_outputs() {
    let Some(device) = device() else { return };
    for (outputs, inputs) in [(8, 1), (24, 33), (1040, 9)] {
        let spec = spec(4, Some(8), false, ScaleSearch::MinMax);
        let matrix = device.round_to_nearest(&weights(outputs, inputs, 2), inputs, &spec).unwrap();
        let got = device.download(&matrix.interleaved_words(device).unwrap()).unwrap();
        assert_eq!(got, awq_words(&matrix.download(device).unwrap()), "{outputs} x {inputs}");
    }
    for (bits, outputs) in [(4, 12), (3, 16)] {
        let spec = spec(bits, None, true, ScaleSearch::MinMax);
        let matrix = device.round_to_nearest(&weights(outputs, 8, 2), 8, &spec).unwrap();
        assert!(matrix.interleaved_words(device).unwrap_err().to_string().contains("8 outputs of 4 bits"));
    }
}
