"""The operations of TrivialAugment and RandAugment, against Pillow and by pixels moved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_image
from step_setup import HEAD_ONLY, SmallSetup, make_batch

from jaxtl.config import Augment
from jaxtl.data import augmentation, policies
from jaxtl.data.policies import OPERATIONS, POLICIES, Operation

TRIVIAL = POLICIES["trivial"]


@pytest.fixture(scope="module")
def photograph():
    """A part of it that uses neither 0 nor 255, in other ranges for each channel."""
    image = load_sample_image("flower.jpg")[100:260, 250:410:2].astype(np.float32)
    return np.round(image * [0.8, 0.6, 0.9] + [20, 30, 10]).astype(np.uint8)


def operation(name, strength, sign=1.0):
    return Operation(jnp.asarray(OPERATIONS.index(name)), jnp.asarray(strength), jnp.asarray(sign))


def changed(image, name, strength, sign=1.0, policy=TRIVIAL):
    pixels = jnp.asarray(image, jnp.float32)
    return np.asarray(policies.change_values(pixels, operation(name, strength, sign), policy))


@pytest.mark.slow
@pytest.mark.parametrize("policy", [TRIVIAL, POLICIES["rand"]])
@pytest.mark.parametrize(("strength", "sign"), [(0.0, 1.0), (0.3, -1.0), (0.7, 1.0), (1.0, -1.0)])
@pytest.mark.parametrize(
    ("name", "of_pillow"),
    [
        ("brightness", ImageEnhance.Brightness),
        ("colour", ImageEnhance.Color),
        ("contrast", ImageEnhance.Contrast),
        ("sharpness", ImageEnhance.Sharpness),
    ],
)
def test_enhancements_are_those_of_pillow(photograph, policy, strength, sign, name, of_pillow):
    factor = 1 + sign * strength * policy.enhancement
    expected = np.asarray(of_pillow(Image.fromarray(photograph)).enhance(factor), np.float32)
    found = changed(photograph, name, strength, sign, policy)
    # Pillow cuts the fraction off. Its grey is one more where rounding decides.
    off = np.abs(np.floor(found + 1e-3) - expected)
    assert off.max() <= 2
    assert (off > 0).mean() < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("policy", [TRIVIAL, POLICIES["rand"]])
@pytest.mark.parametrize("strength", [0.0, 9 / 30, 0.5, 1.0])
def test_posterize_and_solarize_are_those_of_pillow(photograph, policy, strength):
    image = Image.fromarray(photograph)
    bits = 8 - round(policy.bits * strength)
    np.testing.assert_array_equal(
        changed(photograph, "posterize", strength, policy=policy), ImageOps.posterize(image, bits)
    )
    threshold = 255 * (1 - strength)
    np.testing.assert_array_equal(
        changed(photograph, "solarize", strength, policy=policy),
        ImageOps.solarize(image, threshold),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "of_pillow"),
    [("autocontrast", ImageOps.autocontrast), ("equalize", ImageOps.equalize)],
)
def test_autocontrast_and_equalize_are_those_of_pillow(photograph, name, of_pillow):
    flat = photograph.copy()
    flat[..., 1] = 77
    for image in (photograph, flat):
        expected = np.asarray(of_pillow(Image.fromarray(image)), np.float32)
        found = changed(image, name, 0.5)
        assert np.abs(found - expected).max() <= (1 if name == "autocontrast" else 0)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_movements_put_the_right_pixels_into_place(sign):
    height, width = 41, 61

    def source(name, strength, row, column):
        matrix = policies.movement(operation(name, strength, sign), TRIVIAL, height, width)
        return np.asarray(matrix) @ [row, column, 1]

    np.testing.assert_allclose(
        source("translate_rows", 0.5, 3, 7), [3 + sign * 16, 7, 1], atol=1e-4
    )
    np.testing.assert_allclose(
        source("translate_columns", 0.5, 3, 7), [3, 7 + sign * 16, 1], atol=1e-4
    )
    middle = (20, 30)
    for name in ("shear_rows", "shear_columns", "rotate"):
        np.testing.assert_allclose(source(name, 1.0, *middle), [*middle, 1], atol=1e-4)
    np.testing.assert_allclose(
        source("shear_columns", 1.0, 30, 30), [30, 30 + sign * 9.9, 1], atol=1e-4
    )
    np.testing.assert_allclose(
        source("shear_rows", 1.0, 20, 40), [20 + sign * 9.9, 40, 1], atol=1e-4
    )
    quarter = source("rotate", 90 / 135, 20, 40)
    np.testing.assert_allclose(quarter, [20 + sign * 10, 30, 1], atol=1e-4)


@pytest.mark.slow
def test_each_operation_is_drawn_as_often_as_the_others():
    keys = jax.random.split(jax.random.key(0), 4000)
    for name, policy in POLICIES.items():
        drawn = jax.vmap(lambda key, policy=policy: policies.draw_operations(key, policy))(keys)
        assert len(drawn) == policy.operations
        for one in drawn:
            counts = np.bincount(one.kind, minlength=len(OPERATIONS))
            assert len(counts) == 14
            assert counts.min() > 4000 / 14 - 85  # five standard deviations
            strengths = set(np.round(np.asarray(one.strength) * 30).astype(int))
            assert strengths == (set(range(31)) if name == "trivial" else {9})
            assert 0.4 < (np.asarray(one.sign) > 0).mean() < 0.6


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["trivial", "rand"])
def test_a_policy_changes_most_images_and_each_in_its_own_way(photograph, policy):
    images = np.repeat(photograph[None, :32, :32], 64, 0)
    keys = jax.random.split(jax.random.key(3), 64)
    run = jax.jit(augmentation.augment, static_argnums=2)
    found = np.asarray(run(images, keys, Augment(policy=policy)))
    assert found.min() >= 0
    assert found.max() <= 255
    assert len({image.tobytes() for image in found}) > 30
    # The identity, and operations of no strength, leave the image as it is.
    same = sum(np.array_equal(image, photograph[:32, :32]) for image in found)
    assert same < 16
    np.testing.assert_array_equal(run(images, keys, Augment(policy=policy)), found)


@pytest.mark.slow
def test_images_one_by_one_on_a_cpu_are_those_of_all_at_once(photograph):
    images = np.repeat(photograph[None, :32, :32], 16, 0)
    keys = jax.random.split(jax.random.key(3), 16)
    config = Augment(policy="rand", horizontal_flip=True, crop_scale=(0.5, 1.0))
    one_by_one = jax.jit(augmentation.augment, static_argnums=2)(images, keys, config)
    at_once = jax.jit(jax.vmap(lambda image, key: augmentation._augment_one(image, key, config)))(
        images, keys
    )
    np.testing.assert_allclose(one_by_one, at_once, atol=0.01)


@pytest.mark.slow
def test_one_and_eight_devices_draw_the_same_operations():
    config = Augment(policy="rand", blur=(0.1, 1.0), rotation=10.0)
    losses = []
    for devices in (1, 8):
        setup = SmallSetup(HEAD_ONLY, devices, augmentation=config, optimizer="sgd", lr=0.01)
        losses.append([float(sums.loss) for sums in setup.run([make_batch(), make_batch(1, 5)])])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_blur_is_that_of_scipy(photograph, sigma):
    from scipy.ndimage import gaussian_filter

    expected = gaussian_filter(
        photograph.astype(np.float64), (sigma, sigma, 0), mode="nearest", radius=6
    )
    found = augmentation.blur(jnp.asarray(photograph, jnp.float32), jnp.asarray(sigma), 2.0)
    np.testing.assert_allclose(found, expected, atol=1e-2)
