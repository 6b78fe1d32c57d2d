"""Saves Keras models as current and old versions of Keras do, and damages what was saved."""

from __future__ import annotations

from pathlib import Path

import h5py
import keras
import numpy as np


def save(model: keras.Model, path: Path) -> Path:
    """Saves in the form that the suffix asks for; `weights only.h5` is what Keras 2 wrote."""
    if path.name.endswith(".weights.h5"):
        model.save_weights(path)
    elif path.name == "weights only.h5":
        whole = save(model, path.with_name("whole.h5"))
        with h5py.File(whole) as source, h5py.File(path, "w") as target:
            as_keras_2(source["model_weights"], target)
    else:
        model.save(path)
    return path


def as_keras_2(source: h5py.Group, target: h5py.Group, rename=lambda name: name) -> None:
    """Writes a weights file as Keras 2 did: no model around it, names as bytes that end in `:0`."""
    names = list(source.attrs["layer_names"])
    target.attrs["layer_names"] = np.array([rename(name).encode() for name in names])
    for name in names:
        group = target.create_group(rename(name))
        weights = []
        for weight in source[name].attrs["weight_names"]:
            layer, variable = weight.split("/")[-2:]
            if layer.endswith("depthwise") and variable == "kernel":
                variable = "depthwise_kernel"
            weights.append(f"{rename(layer)}/{variable}:0")
            group.create_dataset(weights[-1], data=source[name][weight][()])
        # Keras 2 cuts long lists of names into numbered attributes.
        half = len(weights) // 2
        parts = {"weight_names": weights}
        if half > 50:
            parts = {"weight_names0": weights[:half], "weight_names1": weights[half:]}
        for attribute, part in parts.items():
            group.attrs[attribute] = np.array([weight.encode() for weight in part])


def as_keras_1(source: h5py.Group, target: h5py.Group) -> None:
    """Writes a weights file as Keras 1 did, which the published ones of VGG come from."""
    names = list(source.attrs["layer_names"])
    target.attrs["layer_names"] = np.array([name.encode() for name in names])
    for name in names:
        group = target.create_group(name)
        weights = []
        for weight in source[name].attrs["weight_names"]:
            short = {"kernel": "W", "bias": "b"}[weight.split("/")[-1]]
            weights.append(f"{name}_{short}_1:0")
            group.create_dataset(weights[-1], data=source[name][weight][()])
        group.attrs["weight_names"] = np.array([weight.encode() for weight in weights])


def edited(model: keras.Model, folder: Path, change, *, extra=None) -> Path:
    """A legacy file of a model after `change(name, value)`; None takes the array away."""
    path = save(model, folder / "edited.h5")
    with h5py.File(path, "r+") as file:
        for layer in file["model_weights"].attrs["layer_names"]:
            group = file["model_weights"][layer]
            kept = []
            for name in group.attrs["weight_names"]:
                value = change(name, group[name][()])
                del group[name]
                if value is not None:
                    group.create_dataset(name, data=value)
                    kept.append(name)
            group.attrs["weight_names"] = kept
        if extra:
            group = file["model_weights"].create_group(extra)
            group.attrs["weight_names"] = [f"{extra}/kernel"]
            group.create_dataset(f"{extra}/kernel", data=np.zeros((1, 1, 3, 3), np.float32))
            names = list(file["model_weights"].attrs["layer_names"])
            file["model_weights"].attrs["layer_names"] = [*names, extra]
    return path
