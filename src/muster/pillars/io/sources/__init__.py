"""Sources: data sets whose samples are read from a store one by one, in any order, each by one request.

May import the errors and the contract `muster.pillars.io.samples.StoredSamples`, which all sources keep. Stores are reached
through fsspec; packages that a format or a store needs are imported when it is used.
"""

from muster.pillars.io.sources._decoders import (
    IMAGE_EXTENSIONS,
    decode_array,
    decode_image,
    decode_integer,
    decode_json,
    decode_safetensors,
    decode_tensors,
    decode_text,
    register_decoder,
)
from muster.pillars.io.sources._folder import Folder
from muster.pillars.io.sources._mosaic import MosaicShards
from muster.pillars.io.sources._npy import Npy
from muster.pillars.io.sources._open import open_source
from muster.pillars.io.sources._parquet import Parquet
from muster.pillars.io.sources._source import Place, Source
from muster.pillars.io.sources._webdataset import WebDatasetTar
from muster.pillars.io.sources._zarr import Zarr

__all__ = [
    "Folder",
    "IMAGE_EXTENSIONS",
    "MosaicShards",
    "Npy",
    "Parquet",
    "Place",
    "Source",
    "WebDatasetTar",
    "Zarr",
    "decode_array",
    "decode_image",
    "decode_integer",
    "decode_json",
    "decode_safetensors",
    "decode_tensors",
    "decode_text",
    "open_source",
    "register_decoder",
]
