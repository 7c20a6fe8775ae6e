"""The codec `idna`, which `socket.getaddrinfo` encodes each host name with, without a megabyte of Unicode's tables.

It stands for encodings.idna of the standard library. A name in ASCII stays as it is; any other label becomes its lower
case in Punycode (RFC 3490, ToASCII). What is given up is Nameprep's normalisation: a name that is typed decomposed is
another name here.
"""

import codecs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

PREFIX = "xn--"
LONGEST = 63  # characters of a label: RFC 1035, 2.3.4


def encode(text: str, errors: str = "strict") -> tuple[bytes, int]:
    """The name as DNS knows it. Raises `UnicodeError` for an empty or an overlong label."""
    labels = text.replace("\u3002", ".").split(".")
    *inner, last = [_label(label) for label in labels]
    if not all(inner) or max(map(len, labels)) > LONGEST:
        raise UnicodeError("label empty or too long")
    return b".".join([*inner, last]), len(text)


def _label(label: str) -> bytes:
    if label.isascii():
        return label.encode()
    return PREFIX.encode() + label.lower().encode("punycode")


def decode(data: "ReadableBuffer", errors: str = "strict") -> tuple[str, int]:
    """The name that people read, of one that DNS knows."""
    name = bytes(data)
    return ".".join(map(_decoded, name.decode("ascii").split("."))), len(name)


def _decoded(label: str) -> str:
    name = label.lower()
    return name.removeprefix(PREFIX).encode().decode("punycode") if name.startswith(PREFIX) else label


def getregentry() -> codecs.CodecInfo:
    """What `encodings` asks for."""
    return codecs.CodecInfo(encode, decode, name="idna")
