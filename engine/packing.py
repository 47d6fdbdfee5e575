"""Network parameters in few bits: safetensors files that a repository can carry.

The weights of large convolutions become whole numbers of 5 or 8 bits with a scale for each output channel,
other parameters bfloat16, running statistics and counters stay as they are. A convolution of few bits whose
error would exceed a tolerance keeps 8: one that started as the identity has a diagonal of ones beside
values of a hundredth, which 5 bits round to zero.
"""
import json

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from engine import files

SUFFIX = '.safetensors'
LARGE = 4096                          # weights of a convolution from which it is packed
CLIPPED = np.linspace(0.4, 1, 13)     # parts of a channel's largest weight that are tried as its range


def pack(state, few=5, many=8, tolerance=0.08):
    """What a file holds of network parameters: ({name: tensor}, {name: {'bits', 'shape'}} of those packed).

    state : {name: tensor}; few, many : bits of a weight, 2 to 8
    tolerance : relative error (root of the summed squares) of a convolution above which it gets `many`
    """
    tensors, packed = {}, {}
    for name, tensor in state.items():
        if tensor.ndim == 4 and tensor.shape[1] > 1 and tensor.numel() >= LARGE:
            for bits in (few, many):
                numbers, scale = quantize(tensor, bits)
                error = (numbers * scale - tensor.flatten(1)).norm() / tensor.norm().clamp_min(1e-30)
                if error <= tolerance:
                    break
            tensors[name] = _to_bits(numbers + 2 ** (bits - 1), bits)
            tensors[f'{name}.scale'] = scale[:, 0].clone()
            packed[name] = {'bits': bits, 'shape': list(tensor.shape)}
        else:   # a variance of 1e-7 matters beside an epsilon of 1e-5, and rounding it to 8 bits would show
            brief = tensor.is_floating_point() and 'running_' not in name
            tensors[name] = (tensor.bfloat16() if brief else tensor).contiguous()
    return tensors, packed


def quantize(weight, bits):
    """(whole numbers (out, n) float32, scale (out, 1)) of a weight (out, ...): of several ranges for each
    output channel the one with the smallest squared error, values beyond it clipped."""
    top, flat = 2 ** (bits - 1) - 1, weight.detach().float().flatten(1)
    peak = flat.abs().amax(1, keepdim=True).clamp_min(1e-12)
    least, kept, scale = torch.full_like(peak, torch.inf), torch.zeros_like(flat), peak
    for part in CLIPPED:
        tried = peak * float(part) / top
        numbers = (flat / tried).round().clamp(-top, top)
        error = (numbers * tried - flat).square().sum(1, keepdim=True)
        better = error < least
        least, kept = torch.where(better, error, least), torch.where(better, numbers, kept)
        scale = torch.where(better, tried, scale)
    return kept, scale


def unpack(tensors, packed):
    """The float32 parameters (and counters) of what `pack` gave. Raises ValueError for what does not fit."""
    state = {}
    for name, tensor in tensors.items():
        if name in packed:
            bits, shape = packed[name]['bits'], packed[name]['shape']
            scale = tensors[f'{name}.scale']
            numbers = _from_bits(tensor, bits, int(np.prod(shape))).float() - 2 ** (bits - 1)
            state[name] = (numbers.view(shape[0], -1) * scale[:, None]).view(shape)
        elif name.removesuffix('.scale') not in packed:
            state[name] = tensor.float() if tensor.is_floating_point() else tensor
    return state


def write(state, path, **how):
    """Pack parameters into a .safetensors file; how : as of `pack`."""
    tensors, packed = pack(state, **how)
    files.write_bytes(path, save(tensors, {'packed': json.dumps(packed)}))


def write_half(state, path):
    """Write parameters as float16 into a .safetensors file, running statistics and counters as they are."""
    half = {name: tensor if 'running_' in name or not tensor.is_floating_point() else tensor.half()
            for name, tensor in state.items()}
    files.write_bytes(path, save({name: tensor.contiguous() for name, tensor in half.items()}))


def read(path):
    """{name: tensor} of a .safetensors file, packed or not. Raises ValueError for a damaged one, OSError."""
    try:
        with safe_open(path, 'pt') as file:
            packed = files.json_object((file.metadata() or {}).get('packed', '{}'))
            return unpack({name: file.get_tensor(name) for name in file.keys()}, packed)   # noqa: SIM118
    except (SafetensorError, LookupError, TypeError, RuntimeError) as error:
        raise ValueError(f'is no weight file, or damaged: {error}') from None


def _to_bits(numbers, bits):
    """Whole numbers 0 .. 2 ** bits - 1 as a string of bits, the highest of each first: uint8 (bytes,)."""
    each = np.unpackbits(numbers.flatten().numpy().astype(np.uint8)[:, None], axis=1)[:, 8 - bits:]
    return torch.from_numpy(np.packbits(each))


def _from_bits(string, bits, count):
    """The `count` numbers (count,) uint8 that `_to_bits` wrote; ValueError where the string is shorter."""
    if len(string) != -(-count * bits // 8):
        raise ValueError(f'{len(string)} bytes are not {count} weights of {bits} bits')
    each = np.unpackbits(string.numpy(), count=count * bits).reshape(count, bits)
    return torch.from_numpy(np.packbits(each, axis=1)[:, 0] >> (8 - bits))
