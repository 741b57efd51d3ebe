"""Packaging of optimum-optin."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "optimum_optin/version.py").read_text(encoding="utf-8")).group(1)

# Lower bounds are versions the tests were run with.
REQUIREMENTS = [
    "torch>=2.13",
    "transformers>=5.1",
    "optimum>=2.1",
    "accelerate>=1.10",
    "datasets>=4.0",
    "evaluate>=0.4.5",
    "greenlet>=3.1",
    "huggingface-hub>=1.3",
    "pyyaml>=6.0",
    "safetensors>=0.6.1",
    "scipy>=1.12",
]
EXTRAS = {
    "tests": [
        "pytest>=8",
        "pytest-xdist>=3.8",
        "hypothesis>=6.100",
        "pillow>=12",
        "pycocotools>=2.0.11",
        "sacrebleu>=2.6",
    ],
    "quality": ["ruff>=0.12"],
    "docs": ["hf-doc-builder>=0.5"],
    "plots": ["matplotlib>=3.8"],
    "onnx": ["onnx>=1.23", "onnxscript>=0.7", "onnxruntime>=1.32"],
    "openvino": ["openvino>=2026.4"],
    "detection": ["pycocotools>=2.0.11"],  # mean average precision
    "translation": ["sacrebleu>=2.6"],  # BLEU and chrF
    # What the tests run a pruned model with, if it is there.
    "neighbours": [
        "peft>=0.21",
        "onnx>=1.23",
        "onnxscript>=0.7",
        "onnxruntime>=1.32",
        "sentence-transformers>=6.2",
        "optimum-quanto>=0.2.7",
    ],
}

COMMANDS = "optimum.commands.register"

setup(
    name="optimum-optin",
    version=VERSION,
    description="One-shot, training-free structured pruning of transformers, as a Hugging Face plug-in",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author="The optimum-optin maintainers",
    keywords="transformers, pruning, compression, model compression, structured pruning, optimum",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    # Optimum finds commands in the namespace folder optimum/commands/register.
    packages=[*find_packages(include=["optimum_optin", "optimum_optin.*"]), COMMANDS],
    package_dir={COMMANDS: "optimum_optin/commands/register"},
    python_requires=">=3.10",
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
)
