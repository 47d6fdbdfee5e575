"""Runs that are taken to another kind of device, and steps that a GPU's loss scaler skips."""
import pytest
import torch

from engine import trainer
from tests import test_training
from tests.test_training import EVERY, assert_same_folders, load, same, tiny_task, train

no_figures = test_training.no_figures


def test_a_run_of_a_device_without_fused_adam_goes_on_fused(tmp_path):
    def fail_late(step, loss):
        if step == EVERY + 1:
            raise RuntimeError('the machine is gone')
        return loss

    train(tmp_path / 'whole')
    with pytest.raises(RuntimeError, match='gone'):
        train(tmp_path / 'parts', tiny_task(fail_late))
    state = load(tmp_path / 'parts', 'last.pth')
    for group in state['optimizers']['Adam']['param_groups']:
        group['fused'] = False   # as on Apple's GPUs
    torch.save(state, tmp_path / 'parts' / 'last.pth')
    train(tmp_path / 'parts')
    assert_same_folders(tmp_path / 'whole', tmp_path / 'parts')


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """The scaler that a GPU has for bf16; returns those that were made."""
    made = []

    def scaler(_precision, _device):
        made.append(torch.amp.GradScaler('cpu', init_scale=1.0))
        return made[-1]
    monkeypatch.setattr(trainer, '_scaler', scaler)
    return made


def test_steps_without_finite_gradients_are_skipped_and_change_no_scale(tmp_path, as_on_a_gpu):
    """The loss itself is finite. As many halvings would bring the scale to zero."""
    def spoil(step, loss):
        return loss + torch.sqrt(0 * loss) if step < 200 else loss   # its derivative is 0 / 0

    task = tiny_task(spoil)
    before = [parameter.clone() for parameter in task.network.parameters()]
    train(tmp_path, task, total=200, every=200)
    assert as_on_a_gpu[0].get_scale() == 1
    assert same(before, list(task.network.parameters()))
    train(tmp_path / 'more', task, total=1, every=1)
    assert not same(before, list(task.network.parameters()))


def test_the_scale_of_one_precision_does_not_reach_another(tmp_path, as_on_a_gpu):
    """A run in bf16 that goes on in fp16 on an older GPU begins with that one's own scale."""
    train(tmp_path)
    assert load(tmp_path, 'last.pth')['scaler'] == {}
