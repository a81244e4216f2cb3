"""Net surgery: copy parameters from one net to another, make upsampling bilinear.

Nets are pycaffe's: `net.params[layer]` is a list of blobs with `.data` and `.shape`.
Each function checks its arguments before it writes anything.
"""

from surgery.bilinear import interp, upsample_filt
from surgery.checks import check_filled
from surgery.transfer import (
    Dropped,
    Moved,
    Transplant,
    color_to_color_depth,
    expand_score,
    transplant,
)

__all__ = [
    'Dropped',
    'Moved',
    'Transplant',
    'check_filled',
    'color_to_color_depth',
    'expand_score',
    'interp',
    'transplant',
    'upsample_filt',
]
