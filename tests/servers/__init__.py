"""Real S3 servers for the tests: each from PyPI, in an environment of its own, on loopback only."""
