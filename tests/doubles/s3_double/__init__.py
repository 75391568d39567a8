"""A verified S3 server in the tests' own process, with AWS's semantics: what AWS refuses it refuses, and says why.

`signature` and `body` verify requests, `objects` and `uploads` hold what is stored and answer, `server` speaks HTTP.
Where AWS's documentation leaves an answer open, it is the stricter one. What it does not know it answers with
NotImplemented.
"""

from tests.doubles.s3_double.server import S3Double

__all__ = ["S3Double"]
