"""What a client sends: an image in a form or as base64 in JSON, within limits that are checked before anything is decoded."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import json
import re
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from imgrec_jax.data.images import ImageFileError, read_header
from imgrec_jax.data.own import dicom

BESIDE = 64 * 2**10  # bytes of a request beside its image
SECONDS = 30.0  # for a request to be sent
FIELDS = ("picture", "explain")  # beside the image and its name
EXPECTED = 'expected a form with a file in the field "image", or JSON {"image": base64}'


class UploadError(Exception):
    """A request that is not answered: status of HTTP, and a line that says what is wrong."""

    def __init__(self, status: int, line: str):
        super().__init__(line)
        self.status, self.line = status, line


class Limits(NamedTuple):
    """bytes: of an encoded image; pixels: of its height x width; both named by the flags that set them."""

    bytes: int
    pixels: int


class Upload(NamedTuple):
    """name: of the file; data: the encoded image; fields: of FIELDS those that came with it, as text or JSON's values."""

    name: str
    data: bytes
    fields: dict[str, Any]


async def read(request: Request, limits: Limits) -> Upload:
    """The image of a request.

    Raises:
      UploadError: naming what is wrong: another kind of request, an image that is too large, none at all.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("multipart/form-data", "application/json"):
        await drain(request, limits)
        raise UploadError(415, f"a request of type {kind or 'nothing'!r}; {EXPECTED}")
    # Base64 takes 4 bytes for 3.
    body = await _body(request, limits, limits.bytes * (3 if kind.startswith("multipart") else 4) // 3 + BESIDE)
    upload = await _form(request, body, limits) if kind.startswith("multipart") else _json(body)
    if len(upload.data) > limits.bytes:
        raise _too_large(limits)
    _check(upload, limits)
    return upload


def size(request: Request, limits: Limits) -> int:
    """The bytes that a request says it has; the most that are read, where it does not say."""
    said, most = request.headers.get("content-length", ""), limits.bytes * 4 // 3 + BESIDE
    return min(int(said), most) if re.fullmatch("[0-9]{1,18}", said) else most


async def drain(request: Request, limits: Limits) -> None:
    """Reads and forgets what a client still sends, within reason: one that is cut off does not read why."""
    await _body(request, limits, 0, refuse=False)


async def _body(request: Request, limits: Limits, most: int, refuse: bool = True) -> bytes:
    parts, size = [], 0
    try:
        async with asyncio.timeout(SECONDS):
            async for part in request.stream():
                size += len(part)
                if size <= most:
                    parts.append(part)
                else:
                    parts.clear()
                if size > 4 * (limits.bytes + BESIDE):
                    break
    except TimeoutError:
        raise UploadError(408, f"an upload that took more than {SECONDS:.0f} s") from None
    except ClientDisconnect:
        raise UploadError(400, "the client left before its image was there") from None
    if size > most and refuse:
        raise _too_large(limits)
    return b"".join(parts)


def _too_large(limits: Limits) -> UploadError:
    return UploadError(413, f"an upload of more than {limits.bytes:,} bytes, the most that this server takes (--max_mb)")


async def _form(request: Request, body: bytes, limits: Limits) -> Upload:
    async def parts() -> AsyncGenerator[bytes, None]:
        yield body
        yield b""

    parser = MultiPartParser(request.headers, parts(), max_files=1, max_fields=8, max_part_size=BESIDE)
    parser.spool_max_size = limits.bytes  # nothing goes through a file
    try:
        form: FormData = await parser.parse()
    except (MultiPartException, FormParserError, KeyError, ValueError) as error:
        raise UploadError(400, f"a form that cannot be read ({_line(error)}); {EXPECTED}") from error
    file = form.get("image")
    if not isinstance(file, UploadFile):
        raise UploadError(400, f'no file in the field "image" of the form; {EXPECTED}')
    data = await file.read()
    await form.close()
    return Upload(_name(file.filename), data, {key: form[key] for key in FIELDS if isinstance(form.get(key), str)})


def _json(body: bytes) -> Upload:
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UploadError(400, f"JSON that cannot be read ({_line(error)}); {EXPECTED}") from error
    text = values.get("image") if isinstance(values, dict) else None
    if not isinstance(text, str):
        raise UploadError(400, f'JSON without the text "image"; {EXPECTED}')
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UploadError(400, f'"image" is no base64 ({_line(error)})') from error
    return Upload(_name(values.get("name")), data, {key: values[key] for key in FIELDS if key in values})


def _name(given: Any) -> str:
    """A file's name as it can be shown: of its end so much, and without what is no letter."""
    return re.sub(r"[\x00-\x1f\x7f\ud800-\udfff]", "?", given)[-200:] if isinstance(given, str) and given else "image"


def _check(upload: Upload, limits: Limits) -> None:
    """Refuses what its header shows to be too large; what else is wrong with an image is found when it is decoded.

    DICOM may be deflated, and its header lies in what is to be inflated.
    """
    if dicom.is_dicom(upload.name):
        raise UploadError(415, f"{upload.name}: DICOM is not taken here; imgrec predict reads it")
    try:
        header = read_header(io.BytesIO(upload.data), upload.name, 2**62)
    except ImageFileError:
        return
    if header.height * header.width > limits.pixels:
        raise UploadError(
            413,
            f"{upload.name}: an image of {header.height} x {header.width} pixels, more than the {limits.pixels:,} that this "
            "server takes (--max_pixels); scale it down",
        )


def flag(fields: dict[str, Any], name: str) -> bool:
    """A field that is true or false; false where it is not there.

    Raises:
      UploadError: for anything else.
    """
    value = fields.get(name, False)
    known = {True: True, False: False, "true": True, "1": True, "false": False, "0": False, "": False}
    if not isinstance(value, bool | str) or value not in known:
        raise UploadError(400, f"{name}={_shown(value)}; expected true or false")
    return known[value]


def choice(fields: dict[str, Any], name: str, known: tuple[str, ...]) -> str | None:
    """A field that is one of a few words; None where it is not there or empty.

    Raises:
      UploadError: for another word, with those that there are.
    """
    value = fields.get(name)
    if value in (None, ""):
        return None
    if value not in known:
        raise UploadError(400, f"{name}={_shown(value)} is unknown; choose of {', '.join(known)}")
    return str(value)


def _shown(value: Any) -> str:
    """A value for a message: not what is deep or long."""
    return repr(value[:80]) if isinstance(value, str) else f"({type(value).__name__})"


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
