"""One rank of a training loop with a known compute time, fed by one of several loaders; run in a process of its own.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=... python peer_streaming_loop.py '{"loader": "lookahead", ...}'

The argument is JSON: ``loader`` (lookahead, dataloader, webdataset, webdataset-cached, mosaic), ``url`` of the store (or a
folder), ``samples``, ``batch`` per rank, ``epochs``, ``compute_s`` per batch, ``setup_s`` between the making of the
loader and its use, ``workers``, ``memory_bytes`` per rank, ``shards`` (names of the tars), ``scratch`` (a folder of this
run's own). A batch's compute is a matrix product repeated until ``compute_s`` have passed, so its length is known
whatever else the cores do; then the ranks meet, as for gradients.

It prints one line of JSON: for each epoch its wall time and the time spent waiting for batches, in seconds, and the images.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from PIL import Image


def decode(stored: Any) -> torch.Tensor:
    """A JPEG file as a tensor of bytes, (3, height, width)."""
    with Image.open(io.BytesIO(stored)) as image:
        pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
        return pixels.view(image.height, image.width, 3).permute(2, 0, 1).contiguous()


def decode_pair(stored: Any) -> tuple[torch.Tensor, int]:
    """A photograph and its label; the label is of no interest here, and the same for all loaders."""
    return decode(stored), 0


class Fed:
    """A loader as the loop sees it: for each epoch an iterable of batches."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

    def epoch(self, epoch: int) -> Iterable[Any]:
        """The batches of an epoch."""
        raise NotImplementedError

    def statistics(self) -> dict[str, Any]:
        """What the loader can tell about itself."""
        return {}

    def close(self) -> None:
        """Ends it."""


class FromFolder(Fed):
    """Muster's source over JPEG files, one request for each, as both its loader and torch's can read it."""

    def source(self) -> Any:
        """A `muster.io.Folder`, whose samples are pairs of photograph and label."""
        from muster.io import Folder

        return Folder(f"{self.settings['url']}/jpeg", decode=decode_pair)

    def sampler(self, source: Any) -> Any:
        """The global shuffle."""
        return torch.utils.data.DistributedSampler(source, self.world_size, self.rank, seed=7)


class LookAhead(FromFolder):
    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        from muster.io import LookAheadLoader

        source = self.source()
        self.loader = LookAheadLoader(
            source,
            settings["batch"],
            sampler=self.sampler(source),
            epochs=settings["epochs"],
            workers=settings["workers"],
            memory_bytes=settings["memory_bytes"],
            cache=settings.get("cache", "auto"),
        )

    def epoch(self, epoch: int) -> Iterable[Any]:
        self.loader.set_epoch(epoch)
        return self.loader

    def statistics(self) -> dict[str, Any]:
        import dataclasses

        return dataclasses.asdict(self.loader.statistics())

    def close(self) -> None:
        self.loader.close()


class PlainDataLoader(FromFolder):
    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        source = self.source()
        self.shuffle = self.sampler(source)
        self.loader = torch.utils.data.DataLoader(
            source,
            settings["batch"],
            sampler=self.shuffle,
            num_workers=settings["workers"],
            persistent_workers=settings["workers"] > 0,
        )

    def epoch(self, epoch: int) -> Iterable[Any]:
        self.shuffle.set_epoch(epoch)
        return self.loader


class WebDatasets(Fed):
    """WebDataset over tars: shards are split between ranks and workers, samples mixed in a buffer."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        import webdataset

        urls = [f"{settings['url']}/tar/{name}" for name in settings["shards"]]
        cache = {"cache_dir": settings["scratch"]} if settings["loader"] == "webdataset-cached" else {}
        dataset = (
            webdataset.WebDataset(
                urls, nodesplitter=webdataset.split_by_node, shardshuffle=len(urls), seed=7, **cache
            )
            .shuffle(200)
            .to_tuple("jpg")
            .map(lambda pair: (decode(pair[0]), 0))
        )
        loader = webdataset.WebLoader(
            dataset,
            batch_size=settings["batch"],
            num_workers=settings["workers"],
            persistent_workers=settings["workers"] > 0,
        )
        # The same number of batches on every rank, though the shards differ in length.
        self.batches = settings["samples"] // self.world_size // settings["batch"]
        self.loader = iter(loader.repeat(10**6))

    def epoch(self, epoch: int) -> Iterator[Any]:
        for _ in range(self.batches):
            yield next(self.loader)


class Mosaic(Fed):
    """MosaicML streaming over MDS shards, asked for as from S3; it keeps them on local disk."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        import streaming

        class Photographs(streaming.StreamingDataset):
            def __getitem__(self, at: int) -> Any:
                return decode(super().__getitem__(at)["jpg"]), 0

        self.dataset = Photographs(
            remote="s3://mds",
            local=settings["scratch"],
            shuffle=True,
            shuffle_seed=7,
            batch_size=settings["batch"],
        )
        self.loader = streaming.StreamingDataLoader(
            self.dataset,
            batch_size=settings["batch"],
            num_workers=settings["workers"],
            persistent_workers=settings["workers"] > 0,
        )

    def epoch(self, epoch: int) -> Iterable[Any]:
        return self.loader


LOADERS = {
    "lookahead": LookAhead,
    "dataloader": PlainDataLoader,
    "webdataset": WebDatasets,
    "webdataset-cached": WebDatasets,
    "mosaic": Mosaic,
}


def compute(seconds: float, operand: torch.Tensor) -> None:
    """Keeps a core busy for a known time."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        torch.mm(operand, operand)


def main() -> None:
    """Runs the loop and prints what it measured."""
    settings = json.loads(sys.argv[1])
    Path(settings["scratch"]).mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    fed = LOADERS[settings["loader"]](settings)
    operand = torch.randn(64, 64)
    walls, waits, images = [], [], 0
    time.sleep(settings["setup_s"])  # as long as a training process builds its model
    dist.barrier()
    for epoch in range(settings["epochs"]):
        began = time.perf_counter()
        batches = iter(fed.epoch(epoch))
        waited = time.perf_counter() - began
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            waited += time.perf_counter() - asked
            if batch is None:
                break
            images += len(batch[0])
            compute(settings["compute_s"], operand)
            dist.barrier()
        walls.append(time.perf_counter() - began)
        waits.append(waited)
    print(
        json.dumps({"walls": walls, "waits": waits, "images": images, "loader": fed.statistics()}), flush=True
    )
    dist.barrier()
    fed.close()
    os._exit(0)  # a peer's threads may not end


if __name__ == "__main__":
    main()
