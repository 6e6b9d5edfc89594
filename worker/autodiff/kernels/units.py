"""What computes products out of strips and tiles on this processor.

FLOAT32 multiplies vectors of float32 (AVX-512), AVX512_BF16 and AMX multiply numbers that are rounded to bfloat16 as
they are packed, AMX_FLOAT32 those cut into slices that lose nothing. Sums are always float32.
"""

from __future__ import annotations

import os

from worker.autodiff.kernels import bfloat16_tiles, tiles

FLOAT32, AVX512_BF16, AMX, AMX_FLOAT32 = 0, 1, 2, 3
NAMES = {FLOAT32: "float32", AVX512_BF16: "avx512_bf16", AMX: "amx", AMX_FLOAT32: "amx_float32", None: "none"}
_HAS = {
    FLOAT32: tiles.LANES == bfloat16_tiles.LANES,  # AVX-512
    AVX512_BF16: bfloat16_tiles.HAS_AVX,
    AMX: bfloat16_tiles.HAS_AMX,
    AMX_FLOAT32: bfloat16_tiles.HAS_AMX,
}
UNITS = tuple(unit for unit, is_there in _HAS.items() if is_there)  # that this CPU has
# Which of them multiply float32 matrices, the fastest first; BACKPROP_FLOAT32 in the environment has one of the names.
PREFERENCES = {"amx": (AMX_FLOAT32, FLOAT32), "vectors": (FLOAT32,)}


def _preferred() -> tuple[int, ...]:
    name = os.environ.get("BACKPROP_FLOAT32", "amx")
    if name not in PREFERENCES:
        raise ValueError(f"BACKPROP_FLOAT32: got {name!r}, expected {' or '.join(PREFERENCES)}, or nothing")
    return PREFERENCES[name]


# The fastest for products of float32 and of bfloat16; None where there is none.
SINGLE = next((unit for unit in _preferred() if unit in UNITS), None)
BFLOAT16 = next((unit for unit in (AMX, AVX512_BF16) if unit in UNITS), None)
