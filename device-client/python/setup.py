"""Generates the wire's code from ../../proto while the package is built. None of it is checked in, so none of it is stale.

Build from a checkout: `pip install device-client/python`. A source distribution of this folder alone would lack the .proto
files, and says so.
"""

import pathlib

import grpc_tools.protoc
from setuptools import setup
from setuptools.command.build_py import build_py

HERE = pathlib.Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "proto"
OWN = HERE / "proto"


class BuildWithProto(build_py):
    """Adds the packages `pithead.*` and `pithead_device.status_pb2`."""

    def run(self):
        super().run()
        out = pathlib.Path(self.build_lib)
        shared = sorted(SHARED.glob("pithead/*/v1/*.proto"))
        if not shared:
            raise SystemExit(f"{SHARED} is missing: build this package from a checkout of Pithead")
        well_known = pathlib.Path(grpc_tools.protoc.__file__).parent / "_proto"
        options = [f"-I{SHARED}", f"-I{OWN}", f"-I{well_known}", f"--python_out={out}", f"--pyi_out={out}"]
        own = sorted(OWN.glob("pithead_device/*.proto"))
        files = [str(path) for path in [*shared, *own]]
        out.mkdir(parents=True, exist_ok=True)
        if grpc_tools.protoc.main(["protoc", *options, f"--grpc_python_out={out}", *files]) != 0:
            raise SystemExit("protoc failed")
        # No service is in it.
        for path in out.glob("pithead_device/*_pb2_grpc.py"):
            path.unlink()


setup(cmdclass={"build_py": BuildWithProto})
