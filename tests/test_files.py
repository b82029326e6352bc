"""Files are replaced atomically."""

import errno
import os

import pytest

from densezoo.files import replace


def half(temporary):
    temporary.write_text("ha")
    raise OSError("full")


def test_a_whole_file_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "deeper" / "a.txt"
    assert replace(path, lambda temporary: temporary.write_text("one")) == path
    with pytest.raises(OSError, match="full"):
        replace(path, half)
    assert path.read_text() == "one" and list(path.parent.iterdir()) == [path]


def test_permissions_and_links_stay_and_long_names_work(tmp_path):
    path = tmp_path / ("long" * 60 + ".txt")
    path.write_text("old")
    path.chmod(0o640)
    link = tmp_path / "latest.txt"
    link.symlink_to(path)

    def private(temporary):
        temporary.write_text("new")
        temporary.chmod(0o600)

    assert replace(link, private) == link
    assert link.is_symlink() and path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_new_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "usual").touch()

    def private(temporary):
        temporary.touch()
        os.chmod(temporary, 0o600)

    replace(tmp_path / "new", private)
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "usual").stat().st_mode


class NotAnOSError(Exception):
    pass


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        NotAnOSError("I/O error: No space left on device (os error 28)"),  # as safetensors says it
    ],
)
def test_a_full_disk_is_one_error_that_names_the_file(tmp_path, error):
    def write(temporary):
        temporary.write_text("half")
        raise error

    with pytest.raises(OSError, match=r"No space left on device: .*model\.safetensors"):
        replace(tmp_path / "model.safetensors", write)
    assert list(tmp_path.iterdir()) == []
