"""NRRD files written slice by slice: the same header and voxels as ITK's, in one gzip member."""

import gzip
import zlib

import numpy as np
import pytest
import SimpleITK as sitk

from LiverFibrosisStagingLib.imaging.nrrd_file import NrrdWriter
from LiverFibrosisStagingLib.imaging.organs import segment_metadata, write_labels

ROW, COLUMN = 3, 5


def grid_of(shape, direction=None):
    grid = sitk.Image([int(n) for n in shape[::-1]], sitk.sitkUInt8)
    grid.SetSpacing((0.703125, 0.7, 2.5000001))
    grid.SetOrigin((-0.0, -200.3, 1 / 3))
    if direction is not None:
        grid.SetDirection(direction)
    return grid


def turned(x, y, z):
    transform = sitk.Euler3DTransform()
    transform.SetRotation(x, y, z)
    return transform.GetMatrix()


def written(path, grid, values, slices):
    """Of a whole array, the voxels of some slices, from ROW and COLUMN on."""
    with NrrdWriter(path, grid, values.dtype.type) as file:
        for number in slices:
            file.write(number, values[number, ROW:, COLUMN:], ROW, COLUMN)
    return path


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
@pytest.mark.parametrize(
    "direction", [None, (-1, 0, 0, 0, 0, 1, 0, 1, 0), turned(0.1, -0.2, 0.3)], ids=str
)
def test_header_and_voxels_are_those_of_itk(dtype, direction, tmp_path):
    rng = np.random.default_rng(2)
    values = np.zeros((9, 40, 70), dtype)
    values[2:7, 10:30, 20:50] = rng.integers(1, 200, (5, 20, 30))
    values[4, 15:18] = 0
    values[3, 12, ::7] = 3
    values[6] = 0  # a slice that is written, and empty
    grid = grid_of(values.shape, direction)
    image = sitk.GetImageFromArray(values)
    image.CopyInformation(grid)
    sitk.WriteImage(image, str(tmp_path / "itk.nrrd"), useCompression=True)
    values[:, :ROW], values[:, :, :COLUMN] = 0, 0

    path = written(tmp_path / "ours.nrrd", grid, values, range(2, 8))

    header, data = path.read_bytes().split(b"\n\n", 1)
    assert header == (tmp_path / "itk.nrrd").read_bytes().split(b"\n\n", 1)[0]
    member = zlib.decompressobj(31)
    assert member.decompress(data) == values.tobytes()
    assert member.eof and not member.unused_data
    read = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(sitk.GetArrayViewFromImage(read), values)
    assert read.GetSpacing() == pytest.approx(grid.GetSpacing(), rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_long_rows_and_runs(dtype, tmp_path):
    """Rows longer than a block of 64 KB, runs of zeros longer than 1 MB, and no voxel at all."""
    values = np.zeros((5, 20, 90_000), dtype)
    values[2, 4, 1000:80_000] = np.random.default_rng(5).integers(1, 255, 79_000)
    for number, slices in enumerate(((2,), range(5), ())):
        path = written(tmp_path / f"{number}.nrrd", grid_of(values.shape), values, slices)
        data = gzip.decompress(path.read_bytes().split(b"\n\n", 1)[1])
        assert data == (values if slices else 0 * values).tobytes()
    empty = path.stat().st_size
    assert empty < 60_000


def test_a_failure_in_between_is_passed_on(tmp_path):
    values = np.ones((4, 10, 10), np.uint8)
    file = NrrdWriter(tmp_path / "a.nrrd", grid_of(values.shape), np.uint8)
    with pytest.raises(OSError, match="No space"), file:
        file.write(0, values[0], 0, 0)
        raise OSError(28, "No space left on device")
    assert file._file.closed


def test_segments_are_described_as_by_itk(tmp_path):
    """The same header as `write_labels`, from the labels in their box."""
    labels = np.zeros((6, 30, 40), np.uint8)
    labels[2:4, 10:20, 8:30] = 1
    labels[3, 22:25, 30:33] = 2
    grid = grid_of(labels.shape)
    image = sitk.GetImageFromArray(labels)
    image.CopyInformation(grid)
    write_labels(image, tmp_path / "itk.seg.nrrd")
    metadata = segment_metadata(grid.GetSize(), labels[2:4, 10:25])
    with NrrdWriter(tmp_path / "ours.seg.nrrd", grid, np.uint8, metadata) as file:
        for number in (2, 3):
            file.write(number, labels[number, 10:25], 10, 0)
    headers = [
        (tmp_path / name).read_bytes().split(b"\n\n", 1)[0]
        for name in ("itk.seg.nrrd", "ours.seg.nrrd")
    ]
    assert headers[0] == headers[1] and b"Segment1_ID:=spleen" in headers[0]
    read = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "ours.seg.nrrd")))
    np.testing.assert_array_equal(read, labels)
