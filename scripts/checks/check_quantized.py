"""Compares what `vtrain quantize` wrote with what bitsandbytes, torchao, gguf-py and diffusers make of the same transformer, and
loads it with them; stops where something differs.

    python scripts/checks/check_quantized.py CASES.json

CASES is a list of lists, since it takes long to load the programs:

    ["folder", DENSE_TRANSFORMER, WRITTEN_TRANSFORMER, FORM, ANSWER]
    ["text-encoder", DENSE, WRITTEN]
    ["gguf", FILE.gguf, DECODED.safetensors, CONFIG_DIR]

FORM is one of scripts/fixtures/quantized.py. Names, types, shapes, metadata and config must be equal, and so must all bytes, but
for 1e-4 of the codes, and the magnitudes of double quantisation, whose mean is a sum in another order. Each program loads the
file by its own way, and must decode it as vtrain predicts with it: ANSWER has latents, timestep, text and out. DECODED has what
vtrain decodes of a GGUF file, by original names.
"""

import json
import sys
from pathlib import Path

import bitsandbytes as bnb
import numpy as np
import torch
from bitsandbytes.functional import QuantState
from diffusers import GGUFQuantizationConfig, WanTransformer3DModel
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).resolve().parents[1] / "fixtures"))
from quantized import TORCHAO, WEIGHTS, expected, read


def data(tensor):
    return tensor.contiguous().flatten().view(torch.uint8).numpy()


def compare(form, dense, written):
    tensors, metadata, config = expected(form, dense)
    found, found_metadata = read(written / WEIGHTS)
    assert found.keys() == tensors.keys(), found.keys() ^ tensors.keys()
    differ = codes = 0
    for name, tensor in tensors.items():
        ours = found[name]
        if "quant_state" in name:
            ours, theirs = (json.loads(data(text).tobytes()) for text in (ours, tensor))
            if "nested_offset" in theirs:
                offsets = [state.pop("nested_offset") for state in (ours, theirs)]
                assert abs(offsets[0] / offsets[1] - 1) < 1e-6, (name, offsets)
            assert ours == theirs and list(ours) == list(theirs), name
            continue
        assert ours.dtype == tensor.dtype and ours.shape == tensor.shape, (name, ours.dtype, ours.shape)
        if name.endswith(("nested_absmax", ".absmax")) and "nested" in str(tensors.keys()):
            if ours.is_floating_point():
                torch.testing.assert_close(ours, tensor, rtol=1e-5, atol=1e-9)
            else:
                off = (ours.int() - tensor.int()).abs()
                assert off.max() <= 1 and (off > 0).float().mean() < 0.05, name
            continue
        if ours.dtype in (torch.uint8, torch.int8, torch.float8_e4m3fn):
            differ += int((data(ours) != data(tensor)).sum())
            codes += ours.numel()
            continue
        assert np.array_equal(data(ours), data(tensor)), name
    assert differ <= 1e-4 * codes, f"{differ} of {codes} codes differ"
    assert {key: json.loads(text) for key, text in found_metadata.items() if key not in ("format", "tensor_names")} == {
        key: json.loads(text) for key, text in metadata.items() if key not in ("format", "tensor_names")
    }
    if "tensor_names" in metadata:
        assert sorted(json.loads(found_metadata["tensor_names"])) == sorted(json.loads(metadata["tensor_names"]))
    found_config = json.loads((written / "config.json").read_text()).get("quantization_config")
    assert found_config == config, (found_config, config)
    return found


