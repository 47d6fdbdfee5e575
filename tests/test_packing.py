"""Weights in few bits: exact where they promise it, near where not, and whose chain still holds."""
import json

import pytest
import torch

from engine import checkpoints, packing
from engine.errors import InputError


@pytest.mark.parametrize('bits', range(2, 9))
def test_whole_numbers_survive_their_bits(bits):
    numbers = torch.arange(2 ** bits).repeat(3)[:-1]   # a count that fills no whole byte
    string = packing._to_bits(numbers, bits)
    assert len(string) == -(-len(numbers) * bits // 8)
    assert packing._from_bits(string, bits, len(numbers)).tolist() == numbers.tolist()
    with pytest.raises(ValueError, match='bytes are not'):
        packing._from_bits(string[:-1], bits, len(numbers))


def state():
    torch.manual_seed(0)
    diagonal = torch.eye(128)[..., None, None] + 0.02 * torch.randn(128, 128, 1, 1)
    return {'plain.weight': torch.randn(64, 32, 3, 3) * torch.logspace(-3, 1, 64)[:, None, None, None],
            'diagonal.weight': diagonal, 'depthwise.weight': torch.randn(6000, 1, 3, 3),
            'norm.running_var': torch.rand(64) * 1e-6, 'norm.bias': torch.randn(64),
            'norm.num_batches_tracked': torch.tensor(70_001)}


def test_what_a_file_gives_back(tmp_path):
    before, path = state(), tmp_path / 'w.safetensors'
    packing.write(before, path, few=5, many=8, tolerance=0.08)
    after = checkpoints.load_state(path, '')
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith('norm.')
               and name != 'norm.bias')
    for name, limit in {'plain.weight': 0.08, 'diagonal.weight': 0.03, 'depthwise.weight': 0.003,
                        'norm.bias': 0.004}.items():
        errors = (after[name] - before[name]).flatten(1 if name == 'plain.weight' else 0).norm(dim=-1)
        norms = before[name].flatten(1 if name == 'plain.weight' else 0).norm(dim=-1)
        assert (errors / norms).max() < limit * 1.1   # of every channel, whatever its scale
    bits = {name: one['bits'] for name, one in packing.pack(before)[1].items()}
    assert bits == {'plain.weight': 5, 'diagonal.weight': 8}   # ones beside thousandths need more


def test_half_precision_files(tmp_path):
    before, path = state(), tmp_path / 'w.safetensors'
    packing.write_half(before, path)
    after = checkpoints.load_state(path, '')
    assert all(torch.allclose(after[name].float(), tensor.float(), rtol=1e-3, atol=1e-6)
               for name, tensor in before.items())
    assert torch.equal(after['norm.running_var'], before['norm.running_var'])


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / 'w.safetensors'
    packing.write(state(), path)
    whole = path.read_bytes()
    declared = json.dumps({'plain.weight': {'bits': 5, 'shape': [9, 9]}})
    from safetensors.torch import save_file
    for damaged in (b'', whole[:50], whole[:-10], b'no weights at all'):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r'w\.safetensors'):
            checkpoints.load_state(path, 'train again')
    for wrong in (declared, '[', '{"plain.weight": {}}', '{"plain.weight": 3}', '[1]',
                  '{"plain.weight": {"bits": 5, "shape": [-1, 9]}}',
                  '{"plain.weight": {"bits": 50, "shape": [8]}}'):
        save_file({'plain.weight': torch.zeros(9, dtype=torch.uint8), 'plain.weight.scale': torch.ones(9)},
                  path, {'packed': wrong})
        with pytest.raises(InputError, match=r'w\.safetensors'):
            checkpoints.load_state(path, 'train again')
