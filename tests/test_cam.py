"""Class activation maps against the released code's loop over channels, and where nothing is positive."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from net.cam import class_activation_map

QUICK = settings(max_examples=200, deadline=None)


def slow_cam(features, weight, classes, relu=False):
    """Channel by channel, image by image."""
    maps = []
    for number, chosen in enumerate(classes.tolist()):
        cam = torch.zeros(features.shape[2:])
        for channel in range(features.shape[1]):
            cam = cam + weight[chosen, channel] * features[number, channel]
        cam = cam.clamp(min=0) if relu else cam
        maps.append(cam / cam.max() if cam.max() > 0 else cam)
    return torch.stack(maps)[:, None]


def random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def cases(draw):
    """Features of at least zero (as after mask-CN's last ReLU), FC weights, classes."""
    seed, batch = draw(st.integers(0, 10**6)), draw(st.integers(1, 4))
    channels, height, width = draw(st.integers(1, 24)), draw(st.integers(1, 6)), draw(st.integers(1, 6))
    features = random(seed, batch, channels, height, width).relu()
    classes = draw(st.lists(st.integers(0, 2), min_size=batch, max_size=batch))
    return features, random(seed + 1, 3, channels), torch.tensor(classes)


@QUICK
@given(cases(), st.booleans())
def test_bounds_hold_for_any_features(case, relu):
    cam = class_activation_map(*case, relu)
    assert cam.shape == (len(case[0]), 1, *case[0].shape[2:]) and cam.dtype is torch.float32
    assert cam.isfinite().all() and (cam <= 1 + 1e-6).all()
    assert not relu or (cam >= 0).all()


@pytest.mark.parametrize('relu', [False, True])
def test_the_einsum_is_the_loop_over_channels(relu):
    features, weight, classes = random(0, 3, 2048, 14, 14).relu(), random(1, 3, 2048), torch.tensor([2, 0, 1])
    torch.testing.assert_close(class_activation_map(features, weight, classes, relu),
                               slow_cam(features, weight, classes, relu), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('relu', [False, True])
def test_the_maximum_is_one_where_anything_is_positive(relu):
    cam = class_activation_map(random(2, 4, 8, 6, 6), random(3, 3, 8), torch.tensor([0, 1, 2, 0]), relu)
    torch.testing.assert_close(cam.amax((1, 2, 3)), torch.ones(4))


def test_the_relu_variant_drops_the_negatives_alone():
    case = random(2, 4, 8, 6, 6), random(3, 3, 8), torch.tensor([0, 1, 2, 0])
    kept, dropped = class_activation_map(*case), class_activation_map(*case, relu=True)
    assert (kept < 0).any()
    torch.testing.assert_close(dropped, kept.clamp(min=0))


def test_a_map_without_positive_values_is_finite():
    features = 1 + random(4, 2, 8, 6, 6).relu()
    features[1] = 0
    weight, classes = -torch.ones(3, 8), torch.tensor([1, 1])
    cam = class_activation_map(features, weight, classes)
    torch.testing.assert_close(cam[0, 0], -features[0].sum(0))   # its raw values
    assert (cam[1] == 0).all()
    assert (class_activation_map(features, weight, classes, relu=True) == 0).all()


@pytest.mark.parametrize('scale', [1e-12, 1e-3, 1e6])
def test_scale_of_the_features_cannot_break_it(scale):
    cam = class_activation_map(scale * random(5, 2, 8, 6, 6), random(6, 3, 8), torch.tensor([0, 2]))
    assert cam.isfinite().all() and cam.abs().max() < 1e3


@pytest.mark.parametrize('relu', [False, True])
def test_a_batch_is_its_images_one_by_one(relu):
    features, weight, classes = random(7, 5, 32, 6, 6), random(8, 3, 32), torch.tensor([0, 1, 2, 2, 1])
    batch = class_activation_map(features, weight, classes, relu)
    for number in range(5):
        alone = class_activation_map(features[number:number + 1], weight, classes[number:number + 1], relu)
        torch.testing.assert_close(batch[number:number + 1], alone, rtol=1e-4, atol=1e-5)


def test_the_map_is_float32_inside_bf16_autocast():
    features, weight, classes = random(9, 2, 64, 6, 6), random(10, 3, 64), torch.tensor([0, 1])
    outside = class_activation_map(features, weight, classes)
    with torch.autocast('cpu', torch.bfloat16):
        inside = class_activation_map(features, weight, classes)
        rounded = class_activation_map(features.bfloat16(), weight, classes)
    assert torch.equal(outside, inside)
    assert rounded.dtype is torch.float32 and (rounded - outside).abs().max() < 0.05
