"""Reads a compressed-tensors checkpoint (pack-quantized) with numpy and safetensors alone, and dequantizes every linear.

    read_compressed.py CHECKPOINT OUT    writes OUT/<module>.f32 (float32, [out, in] row-major), prints the modules' names

Independent of the Rust code: written from the layout table. Values are signed, stored with 2 ** (bits - 1) added.
"""

import json
import pathlib
import re
import sys

import numpy as np
from safetensors import safe_open


def unpack(words, bits, count, axis):
    """The first `count` signed values along `axis`, 32 / bits to a word, lowest bits first."""
    words = np.moveaxis(words.view(np.uint32), axis, -1)
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    fields = (words[..., None] >> shifts) & np.uint32(2**bits - 1)
    values = fields.reshape(*words.shape[:-1], -1)[..., :count].astype(np.int64) - 2 ** (bits - 1)
    return np.moveaxis(values, -1, axis)


def matches(name, targets):
    return any(re.match(t.removeprefix("re:"), name) if t.startswith("re:") else t == name for t in targets)


def settings_of(module, config):
    """The group of settings that names the module, else the one for the class of linears."""
    assert not matches(module, config["ignore"]), f"{module} should not be quantized"
    groups = list(config["config_groups"].values())
    named = [g for g in groups if matches(module, g["targets"])] or [g for g in groups if "Linear" in g["targets"]]
    return named[0]["weights"]


def dequantize(module, place, config):
    load = lambda part: place[f"{module}.{part}"].get_tensor(f"{module}.{part}")
    settings = settings_of(module, config)
    bits, (outputs, inputs) = settings["num_bits"], load("weight_shape")
    codes, scales = unpack(load("weight_packed"), bits, inputs, axis=1), load("weight_scale").astype(np.float32)
    size = settings["group_size"] if settings["strategy"] == "group" else inputs
    assert codes.shape == (outputs, inputs) and scales.shape == (outputs, inputs // size)
    zeros = np.zeros_like(scales, dtype=np.int64)
    if not settings["symmetric"]:
        zeros = unpack(load("weight_zero_point"), bits, outputs, axis=0)
    assert settings["symmetric"] == (f"{module}.weight_zero_point" not in place)
    ordered = settings["actorder"] == "group"
    assert ordered == (f"{module}.weight_g_idx" in place)
    group = load("weight_g_idx") if ordered else np.arange(inputs) // size
    return scales[:, group] * (codes - zeros[:, group]).astype(np.float32)


def main(folder, out):
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["format"]) == ("compressed-tensors", "pack-quantized")
    files = [safe_open(file, "np") for file in sorted(folder.glob("*.safetensors"))]
    place = {name: file for file in files for name in file.keys()}
    modules = [name.removesuffix(".weight_packed") for name in place if name.endswith(".weight_packed")]
    for module in modules:
        np.ascontiguousarray(dequantize(module, place, config), dtype="<f4").tofile(out / f"{module}.f32")
    print("\n".join(modules))


main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
