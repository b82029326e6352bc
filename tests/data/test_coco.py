"""Pictures with objects, from annotation files and from instance maps."""

import copy
import json

import numpy as np
import pytest
from PIL import Image

from densezoo.data import CocoDetection, CocoPanoptic, InstanceFolder, eval_batches

HEIGHT, WIDTH = 10, 12
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools


def annotation(number, image=1, category=5, box=(2, 3, 4, 5), **others):
    x, y, width, height = box
    square = [x, y, x + width, y, x + width, y + height, x, y + height]
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": list(box),
        "segmentation": [square],
        "iscrowd": 0,
        **others,
    }


@pytest.fixture
def dataset():
    return {
        "images": [{"id": number, "file_name": f"{number}.png", "height": HEIGHT, "width": WIDTH} for number in (4, 1)],
        "categories": [{"id": 9, "name": "dog"}, {"id": 5, "name": "cat"}],
        "annotations": [annotation(1), annotation(2, category=9, box=(3, 4, 2, 2))],
    }


@pytest.fixture
def folder(tmp_path, dataset):
    (tmp_path / "images").mkdir()
    for record in dataset["images"]:
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), record["id"], np.uint8)).save(
            tmp_path / "images" / record["file_name"]
        )

    def write(changed=None):
        (tmp_path / "annotations.json").write_text(json.dumps(dataset if changed is None else changed))
        return tmp_path

    return write


def test_items(folder):
    source = CocoDetection(folder())
    assert source.class_names == ("cat", "dog") and source.category_ids == (5, 9) and source.names == ("1.png", "4.png")
    first, second = source[0], source[1]
    assert first["image"].shape == (HEIGHT, WIDTH, 3) and first["image_id"] == 1
    np.testing.assert_array_equal(first["boxes"], [[2, 3, 6, 8], [3, 4, 5, 6]])
    np.testing.assert_array_equal(first["labels"], [0, 1])
    # The smaller object is on top of the larger one.
    expected = np.zeros((HEIGHT, WIDTH), np.int32)
    expected[3:8, 2:6] = 1
    expected[4:6, 3:5] = 2
    np.testing.assert_array_equal(first["instances"], expected)
    np.testing.assert_array_equal(second["labels"], [-1, -1])
    assert not second["boxes"].any() and not second["instances"].any()
    source.check()


def test_crowds_are_no_objects(folder, dataset):
    runs = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH]}
    dataset["annotations"].append(annotation(3, iscrowd=1, segmentation=runs))
    source = CocoDetection(folder())
    first, second = source[0], source[1]
    assert (first["labels"] >= 0).sum() == 2
    assert len(source.dataset["annotations"]) == 3
    np.testing.assert_array_equal(first["boxes_crowd"], [[2, 3, 6, 8]])
    assert first["labels_crowd"].tolist() == [0] and second["labels_crowd"].tolist() == [-1]
    assert (first["instances_crowd"] == 1).all() and not second["instances_crowd"].any()


def test_areas_are_those_of_the_file_and_follow_the_size(folder, dataset):
    dataset["annotations"][0]["area"] = 17.5
    source = CocoDetection(folder())
    np.testing.assert_array_equal(source[0]["areas"], [17.5, np.nan])
    batches = eval_batches(source, batch_size=2, multiple=1, resize=(2 * HEIGHT, 3 * WIDTH), fields=("boxes", "areas"))
    (batch,) = batches
    np.testing.assert_array_equal(batch["areas"], [[105, np.nan], [0, 0]])
    np.testing.assert_array_equal(batch["boxes"][0, 0], [6, 6, 18, 16])


