import shutil
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from densezoo.train import create_state, load_variables, read_facts, restore_state
from densezoo.train.checkpoint import CheckpointWriter, newest_checkpoint


@pytest.fixture
def writer(tmp_path):
    writer = CheckpointWriter(tmp_path, "last")
    yield writer
    writer.close()


@pytest.fixture
def trained(new_state, train_step, batch_of):
    """A state after two steps."""
    state = new_state()
    for seed in range(2):
        state, _ = train_step(state, batch_of(seed))
    return state


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, x in expected.items():
        assert actual[name].dtype == x.dtype, name
        np.testing.assert_array_equal(actual[name], x, err_msg=name)


def test_a_restored_state_is_the_same_and_goes_on_the_same(
    trained, new_state, train_step, batch_of, leaves, writer, tmp_path, compilations
):
    writer.save(trained, {"step": 2})
    writer.wait()
    restored = restore_state(tmp_path, new_state(seed=5))
    assert_same(leaves(restored), leaves(trained))
    assert read_facts(tmp_path) == {"step": 2}

    with compilations() as compiled:
        after = [train_step(state, batch_of(2))[0] for state in (trained, restored)]
    assert not compiled
    assert_same(leaves(after[1]), leaves(after[0]))


def test_training_goes_on_while_a_checkpoint_is_written(
    trained, new_state, train_step, batch_of, leaves, writer, tmp_path
):
    expected = leaves(trained)
    writer.save(trained, {"step": 2})
    for seed in range(20):  # Each donates the memory that the checkpoint was taken from.
        trained, _ = train_step(trained, batch_of(seed))
    writer.wait()
    assert_same(leaves(restore_state(tmp_path, new_state())), expected)


def test_the_newest_complete_checkpoint_counts(trained, train_step, batch_of, writer, new_state, tmp_path):
    for step in (2, 3):
        writer.save(trained, {"step": step})
        trained, _ = train_step(trained, batch_of())
    writer.wait()
    assert [path.name for path in (tmp_path / "last").iterdir()] == ["0002-step-3"]

    # What a process that was killed while it wrote leaves behind.
    half = tmp_path / "last" / "0003-step-4.orbax-checkpoint-tmp"
    half.mkdir()
    (half / "manifest.ocdbt").write_bytes(b"half")
    assert newest_checkpoint(tmp_path, "last") == tmp_path / "last" / "0002-step-3"
    assert int(restore_state(tmp_path, new_state()).step) == 3
    writer.save(trained, {"step": 4})
    writer.wait()
    assert [path.name for path in (tmp_path / "last").iterdir()] == ["0003-step-4"]


def test_an_earlier_step_can_be_the_newest(trained, writer, tmp_path):
    for step in (50, 40, 40):  # A best state found again after a resume.
        writer.save(trained, {"step": step})
    writer.wait()
    newest = newest_checkpoint(tmp_path, "last")
    assert newest is not None and newest.name == "0003-step-40"


def test_checkpoints_are_ordered_by_number(trained, writer, tmp_path):
    for name in ("9999-step-7", "10000-step-3"):  # by name, the first would be the newer one
        (tmp_path / "last" / name).mkdir(parents=True)
    assert newest_checkpoint(tmp_path, "last").name == "10000-step-3"
    writer.save(trained, {"step": 8})
    writer.wait()
    assert newest_checkpoint(tmp_path, "last").name == "10001-step-8"


def test_any_types_of_arrays_and_optimizers(leaves, writer, tmp_path, net, batch_of):
    optimizer = optax.chain(optax.clip(1.0), optax.adam(0.1, mu_dtype=jnp.bfloat16), optax.trace(0.9, nesterov=True))
    model = net(norm=False, frozen=("encoder",))
    state = create_state(model, optimizer, jax.random.key(3), batch_of()["image"])
    writer.save(state, {"step": 0})
    writer.wait()
    blank = jax.tree.map(lambda x: x if x.dtype == state.key.dtype else jnp.zeros_like(x), state)
    assert_same(leaves(restore_state(tmp_path, blank)), leaves(state))


