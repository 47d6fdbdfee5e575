"""Networks made ready for use: batch norms folded, weights of the type that is computed in."""
import pytest
import torch
from torch import nn

from mbdcnn.inference import Classifier, Segmenter, for_inference
from net.fold import fold_batch_norms
from net.models import Xception_dilation, deeplabv3plus, deeplabv3plus_d, deeplabv3plus_en

IMAGE, CAM = (2, 3, 64, 64), (2, 1, 4, 4)
CASES = {'coarse': (deeplabv3plus, (IMAGE,)), 'enhanced': (deeplabv3plus_en, (IMAGE, CAM)),
         'd-net': (deeplabv3plus_d, (IMAGE, CAM)), 'mask-CN': (Xception_dilation, ((2, 4, 64, 64),)),
         'mask-CN as released': (lambda: Xception_dilation(3, relu_skip=True), (IMAGE,))}


def with_statistics(network, inputs):
    """Batch norms as after some training: no two channels alike, none near the identity."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.2)
    with torch.no_grad():
        network.train()(*inputs)
    return network.eval()


@pytest.mark.parametrize('case', CASES)
def test_a_folded_network_gives_the_same(case):
    torch.manual_seed(3)
    make, shapes = CASES[case]
    inputs = [torch.rand(shape).double() for shape in shapes]   # rounding grows from layer to layer
    network = with_statistics(make().double(), inputs)
    with torch.no_grad():
        expected = network(*inputs)
        folded = fold_batch_norms(network)(*inputs)
    assert expected.std() > 1e-3
    torch.testing.assert_close(folded, expected, atol=1e-9, rtol=1e-9)
    assert not [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]


def test_batch_norms_of_several_gpus_are_folded_too():
    torch.manual_seed(5)
    picture = torch.rand(2, 4, 64, 64).double()
    network = with_statistics(Xception_dilation().double(), [picture])
    with torch.no_grad():
        expected = network(picture)
        folded = fold_batch_norms(nn.SyncBatchNorm.convert_sync_batchnorm(network))
        torch.testing.assert_close(folded(picture), expected, atol=1e-9, rtol=1e-9)
    assert not [layer for layer in folded.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]


def test_a_folded_copy_leaves_the_network_to_train_on():
    """And its error in bf16 is of the size of the network's own, which is large: 65 random layers."""
    torch.manual_seed(8)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    network = with_statistics(deeplabv3plus(dropout=False), [images / 255])
    nn.init.normal_(network.cls_conv.weight)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    expected, found = {}, {}
    for precision in ('fp32', 'bf16'):
        segmenter = Segmenter(network, 'unit', precision)
        expected[precision] = segmenter(images)
        network.train()
        found[precision] = segmenter.folded()(images)
    assert network.training and network.cls_conv.weight.requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    errors = [(one - expected['fp32']).abs().mean() / expected['fp32'].std()
              for one in (found['fp32'], found['bf16'], expected['bf16'])]
    assert errors[0] < 1e-3 < errors[1] < 2 * errors[2]


def test_the_cams_features_are_the_same():
    torch.manual_seed(4)
    picture = torch.rand(2, 4, 64, 64).double()
    network = with_statistics(Xception_dilation().double(), [picture])
    with torch.no_grad():
        expected = network.features(picture)
        folded = fold_batch_norms(network).features(picture)
    assert expected.std() > 1e-3
    torch.testing.assert_close(folded, expected, atol=1e-9, rtol=1e-9)


def test_weights_stored_in_bf16_give_the_same_bits():
    torch.manual_seed(7)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    coarse = torch.randint(0, 2, (2, 64, 64), dtype=torch.uint8)
    network = fold_batch_norms(with_statistics(Xception_dilation(), [torch.rand(2, 4, 64, 64)]))
    expected = Classifier(network, 'symmetric', 'bf16')(images, coarse)
    stored = for_inference(network, 'bf16')
    convolutions = [layer for layer in stored.modules() if isinstance(layer, nn.Conv2d)]
    assert {layer.weight.dtype for layer in convolutions} == {torch.bfloat16}
    assert stored.cls.weight.dtype == torch.float32
    found = Classifier(stored, 'symmetric', 'bf16')(images, coarse)
    assert all(map(torch.equal, found, expected))


def test_for_float32_the_weights_stay_float32():
    network = for_inference(Xception_dilation(), 'fp32')
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}
