"""Which key a device seals to, and why: docs/trust.md. Pure; time is an argument.

`cose` reads signed objects, `root` and `statement` what they say, `verify` who has signed, `meaning` what a statement must
say before it is acted on, `device` how all of that moves, `record` how it is kept.
"""

from .device import Bundle, Clock, Status, Trust, VerifiedKey

__all__ = ["Bundle", "Clock", "Status", "Trust", "VerifiedKey"]
