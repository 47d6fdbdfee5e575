"""Network parameters in few bits: safetensors files that a repository can carry.

The weights of large convolutions become whole numbers of 2 to 8 bits with a scale for each output channel,
other parameters bfloat16, running statistics and counters stay as they are. Each convolution has as few bits
as keep its error within a tolerance: one that started as the identity has a diagonal of ones beside values of
a hundredth and needs more than others. One that even 8 bits would make blind to an input channel stays
bfloat16. Of a network that was trained on from another, whose file lies beside, what is packed is the
difference, which is small and needs few.
"""
import json
import os
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from engine import files

SUFFIX = '.safetensors'
LARGE = 4096                          # weights of a convolution from which it is packed
BITS = range(2, 9)                    # of a weight
CLIPPED = np.linspace(0.4, 1, 13)     # parts of a channel's largest weight that are tried as its range


def pack(state, tolerance, base=None):
    """What a file holds of network parameters: ({name: tensor}, {name: {'bits', 'shape', 'from_base'}} of
    those packed).

    state : {name: tensor}
    tolerance : relative error (root of the summed squares) of a convolution that is allowed, unless 8 bits
        have a larger one
    base : {name: tensor} of a network that this one was trained on from
    """
    tensors, packed = {}, {}
    for name, tensor in state.items():
        if tensor.ndim == 4 and tensor.shape[1] > 1 and tensor.numel() >= LARGE:
            below = (base or {}).get(name)
            from_base = below is not None and below.shape == tensor.shape
            rest = tensor - below if from_base else tensor
            for bits in BITS:
                numbers, scale = quantize(rest, bits)
                error = (numbers * scale - rest.flatten(1)).norm() / tensor.norm().clamp_min(1e-30)
                lost = not from_base and _loses_an_input(numbers, tensor)
                if error <= tolerance and not lost:
                    break
            if lost:
                tensors[name] = tensor.bfloat16().contiguous()
                continue
            tensors[name] = _to_bits(numbers + 2 ** (bits - 1), bits)
            tensors[f'{name}.scale'] = scale[:, 0].clone()
            packed[name] = {'bits': bits, 'shape': list(tensor.shape), 'from_base': from_base}
        else:   # a variance of 1e-7 matters beside an epsilon of 1e-5, and rounding it to 8 bits would show
            brief = tensor.is_floating_point() and 'running_' not in name
            tensors[name] = (tensor.bfloat16() if brief else tensor).contiguous()
    return tensors, packed


def _loses_an_input(numbers, weight):
    """True when a convolution reads one of its input channels no more, since all of its weights became 0:
    those of a map beside an identity do, a small error that takes the whole map away."""
    kept = numbers.view(weight.shape).ne(0).transpose(0, 1).flatten(1).any(1)
    return bool((weight.ne(0).transpose(0, 1).flatten(1).any(1) & ~kept).any())


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


def unpack(tensors, packed, base=None):
    """The float32 parameters (and counters) of what `pack` gave. Raises ValueError for what does not fit."""
    state = {}
    for name, tensor in tensors.items():
        if name in packed:
            bits, shape = packed[name]['bits'], packed[name]['shape']
            scale = tensors[f'{name}.scale']
            numbers = _from_bits(tensor, bits, int(np.prod(shape))).float() - 2 ** (bits - 1)
            state[name] = (numbers.view(shape[0], -1) * scale[:, None]).view(shape)
            if packed[name].get('from_base'):
                state[name] += base[name]
        elif name.removesuffix('.scale') not in packed:
            state[name] = tensor.float() if tensor.is_floating_point() else tensor
    return state


def write(state, path, tolerance, base=None):
    """Pack parameters into a .safetensors file; see `pack`.

    base : path of the file of the network that this one was trained on from; it is needed to read this one
    """
    tensors, packed = pack(state, tolerance, base and read(base))
    beside = base and {'file': Path(os.path.relpath(base, path.parent)).as_posix(),
                       'fingerprint': files.fingerprint(base)}
    files.write_bytes(path, save(tensors, {'packed': json.dumps(packed), 'base': json.dumps(beside or {})}))


def write_half(state, path):
    """Write parameters as float16 into a .safetensors file, running statistics and counters as they are."""
    half = {name: tensor if 'running_' in name or not tensor.is_floating_point() else tensor.half()
            for name, tensor in state.items()}
    files.write_bytes(path, save({name: tensor.contiguous() for name, tensor in half.items()}))


def read(path):
    """{name: tensor} of a .safetensors file, packed or not.

    Raises ValueError for a damaged one, or where the file that it is the difference from is another now;
    OSError.
    """
    try:
        with safe_open(path, 'pt') as file:
            packed, base = (files.json_object((file.metadata() or {}).get(part, '{}'))
                            for part in ('packed', 'base'))
            tensors = {name: file.get_tensor(name) for name in file.keys()}   # noqa: SIM118
        below = Path(path).parent / base['file'] if base else None
        if base and not (below.is_file() and files.fingerprint(below) == base['fingerprint']):
            raise ValueError(f'holds the difference from {base["file"]}, which is missing or another now')
        return unpack(tensors, packed, base and read(below))
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
