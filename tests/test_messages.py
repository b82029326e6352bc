import pytest

import densezoo as dz
from densezoo.data import ImageMaskFolder
from densezoo.messages import as_flags, option, shortened


def test_long_lists_end_with_how_many_more_there_are():
    assert shortened(["a", "b"], limit=2) == "a; b"
    assert shortened(list("abcde"), "\n", 2) == "a\nb\nand 3 more"


def test_arguments_are_named_as_their_caller_knows_them():
    def names():
        return [
            option("labels", {(0, 0, 0): 0, (1, 2, 3): 1}),
            option("ignore_index", None),
            option("multilabel", True),
            option("value_range", (0, 4095)),
            option("labels", "{number: class}", typed="NUMBER:CLASS"),
            option("steps"),
        ]

    python = ["labels={(0, 0, 0): 0, (1, 2, 3): 1}", "ignore_index=None", "multilabel=True", "value_range=(0, 4095)"]
    assert names() == [*python, "labels={number: class}", "steps"]
    flags = {name: "--" + name.replace("_", "-") for name in ("labels", "ignore_index", "multilabel", "value_range")}
    with as_flags(flags):
        typed = ["--labels 0,0,0:0 1,2,3:1", "--ignore-index None", "--multilabel", "--value-range 0 4095"]
        assert names() == [*typed, "--labels NUMBER:CLASS", "steps"]
    assert names()[:4] == python


@pytest.mark.parametrize(
    ("wrong", "python", "flag"),
    [
        (lambda: dz.tasks.Segmentation(300), "ignore_index=255 is", "--ignore-index 255 is"),
        (lambda: dz.tasks.Segmentation(2, class_names=("a",)), "class_names needs", "--class-names needs"),
        (lambda: dz.train.Recipe(batch_size=0), "batch_size must", "--batch-size must"),
        (lambda: dz.Preprocessing(2, mean=(0.5,)), "mean and std need", "--mean and --std need"),
        (
            lambda: dz.create_model("segnet", "vgg11", upsample="nearest"),
            "argument 'upsample'",
            "argument '--upsample'",
        ),
        (lambda: dz.losses.named_loss("lovasz", label_smoothing=0.1), "label_smoothing was", "--label-smoothing was"),
        (lambda: ImageMaskFolder("none", channels=0), "channels=0; expected", "--channels 0; expected"),
    ],
)
def test_messages_name_the_flags_of_a_script(wrong, python, flag):
    with pytest.raises((ValueError, TypeError)) as error:
        wrong()
    assert python in str(error.value)
    name = flag.split("--")[1].split()[0].strip("'")
    flags = {each.replace("-", "_"): f"--{each}" for each in (name, "mean", "std")}
    with as_flags(flags), pytest.raises((ValueError, TypeError)) as error:
        wrong()
    assert flag in str(error.value)
