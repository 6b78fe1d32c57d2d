"""Checkpoints: bits, what is kept, and what is refused."""

import dataclasses
import json
import re
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from full_disk import files_no_longer_than

from jaxtl.config import Phase
from jaxtl.errors import UserError
from jaxtl.metrics import NONE, Sums
from jaxtl.runs.checkpoints import Checkpoints
from jaxtl.runs.groups import Group
from jaxtl.runs.progress import Progress
from jaxtl.training.parallel import replicate

VARIABLES = {
    "stem/kernel": jnp.asarray([[1.0, -0.0], [np.pi, 1e-40]]),
    "block_1/bn/mean": jnp.arange(3.0),
    "head/kernel": jnp.ones((2, 2)),
}
TRANSFORM = optax.multi_transform(
    {"a": optax.adam(1e-3), "frozen": optax.set_to_zero()},
    {"stem/kernel": "frozen", "head/kernel": "a", "block_1/bn/mean": "frozen"},
)


def bits(variables):
    return {path: np.asarray(value).tobytes() for path, value in variables.items()}


@pytest.fixture
def checkpoints(tmp_path):
    opened = Checkpoints(tmp_path / "checkpoints")
    opened.save_initial(VARIABLES)
    yield opened
    opened.close()


def save(checkpoints, progress, value, state=None):
    changed = {"head/kernel": jnp.full((2, 2), value)}
    checkpoints.save(progress, changed, TRANSFORM.init(VARIABLES) if state is None else state)


def test_initial_variables_come_back_bit_for_bit(checkpoints):
    assert bits(checkpoints.initial(VARIABLES)) == bits(VARIABLES)


def test_a_checkpoint_is_what_changed_over_what_the_run_began_with(checkpoints):
    progress = Progress(phase=1, epoch=2, batch=3, step=7, sums=Sums(0.1 + 0.2, 3, 4, 5))
    save(checkpoints, progress, 0.1)
    restored = checkpoints.variables(14, VARIABLES)
    chex.assert_trees_all_equal(restored, VARIABLES | {"head/kernel": jnp.full((2, 2), 0.1)})
    assert checkpoints.newest() == progress


def test_frozen_variables_are_not_written_again(checkpoints, tmp_path):
    save(checkpoints, Progress(step=1), 0.0)
    checkpoints.close()
    stored = tmp_path / "checkpoints/steps/3/variables/_METADATA"
    assert "head/kernel" in stored.read_text()
    assert "stem/kernel" not in stored.read_text()


def test_the_optimizer_comes_back_bit_for_bit_and_with_its_structure(checkpoints):
    state = TRANSFORM.init(VARIABLES)
    gradients = {path: jnp.full_like(value, 0.3) for path, value in VARIABLES.items()}
    _, state = TRANSFORM.update(gradients, state, VARIABLES)
    save(checkpoints, Progress(step=1), 0.0, state)
    checkpoints.close()
    restored = checkpoints.optimizer(3, TRANSFORM.init(VARIABLES))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


def test_the_two_newest_and_the_best_are_kept_also_after_a_restart(checkpoints, tmp_path):
    progress = Progress()
    for step, accuracy in enumerate([0.5, 0.9, 0.7, 0.6, 0.8], start=1):
        progress = Progress(
            **{**vars(progress), "step": step, "best_step": progress.best_step}
        ).after_epoch(accuracy, 1.0, accuracy)
        save(checkpoints, progress, float(step))
        if step == 3:
            checkpoints.close()
            checkpoints = Checkpoints(tmp_path / "checkpoints")
            assert checkpoints.newest() == progress
    checkpoints.close()
    kept = {int(path.name) for path in (tmp_path / "checkpoints/steps").iterdir()}
    assert kept == {5, 9, 11}
    assert float(checkpoints.variables(5, VARIABLES)["head/kernel"][0, 0]) == 2.0


def test_a_checkpoint_of_another_network_is_refused_by_name(checkpoints):
    other = {**VARIABLES, "head/kernel": jnp.ones((2, 5))}
    with pytest.raises(UserError, match=r"tree 0.*tree 1.*head/kernel.*\(2, 2\) != \(2, 5\)"):
        checkpoints.initial(other)
    missing = {path: VARIABLES[path] for path in ("stem/kernel", "head/kernel")}
    with pytest.raises(UserError, match="block_1/bn/mean"):
        checkpoints.initial(missing)
    save(checkpoints, Progress(step=1), 0.0)
    with pytest.raises(UserError, match="head/kernel"):
        checkpoints.variables(3, other)


