"""Small photos, cut from the two that scikit-learn ships, and tars like those of ImageNet."""

import io
import tarfile

import numpy as np
from PIL import Image


def photos(count, sizes=((150, 200), (200, 150), (160, 160), (130, 260))):
    """Returns `count` different photos, PIL images of the (height, width) given in turn."""
    from sklearn.datasets import load_sample_images

    whole = load_sample_images().images
    found = []
    for i in range(count):
        height, width = sizes[i % len(sizes)]
        image = whole[i % 2]
        top = (37 * i) % (image.shape[0] - height)
        left = (53 * i) % (image.shape[1] - width)
        found.append(Image.fromarray(image[top : top + height, left : left + width]))
    return found


def encoded(picture, kind="JPEG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}) | options)
    return buffer.getvalue()


def write_tar(file, members):
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def write_imagenet(folder, wnids=("n01440764", "n02123045", "n15075141"), per_class=4, val=5):
    """Writes both tars as ImageNet lays them out; returns {file name: JPEG bytes}."""
    files = [encoded(p) for p in photos(len(wnids) * per_class + val)]
    train = {
        wnid: [(f"{wnid}_{k}.JPEG", files[i * per_class + k]) for k in range(per_class)]
        for i, wnid in enumerate(wnids)
    }
    inner = []
    for wnid, members in train.items():
        buffer = io.BytesIO()
        write_tar(buffer, members)
        inner.append((f"{wnid}.tar", buffer.getvalue()))
    validation = [(f"ILSVRC2012_val_{k + 1:08d}.JPEG", data) for k, data in enumerate(files[-val:])]
    folder.mkdir(exist_ok=True)
    with open(folder / "ILSVRC2012_img_train.tar", "wb") as f:
        write_tar(f, inner)
    with open(folder / "ILSVRC2012_img_val.tar", "wb") as f:
        write_tar(f, validation)
    return dict([m for members in train.values() for m in members] + validation)


def by_pillow(data, resolution):
    """The centred square by area, by Pillow alone: `[R, R, 3]` uint8."""
    with Image.open(io.BytesIO(data)) as opened:
        picture = opened.convert("RGB")
    short = min(picture.size)
    left, top = ((n - short) // 2 for n in picture.size)
    square = picture.crop((left, top, left + short, top + short))
    return np.asarray(square.resize((resolution, resolution), Image.Resampling.BOX))
