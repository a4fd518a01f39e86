"""The models of one server: opened from folders, made ready, swapped without dropping a request."""

from odn_hybrid.serve.hosting.host import Host
from odn_hybrid.serve.hosting.hosted import Hosted

__all__ = ["Host", "Hosted"]
