"""Tensors into the format of safetensors, from where they lie.

The library of that name writes to a path, or makes bytes: either is a second copy. So its layout is written here: eight
bytes, little-endian, with the length of a header of JSON; the header, padded by spaces; then the tensors without gaps,
those with the largest items first, so that all are aligned. The library reads it back, for any framework.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, BinaryIO

from ml_dash import json_values
from ml_dash.arguments import array_name
from ml_dash.errors import Code, error
from ml_dash.media.libraries import library

TYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ", "complex64": "C64",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
"""What torch, numpy and ml_dtypes call a type, and what the header calls it."""
LARGEST_HEADER_BYTES = 100_000_000
"""The library reads no larger one."""
RESERVED = "__metadata__"
ALIGNED_BYTES = 8
KEEPS = "save_torch() keeps it as it is"


class _Numpys:
    """An array of numpy's, or what numpy makes of one of jax's and others."""

    framework = "np"
    """What the header says of who wrote it: Hugging Face's libraries ask for it."""

    def __init__(self, name: str, value: Any) -> None:
        numpy = library("numpy", "numpy")
        self._array = numpy.asanyarray(value)
        if numpy.ma.isMaskedArray(self._array):
            raise error(Code.UNSUPPORTED_TYPE, f"{name} is masked", "pass its .data and its .mask")
        self.type, self.shape = self._array.dtype.name, self._array.shape
        self.size_bytes, self.item_bytes = int(self._array.nbytes), int(self._array.dtype.itemsize)

    def content(self) -> Any:
        numpy = library("numpy", "numpy")
        little = self._array if self._array.dtype.byteorder != ">" else self._array.astype(self.type)
        return numpy.ascontiguousarray(little).reshape(-1).view(numpy.uint8)


class _Torchs:
    """A tensor of torch's, on any device."""

    framework = "pt"

    def __init__(self, name: str, tensor: Any) -> None:
        layout = str(tensor.layout).removeprefix("torch.")
        if layout != "strided" or tensor.is_quantized or tensor.device.type == "meta":
            kind = "quantized" if tensor.is_quantized else layout if tensor.device.type != "meta" else "on meta"
            raise error(Code.UNSUPPORTED_TYPE, f"{name} is {kind}, which safetensors can't hold", KEEPS)
        self.tensor = tensor.detach()
        self.type, self.shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
        self.item_bytes = int(tensor.element_size())
        self.size_bytes = self.item_bytes * int(tensor.numel())

    def content(self) -> Any:
        library("numpy", "numpy")  # by which torch shows its memory
        plain = self.tensor.resolve_conj().resolve_neg().cpu().contiguous()
        return plain.reshape(-1).view(library("torch", "torch").uint8).numpy()

    def span(self) -> tuple[str, int, int]:
        """The device, and the memory there that its items lie in."""
        extent = 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.tensor.stride(), strict=True))
        start = int(self.tensor.data_ptr())
        return str(self.tensor.device), start, start + extent * self.item_bytes


class SafeTensors:
    """Tensors by their names, checked, and what the header says of them.

    Raises UNSUPPORTED_TYPE for what the format can't hold, INVALID_ARGUMENT for names that it can't.
    """

    def __init__(self, tensors: Mapping[str, Any], metadata: Mapping[str, Any] | None) -> None:
        if not isinstance(tensors, Mapping):
            what = f"save_safetensors takes a dict of tensors, not {type(tensors).__name__}"
            raise error(Code.UNSUPPORTED_TYPE, what, 'pass {"name": tensor}, such as a state_dict()')
        named = {_checked(name): _source(name, value) for name, value in tensors.items()}
        _refuse_shared(named)
        self._sources = [*sorted(named.items(), key=lambda one: (-one[1].item_bytes, one[0]))]
        self._header = _header(self._sources, metadata)

    @property
    def size_bytes(self) -> int:
        return len(self._header) + sum(int(source.size_bytes) for _, source in self._sources)

    def write(self, out: BinaryIO) -> None:
        out.write(self._header)
        out.writelines(source.content() for _, source in self._sources)


def _checked(name: str) -> str:
    if array_name(name) == RESERVED:
        raise error(Code.INVALID_ARGUMENT, f"a tensor can't be called {RESERVED}", "that is the header's: metadata=")
    return name


def _source(name: str, value: Any) -> Any:
    is_torchs = hasattr(value, "detach") and hasattr(value, "layout")
    if not is_torchs and not hasattr(value, "__array__"):
        what = f"{name} is {type(value).__name__}, not a tensor or an array"
        raise error(Code.UNSUPPORTED_TYPE, what, "leave it out, or put it into metadata=")
    source = (_Torchs if is_torchs else _Numpys)(name, value)
    if source.type not in TYPES:
        raise error(Code.UNSUPPORTED_TYPE, f"{name} is of {source.type}, which safetensors can't hold", KEEPS)
    return source


def _refuse_shared(named: Mapping[str, Any]) -> None:
    """What shares memory would be saved twice, and come back as two: as the library does, that is refused."""
    spans = sorted(
        (*source.span(), name) for name, source in named.items() if isinstance(source, _Torchs) and source.size_bytes
    )
    for (device, _, end, name), (other_device, start, _, other) in pairwise(spans):
        if device == other_device and start < end:
            what = f"{name} and {other} share memory, which safetensors can't say"
            hint = "leave one of them out, or pass its .clone(); save_torch() keeps what is shared"
            raise error(Code.UNSUPPORTED_TYPE, what, hint)


def _header(sources: list[tuple[str, Any]], metadata: Mapping[str, Any] | None) -> bytes:
    said = {"format": next((source.framework for _, source in sources), "np")}
    said |= {key: value if isinstance(value, str) else _text(key, value) for key, value in (metadata or {}).items()}
    header: dict[str, Any] = {RESERVED: said}
    at = 0
    for name, source in sources:
        offsets = [at, at + source.size_bytes]
        header[name] = {"dtype": TYPES[source.type], "shape": [*source.shape], "data_offsets": offsets}
        at += source.size_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNED_BYTES)
    if len(text) > LARGEST_HEADER_BYTES:
        what = f"the header of {len(sources)} tensors has {len(text)} bytes, and safetensors reads 100 MB"
        raise error(Code.INVALID_ARGUMENT, what, "save fewer tensors together, under shorter names")
    return len(text).to_bytes(ALIGNED_BYTES, "little") + text


def _text(key: str, value: Any) -> str:
    return json_values.encode(value, f"metadata[{key!r}]", allow_nan=False).decode()
