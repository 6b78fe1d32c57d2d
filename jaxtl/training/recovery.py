"""Goes back to where a phase was sound, once its numbers are not finite any more."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from jaxtl.errors import UserError
from jaxtl.models import Variables
from jaxtl.runs.progress import Progress
from jaxtl.training.divergence import Diverged
from jaxtl.training.parallel import replicate
from jaxtl.training.phase import PhaseRun, first_state
from jaxtl.training.saving import Saver
from jaxtl.training.shared_run import RunCheckpoints, RunLog
from jaxtl.training.step import TrainState
from jaxtl.training.trainable import partition

_MOST_HALVINGS = 10  # of the learning rate in a run


@dataclasses.dataclass(frozen=True)
class Recovery:
    """What becomes of a run that diverged.

    Attributes:
        on_nan: `Config.on_nan`.
        checkpoints, saver, log, out, devices: those of the run.
    """

    on_nan: Literal["stop", "halve_lr"]
    checkpoints: RunCheckpoints
    saver: Saver
    log: RunLog
    out: Console
    devices: Sequence[jax.Device]

    def slow_down(
        self, run: PhaseRun, progress: Progress, begun_with: Variables, error: Diverged
    ) -> Progress:
        """Goes back to a checkpoint of the phase, or to its start, at half the learning rate.

        Args:
            run: the phase; its state and its learning rate change.
            progress: where the phase diverged.
            begun_with: all variables as the phase began.
            error: why it diverged.

        Returns:
            Where the run stands now.

        Raises:
            Diverged: `error`, unless the config asks for this; what is saved is not ruined.
            UserError: it was done as often as it may be.
        """
        self.saver.save_bests(progress)
        newest, reason = self.saver.newest, str(error).partition(";")[0]
        halvings, factor = progress.halvings + 1, progress.lr_factor / 2
        if self.on_nan == "stop" or halvings > _MOST_HALVINGS:
            if newest and newest.batch:  # else its validation was finite
                back = self._place_to_return(run, progress, error)
                if back.step < newest.step:
                    self._go_back(run, back, begun_with)
            if self.on_nan == "stop":
                raise error
            raise UserError(f"{reason}; {_MOST_HALVINGS} lower learning rates did not help")
        back = self._place_to_return(run, progress, error)
        back = dataclasses.replace(back, lr_factor=factor, halvings=halvings)
        self._go_back(run, back, begun_with)
        self.log.forget(back.step - back.batch)
        lr = run.phase.base_lr * factor
        self.out.print(f"{reason}; back to step {back.step}, with half the learning rate: {lr:.3g}")
        return back

    def _go_back(self, run: PhaseRun, back: Progress, begun_with: Variables) -> None:
        """Continues from a place of the phase, and removes the checkpoints of later steps."""
        lr = np.asarray(run.phase.base_lr * back.lr_factor, np.float32)
        run.hyper = replicate(run.hyper._replace(lr=lr), self.devices)
        run.state = self._state(run, back, begun_with)
        if self.saver.newest and self.saver.newest.step > back.step:
            self.saver.go_back(run.position(back))

    def _place_to_return(self, run: PhaseRun, progress: Progress, error: Diverged) -> Progress:
        """The newest checkpoint of a phase that diverged, or its start.

        It is the one before if the variables of the newest are ruined, for any learning rate.

        Raises:
            Diverged, UserError: the newest is ruined, and none before it is of the phase. It is
                removed, so the same command begins the phase anew.
        """
        newest = self.saver.newest
        if newest is None or newest.phase != progress.phase:
            return run.start
        if not newest.begun or newest.step < error.ruined:
            return newest
        older = self.checkpoints.newest(before_step=newest.step)
        if older is not None and older.phase == newest.phase:
            return older
        if not run.start.begun:
            return run.start
        self.checkpoints.forget(older.number if older else 0)
        if self.on_nan == "stop":
            raise error
        reason = str(error).partition(";")[0]
        raise UserError(f"{reason}; the same command begins phase {run.phase.name} anew")

    def _state(self, run: PhaseRun, back: Progress, begun_with: Variables) -> TrainState:
        """The state at a place: that of a checkpoint, or of the beginning of the phase."""
        if back.begun:
            variables = self.checkpoints.changed(back.number, begun_with)
            trained = partition(variables, run.trainable.variables)[0]
            optimizer = self.checkpoints.optimizer(back.number, run.state.optimizer)
            state = TrainState(jnp.asarray(back.step, jnp.int32), trained, optimizer)
        else:
            state = first_state(
                run.trainable,
                run.phase,
                begun_with,
                run.hyper,
                steps_per_epoch=run.train.loader.steps_per_epoch,
                step=back.step,
            )
        return replicate(state, self.devices)
