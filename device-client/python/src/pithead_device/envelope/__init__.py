"""The sealed envelope: docs/envelope.md. Pure; time and random bytes are arguments.

`context` is the clear text and its profile, `keys` the data key and what is derived of it, `message` one message,
`signature` and `session` what many share, `reading` the check without a key. `opening` is for the cloud side and for tests.
"""

from .session import Facts, Session
from .signature import SigningKey

__all__ = ["Facts", "Session", "SigningKey"]
