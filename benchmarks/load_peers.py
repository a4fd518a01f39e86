"""Full-depth models in other people's servers, as their documentation has it; see serve_load.py.

    python benchmarks/load_peers.py litserve --model FOLDER --port 9000 --max-batch 8 --wait-ms 2
    python benchmarks/load_peers.py ray --model FOLDER --port 9000 --max-batch 8 --wait-ms 2

FOLDER holds a static model that `odn.save` wrote. Both take float32 pixels of one image as they are in the
body, and answer with float32 logits, so that none pays for JSON. LitServe has one API process and one worker,
and its faster queue; Ray Serve has one replica behind its own proxy.
"""

from __future__ import annotations

import argparse
import signal
import threading

from load_full import Full


def serve_litserve(folder: str, port: int, max_batch: int, wait: float) -> None:
    """Run LitServe until SIGTERM."""
    import litserve
    from load_litserve import Answering

    api = Answering(folder, max_batch_size=max_batch, batch_timeout=wait)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(
        host="127.0.0.1", port=port, num_api_servers=1, generate_client_file=False, log_level="warning"
    )


def serve_ray(folder: str, port: int, max_batch: int, wait: float) -> None:
    """Run Ray Serve until SIGTERM."""
    import ray
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import Response

    @serve.deployment(num_replicas=1, max_ongoing_requests=1000)
    class Answering:
        def __init__(self) -> None:
            self.full = Full(folder)

        @serve.batch(max_batch_size=max_batch, batch_wait_timeout_s=wait)
        async def answers(self, bodies: list[bytes]) -> list[bytes]:
            found = self.full.answers([self.full.pixels(body) for body in bodies])
            return [row.tobytes() for row in found]

        async def __call__(self, request: Request) -> Response:
            if request.method == "GET":  # whether it is there
                return Response()
            return Response(await self.answers(await request.body()), media_type="application/octet-stream")

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200 << 20)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Answering.bind(), route_prefix="/predict")
    stop.wait()
    serve.shutdown()
    ray.shutdown()


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peer", choices=("litserve", "ray"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--max-batch", type=int, default=1)
    parser.add_argument("--wait-ms", type=float, default=0.0)
    args = parser.parse_args()
    run = serve_litserve if args.peer == "litserve" else serve_ray
    run(args.model, args.port, args.max_batch, args.wait_ms / 1e3)


if __name__ == "__main__":
    main()
