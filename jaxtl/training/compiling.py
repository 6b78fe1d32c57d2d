"""What `jaxtl train --compile-for` does. Importing this does not import jax."""

from __future__ import annotations

from collections.abc import Mapping


def compile_and_print(described: str, cfg: str, overrides: Mapping[str, str]) -> None:
    """Prints what each phase of a config costs on accelerators; nothing is trained.

    It sets variables of the environment that jax reads when it is imported, so no module that
    imports jax may be imported before.

    Args:
        described: the accelerators, such as `tpu:v5e-8`.
        cfg: the path of the config.
        overrides: values of its keys, see `jaxtl.config.config_file.load`.

    Raises:
        UserError: no such accelerators are known, their compiler is not installed, or the config
            cannot be trained on them.
    """
    from jaxtl.forecast.target import check_compiler, prepare_environment, target

    check_compiler(accelerators := target(described))
    prepare_environment()

    from jaxtl.config.config_file import load
    from jaxtl.console import console
    from jaxtl.data.splits import OpenOnce
    from jaxtl.training.forecast import print_forecast

    images = OpenOnce()
    config = load(cfg, overrides, images.count)
    print_forecast(config, images(config.data), accelerators, console())
