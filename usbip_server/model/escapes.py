"""
Escapes for the characters in a device's strings that cannot be displayed.

A serial number may contain any character. One that cannot be displayed (a control or format
character, a line separator, half of a surrogate pair) is escaped as in Python: C{\\x05},
C{\\u2028}, C{\\U000e0001}; so is the backslash, C{\\x5c}, so that different strings stay different.
An L{UsbDevice<usbip_server.model.device.UsbDevice>} contains escaped strings, and clients and logs
receive them; criteria may contain them.
"""

from __future__ import annotations

import re
import unicodedata

_HEX = "[0-9a-fA-F]"

_ESCAPE = re.compile(rf"\\(?:x({_HEX}{{2}})|u({_HEX}{{4}})|U(000{_HEX}{{5}}|0010{_HEX}{{4}}))")


def escape(text: str) -> str:
    """
    Escape a string as a device has it.
    """
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(char if _isPlain(char) else _escaped(char) for char in text)


def unescape(text: str) -> str:
    """
    The inverse of L{escape}. A backslash that begins no escape stays.
    """
    if "\\" not in text:
        return text
    return _ESCAPE.sub(lambda found: chr(int(found[1] or found[2] or found[3], 16)), text)


def normalize(text: str) -> str:
    """
    Bring a string of unknown origin into the escaped form: it may be escaped already, as a client
    copies it from a reply, or contain the characters themselves.
    """
    return escape(unescape(text))


def readable(text: str) -> str:
    """
    Escape a string that is displayed only: other blanks than the space become spaces.
    """
    return escape("".join(" " if unicodedata.category(char) == "Zs" else char for char in text))


def visible(text: str) -> str:
    """
    Escape the characters that cannot be displayed, but no backslash: for a text that may contain
    escapes, and names of C{usb.ids}.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _isPlain(char: str) -> bool:
    return char.isprintable() and char != "\\"


def _escaped(char: str) -> str:
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
