"""The parts of the build that pyproject.toml has no words for: the C engine and the tag of its wheel.

    pip install .                           build and install
    python setup.py build_ext --inplace     rebuild the engine in a checkout

Left out on purpose: everything declarative, which is in pyproject.toml.
"""

from setuptools import setup

setup(
    cffi_modules=["llama/build_engine.py:builder"],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},  # one wheel for Python 3.11 and later
)
