"""Runs that are taken to another kind of device, steps that a GPU's loss scaler skips, and where a step's
tensors would lie on a GPU."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode

import train_CoarseSN
import train_EnhancedSN
import train_MaskCN
from companions.label_transfer import networks as label_transfer
from companions.label_transfer import train_CAM, train_LabelTransfer, train_student
from companions.mask2lesion import networks as mask2lesion
from companions.mask2lesion import train_Mask2Lesion
from companions.weak_labels import networks as weak_labels
from companions.weak_labels import train_WeakSN
from engine import hardware, trainer
from mbdcnn.inference import Classifier, Segmenter, counts_on_device, place
from net.models import Xception_dilation, deeplabv3plus, deeplabv3plus_en
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


def constants(script, **changes):
    """The constants at a script's top, as its training reads them, on pictures in the device's memory."""
    tops = {name: value for name, value in vars(script).items() if name.isupper()}
    return SimpleNamespace(**tops | {'PICTURES_ON': 'device', 'BATCH_SIZE': 4, 'INPUT_SIZE': 64} | changes)


def on(device, build, *args):
    """What build(*args) gives, a network or some by name, made on the device."""
    with device:
        return build(*args)


def coarse(gpu, data):
    network = on(gpu.device, deeplabv3plus)
    return train_CoarseSN.coarse_task(constants(train_CoarseSN), gpu, network, data, data, 9)


def mask(gpu, data):
    network = on(gpu.device, Xception_dilation)
    return train_MaskCN.mask_task(constants(train_MaskCN), gpu, network, data, data)


def enhanced(gpu, data):
    classifier = Classifier(on(gpu.device, Xception_dilation), 'symmetric', 'fp32')
    return train_EnhancedSN.enhanced_task(constants(train_EnhancedSN), gpu, on(gpu.device, deeplabv3plus_en),
                                          classifier, data, data, 9)


def gan(gpu, data):
    cfg = constants(train_Mask2Lesion, LOAD_SIZE=64)
    made = on(gpu.device, lambda: (mask2lesion.Generator(8, 5), mask2lesion.Discriminator(8)))
    return train_Mask2Lesion.gan_task(cfg, gpu, *made, data, data, 9)


def weak(gpu, data, method, labels=None):
    cfg = constants(train_WeakSN, METHOD=method, INPUT_SIZE=(64, 64))
    network = on(gpu.device, weak_labels.build, method, 'resnet18', 3)
    return train_WeakSN.weak_task(cfg, gpu, network, data, data, (labels, labels))


def a1(gpu, data):
    return weak(gpu, data, 'a1')


def a1l(gpu, data):
    return weak(gpu, data, 'a1l', data.labels)


def acoseg(gpu, data):
    return weak(gpu, data, 'acoseg')


def translation(gpu, data):
    cfg = constants(train_LabelTransfer, LOAD_SIZE=64, WIDTH=8, D_WIDTH=8, D_LAYERS=(3, 4))
    made = on(gpu.device, train_LabelTransfer.build, cfg)
    return train_LabelTransfer.transfer_task(cfg, gpu, made, data, data, None, data, None)


def cam(gpu, data):
    found = SimpleNamespace(a=data, b=data, held_out=None, healthy=data)
    network = on(gpu.device, label_transfer.Classifier, 8, 1)
    return train_CAM.cam_task(constants(train_CAM, LOAD_SIZE=64), gpu, network, found)


def pupil(gpu, data):
    network, average = (on(gpu.device, label_transfer.UNet, 8) for _ in range(2))
    return train_student.student_task(constants(train_student), gpu, network, average, data, data, 9)


@pytest.fixture
def gpu(monkeypatch):
    """The process of a GPU that is not there; FakeTensorMode lets tensors lie in it, without content."""
    monkeypatch.setattr(torch.Tensor, 'pin_memory', lambda tensor: tensor)
    monkeypatch.setattr(torch.nn.Module, 'to', lambda network, *_, **__: network)   # networks are made there
    monkeypatch.setattr(hardware, 'choose_precision', lambda *_: 'fp32')
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield hardware.Process(0, 1, torch.device('cuda', 0))


@pytest.mark.parametrize('make', [coarse, mask, enhanced, gan, a1, a1l, acoseg, translation, cam, pupil],
                         ids=lambda make: make.__name__)
def test_a_step_on_a_gpu_meets_no_tensor_of_the_host_and_waits_for_no_value(make, gpu):
    """What takes tensors of two devices fails here as on a GPU, and so does whoever asks for a value. All of
    a step but the gradients, for which there must be a GPU."""
    plane = np.zeros((8, 64, 64), np.uint8)
    data = SimpleNamespace(images=np.zeros((8, 64, 64, 3), np.uint8), masks=plane, coarse=plane,
                           ellipses=plane, labels=np.arange(8) % 3, names=list('abcdefgh'), side=64)
    task = make(gpu, data)
    batch = next(iter(task.stream(0, 1)))
    assert {tensor.device for tensor in batch.values()} == {gpu.device}
    for name, loss, parts in task.losses(task.networks, batch):
        assert {tensor.device for tensor in (loss, *parts.values())} == {gpu.device}
        optimizer = task.optimizers[name]
        for parameter in (each for group in optimizer.param_groups for each in group['params']):
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()


def test_masks_are_drawn_and_counted_on_a_gpu(gpu):
    classifier = Classifier(on(gpu.device, Xception_dilation), 'symmetric', 'fp32')
    segmenter = Segmenter(on(gpu.device, deeplabv3plus_en), 'unit', 'fp32', classifier)
    pictures, coarse = place(np.zeros((3, 64, 64, 3), np.uint8), np.zeros((3, 64, 64), np.uint8), gpu.device)
    views = segmenter.views(pictures, coarse)
    counts = counts_on_device(segmenter(pictures, coarse), coarse)
    assert views.device == counts.device == gpu.device and views.shape == (6, 3, 64, 64)
