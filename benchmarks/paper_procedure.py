"""The published procedure (arXiv 2510.10764) on MNIST, with every patience out of one run.

    python benchmarks/paper_procedure.py run --data mnist.npz --into RUNS --seeds 0,1,2
    python benchmarks/paper_procedure.py record RUNS

Each depth starts again from the warm-up's weights, and what an epoch sees depends on the depth and the
epoch's number there only. So a depth trains alike whatever the patience, until that patience ends it: one
trace of depth 1, 2, ..., each trained until the most patient is done, holds the run of every patience. The
library's own rules (`expansion: reload`) are replayed on the trace, once per patience. The test split is
evaluated for weights that some patience keeps, and for no others. An interrupted trace goes on when the
command is repeated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mnist_resnet18 import PAPER, published_macs
from record import commit, gathered, write_record

from odn_hybrid.asking import described, make_backbone, make_preprocess
from odn_hybrid.config import FitConfig, replace_fields, to_dict
from odn_hybrid.cost import count_costs
from odn_hybrid.data import load_data
from odn_hybrid.exits import MultiExit
from odn_hybrid.outputs import record_outputs
from odn_hybrid.rundir import RunDir, environment
from odn_hybrid.stopping import wilson
from odn_hybrid.training.devices.device import accelerator_on
from odn_hybrid.training.engine import Engine, own_randomness
from odn_hybrid.training.procedure.progress import BEST, RELOAD, Look, Progress
from odn_hybrid.training.procedure.reloading import Reloading
from odn_hybrid.training.procedure.rules import make_objective, make_rules
from odn_hybrid.trunk import Trunk

PATIENCES = (2, 3, 5, 8, 12, 23)
TESTS = "tests.jsonl"
FOREVER = 10**9
Place = tuple[int, int]  # depth (0 for the warm-up) and epoch there, from 0
Rows = dict[Place, dict[str, Any]]


@dataclass(frozen=True)
class Course:
    """What a patience comes to on a trace: where it stands, and the epoch whose weights it keeps.

    `used`: the epochs it takes. `finished` False: the trace does not reach that far.
    """

    progress: Progress
    best: Place | None
    used: tuple[Place, ...]
    finished: bool


def placed(history: list[dict[str, Any]]) -> Rows:
    """Rows of a history by depth and epoch there; `macs`, `share` of each alone."""
    rows: Rows = {}
    spent, epochs = 0.0, dict[int, int]()
    for row in history:
        depth = 0 if row["phase"] == "warmup" else row["current"]
        at = epochs.get(depth, 0)
        epochs[depth] = at + 1
        rows[depth, at] = {**row, "macs": row["train_macs"] - spent}
        spent = row["train_macs"]
    return rows


def replay(rules: Reloading, rows: Rows) -> Course:
    """Follow the rules on what a trace saw."""
    progress, best, used = rules.first(), None, []
    while progress.phase != "done":
        depth = 0 if progress.phase == "warmup" else progress.current
        place = (depth, progress.phase_epochs)
        if place not in rows:
            return Course(progress, best, tuple(used), False)
        row = rows[place]
        used.append(place)
        done = rules.count(progress, rules.share(progress), 0.0)
        progress = replace(done, train_macs=progress.train_macs + row["macs"])
        if rules.looks(progress):
            progress = rules.observe(progress, Look.plain(row["selection"]))
        best = place if progress.then == BEST else best
    return Course(progress, best, tuple(used), True)


class Tracing(Reloading):
    """Trains each depth for as long as some patience needs, at most `cap` epochs."""

    others: Sequence[Reloading] = ()
    cap = FOREVER
    history: Callable[[], list[dict[str, Any]]]
    tested: Callable[[], Collection[Place]]

    def observe(self, progress: Progress, look: Look) -> Progress:
        """The next state: another epoch, the next depth, or the end."""
        if progress.phase == "warmup":
            return super().observe(progress, look)
        rows, depth = placed(self.history()), progress.current
        spent = progress.train_macs - sum(row["macs"] for row in rows.values())
        accuracies = list(look.accuracies)
        rows[depth, progress.phase_epochs - 1] = {"selection": accuracies, "macs": spent}
        courses = [replay(rules, rows) for rules in self.others]
        open_ones = [course.progress for course in courses if not course.finished]
        after = super().observe(progress, look)
        if any(one.current == depth for one in open_ones) and progress.phase_epochs < self.cap:
            return after
        # The next depth starts from other weights: what has just ended is tested first, after this epoch.
        ended = {course.best for course in courses if course.finished and course.best is not None}
        if ended - set(self.tested()):
            return after
        if not any(one.current > depth for one in open_ones):
            return replace(after, phase="done")
        deeper = replace(progress, current=depth + 1, phase_epochs=0, best=-1.0, stale=0, rate=1.0)
        last = depth + 1 == self.exits
        return replace(deeper, then=RELOAD, phase="settle" if last else "expand")


class Tracer:
    """One seed's trace in a folder that looks like an interrupted run's."""

    def __init__(self, config: FitConfig, folder: Path, patiences: Sequence[int], cap: int = FOREVER) -> None:
        self.config, self.patiences = config, tuple(patiences)
        self.data = load_data(config.data.source, seed=config.seed)
        rundir = RunDir.create(folder, to_dict(config), resume=True)
        self.tests = folder / TESTS
        with own_randomness(config.seed):
            accelerator = accelerator_on(config.device)
            backbone, spec = make_backbone(config, None, self.data)[:2]
            self.preprocess = make_preprocess(config, backbone, self.data)
            network = MultiExit(Trunk(backbone, image_size=self.preprocess.size), config.exits)
            self.costs = count_costs(network)
            rules = Tracing(**self._arguments(network, FOREVER))
            rules.others = [Reloading(**self._arguments(network, patience)) for patience in self.patiences]
            rules.cap, rules.history, rules.tested = cap, lambda: self.engine.history, self.tested
            self.others = rules.others
            self.engine = Engine(
                network,
                make_objective(config, len(network)),
                rules,
                train=self.data.splits["train"],
                selection=self.data.splits["selection"],
                preprocess=self.preprocess,
                config=config,
                costs=self.costs,
                accelerator=accelerator,
                rundir=rundir,
                listener=lambda row: print(json.dumps(row), flush=True),
            )
        rundir.begin(described(config, spec, self.data, self.preprocess, None))

    def _arguments(self, network: MultiExit, patience: int) -> dict[str, Any]:
        """What the library gives its rules, with another patience."""
        config = replace_fields(self.config, {"expansion.reload.patience": patience})
        images = len(self.data.splits["train"])
        made = make_rules(config, network, self.costs, images, deepest=len(network))
        return {
            "config": made.config,
            "choice": made.choice,
            "exits": made.exits,
            "steps_per_epoch": max(1, images // config.optim.batch_size),
            "epoch_macs": made.epoch_macs,
            "alone_macs": made.alone_macs,
        }

    def run(self) -> list[dict[str, Any]]:
        """Train what is left of the trace; one result per patience."""
        with own_randomness(self.config.seed):
            if not self.engine.resume():
                self.engine.stepper.follow(self.engine.progress.then)
            self._test()
            while self.engine.progress.phase != "done":
                self.engine._epoch()
                self._test()
        return self.results()

    def courses(self) -> list[Course]:
        """Where every patience stands."""
        rows = placed(self.engine.history)
        return [replay(rules, rows) for rules in self.others]

    def _test(self) -> None:
        """Test the best weights so far, if a patience has just ended with them."""
        last = self.engine.progress.current
        for course in self.courses():
            if not course.finished or course.best is None or course.best in self.tested():
                continue
            assert course.best[0] == last  # the weights of other depths are not held any more
            network = self.engine.network.copy()
            network.load_state_dict(self.engine.stepper.held[BEST])
            found = record_outputs(network, self.data.splits["test"], self.preprocess, upto=course.best[0])
            right = found.correct[:, -1]
            row = {"place": course.best, "correct": int(right.sum()), "n": len(right)}
            with self.tests.open("a") as file:
                file.write(json.dumps(row) + "\n")

    def tested(self) -> dict[Place, dict[str, Any]]:
        """Test results by the epoch whose weights they are of."""
        if not self.tests.exists():
            return {}
        rows = [json.loads(line) for line in self.tests.read_text().splitlines()]
        return {tuple(row["place"]): row for row in rows}

    def results(self) -> list[dict[str, Any]]:
        """One row per patience."""
        rows, tested = placed(self.engine.history), self.tested()
        found = []
        for patience, course in zip(self.patiences, self.courses(), strict=True):
            row: dict[str, Any] = {"patience": patience, "finished": course.finished}
            row |= {"depth": course.progress.current, "train_macs": course.progress.train_macs}
            depths = [place[0] for place in course.used]
            row["epochs_by_depth"] = {depth: depths.count(depth) for depth in sorted(set(depths))}
            if course.finished and course.best is not None:
                row |= self._kept(course.best, rows[course.best], tested.get(course.best))
            found.append(row)
        return found

    def _kept(self, best: Place, row: dict[str, Any], test: dict[str, Any] | None) -> dict[str, Any]:
        size = {"bytes": self.costs.bytes[best[0] - 1], "macs": self.costs.static(best[0])}
        selection = row["selection"][best[0] - 1]
        assert self.others[0].goal is not None
        # As the procedure rounds it.
        reached = round(100 * selection, 1) >= 100 * self.others[0].goal - 1e-7
        kept = {"best_epoch": best[1] + 1, "selection_accuracy": selection, "reached": reached, **size}
        if test is None:
            return kept
        right, n = test["correct"], test["n"]
        low, high = wilson(right, n)
        interval = {"low": float(low), "high": float(high)}
        return kept | {"test_accuracy": {"value": right / n, "n": n, **interval}}


def tuned(results: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The patience tuned on the selection split: the cheapest that reaches the target there."""
    reached = [row for row in results if row.get("reached")]
    return min(reached, key=lambda row: row["train_macs"], default=None)