def test_run_lengths_equal_pycocotools(folder, dataset):
    from pycocotools import mask as reference

    rng = np.random.default_rng(0)
    for density in (0.02, 0.5, 1.0):
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[rng.random(mask.shape) < density] = 1
        mask[0, 0] = 1
        encoded = reference.encode(np.asfortranarray(mask))
        lengths = np.diff(np.flatnonzero(np.diff(np.r_[2, mask.ravel(order="F"), 2])))
        lengths = [0, *lengths.tolist()]  # the first pixel is inside
        for counts in (encoded["counts"].decode(), lengths):
            runs = {"size": [HEIGHT, WIDTH], "counts": counts}
            dataset["annotations"] = [annotation(1, box=(0, 0, WIDTH, HEIGHT), segmentation=runs)]
            np.testing.assert_array_equal(CocoDetection(folder())[0]["instances"], mask)


def test_polygons_equal_pycocotools(folder, dataset):
    from pycocotools import mask as reference

    polygons = [[1.2, 1.7, 7.3, 2.1, 4.4, 8.8], [8.0, 0.0, 11.5, 0.2, 11.0, 3.0, 8.1, 2.5]]
    dataset["annotations"] = [annotation(1, box=(0, 0, WIDTH, HEIGHT), segmentation=polygons)]
    expected = reference.decode(reference.merge(reference.frPyObjects(polygons, HEIGHT, WIDTH)))
    np.testing.assert_array_equal(CocoDetection(folder())[0]["instances"], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["annotations"][0].update(image_id=77), "annotation 1: there is no image 77"),
        (lambda d: d["annotations"][1].update(category_id=6), "annotation 2: there is no category 6"),
        (lambda d: d["annotations"][1].update(id=1), "annotation id 1 occurs more than once"),
        (lambda d: d["images"][1].update(id=4), "image id 4 occurs more than once"),
        (lambda d: d["images"][0].update(file_name="no.png"), "image 4: .*no.png is missing"),
        (lambda d: d["images"][0].update(file_name="../x.png"), "image 4: file_name is '../x.png'"),
        (lambda d: d["images"][0].update(height=11), "image 4: .* is 10x12 .* says 11x12"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2, float("nan"), 3]), "annotation 1: the box .*nan"),
        (lambda d: d["annotations"][0].update(bbox=[20, 2, 3, 3]), "annotation 1: the box .* outside image 1"),
        (lambda d: d["annotations"][0].update(image_id=[1]), r"annotation 1: there is no image \[1\]"),
        (lambda d: d["annotations"][0].update(iscrowd="0"), "annotation 1: iscrowd is '0'; expected 0 or 1"),
        (lambda d: d["categories"][0].update(name="cat"), r"categories \[9, 5\] have the same name, 'cat'"),
        (lambda d: d["images"][0].update(file_name="1.png"), r"images \[1, 4\] have the same file_name, '1.png'"),
        (lambda d: d["annotations"][0].update(area=-1), "annotation 1: the area -1; expected 0 or more"),
        (lambda d: d["annotations"][0].update(iscrowd=1, bbox=[1, 2]), r"annotation 1: the box \[1, 2\]"),
        (lambda d: d["annotations"][0].pop("segmentation"), "annotation 1 has no segmentation: pass masks=False"),
        (lambda d: d.pop("categories"), "'categories' is missing"),
        (lambda d: d["categories"].clear(), "lists no categories"),
    ],
)
def test_a_wrong_file_is_named_with_the_id(folder, dataset, change, message):
    changed = copy.deepcopy(dataset)
    change(changed)
    with pytest.raises(ValueError, match=message) as error:
        CocoDetection(folder(changed))
    assert "annotations.json" in str(error.value)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 1, 2, 2]], "3 points or more"),
        ([[1, 1, 2, 2, float("inf"), 3]], "finite"),
        ([[1, 1, 2, 2, 1e12, 3]], "far beyond"),
        ({"size": [HEIGHT, WIDTH], "counts": [5, 2]}, "add up to 7 pixels; expected 10 x 12"),
        ({"size": [WIDTH, HEIGHT], "counts": [120]}, r"expected \[10, 12\]"),
        ({"size": [HEIGHT, WIDTH], "counts": [-5, 125]}, "at least 0"),
        ({"size": [HEIGHT, WIDTH], "counts": "\x05"}, "is invalid in run lengths"),
        ({"size": [HEIGHT, WIDTH], "counts": "P"}, "middle of a number"),
        ("circle", "expected polygons"),
    ],
)
def test_a_wrong_segmentation_is_named(folder, dataset, segmentation, message):
    dataset["annotations"][0]["segmentation"] = segmentation
    source = CocoDetection(folder())
    for read in (lambda: source[0], source.check):
        with pytest.raises(ValueError, match=f"annotation 1: .*{message}"):
            read()


