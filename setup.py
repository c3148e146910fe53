"""Upnext: YouTube's published recommenders on your own platform's logs."""

from setuptools import find_packages, setup

setup(
    name="upnext",
    version="0.1.0",
    description="YouTube's published recommenders (candidate generation, ranking) on your own platform's logs",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["features*", "models*", "serving*", "pipeline*", "benchmarks*"]),
    package_data={"pipeline": ["configs/*.yaml"]},
    install_requires=[
        # ScaNN's TensorFlow ops load under exactly this TensorFlow; TFRS needs tf_keras (Keras 2).
        "tensorflow==2.20.0",
        "tf_keras==2.20.1",
        "tensorflow-recommenders==0.7.7",
        "scann==1.4.2",
        "tensorflow-serving-api==2.20.0",
        "apache-beam==2.77.0",
        "datasketches==5.2.0",
        "pyarrow>=18",
        "numpy>=2",
        "scipy>=1.13",
        "pydantic>=2.8",
        "pyyaml>=6",
        "typer>=0.15",
        "rich>=13",
        "matplotlib>=3.8",
        # MovieLens of tensorflow-datasets needs importlib_resources without declaring it.
        "tensorflow-datasets==4.9.10",
        "importlib_resources>=6",
        # The peers every report compares with.
        "implicit>=0.7.3",
        "lightgbm>=4.5",
        # implicit and BLAS must not both use all cores.
        "threadpoolctl>=3",
    ],
    extras_require={
        "gpu": ["tensorflow[and-cuda]==2.20.0"],
        "test": [
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff>=0.9",
            "mypy>=1.14",
            "types-PyYAML",
        ],
    },
    entry_points={
        "console_scripts": ["upnext = pipeline.__main__:main"],
        "upnext.commands": ["reproduce = benchmarks.command_line:add_commands"],
    },
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
