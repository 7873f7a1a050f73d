"""What of a pool's job can be known to be wrong before anything starts, and takes the merge rules to know."""

from __future__ import annotations

from muster.errors import JobError, RefusedInput
from muster.spec import Job, PoolHow
from muster.training.merge.registry import get
from muster.training.merge.rule import MergeRule
from muster.training.pool.machines import availability
from muster.training.trust.replication import Replication


def rule_of(how: PoolHow) -> MergeRule:
    """The merge rule that a job names.

    Raises:
        JobError: there is none, or it has no such option; says what would be right.
    """
    try:
        return get(how.rule_name, **how.rule_options)
    except (RefusedInput, TypeError, ValueError) as error:
        found, _, mend = str(error).removeprefix("merge rule: ").partition("; ")
        raise JobError(
            found, mend=mend or "docs/merge-rules.md says what it takes", key="how.rule"
        ) from error


def trust_of(how: PoolHow) -> Replication | None:
    """Whom of a job's workers to believe; None: everybody."""
    told = how.trust
    if told is None:
        return None
    return Replication(
        told.share,
        quorum=told.quorum,
        probation=told.probation,
        trusted=[f"worker {place}" for place in told.trusted],
        audit=told.audit,
    )


def check_pool(job: Job) -> None:
    """Refuses a job whose merge rule does not suit what it asks for, or whose machines are described wrongly.

    Raises:
        JobError: says what is wrong, and what would be right.
    """
    how = job.how
    if not isinstance(how, PoolHow):
        return
    rule = rule_of(how)
    availability(how)
    if rule.arrival == "each" and how.rounds is not None:
        if how.parties is not None:
            raise JobError(
                f"{rule.name} merges each update as it arrives, and parties come in rounds",
                mend="name a rule of rounds, such as fedavg",
                key="how.rule",
            )
        raise JobError(
            f"{rule.name} merges each update as it arrives and knows no rounds",
            mend="set how.epochs in its place",
            key="how.rounds",
        )
    if rule.arrival == "round" and how.epochs is not None:
        raise JobError(
            f"{rule.name} merges the updates of a round together",
            mend="set how.rounds in its place",
            key="how.epochs",
        )
    if how.trust is not None and rule.keeps == "worker":
        raise JobError(
            f"under {rule.name} each worker keeps something of its own, so that no two results can be compared",
            mend="remove the key, or name another rule",
            key="how.trust",
        )
    if how.parties is None and rule.keeps == "party":
        raise JobError(
            f"under {rule.name} each party keeps something from round to round, and volunteers come and go",
            mend="set how.parties, or name another rule",
            key="how.rule",
        )
    if how.parties is None and rule.wants_loss:
        raise JobError(
            f"{rule.name} weighs parties by their losses",
            mend="set how.parties, or name another rule",
            key="how.rule",
        )