def test_two_are_kept_and_there_are_never_three(trained, tmp_path, monkeypatch):
    writer = CheckpointWriter(tmp_path, "last", keep=2)
    counts = []
    write = ocp.AsyncCheckpointer.save

    def save(*args, **options):
        counts.append(len(list((tmp_path / "last").iterdir())))
        return write(*args, **options)

    monkeypatch.setattr(ocp.AsyncCheckpointer, "save", save)
    for step in (1, 2, 3, 4):
        writer.save(trained, {"step": step})
    writer.close()
    assert sorted(path.name for path in (tmp_path / "last").iterdir()) == ["0003-step-3", "0004-step-4"]
    assert counts == [0, 1, 1, 1]


def test_every_flipped_bit_is_found(trained, leaves, new_state, writer, tmp_path):
    writer.save(trained, {"step": 2, "score": 0.5})
    writer.wait()
    newest = newest_checkpoint(tmp_path, "last")
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    assert len(files) > 4
    expected = leaves(trained)
    rng = np.random.default_rng(0)
    found = 0
    for path in files:
        whole = path.read_bytes()
        for position in rng.integers(0, len(whole), 4):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << int(rng.integers(8))
            path.write_bytes(bytes(damaged))
            try:
                # Some bytes say nothing about the values, such as the time when the checkpoint was made.
                assert_same(leaves(restore_state(tmp_path, new_state())), expected)
                assert read_facts(tmp_path) == {"step": 2, "score": 0.5}
            except ValueError as error:
                assert "cannot be read; it is damaged" in str(error)
                found += 1
        path.write_bytes(whole)
    assert found >= 3 * len(files)
    assert_same(leaves(restore_state(tmp_path, new_state())), expected)


def test_a_checkpoint_without_checksums_is_read(trained, leaves, new_state, writer, tmp_path):
    writer.save(trained, {"step": 2})
    writer.wait()
    (newest_checkpoint(tmp_path, "last") / "checksums.json").unlink()  # as older versions wrote it
    assert_same(leaves(restore_state(tmp_path, new_state())), leaves(trained))


def test_a_damaged_checkpoint_falls_back_to_the_one_before(trained, new_state, tmp_path, caplog):
    writer = CheckpointWriter(tmp_path, "last", keep=2)
    for step in (3, 4):
        writer.save(trained.replace(step=jnp.int32(step)), {"step": step})
    writer.close()
    newest = newest_checkpoint(tmp_path, "last")
    largest = max(newest.rglob("d/*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    assert int(restore_state(tmp_path, new_state()).step) == 3
    assert "0002-step-4 cannot be read" in caplog.text and "instead" in caplog.text
    assert "0001-step-3" in caplog.text
    assert read_facts(tmp_path) == {"step": 3}
    assert load_variables(tmp_path, "last")["params"].keys() == trained.params.keys()
    assert newest_checkpoint(tmp_path, "last") == newest  # Reading changes nothing.
    for path in (tmp_path / "last").iterdir():
        (path / "checksums.json").write_text("{")
    with pytest.raises(ValueError, match="0002-step-4 cannot be read"):  # The newest is the one to mend.
        restore_state(tmp_path, new_state())


def test_another_model_or_optimizer_is_one_error(trained, writer, tmp_path):
    writer.save(trained, {"step": 2})
    writer.wait()

    narrow = jax.tree.map(lambda x: x[..., :2] if x.shape[-1] == 3 else x, trained.params)
    with pytest.raises(ValueError, match="belongs to another model") as error:
        restore_state(tmp_path, trained.replace(params=narrow))
    assert "params/encoder/kernel: (3, 3, 2, 2) float32 expected, (3, 3, 2, 3) float32 in the" in str(error.value)
    extra = {f"layer{i}": jnp.zeros(1) for i in range(12)}
    with pytest.raises(ValueError, match=r"12 arrays differ(.|\n)*layer0: missing in the checkpoint(.|\n)*and 4 more"):
        restore_state(tmp_path, trained.replace(params=trained.params | extra))
    with pytest.raises(ValueError, match=r"another optimizer(.|\n)*/0/count: only in the checkpoint"):
        restore_state(tmp_path, trained.replace(opt_state=optax.sgd(0.1, momentum=0.9).init(trained.params)))
    with pytest.raises(ValueError, match="ema/head/bias: only in the checkpoint"):
        restore_state(tmp_path, trained.replace(ema=None))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), trained.params)
    with pytest.raises(ValueError, match="bfloat16 expected"):
        restore_state(tmp_path, trained.replace(params=half))


