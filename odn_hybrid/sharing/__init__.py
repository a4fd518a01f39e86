"""Models leave the house: exports for other runtimes, and folders in Hugging Face's convention."""

from odn_hybrid.sharing.exporting import FORMATS, export
from odn_hybrid.sharing.hub import from_pretrained, push_to_hub, save_pretrained

__all__ = ["FORMATS", "export", "from_pretrained", "push_to_hub", "save_pretrained"]
