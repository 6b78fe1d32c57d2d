"""Mixtures of images, against what they are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtl.data.mixing import mix, partners

SIDE = 16


def mixed(images, *, valid=None, mixup=0.0, cutmix=0.0):
    keys = jax.random.split(jax.random.key(0), len(images))
    valid = np.ones(len(images), bool) if valid is None else valid
    result = jax.jit(lambda *given: mix(*given, mixup=mixup, cutmix=cutmix))(images, keys, valid)
    return tuple(map(np.asarray, result))


def draw(count=64):
    return np.random.default_rng(0).uniform(0, 255, (count, SIDE, SIDE, 3)).astype(np.float32)


def test_partners_are_neighbours():
    assert partners(jnp.arange(6)).tolist() == [1, 0, 3, 2, 5, 4]


def test_mixup_adds_an_image_and_its_partner_by_the_weight():
    images = draw()
    mixtures, weights = mixed(images, mixup=0.4)
    for place, (mixture, weight) in enumerate(zip(mixtures, weights, strict=True)):
        expected = weight * images[place] + (1 - weight) * images[place ^ 1]
        np.testing.assert_allclose(mixture, expected, rtol=1e-4, atol=1e-3)
    assert weights.min() >= 0.5
    assert len(np.unique(weights)) > 50


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_the_weight_is_the_larger_part_of_a_draw_from_beta(alpha):
    _, weights = mixed(draw(8).repeat(500, axis=0)[:, :1, :1], mixup=alpha)
    drawn = np.random.default_rng(1).beta(alpha, alpha, 100_000)
    drawn = np.maximum(drawn, 1 - drawn)
    for fraction in (0.1, 0.25, 0.5, 0.75):
        assert abs(np.quantile(weights, fraction) - np.quantile(drawn, fraction)) < 0.03


def test_cutmix_pastes_a_rectangle_of_the_partner():
    images = draw(200)
    mixtures, weights = mixed(images, cutmix=1.0)
    for place, (mixture, weight) in enumerate(zip(mixtures, weights, strict=True)):
        pasted = (mixture == images[place ^ 1]).all(-1)
        np.testing.assert_array_equal(mixture[~pasted], images[place][~pasted])
        assert weight == pytest.approx(1 - pasted.mean())
        rows, columns = pasted.any(1).sum(), pasted.any(0).sum()
        assert pasted.sum() == rows * columns
    assert weights.min() >= 0.45  # in whole pixels
    assert 0.6 < weights.mean() < 0.9


def test_with_both_each_image_draws_one_of_them():
    images = draw(400)
    mixtures, weights = mixed(images, mixup=1.0, cutmix=1.0)
    blends = (np.abs(mixtures - images) > 0).all(axis=(1, 2, 3)).sum()
    assert 150 < blends < 250  # four standard deviations are 40
    assert weights.min() >= 0.45


@pytest.mark.parametrize("way", ["mixup", "cutmix"])
def test_an_image_whose_partner_only_pads_stays_as_it_is(way):
    images, valid = draw(4), np.array([True, True, True, False])
    mixtures, weights = mixed(images, valid=valid, **{way: 1.0})
    np.testing.assert_array_equal(mixtures[2], images[2])
    assert weights[2] == 1
    assert not np.array_equal(mixtures[0], images[0])
