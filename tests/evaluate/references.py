"""The programs that scores are compared with, where the extra `interop` is installed."""

import functools
import importlib.util

import pytest


@functools.cache
def _torchvision_without_its_kernels():
    """Lets a build of torchvision for accelerators be imported beside a torch for CPUs.

    It stops at operators for detection that nothing here uses; declaring them is enough.
    """
    import torch

    if hasattr(torch.ops.torchvision, "nms"):
        return None
    try:
        import torchvision  # noqa: F401
    except RuntimeError as e:
        assert "torchvision::nms" in str(e)
        kept = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            kept.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return kept
    return None


def load(name):
    """Imports one of the reference packages, or skips the test."""
    if importlib.util.find_spec(name.split(".")[0]) is None:
        pytest.skip(f"{name} is not installed")
    _torchvision_without_its_kernels()
    return importlib.import_module(name)
