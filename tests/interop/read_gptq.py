"""Reads a GPTQ checkpoint with numpy and safetensors alone, and dequantizes every linear.

    read_gptq.py CHECKPOINT OUT    writes OUT/<module>.f32 (float32, [out, in] row-major), prints the modules' names

Independent of the Rust code: written from the layout table. v1 stores zero - 1, v2 the zero itself.
"""

import json
import pathlib
import re
import sys

import numpy as np
from safetensors import safe_open


def unpack(words, bits, axis):
    """Values of `bits` bits from int32 words along `axis`, least significant bit first, as one stream."""
    words = np.moveaxis(words.view(np.uint32), axis, -1)
    stream = (words[..., None] >> np.arange(32, dtype=np.uint32)) & 1
    stream = stream.reshape(*words.shape[:-1], -1, bits)
    values = (stream << np.arange(bits, dtype=np.uint32)).sum(-1)
    return np.moveaxis(values, -1, axis).astype(np.int64)


def settings_of(module, config):
    """The shared settings, or those of the first rule in `dynamic` that matches."""
    for pattern, changes in config.get("dynamic", {}).items():
        if re.match(pattern.removeprefix("-:").removeprefix("+:"), module):
            assert not pattern.startswith("-:"), f"{module} should not be quantized"
            return {**config, **changes}
    return config


def dequantize(module, load, config):
    settings = settings_of(module, config)
    bits, offset = settings["bits"], {"gptq": 1, "gptq_v2": 0}[settings["checkpoint_format"]]
    codes = unpack(load(f"{module}.qweight"), bits, axis=0)
    zeros = unpack(load(f"{module}.qzeros"), bits, axis=1) + offset
    scales, group = load(f"{module}.scales").astype(np.float32), load(f"{module}.g_idx")
    size = settings["group_size"] if settings["group_size"] > 0 else len(group)
    assert scales.shape == (-(-len(group) // size), codes.shape[1])
    if not settings["desc_act"]:
        assert (group == np.arange(len(group)) // size).all()
    return (scales[group] * (codes - zeros[group]).astype(np.float32)).T


def main(folder, out):
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    files = [safe_open(file, "np") for file in sorted(folder.glob("*.safetensors"))]
    place = {name: file for file in files for name in file.keys()}
    modules = [name.removesuffix(".qweight") for name in place if name.endswith(".qweight")]
    for module in modules:
        weight = dequantize(module, lambda name: place[name].get_tensor(name), config)
        np.ascontiguousarray(weight, dtype="<f4").tofile(out / f"{module}.f32")
    print("\n".join(modules))


main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
