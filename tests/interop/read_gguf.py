"""Reads a GGUF file with the `gguf` package, the one that llama.cpp publishes, and dequantizes every tensor.

    read_gguf.py FILE OUT    writes OUT/<tensor>.f32 (float32, row-major), prints `<tensor> <type>` for each,
                             before them `<key> = <value>` for the metadata that is one text or number
"""

import pathlib
import sys

import numpy as np
from gguf import GGUFReader, GGUFValueType
from gguf.quants import dequantize


def main(file, out):
    reader = GGUFReader(file)
    for key, field in reader.fields.items():
        if field.types == [GGUFValueType.STRING]:
            print(f"{key} = {bytes(field.parts[-1]).decode('utf-8')!r}")
        elif len(field.types) == 1:
            print(f"{key} = {field.parts[-1][0]}")
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        np.ascontiguousarray(values, dtype="<f4").tofile(out / f"{tensor.name}.f32")
        print(tensor.name, tensor.tensor_type.name)


main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
