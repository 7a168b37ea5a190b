"""
Tests of L{usbip_server.model.options}.
"""

from __future__ import annotations

from typing import Any

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from usbip_server.model.options import InvalidOption, convert, nearest


class Inner(msgspec.Struct, forbid_unknown_fields=True, rename={"clientCa": "client_ca"}):
    """
    A mapping in another one.
    """

    port: int = 0
    clientCa: str = ""


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    """
    Options of each shape.
    """

    one: Inner | None = None
    many: tuple[Inner, ...] = ()
    named: dict[str, Inner | str] = {}
    required: int = 0


class SuggestionTests(SynchronousTestCase):
    """
    Suggestions for unknown words.
    """

    def test_nearest(self) -> None:
        """The most similar known word is suggested, if one is similar."""
        for word, suggestion in (
            ("tokken", ". Did you mean 'token'?"),
            ("watsh", ". Did you mean 'watch'?"),
            ("frobnicate", ""),
            ("", ""),
        ):
            self.assertEqual(nearest(word, ("token", "watch")), suggestion)

    def test_unknownKey(self) -> None:
        """The message about an unknown key suggests a key of the same mapping, at any depth."""
        options: tuple[tuple[dict[str, Any], str], ...] = (
            ({"onne": 1}, "onne: unknown key. Did you mean 'one'?"),
            ({"one": {"prot": 1}}, "one.prot: unknown key. Did you mean 'port'?"),
            ({"one": {"clientCa": ""}}, "one.clientCa: unknown key. Did you mean 'client_ca'?"),
            ({"many": [{}, {"prot": 1}]}, "many.1.prot: unknown key. Did you mean 'port'?"),
            ({"one": {"required": 1}}, "one.required: unknown key"),
        )
        for given, message in options:
            error = self.assertRaises(InvalidOption, convert, given, Outer)
            self.assertEqual(str(error), message)
