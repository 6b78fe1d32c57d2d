"""Random changes on the device, against Keras, exact flips and colours computed by other means."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtl.config import Augment
from jaxtl.data import augmentation as module
from jaxtl.data.augmentation import Geometry, draw_geometry, inverse_affine

SIZE = 12

augment = jax.jit(module.augment, static_argnums=2)
warp = jax.jit(module.warp)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (6, SIZE, SIZE, 3), np.uint8)


@pytest.fixture
def keys():
    return jax.random.split(jax.random.key(0), 6)


def geometry(
    corner=(0, 0),
    box=(1, 1),
    shear=0.0,
    zoom=(1, 1),
    rotation=0.0,
    translation=(0, 0),
    flip=(False, False),
):
    values = corner, box, shear, zoom, rotation, translation
    floats = (jnp.asarray(value, jnp.float32) for value in values)
    return Geometry(*floats, flip=jnp.asarray(flip))


def changed(images, keys, **config):
    return np.asarray(augment(images, keys, Augment(**config)))


def draws(config, count=2000):
    keys = jax.random.split(jax.random.key(1), count)
    return jax.vmap(lambda key: draw_geometry(key, config))(keys)


def test_a_new_kind_of_change_leaves_the_others_as_they_were(monkeypatch):
    known = ("horizontal_flip", "vertical_flip", "shear", "zoom", "area", "ratio", "corner")
    known += ("brightness", "contrast", "saturation", "hue")
    assert module._DRAWS[: len(known)] == known
    before = module._keys(jax.random.key(0))
    monkeypatch.setattr(module, "_DRAWS", (*module._DRAWS, "another"))
    after = module._keys(jax.random.key(0))
    assert [name for name in before if (before[name] != after[name]).any()] == []


def test_nothing_asked_for_is_only_a_cast(images, keys):
    result = changed(images, keys)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, images)


@pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")
@pytest.mark.parametrize(
    ("shear", "zx", "zy", "theta", "shift"),
    [
        (20, 1, 1, 0, (0, 0)),
        (-35, 1, 1, 0, (0, 0)),
        (0, 0.7, 1.3, 0, (0, 0)),
        (0, 1.4, 0.8, 0, (0, 0)),
        (0, 1, 1, 30, (0, 0)),
        (0, 1, 1, 0, (0.25, -0.1)),
        (25, 1.2, 0.9, -50, (-0.2, 0.15)),
    ],
)
@pytest.mark.parametrize("size", [12, 13])
def test_the_affine_changes_are_those_of_keras(monkeypatch, shear, zx, zy, theta, shift, size):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    from keras.src.legacy.preprocessing.image import apply_affine_transform

    image = np.random.default_rng(1).uniform(0, 255, (size, size, 3)).astype(np.float32)
    expected = apply_affine_transform(
        image,
        theta=theta,
        tx=shift[1] * size,
        ty=shift[0] * size,
        shear=shear,
        zx=zx,
        zy=zy,
        row_axis=0,
        col_axis=1,
        channel_axis=2,
    )
    drawn = geometry(shear=shear, zoom=(zx, zy), rotation=theta, translation=shift)
    matrix = inverse_affine(drawn, size, size)
    np.testing.assert_allclose(warp(image, matrix), expected, atol=0.01)


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("shape", [(12, 12), (13, 9)])
def test_a_flip_by_matrix_is_the_exact_flip(rows, columns, shape):
    image = np.random.default_rng(2).integers(0, 256, (*shape, 3)).astype(np.float32)
    expected = image[:: -1 if rows else 1, :: -1 if columns else 1]
    matrix = inverse_affine(geometry(flip=(rows, columns)), *shape)
    np.testing.assert_array_equal(warp(image, matrix), expected)


def test_a_cropped_box_is_cut_out_and_enlarged_about_pixel_centres():
    image = np.random.default_rng(3).uniform(0, 255, (12, 12, 3)).astype(np.float32)
    box = geometry(corner=(3 / 12, 6 / 12), box=(6 / 12, 4 / 12))
    result = np.asarray(warp(image, inverse_affine(box, 12, 12)))
    cut = image[3:9, 6:10]
    expected = jax.image.resize(cut, (12, 12, 3), "linear")
    # At the rim the real neighbours go on, where the resized cut repeats its edge.
    np.testing.assert_allclose(result[1:-1, 2:-2], expected[1:-1, 2:-2], atol=0.01)


def test_an_enlarged_edge_is_filled_with_the_nearest_pixels():
    ramp = np.repeat(np.arange(8.0, dtype=np.float32)[:, None], 8, 1)[..., None].repeat(3, 2)
    result = np.asarray(warp(ramp, inverse_affine(geometry(zoom=(2, 2)), 8, 8)))
    np.testing.assert_allclose(result[:, 4, 0], [0, 0, 0.5, 2.5, 4.5, 6.5, 7, 7])


def test_places_are_computed_without_matrix_products_that_some_devices_round():
    assert "dot_general" not in warp.lower(jnp.zeros((8, 8, 3)), jnp.eye(3)).as_text()
    ramp = jnp.broadcast_to(jnp.arange(1024.0)[None, :, None], (2, 1024, 3))
    shifted = warp(ramp, jnp.asarray([[1, 0, 0], [0, 1, 0.25], [0, 0, 1]]))
    np.testing.assert_array_equal(shifted[0, :-1, 0], np.arange(1023) + 0.25)


def test_flips_alone_mirror_half_of_the_images_and_interpolate_nothing(images):
    many = np.repeat(images[:1], 400, 0)
    keys = jax.random.split(jax.random.key(2), 400)
    result = changed(many, keys, horizontal_flip=True, vertical_flip=True)
    counts = [
        sum(np.array_equal(image, many[0][::rows, ::columns]) for image in result)
        for rows in (1, -1)
        for columns in (1, -1)
    ]
    assert sum(counts) == 400
    assert min(counts) > 70  # 100 expected of each; five standard deviations are 43


def test_the_same_images_are_flipped_with_and_without_interpolation(images, keys):
    exact = changed(images, keys, horizontal_flip=True, vertical_flip=True)
    by_matrix = changed(
        images, keys, horizontal_flip=True, vertical_flip=True, crop_scale=(1.0, 1.0)
    )
    np.testing.assert_array_equal(by_matrix, exact)


def test_a_crop_of_the_whole_image_changes_nothing(images, keys):
    np.testing.assert_array_equal(changed(images, keys, crop_scale=(1.0, 1.0)), images)


def test_cropped_boxes_keep_to_area_ratio_and_image():
    drawn = draws(Augment(crop_scale=(0.3, 0.9)))
    height, width = np.asarray(drawn.box).T
    top, left = np.asarray(drawn.corner).T
    area, ratio = height * width, width / height
    assert 0.3 <= area.min() < 0.31
    assert 0.89 < area.max() <= 0.9001
    assert abs(area.mean() - 0.6) < 0.02
    assert 0.7499 <= ratio.min() < 0.77
    assert 1.3 < ratio.max() <= 1.3334
    assert abs(np.log(ratio).mean()) < 0.02
    assert min(top.min(), left.min()) >= 0
    assert max((top + height).max(), (left + width).max()) <= 1.0001


def test_shear_and_zoom_fill_their_ranges_and_axes_zoom_apart():
    drawn = draws(Augment(shear=30.0, zoom=0.2))
    assert -30 <= drawn.shear.min() < -29
    assert 29 < drawn.shear.max() <= 30
    assert 0.8 <= drawn.zoom.min() < 0.81
    assert 1.19 < drawn.zoom.max() <= 1.2
    assert abs(np.corrcoef(np.asarray(drawn.zoom).T)[0, 1]) < 0.1


def test_what_is_not_asked_for_is_not_drawn():
    drawn = draws(Augment(shear=30.0), count=10)
    assert (drawn.zoom == 1).all()
    assert (drawn.box == 1).all()
    assert not drawn.flip.any()


def test_switching_one_change_on_leaves_the_draws_of_the_others():
    alone = draws(Augment(shear=30.0), count=10)
    together = draws(Augment(shear=30.0, zoom=0.2, crop_scale=(0.1, 1.0)), count=10)
    np.testing.assert_array_equal(alone.shear, together.shear)


def test_rotations_and_shifts_fill_their_ranges():
    drawn = draws(Augment(rotation=30.0, translation=0.2))
    for values, most in ((drawn.rotation, 30), (drawn.translation[:, 0], 0.2)):
        assert -most <= values.min() < -0.99 * most
        assert 0.99 * most < values.max() <= most
    assert abs(np.corrcoef(np.asarray(drawn.translation).T)[0, 1]) < 0.1


def test_erasing_puts_noise_into_one_rectangle_of_its_fraction_of_the_images():
    side, count = 40, 300
    black = np.zeros((count, side, side, 3), np.uint8)
    result = changed(black, jax.random.split(jax.random.key(3), count), erasing=0.5)
    noise = (result > 0).any(-1)
    areas = []
    for image, erased in zip(result, noise, strict=True):
        if not erased.any():
            continue
        rows, columns = np.flatnonzero(erased.any(1)), np.flatnonzero(erased.any(0))
        box = np.ix_(range(rows[0], rows[-1] + 1), range(columns[0], columns[-1] + 1))
        assert erased[box].all()
        assert erased.sum() == erased[box].size
        assert 80 < image[erased].mean() < 175  # uniform over 0..255
        areas.append(erased.mean())
    assert 0.4 < len(areas) / count < 0.6
    assert 0.01 < min(areas) < 0.05
    assert 0.28 < max(areas) < 0.36


EVERYTHING = {
    "shear": 20.0,
    "zoom": 0.2,
    "rotation": 20.0,
    "translation": 0.1,
    "erasing": 0.5,
    "horizontal_flip": True,
    "vertical_flip": True,
    "crop_scale": (0.5, 1.0),
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
}


def test_the_result_does_not_depend_on_how_the_batch_is_split(images, keys):
    whole = changed(images, keys, **EVERYTHING)
    parts = [changed(images[i : i + 2], keys[i : i + 2], **EVERYTHING) for i in (0, 2, 4)]
    np.testing.assert_allclose(whole, np.concatenate(parts), atol=1e-3)
    assert not np.allclose(whole, images, atol=1)


def test_equal_keys_give_equal_changes_and_other_keys_others(images, keys):
    first = changed(images[:1], keys[:1], **EVERYTHING)
    np.testing.assert_array_equal(first, changed(images[:1], keys[:1], **EVERYTHING))
    assert not np.allclose(first, changed(images[:1], keys[1:2], **EVERYTHING), atol=1)


def test_pixels_stay_in_range_and_finite_for_black_white_and_grey(keys):
    levels = np.array([0, 255, 128, 1, 254, 77], np.uint8)
    plain = np.broadcast_to(levels[:, None, None, None], (6, SIZE, SIZE, 3))
    strong = EVERYTHING | {"brightness": 2.0, "contrast": 2.0, "saturation": 2.0, "hue": 0.5}
    result = changed(plain, keys, **strong)
    assert np.isfinite(result).all()
    assert result.min() >= 0
    assert result.max() <= 255


def test_brightness_scales_each_image_by_one_factor(images, keys):
    dim = images // 4 + 1
    ratio = changed(dim, keys, brightness=0.5) / dim
    factors = ratio[:, 0, 0, 0]
    np.testing.assert_allclose(
        ratio, np.broadcast_to(factors[:, None, None, None], ratio.shape), 1e-4
    )
    assert len(np.unique(factors.round(4))) == 6
    assert ((factors >= 0.5) & (factors <= 1.5)).all()


def test_contrast_scales_the_distance_from_the_mean_of_each_channel(keys):
    images = np.random.default_rng(4).integers(96, 160, (6, SIZE, SIZE, 3)).astype(np.uint8)
    result = changed(images, keys, contrast=0.5)
    mean = images.mean((1, 2), keepdims=True)
    np.testing.assert_allclose(result.mean((1, 2), keepdims=True), mean, rtol=1e-4)
    factors = (result - mean).std((1, 2)) / (images - mean).std((1, 2))
    np.testing.assert_allclose(factors, np.repeat(factors[:, :1], 3, 1), rtol=1e-3)
    assert ((factors >= 0.5) & (factors <= 1.5)).all()


def test_saturation_changes_only_the_saturation_of_colorsys(images, keys):
    result = changed(images, keys, saturation=0.4)
    for before, after in zip(images[:, 0, 0] / 255, result[:, 0, 0] / 255, strict=True):
        old, new = colorsys.rgb_to_hsv(*before), colorsys.rgb_to_hsv(*after)
        assert new[0] == pytest.approx(old[0], abs=1e-3)
        assert new[2] == pytest.approx(old[2], abs=1e-3)
        assert 0.6 * old[1] - 1e-3 <= new[1] <= min(1.0, 1.4 * old[1]) + 1e-3


def test_hue_turns_every_pixel_of_a_image_by_one_angle(keys):
    images = np.empty((6, SIZE, SIZE, 3), np.uint8)
    images[:] = [200, 120, 40]
    images[:, : SIZE // 2] = [40, 90, 180]
    result = changed(images, keys, hue=0.1)
    for before, after in zip(images / 255, result / 255, strict=True):
        turns = []
        for row in (0, -1):
            old, new = (colorsys.rgb_to_hsv(*p[row, 0]) for p in (before, after))
            assert new[1:] == pytest.approx(old[1:], abs=1e-3)
            turns.append((new[0] - old[0] + 0.5) % 1 - 0.5)
        assert turns[0] == pytest.approx(turns[1], abs=1e-3)
        assert 1e-4 < abs(turns[0]) <= 0.1001
