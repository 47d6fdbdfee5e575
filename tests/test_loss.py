"""The hybrid loss against slow loops, and its behaviour at the edges."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from net import loss
from net.loss import dice_loss, hybrid_loss, lesion_logit, lesion_probability, rank_loss

QUICK = settings(max_examples=200, deadline=None)
FILLS = st.sampled_from(['empty', 'full', 'one', 'few', 'half'])


def slow_rank_loss(probability, mask, k, margin):
    """The paper's K x K pairs, one image and one pair at a time."""
    total = 0.0
    for p, y in zip(probability.tolist(), mask.tolist(), strict=True):
        pixels = [(p[r][c], y[r][c]) for r in range(len(p)) for c in range(len(p[0]))]
        background = sorted((value for value, label in pixels if label == 0), reverse=True)[:k]
        lesion = sorted(value for value, label in pixels if label == 1)[:k]
        pairs = [max(0.0, h0 - h1 + margin) for h0 in background for h1 in lesion]
        total += sum(pairs) / len(pairs) if pairs else 0.0
    return total / len(probability)


def released_rank_loss(probability, mask, k, margin):
    """The released code: hard pixels by error over the whole image, then a loop over K x K pairs."""
    total = 0.0
    for p, y in zip(probability.flatten(1), mask.flatten(1), strict=True):
        background_errors = (p * (1 - y)).sort(descending=True).values[:k].tolist()
        lesion_errors = ((1 - p) * y).sort(descending=True).values[:k].tolist()
        pairs = [max(0.0, b - (1 - e) + margin) for b in background_errors for e in lesion_errors]
        total += sum(pairs) / len(pairs)
    return total / len(probability)


def mask_of(fill, shape, rng):
    share = {'empty': 0.0, 'full': 1.0, 'few': 0.05, 'half': 0.5, 'one': 0.0}[fill]
    mask = (rng.random(shape) < share).astype(np.float32)
    if fill == 'one':
        mask.flat[rng.integers(mask.size)] = 1
    return mask