def test_variables_are_loaded_without_an_optimizer(trained, leaves, writer, tmp_path):
    writer.save(trained, {"step": 2})
    writer.wait()
    variables = load_variables(tmp_path, "last")
    assert_same(leaves(variables), leaves(trained.ema_variables))
    assert not np.allclose(variables["params"]["head"]["kernel"], trained.params["head"]["kernel"])
    assert all(isinstance(x, jax.Array) and not x.committed for x in jax.tree.leaves(variables))
    with pytest.raises(FileNotFoundError, match=r"no complete 'best' checkpoint.*there is which='last'"):
        load_variables(tmp_path)


def test_no_checkpoint_is_an_error(tmp_path, new_state):
    for directory in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=r"no complete 'last' checkpoint in"):
            restore_state(directory, new_state())


def test_a_damaged_checkpoint_is_one_error(trained, writer, new_state, tmp_path):
    writer.save(trained, {"step": 2})
    writer.wait()
    newest = newest_checkpoint(tmp_path, "last")
    assert newest is not None
    (newest / "_METADATA").write_text("{")
    with pytest.raises(ValueError, match="0001-step-2 cannot be read; it is damaged"):
        restore_state(tmp_path, new_state())


def test_a_checkpoint_that_does_not_fit_is_not_begun(trained, leaves, writer, new_state, tmp_path, monkeypatch):
    writer.save(trained, {"step": 2})
    writer.wait()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 0, 100))  # type: ignore
        with pytest.raises(OSError, match=r"disk full.*0\.0 MB free.*The previous one is complete: 0001-step-2"):
            writer.save(trained, {"step": 3})
    assert_same(leaves(restore_state(tmp_path, new_state())), leaves(trained))
    writer.save(trained, {"step": 4})  # There is room again.
    writer.wait()
    assert read_facts(tmp_path) == {"step": 4}


def test_what_follows_from_a_failed_write_is_not_printed(tmp_path, monkeypatch):
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)
    CheckpointWriter(tmp_path, "last").close()
    # Tensorstore's threads raise the first for every array that they complete after the write was given up.
    errors = [types.SimpleNamespace(exc_value=RuntimeError(text)) for text in ("Event loop is closed", "another")]
    for error in errors:
        sys.unraisablehook(error)
    assert reported == errors[1:]


# A limit on file sizes stands in for a disk that fills up while a checkpoint is written. In a process of its own,
# because tensorstore's threads report what failed as unraisable exceptions, at any time.
DISK_FILLS_UP = """
import resource, sys
import jax, jax.numpy as jnp, optax
from densezoo.train import TrainState, load_variables
from densezoo.train.checkpoint import CheckpointWriter

def state(value):
    params = {name: jnp.full((3,), value) for name in "abcdef"}
    return TrainState(jnp.int32(0), params, {}, {}, None, jax.random.key(0), None, optax.sgd(0.1))

writer = CheckpointWriter(sys.argv[1], "last")
writer.save(state(1.0), {"step": 1})
writer.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))
try:
    writer.save(state(2.0), {"step": 2})
    writer.wait()
except OSError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert load_variables(sys.argv[1], "last")["params"]["a"].tolist() == [1.0, 1.0, 1.0]
writer.save(state(3.0), {"step": 3})  # There is room again.
writer.wait()
assert load_variables(sys.argv[1], "last")["params"]["a"].tolist() == [3.0, 3.0, 3.0]
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
def test_a_disk_that_fills_up_leaves_the_checkpoint_before(tmp_path):
    command = [sys.executable, "-c", DISK_FILLS_UP, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "could not write a checkpoint" in done.stdout and "Traceback" not in done.stderr
    assert "The previous one is complete: 0001-step-1" in done.stdout
    assert [path.name for path in (tmp_path / "last").iterdir()] == ["0002-step-3"]  # Nothing is left of the failure.
