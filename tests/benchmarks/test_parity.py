"""The comparison with segmentation_models_pytorch: its records and tables; without torch."""

import json

import pytest

from benchmarks import parity

DOCUMENT = "\n".join(f"<!-- {part}:begin -->\nold\n<!-- {part}:end -->" for part in ("errors", "parameters"))
ROWS = [
    {"model": "unet", "encoder": "resnet18", "parameters": 14_300_000, "error": 1.5e-6},
    {"model": "unet", "encoder": "swin", "no_reference": "segmentation_models_pytorch cannot make it"},
    {"model": "pan", "encoder": "resnet18", "parameters": 11_400_000, "error": 2e-6},
    {"model": "pan", "encoder": "swin", "refused": "pan needs an encoder that can be dilated"},
]


@pytest.fixture
def arguments(tmp_path):
    (tmp_path / "zoo.md").write_text(DOCUMENT)
    return parity.Arguments(
        models=("unet", "pan"), encoders=("resnet18",), out=tmp_path / "parity.jsonl", docs=tmp_path / "zoo.md"
    )


def with_fields(arguments, **fields):
    return parity.dataclasses.replace(arguments, **fields)


def test_a_pair_that_is_there_is_not_compared_again(arguments, monkeypatch):
    compared = []

    def compare(model, encoder, size):
        compared.append((model, encoder))
        assert size == ((128, 160) if model == "pan" else (64, 96))
        if model == "pan" and len(compared) == 2:
            raise KeyboardInterrupt
        return {"parameters": 1, "error": 1e-6}

    monkeypatch.setattr(parity, "compare", compare)
    with pytest.raises(KeyboardInterrupt):
        parity.main(arguments)
    assert parity.main(arguments) == 0
    assert compared == [("unet", "resnet18"), ("pan", "resnet18"), ("pan", "resnet18")]
    assert [json.loads(line)["model"] for line in arguments.out.read_text().splitlines()] == ["unet", "pan"]


@pytest.mark.parametrize(("error", "code"), [(9e-5, 0), (1.1e-4, 1), (float("nan"), 1)])
def test_an_error_that_is_too_large_fails(arguments, monkeypatch, error, code):
    monkeypatch.setattr(parity, "compare", lambda *_: {"parameters": 1, "error": error})
    assert parity.main(arguments) == code


def test_the_report_has_every_pair_in_both_tables(arguments):
    arguments.out.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert parity.main(with_fields(arguments, report=True)) == 0
    text = arguments.docs.read_text()
    errors, parameters = text.split("<!-- errors:end -->")
    assert "old" not in text and "2 pairs, largest error 2.0e-06; 1 rejected, 1 without a reference." in errors
    assert "| encoder | unet | pan |" in errors
    assert "| resnet18 | 2e-06 | 2e-06 |" in errors and "| resnet18 | 14.3 | 11.4 |" in parameters
    assert "| swin | no reference | - |" in errors and "| swin | no reference | - |" in parameters


def test_names_that_are_not_there_stop_it_before_any_work(arguments):
    with pytest.raises(ValueError, match="unknown model 'unett'"):
        parity.main(with_fields(arguments, models=("unet", "unett")))
    with pytest.raises(ValueError, match="resnet81"):
        parity.main(with_fields(arguments, encoders=("resnet81",)))
    assert not arguments.out.exists()