def test_boxes_without_area_are_named_and_left_out(folder, dataset):
    dataset["annotations"].append(annotation(3, box=(1, 1, 0, 4)))
    with pytest.warns(UserWarning, match="1 boxes without area were left out: annotations 3"):
        source = CocoDetection(folder())
    assert (source[0]["labels"] >= 0).sum() == 2


def test_boxes_over_the_border_are_named_and_cut(folder, dataset):
    dataset["annotations"] = [annotation(3, box=(8, 8, 7, 7))]
    with pytest.warns(UserWarning, match="cut off at the picture's border: annotations 3"):
        source = CocoDetection(folder())
    np.testing.assert_array_equal(source[0]["boxes"], [[8, 8, 12, 10]])


def test_check_compares_boxes_and_masks(folder, dataset):
    dataset["annotations"][0]["bbox"] = [0, 0, 12, 10]
    with pytest.raises(ValueError, match=r"annotation 1: the box .* differs from its mask's, \[2, 3, 6, 8\]"):
        CocoDetection(folder()).check()


@pytest.mark.parametrize("kind", ["coco", "folder"])
def test_more_objects_than_rows(folder, tmp_path, kind):
    root = folder()
    (root / "instances").mkdir()
    for name in ("1", "4"):
        Image.fromarray(np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH) // 40).save(
            root / "instances" / f"{name}.png"
        )
    make = CocoDetection if kind == "coco" else InstanceFolder
    with pytest.raises(ValueError, match="has 2 objects, but max_objects is 1"):
        make(root, max_objects=1)
    assert make(root, max_objects=5)[0]["boxes"].shape == (5, 4)


def test_instance_folder(tmp_path):
    for name in ("images", "instances"):
        (tmp_path / name).mkdir()
    numbers = np.zeros((HEIGHT, WIDTH), np.uint16)
    numbers[1:3, 1:5] = 24001
    numbers[5:9, 2:4] = 26001
    numbers[0, 0] = 7  # of no category
    numbers[9, 9] = 31002
    for name, content in (("a", numbers), ("b", np.zeros_like(numbers))):
        Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(tmp_path / "images" / f"{name}.png")
        Image.fromarray(content).save(tmp_path / "instances" / f"{name}.png")

    source = InstanceFolder(tmp_path, class_names=("person", "car"), divisor=1000, categories={26: 1, 24: 0})
    item = source[0]
    np.testing.assert_array_equal(item["labels"], [0, 1])
    np.testing.assert_array_equal(item["boxes"], [[1, 1, 5, 3], [2, 5, 4, 9]])
    np.testing.assert_array_equal(item["instances"], (numbers == 24001) + 2 * (numbers == 26001))
    np.testing.assert_array_equal(source[1]["labels"], [-1, -1])

    plain = InstanceFolder(tmp_path)[0]
    np.testing.assert_array_equal(plain["labels"], [0, 0, 0, 0])
    with pytest.raises(ValueError, match="divisor"):
        InstanceFolder(tmp_path, class_names=("a", "b"))