@st.composite
def pictures(draw):
    """Probabilities and masks (B, H, W); some tied values, some degenerate masks."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    fills = draw(st.lists(FILLS, min_size=1, max_size=3))
    masks = np.stack([mask_of(fill, shape, rng) for fill in fills])
    p = rng.random(masks.shape, dtype=np.float32)
    if draw(st.booleans()):
        p = np.round(p * 4) / 4   # ties, zeros and ones
    return torch.from_numpy(p.astype(np.float32)), torch.from_numpy(masks)


# --- Rank loss

@QUICK
@given(pictures(), st.integers(1, 40), st.floats(0, 1))
def test_rank_loss_is_the_mean_over_all_pairs(picture, k, margin):
    assert float(rank_loss(*picture, k, margin)) == pytest.approx(slow_rank_loss(*picture, k, margin),
                                                                  abs=1e-6)


@QUICK
@given(pictures(), st.integers(1, 40), st.floats(0, 1))
def test_padded_rank_loss_is_the_released_loop(picture, k, margin):
    k = min(k, picture[0][0].numel())
    assert float(rank_loss(*picture, k, margin, padded=True)) == pytest.approx(
        released_rank_loss(*picture, k, margin), abs=1e-6)


def test_padded_rank_loss_is_the_released_900_term_loop():
    rng = np.random.default_rng(0)
    mask = torch.from_numpy(np.stack([mask_of(fill, (20, 20), rng)
                                      for fill in ('half', 'few', 'one', 'empty', 'full')]))
    p = torch.from_numpy(rng.random(mask.shape, dtype=np.float32))
    assert mask[1].sum() < 30
    assert float(rank_loss(p, mask, padded=True)) == pytest.approx(released_rank_loss(p, mask, 30, 0.3),
                                                                   abs=1e-6)


@QUICK
@given(st.integers(0, 2**32 - 1), st.sampled_from([(48, 64), (64, 64), (64, 80)]), st.integers(1, 64),
       FILLS, st.booleans(), st.booleans())
def test_hard_pixels_of_large_pictures_are_found_by_groups(seed, shape, k, fill, ties, padded):
    """Values and gradients are those of a search through all pixels."""
    rng = np.random.default_rng(seed)
    mask = torch.from_numpy(np.stack([mask_of(fill, shape, rng), mask_of('half', shape, rng)])).float()
    p = torch.from_numpy(rng.random(mask.shape, dtype=np.float32))
    p = (p * 50).round() / 50 if ties else p
    results = []
    for group in (loss.GROUP, 10**9):   # the second groups nothing
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loss, 'GROUP', group)
            variable = p.clone().requires_grad_()
            value = rank_loss(variable, mask, k, padded=padded)
            value.backward()
            results.append((value, variable.grad))
    (grouped, ours), (whole, expected) = results
    torch.testing.assert_close(grouped, whole)
    if ties:   # which of equal pixels is taken is open
        ours, expected = ours.sum((1, 2)), expected.sum((1, 2))
    torch.testing.assert_close(ours, expected)
    with torch.no_grad():
        assert float(whole) == pytest.approx(slow_rank_loss(p, mask, k, 0.3) if not padded
                                             else released_rank_loss(p, mask, k, 0.3), abs=1e-5)


def test_both_variants_agree_where_there_are_k_pixels_of_each():
    p = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 16, 16)
    mask[:, 4:12, 4:12] = 1
    torch.testing.assert_close(rank_loss(p, mask), rank_loss(p, mask, padded=True))


def test_rank_loss_of_an_ordered_picture_is_zero_and_of_a_reversed_one_large():
    mask = torch.zeros(1, 16, 16)
    mask[:, :, 8:] = 1
    assert rank_loss(mask * 0.9, mask) == 0
    assert rank_loss(1 - mask, mask) == pytest.approx(1.3)
    assert rank_loss(torch.full_like(mask, 0.5), mask, margin=0.2) == pytest.approx(0.2)


# --- Dice loss

@QUICK
@given(pictures())
def test_dice_of_lesion_and_of_both_are_the_formula(picture):
    lesion, background = [], []
    for p, y in zip(*(tensor.double().numpy() for tensor in picture), strict=True):
        lesion.append(1 - 2 * (p * y).sum() / (p.sum() + y.sum() + 1e-5))
        background.append(1 - 2 * ((1 - p) * (1 - y)).sum() / ((1 - p).sum() + (1 - y).sum() + 1e-5))
    assert float(dice_loss(*picture, 'lesion')) == pytest.approx(np.mean(lesion), abs=1e-4)
    assert float(dice_loss(*picture, 'both')) == pytest.approx(np.mean([lesion, background]), abs=1e-4)


def test_dice_of_unknown_classes_is_refused():
    with pytest.raises(ValueError, match="'lesion' or 'both', not 'all'"):
        dice_loss(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), 'all')


# --- Heads and the sum

@pytest.mark.parametrize('padded', [False, True])
@pytest.mark.parametrize('classes', ['lesion', 'both'])
def test_heads_of_one_and_two_channels_give_the_same(classes, padded):
    g = torch.Generator().manual_seed(1)
    logit, offset = torch.randn(2, 1, 12, 12, generator=g), torch.randn(2, 1, 12, 12, generator=g)
    mask = torch.rand(2, 12, 12, generator=g) < 0.4
    two = torch.cat([offset, offset + logit], 1)
    torch.testing.assert_close(lesion_probability(two), two.softmax(1)[:, 1])
    torch.testing.assert_close(lesion_probability(logit), torch.sigmoid(logit[:, 0]))
    for a, b in zip(hybrid_loss(logit, mask, classes=classes, padded=padded),
                    hybrid_loss(two, mask, classes=classes, padded=padded), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_head_of_three_channels_is_refused():
    with pytest.raises(ValueError, match='1 or 2 channels, not 3'):
        lesion_logit(torch.zeros(1, 3, 2, 2))


@pytest.mark.parametrize('dtype', [torch.bool, torch.uint8, torch.int64, torch.float32])
def test_the_total_is_dice_plus_weighted_rank_for_any_mask_type(dtype):
    g = torch.Generator().manual_seed(2)
    logits, mask = torch.randn(3, 2, 12, 12, generator=g), torch.rand(3, 12, 12, generator=g) < 0.4
    total, dice, rank = hybrid_loss(logits, mask.to(dtype), 0.5, 10, 0.2, 'lesion')
    p = lesion_probability(logits)
    assert dice == dice_loss(p, mask.float(), 'lesion') and rank == rank_loss(p, mask.float(), 10, 0.2)
    torch.testing.assert_close(total, dice + 0.5 * rank)


def test_weight_zero_skips_the_rank_loss(monkeypatch):
    monkeypatch.setattr('net.loss.rank_loss', lambda *_: pytest.fail('was computed'))
    logits = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(3), requires_grad=True)
    total, dice, rank = hybrid_loss(logits, torch.ones(1, 8, 8), rank_weight=0)
    assert rank == 0 and total == dice
    total.backward()
    assert logits.grad.abs().sum() > 0


def test_parts_for_the_log_hold_no_graph():
    logits = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(3), requires_grad=True)
    total, dice, rank = hybrid_loss(logits, torch.ones(1, 8, 8))
    assert total.requires_grad and not dice.requires_grad and not rank.requires_grad


# --- Numbers

def test_the_loss_is_float32_inside_bf16_autocast():
    g = torch.Generator().manual_seed(4)
    logits = torch.randn(2, 2, 64, 64, generator=g)
    mask = torch.rand(2, 64, 64, generator=g) < 0.3
    outside = hybrid_loss(logits, mask)
    with torch.autocast('cpu', torch.bfloat16):
        inside = hybrid_loss(logits, mask)
        from_bf16 = hybrid_loss(logits.bfloat16(), mask)
    for a, b in zip(outside, inside, strict=True):
        assert b.dtype is torch.float32 and torch.equal(a, b)
    exact = hybrid_loss(logits.bfloat16().float(), mask)
    assert all(torch.equal(a, b) for a, b in zip(exact, from_bf16, strict=True))


@pytest.mark.parametrize('channels', [1, 2])
@pytest.mark.parametrize('padded', [False, True])
@pytest.mark.parametrize('fill', ['empty', 'full', 'one', 'few'])
@pytest.mark.parametrize('scale', [0.0, 1.0, 200.0])
def test_gradients_are_finite_for_degenerate_masks(fill, channels, padded, scale):
    mask = torch.from_numpy(mask_of(fill, (2, 16, 16), np.random.default_rng(5)))
    logits = scale * torch.randn(2, channels, 16, 16, generator=torch.Generator().manual_seed(6))
    logits.requires_grad_()
    total, _, _ = hybrid_loss(logits, mask, padded=padded)
    total.backward()
    assert total.isfinite() and logits.grad.isfinite().all()


def test_gradient_steps_lower_the_loss():
    mask = torch.zeros(1, 16, 16)
    mask[:, 4:12, 4:12] = 1
    logits = torch.zeros(1, 2, 16, 16, requires_grad=True)
    optimizer, losses = torch.optim.Adam([logits], lr=0.1), []
    for _ in range(60):
        optimizer.zero_grad()
        loss, _, _ = hybrid_loss(logits, mask)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