def recipe(data: str, seed: int, augment: str, warmup: float) -> FitConfig:
    """The published recipe for MNIST: linear heads, plain momentum at 0.01, batches of 128."""
    return replace_fields(
        FitConfig(),
        {
            "model.name": "resnet18",
            "model.stem": "small",
            "data.source": data,
            "data.augment": augment,
            "exits.head": "linear",
            "expansion.procedure": "reload",
            "expansion.reload.warmup_epochs": warmup,
            "choice.target_accuracy": 0.995,
            "choice.tolerance": 0.005,
            "seed": seed,
        },
    )


def run(args: argparse.Namespace) -> None:
    """Trace the seeds, one folder each."""
    own = dict(entry.split("=") for entry in args.patiences_of)
    for seed in args.seeds.split(","):
        patiences = [int(p) for p in own.get(seed, args.patiences).split(",")]
        config = recipe(args.data, int(seed), args.augment, args.warmup_epochs)
        folder = Path(args.into) / f"seed{seed}"
        tracer = Tracer(config, folder, patiences, args.max_epochs_per_depth or FOREVER)
        results = tracer.run()
        data = {
            "seed": int(seed),
            "augment": args.augment,
            "max_epochs_per_depth": args.max_epochs_per_depth,
            "results": results,
            "tuned": tuned(results),
            "tests": list(tracer.tested().values()),
            "splits": tracer.data.describe(),
            "commit": commit(),
            "environment": environment(),
            "history": tracer.engine.history,
        }
        (folder / "results.json").write_text(json.dumps(data))
        for row in results:
            print(json.dumps(row), flush=True)


