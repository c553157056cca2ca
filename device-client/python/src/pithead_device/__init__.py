"""A device client for Pithead on plain grpcio and cryptography: verify the key, seal, keep, hand over.

    from pithead_device import Client, Device, deliver, refresh

    with Device(folder) as device, Client(address, ca, certificate, key) as client:
        refresh(device, client)                       # keys, verified against the root that came by hand
        device.record("can", b"...", name="speed")    # in memory
        device.flush()                                # sealed and on disk
        deliver(device, client, patience_s=60)        # handed over, and forgotten

Every exception is a [`PitheadError`] with a reason of the registry (docs/errors.md).
"""

from .client import Accepted, Client, Delivered, deliver, refresh
from .device import Clocks, Device, enroll
from .envelope import Facts, Session, SigningKey
from .errors import (
    EnvelopeRefused, NameRefused, PitheadError, ProfileRefused, SealingFailed, StorageFailed, TrustRefused,
)
from .names import Identity
from .refusals import Refused
from .trust import Bundle, Clock, Status, Trust, VerifiedKey

__all__ = [
    "Accepted", "Bundle", "Client", "Clock", "Clocks", "Delivered", "Device", "EnvelopeRefused", "Facts", "Identity",
    "NameRefused", "PitheadError", "ProfileRefused", "Refused", "SealingFailed", "Session", "SigningKey", "Status",
    "StorageFailed", "Trust", "TrustRefused", "VerifiedKey", "deliver", "enroll", "refresh",
]
