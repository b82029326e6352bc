"""Windows of TIFF files are those of the whole picture."""

import numpy as np
import pytest
import tifffile

from densezoo.data import open_tiff

GEOREFERENCE = [
    (33550, "d", 3, (0.5, 0.5, 0.0), True),
    (33922, "d", 6, (0.0, 0.0, 0.0, 100.0, 200.0, 0.0), True),
    (34737, "s", 0, "WGS 84|", True),
]
PIXELS = np.random.default_rng(0).integers(0, 2**16, (70, 53, 3), dtype=np.uint16)


@pytest.mark.parametrize(
    "layout",
    [{"rowsperstrip": 9}, {"tile": (16, 32)}, {"tile": (16, 32), "compression": "zlib", "predictor": True}],
    ids=["strips", "tiles", "compressed"],
)
def test_windows(tmp_path, layout):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PIXELS, photometric="rgb", extratags=GEOREFERENCE, **layout)
    picture = open_tiff(path)
    assert (picture.shape, picture.dtype) == (PIXELS.shape, PIXELS.dtype)
    for rows, columns in [((0, 70), (0, 53)), ((8, 10), (31, 33)), ((60, 99), (50, 99)), ((5, 5), (0, 9))]:
        window = (slice(*rows), slice(*columns))
        np.testing.assert_array_equal(picture[window], PIXELS[window])
    mask = picture.create_like(tmp_path / "mask.tif", np.uint8)
    mask[8:20, 3:] = 7
    mask.flush()
    picture.close()
    with tifffile.TiffFile(tmp_path / "mask.tif") as written:
        np.testing.assert_array_equal(written.asarray(), 7 * np.pad(np.ones((12, 50)), ((8, 50), (3, 0))))
        for code, _, _, value, _ in GEOREFERENCE:
            assert written.pages[0].tags[code].value == value


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "palette.tif"
    tifffile.imwrite(
        path, PIXELS[..., 0].astype(np.uint8), photometric="palette", colormap=np.zeros((3, 256), np.uint16)
    )
    with pytest.raises(ValueError, match="only grey and RGB pictures"):
        open_tiff(path)
    tifffile.imwrite(path, PIXELS, photometric="rgb", rowsperstrip=9)
    path.write_bytes(path.read_bytes()[: PIXELS.nbytes // 2])
    with open_tiff(path) as picture, pytest.raises(ValueError, match=r"palette\.tif: cannot be read .*truncated"):
        picture[60:70, :]
    path.write_bytes(b"II*\0" + bytes(9))
    with pytest.raises(ValueError, match=r"palette\.tif: cannot be read .* damaged TIFF"):
        open_tiff(path)
