"""Small synthetic copies of public collections: CT series, segmentations, clinical tables."""

from io import BytesIO
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from bad_inputs import hu_array, image, liver_array, write_slices

SLICES = 24
FRAME = "1.2.3.9"
LIVER, TUMOUR, SPLEEN, VEIN = "Liver", "Tumor", "Spleen", "Portal vein"
# SNOMED codes of the segments' types; what DICOM calls a tumour is a mass or a neoplasm.
CODES = {
    LIVER: ("10200004", "Liver"),
    TUMOUR: ("4147007", "Mass"),
    SPLEEN: ("78961009", "Spleen"),
    VEIN: ("32764006", "Portal vein"),
}


def ct(folder, patient, study="1", series="1", acquisition="1", *, hu=None, prefix="IM", **tags):
    """A CT series; `tags` are DICOM keywords. `series`, `study`: the last parts of their UIDs.

    hu: an image, or an array for `image`; without it, `hu_array`.
    """
    uid = f"1.2.826.{study}.{series}"
    given = {
        "0008|0020": tags.pop("date", "20000101"),
        "0008|0030": "101500",
        "0008|0050": "A",
        "0008|0070": "MAKER",
        "0008|1090": "Scan 9",
        "0008|103e": tags.pop("description", "PORTAL VENOUS"),
        "0010|0020": patient,
        "0010|0040": "F",
        "0010|1010": "061Y",
        "0018|1210": "SOFT",
        "0020|000d": f"1.2.826.{study}",
        "0020|000e": uid,
        "0020|0010": "S",
        "0020|0012": acquisition,
        "0020|0052": FRAME,
        **tags,
    }
    volume = hu
    if not isinstance(hu, sitk.Image):
        volume = image(hu_array(SLICES) if hu is None else hu)
    return write_slices(folder, volume, given, uid=f"{uid}.{acquisition}", prefix=prefix)


def slices_of(folder, prefix="IM"):
    """The headers of a folder's slices, as highdicom wants its source images."""
    import pydicom

    found = [pydicom.dcmread(path) for path in sorted(folder.glob(f"{prefix}*.dcm"))]
    for each in found:
        for name in ("ReferringPhysicianName", "PatientBirthDate", "PositionReferenceIndicator"):
            if name not in each:
                setattr(each, name, "")
    return found


def masks(slices=SLICES):
    """Liver without its tumour, tumour, spleen, and a vein: bool [slice, row, column]."""
    liver = liver_array(slices) > 0
    tumour = np.zeros_like(liver)
    tumour[10:14, 20:28, 16:24] = True
    spleen = np.zeros_like(liver)
    spleen[6:16, 20:36, 48:58] = True
    vein = np.zeros_like(liver)
    vein[8:12, 30:34, 28:32] = True
    return {LIVER: liver & ~tumour, TUMOUR: tumour, SPLEEN: spleen, VEIN: vein}


def seg(path, sources, segments, *, order=None, kind="BINARY"):
    """A DICOM segmentation by highdicom; segments: label -> mask. Returns its data set.

    order: of the frames; without it, that of highdicom.
    """
    import pydicom
    from highdicom import UID
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom.sr.coding import Code

    organ = Code("123037004", "SCT", "Anatomical Structure")
    descriptions = [
        SegmentDescription(
            number, label, organ, Code(CODES[label][0], "SCT", CODES[label][1]), "MANUAL"
        )
        for number, label in enumerate(segments, start=1)
    ]
    dtype = float if kind == "FRACTIONAL" else np.uint8
    made_of = Segmentation(
        source_images=sources,
        pixel_array=np.stack(list(segments.values()), axis=-1).astype(dtype),
        segmentation_type=kind,
        segment_descriptions=descriptions,
        series_instance_uid=UID(),
        series_number=100,
        sop_instance_uid=UID(),
        instance_number=1,
        manufacturer="Nobody",
        manufacturer_model_name="None",
        software_versions="1",
        device_serial_number="1",
    )
    made_of.ContentDate = "20010101"
    if order is not None:
        groups = list(made_of.PerFrameFunctionalGroupsSequence)
        pixels = made_of.pixel_array
        made_of.PerFrameFunctionalGroupsSequence = [groups[n] for n in order(len(groups))]
        made_of.PixelData = pydicom.pixels.pack_bits(pixels[order(len(groups))])
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    made_of.save_as(path)
    return made_of


def changed(dataset, path, *texts, made="20010101"):
    """Write a data set with some texts replaced by others of the same length; made: its date."""
    from highdicom import UID

    buffer = BytesIO()
    dataset.ContentDate, dataset.SOPInstanceUID = made, UID()
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(buffer)
    data = buffer.getvalue()
    for old, new in texts:
        assert len(old) == len(new) and old.encode() in data
        data = data.replace(old.encode(), new.encode())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def mr(folder, patient, study="1"):
    """An MR series of a study."""
    tags = {"0008|0060": "MR", "0008|0016": "1.2.840.10008.5.1.4.1.1.4"}
    return ct(folder, patient, study, "77", **tags)


def workbook(path, *rows):
    """An Excel table."""
    import openpyxl

    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)
    return path
