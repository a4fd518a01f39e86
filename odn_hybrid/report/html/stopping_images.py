"""Pictures of test images that stop early and late, where the data of the run are at hand."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from odn_hybrid.data import Data, load_data
from odn_hybrid.data.named import TORCHVISION_NAMES, default_root
from odn_hybrid.errors import OdnError
from odn_hybrid.report.wording import Data as Report
from odn_hybrid.rundir import RunDir
from odn_hybrid.stopping import Member, outcomes

__all__ = ["Missing", "Shown", "early_and_late", "shown_images"]

COUNT = 8  # of each kind
LARGEST = 160  # pixels of a side
TINY = 64  # up to so many, pixels are shown as they are
OUTPUTS = "outputs.safetensors"


class Missing(Exception):
    """Why there are no pictures, as a sentence."""


@dataclass(frozen=True)
class Shown:
    """One picture: `source` is a data address; `row` its place in the test split."""

    source: str
    tiny: bool
    row: int
    exit: int
    label: str
    answer: str


def shown_images(rundir: RunDir, report: Report, data: Any = None) -> tuple[list[Shown], list[Shown]]:
    """The first test images, in the split's order, that stop earliest and latest under the run's policy.

    `data` is where the data of the fit are now, if they have moved. Raises `Missing` with the reason where
    something is not there; a picture is not worth a failed report.
    """
    try:
        taken, answers, labels = _stops(rundir, report)
        if len(set(taken.tolist())) == 1:
            raise Missing(f"All test images stop at exit {taken[0]}, so none stops early or late.")
        found = _data(rundir, data)
        if len(found.splits["test"]) != len(taken):
            raise Missing("The recorded outputs are not of this test split.")
        return tuple(  # type: ignore[return-value]
            [_shown(found, int(row), int(taken[row]), int(labels[row]), int(answers[row])) for row in rows]
            for rows in early_and_late(taken, COUNT)
        )
    except OdnError as error:
        raise Missing(f"The pictures are missing: {error}.") from None
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise Missing(f"The pictures are missing: the run's files do not fit together ({error}).") from None


def early_and_late(taken: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that stop earliest and latest, up to `most` of each, in their order where they stop alike.

    Each late one stops deeper than each early one: where few do, few are given, and none of either where all
    inputs stop at one exit. `taken` (n,) are exits.
    """
    early = np.argsort(taken, kind="stable")[:most]
    early = early[taken[early] < taken.max()]
    late = np.argsort(-taken, kind="stable")[:most]
    return early, late[taken[late] > taken[early].max(initial=taken.min())]


def _stops(rundir: RunDir, report: Report) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every test image: the exit it stops at, the answer it gets, its label."""
    dynamic = report.get("dynamic")
    if not dynamic or not dynamic.get("policy"):
        raise Missing(f"Nothing halts in this run: {report.get('no_dynamic') or 'it has no halting policy'}.")
    if not (rundir.path / OUTPUTS).is_file():
        raise Missing("The run keeps no recorded outputs, which tell where each image stops.")
    held = rundir.load_tensors(OUTPUTS)
    policy = Member.from_dict(dynamic["policy"])
    logits, labels = held["test.logits"].numpy(), held["test.labels"].numpy()
    (taken,), (answered,) = outcomes([policy], logits[:, : len(policy.table)])
    return taken, logits[np.arange(len(taken)), answered - 1].argmax(1), labels


def _data(rundir: RunDir, source: Any) -> Data:
    """The data of the fit, which nothing is downloaded for."""
    recipe = rundir.config["recipe"]
    asked = source if source is not None else recipe["data"]["source"]
    if asked == "own":
        raise Missing("The run was fitted on datasets handed over as objects, which cannot be opened again.")
    root = recipe["data"]["root"]
    if asked in TORCHVISION_NAMES and (root is not None or not default_root().is_dir()):
        place = default_root() if root is None else root
        raise Missing(f"The data set {asked} is not looked for in {place}; name it with --data.")
    found = load_data(asked, root=root, seed=recipe["seed"])
    known = rundir.config["data"]["splits"]["test"]["digest"]
    if found.splits["test"].digest != known:
        raise Missing("The data found are not those of the fit: the test split has another digest.")
    return found


def _shown(data: Data, row: int, exit: int, label: int, answer: int) -> Shown:
    test = data.splits["test"]
    pixels = test.items.fetch(test.indices[row : row + 1])[0]
    image = Image.fromarray(_as_bytes(np.asarray(pixels), data.ready))
    tiny = max(image.size) <= TINY
    if not tiny:
        image.thumbnail((LARGEST, LARGEST))
    file = io.BytesIO()
    kind = "PNG" if tiny else "WEBP"
    image.save(file, kind, **({} if tiny else {"quality": 80}))
    source = f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
    return Shown(source, tiny, row, exit, str(data.classes[label]), str(data.classes[answer]))


def _as_bytes(pixels: np.ndarray, ready: bool) -> np.ndarray:
    """uint8 (H, W) or (H, W, 3); numbers of any range are stretched to 0..255."""
    if ready:
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.dtype != np.uint8:
        values = pixels.astype(np.float64)
        if ready or values.min() < 0 or values.max() > 1:
            values = (values - values.min()) / ((values.max() - values.min()) or 1.0)
        pixels = np.round(255 * values).astype(np.uint8)
    if pixels.ndim == 3 and pixels.shape[2] != 3:
        pixels = pixels[..., 0]
    return np.ascontiguousarray(pixels)
