"""DICOM files, written by pydicom."""

import io

import numpy as np
import pytest

from imgrec_jax.data.images import ImageFileError
from imgrec_jax.data.own.choice import read
from imgrec_jax.data.own.listing import Reading
from imgrec_jax.data.own.pictures import decode, describe
from imgrec_jax.data.sets.own_images import survey_images
from imgrec_jax.data.source import Request
from tests.data.own.make import write

pydicom = pytest.importorskip("pydicom")
VALUES = np.random.default_rng(0).integers(0, 4096, (16, 20)).astype(np.uint16)


def dicom(values=VALUES, kind="MONOCHROME2", bits=12, **tags):
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    found = Dataset()
    found.file_meta = meta
    found.SOPClassUID, found.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    found.Rows, found.Columns = values.shape[:2]
    found.SamplesPerPixel, found.PhotometricInterpretation = 3 if values.ndim == 3 else 1, kind
    if values.ndim == 3:
        found.PlanarConfiguration = 0
    found.BitsAllocated = 8 * values.itemsize
    found.BitsStored, found.HighBit, found.PixelRepresentation = bits, bits - 1, int(values.dtype.kind == "i")
    for name, value in tags.items():
        setattr(found, name, value)
    found.PixelData = values.tobytes()
    file = io.BytesIO()
    found.save_as(file, enforce_file_format=True)
    return file.getvalue()


def test_depth_and_the_range_of_the_stored_bits():
    data = dicom()
    assert describe(data, "x.dcm")[:4] == (16, 20, 1, 16)
    np.testing.assert_allclose(decode(data, "x.dcm", depth=16)[..., 0], VALUES / 4095, atol=1e-5)
    turned = decode(dicom(kind="MONOCHROME1"), "x.dcm", depth=16)
    np.testing.assert_allclose(turned[..., 0], 1 - VALUES / 4095, atol=1e-5)


def test_windows():
    tags = {"WindowCenter": [1000, 40], "WindowWidth": [500, 80], "RescaleSlope": 1, "RescaleIntercept": -1000}
    units = VALUES.astype(float) - 1000
    for window, (centre, width) in (((), (1000, 500)), ((40, 400), (40, 400))):
        found = decode(dicom(**tags), "x.dcm", depth=16, window=window)[..., 0]
        # PS3.3, C.11.2.1.2.1
        expected = np.clip((units - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_colour_eight_bits_and_signed():
    colour = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    np.testing.assert_array_equal(decode(dicom(colour, "RGB", 8), "x.dcm"), colour)
    grey = colour[..., 0].copy()
    np.testing.assert_array_equal(decode(dicom(grey, bits=8), "x.dcm")[..., 0], grey)
    signed = (VALUES.astype(np.int16) - 2048).astype(np.int16)
    np.testing.assert_allclose(decode(dicom(signed), "x.dcm", depth=16)[..., 0], VALUES / 4095, atol=1e-5)


@pytest.mark.parametrize("kind", ["YBR_FULL", "RGB"])
def test_colour_spaces_come_as_rgb(kind):
    from pydicom.pixels import convert_color_space

    colour = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    stored = convert_color_space(colour, "RGB", kind) if kind != "RGB" else colour
    found = decode(dicom(stored, kind, 8), "x.dcm").astype(int)
    assert np.abs(found - colour).max() <= 2  # of rounding


def test_palettes_are_looked_up():
    lookup = np.random.default_rng(0).integers(0, 256, (3, 256)).astype(np.uint16)
    tags = {}
    for name, values in zip(("Red", "Green", "Blue"), lookup, strict=True):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tags[f"{name}PaletteColorLookupTableData"] = (values * 257).astype("<u2").tobytes()
    stored = np.random.default_rng(1).integers(0, 256, (8, 6)).astype(np.uint8)
    data = dicom(stored, "PALETTE COLOR", 8, **tags)
    assert describe(data, "x.dcm")[:4] == (8, 6, 3, 8)
    np.testing.assert_array_equal(decode(data, "x.dcm"), lookup.T[stored])


def test_more_pixels_where_the_config_allows_them(monkeypatch):
    from imgrec_jax.data.own import dicom as reader

    monkeypatch.setattr(reader.size, "__defaults__", (100,))
    assert decode(dicom(), "x.dcm", max_pixels=1000).shape == (16, 20, 1)


def test_a_table_of_dicom_files_takes_groups_from_their_headers(tmp_path):
    for n in range(4):
        write(tmp_path / f"{n}.dcm", dicom(PatientID=f"P{n // 2}"))
    path = write(
        tmp_path / "t.csv", b"file,label\n" + b"".join(b"%d.dcm,%s\n" % (n, b"ab"[n % 2 : n % 2 + 1]) for n in range(4))
    )
    assert read(path, Reading(group="PatientID")).groups == ["P0", "P0", "P1", "P1"]


def test_damage_is_named():
    for data in (b"nothing of the kind", dicom()[:200]):
        assert describe(data, "x.dcm").problem
    with pytest.raises(ImageFileError, match="^x.dcm: "):
        decode(dicom()[:-50], "x.dcm")


def test_a_folder_with_the_patient_as_group(tmp_path):
    for p in range(20):
        for n in range(2):
            data = dicom(np.roll(VALUES, 7 * p + n), PatientID=f"P{p}")
            write(tmp_path / "d" / ("ill" if p % 2 else "well") / f"{p}_{n}.dcm", data)
    request = Request("image_folder", "train", tmp_path / "cache", tmp_path / "d", group="PatientID")
    found = survey_images(request)
    assert (found.channels, found.depth, found.class_names) == (1, 16, ("ill", "well"))
    where = {}
    for split in ("train", "validation", "test"):
        source = found.open(split)
        assert source[0]["image"].dtype == np.float32
        for group in source.info.meta["groups"]:
            where.setdefault(group, set()).add(split)
    assert len(where) == 20 and all(len(splits) == 1 for splits in where.values())