def test_a_state_of_another_optimizer_is_refused(checkpoints):
    save(checkpoints, Progress(step=1), 0.0)
    checkpoints.close()
    with pytest.raises(UserError, match="does not fit this run"):
        checkpoints.optimizer(3, optax.sgd(0.1, momentum=0.9).init(VARIABLES))


def test_a_checkpoint_that_lost_its_arrays_is_refused(checkpoints, tmp_path):
    save(checkpoints, Progress(step=1), 0.0)
    checkpoints.close()
    shutil.rmtree(tmp_path / "checkpoints/steps/3/variables")
    with pytest.raises(UserError, match="is damaged or incomplete"):
        checkpoints.variables(3, VARIABLES)


def test_damaged_progress_is_refused(checkpoints, tmp_path):
    save(checkpoints, Progress(step=1), 0.0)
    checkpoints.close()
    (file,) = (tmp_path / "checkpoints/steps/3/progress").glob("metadata*")
    whole = file.read_text()
    wrong = {'"phase": 0': '"phase": "x"', '"best_step": null': '"best_step": "x"'}
    changed = [whole.replace(*pair) for pair in wrong.items()]
    cut_sums = whole.replace("[0.0, 0, 0, 0]", "[0.0, 0]")
    for damaged in ("[]", "{", *changed, cut_sums):
        assert damaged != whole
        file.write_text(damaged)
        with pytest.raises(UserError, match="is damaged or incomplete") as error:
            Checkpoints(tmp_path / "checkpoints", read_only=True).newest()
        assert not re.search("_Contents|Progress|Sums|validation error", str(error.value))


def test_the_counts_of_stored_progress_stay_integers(checkpoints):
    """The sums of an epoch go on from them, and a report prints them."""
    save(checkpoints, Progress(step=1, sums=Sums(0.5, 3, 4, 5)), 0.0)
    restored = checkpoints.newest().sums
    assert [type(number) for number in restored] == [float, int, int, int]


def big(value):
    return {"head/kernel": jnp.asarray(np.random.default_rng(value).normal(size=(500, 500)))}


@pytest.mark.parametrize("end", [lambda c: c.variables(3, big(0)), Checkpoints.close])
def test_a_full_disk_is_refused_in_one_line_wherever_it_shows(tmp_path, end):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    with files_no_longer_than(10_000), pytest.raises(UserError) as caught:
        checkpoints.save_initial(big(0))
    assert "initial cannot be written" in str(caught.value)
    assert "\n" not in str(caught.value)
    checkpoints.save_initial(big(0))  # there is space again

    def save_and_end():
        checkpoints.save(Progress(step=1), big(1), TRANSFORM.init(VARIABLES))
        end(checkpoints)

    with files_no_longer_than(10_000), pytest.raises(UserError, match="cannot be written"):
        save_and_end()


