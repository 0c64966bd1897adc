"""Events in short, for tests of what stands."""

import numpy as np

from recipe_ray.store.order import NEVER_US, Events


def hash_rows(values):
    """Small numbers as hashes [N, 2]."""
    return np.array([[value, 0] for value in values], np.uint64).reshape(-1, 2)


def make_events(rows):
    """Events of dicts: identity, updated, ingested, content; optionally statement, expires, delete, encoded."""
    rows = list(rows)
    return Events(
        identity_N2=hash_rows(row["identity"] for row in rows),
        updated_us_N=np.array([row["updated"] for row in rows], np.int64),
        ingested_us_N=np.array([row["ingested"] for row in rows], np.int64),
        expires_us_N=np.array([row.get("expires", NEVER_US) for row in rows], np.int64),
        content_N2=hash_rows(row["content"] for row in rows),
        statement_N2=hash_rows(row.get("statement", row["content"]) for row in rows),
        is_delete_N=np.array([row.get("delete", False) for row in rows], np.bool_),
        encoded_N=np.array([row.get("encoded", False) for row in rows], np.bool_),
    )


def said(event):
    return event["identity"], event["updated"], event["content"]


def standing_by_the_rule(events):
    """The rule written out: an event is known since it was first ingested; the last of an id stands."""
    since = {}
    for event in events:
        since[said(event)] = min(event["ingested"], since.get(said(event), event["ingested"]))
    last = {}
    for (identity, updated, content), ingested in since.items():
        last[identity] = max((updated, ingested, content), last.get(identity, (updated, ingested, content)))
    return {identity: (updated, content) for identity, (updated, _, content) in last.items()}
