"""The two compiled helpers; everything else about the package is in pyproject.toml.

`optional`: where headers or compiler are missing, installation goes on and `shards.pixels.native` says once that the same pixels take longer.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension("shards.pixels._jpeg", ["shards/pixels/_jpeg.c"], libraries=["jpeg"], extra_compile_args=["-O3"], optional=True),
        # Fused multiply-adds would round the filter's weights differently from Pillow.
        Extension("shards.pixels._resize", ["shards/pixels/_resize.c"], extra_compile_args=["-O3", "-ffp-contract=off"], optional=True),
    ]
)
