"""Files as ``torch.save`` writes them, without torch."""

import io
import pickle
import zipfile

import numpy as np


class _Name:
    """Something that a pickle names without importing it."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class _Pickler(pickle._Pickler):
    """The pure Python pickler, so that names can be written as they are."""

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, _Name):
            self.write(b"c" + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, tuple) and obj and obj[0] == "storage":
            super().save(obj, False)
            self.write(b"Q")
        else:
            super().save(obj, save_persistent_id)


def bare(path, array):
    """A file that holds one float32 tensor: ``torch.save(tensor, path)``.

    Parameters
    ----------
    path : Path
    array : numpy.ndarray, float32
    """
    array = np.ascontiguousarray(array, np.float32)
    strides = tuple(s // 4 for s in array.strides)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        out = io.BytesIO()
        pickler = _Pickler(out, 2)
        out.write(b"\x80\x02")
        pickler.save(_Name("torch._utils", "_rebuild_tensor_v2"))
        out.write(b"(")
        pickler.save(("storage", _Name("torch", "FloatStorage"), "0", "cpu", array.size))
        for value in (0, array.shape, strides, False):
            pickler.save(value)
        pickler.save(_Name("collections", "OrderedDict"))
        out.write(b")RtR.")
        archive.writestr("archive/data.pkl", out.getvalue())
        archive.writestr("archive/data/0", array.tobytes())
        archive.writestr("archive/version", b"3\n")
