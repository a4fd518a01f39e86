"""Images and labels: where they come from, how they are divided, what turns them into a model's input.

`load_data` takes a name, a folder, an `.npz` or the user's own data sets and returns `Data`, whose five
disjoint splits the rest of the library works on. `choose_preprocess` decides size, channels, mean and
standard deviation; `make_loader` yields batches whose order and augmentation can be repeated exactly.
"""

from odn_hybrid.data.choosing import channel_stats, choose_preprocess
from odn_hybrid.data.loading import AUGMENTATIONS, make_loader
from odn_hybrid.data.policies import check_policy
from odn_hybrid.data.preprocess import Images, Preprocess
from odn_hybrid.data.sources import DATA_NAMES, Data, load_data
from odn_hybrid.data.splits import SPLIT_NAMES, Split

__all__ = [
    "AUGMENTATIONS",
    "DATA_NAMES",
    "SPLIT_NAMES",
    "Data",
    "Images",
    "Preprocess",
    "Split",
    "channel_stats",
    "check_policy",
    "choose_preprocess",
    "load_data",
    "make_loader",
]