@pytest.fixture
def panoptic(tmp_path):
    """A picture with a cat, a crowd of cats, sky and sea, and one without an annotation."""
    numbers = np.zeros((HEIGHT, WIDTH), int)
    numbers[:4], numbers[4:8, 2:5], numbers[8:], numbers[4:6, 8:] = 70000, 300, 2, 5
    colours = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], -1).astype(np.uint8)
    for name in ("images", "panoptic"):
        (tmp_path / name).mkdir()
    for number in (4, 1):
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), number, np.uint8)).save(tmp_path / "images" / f"{number}.png")
    Image.fromarray(colours).save(tmp_path / "panoptic" / "1.png")
    segments = [
        {"id": 70000, "category_id": 20, "area": 48},
        {"id": 300, "category_id": 3, "area": 12, "bbox": [2, 4, 3, 4]},
        {"id": 2, "category_id": 9},
        {"id": 5, "category_id": 3, "iscrowd": 1},
    ]
    things = [{"id": 3, "name": "cat", "isthing": 1}]
    stuff = [{"id": 20, "name": "sky", "isthing": 0}, {"id": 9, "name": "sea", "isthing": 0}]
    dataset = {
        "images": [{"id": number, "file_name": f"{number}.png", "height": HEIGHT, "width": WIDTH} for number in (4, 1)],
        "categories": stuff + things,
        "annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": segments}],
    }

    def write(change=lambda dataset: None):
        change(dataset)
        (tmp_path / "panoptic.json").write_text(json.dumps(dataset))
        return tmp_path

    return write


def test_panoptic_items(panoptic):
    with pytest.warns(UserWarning, match="1 images have no annotation: 4"):
        source = CocoPanoptic(panoptic())
    source.check()
    assert source.class_names == ("cat",) and source.stuff_names == ("sea", "sky") and source.stuff == (2, 3)
    first, second = source[0], source[1]
    np.testing.assert_array_equal(first["boxes"], [[2, 4, 5, 8]])
    assert first["labels"].tolist() == [0] and first["areas"].tolist() == [12]
    expected = np.zeros((HEIGHT, WIDTH), int)
    expected[:4], expected[4:8, 2:5], expected[8:], expected[4:6, 8:] = 3, 1, 2, 1
    np.testing.assert_array_equal(first["mask"], expected)
    expected[...] = 0
    expected[4:8, 2:5] = 1
    np.testing.assert_array_equal(first["instances"], expected)
    np.testing.assert_array_equal(first["boxes_crowd"], [[8, 4, 12, 6]])
    assert (first["instances_crowd"] == 1).sum() == 8
    assert not second["mask"].any() and second["labels"].tolist() == second["labels_crowd"].tolist() == [-1]


@pytest.mark.filterwarnings("ignore:.*have no annotation")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, s: d["annotations"][0].update(image_id=77), "of image 77, which the file does not list"),
        (lambda d, s: d["annotations"].append(d["annotations"][0]), "image 1 has more than one annotation"),
        (lambda d, s: d["annotations"][0].update(file_name="no.png"), "image 1: .*no.png is missing"),
        (lambda d, s: d["annotations"][0].pop("segments_info"), "image 1: segments_info is None"),
        (lambda d, s: d["categories"][0].pop("isthing"), r"categories \[20\] have no isthing"),
        (lambda d, s: d["categories"].pop(), "0 categories of things and 2 of stuff"),
        (lambda d, s: s[1].update(category_id=4), "image 1: segment 300: there is no category 4"),
        (lambda d, s: s[1].update(id=2), "image 1: the segment id 2 occurs more than once"),
        (lambda d, s: s[1].update(area="big"), "image 1: segment 300: the area 'big'"),
        (lambda d, s: s[1].update(bbox=[0, 0, 3, 4]), r"image 1, segment 300: the box .* its pixels, \[2, 4, 5, 8\]"),
        (lambda d, s: s.pop(), r"image 1: .*1.png has the segments \[5\]"),
        (lambda d, s: s.append({"id": 9, "category_id": 3}), r"image 1: .*1.png .* lacks \[9\]"),
    ],
)
def test_a_wrong_panoptic_file_is_named(panoptic, change, message):
    root = panoptic(lambda dataset: change(dataset, dataset["annotations"][0]["segments_info"]))
    with pytest.raises(ValueError, match=message) as error:
        CocoPanoptic(root).check()
    assert "panoptic.json" in str(error.value)
