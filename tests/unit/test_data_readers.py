"""Image files against PIL, pydicom and nibabel."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from gradward.data import DataError, data_root
from gradward.data.readers import read_image

needs_data = pytest.mark.skipif(
    data_root() is None, reason="no sample data: set GRADWARD_DATA to run this on real images"
)
NAME = "Doe^Jane-0815"


def _folder(name: str) -> Path:
    root = data_root()
    assert root is not None
    return root / name


def _read(path: Path, **options: Any) -> NDArray[np.float32]:
    image = read_image(path, **options).numpy()
    assert image.dtype == np.float32 and image.min() >= 0 and image.max() <= 1
    return image


def _dicom(path: Path, pixels: NDArray[Any], **tags: Any) -> Path:
    """Write an uncompressed file with a patient in its header."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.PatientName = data.PatientID = NAME
    data.Rows, data.Columns = pixels.shape[-2:]
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = pixels.dtype.itemsize * 8
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    if pixels.ndim == 3:
        data.NumberOfFrames = len(pixels)
    for key, value in tags.items():
        setattr(data, key, value)
    data.PixelData = pixels.tobytes()
    data.save_as(path, enforce_file_format=True)
    return path


# A shape that any transposition, flip or turn would change.
RAMP = (np.arange(6, dtype=np.uint16)[:, None] * 40 + np.arange(4, dtype=np.uint16) * 5) * 10


