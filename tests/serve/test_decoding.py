"""Image files are read as for training, and no file can take the server down."""

import asyncio
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from picturing import BOMBS, PICTURES, saved, slow_jpeg, text_bomb
from PIL import Image

from odn_hybrid.errors import ConfigError
from odn_hybrid.imaging import IMAGE_FORMATS, open_image, pil_array
from odn_hybrid.serve.decoding import Decoders, process
from odn_hybrid.serve.refusals import (
    BadRequest,
    DeadlinePassed,
    Failed,
    Overloaded,
    Refusal,
    Stopping,
    TooLarge,
)
from odn_hybrid.serve.settings import LaneSettings, ServeSettings

MANY = 1_000_000  # pixels
ROOT = Path(process.__file__).parents[3]
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc, or needs limits of memory")


def number(value: int, side: int = 8) -> bytes:
    """A picture that can be told from others."""
    return saved(Image.new("L", (side, side), value), "PNG")


def gone(pid: int) -> bool:
    """Ended, though nobody may have asked yet how."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return sys.platform == "linux"


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


def playing(play: Callable[[Decoders], Any], loop: Any = None, **choices: Any) -> None:
    """Run `play` with processes of these settings; afterwards none of them is left."""

    async def run() -> None:
        decoders = Decoders(ServeSettings(**choices))
        await decoders.start()
        seen = set(decoders.pids)
        try:
            await play(decoders)
            seen |= set(decoders.pids)
        finally:
            await decoders.close()
        assert all(map(gone, seen)) and decoders.pids == []

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(run())


@pytest.fixture(scope="module")
def reads() -> Iterator[Callable[[bytes], NDArray[np.uint8]]]:
    """A function that has a file read in a process."""
    with asyncio.Runner() as runner:
        decoders = Decoders(ServeSettings(max_pixels=MANY))
        runner.run(decoders.start())
        yield lambda data: runner.run(decoders.decode(data))
        runner.run(decoders.close())


Reads = Callable[[bytes], NDArray[np.uint8]]


# --- the same pixels as in training ---------------------------------------------------------------------


@pytest.mark.parametrize("name", list(PICTURES))
def test_a_file_is_read_as_in_training(name: str, reads: Reads, tmp_path: Path) -> None:
    path = tmp_path / "picture"
    path.write_bytes(PICTURES[name])
    wanted, found = pil_array(open_image(path)), reads(PICTURES[name])
    assert found.dtype == np.uint8 and found.shape == wanted.shape
    np.testing.assert_array_equal(found, wanted)


def test_what_goes_into_the_model_is_what_preprocess_makes_of_the_file(reads: Reads, tmp_path: Path) -> None:
    from odn_hybrid.data import Preprocess

    path = tmp_path / "picture"
    for channels in (1, 3):
        takes = Preprocess(size=(12, 9), mean=(0.4,) * channels, std=(0.2,) * channels, channels=channels)
        for name in ("PNG RGBA", "JPEG CMYK", "PNG I;16", "GIF P", "TIFF turned", "WEBP moving"):
            path.write_bytes(PICTURES[name])
            with Image.open(path) as image:
                assert takes(image).equal(takes(reads(PICTURES[name]))), name


def test_an_orientation_tag_counts_in_tiff_files_only(reads: Reads) -> None:
    lies = {kind: reads(PICTURES[f"{kind} turned"]).shape for kind in ("JPEG", "PNG", "WEBP", "TIFF")}
    assert lies == {"JPEG": (24, 21, 3), "PNG": (24, 21, 3), "WEBP": (24, 21, 3), "TIFF": (21, 24, 3)}


def test_each_request_gets_its_own_picture() -> None:
    async def play(decoders: Decoders) -> None:
        found = await asyncio.gather(*(decoders.decode(number(k % 256, 1 + k // 16)) for k in range(400)))
        for k, pixels in enumerate(found):
            assert pixels.shape == (1 + k // 16,) * 2 and (pixels == k % 256).all()

    playing(play, decoders=2)


# --- files that cannot be read --------------------------------------------------------------------------


def refused(reads: Reads, data: bytes, kind: type[Refusal]) -> str:
    with pytest.raises(Refusal) as caught:
        reads(data)
    assert type(caught.value) is kind
    said = str(caught.value)
    assert len(said) < 200 and said.isprintable()
    for secret in ("/", "\\", " 0x", "PIL", "python", "Traceback", "BytesIO", "Plugin"):
        assert secret not in said
    return said


@pytest.mark.parametrize("kind", list(BOMBS))
def test_a_small_file_of_many_pixels_is_refused_by_its_header(kind: str, reads: Reads) -> None:
    assert len(BOMBS[kind]) < 20_000
    assert str(MANY) in refused(reads, BOMBS[kind], TooLarge)


def test_the_limit_of_pixels_is_exact(reads: Reads) -> None:
    assert reads(saved(Image.new("1", (1000, 1000)), "PNG")).shape == (1000, 1000)
    said = refused(reads, saved(Image.new("1", (1000, 1001)), "PNG"), TooLarge)
    assert "1000x1001" in said and "1000000" in said


@pytest.mark.parametrize("kind", IMAGE_FORMATS)
def test_files_cut_off_anywhere_are_refused(kind: str, reads: Reads) -> None:
    data = PICTURES[f"{kind} RGB"]
    for share in (0.01, 0.1, 0.3, 0.6, 0.9):
        refused(reads, data[: math.ceil(len(data) * share)], BadRequest)


def test_what_is_no_picture_is_refused(reads: Reads) -> None:
    assert "JPEG" in refused(reads, b"GET / HTTP/1.1\r\n\r\n", BadRequest)
    assert "JPEG" in refused(reads, saved(Image.new("L", (9, 9)), "ICO"), BadRequest)  # a format not read
    assert "JPEG" in refused(reads, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", BadRequest)
    assert "empty" in refused(reads, b"", BadRequest)
    for image in (Image.new("F", (9, 9)), Image.new("I", (9, 9))):
        assert repr(image.mode) in refused(reads, saved(image, "TIFF"), BadRequest)
    assert "convert" in refused(reads, saved(Image.new("LAB", (9, 9)), "TIFF"), BadRequest)


def test_a_text_that_unfolds_to_much_is_refused(reads: Reads) -> None:
    data = text_bomb()
    assert len(data) < 1_000_000
    refused(reads, data, BadRequest)
    assert reads(number(7)).max() == 7


def test_a_file_above_the_limit_of_bytes_never_reaches_a_process() -> None:
    async def play(decoders: Decoders) -> None:
        with pytest.raises(TooLarge, match="limit of 1000"):
            await decoders.decode(bytes(1001))

    playing(play, max_body_bytes=1000)


@settings(max_examples=400)
@given(data=st.binary(max_size=2000), name=st.sampled_from(["", *sorted(PICTURES)]), draw=st.data())
def test_damaged_files_give_pixels_or_a_refusal(
    data: bytes, name: str, draw: st.DataObject, reads: Reads
) -> None:
    file = bytearray(PICTURES.get(name, b""))
    if file:  # damage a picture: a few bytes changed, a piece replaced by `data`, perhaps cut off
        for _ in range(draw.draw(st.integers(0, 6))):
            file[draw.draw(st.integers(0, len(file) - 1))] = draw.draw(st.integers(0, 255))
        at = draw.draw(st.integers(0, len(file)))
        file[at : at + draw.draw(st.integers(0, 40))] = data[:40]
    else:
        file += data
    try:
        pixels = reads(bytes(file))
    except (BadRequest, TooLarge):
        pass
    else:
        assert pixels.dtype == np.uint8 and pixels.ndim in (2, 3) and 0 < pixels.size <= 3 * MANY
    assert (reads(number(5)) == 5).all()


# --- processes that are lost ----------------------------------------------------------------------------


def test_a_file_that_takes_too_long_is_refused_and_the_process_replaced() -> None:
    async def play(decoders: Decoders) -> None:
        before = decoders.pids
        with pytest.raises(BadRequest, match=r"more than 0\.4 s"):
            await decoders.decode(slow_jpeg())
        assert (await decoders.decode(number(3))).max() == 3
        assert decoders.pids != before and all(map(gone, before))

    playing(play, decode_seconds=0.4)


def test_a_process_that_hangs_is_replaced() -> None:
    async def play(decoders: Decoders) -> None:
        (stuck,) = decoders.pids
        os.kill(stuck, signal.SIGSTOP)
        with pytest.raises(BadRequest, match="more than"):
            await decoders.decode(bytes(1 << 20))  # more than a pipe holds: it is stuck while writing
        assert (await decoders.decode(number(3))).max() == 3
        assert gone(stuck)

    playing(play, decode_seconds=0.4)


def test_a_process_killed_from_outside_is_not_noticed_by_clients() -> None:
    async def play(decoders: Decoders) -> None:
        (first,) = decoders.pids
        os.kill(first, signal.SIGKILL)  # while it has nothing to do
        assert (await decoders.decode(number(1))).max() == 1
        (second,) = decoders.pids
        os.kill(second, signal.SIGSTOP)  # so that it surely has not answered
        asked = [asyncio.create_task(decoders.decode(number(value))) for value in (2, 3)]
        for _ in range(5):
            await asyncio.sleep(0)
        os.kill(second, signal.SIGKILL)
        assert [int(pixels.max()) for pixels in await asyncio.gather(*asked)] == [2, 3]
        assert len({first, second, *decoders.pids}) == 3

    playing(play)


def test_a_request_whose_process_is_killed_twice_fails_and_the_next_does_not() -> None:
    async def play(decoders: Decoders) -> None:
        asked = asyncio.create_task(decoders.decode(slow_jpeg()))
        (first,) = decoders.pids
        os.kill(first, signal.SIGKILL)
        await until(lambda: first not in decoders.pids and decoders.pids != [])
        os.kill(decoders.pids[0], signal.SIGKILL)
        with pytest.raises(Failed):
            await asked
        assert (await decoders.decode(number(4))).max() == 4

    playing(play, decode_seconds=100)


@pytest.mark.parametrize("died", ["SIGSEGV", "SIGABRT", "SIGXCPU"])
def test_a_file_that_breaks_its_process_is_refused(died: str) -> None:
    async def play(decoders: Decoders) -> None:
        (pid,) = decoders.pids
        os.kill(pid, signal.SIGSTOP)
        asked = [asyncio.create_task(decoders.decode(number(value))) for value in (1, 2)]
        for _ in range(5):
            await asyncio.sleep(0)
        os.kill(pid, getattr(signal, died))
        os.kill(pid, signal.SIGCONT)
        with pytest.raises(BadRequest, match="breaks"):
            await asked[0]
        assert (await asked[1]).max() == 2

    playing(play)


@needs_linux
def test_a_file_that_takes_too_much_memory_is_refused() -> None:
    large = saved(Image.new("RGB", (3000, 3000)), "PNG")  # 36 MB in memory and 27 MB as an array

    async def play(decoders: Decoders) -> None:
        before = decoders.pids
        with pytest.raises(BadRequest, match="more than 30000000 bytes"):
            await decoders.decode(large)
        assert (await decoders.decode(number(9))).max() == 9
        assert decoders.pids != before

    playing(play, decode_bytes=30_000_000)


LIES = {
    "a picture of many pixels": (1, 60_000, 60_000, 3),
    "a picture without pixels": (1, 0, 5, 3),
    "two channels": (1, 5, 5, 2),
    "a long text": (2, 4_000_000_000, 0, 0),
    "an unknown word": (77, 5, 5, 3),
    "ready, once more": (0, 0, 0, 0),
}


@pytest.mark.parametrize("lie", list(LIES))
def test_a_process_in_a_clients_hands_cannot_say_just_anything(
    lie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = (
        "import struct, sys; out = sys.stdout.buffer; say = lambda *a: (out.write(struct.pack('<BIII', *a)),"
        f" out.flush()); say(0, 0, 0, 0); sys.stdin.buffer.read(5); say(*{LIES[lie]}); sys.stdin.read()"
    )

    monkeypatch.setattr(process, "_PROGRAM", program)

    async def play(decoders: Decoders) -> None:
        for _ in range(2):
            before = decoders.pids
            with pytest.raises(BadRequest, match="breaks"):
                await decoders.decode(number(1))
            await until(lambda before=before: decoders.pids not in ([], before))

    playing(play)


def test_all_this_on_the_event_loop_that_servers_use() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def play(decoders: Decoders) -> None:
        (first,) = decoders.pids
        os.kill(first, signal.SIGKILL)
        await until(lambda: gone(first))
        assert (await decoders.decode(number(1, 900))).max() == 1
        (second,) = decoders.pids
        os.kill(second, signal.SIGSTOP)
        asked = [asyncio.create_task(decoders.decode(number(value))) for value in range(1, 5)]
        for _ in range(5):
            await asyncio.sleep(0)
        asked[0].cancel()
        asked[2].cancel()
        os.kill(second, signal.SIGCONT)
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert [int(one.max()) for one in found if isinstance(one, np.ndarray)] == [2, 4]
        os.kill(second, signal.SIGSTOP)
        with pytest.raises(BadRequest, match="more than"):
            await decoders.decode(bytes(1 << 20))
        assert (await decoders.decode(number(3))).max() == 3
        assert gone(second)

    playing(play, uvloop.new_event_loop, decode_seconds=2)


# --- who waits ------------------------------------------------------------------------------------------


def test_a_cancelled_request_leaves_the_answers_of_others_alone() -> None:
    async def play(decoders: Decoders) -> None:
        (pid,) = decoders.pids
        os.kill(pid, signal.SIGSTOP)
        asked = [asyncio.create_task(decoders.decode(number(value))) for value in range(1, 7)]
        for _ in range(5):
            await asyncio.sleep(0)
        for cancelled in (0, 3):  # one that is being read, one that waits
            asked[cancelled].cancel()
        os.kill(pid, signal.SIGCONT)
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert [k for k, one in enumerate(found) if isinstance(one, asyncio.CancelledError)] == [0, 3]
        assert [int(one.max()) for one in found if isinstance(one, np.ndarray)] == [2, 3, 5, 6]
        assert decoders.pids == [pid]

    playing(play)


def test_more_requests_than_may_wait_are_refused_at_once() -> None:
    async def play(decoders: Decoders) -> None:
        (pid,) = decoders.pids
        os.kill(pid, signal.SIGSTOP)
        asked = [asyncio.create_task(decoders.decode(number(value))) for value in range(1, 5)]
        with pytest.raises(Overloaded) as caught:
            await asked[3]
        assert caught.value.retry_after is not None and caught.value.retry_after >= 1
        os.kill(pid, signal.SIGCONT)
        assert [int(pixels.max()) for pixels in await asyncio.gather(*asked[:3])] == [1, 2, 3]
        assert (await decoders.decode(number(5))).max() == 5

    playing(play, lane=LaneSettings(max_batch=1, queue=2))


def test_nobody_waits_longer_than_the_request_allows() -> None:
    async def play(decoders: Decoders) -> None:
        (pid,) = decoders.pids
        os.kill(pid, signal.SIGSTOP)
        asked = asyncio.create_task(decoders.decode(number(1)))
        for seconds in (0.02, None):  # None: as the server's settings say
            with pytest.raises(DeadlinePassed):
                await decoders.decode(number(2), seconds=seconds)
        os.kill(pid, signal.SIGCONT)
        with pytest.raises(DeadlinePassed):
            await asked
        assert (await decoders.decode(number(3), seconds=100)).max() == 3

    playing(play, request_seconds=0.05)


def test_waiting_files_are_bounded_in_bytes_too() -> None:
    async def play(decoders: Decoders) -> None:
        (pid,) = decoders.pids
        os.kill(pid, signal.SIGSTOP)
        asked = [asyncio.create_task(decoders.decode(bytes(100_000))) for _ in range(40)]
        await until(lambda: any(task.done() for task in asked))
        os.kill(pid, signal.SIGCONT)
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert {BadRequest, Overloaded} == {type(one) for one in found}
        assert sum(isinstance(one, BadRequest) for one in found) <= 16

    playing(play, max_body_bytes=100_000)


# --- beginning and end ----------------------------------------------------------------------------------


def test_who_is_unanswered_when_it_closes_is_told_so() -> None:
    async def run() -> None:
        decoders = Decoders(ServeSettings())
        with pytest.raises(Stopping):
            await decoders.decode(number(1))
        await decoders.start()
        (pid,) = decoders.pids
        os.kill(pid, signal.SIGSTOP)
        asked = [asyncio.create_task(decoders.decode(number(value))) for value in range(4)]
        await asyncio.sleep(0)
        await decoders.close()
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(one) for one in found] == [Stopping] * 4
        assert gone(pid)
        with pytest.raises(Stopping):
            await decoders.decode(number(1))
        await decoders.close()

    asyncio.run(run())


def test_processes_that_do_not_start_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_PROGRAM", "raise SystemExit(3)")

    async def run() -> None:
        with pytest.raises(ConfigError, match="does not start"):
            await Decoders(ServeSettings(decoders=2)).start()

    asyncio.run(run())


def test_signals_meant_for_the_server_do_not_stop_the_reading() -> None:
    async def play(decoders: Decoders) -> None:
        before = decoders.pids
        for sent in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(before[0], sent)
            assert (await decoders.decode(number(6))).max() == 6
        assert decoders.pids == before

    playing(play)


SERVER = """
import asyncio, importlib, sys
from odn_hybrid.serve.decoding import Decoders
from odn_hybrid.serve.settings import ServeSettings

