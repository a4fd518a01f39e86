"""The thread that owns the device: takes the scheduler's next step, runs it, answers who has an answer."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from odn_hybrid.deploy.halting.profit import SegmentTimes
from odn_hybrid.runner import RunnerOutput
from odn_hybrid.serve.asking import Options
from odn_hybrid.serve.refusals import BadRequest, DeadlinePassed, Failed, Overloaded, Refusal, Stopping
from odn_hybrid.serve.scheduling.lane import Lane
from odn_hybrid.serve.scheduling.observing import Observer, Silent
from odn_hybrid.serve.scheduling.scheduler import Scheduler
from odn_hybrid.serve.scheduling.stepping import Ended, run_step
from odn_hybrid.serve.scheduling.work import Job, Request
from odn_hybrid.serve.settings import LaneSettings
from odn_hybrid.serve.stages.protocol import Stages

__all__ = ["Engine"]

log = logging.getLogger("odn_hybrid.serve")


class Engine:
    """Runs several models' segments on one device, one step at a time.

    Args:
        observer: told of steps, answers and refusals.
        clock: seconds that never go back; another one for simulations, which call `turn` themselves.

    Attributes:
        died: the device thread has ended by a mistake; nothing is answered any more.

    All methods may be called from any thread.
    """

    def __init__(
        self, observer: Observer | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.observer: Observer = observer or Silent()
        self.clock = clock
        self._scheduler = Scheduler()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._draining = self._closed = self._stirred = False
        self.died = False

    # --- life -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the device thread."""
        with self._changed:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="odn-device", daemon=True)
                self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the device thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def drain(self, seconds: float) -> bool:
        """Take no new requests and wait for those accepted; True if all were answered in time."""
        until = time.monotonic() + seconds
        with self._changed:
            self._draining = True
            self._stir()
            return self._changed.wait_for(
                lambda: not any(lane.inside for lane in self._scheduler.lanes),
                timeout=max(until - time.monotonic(), 0.0),
            )

    def close(self) -> None:
        """Stop the thread after its step; what still waits is refused (`Stopping`)."""
        with self._changed:
            self._draining = self._closed = True
            for lane in self._scheduler.lanes:
                lane.retired = lane.retired or Future()
            left = [(lane, request) for lane in self._scheduler.lanes for request in lane.empty()]
            self._stir()
        self._end([(lane, request, Stopping("the server is stopping")) for lane, request in left])
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        with self._changed:
            lanes, self._scheduler.lanes = self._scheduler.lanes, []
            left = [(lane, request) for lane in lanes for request in lane.empty()]
        self._end([(lane, request, Stopping("the server is stopping")) for lane, request in left])
        self._finish(lanes)

    # --- models ---------------------------------------------------------------------------------------

    def open(self, name: str, stages: Stages, times: SegmentTimes, settings: LaneSettings) -> Lane:
        """A lane for a model that was measured and is ready; it takes requests from now on."""
        lane = Lane(name, stages, times, settings)
        with self._changed:
            if self._closed:
                raise Stopping("the server is stopping")
            self._scheduler.lanes.append(lane)
        return lane

    def retire(self, lane: Lane) -> Future[None]:
        """No new requests for `lane`: done when its last is answered and the model is closed."""
        with self._changed:
            if lane.retired is None:
                lane.retired = Future()
            self._stir()
            gone = [] if self.alive else self._gone()
        self._finish(gone)
        return lane.retired

    def queues(self) -> dict[tuple[str, int], int]:
        """Images that wait, by model and segment (from 0); lanes of one name together."""
        found: dict[tuple[str, int], int] = {}
        with self._changed:
            for lane in self._scheduler.lanes:
                for segment, queue in enumerate(lane.queues):
                    key = (lane.name, segment)
                    found[key] = found.get(key, 0) + len(queue)
        return found

    # --- requests -------------------------------------------------------------------------------------

    def submit(
        self, lane: Lane, images: NDArray[np.float32], options: Options, *, arrived: float | None = None
    ) -> Future[RunnerOutput]:
        """Ask for answers of images (n, channels, height, width), finite, as the model takes them.

        Args:
            arrived: when the request came, on the clock; default: now.

        Returns:
            A future with the answers, in order; or with `DeadlinePassed`, `Failed` or `Stopping`. What still
            waits of a cancelled one is dropped.

        Raises:
            BadRequest: shape, type, or a `max_depth` before the first exit.
            Overloaded: the queue is full, or the deadline is nearer than the work before it.
            Stopping: no more requests are taken, or not for this lane.
        """
        try:
            return self._submit(lane, images, options, arrived)
        except Refusal as refusal:
            self.observer.refused(lane.name, type(refusal))
            raise

    def _submit(
        self, lane: Lane, images: NDArray[np.float32], options: Options, arrived: float | None
    ) -> Future[RunnerOutput]:
        shape = lane.stages.image_shape
        if images.ndim != 4 or images.shape[1:] != shape or images.dtype != np.float32:
            want = ", ".join(map(str, shape))
            raise BadRequest(
                f"images are {images.dtype} of shape {images.shape}; expected float32 (n, {want})"
            )
        count = len(images)
        if not count:
            raise BadRequest("the batch is empty")
        arrived = self.clock() if arrived is None else arrived
        late = options.deadline_ms
        request = Request(
            images,
            options,
            arrived,
            math.inf if late is None else arrived + late / 1e3,
            lane.final(options),
            Future(),
            count,
            np.empty((count, lane.stages.classes), dtype=np.float32),
            np.empty(count, dtype=np.float32),
            np.empty(count, dtype=np.int64),
            np.empty(count, dtype=np.int64),
        )
        with self._changed:
            self._admit(lane, request)
            lane.inside += count
            now = self.clock()
            for row in range(count):
                lane.push(Job(request, row, place=row), 0, now)
            self._stir()
        # However it ends: answered, refused, cancelled.
        request.future.add_done_callback(lambda _: self._left(lane, count))
        return request.future

    def _left(self, lane: Lane, count: int) -> None:
        with self._changed:
            lane.inside -= count
            if not lane.inside:
                self._stir()

    def _admit(self, lane: Lane, request: Request) -> None:
        if self._draining or lane.retired is not None:
            why = "the server is stopping" if self._draining else "the model was replaced"
            raise Stopping(why, retry_after=1)
        if lane.crowded:  # with what is cancelled while a step takes long
            lane.sweep()
        backlog, room = self._scheduler.backlog, lane.settings.queue - lane.inside
        if request.left > lane.settings.queue:
            raise BadRequest(f"{request.left} images in one request; the queue holds {lane.settings.queue}")
        if request.left > room:
            raise Overloaded(
                f"the queue is full: {lane.inside} images wait, {lane.settings.queue} may",
                retry_after=backlog,
            )
        expected = lane.expected
        # Where nothing waits, a pace that was slow once keeps nobody out: only steps can bring it up to date.
        pace = expected.pace if backlog else min(expected.pace, 1.0)
        own = pace * max(expected.seconds(0, 1), request.left * float(expected.remaining[0]))
        if self.clock() + backlog + own > request.deadline:
            raise Overloaded("the deadline is nearer than the work before it", retry_after=backlog)

    # --- the device thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closed:
                if self.turn():
                    continue
                with self._changed:
                    if not self._closed and not self._stirred:
                        self._changed.wait(self._pause())
                    self._stirred = False
        except BaseException:  # nobody waits for answers that cannot come
            self.died = True
            log.critical("the device thread has died; nothing is answered any more", exc_info=True)
            self.close()

    def turn(self) -> bool:
        """What the device thread does again and again: one step. False if there was nothing to do."""
        with self._changed:
            self._stirred = False
            now = self.clock()
            gone = self._gone()
            work = None if self._closed else self._scheduler.pick(now)
            late = self._scheduler.late(now)
        closed = bool(gone)
        self._finish(gone)
        try:
            self._end([end for lane, job in late if (end := _too_late(lane, job)) is not None])
            if work is not None and work.jobs:
                self._end(run_step(work, self._changed, self.observer, self.clock))
        except Exception:  # a mistake of ours must not stop the device
            log.exception("the engine failed")
            if work is not None:
                self._end([(work.lane, job.request, Failed("the server failed")) for job in work.jobs])
        return closed or bool(late) or work is not None

    def _pause(self) -> float | None:
        """Seconds until something may happen by itself; None: until somebody comes."""
        wake = self._scheduler.wake()
        return None if math.isinf(wake) else max(wake - self.clock(), 0.0)

    def _stir(self) -> None:
        """There may be something to do: say so to the device thread. Under the lock."""
        self._stirred = True
        self._changed.notify_all()

    def _gone(self) -> list[Lane]:
        """Takes out the lanes that are retired and have nobody inside."""
        lanes = self._scheduler.lanes
        gone = [lane for lane in lanes if lane.retired is not None and not lane.inside]
        if gone:
            self._scheduler.lanes = [lane for lane in lanes if lane not in gone]
        return gone

    @staticmethod
    def _finish(gone: list[Lane]) -> None:
        """Close them. Who waits for one is told when nothing here refers to it any more: it can be freed."""
        while gone:
            lane = gone.pop(0)
            try:
                lane.stages.close()
            except Exception:
                log.exception("model %s could not be closed", lane.name)
            retired = lane.retired
            del lane
            if retired is not None and not retired.done():
                retired.set_result(None)

    def _end(self, ended: list[Ended]) -> None:
        """Hand out answers and refusals, each request's once."""
        for lane, request, refusal in ended:
            with self._changed:  # who closes the engine may be ending it, too
                first, request.over = not request.over, True
            if not first or not request.future.set_running_or_notify_cancel():
                continue
            found = refusal or _output(lane, request)
            if isinstance(found, Refusal):
                request.future.set_exception(found)
                self.observer.refused(lane.name, type(found))
            else:
                request.future.set_result(found)
                self.observer.answered(lane.name, found, self.clock() - request.arrived)


def _too_late(lane: Lane, job: Job) -> Ended | None:
    """An input that has passed an exit gets that exit's answer; one that has not was too late."""
    request = job.request
    if job.seen is None:
        return lane, request, DeadlinePassed("the deadline passed before an exit was reached")
    number = lane.stages.numbers[job.segment - 1]
    whole = request.write(job.row, job.seen, job.place, number, plain=False)
    return (lane, request, None) if whole else None


def _output(lane: Lane, request: Request) -> RunnerOutput | Failed:
    stages = lane.stages
    try:
        certified = request.plain and stages.certified
    except Exception:  # its future is taken: somebody has to be told
        log.exception("model %s does not say whether it is certified", lane.name)
        return Failed("the model failed on this request")
    exits, units = np.array(stages.exits, dtype=np.int64), np.array(stages.units, dtype=np.int64)
    return RunnerOutput(
        request.logits,
        exits[request.taken - 1],
        units[request.taken - 1],
        request.confidence,
        certified,
        exits[request.answered - 1],
    )