def test_arrays_of_many_devices_are_restored_on_the_first_of_this_machine(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save_initial(replicate(VARIABLES, jax.devices()))
    state = TRANSFORM.init(VARIABLES)
    save(checkpoints, Progress(step=1), 0.1, replicate(state, jax.devices()))
    checkpoints.close()
    restored = checkpoints.variables(3, VARIABLES), checkpoints.optimizer(3, state)
    for leaf in jax.tree.leaves(restored):
        assert leaf.devices() == {jax.devices()[0]}


def test_the_result_of_a_phase_is_its_best_epoch_or_its_last():
    progress = Progress(step=9, epoch=3, best_step=5, best_epoch=2)
    phase = Phase(name="p", train={"head/.*": 1.0}, epochs=3)
    assert progress.result_number(phase) == progress.best_number == 11
    assert progress.result_number(phase.model_copy(update={"restore_best": False})) == 19
    assert Progress(step=9, epoch=3).result_number(phase) == 19


def test_an_epoch_has_a_checkpoint_before_and_one_after_its_validation(checkpoints, tmp_path):
    trained = Progress(step=6, batch=6, sums=Sums(1.0, 2, 3, 4))
    validated = trained.after_epoch(0.5, 1.0, 0.5)
    save(checkpoints, trained, 0.1)
    save(checkpoints, validated, 0.1)
    checkpoints.close()
    kept = {int(path.name) for path in (tmp_path / "checkpoints/steps").iterdir()}
    assert kept == {trained.number, validated.number} == {12, 13}
    assert Checkpoints(tmp_path / "checkpoints", read_only=True).newest() == validated


def test_a_checkpoint_of_a_progress_is_written_once(checkpoints):
    progress = Progress(step=1, batch=1)
    save(checkpoints, progress, 0.1)
    save(checkpoints, progress, 0.2)
    assert float(checkpoints.variables(2, VARIABLES)["head/kernel"][0, 0]) == np.float32(0.1)


def test_the_next_phase_has_its_own_best():
    ended = Progress(step=9, epoch=3, stale=2, best_step=5, best_accuracy=0.9, best_loss=0.1)
    assert ended.next_phase() == Progress(phase=1, step=9)


def test_accuracy_counts_first_and_loss_between_equals():
    best = Progress(step=1).after_epoch(0.9, 0.5, 0.9)
    assert (best.best_step, best.stale, best.epoch) == (1, 0, 1)
    worse = Progress(**{**vars(best), "step": 2}).after_epoch(0.9, 0.6, 0.9)
    assert (worse.best_step, worse.stale) == (1, 1)
    better = Progress(**{**vars(worse), "step": 3}).after_epoch(0.9, 0.4, 0.9)
    assert (better.best_step, better.stale) == (3, 0)
    assert Progress(**{**vars(better), "step": 4}).after_epoch(0.91, 9.0, 0.91).best_step == 4
    done = Progress(sums=Sums(1.0, 1, 1, 1), batch=3, epoch=4).after_epoch(0.1, 1.0, 0.1)
    assert (done.sums, done.batch, done.epoch) == (NONE, 0, 5)


def test_the_best_of_an_older_version_has_its_accuracy_to_be_beaten():
    older = Progress(step=2, best_step=1, best_accuracy=0.9, best_loss=0.5)
    assert (older.best_score, older.best_quality) == (None, (0.9, -0.5))
    assert older.after_epoch(0.8, 0.1, 0.8).best_step == 1
    assert older.after_epoch(0.91, 0.6, 0.91).best_step == 2


def test_what_is_monitored_counts_before_accuracy_and_loss():
    results = [(0.9, 0.5, 0.2), (0.1, 0.7, 0.6), (0.8, 0.4, 0.6), (0.95, 0.1, 0.3)]
    progress = Progress()
    for step, (accuracy, loss, score) in enumerate(results, start=1):
        progress = dataclasses.replace(progress, step=step)
        progress = progress.after_epoch(accuracy, loss, score, 3)
    assert (progress.best_step, progress.best_score, progress.best_accuracy) == (3, 0.6, 0.8)
    assert [step for step, *_ in progress.to_average] == [3, 2, 4]
    assert progress.averaged(0.7, 0.3, 0.65).best_quality == (0.65, -0.3)


HEADS = {"head/kernel": jnp.arange(12.0).reshape(3, 2, 2) * -0.1}  # of three runs
COMPLETE = Progress(step=9, epoch=3, best_step=7, best_accuracy=0.9, best_loss=0.1)
TRUNK = {path: VARIABLES[path] for path in ("stem/kernel", "block_1/bn/mean")}


@pytest.fixture
def run_of_group(tmp_path):
    """The second of three runs that trained together, and the checkpoint of all three."""
    (tmp_path / "heads").mkdir()
    (tmp_path / "run").mkdir()
    group = Group.write(tmp_path / "heads" / "of-three", TRUNK, HEADS)
    group.add(tmp_path / "run" / "checkpoints", 1, COMPLETE.best_number, COMPLETE)
    return tmp_path / "run" / "checkpoints", group.folder


def opened(folder):
    return Checkpoints(folder, read_only=True)


def test_a_run_of_a_group_reads_its_own_variables_bit_for_bit(run_of_group):
    checkpoints = opened(run_of_group[0])
    assert checkpoints.newest() == COMPLETE
    expected = TRUNK | {"head/kernel": HEADS["head/kernel"][1]}
    assert bits(checkpoints.variables(15, VARIABLES)) == bits(expected)
    with pytest.raises(UserError, match="keeps the variables of step 7 alone, not 9"):
        checkpoints.variables(19, VARIABLES)


def test_the_checkpoint_of_a_group_that_does_not_fit_is_refused(run_of_group):
    checkpoints = opened(run_of_group[0])
    other = VARIABLES | {"head/kernel": jnp.ones((2, 5))}
    with pytest.raises(UserError, match=r"head/kernel.*\(3, 2, 2\) != \(3, 2, 5\)"):
        checkpoints.variables(15, other)
    with pytest.raises(UserError, match="only one of them has top/kernel"):
        checkpoints.variables(15, VARIABLES | {"top/kernel": jnp.ones(2)})


@pytest.mark.parametrize("part", ["", "shared", "stacked"])
def test_a_run_without_the_checkpoint_of_its_group_is_refused(run_of_group, part):
    folder, group = run_of_group
    shutil.rmtree(group / part)
    match = "is damaged or incomplete" if part else f"{group}, .* move the run back into its sweep"
    with pytest.raises(UserError, match=match):
        opened(folder).variables(15, VARIABLES)


@pytest.mark.parametrize(
    ("known", "damaged"),
    [
        ('"index": 1', '"index": 3'),
        ('"index": 1', '"index": -1'),
        ('"best_step": 7', '"best_step": "x"'),
        ("{", ""),
        ("folder", "place"),
    ],
)
def test_a_damaged_place_in_a_group_is_refused(run_of_group, known, damaged):
    file = run_of_group[0] / "group.json"
    file.write_text(file.read_text().replace(known, damaged))
    with pytest.raises(UserError, match=r"group\.json is damaged or incomplete"):
        opened(run_of_group[0])


def test_heads_of_different_numbers_of_runs_are_no_group(tmp_path):
    with pytest.raises(AssertionError):
        Group.write(tmp_path / "group", TRUNK, HEADS | {"head/bias": jnp.ones((4, 2))})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "place", ["/etc", "heads/of-three", "../../of-three", "../heads/../..", ".."]
)
def test_a_group_outside_of_the_sweep_is_refused(run_of_group, place):
    file = run_of_group[0] / "group.json"
    content = json.loads(file.read_text())
    del content["sha256"]  # as version 0.2 wrote it, or somebody who knows how
    file.write_text(json.dumps(content))
    assert opened(run_of_group[0]).newest() == COMPLETE
    file.write_text(json.dumps(content | {"folder": place}))
    with pytest.raises(UserError, match=r"group\.json is damaged .* not in that of the sweep"):
        opened(run_of_group[0])


