"""Image files of clients are read in processes of their own, which may die without taking the server down.

`Decoders` keeps the processes (`process`) and hands them one file at a time; `child` is the program they
run, without torch, under the limits of `limits`; `wire` is what the two say to each other.
"""

from odn_hybrid.serve.decoding.decoders import Decoders

__all__ = ["Decoders"]
