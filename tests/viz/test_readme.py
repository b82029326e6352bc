import pytest

import densezoo as dz
from densezoo.viz.readme import Arguments, main, with_tables, zoo_tables

TEXT = "# Title\n\n<!-- zoo:begin -->\nold\n<!-- zoo:end -->\n\nThe end."


def test_tables_say_what_the_registry_says():
    tables = zoo_tables()
    for blueprint in dz.blueprints():
        line = next(line for line in tables.splitlines() if line.startswith(f"| `{blueprint.name}` |"))
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        assert cells[1:4] == [blueprint.description, blueprint.skip_strategy, blueprint.excels_at]
        assert cells[-1] == (f"`{blueprint.encoder}`" if blueprint.encoder else "none")
    assert "[Ronneberger et al. 2015](https://arxiv.org/abs/1505.04597)" in tables
    assert "; [Kirillov et al. 2019](https://arxiv.org/abs/1901.02446)" in tables
    assert all(tables.count(f"`{name}`") >= 1 for name in dz.list_encoders())
    assert tables.index("`resnet18`") < tables.index("`resnet101`")


def test_text_around_the_tables_stays():
    text = with_tables(TEXT)
    assert text.startswith("# Title\n\n<!-- zoo:begin -->\n| family |") and text.endswith(
        "<!-- zoo:end -->\n\nThe end.\n"
    )
    assert "old" not in text
    assert with_tables(text) == text


@pytest.mark.parametrize("text", ["", TEXT.replace("<!-- zoo:end -->", ""), TEXT + "\n<!-- zoo:begin -->"])
def test_markers_are_needed(text):
    with pytest.raises(ValueError, match="<!-- zoo:begin -->"):
        with_tables(text)


def test_write_and_check(tmp_path, capsys):
    file = tmp_path / "README.md"
    file.write_text(TEXT)
    assert main(Arguments(file, check=True)) == 1
    assert "out of date" in capsys.readouterr().err
    assert file.read_text() == TEXT
    assert main(Arguments(file)) == 0
    assert main(Arguments(file, check=True)) == 0
    assert list(tmp_path.iterdir()) == [file]
    assert main(Arguments(tmp_path / "none.md")) == 1
    file.write_text("nothing")
    assert main(Arguments(file)) == 1
    assert "expected a line" in capsys.readouterr().err
