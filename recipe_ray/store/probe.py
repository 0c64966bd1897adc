"""Whether a place is fit for a table: it can be written, and its store keeps two writers apart."""

import contextlib
import uuid

from botocore.exceptions import BotoCoreError, ClientError

from recipe_ray.errors import OutputError
from recipe_ray.store.files import SINGLE_WRITER_VARIABLE, is_s3, s3_client, single_writer, split_s3

_REFUSED = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")


def check_conditional_writes(uri: str) -> None:
    """Refuse an S3 endpoint that overwrites although `If-None-Match: *` says not to: two commits could become one.

    Leaves nothing behind. A local file system keeps writers apart by hard links; nothing is asked of it.

    Raises:
        OutputError: the endpoint does not honour conditional writes, or cannot be written.
    """
    if not is_s3(uri):
        return
    client, (bucket, key) = s3_client(), split_s3(uri)
    key = f"{key}/_probe-{uuid.uuid4().hex}".lstrip("/")
    unfit = OutputError(
        f"{uri}: the endpoint does not honour conditional writes (If-None-Match), so of two commits at once one would "
        "be lost; use a store that does, or see to it that nothing else writes to this table and set "
        f"{SINGLE_WRITER_VARIABLE}=1"
    )
    try:
        for body in (b"first", b"second"):
            try:
                client.put_object(Bucket=bucket, Key=key, Body=body, IfNoneMatch="*")
            except ClientError as error:
                # The first may be refused too: where its answer was lost, and the client sent it again.
                if error.response["Error"]["Code"] in _REFUSED:
                    return
                raise
        if not single_writer():
            raise unfit
    except ClientError as error:
        if error.response["Error"]["Code"] in ("NotImplemented", "501"):
            raise OutputError(
                f"{uri}: the endpoint refuses conditional writes (If-None-Match), without which no commit can be "
                "written; use a store that honours them"
            ) from error
        raise OutputError(f"{uri}: cannot be written ({error}); give a place you may write to") from error
    except BotoCoreError as error:
        raise OutputError(f"{uri}: cannot be written ({error}); give a place you may write to") from error
    finally:
        with contextlib.suppress(BotoCoreError, ClientError):  # what went wrong before is what the caller wants to hear
            client.delete_object(Bucket=bucket, Key=key)
