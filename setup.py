"""The native walk, the one thing that pyproject.toml can express only as an experiment.

Touches: the build.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "smartscan._native",
            sources=["src/smartscan/_native.c"],
            define_macros=[("Py_LIMITED_API", "0x030B0000")],  # one build for Python 3.11 and all later ones
            extra_compile_args=["-O2", "-std=gnu11"],
            py_limited_api=True,
            optional=True,  # without a compiler the package installs as well, and walks in Python
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
