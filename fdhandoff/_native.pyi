# The compiled module, as ``build_ffi.py`` makes it. Only ``system/native.py`` imports it, and gives it its types.
from typing import Any

ffi: Any
lib: Any
