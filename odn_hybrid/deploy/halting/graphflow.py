"""A batch through the segments by CUDA graphs: one per segment and batch bucket, in buffers that never move.

Rows of the buffers beyond the batch, and inputs that have their answer, point to a spare row of the results,
so that every graph does the same whatever the inputs do. After a segment the host reads one number, how many
inputs are left, and starts the graph of the smallest bucket that holds them. No published single-GPU
measurement of this was found (as of 2026); the pieces are CUDA graphs, as torch.cuda.graph captures them, and
the survivor gathering of early-exit batching (DVABatch, ATC 2022; DREX, 2025).
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from odn_hybrid.deploy.halting.deciding import Decider, Memory
from odn_hybrid.deploy.halting.hostflow import NOT_FINITE, Answers, Casting, Part
from odn_hybrid.deploy.halting.profit import Gathering
from odn_hybrid.deploy.halting.segments import Segment, Step, flat
from odn_hybrid.errors import InputError

__all__ = ["GraphFlow", "buckets_upto"]

WARM_UP = 3  # runs before a capture: libraries choose kernels and allocate what they keep
_capturing = threading.Lock()  # one capture at a time in the process, whichever model it is for
FIELDS = tuple(field.name for field in fields(Memory))


def buckets_upto(batch: int) -> tuple[int, ...]:
    """Batch sizes with graphs of their own, up to the first that holds `batch`.

    At most an eighth of the rows is wasted beyond 64, and at most 7 rows below.
    """
    sizes, step = [1, 2, 4, 8], 8
    while sizes[-1] < batch:
        if sizes[-1] >= 16 * step:
            step *= 2
        sizes.append(sizes[-1] + step)
    return tuple(sizes[: bisect_left(sizes, batch) + 1])


class Replay:
    """A function of fixed buffers, captured once and replayed; on the CPU it is called each time."""

    def __init__(self, function: Callable[[], Any], device: torch.device, pool: Any) -> None:
        self._function = function
        self._graph: torch.cuda.CUDAGraph | None = None
        if device.type != "cuda":
            self._made = None
            return
        stream = torch.cuda.current_stream(device)
        if stream == torch.cuda.default_stream(device):  # on which nothing can be captured
            stream = torch.cuda.Stream(device)
        with _capturing, _Streaming(stream):
            for _ in range(WARM_UP):
                function()
            torch.cuda.synchronize(device)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                self._made = function()

    def __call__(self) -> Any:
        """What the function gives; of a captured one, the same tensors every time."""
        if self._graph is None:
            return self._function()
        self._graph.replay()
        return self._made


@dataclass
class _Place:
    """Buffers in which one segment starts: `tensors` (rows, ...), `memory`, and `rows`: whose row it is."""

    tensors: list[Tensor]
    memory: dict[str, Tensor]
    rows: Tensor

    def head(self, count: int) -> _Place:
        """The first rows of all."""
        return _Place(
            [tensor[:count] for tensor in self.tensors],
            {name: tensor[:count] for name, tensor in self.memory.items()},
            self.rows[:count],
        )

    def parts(self) -> list[Tensor]:
        """All tensors in a fixed order."""
        return [*self.tensors, *self.memory.values()]


class GraphFlow:
    """Runs segments on batches of up to the largest size met; memory is fixed once all sizes have been.

    One call at a time (a lock); results are copies.

    Args:
        segments, steps, numbers, gathers: see `HostFlow`.
        casting: makes a context for the precision.
        device: of the network; on the CPU the same runs without graphs, for tests.
        layout: of the images' buffer.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        steps: Sequence[Step],
        numbers: Sequence[int],
        decider: Decider,
        gathers: Gathering,
        *,
        device: torch.device,
        layout: torch.memory_format = torch.contiguous_format,
        casting: Casting = nullcontext,
    ) -> None:
        self.segments, self.steps, self.numbers = segments, steps, numbers
        self.decider, self.gathers = decider, gathers
        self.device, self.layout, self.casting = device, layout, casting
        self._lock = threading.Lock()
        self._cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._cuda else None
        self._pool = torch.cuda.graph_pool_handle() if self._cuda else None
        self._forget()

    def _forget(self) -> None:
        self._sizes: tuple[int, ...] = ()
        self._places: list[_Place] = []
        self._graphs: dict[tuple[int, int], Replay] = {}
        self._tables: list[tuple[Any, ...]] = []

    def __call__(self, images: Tensor) -> Answers:
        """Answers of images (batch, channels, height, width), in their order. Raises `InputError` for NaN."""
        with self._lock:
            with self._streaming():
                if len(images) > (self._sizes[-1] if self._sizes else 0):
                    self._grow(images)
                found = self._run(images)
            if self._stream is not None:
                # The allocator must know who still reads: images on our stream, answers on the caller's.
                images.record_stream(self._stream)
                for tensor in (found.logits, found.confidence, found.taken, found.answered):
                    if tensor is not None:
                        tensor.record_stream(torch.cuda.current_stream(self.device))
            return found

    def parts(self, images: Tensor) -> list[Part]:
        """See `timing.Timed`; all graphs that batches of up to `len(images)` need are captured here."""
        with self._lock, self._streaming():
            if len(images) > (self._sizes[-1] if self._sizes else 0):
                self._grow(images)
            size = self._bucket(len(images))
            for smaller in self._sizes[: self._sizes.index(size) + 1]:
                for index in range(len(self.segments)):
                    self._graph(index, smaller)
            self._run(images)
            return [self._part(index, size) for index in range(len(self.segments))]

    def _part(self, index: int, size: int) -> Part:
        graph, last = self._graph(index, size), index + 1 == len(self.segments)
        after, order, told = graph()
        order = order.clone()  # a later replay may use its memory

        def run() -> object:
            with self._lock, self._streaming():
                graph()
                return self._told(told)

        def gather() -> object:
            with self._lock, self._streaming():
                return last or self._gather(after, order, self._places[index + 1].head(size))

        return Part(run, gather)

    # --- one batch ------------------------------------------------------------------------------------

    def _run(self, images: Tensor) -> Answers:
        count = len(images)
        here = self._bucket(count)
        self._enter(images, here)
        last = len(self.segments) - 1
        for index in range(last + 1):
            after, order, told = self._graph(index, here)()
            left, finite = self._told(told) if index < last or index == 0 else (0, True)
            if not finite:
                raise InputError(NOT_FINITE)
            if index == last or not left:
                break
            bucket = self._bucket(left)
            # Buckets, not rows, cost time.
            if bucket < here and self.gathers(index, here, bucket):
                self._gather(after, order[:bucket], self._places[index + 1].head(bucket))
                here = bucket
            else:
                self._hand_on(after, self._places[index + 1].head(here))
        logits, confidence, taken, answered = (tensor[:count].clone() for tensor in self._results)
        return Answers(logits, confidence, taken, answered)

    def _enter(self, images: Tensor, bucket: int) -> None:
        place, count = self._places[0], len(images)
        place.tensors[0][:count].copy_(images, non_blocking=True)
        place.tensors[0][count:bucket].zero_()  # of another batch; it might hold NaN
        place.rows[:bucket].copy_(self._iota[:bucket])
        place.rows[count:bucket].fill_(self._spare)

    def _told(self, told: Tensor) -> tuple[int, bool]:
        """The one device-to-host copy of a segment."""
        if self._event is None:
            return int(told[0]), bool(told[1])
        self._host.copy_(told, non_blocking=True)
        self._event.record()
        self._event.synchronize()
        return int(self._host[0]), bool(self._host[1])

    @staticmethod
    def _gather(after: _Place, order: Tensor, into: _Place) -> None:
        for source, target in zip(after.parts(), into.parts(), strict=True):
            if source.dim() == 4 and not target.is_contiguous():  # channels last: copy whole rows
                source, target = source.permute(0, 2, 3, 1), target.permute(0, 2, 3, 1)
            torch.index_select(source, 0, order, out=target)
        torch.index_select(after.rows, 0, order, out=into.rows)

    @staticmethod
    def _hand_on(after: _Place, into: _Place) -> None:
        for source, target in zip(after.parts(), into.parts(), strict=True):
            target.copy_(source)
        into.rows.copy_(after.rows)

    # --- graphs and buffers ---------------------------------------------------------------------------

    def _bucket(self, count: int) -> int:
        return self._sizes[bisect_left(self._sizes, count)]

    def _streaming(self) -> AbstractContextManager[Any]:
        return _Streaming(self._stream) if self._stream is not None else nullcontext()

    def _graph(self, index: int, size: int) -> Replay:
        """The graph of one segment and bucket, captured when it is first needed."""
        if (index, size) not in self._graphs:
            place = self._places[index].head(size)
            self._graphs[index, size] = Replay(lambda: self._segment(index, place), self.device, self._pool)
        return self._graphs[index, size]

    def _segment(self, index: int, place: _Place) -> tuple[_Place, Tensor, Tensor]:
        """What a graph does: run, decide, write answers; gives what is handed on, the order, and counts."""
        segment, number = self.segments[index], self.numbers[index]
        memory = Memory(**place.memory) if place.memory else None
        # Entered and left inside the capture: weights cast outside of it would be freed under the graph.
        with self.casting():
            state, said = self.steps[index](segment.entry(*place.tensors, *self._tables[index]))
        stops, memory = self.decider.look(number, said.float(), memory)
        waiting = place.rows != self._spare
        halts = waiting if index == len(self.segments) - 1 else waiting & stops
        target = torch.where(halts, place.rows, self._spare)
        taken = torch.full_like(place.rows, number)
        for result, part in zip(
            self._results, (memory.logits, memory.confidence, taken, memory.exit), strict=True
        ):
            result.index_copy_(0, target, part.to(result.dtype))
        rows = torch.where(halts, self._spare, place.rows)
        gone = rows == self._spare
        finite = torch.isfinite(place.tensors[0]).all() if index == 0 else gone.new_ones(())
        told = torch.stack([(~gone).sum(), finite.long()])
        order = torch.argsort(gone.to(torch.uint8), stable=True)
        tensors = [] if segment.ends else list(flat(state)[: segment.after])
        held = {name: getattr(memory, name) for name in FIELDS}
        return _Place(tensors, held, rows), order, told

    def _grow(self, images: Tensor) -> None:
        """Make all buffers anew, for larger batches; graphs of the old ones are gone."""
        self._forget()
        sizes = buckets_upto(len(images))
        most = self._spare = sizes[-1]
        self._iota = torch.arange(most, device=self.device)
        self._host = torch.zeros(2, dtype=torch.long, pin_memory=self._cuda)
        self._event = torch.cuda.Event() if self._cuda else None
        self._results: tuple[Tensor, ...] = ()
        like: list[Any] = [torch.zeros_like(images[:1], memory_format=self.layout)]
        memory: Memory | None = None
        for segment, step, number in zip(self.segments, self.steps, self.numbers, strict=True):
            rows, tables = like[: segment.before], tuple(like[segment.before :])
            held = {} if memory is None else {name: getattr(memory, name) for name in FIELDS}
            self._places.append(
                _Place(
                    [_room(tensor, most) for tensor in rows],
                    {name: _room(tensor, most) for name, tensor in held.items()},
                    torch.full((most,), self._spare, device=self.device),
                )
            )
            self._tables.append(tables)
            with self.casting():
                state, said = step(segment.entry(*rows, *tables))
            _, memory = self.decider.look(number, said.float(), memory)
            like = [] if segment.ends else list(flat(state))
        assert memory is not None
        kept = (memory.logits, memory.confidence.float(), memory.exit, memory.exit)
        self._results = tuple(_room(tensor, most + 1) for tensor in kept)
        self._sizes = sizes


def _room(like: Tensor, rows: int) -> Tensor:
    """Zeros (rows, ...) in the memory format of `like` (1, ...)."""
    last = like.dim() == 4 and not like.is_contiguous()
    layout = torch.channels_last if last else torch.contiguous_format
    shape = (rows, *like.shape[1:])
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout).zero_()


class _Streaming:
    """Work on a stream of one's own, after what the caller has queued and before what it queues next."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.stream = stream

    def __enter__(self) -> None:
        self.before = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(self.before)
        self._inside = torch.cuda.stream(self.stream)
        self._inside.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._inside.__exit__(*error)
        self.before.wait_stream(self.stream)
