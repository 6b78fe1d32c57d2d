"""jaxtl fine-tunes image classifiers from ImageNet weights, in JAX."""