def test_png_orientation_and_depth(tmp_path: Path) -> None:
    Image.fromarray((RAMP // 10).astype(np.uint8)).save(tmp_path / "a.png")
    np.testing.assert_allclose(_read(tmp_path / "a.png")[0], (RAMP // 10) / 255, atol=1e-6)
    Image.fromarray(RAMP * 30).save(tmp_path / "b.png")
    assert Image.open(tmp_path / "b.png").mode.startswith("I")
    np.testing.assert_allclose(_read(tmp_path / "b.png")[0], RAMP * 30 / 65535, atol=1e-6)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "LA", "1"])
def test_picture_modes(tmp_path: Path, mode: str) -> None:
    colour = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    picture = Image.fromarray(colour).convert(mode)
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    picture.save(path)
    grey = mode in ("LA", "1")
    truth = np.asarray(Image.open(path).convert("L" if grey else "RGB")) / 255
    truth = truth[None] if grey else truth.transpose(2, 0, 1)
    np.testing.assert_allclose(_read(path), truth, atol=1e-6)


def test_jpeg_is_turned_as_exif_says(tmp_path: Path) -> None:
    stored = np.zeros((16, 32), dtype=np.uint8)
    stored[:, 16:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned a quarter clockwise
    Image.fromarray(stored).save(tmp_path / "a.jpg", exif=exif, quality=95)
    shown = _read(tmp_path / "a.jpg")[0]
    assert shown.shape == (32, 16) and shown[:14].max() < 0.1 and shown[18:].min() > 0.9


def test_dicom_without_window_is_scaled_by_its_range_and_upright(tmp_path: Path) -> None:
    path = _dicom(tmp_path / "no-suffix", RAMP)
    np.testing.assert_allclose(_read(path)[0], RAMP / RAMP.max(), atol=1e-6)


def test_dicom_window_after_rescale_by_hand(tmp_path: Path) -> None:
    stored = np.array([[0, 100, 200, 300]], dtype=np.int16)
    tags = {"RescaleSlope": 2, "RescaleIntercept": -100, "WindowCenter": 200, "WindowWidth": 401}
    # Rescaled: -100, 100, 300, 500. LINEAR: (x - 199.5) / 400 + 0.5, clipped.
    truth = np.array([[0, 0.25125, 0.75125, 1]])
    path = _dicom(tmp_path / "a.dcm", stored, **tags)
    np.testing.assert_allclose(_read(path)[0], truth, atol=1e-6)
    path = _dicom(tmp_path / "b.dcm", stored, **tags, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_allclose(_read(path)[0], 1 - truth, atol=1e-6)
    path = _dicom(tmp_path / "c.dcm", stored, **tags, VOILUTFunction="LINEAR_EXACT")
    exact = np.clip((np.array([[-100, 100, 300, 500]]) - 200) / 401 + 0.5, 0, 1)
    np.testing.assert_allclose(_read(path)[0], exact, atol=1e-6)
    path = _dicom(tmp_path / "d.dcm", stored, **tags, VOILUTFunction="SIGMOID")
    sigmoid = 1 / (1 + np.exp(-4 * (np.array([[-100, 100, 300, 500]]) - 200) / 401))
    np.testing.assert_allclose(_read(path)[0], sigmoid, atol=1e-6)


def test_dicom_first_of_several_windows_and_bad_windows(tmp_path: Path) -> None:
    stored = np.array([[0, 100]], dtype=np.uint16)
    path = _dicom(tmp_path / "a.dcm", stored, WindowCenter=[100.5, 5], WindowWidth=[201, 2])
    np.testing.assert_allclose(_read(path)[0], [[0, 0.5]], atol=1e-6)
    path = _dicom(tmp_path / "b.dcm", stored, WindowCenter=50, WindowWidth=0)
    with pytest.raises(DataError, match="window that DICOM does not allow"):
        read_image(path)


def test_dicom_voi_lut_wins_over_the_window(tmp_path: Path) -> None:
    item = pydicom.Dataset()
    item.LUTDescriptor = [4, 10, 8]
    item.LUTData = [0, 50, 100, 255]
    stored = np.array([[0, 10, 11, 12, 13, 999]], dtype=np.uint16)
    item["LUTData"].VR = "US"
    item["LUTDescriptor"].VR = "US"
    path = _dicom(
        tmp_path / "a.dcm", stored, VOILUTSequence=Sequence([item]), WindowCenter=5, WindowWidth=5
    )
    truth = np.array([[0, 0, 50, 100, 255, 255]]) / 255
    np.testing.assert_allclose(_read(path)[0], truth, atol=1e-6)


def test_dicom_padding_does_not_set_the_scale(tmp_path: Path) -> None:
    stored = np.array([[-2000, 0, 50, 100]], dtype=np.int16)
    path = _dicom(tmp_path / "a.dcm", stored, PixelPaddingValue=-2000)
    np.testing.assert_allclose(_read(path)[0], [[0, 0, 0.5, 1]], atol=1e-6)


def test_dicom_frames(tmp_path: Path) -> None:
    frames = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]])
    path = _dicom(tmp_path / "a.dcm", frames)
    np.testing.assert_allclose(_read(path)[0], RAMP[::-1] / RAMP.max(), atol=1e-6)
    np.testing.assert_allclose(_read(path, index=2)[0], RAMP[:, ::-1] / RAMP.max(), atol=1e-6)
    with pytest.raises(DataError, match="has 3 frames, so there is no frame 3"):
        read_image(path, index=3)


def test_dicom_colour_and_palette(tmp_path: Path) -> None:
    colour = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    tags = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "Rows": 6, "Columns": 4}
    path = _dicom(
        tmp_path / "a.dcm", colour, **tags, PhotometricInterpretation="RGB", NumberOfFrames=1
    )
    np.testing.assert_allclose(_read(path), colour.transpose(2, 0, 1) / 255, atol=1e-6)
    path = _dicom(tmp_path / "b.dcm", RAMP, PhotometricInterpretation="PALETTE COLOR")
    with pytest.raises(DataError, match="photometric interpretation"):
        read_image(path)


def test_nifti_shown_as_a_radiologist_does(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).random((5, 6, 7)).astype(np.float32)
    volume[4, 5, 3], volume[0, 0, 0] = 9, -9  # right anterior corner of the middle slice
    low, high = np.percentile(volume, (1, 99))
    for flips in [(1, 1, 1), (-1, 1, 1), (1, -1, -1)]:
        stored = volume[:: flips[0], :: flips[1], :: flips[2]]
        path = tmp_path / "a.nii.gz"
        nibabel.save(nibabel.Nifti1Image(stored, np.diag([*flips, 1.0])), path)
        shown = _read(path)[0]
        assert shown.shape == (6, 5) and shown[0, 0] == 1
        truth = np.clip((volume[:, :, 3] - low) / (high - low), 0, 1)[::-1, ::-1].T
        np.testing.assert_allclose(shown, truth, atol=1e-5)
    assert not np.array_equal(_read(path, index=1), _read(path, index=2))
    with pytest.raises(DataError, match="has 7 slices, so there is no slice 7"):
        read_image(path, index=7)


