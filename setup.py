"""Only what pyproject.toml can't say: the compiled module, and that its wheel serves every CPython from 3.10 on."""

import sys
import sysconfig

from setuptools import setup

# Below Python 3.15 a free-threaded interpreter knows no stable ABI.
limited_api = not (sysconfig.get_config_var("Py_GIL_DISABLED") and sys.version_info < (3, 15))

setup(
    cffi_modules=["build_ffi.py:ffibuilder"],
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if limited_api else {},
)
