r"""Split a data set by subject into parts, each a file of the form `edits`.

    python -m recipe_ray.datasets.split --data counterfact:counterfact-val.json.gz \
        --without counterfact:counterfact-train.json.gz --shares tune=0.43 report=0.57 --output DIR

A subject falls into a part by its hash, so every run splits alike. Left out and counted: what `clean` drops, and edits
of subjects that one of `--without` holds.
"""

import argparse
import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from recipe_ray.datasets.cleaning import Cleaned, clean
from recipe_ray.datasets.sources import place_of_subject, read_source
from recipe_ray.errors import ConfigError
from recipe_ray.examples import EditRecord, Question


def split(
    source: str, *, without: Iterable[str], shares: Mapping[str, float]
) -> tuple[dict[str, list[EditRecord]], int, Cleaned]:
    """The records of each part, how many were left out for their subject, and what cleaning dropped.

    Raises:
        ConfigError: shares that do not add up to 1, or a source of another shape.
        FactError: a file that cannot be read, or a record that is not of its form.
    """
    if abs(sum(shares.values()) - 1) > 1e-6 or min(shares.values()) <= 0:
        raise ConfigError(f"shares are {dict(shares)}; give positive ones that add up to 1")
    read = read_source(source)
    cleaned = clean([read.records], num_empty=read.num_empty)
    held = {record.subject for other in without for record in read_source(other).records}
    left = [record for record in cleaned.records[0] if record.subject not in held]
    parts = {}
    edges = [0.0, *itertools.accumulate(shares.values())]
    edges[-1] = 1.0
    for name, (low, high) in zip(shares, itertools.pairwise(edges), strict=True):
        parts[name] = [record for record in left if low <= place_of_subject(record) < high]
    return parts, len(cleaned.records[0]) - len(left), cleaned


def to_edits_form(record: EditRecord) -> dict[str, Any]:
    """A record as the form `edits` has it."""

    def messages(question: Question) -> dict[str, Any]:
        chat = [{"role": role, "content": content} for role, content in question.messages]
        return {"messages": chat} if chat else {}

    def items(questions: Mapping[str, tuple[Question, ...]]) -> list[dict[str, Any]]:
        return [
            {"kind": kind, "prompt": one.prompt, "target": one.target, **messages(one)}
            for kind, of_kind in questions.items()
            for one in of_kind
        ]

    return {
        "prompt": record.prompt,
        "target": record.target,
        "subject": record.subject,
        "true_target": record.true_target,
        "generality": items(record.generality),
        "locality": items(record.locality),
    }


def _share(text: str) -> tuple[str, float]:
    name, _, share = text.partition("=")
    return name, float(share)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--without", nargs="*", default=[])
    parser.add_argument("--shares", nargs="+", type=_share, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    parts, num_held, cleaned = split(args.data, without=args.without, shares=dict(args.shares))
    args.output.mkdir(parents=True, exist_ok=True)
    print(f"{cleaned}; {num_held} more whose subject --without holds")
    for name, records in parts.items():
        path = args.output / f"{name}.jsonl"
        path.write_text("".join(json.dumps(to_edits_form(one), ensure_ascii=False) + "\n" for one in records))
        print(f"{path}: {len(records)} edits")


if __name__ == "__main__":
    main()