def test_nifti_series_plane_and_odd_values(tmp_path: Path) -> None:
    series = np.random.default_rng(0).random((5, 6, 3, 2)).astype(np.float32)
    path = tmp_path / "a.nii"
    nibabel.save(nibabel.Nifti1Image(series, np.eye(4)), path)
    for volume in (0, 1):
        alone = tmp_path / "b.nii"
        nibabel.save(nibabel.Nifti1Image(series[..., volume], np.eye(4)), alone)
        np.testing.assert_array_equal(_read(path, volume=volume), _read(alone))
    with pytest.raises(DataError, match="no volume 2"):
        read_image(path, volume=2)
    nibabel.save(nibabel.Nifti1Image(np.full((5, 6), 3.0, np.float32), np.eye(4)), path)
    assert _read(path).shape == (1, 6, 5) and not _read(path).any()
    series[0, 0, 0, 0] = np.nan
    nibabel.save(nibabel.Nifti1Image(series, np.eye(4)), path)
    with pytest.raises(DataError, match="not finite"):
        read_image(path)


def _broken(folder: Path) -> list[Path]:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(
        folder / f"{NAME}.png"
    )
    nibabel.save(nibabel.Nifti1Image(np.ones((9, 9, 9)), np.eye(4)), folder / f"{NAME}.nii")
    nibabel.save(nibabel.Nifti1Image(np.ones((9, 9, 9)), np.eye(4)), folder / f"{NAME}.nii.gz")
    _dicom(folder / f"{NAME}.dcm", RAMP)
    Image.new("L", (64, 64), 9).save(folder / f"{NAME}.jpg")
    paths = sorted(folder.iterdir())
    for path in paths:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) - 45 if path.suffix == ".dcm" else -300])
    (folder / f"{NAME}.txt").write_text("no image")
    (folder / f"{NAME}-2.png").write_bytes(b"")
    return [*paths, folder / f"{NAME}.txt", folder / f"{NAME}-2.png", folder / f"{NAME}-3.png"]


def test_broken_files_are_refused_without_a_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    paths = _broken(tmp_path)
    assert len(paths) == 8
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in paths:
            with pytest.raises(DataError) as caught:
                read_image(path)
            assert NAME not in str(caught.value) and str(tmp_path) not in str(caught.value)
            assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert NAME not in caplog.text and str(tmp_path) not in caplog.text


def test_reading_is_silent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    _read(_dicom(tmp_path / "a.dcm", RAMP))
    assert not caplog.records
    assert not logging.getLogger("pydicom").disabled


@needs_data
@pytest.mark.parametrize(
    "name",
    [
        "CT_small",
        "MR_small",
        "MR_small_RLE",
        "MR_small_bigendian",
        "MR_small_implicit",
        "MR_small_jpeg_ls_lossless",
        "RG1_J2KI",
        "RG1_chest_pa_512_explicitLE",
        "explicit_VR-UN",
        "vlut_04",
    ],
)
def test_real_dicom_against_pydicom(name: str) -> None:
    path = _folder("dicom") / f"{name}.dcm"
    data = pydicom.dcmread(path)
    values = apply_modality_lut(data.pixel_array, data)
    if "VOILUTSequence" in data:
        truth = apply_voi_lut(values, data) / 65535.0
    elif "WindowCenter" in data:
        top = 2.0**data.BitsStored
        offset = top / 2 if data.PixelRepresentation else 0
        truth = (apply_voi_lut(values, data) + offset) / (top - 1)
    else:
        truth = (values - values.min()) / (values.max() - values.min())
    if data.PhotometricInterpretation == "MONOCHROME1":
        truth = 1 - truth
    np.testing.assert_allclose(_read(path)[0], truth, atol=1e-5)


@needs_data
def test_real_truncated_dicom_is_refused() -> None:
    with pytest.raises(DataError, match=r"^cannot be read as an image$"):
        read_image(_folder("dicom") / "MR_truncated.dcm")


@needs_data
def test_real_nifti() -> None:
    for name, slices in (("anatomical.nii", 25), ("example4d.nii.gz", 24)):
        path = _folder("nifti") / name
        image = nibabel.as_closest_canonical(nibabel.load(path))
        assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
        data = image.get_fdata().reshape(*image.shape[:3], -1)[..., 0]
        low, high = np.percentile(data, (1, 99))
        plane = data[::-1, ::-1, slices // 2].T
        truth = np.clip((plane - low) / (high - low), 0, 1)
        np.testing.assert_allclose(_read(path)[0], truth, atol=1e-4)
    second = _read(_folder("nifti") / "example4d.nii.gz", volume=1)
    assert not np.array_equal(second, _read(_folder("nifti") / "example4d.nii.gz"))