def of_version_0_2(folder, *steps):
    """A folder of checkpoints as version 0.2 wrote it; the first step is the best."""
    with ocp.StandardCheckpointer() as writer:
        writer.save(folder / "initial", VARIABLES)
    handlers = {
        "variables": ocp.StandardCheckpointHandler(),
        "optimizer": ocp.StandardCheckpointHandler(),
        "progress": ocp.JsonCheckpointHandler(),
    }
    with ocp.CheckpointManager(folder / "steps", item_handlers=handlers) as manager:
        for epoch, step in enumerate(steps, start=1):
            state = jax.tree.leaves_with_path(TRANSFORM.init(VARIABLES))
            progress = Progress(step=step, epoch=epoch, best_step=steps[0], best_epoch=1)
            items = ocp.args.Composite(
                variables=ocp.args.StandardSave({"head/kernel": jnp.full((2, 2), float(step))}),
                optimizer=ocp.args.StandardSave({jax.tree_util.keystr(p): a for p, a in state}),
                progress=ocp.args.JsonSave(
                    {"progress": dataclasses.asdict(progress), "variables": ["head/kernel"]}
                ),
            )
            manager.save(step, args=items, force=True)


def test_a_run_of_version_0_2_is_read_and_not_continued(tmp_path):
    """Its checkpoints are named by steps: 5 is the newest here, and the number of the best."""
    folder = tmp_path / "checkpoints"
    of_version_0_2(folder, 2, 5)
    before = sorted(tmp_path.rglob("*"))
    checkpoints = Checkpoints(folder, read_only=True)
    for _ in range(2):
        newest = checkpoints.newest()
        assert (newest.step, newest.number, newest.best_number) == (5, 11, 5)
        for number, step in ((newest.number, 5.0), (newest.best_number, 2.0)):
            found = checkpoints.variables(number, VARIABLES)
            assert bits(found) == bits(VARIABLES | {"head/kernel": jnp.full((2, 2), step)})
    checkpoints.close()
    writer = Checkpoints(folder)
    with pytest.raises(
        UserError, match=r"of version 0\.2, which can be used but not continued; name"
    ):
        writer.newest()
    writer.close()
    assert sorted(tmp_path.rglob("*")) == before
