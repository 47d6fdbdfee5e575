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
    packing.write(before, path, tolerance=0.08)
    after = checkpoints.load_state(path, '')
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith('norm.')
               and name != 'norm.bias')
    for name, limit in {'plain.weight': 0.08, 'diagonal.weight': 0.08, 'depthwise.weight': 0.003,
                        'norm.bias': 0.004}.items():
        errors = (after[name] - before[name]).flatten(1 if name == 'plain.weight' else 0).norm(dim=-1)
        norms = before[name].flatten(1 if name == 'plain.weight' else 0).norm(dim=-1)
        assert (errors / norms).max() < limit * 1.1   # of every channel, whatever its scale
    bits = {name: one['bits'] for name, one in packing.pack(before, 0.08)[1].items()}
    assert bits['plain.weight'] == 5 < bits['diagonal.weight']   # ones beside hundredths need more
    assert all(one['bits'] == 8 for one in packing.pack(before, 1e-9)[1].values())   # and no more than these


def test_no_input_channel_is_lost(tmp_path):
    # A map's weights beside an identity, as the E-layer has them: a small error, and the whole map.
    path, with_map = tmp_path / 'w.safetensors', torch.eye(128, 129)[..., None, None]
    for size in (1e-4, 0.02):
        with_map[:, -1] = size * torch.randn(128, 1, 1)
        packing.write({'e.weight': with_map}, path, tolerance=0.08)
        after = packing.read(path)['e.weight'][:, -1]
        assert torch.corrcoef(torch.stack([after.flatten(), with_map[:, -1].flatten()]))[0, 1] > 0.5


def test_a_network_that_was_trained_on_is_packed_as_the_difference(tmp_path):
    first, path = state(), {name: tmp_path / f'{name}.safetensors' for name in ('first', 'second')}
    second = {name: tensor * 1.01 if tensor.is_floating_point() else tensor for name, tensor in first.items()}
    second['plain.weight'] = torch.randn(64, 33, 3, 3)   # one that has another shape there
    packing.write(first, path['first'], 0.04)
    packing.write(second, path['second'], 0.04, path['first'])
    after = checkpoints.load_state(path['second'], '')
    for name in ('plain.weight', 'diagonal.weight'):
        assert (after[name] - second[name]).norm() < 0.04 * second[name].norm()
    bits, alone = ({name: one['bits'] for name, one in packing.pack(second, 0.04, base)[1].items()}
                   for base in (packing.read(path['first']), None))
    assert bits['plain.weight'] == alone['plain.weight']
    assert bits['diagonal.weight'] < alone['diagonal.weight'] - 2
    packing.write(second, path['first'], 0.04)           # another network in its place
    with pytest.raises(InputError, match=r'second\.safetensors: .* from first\.safetensors, which'):
        checkpoints.load_state(path['second'], '')
    path['first'].unlink()
    with pytest.raises(InputError, match=r'second\.safetensors: .* which is missing'):
        checkpoints.load_state(path['second'], '')


def test_half_precision_files(tmp_path):
    before, path = state(), tmp_path / 'w.safetensors'
    packing.write_half(before, path)
    after = checkpoints.load_state(path, '')
    assert all(torch.allclose(after[name].float(), tensor.float(), rtol=1e-3, atol=1e-6)
               for name, tensor in before.items())
    assert torch.equal(after['norm.running_var'], before['norm.running_var'])


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / 'w.safetensors'
    packing.write(state(), path, 0.08)
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
