"""What a pickle would import, read from its opcodes; nothing is imported, called or built."""

from __future__ import annotations

import io
import pickletools
from itertools import islice

_MOST_OPCODES = 50_000
_NO_ACCIDENT = 30  # opcodes that no text has by chance
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
_GETS = ("GET", "BINGET", "LONG_BINGET")


def pickles_names(data: bytes, count: int) -> tuple[str, ...]:
    """The globals of several pickles that follow one another."""
    names: tuple[str, ...] = ()
    for _ in range(count):
        names += pickle_names(data) or ()
        stream = io.BytesIO(data)
        try:
            for _ in islice(pickletools.genops(stream), _MOST_OPCODES):
                pass
        except Exception:  # damaged or cut short
            break
        data = data[stream.tell() :]
    return names


def pickle_names(data: bytes, *, sure: bool = True) -> tuple[str, ...] | None:
    """The globals of a pickle, as ``module.name``, in their order and each once.

    Args:
        data: the pickle, or its beginning: what follows a damaged or missing part is left out.
        sure: whether the first bytes say that it is a pickle; where they do not, a text may begin like one.

    Returns:
        The names, or None where it is no pickle, or not even its first opcodes can be read.
    """
    found: dict[str, None] = {}
    memo: dict[int, str | None] = {}
    last: list[str | None] = []
    read = 0
    try:
        for opcode, argument, _ in islice(pickletools.genops(io.BytesIO(data)), _MOST_OPCODES):
            read += 1
            name = opcode.name
            if name == "GLOBAL" and isinstance(argument, str):
                found[argument.replace(" ", ".")] = None
                last.append(None)
            elif name == "STACK_GLOBAL":
                module, what = [None, None, *last][-2:]
                if module is not None and what is not None:
                    found[f"{module}.{what}"] = None
                last.append(None)
            elif name == "MEMOIZE":
                memo[len(memo)] = last[-1] if last else None
            elif name in _PUTS and isinstance(argument, int):
                memo[argument] = last[-1] if last else None
            elif name in _GETS and isinstance(argument, int):
                last.append(memo.get(argument))
            elif name not in ("PROTO", "FRAME", "MARK"):
                last.append(argument if isinstance(argument, str) else None)
            del last[:-2]
    except Exception:  # cut short or damaged: pickletools raises anything from ValueError to struct.error
        if read < (2 if sure else _NO_ACCIDENT):
            return None
    return tuple(found)