async def run():
    decoders = Decoders(ServeSettings(decoders=2, decode_seconds=100))
    await decoders.start()
    asyncio.create_task(decoders.decode(sys.stdin.buffer.read()))
    await asyncio.sleep(0)
    print(*decoders.pids, flush=True)
    await asyncio.Event().wait()

importlib.import_module(sys.argv[1]).run(run())
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_killed_server_leaves_no_processes_behind(loop: str) -> None:
    pytest.importorskip(loop)
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, loop], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as server:
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(slow_jpeg())  # one of them has work, the other has none
        server.stdin.close()
        pids = [int(word) for word in server.stdout.readline().split()]
        assert len(pids) == 2 and not any(map(gone, pids))
        server.kill()
    asyncio.run(until(lambda: all(map(gone, pids))))


def test_the_process_loads_no_network_library() -> None:
    code = "import sys, odn_hybrid.serve.decoding.child; print({'torch', 'timm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "set()"


@needs_linux
def test_the_process_knows_no_secrets_and_can_open_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ODN_TOKEN", "a secret of the server")

    async def play(decoders: Decoders) -> None:
        about = Path(f"/proc/{decoders.pids[0]}")
        assert b"secret" not in (about / "environ").read_bytes()
        assert len(list((about / "fd").iterdir())) <= 4  # the three of any process, and where answers go
        limits = (about / "limits").read_text().splitlines()
        said = {line[:26].strip(): line[26:].split()[:2] for line in limits}
        assert said["Max open files"] == ["0", "0"] and said["Max core file size"] == ["0", "0"]
        assert said["Max file size"] == ["0", "0"] and said["Max address space"][0] != "unlimited"

    playing(play)
