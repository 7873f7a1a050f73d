"""What a worker hands in: examined before anything else is done with it, and as the ledger keeps it."""

from __future__ import annotations

import math
from typing import Any, Final

from muster.engine.pool.blobs import BlobStore, Manifest
from muster.engine.pool.ledger import Claim, Lease, Unit
from muster.engine.pool.seat import Handing
from muster.engine.pool.updates import Array, Arrays, RefusedUpdate, examined

OWN: Final = "own/"  # begins the names of the ledger's facts of what keepers keep


def examined_result(
    blobs: BlobStore,
    lease: Lease,
    result: Handing,
    *,
    shape: Arrays,
    most_bytes: int,
    most_kept_bytes: int,
) -> dict[str, Array]:
    """The arrays of a result whose chunks have been brought.

    Arguments:
        blobs: with the chunks.
        lease: that it is the result of.
        result: as its worker tells of it.
        shape: what an update must have; see `muster.engine.pool.fold.shape_of`.
        most_bytes: of an update.
        most_kept_bytes: of what its keeper keeps.

    Raises:
        RefusedUpdate: it is not what such a lease may bring; says why.
    """
    if result.update.size > most_bytes:
        raise RefusedUpdate(f"has {result.update.size:,} bytes; this model's have at most {most_bytes:,}")
    if type(result.samples) is not int or result.samples < 1:
        raise RefusedUpdate(f"claims {result.samples!r:.40} samples; expected 1 or more")
    if type(result.steps) is not int or not 1 <= result.steps < 1 << 31:
        raise RefusedUpdate(f"claims {result.steps!r:.40} steps")
    if result.loss is not None and not math.isfinite(result.loss):
        raise RefusedUpdate(f"claims a loss of {result.loss!r:.40}")
    if result.own is not None:
        if "keeper" not in lease.unit.work:
            raise RefusedUpdate("brings something to keep for a unit without a keeper")
        if result.own.size > most_kept_bytes or blobs.missing(result.own.chunks):
            raise RefusedUpdate("brings something to keep that is too large, or not whole")
    try:
        content = blobs.get_whole(result.update)
    except KeyError as error:
        raise RefusedUpdate(f"is not whole: chunk {error.args[0][:12]} is not here") from None
    return examined(content, shape, samples=result.samples, most_samples=lease.unit.samples)


def detail_of(lease: Lease, result: Handing) -> dict[str, Any]:
    """What belongs to a result, as the ledger keeps it."""
    own = {}
    if result.own is not None:
        own = {"own": result.own.to_json(), "keeper": f"{OWN}{lease.unit.work['keeper']}"}
    return {
        "update": result.update.to_json(),
        "steps": result.steps,
        "loss": result.loss,
        "seconds": result.seconds,
        **own,
    }


def rest_of(unit: Unit, samples: int) -> tuple[dict[str, Any], int] | None:
    """What a partial result leaves to do, where units are parts of a whole."""
    left = unit.samples - samples
    if left == 0 or "begin" not in unit.work:
        return None
    return {**unit.work, "begin": unit.work["begin"] + samples}, left


def known_manifest(told: str) -> Manifest:
    """One that was written here."""
    return Manifest.from_json(told, most_bytes=1 << 62)


def chunks_of(claim: Claim) -> set[str]:
    """What a claim consists of."""
    found = set(known_manifest(claim.detail["update"]).chunks)
    if "own" in claim.detail:
        found.update(known_manifest(claim.detail["own"]).chunks)
    return found
