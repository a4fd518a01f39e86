"""The server's HTTP side: the Open Inference Protocol v2, image files at `/predict`, and what guards both.

Needs the extra `serve`; import it from here only where a server starts.
"""

from odn_hybrid.serve.app.application import create_app

__all__ = ["create_app"]
