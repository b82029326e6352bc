import subprocess
import sys

import pytest
from matplotlib.figure import Figure

from densezoo import viz


def drawn():
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([1, 2])
    return figure


@pytest.mark.parametrize(
    "name, start", [("a.png", b"\x89PNG"), ("a.pdf", b"%PDF"), ("a.svg", b"<?xml"), ("A.PNG", b"\x89PNG")]
)
def test_formats(tmp_path, name, start):
    figure = drawn()
    path = viz.save(figure, tmp_path / "new" / "folder" / name, dpi=50)
    assert path == tmp_path / "new" / "folder" / name
    assert path.read_bytes().startswith(start)
    assert [p.name for p in path.parent.iterdir()] == [name]
    assert not figure.axes


def test_the_same_figure_is_the_same_file(tmp_path):
    for name in ("a.png", "a.pdf"):
        first = viz.save(drawn(), tmp_path / name).read_bytes()
        assert b"CreationDate" not in first and b"Software" not in first
        assert viz.save(drawn(), tmp_path / name).read_bytes() == first


def test_a_failure_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_text("before")

    def fail(self, file, **options):
        with open(file, "w") as half:
            half.write("half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        viz.save(drawn(), path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_unknown_ending(tmp_path):
    for name in ("a", "a.xyz"):
        with pytest.raises(ValueError, match=r"expected one of: .*png"):
            viz.save(drawn(), tmp_path / name)


def test_matplotlib_stays_out_of_densezoo_and_pyplot_out_of_viz():
    program = (
        "import sys, densezoo; assert 'matplotlib' not in sys.modules;"
        "from densezoo import viz; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