def by_bitsandbytes(found, dense):
    """The decoded weights by bitsandbytes' own layers."""
    decoded = {}
    for name, plain in load_file(dense / WEIGHTS).items():
        layer = name.removesuffix(".weight")
        parts = {key.removeprefix(f"{name}."): value for key, value in found.items() if key.startswith(f"{name}.")}
        if any("quant_state" in part for part in parts):
            weight = bnb.nn.Params4bit.from_prequantized(found[name], parts, device="cpu")
            state = QuantState.from_dict(dict(parts), device=torch.device("cpu"))
            decoded[name] = bnb.functional.dequantize_4bit(found[name], state)
            linear = bnb.nn.Linear4bit(plain.shape[1], plain.shape[0], bias=False, compute_dtype=torch.float32)
            linear.weight = weight
            x = torch.eye(plain.shape[1])
            torch.testing.assert_close(linear(x).T, decoded[name].float(), rtol=1e-5, atol=1e-6)
        elif f"{layer}.SCB" in found:
            linear = bnb.nn.Linear8bitLt(plain.shape[1], plain.shape[0], bias=False, has_fp16_weights=False)
            linear.weight = bnb.nn.Int8Params(plain, requires_grad=False, has_fp16_weights=False).to("cpu")
            linear.load_state_dict({part: found[f"{layer}.{part}"] for part in ("weight", "SCB", "weight_format")})
            decoded[name] = bnb.functional.int8_vectorwise_dequant(linear.weight.data, found[f"{layer}.SCB"])
        else:
            decoded[name] = found[name]
    return decoded


def folder(dense, written, form, answer):
    found = compare(form, dense, written)
    if form in TORCHAO or form == "fp8":
        model = WanTransformer3DModel.from_pretrained(written, torch_dtype=torch.float32)
    else:
        model = WanTransformer3DModel.from_pretrained(dense, torch_dtype=torch.float32)
        model.load_state_dict(by_bitsandbytes(found, dense))
    answer = load_file(answer)
    with torch.no_grad():
        out = model(answer["latents"], answer["timestep"], answer["text"], return_dict=False)[0]
    off = ((out - answer["out"]).abs().max() / out.abs().max()).item()
    print(f"{form}: prediction differs by {off:.1e}")
    assert off < 1e-4, off


def text_encoder(dense, written):
    found, _ = read(written / "model.safetensors")
    config = json.loads((written / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "bitsandbytes" and config["llm_int8_skip_modules"] == ["wo"], config
    stored = 0
    for name, weight in load_file(dense / "model.safetensors").items():
        parts = {key.removeprefix(f"{name}."): value for key, value in found.items() if key.startswith(f"{name}.")}
        if parts:
            state = QuantState.from_dict(parts, device=torch.device("cpu"))
            decoded = bnb.functional.dequantize_4bit(found[name], state)
            assert ((decoded - weight).norm() / weight.norm()).item() < 0.13, name
            stored += 1
        else:
            assert torch.equal(found[name], weight), name
    print(f"{stored} matrices of the text encoder")
    assert stored


def gguf_file(file, decoded, config):
    import gguf

    reader = gguf.GGUFReader(file)
    assert reader.fields["general.quantization_version"].contents() == 2
    decoded = load_file(decoded)
    assert {tensor.name for tensor in reader.tensors} == set(decoded)
    for tensor in reader.tensors:
        theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        ours = decoded[tensor.name].numpy()
        assert theirs.size == ours.size and np.array_equal(theirs.reshape(ours.shape), ours), tensor.name
        assert list(reversed(tensor.shape.tolist())) == list(ours.shape), (tensor.name, tensor.shape)
    model = WanTransformer3DModel.from_single_file(
        file, config=config, quantization_config=GGUFQuantizationConfig(torch.float32), torch_dtype=torch.float32
    )
    print(f"{len(reader.tensors)} tensors; diffusers loads {type(model).__name__}")


def main():
    for case in json.loads(Path(sys.argv[1]).read_text()):
        print(case)
        match case:
            case ["gguf", file, decoded, config]:
                gguf_file(file, decoded, config)
            case ["text-encoder", dense, written]:
                text_encoder(Path(dense), Path(written))
            case ["folder", dense, written, form, answer]:
                folder(Path(dense), Path(written), form, answer)


if __name__ == "__main__":
    main()
