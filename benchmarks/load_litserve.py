"""The full-depth model as LitServe wants it: a class that its worker process can import.

Annotations are read by LitServe, to know how bodies are read and answers written, and must not be words.
"""

from typing import Annotated, Any

import litserve
from fastapi import Depends, Request, Response
from load_full import Full

__all__ = ["Answering"]


async def body_of(request: Request) -> bytes:
    """The body as it is, instead of JSON."""
    return await request.body()


class Answering(litserve.LitAPI):
    """Pixels of one image in, logits out; see load_peers.py."""

    def __init__(self, folder: str, **options: Any) -> None:
        super().__init__(**options)
        self.folder = folder

    def setup(self, device: str) -> None:
        """In the worker."""
        self.full = Full(self.folder)

    def decode_request(self, request: Annotated[bytes, Depends(body_of)]) -> Any:
        """(channels, height, width)."""
        return self.full.pixels(request)

    def batch(self, inputs: list[Any]) -> list[Any]:
        """As they are: the model stacks them."""
        return inputs

    def predict(self, images: Any) -> Any:
        """Logits; with batches of one, an image comes without a list."""
        if not isinstance(images, list):
            return self.full.answers([images])[0]
        return list(self.full.answers(images))

    def unbatch(self, output: Any) -> Any:
        """A list already."""
        return output

    def encode_response(self, output: Any) -> Response:
        """float32."""
        return Response(output.tobytes(), media_type="application/octet-stream")
