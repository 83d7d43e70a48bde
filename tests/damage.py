"""Damage to the bytes of a file, for tests of readers."""

from __future__ import annotations

import random

_ODD = bytes((0, 1, 2, 0x7F, 0x80, 0xFF)) + b"().]}{ctuRbeajhqr\x85\x86\x87\x94\x93KMJNX\x8c"


def mutated(data: bytes, chance: random.Random) -> bytes:
    """The bytes cut short, or with a few of them flipped, replaced, removed, inserted or overwritten by a length."""
    made = bytearray(data)
    kind = chance.randrange(6)
    if kind == 0:
        return data[: chance.randrange(len(data))]
    reach = len(made) if chance.random() < 0.5 else min(len(made), 2048)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        at = chance.randrange(max(1, min(reach, len(made))))
        if kind == 1 and made:
            made[min(at, len(made) - 1)] ^= 1 << chance.randrange(8)
        elif kind == 2:
            made[at : at + 1] = bytes([chance.choice(_ODD)])
        elif kind == 3:
            made[at : at + 4] = chance.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, chance.randrange(2**32))).to_bytes(
                4, "little"
            )
        elif kind == 4:
            del made[at : at + chance.randrange(1, 64)]
        else:
            made[at:at] = bytes(chance.choices(_ODD, k=chance.randrange(1, 8)))
    return bytes(made)
