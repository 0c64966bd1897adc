"""Whether a place is fit for a table: it can be written, and its store keeps two writers apart."""

import contextlib
import os
import uuid

from botocore.exceptions import BotoCoreError, ClientError

from recipe_ray.errors import OutputError
from recipe_ray.store.files import is_s3, s3_client, split_s3

SINGLE_WRITER_VARIABLE = "RECIPE_RAY_SINGLE_WRITER"
_REFUSED = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")


def single_writer() -> bool:
    """Whether the operator vouches for there being no second writer."""
    return os.environ.get(SINGLE_WRITER_VARIABLE, "") not in ("", "0")


def check_conditional_writes(uri: str) -> None:
    """Refuse an S3 endpoint that overwrites although `If-None-Match: *` says not to: two commits could become one.

    Leaves nothing behind. A local file system keeps writers apart by hard links; nothing is asked of it.

    Raises:
        OutputError: the endpoint does not honour conditional writes, or cannot be written.
    """
    if not is_s3(uri) or single_writer():
        return
    client, (bucket, key) = s3_client(), split_s3(uri)
    key = f"{key}/_probe-{uuid.uuid4().hex}".lstrip("/")
    unfit = OutputError(
        f"{uri}: the endpoint does not honour conditional writes (If-None-Match), so of two commits at once one would "
        "be lost; use a store that does, or see to it that nothing else writes to this table and set "
        f"{SINGLE_WRITER_VARIABLE}=1"
    )
    try:
        client.put_object(Bucket=bucket, Key=key, Body=b"first", IfNoneMatch="*")
        try:
            client.put_object(Bucket=bucket, Key=key, Body=b"second", IfNoneMatch="*")
        except ClientError as error:
            if error.response["Error"]["Code"] in _REFUSED:
                return
            raise
        raise unfit
    except ClientError as error:
        if error.response["Error"]["Code"] in ("NotImplemented", "501"):
            raise unfit from error
        raise OutputError(f"{uri}: cannot be written ({error}); give a place you may write to") from error
    except BotoCoreError as error:
        raise OutputError(f"{uri}: cannot be written ({error}); give a place you may write to") from error
    finally:
        with contextlib.suppress(BotoCoreError, ClientError):  # what went wrong before is what the caller wants to hear
            client.delete_object(Bucket=bucket, Key=key)