def record(args: argparse.Namespace) -> None:
    """Add finished traces to the record."""
    new = [json.loads(path.read_text()) for path in sorted(Path(args.runs).glob("seed*/results.json"))]
    runs = gathered(args.name, "runs", new, lambda one: one["seed"])
    published = published_macs()
    for one in runs:
        for row in one["results"]:
            row["train_macs_over_published"] = row["train_macs"] / published
    claim = "the published procedure on MNIST: depth, accuracy and training MACs for every patience"
    paper = {**PAPER, "train_macs": published}
    print(write_record(args.name, claim, {"paper": paper, "runs": runs}))


def main() -> None:
    """Run a part, or write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(required=True)
    part = parts.add_parser("run", help="train the traces; what was interrupted goes on")
    part.add_argument("--data", required=True, help="the .npz")
    part.add_argument("--into", required=True, help="folder of the traces")
    part.add_argument("--seeds", default="0,1,2")
    part.add_argument("--patiences", default=",".join(map(str, PATIENCES)))
    part.add_argument("--patiences-of", nargs="*", default=[], metavar="SEED=P,P,...", help="for one seed")
    part.add_argument("--max-epochs-per-depth", type=int, help="what needs more is told as unfinished")
    part.add_argument("--augment", default="none", choices=("none", "shift"), help="none as published")
    part.add_argument("--warmup-epochs", type=float, default=3.0)
    part.set_defaults(do=run)
    part = parts.add_parser("record", help="add finished traces to the record")
    part.add_argument("runs")
    part.add_argument("--name", default="paper_procedure")
    part.set_defaults(do=record)
    args = parser.parse_args()
    args.do(args)


if __name__ == "__main__":
    main()
